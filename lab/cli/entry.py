"""The way in: one command line -> an exit code, every failure one message."""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from itertools import pairwise
from types import FrameType

import click

from lab import (
    host,
)
from lab.cli.context import (
    cli,
)
from lab.model import ExitCode, LabError, UserError

_INTERRUPTED = 130
_GIT_ABORT = 128  # git bisect run stops at it, and above


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End make and QEMU in every thread at once, then unwind."""
    host.abort()
    raise KeyboardInterrupt


def main() -> None:
    """Console script `lab`."""
    argv = sys.argv[1:]
    sys.exit(_git_bisect_step(argv) if ("bisect", "step") in pairwise(argv) else entry(argv))


def _git_bisect_step(argv: list[str]) -> int:
    """`entry`, where 1 to 127 would mean "bad" to git bisect: what is no answer makes it stop."""
    answers = (0, 1, 125)
    status = entry(argv)
    if status in answers or status >= _GIT_ABORT:
        return status
    return _GIT_ABORT + status


def entry(argv: list[str]) -> int:
    """Run one command line and return its exit code; every failure becomes one message."""
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    try:
        status = cli.main(args=argv, prog_name="lab", standalone_mode=False)
        return int(status or 0)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort, asyncio.CancelledError):
        _complain("interrupted", "nothing is lost: the same command goes on from here")
        return _INTERRUPTED
    except BaseExceptionGroup as group:
        host.abort()
        return explain_group(group)
    except Exception as error:
        return _explain(error)


def explain_group(group: BaseExceptionGroup[BaseException]) -> int:
    """The exit code of tasks that failed together, after one message."""
    return _explain(_first(group))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one failure of a task group that tells why: ours before any other."""
    ours, others = group.split(LabError)
    chosen = ours or others
    assert chosen is not None
    inner = chosen.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _explain(error: BaseException) -> int:
    """One message for what the lab can explain; anything else is a bug with its traceback.

    A bug is the lab's fault, 3: Python's own 1 would say that a kernel regressed.
    """
    if not isinstance(error, LabError):
        traceback.print_exception(error)
        _complain(
            f"a bug of the lab: {type(error).__name__}",
            "nothing is said about any kernel; the lines above belong into a report of it",
        )
        return ExitCode.LAB_FAULT
    _complain(error.message, error.hint)
    return ExitCode.USAGE if isinstance(error, UserError) else ExitCode.LAB_FAULT


def _complain(message: str, hint: str) -> None:
    click.echo(f"lab: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
