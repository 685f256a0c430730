"""`lab check`: one patch against its parent, as b4 calls it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import BinaryIO

import click

from lab import campaign, mailcheck
from lab.cli.context import (
    Context,
    accel_option,
    arch_option,
    cli,
    jobs_option,
    kernel_option,
    override,
    profile_option,
    split,
)
from lab.cli.runs import EXIT, write_reports
from lab.model import Event, ExitCode
from lab.series import MAX_PATCH_BYTES


def _silent(_event: Event) -> None:
    """To b4 every line on stderr is a failure of the patch."""


@cli.command(name="check")
@click.argument("mail", type=click.File("rb"), default="-")
@click.option("--suite", multiple=True, metavar="NAME[:GROUP][,...]", help="Default: boot.")
@kernel_option
@arch_option
@profile_option
@accel_option
@jobs_option
@click.pass_obj
def check_command(
    context: Context,
    mail: BinaryIO,
    suite: tuple[str, ...],
    kernel: str | None,
    arch: tuple[str, ...],
    profile: str | None,
    accel: str | None,
    jobs: int | None,
) -> int:
    """Does one patch build and boot? A mail on standard input, against the commit before it.

    \b
    For b4 prep --check, in ~/.gitconfig or .b4-config:
        [b4]
            prep-perpatch-check-cmd = lab check --arch x86_64

    In a kernel repository the patch is looked for in the branch that is checked out, and its parent
    is the base; a patch that is not there is tried on top. One line for each finding, nothing if
    there is none. It is a run like any other: lab show has more. Exits as lab run does.
    """
    chosen = override(
        context.config,
        top={"kernel": kernel, "arch": split(arch), "profile": profile, "suites": split(suite)},
        machine={"accel": accel},
        build={"jobs": jobs},
    )
    raw = mail.read(MAX_PATCH_BYTES + 1)
    request = mailcheck.request(raw, Path.cwd(), chosen, tuple(sys.argv), _silent)
    if sys.stderr.isatty():
        with context.progress() as progress:
            record, folder = asyncio.run(campaign.run(request, progress.emit))
    else:
        record, folder = asyncio.run(campaign.run(request, _silent))
    write_reports(record, folder)
    told = mailcheck.lines(record)
    for line in told:
        click.echo(line)
    status: ExitCode = EXIT[record.verdict.outcome]
    return status
