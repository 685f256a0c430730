from lab.verdict.chance import LEVEL, smallest_rate
from lab.verdict.judge import (
    JudgeInput,
    LockNews,
    MoreRuns,
    judge,
    needs_more,
    new_warnings,
    suspects,
)
from lab.verdict.observe import left_out

__all__ = [
    "LEVEL",
    "JudgeInput",
    "LockNews",
    "MoreRuns",
    "judge",
    "left_out",
    "needs_more",
    "new_warnings",
    "smallest_rate",
    "suspects",
]
