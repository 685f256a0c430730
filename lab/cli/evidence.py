"""Reading what guests left: `lab splats`, `lab debug`, `lab lockgraph`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from lab import (
    debug,
    host,
    lockdesk,
    model,
    symbols,
)
from lab.archive import listing
from lab.cli.context import (
    Context,
    cli,
    json_option,
)
from lab.lockgraph.diff import LockDiff
from lab.lockgraph.focus import suggest
from lab.model import ExitCode, Side, UserError
from lab.report import locks, terminal
from lab.splat import reading
from lab.store import write_atomically


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--vmlinux",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of the kernel that printed the logs, with debug information: source lines and inlined "
    "functions for every frame.",
)
@click.option(
    "--modules",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where its .ko files are, at any depth.",
)
@json_option
@click.pass_obj
def splats(
    context: Context,
    files: tuple[Path, ...],
    vmlinux: Path | None,
    modules: Path | None,
    as_json: bool,
) -> int:
    """Problem reports in console logs; "-" reads standard input. Exits with 1 if there is any.

    With one FILE, --json gives a list; with more, an object from file to list.
    """
    if modules is not None and vmlinux is None:
        raise UserError("--modules needs --vmlinux")
    paths = [Path("/dev/stdin") if str(file) == "-" else file for file in files]
    logs = reading.read_files(paths)
    if vmlinux is not None:
        logs = symbols.symbolise_logs(logs, vmlinux, modules=modules)
    for line in (*reading.missed(logs), *symbols.doubts(logs)):
        click.echo(f"lab: {reading.printable(line)}", err=True)
    found = {log.path: log.splats for log in logs}
    if not as_json:
        terminal.splats(found, context.out)
    elif len(found) == 1:
        (only,) = found.values()
        click.echo(reading.to_json(only))
    else:
        whole = {
            str(path): [reading.as_object(splat) for splat in splats]
            for path, splats in found.items()
        }
        click.echo(json.dumps(whole, indent=1))
    return ExitCode.REGRESSED if any(found.values()) else ExitCode.CLEAN


@cli.command(name="debug")
@click.argument("which", metavar="[RUN][/TRIAL]", default="")
@click.option("-e", "expression", metavar="EXPR", help="Evaluate one expression.")
@click.argument("script", metavar="[-- SCRIPT ARGS...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def debug_command(
    context: Context, which: str, expression: str | None, script: tuple[str, ...]
) -> int:
    """Open the memory of a guest that panicked or hung (lab run --dump) with drgn.

    At a terminal it is drgn's own prompt. Elsewhere it prints the end of the kernel's log and the
    stacks of all CPUs and blocked tasks. Default: the newest run, and its only dump.
    """
    run_name, _, trial_name = which.partition("/")
    folder = listing.find(context.config.paths.runs_dir, run_name or None, finished=True)
    core = debug.find(folder, trial_name, context.cache)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    options = debug.options_for(expression, script, interactive=interactive)
    return host.interactive(debug.command(core, options))


_around = click.option("--around", metavar="CLASS", help="A lock class to look at: mmap_lock.")
_depth = click.option(
    "--depth", type=click.IntRange(1, 5), default=1, help="Steps around it that are drawn."
)
_svg = click.option(
    "--svg", type=click.Path(path_type=Path), help="Draw what is around it into this file."
)
_arch_of_run = click.option("--arch", metavar="ARCH", help="Of a run with several.")


@cli.group(name="lockgraph")
def lockgraph_group() -> None:
    """What was locked inside of what: /proc/lockdep of a run, or of files."""


@lockgraph_group.command(name="diff")
@click.argument("names", nargs=-1, metavar="[RUN | BASE PATCHED]")
@_arch_of_run
@_around
@_depth
@_svg
@json_option
@click.pass_obj
def lockgraph_diff(
    context: Context,
    names: tuple[str, ...],
    arch: str | None,
    around: str | None,
    depth: int,
    svg: Path | None,
    as_json: bool,
) -> int:
    """Lock dependencies that come and go: of a run (default: the newest), or of BASE and PATCHED.

    BASE and PATCHED are copies of /proc/lockdep, folders with them and its neighbours, folders of
    such folders (one for each boot), or runs; RUN:base and RUN:patched name a side.

    Exits with 1 if there is a new lock cycle, with 4 if there may be one or nothing to compare.
    """
    if len(names) > 2:
        raise UserError("more than two things to compare", hint="name a run, or BASE and PATCHED")
    found = lockdesk.compare(names, context.config.paths.runs_dir, arch)
    around = around or suggest(found.diff, found.subjects)
    if svg is not None:
        _draw(found.diff, around, depth, svg, every=False)
    if as_json:
        click.echo(model.encode(found), nl=False)
    else:
        locks.show_diff(found.diff, around, context.out)
    return lockdesk.exit_code(found.diff)


@lockgraph_group.command(name="show")
@click.argument("name", metavar="[RUN|FILE|FOLDER]", required=False)
@_arch_of_run
@click.option(
    "--side", type=click.Choice([str(side) for side in Side]), default="patched", help="Of a run."
)
@_around
@_depth
@click.option("--edge", nargs=2, metavar="A B", help="Who takes B inside of A: the lock chains.")
@_svg
@json_option
@click.pass_obj
def lockgraph_show(
    context: Context,
    name: str | None,
    arch: str | None,
    side: str,
    around: str | None,
    depth: int,
    edge: tuple[str, str] | None,
    svg: Path | None,
    as_json: bool,
) -> int:
    """The union of one side's lock graphs; with --around, what is before and after a class."""
    seen = lockdesk.observations(name, Side(side), context.config.paths.runs_dir, arch)
    whole = lockdesk.union(seen)
    if svg is not None:
        _draw(whole, around, depth, svg, every=True)
    if edge is not None:
        chains = lockdesk.chains(seen, whole, *edge)
        context.answer(chains, locks.show_chains, as_json=as_json)
    elif as_json:
        click.echo(model.encode(whole), nl=False)
    else:
        locks.show_graph(whole, around, context.out)
    return ExitCode.CLEAN


def _draw(graph: LockDiff, around: str | None, depth: int, path: Path, *, every: bool) -> None:
    if around is None:
        raise UserError("nothing changed that could be drawn", hint="--around CLASS names a lock")
    write_atomically(path, locks.picture(graph, around, depth=depth, every=every).encode())
