"""How often `judge` is right about cases whose failure rates are known, because they are dice.

    python benchmarks/verdict_truth.py [--runs 10000] [--seed 1] [--only same|worse|history]

Every simulated run goes through the lab's own loop: screening repeats, `needs_more`, fresh
repeats, `judge`. Nothing of the statistics is repeated in here. One line for each truth and
budget: how often the run was called regressed, inconclusive and clean, and what it cost.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.model import (
    Accelerator,
    CaseResult,
    CaseState,
    Cell,
    Kernel,
    MachineEnd,
    Outcome,
    Past,
    Side,
    Splat,
    Trial,
)
from lab.verdict import JudgeInput, judge, needs_more

_TCG = Accelerator(name="tcg", cpu="max", boot_s=3.0)
_WARNING = Splat(
    kind="warning", title="WARNING in f", first_line=1, last_line=2, fingerprint="f00d"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Failure rates of the cases of a run, base and patched; and of a splat at boot."""

    name: str
    rates: tuple[tuple[float, float], ...]
    splat: tuple[float, float] = (0.0, 0.0)
    # Rates of the cases on earlier bases, of which `EARLIER` repeats are known; (): no history.
    before: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    repeats: int
    max_repeats: int


def _kernel(side: Side) -> Kernel:
    nowhere = Path("/nonexistent")
    return Kernel(
        key=str(side),
        arch="x86_64",
        side=side,
        release="",
        folder=nowhere,
        image=nowhere,
        vmlinux=nowhere,
        config=nowhere,
        image_sha256="",
        compiler="",
        build_s=0.0,
        make_ran=False,
        seeded_from=None,
        compiled=0,
        sandbox="none: nothing is built",
    )


EARLIER = 60
_KERNELS = tuple(_kernel(side) for side in Side)


def _throw(
    truth: Truth,
    names: Sequence[str],
    cases: Sequence[str],
    side: Side,
    repeat: int,
    dice: random.Random,
) -> Trial:
    """One machine's life."""
    column = 0 if side is Side.BASE else 1
    rates = dict(zip(names, (pair[column] for pair in truth.rates), strict=True))
    return Trial(
        id="",
        cell=Cell(
            arch="x86_64",
            side=side,
            profile="plain",
            suites=(),
            cases=tuple(cases),
            kernel_key="",
            image_sha256="",
            repeat=repeat,
            seed=0,
            memory_bytes=0,
            cpus=1,
        ),
        end=MachineEnd.POWERED_OFF,
        accelerator=_TCG,
        started="",
        boot_s=1.0,
        guest_s=1.0,
        wall_s=1.0,
        results=tuple(
            CaseResult(
                name=name,
                state=CaseState.FAILED if dice.random() < rates[name] else CaseState.PASSED,
            )
            for name in cases
        ),
        boot_splats=(_WARNING,) if dice.random() < truth.splat[column] else (),
    )


def _remember(truth: Truth, names: Sequence[str], dice: random.Random) -> dict[str, Past]:
    """What is known of earlier bases."""
    return {
        name: Past(
            failed=sum(dice.random() < rate for _ in range(EARLIER)),
            decided=EARLIER,
            runs=EARLIER // 6,
            versions=("6.1",),
        )
        for name, rate in zip(names, truth.before, strict=False)
    }


def simulate(
    truth: Truth, budget: Budget, dice: random.Random, memory: random.Random
) -> tuple[Outcome, int, bool]:
    """One run: its outcome, case runs spent on the patched side, whether it blamed wrongly."""
    names = tuple(f"case{number}" for number in range(len(truth.rates)))
    trials: list[Trial] = []
    past = {("x86_64", name): one for name, one in _remember(truth, names, memory).items()}

    def given() -> JudgeInput:
        return JudgeInput(
            title="dice",
            archs=("x86_64",),
            cases=names,
            profile="plain",
            trials=tuple(trials),
            kernels=_KERNELS,
            failures=(),
            repeats=budget.repeats,
            max_repeats=budget.max_repeats,
            past=past,
        )

    for repeat in range(budget.repeats):
        trials += [_throw(truth, names, names, side, repeat, dice) for side in Side]
    while more := needs_more(given()):
        for ask in more:
            for repeat in ask.repeats:
                trials += [_throw(truth, names, ask.cases, side, repeat, dice) for side in Side]
    verdict = judge(given())
    blamed = {f.title for f in verdict.findings if f.kind == "case"}
    innocent = {n for n, (base, patched) in zip(names, truth.rates, strict=True) if base >= patched}
    spent = sum(len(t.results) for t in trials if t.cell.side is Side.PATCHED)
    return verdict.outcome, spent, bool(blamed & innocent)


QUICK = Budget(repeats=2, max_repeats=8)
MIDDLE = Budget(repeats=3, max_repeats=20)
THOROUGH = Budget(repeats=12, max_repeats=60)

