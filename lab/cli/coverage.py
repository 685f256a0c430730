"""Which lines of a series ran: `lab coverage`."""

from __future__ import annotations

from dataclasses import replace

import click

from lab import model
from lab.archive import listing
from lab.cli.context import Context, cli, json_option
from lab.coverage.record import of_run
from lab.model import ExitCode, UserError
from lab.report import coverage


@cli.command(name="coverage")
@click.argument("run_name", metavar="[RUN]", required=False)
@click.option("--patch", "number", type=click.IntRange(1), help="All lines of patch number N.")
@click.option("--arch", metavar="ARCH", help="Of a run with several.")
@json_option
@click.pass_obj
def coverage_command(
    context: Context, run_name: str | None, number: int | None, arch: str | None, as_json: bool
) -> int:
    """Which lines of the series ran under which suite, in a run made with `lab run --coverage`.

    RUN is the name of a run, the beginning of one, or its folder. Default: the newest.
    Exits with 4 if it is not known.
    """
    folder = listing.find(context.config.paths.runs_dir, run_name, finished=True)
    found = of_run(folder)
    if not found:
        raise UserError(
            f"{folder.name} was not asked for coverage", hint="lab run --coverage --patch SERIES"
        )
    chosen = tuple(one for one in found if arch in (None, one.arch))
    if not chosen:
        raise UserError(
            f"{folder.name} has nothing of {arch}", hint=", ".join(one.arch for one in found)
        )
    most = max((len(one.patches) for one in chosen), default=0)
    if number is not None and most and number > most:
        raise UserError(f"the series has {most} patches", hint=f"--patch 1 to {most}")
    if number is not None:
        chosen = tuple(
            replace(one, patches=tuple(each for each in one.patches if each.number == number))
            for one in chosen
        )
    if as_json:
        click.echo(model.encode(chosen), nl=False)
    else:
        coverage.show(chosen, context.out, whole=number is not None)
    return ExitCode.CLEAN if all(one.known for one in chosen) else ExitCode.INCONCLUSIVE
