"""What earlier bases showed goes in; whether it accounts for a suspicion, and its words, come out.

History never decides alone. It blames nobody, it ends no series of runs, and it takes back nothing
that is significant. All that it may do is to let a suspicion go that the budget has left undecided,
and only where the base of this very run has failed, too.
"""

from __future__ import annotations

from lab.model import Past, Tally
from lab.verdict.chance import RESOLUTION, Weighed, fisher, smallest_rate

# Earlier bases count only if this base does not differ from them by more than chance explains;
# a test that failed less or more often once is no measure for today's.
AGREEMENT = 0.2
_VERSIONS_SHOWN = 3


def accounts_for(past: Past | None, base: Tally, weighed: Weighed) -> bool:
    """Whether the series does not add `RESOLUTION` to the rate at which bases are known to fail.

    `base` are the counts of this run, `weighed` its fresh runs, which did not choose the case.
    """
    if past is None or not past.decided or not base.failed or not weighed.patched_runs:
        return False
    if _differ(base, past) < AGREEMENT:
        return False
    usual = (past.failed + base.failed) / (past.decided + base.decided)
    return smallest_rate(weighed.patched_runs, weighed.patched) < usual + RESOLUTION


def _differ(base: Tally, past: Past) -> float:
    """Two-sided p: this base against the earlier ones."""
    more = fisher(base.failed, base.decided, past.failed, past.decided)
    less = fisher(past.failed, past.decided, base.failed, base.decided)
    return min(1.0, 2 * min(more, less))


def told(past: Past | None, *, splat: bool = False) -> str:
    """ "; earlier bases failed in 3 of 60 (5 runs, 6.1.190 to 6.1.192)", or ""."""
    if past is None or not past.decided:
        return ""
    verb = "showed it" if splat else "failed"
    runs = "1 run" if past.runs == 1 else f"{past.runs} runs"
    versions = ", ".join(past.versions[:_VERSIONS_SHOWN])
    more = len(past.versions) - _VERSIONS_SHOWN
    versions += f" and {more} more" if more > 0 else ""
    return f"; earlier bases {verb} in {past.failed} of {past.decided} ({runs}: {versions})"
