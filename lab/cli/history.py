"""Runs that are kept: `lab runs`, `lab show`, `lab compare`, `lab history`, `lab replay`."""

from __future__ import annotations

import asyncio
import sys

import click

from lab import campaign, model
from lab.archive import compare, drill, listing, replay, trend
from lab.cli.context import Context, accel_option, cli, jobs_option, json_option, parallel_option
from lab.cli.runs import finish
from lab.model import Event, EventKind, ExitCode
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
    context.answer(found, archive.listing, as_json=as_json)
    return ExitCode.CLEAN


@cli.command(name="show")
@click.argument("run_name", metavar="RUN")
@click.argument("what", metavar="[CASE|TRIAL|FINGERPRINT]", required=False)
@json_option
@click.pass_obj
def show_command(context: Context, run_name: str, what: str | None, as_json: bool) -> int:
    """A run, or one case, machine or splat of it: counts, ends, messages, paths of consoles.

    RUN is the name of a run, the beginning of one, its folder, or latest; it need not have
    finished.
    """
    folder = listing.find(context.config.paths.runs_dir, run_name)
    found = drill.show(folder, what)
    context.answer(found, archive.show, as_json=as_json)
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
    folders = [listing.find(runs, name, finished=True) for name in (first, second)]
    found = compare.compare(*(listing.read_record(folder) for folder in folders))
    context.answer(found, archive.comparison, as_json=as_json)
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
    context.answer(found, archive.trends, as_json=as_json)
    return ExitCode.CLEAN


@cli.command(name="replay")
@click.argument("run_name", metavar="RUN")
@click.option(
    "--check", is_flag=True, help="Only tell what is not as it was; nothing is built or run."
)
@accel_option
@parallel_option
@jobs_option
@json_option
@click.pass_obj
def replay_command(
    context: Context,
    run_name: str,
    check: bool,
    accel: str | None,
    parallel: int | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Repeat a run from what it kept: series text, kernel commit, configuration, seed, suites.

    What differs since - tools, host, lab, fragments - is told first, and at the end how the results
    differ. The kernel's source must still be there, in the cache or where it came from. Exits as
    lab run does; with --check 0 if nothing differs, else 4.
    """
    config = context.config
    folder = listing.find(config.paths.runs_dir, run_name)
    with context.progress() as progress:
        prepared = replay.prepare(
            folder,
            paths=config.paths,
            command=tuple(sys.argv),
            emit=progress.emit,
            accel=accel,
            parallel=parallel,
            jobs=jobs,
        )
        if not check:
            for one in prepared.changed:
                text = f"{one.what}: {one.first or '(none)'} -> {one.second or '(none)'}"
                progress.emit(Event(kind=EventKind.WARNING, step="not as it was", text=text))
            record, again = asyncio.run(campaign.run(prepared.request, progress.emit))
    if check:
        if as_json:
            click.echo(model.encode(prepared.changed), nl=False)
        else:
            archive.environment(prepared, context.out)
        return ExitCode.INCONCLUSIVE if prepared.changed else ExitCode.CLEAN
    status = finish(context, record, again, as_json=as_json)
    if not as_json and (folder / "record.json").is_file():
        before = listing.read_record(folder)
        archive.comparison(compare.compare(before, record), context.out)
    return status
