"""Runs that are kept: `lab runs`, `lab show`, `lab compare`, `lab history`."""

from __future__ import annotations

import click

from lab import campaign, model
from lab.archive import compare, drill, listing, trend
from lab.cli.context import Context, cli, json_option
from lab.model import ExitCode
from lab.report import archive

_LIMIT = 20


@cli.command(name="runs")
@click.option(
    "--limit", "-n", type=click.IntRange(0), default=_LIMIT, help="The newest N; 0: all of them."
)
@json_option
@click.pass_obj
def runs_command(context: Context, limit: int, as_json: bool) -> int:
    """List the runs that are kept, newest first: finished, running and cut off."""
    found = listing.listed(context.config.paths.runs_dir, limit=limit or None)
    if as_json:
        click.echo(model.encode(found), nl=False)
    else:
        archive.listing(found, context.out)
    return ExitCode.CLEAN


@cli.command(name="show")
@click.argument("run_name", metavar="RUN")
@click.argument("what", metavar="[CASE|TRIAL|FINGERPRINT]", required=False)
@json_option
@click.pass_obj
def show_command(context: Context, run_name: str, what: str | None, as_json: bool) -> int:
    """A run, or one case, machine or splat of it: counts, ends, messages, paths of consoles.

    RUN is the name of a run, the beginning of one, or its folder; it need not have finished.
    """
    folder = listing.find(context.config.paths.runs_dir, run_name)
    found = drill.show(folder, what)
    if as_json:
        click.echo(model.encode(found), nl=False)
    else:
        archive.show(found, context.out)
    return ExitCode.CLEAN


@cli.command(name="compare")
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="[RUN]", required=False)
@json_option
@click.pass_obj
def compare_command(context: Context, first: str, second: str | None, as_json: bool) -> int:
    """What differs between two runs: their conditions, findings, cases, splats, numbers.

    Without a second RUN, the newest one. Only results of the same architecture, profile,
    accelerator and guest size are compared.

    Exits with 1 if the second run is significantly worse or has a new finding, with 4 if there is
    nothing to compare or an answer is missing.
    """
    runs = context.config.paths.runs_dir
    folders = [campaign.find_run(runs, name) for name in (first, second)]
    found = compare.compare(*(listing.read_record(folder) for folder in folders))
    if as_json:
        click.echo(model.encode(found), nl=False)
    else:
        archive.comparison(found, context.out)
    return found.exit_code


@cli.command(name="history")
@click.argument("case", metavar="CASE|FINGERPRINT")
@click.option("--arch", metavar="ARCH", help="Only there.")
@click.option("--profile", metavar="NAME", help="Only with that set of Kconfig fragments.")
@click.option(
    "--limit", "-n", type=click.IntRange(0), default=_LIMIT, help="The newest N runs; 0: all."
)
@json_option
@click.pass_obj
def history_command(
    context: Context,
    case: str,
    arch: str | None,
    profile: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """How a case fared over all runs, on either side, newest first; CASE may be a shell pattern.

    Architectures, profiles, accelerators and guest sizes stand apart, and so do base kernels.
    "boot" asks for boots. A splat is named by its fingerprint.
    """
    found = trend.history(
        context.config.paths.runs_dir, case, arch=arch, profile=profile, limit=limit or None
    )
    if as_json:
        click.echo(model.encode(found), nl=False)
    else:
        archive.trends(found, context.out)
    return ExitCode.CLEAN
