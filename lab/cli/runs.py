"""`lab run` and the runs that are kept: `lab report`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click
import msgspec

from lab import (
    campaign,
    config,
    model,
)
from lab.archive import listing
from lab.cli.context import (
    Context,
    accel_option,
    arch_option,
    cli,
    jobs_option,
    json_option,
    kernel_option,
    override,
    parallel_option,
    profile_option,
    scheduler_option,
    split,
)
from lab.model import ExitCode, Outcome, RunRecord
from lab.report import html, junit, kcidb, terminal
from lab.store import write_atomically
from lab.subject import Request

EXIT = {
    Outcome.CLEAN: ExitCode.CLEAN,
    Outcome.REGRESSED: ExitCode.REGRESSED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Outcome.LAB_FAULT: ExitCode.LAB_FAULT,
}


@cli.command()
@click.option(
    "--patch",
    metavar="SERIES",
    required=True,
    help="A directory of patches (with or without a quilt series file), an mbox, a git range "
    "BASE..TOPIC, or a lore message-id.",
)
@kernel_option
@arch_option
@profile_option
@click.option("--suite", multiple=True, metavar="NAME[:GROUP][,...]", help="See: lab suites.")
@click.option(
    "--only", multiple=True, metavar="CASE[,CASE]", help="Single cases: generic/247, xfs/*."
)
@click.option(
    "--each-patch",
    is_flag=True,
    help="Build and boot the base with the first 1, 2, ... patches, too, and name the first patch "
    "that breaks the build, warns or breaks the boot.",
)
@click.option(
    "--coverage",
    is_flag=True,
    help="Also build the patched kernel with counters in what the series touches, run every case "
    "once on it, and say which lines of which patch ran: lab coverage.",
)
@click.option("--repeats", type=click.IntRange(1), help="Of every case on each side.")
@click.option("--max-repeats", type=click.IntRange(1), help="Of a suspect case on each side.")
@click.option(
    "--comparator",
    metavar="TREE",
    help="Another kernel (debian:6.12) that runs the same cases: its numbers stand beside those of "
    "base and patched. No verdict rests on it.",
)
@click.option("--seed", type=int, help="Of the stress programs; the same seed, the same run.")
@click.option("--duration", metavar="TIME", help="Of each faultstress case: 5, 30s, 2m.")
@click.option(
    "--filesystem",
    multiple=True,
    metavar="FS[,FS]",
    help="For faultstress: ext4, xfs, btrfs, tmpfs; with --profile dax ext4-dax and xfs-dax, too.",
)
@click.option("--scenario", multiple=True, metavar="NAME[,NAME]", help="For faultstress.")
@click.option("--xfstests", metavar="DIR", help="A tree of xfstests that you have built.")
@click.option(
    "--xfstests-config",
    multiple=True,
    metavar="NAME[,NAME]",
    help="File systems: ext4-4k, xfs; xfs+dm-delay: while that fails.",
)
@click.option(
    "--dump",
    is_flag=True,
    default=None,
    help="Keep the memory of a guest that panics or hangs, for lab debug.",
)
@accel_option
@parallel_option
@scheduler_option
@jobs_option
@json_option
@click.pass_obj
def run(
    context: Context,
    patch: str,
    kernel: str | None,
    arch: tuple[str, ...],
    profile: str | None,
    suite: tuple[str, ...],
    only: tuple[str, ...],
    each_patch: bool,
    coverage: bool,
    repeats: int | None,
    max_repeats: int | None,
    comparator: str | None,
    seed: int | None,
    duration: str | None,
    filesystem: tuple[str, ...],
    scenario: tuple[str, ...],
    xfstests: str | None,
    xfstests_config: tuple[str, ...],
    dump: bool | None,
    accel: str | None,
    parallel: int | None,
    scheduler: str | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Base against patched: one verdict.

    Everything is built and booted in the lab's own folders. Cut off at any point, the same
    command takes the run up where it stopped.
    """
    seconds = None if duration is None else config.duration_s(duration, where="--duration")
    chosen = override(
        context.config,
        top={"kernel": kernel, "arch": split(arch), "profile": profile, "suites": split(suite)},
        run={
            "repeats": repeats,
            "max_repeats": max_repeats,
            "comparator": comparator,
            "seed": seed,
            "only": split(only),
        },
        machine={"accel": accel, "parallel": parallel, "dump": dump},
        build={"jobs": jobs},
        fleet={"scheduler": scheduler},
        faultstress={
            "duration_s": seconds,
            "filesystems": split(filesystem),
            "scenarios": split(scenario),
        },
        xfstests={
            "tree": xfstests,
            "trees": {} if xfstests else None,
            "configs": split(xfstests_config),
        },
    )
    if chosen.run.max_repeats < chosen.run.repeats:
        raised = msgspec.structs.replace(chosen.run, max_repeats=chosen.run.repeats)
        chosen = msgspec.structs.replace(chosen, run=raised)
    request = Request(
        patch=patch,
        config=chosen,
        command=tuple(sys.argv),
        each_patch=each_patch,
        coverage=coverage,
    )
    with context.progress() as progress:
        record, folder = asyncio.run(campaign.run(request, progress.emit))
    return finish(context, record, folder, as_json=as_json)


def finish(context: Context, record: RunRecord, folder: Path, *, as_json: bool) -> ExitCode:
    """Write the reports of a judged run, show it, and say how it ends."""
    write_reports(record, folder)
    if as_json:
        click.echo(model.encode(record), nl=False)
    else:
        terminal.summary(record, folder, context.out)
    return EXIT[record.verdict.outcome]


def write_reports(record: RunRecord, folder: Path) -> None:
    write_atomically(folder / "report.html", html.page(record, folder).encode())
    project = os.environ.get("CI_PROJECT_DIR")  # GitLab's; it wants paths below it
    files = junit.Files(folder=folder, project=Path(project) if project else None)
    write_atomically(folder / "junit.xml", junit.xml(record, files))


@cli.command(name="report")
@click.argument("run_name", metavar="[RUN]", required=False)
@click.option(
    "--kcidb",
    "kcidb_file",
    metavar="FILE",
    help='Write it for KCIDB (kernelci.org) into FILE, too; "-": only that, on stdout.',
)
@click.option(
    "--kcidb-origin", metavar="NAME", default=kcidb.ORIGIN, help="Who submits: a-z, 0-9 and _."
)
@click.option("--kcidb-url", metavar="URL", default="", help="Where the run's folder is published.")
@json_option
@click.pass_obj
def report_command(
    context: Context,
    run_name: str | None,
    kcidb_file: str | None,
    kcidb_origin: str,
    kcidb_url: str,
    as_json: bool,
) -> int:
    """Show a finished run again, and write its report anew. Default: the newest.

    RUN is the name of a run, the beginning of one, or its folder. Exits as the run did.
    """
    folder = listing.find(context.config.paths.runs_dir, run_name, finished=True)
    record = listing.read_record(folder)
    if kcidb_file is not None:
        told = kcidb.report(record, kcidb.Submitter(origin=kcidb_origin, url=kcidb_url))
        if kcidb_file == "-":
            click.echo(told, nl=False)
            return EXIT[record.verdict.outcome]
        write_atomically(Path(kcidb_file), told)
    return finish(context, record, folder, as_json=as_json)