FLAKY = tuple((rate, rate) for rate in (0.05, 0.1, 0.3, 0.5))
SAME = (
    Truth(name="8 cases that never fail", rates=((0.0, 0.0),) * 8),
    Truth(name="4 never fail, 4 flaky at 5, 10, 30, 50 %", rates=((0.0, 0.0),) * 4 + FLAKY),
    Truth(name="8 flaky at 10 %", rates=((0.1, 0.1),) * 8),
    Truth(name="8 flaky at 50 %", rates=((0.5, 0.5),) * 8),
    Truth(name="a splat in 5 % of boots", rates=((0.0, 0.0),), splat=(0.05, 0.05)),
)
WORSE = (
    Truth(name="1 case of 8: 0 -> 10 %", rates=((0.0, 0.0),) * 7 + ((0.0, 0.1),)),
    Truth(name="1 case of 8: 0 -> 30 %", rates=((0.0, 0.0),) * 7 + ((0.0, 0.3),)),
    Truth(name="1 case of 8: 0 -> 50 %", rates=((0.0, 0.0),) * 7 + ((0.0, 0.5),)),
    Truth(name="1 case of 8: 0 -> 100 %", rates=((0.0, 0.0),) * 7 + ((0.0, 1.0),)),
    Truth(name="1 case of 8: 10 -> 60 %", rates=((0.0, 0.0),) * 7 + ((0.1, 0.6),)),
    Truth(name="8 of 8: 0 -> 100 %", rates=((0.0, 1.0),) * 8),
    Truth(name="0 -> 100 % among 4 flaky at 5, 10, 30, 50 %", rates=((0.0, 1.0), *FLAKY)),
    Truth(name="a new splat in 30 % of boots", rates=((0.0, 0.0),), splat=(0.0, 0.3)),
)
# Each beside the same truth without history: what history changes, where it is true and where not.
_OTHERS = ((0.0, 0.0),) * 7
_QUIET = (0.0,) * 7
HISTORY = (
    Truth(name="8 flaky at 10 %", rates=((0.1, 0.1),) * 8),
    Truth(name="8 flaky at 10 %, as known", rates=((0.1, 0.1),) * 8, before=(0.1,) * 8),
    Truth(name="8 flaky at 30 %", rates=((0.3, 0.3),) * 8),
    Truth(name="8 flaky at 30 %, as known", rates=((0.3, 0.3),) * 8, before=(0.3,) * 8),
    Truth(
        name="0 -> 30 %, earlier bases at 30 %",
        rates=(*_OTHERS, (0.0, 0.3)),
        before=(*_QUIET, 0.3),
    ),
    Truth(name="10 -> 40 %", rates=(*_OTHERS, (0.1, 0.4))),
    Truth(
        name="10 -> 40 %, earlier bases at 10 %",
        rates=(*_OTHERS, (0.1, 0.4)),
        before=(*_QUIET, 0.1),
    ),
    Truth(
        name="10 -> 40 %, earlier bases at 40 %",
        rates=(*_OTHERS, (0.1, 0.4)),
        before=(*_QUIET, 0.4),
    ),
)
TRUTHS = {"same": SAME, "worse": WORSE, "history": HISTORY}
DEFAULT = Budget(repeats=2, max_repeats=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Shares of the simulated runs."""

    regressed: float
    inconclusive: float
    clean: float
    blamed_wrongly: float  # runs that name a case which did not get worse
    spent: float  # runs of a case on the patched side, all cases together, on average


def score(truth: Truth, budget: Budget, runs: int, seed: int) -> Score:
    outcomes: Counter[Outcome] = Counter()
    spent = wrong = 0
    for number in range(runs):
        dice, memory = random.Random(f"{seed} {number}"), random.Random(f"past {seed} {number}")
        outcome, cost, blamed = simulate(truth, budget, dice, memory)
        outcomes[outcome] += 1
        spent += cost
        wrong += blamed
    return Score(
        regressed=outcomes[Outcome.REGRESSED] / runs,
        inconclusive=outcomes[Outcome.INCONCLUSIVE] / runs,
        clean=outcomes[Outcome.CLEAN] / runs,
        blamed_wrongly=wrong / runs,
        spent=spent / runs,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(TRUTHS), help="one half of the truths")
    arguments = parser.parse_args()
    truths = TRUTHS[arguments.only] if arguments.only else (*SAME, *WORSE)
    budgets = (QUICK, MIDDLE, THOROUGH)
    if arguments.only == "history":
        budgets = (DEFAULT, MIDDLE, THOROUGH)
    began = time.monotonic()
    out = sys.stdout
    out.write(
        "| truth | runs a side | regressed | inconclusive | clean | wrong case | case runs |\n"
    )
    out.write("|---|---|---|---|---|---|---|\n")
    for truth in truths:
        for budget in budgets:
            got = score(truth, budget, arguments.runs, arguments.seed)
            out.write(
                f"| {truth.name} | {budget.repeats} to {budget.max_repeats} "
                f"| {got.regressed:.2%} | {got.inconclusive:.2%} | {got.clean:.2%} "
                f"| {got.blamed_wrongly:.2%} | {got.spent:.0f} |\n"
            )
            out.flush()
    out.write(f"\n{arguments.runs} runs a line, seed {arguments.seed}, ")
    out.write(f"{time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
