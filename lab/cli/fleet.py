"""Cells on other hosts: `lab worker`, `lab workers`, `lab cell run`, `lab hosts`."""

from __future__ import annotations

import asyncio
import json
import platform
from pathlib import Path

import click
from rich.table import Table

from lab import config, host, hosts, model, pool
from lab.arch import ARCHS
from lab.cli.context import Context, accel_option, cli, json_option, override
from lab.fleet import capability, carry, join
from lab.model import ExitCode, UserError
from lab.prose import printable

_address = click.argument("address", metavar="[ADDRESS]", required=False)


def _scheduler(context: Context, given: str | None) -> str:
    address = given or context.config.fleet.scheduler
    if not address:
        raise UserError(
            "which scheduler?", hint="tcp://HOST:8786, as an argument or as [fleet] scheduler"
        )
    return address


@cli.command(name="worker")
@_address
@click.option("--name", help="Of this worker, in reports. Default: the host's.")
@click.option("--cores", type=click.IntRange(1), help="To offer. Default: all.")
@click.option("--memory", metavar="SIZE", help="To offer: 8G. Default: most of what is free.")
@click.option("--listen", metavar="HOST", help="Address at which others reach this host.")
@click.pass_obj
def worker_command(
    context: Context,
    address: str | None,
    name: str | None,
    cores: int | None,
    memory: str | None,
    listen: str | None,
) -> int:
    """Run cells for whoever sends them to the Dask scheduler at ADDRESS. Ends at Ctrl-C.

    ADDRESS is like tcp://HOST:8786. `dask scheduler` starts a scheduler; whoever reaches it can
    run programs on its workers. A scheduler that is started again is waited for. A worker that
    dies takes its machines with it; its cells run again elsewhere.
    """
    join.demand_dask()
    from lab.fleet import worker

    offered = cores or pool.cores()
    given = config.size_bytes(memory, where="--memory") if memory else None
    free = int(pool.free_bytes() * pool.MEMORY_SHARE) if given is None else given
    archs = tuple(name for name, row in ARCHS.items() if host.installed(row.qemu))
    if not archs:
        raise UserError("no QEMU is installed", hint="lab doctor says what is missing")
    with context.progress() as progress:
        post = worker.Post(
            context.cache,
            label=name or platform.node(),
            emit=progress.emit,
            crowding=max(1.0, offered / pool.cores()),
        )
        offers = capability.offers(archs=archs, cores=offered, memory_bytes=free)
        asyncio.run(worker.serve(_scheduler(context, address), post, offers, listen=listen))
    return ExitCode.CLEAN


@cli.command(name="workers")
@_address
@json_option
@click.pass_obj
def workers_command(context: Context, address: str | None, as_json: bool) -> int:
    """Which workers a scheduler has, and what each can do."""
    join.demand_dask()
    chosen = override(context.config, fleet={"scheduler": _scheduler(context, address)})

    async def look() -> dict[str, dict[str, float]]:
        from lab.fleet.crew import joined

        with context.progress() as progress:
            async with joined(chosen.fleet, context.cache, progress.emit) as crew:
                return {crew.name_of(at): offer for at, offer in (await crew.look()).items()}

    found = asyncio.run(look())
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return ExitCode.CLEAN
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("worker")
    table.add_column("can do")
    for name, offer in sorted(found.items()):
        table.add_row(printable(name), printable(capability.described(offer)))
    context.out.print(table)
    return ExitCode.CLEAN


@cli.group(name="cell")
def cell_group() -> None:
    """One cell of a run, by itself."""


@cell_group.command(name="run")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The trial's folder, packed. Default: the name of the cell, with .tar.gz.",
)
@accel_option
@json_option
@click.pass_obj
def cell_run(
    context: Context, file: Path, out: Path | None, accel: str | None, as_json: bool
) -> int:
    """Run the cell that FILE describes, on this host, and pack its trial.

    FILE is the cell.json in the folder of a trial that ran on a fleet. Kernel, root image and
    all else that it needs are fetched by digest. Exits with 0 if every case passed, 1 if one did
    not, 4 if the machine was lost or a result proves nothing.
    """
    force = accel if accel in ("kvm", "tcg") else None
    with context.progress() as progress:
        done = asyncio.run(carry.out(file, context.cache, progress.emit, out=out, force=force))
    if as_json:
        click.echo(model.encode(done.trial), nl=False)
    else:
        for result in done.trial.results:
            click.echo(printable(f"{result.state:9} {result.name} {result.message}"))
        click.echo(f"{done.trial.end}; {done.parcel}")
    return done.exit_code


@cli.group(name="hosts")
def hosts_group() -> None:
    """The hosts under [hosts] in lab.toml, over ssh."""


_names = click.argument("names", metavar="[NAME]...", nargs=-1)


def _report(context: Context, found: tuple[hosts.State, ...], as_json: bool) -> int:
    if as_json:
        click.echo(model.encode(found), nl=False)
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("host", "state", "found", "way out"):
            table.add_column(title)
        for state in found:
            lines = state.checks or (hosts.Line(name="", ok=True, found=""),)
            for number, line in enumerate(lines):
                mark = "ready" if state.ready else "not ready"
                first = (state.name, mark) if number == 0 else ("", "")
                table.add_row(*map(printable, (*first, line.found, line.hint)))
        context.out.print(table)
    return ExitCode.CLEAN if all(state.ready for state in found) else ExitCode.USAGE


@hosts_group.command(name="check")
@_names
@json_option
@click.pass_obj
def hosts_check(context: Context, names: tuple[str, ...], as_json: bool) -> int:
    """Are they reachable, is this lab on them, and what does its doctor say there?

    Changes nothing. Exits with 2 if one of them is not ready.
    """
    with context.progress() as progress:
        found = hosts.check(context.config.hosts, names, progress.emit)
    return _report(context, found, as_json)


@hosts_group.command(name="setup")
@_names
@json_option
@click.pass_obj
def hosts_setup(context: Context, names: tuple[str, ...], as_json: bool) -> int:
    """Bring this lab to them, with the packages that it needs, and ask its doctor there.

    The lab goes into the host's own folder, with a virtual environment. Missing Debian packages
    are installed as root, or by sudo where it asks for no password.
    """
    with context.progress() as progress:
        found = hosts.setup(context.config.hosts, names, progress.emit)
    return _report(context, found, as_json)
