"""A tree and fragments come in; a `Kernel`, or the `BuildFailure` that is a finding, goes out."""

from lab.build.blame import first_broken
from lab.build.kernel import build

__all__ = ["build", "first_broken"]
