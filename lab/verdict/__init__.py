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
from lab.verdict.observe import left_out, took_down
from lab.verdict.speed import MEASURING
from lab.verdict.speed import interval as speed_interval
from lab.verdict.speed import wording as speed_wording
from lab.verdict.wording import probability, resolution

__all__ = [
    "LEVEL",
    "MEASURING",
    "JudgeInput",
    "LockNews",
    "MoreRuns",
    "judge",
    "left_out",
    "needs_more",
    "new_warnings",
    "probability",
    "resolution",
    "smallest_rate",
    "speed_interval",
    "speed_wording",
    "suspects",
    "took_down",
]
