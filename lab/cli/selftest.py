"""`lab selftest`: is every planted fault caught."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from lab import (
    model,
    selftest,
)
from lab.cli.context import (
    Context,
    accel_option,
    arch_option,
    cli,
    jobs_option,
    json_option,
    kernel_option,
    override,
    split,
)
from lab.model import ExitCode
from lab.report import selftest as selftest_report


@cli.command(name="selftest")
@click.option(
    "--control", multiple=True, metavar="NAME[,NAME]", help="Only these. See --list. Default: all."
)
@click.option("--list", "only_list", is_flag=True, help="Only say which controls there are.")
@click.option(
    "--controls",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Instead of the lab's own patches/controls. Series that they stand on lie beside DIR.",
)
@kernel_option
@arch_option
@click.option("--seed", type=int, help="Of the stress programs; the same seed, the same run.")
@accel_option
@jobs_option
@json_option
@click.pass_obj
def selftest_command(
    context: Context,
    control: tuple[str, ...],
    only_list: bool,
    folder: Path | None,
    kernel: str | None,
    arch: tuple[str, ...],
    seed: int | None,
    accel: str | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Is every planted fault caught by its detector?

    Builds and runs each control of patches/controls and the kernel without it, and the kernel's
    own crashes on demand (lkdtm). Exits with 0 if every one is caught, in its case and its time,
    and the kernels without them stay quiet; with 1 if not; with 4 if something could not be run.
    """
    where = folder or selftest.PATCHES / "controls"
    if only_list:
        controls = selftest.choose(selftest.load(where), split(control))
        selftest_report.listing(controls, context.out, as_json=as_json)
        return ExitCode.CLEAN
    chosen = override(
        context.config,
        top={"kernel": kernel, "arch": split(arch)},
        run={"seed": seed},
        machine={"accel": accel},
        build={"jobs": jobs},
    )
    request = selftest.Request(
        config=chosen, names=split(control), folder=where, command=tuple(sys.argv)
    )
    with context.progress() as progress:
        record, path = asyncio.run(selftest.run(request, progress.emit))
    code = selftest.exit_code(record)
    if as_json:
        click.echo(model.encode(record), nl=False)
    else:
        selftest_report.summary(record, path, code, context.out)
    return code
