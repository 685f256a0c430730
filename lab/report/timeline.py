"""A `RunRecord` goes in, when each of its machines lived comes out, as shares of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import assert_never

from lab.model import MachineEnd, RunRecord, Side, Trial
from lab.prose import span

_ROUND_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A machine's life on the timeline: shares of its length."""

    lane: int
    left: float
    boot: float
    rest: float
    trial: Trial

    @property
    def well(self) -> bool:
        return self.trial.end is MachineEnd.POWERED_OFF and self.trial.boot_s is not None

    @property
    def mark(self) -> str:
        """How it broke: "crash", "hang" or "lost"; "" if it ended well."""
        match self.trial.end:
            case MachineEnd.POWERED_OFF:
                return "" if self.trial.boot_s is not None else "lost"
            case MachineEnd.PANICKED:
                return "crash"
            case MachineEnd.HUNG_BOOT | MachineEnd.HUNG_SILENT | MachineEnd.WALL_CLOCK:
                return "hang"
            case MachineEnd.QEMU_DIED | MachineEnd.LOST:
                return "lost"
            case _ as never:
                assert_never(never)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    lanes: tuple[tuple[str, Side], ...]
    bars: tuple[Bar, ...]
    length_s: float
    ticks: tuple[tuple[float, str], ...]  # share of the length, time since its beginning


def timeline(record: RunRecord) -> Timeline | None:
    """When each machine lived; None without machines.

    A side has a lane for as many machines as it had at once.
    """
    if not record.trials:
        return None
    starts = [datetime.fromisoformat(trial.started).timestamp() for trial in record.trials]
    lives = sorted(zip(starts, record.trials, strict=True), key=lambda life: life[0])
    first = lives[0][0]
    length = max(max(start + trial.wall_s for start, trial in lives) - first, 1.0)
    free: dict[tuple[str, Side], list[float]] = {
        (arch, side): [0.0] for arch in record.manifest.archs for side in Side
    }
    placed: list[tuple[tuple[str, Side], int, float, Trial]] = []
    for start, trial in lives:
        of = (trial.cell.arch, trial.cell.side)
        # Starts are whole seconds: a second of overlap is none.
        lane = next((n for n, since in enumerate(free[of]) if since <= start + 1), len(free[of]))
        free[of][lane : lane + 1] = [start + trial.wall_s]
        placed.append((of, lane, start, trial))
    lanes = [(of, number) for of, ends in free.items() for number in range(len(ends))]
    bars = []
    for of, lane, start, trial in placed:
        boot_s = trial.wall_s if trial.boot_s is None else min(trial.boot_s, trial.wall_s)
        bars.append(
            Bar(
                lane=lanes.index((of, lane)),
                left=(start - first) / length,
                boot=boot_s / length,
                rest=(trial.wall_s - boot_s) / length,
                trial=trial,
            )
        )
    return Timeline(
        lanes=tuple(of for of, _ in lanes),
        bars=tuple(bars),
        length_s=length,
        ticks=tuple((at / length, span(at) if at else "0") for at in _round_times(length)),
    )


def _round_times(length_s: float) -> list[float]:
    """Four or five round times from 0 on."""
    step = next((s for s in _ROUND_S if length_s / s <= 5), 86400.0 * ceil(length_s / 432000))
    return [n * step for n in range(int(length_s / step) + 1)]
