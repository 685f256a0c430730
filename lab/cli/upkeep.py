"""What is there: `lab suites`, `lab doctor`, `lab clean`."""

from __future__ import annotations

import json

import click

from lab import (
    catalogue,
    config,
    doctor,
    model,
)
from lab.cli.context import (
    Context,
    arch_option,
    cli,
    json_option,
    override,
    split,
)
from lab.model import ExitCode
from lab.report import terminal


@cli.command()
@click.argument("name", required=False)
@json_option
@click.pass_obj
def suites(context: Context, name: str | None, as_json: bool) -> int:
    """What can be run, and what it needs of the kernel; with NAME, the cases of one suite.

    A case runs by `--suite NAME:PART` with any part of its name, or by `--only`.
    """
    rows = catalogue.overview() if name is None else catalogue.cases(name, context.config)
    if as_json:
        click.echo(model.encode(rows), nl=False)
    else:
        terminal.catalogue(rows, "suite" if name is None else "case", context.out)
    return ExitCode.CLEAN


@cli.command(name="doctor")
@arch_option
@click.option("--no-boot", is_flag=True, help="Do not boot a kernel to prove KVM.")
@click.option("--packages", "only_packages", is_flag=True, help="Only names of missing packages.")
@json_option
@click.pass_obj
def doctor_command(
    context: Context, arch: tuple[str, ...], no_boot: bool, only_packages: bool, as_json: bool
) -> int:
    """What is missing on this machine, how to get it, and does KVM really boot.

    Exits with 2 if something that the lab cannot do without is missing.
    """
    chosen = override(context.config, top={"arch": split(arch)})
    boot_it = not no_boot and not only_packages
    with context.progress() as progress:
        checks = doctor.examine(chosen, cache=context.cache, emit=progress.emit, boot=boot_it)
    if only_packages:
        click.echo("\n".join(doctor.packages(checks)), nl=bool(doctor.packages(checks)))
        return ExitCode.CLEAN
    context.answer(checks, terminal.checks, as_json=as_json)
    missing = any(check.health is doctor.Health.MISSING for check in checks)
    return ExitCode.USAGE if missing else ExitCode.CLEAN


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Kernels, images, sources and ccache too.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would go.")
@click.option("--older-than", metavar="TIME", default="30d", help="Default: 30d.")
@json_option
@click.pass_obj
def clean(context: Context, everything: bool, dry_run: bool, older_than: str, as_json: bool) -> int:
    """Free the cache: unfinished leftovers, and builds and trees not used for a while.

    Records of runs stay. Only folders that the lab itself made are touched.
    """
    age_s = 0.0 if everything else config.duration_s(older_than, where="--older-than")
    removed = context.cache.reclaim(older_than_s=age_s, everything=everything, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(removed, indent=1))
    else:
        terminal.removed(removed, context.out, dry_run=dry_run)
    return ExitCode.CLEAN
