"""Arguments go in, one library call is made, a renderer prints, an exit code comes out.

stdout is the result, stderr is progress. Exit codes are `lab.model.ExitCode`; an interrupt is 130.
One module for each group of commands; importing it hangs its commands below `cli`.
"""

from lab.cli import (
    bisect,
    check,
    coverage,
    evidence,
    fleet,
    history,
    kernels,
    nightly,
    runs,
    selftest,
    upkeep,
)
from lab.cli.context import cli
from lab.cli.entry import entry, explain_group, main

__all__ = [
    "bisect",
    "check",
    "cli",
    "coverage",
    "entry",
    "evidence",
    "explain_group",
    "fleet",
    "history",
    "kernels",
    "main",
    "nightly",
    "runs",
    "selftest",
    "upkeep",
]
