"""How often a bisection is right, and what it costs: `lab bisect` against simpler rules, by dice.

    python benchmarks/bisect_truth.py [--steps 64] [--rounds 100]

Throws dice with known failure rates through the real search, plain bisection (one run a revision),
"N runs, any failure is bad", and git_bayesect where it is installed. Prints the share of right
answers, and runs and builds of each. Exits with 1 if the lab is right in less than 95 % anywhere.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from lab import bisect
from lab.bisect import Ending, Revision, Rules, Step, StepKind

AIM = 0.95
BUILD_S, RUN_S = 40.0, 10.0
MOST_RUNS = 2000


@dataclass
class Dice:
    """Fails at `bad` from the culprit on, at `good` before it."""

    culprit: int
    bad: float
    good: float
    dice: random.Random
    runs: int = 0
    built: set[int] = field(default_factory=set)

    def fails(self, revision: int) -> bool:
        self.runs += 1
        self.built.add(revision)
        return self.dice.random() < (self.bad if revision >= self.culprit else self.good)

    def build(self, revision: int) -> Step:
        kernel = f"kernel {revision}"
        return Step(kind=StepKind.BUILT, revision=revision, kernel=kernel, seconds=BUILD_S)

    def run(self, revision: int) -> Step:
        kind = StepKind.BAD if self.fails(revision) else StepKind.GOOD
        return Step(kind=kind, revision=revision, seconds=RUN_S)


Rule = Callable[[Dice, int], int | None]


def the_lab(dice: Dice, steps: int) -> int | None:
    revisions = [Revision(id=str(n), label=str(n), title="") for n in range(steps + 1)]
    rules = Rules(max_runs=MOST_RUNS)
    result = bisect.search(bisect.begin(revisions), dice, rules, lambda step: None)
    return result.first if result.ending is Ending.FOUND else None


def any_of(runs: int) -> Rule:
    """Bisection where a revision is bad if any of so many runs fails; the ends are believed."""

    def rule(dice: Dice, steps: int) -> int | None:
        good, bad = 0, steps
        while bad - good > 1:
            middle = (good + bad) // 2
            if any(dice.fails(middle) for _ in range(runs)):
                bad = middle
            else:
                good = middle
        return bad

    return rule


def bayesect(dice: Dice, steps: int) -> int | None:
    from git_bayesect import Bisector

    # Its index 0 is the newest revision.
    search = Bisector([1.0] * steps)
    while max(search.distribution) < 0.95 and dice.runs < MOST_RUNS:
        index = search.select()
        search.record(index, dice.fails(steps - index))
    return steps - int(search.distribution.argmax())


def rules() -> dict[str, Rule]:
    found = {"lab bisect": the_lab, "plain, 1 run": any_of(1)}
    found |= {f"any of {runs} runs": any_of(runs) for runs in (10, 30)}
    try:
        import git_bayesect  # noqa: F401
    except ImportError:
        sys.stderr.write("git_bayesect is not installed: pip install '.[bench]'\n")
        return found
    return found | {"git_bayesect": bayesect}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=100)
    asked = parser.parse_args()
    print(f"{asked.steps} steps, {asked.rounds} searches a line")
    print("| fails | false alarms | rule | right | runs | builds |\n|---|---|---|---|---|---|")
    worst = 1.0
    for bad in (1.0, 0.3, 0.1):
        for good in (0.0, 0.02):
            for name, rule in rules().items():
                places = random.Random(11)
                right = runs = builds = 0
                for number in range(asked.rounds):
                    culprit = places.randint(1, asked.steps)
                    dice = Dice(culprit, bad, good, random.Random(number))
                    right += rule(dice, asked.steps) == culprit
                    runs += dice.runs
                    builds += len(dice.built)
                share = right / asked.rounds
                worst = min(worst, share) if rule is the_lab else worst
                cells = f"{runs / asked.rounds:.0f} | {builds / asked.rounds:.1f}"
                print(f"| {bad:.0%} | {good:.0%} | {name} | {share:.1%} | {cells} |", flush=True)
    return 0 if worst >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
