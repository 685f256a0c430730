"""How often a night calls a flake new, and finds what began to fail: by dice, with known rates.

Four runs a night of each case (two repeats on both sides alike), what looks new again 16 times a
side. The figures are in docs/nightly.md.
"""

from __future__ import annotations

import random
from collections import Counter

from lab.model import Side
from lab.night import compare
from lab.night.compare import Past, Seen, Subject
from lab.night.record import Change, Count

RATES = (0.0, 0.0, 0.02, 0.1, 0.5)  # of cases in which nothing changes
CASES = 40
NIGHTS = 2000
RUNS, AGAIN = 4, 32


def runs(dice: random.Random, rate: float, number: int) -> Count:
    return Count(bad=sum(dice.random() < rate for _ in range(number)), runs=number)


def night(dice: random.Random, name: str, rate: float, good: tuple[Count, ...]) -> Seen:
    """One case tonight, asked again if it looks new."""
    first = runs(dice, rate, RUNS)
    again = Count()
    while True:
        one = Seen(
            subject=Subject(job="job", kind="case", name=name, title=name),
            sides=tuple(Side),
            tonight=first,
            again=again,
            past=Past(good=good),
        )
        if not compare.suspects([one]):
            return one
        again = runs(dice, rate, AGAIN)


def main() -> None:
    dice = random.Random(11)
    told: Counter[Change] = Counter()
    for _ in range(NIGHTS):
        every = []
        for number in range(CASES):
            rate = dice.choice(RATES)
            good = tuple(runs(dice, rate, RUNS) for _ in range(14))
            every.append(night(dice, str(number), rate, good))
        told.update({news.change for news in compare.news(every)})
    print(f"{NIGHTS} nights of {CASES} cases in which nothing changes:")
    print(f"  something called new  {told[Change.NEW] / NIGHTS:6.2%}")
    print(f"  something undecided   {told[Change.SUSPECT] / NIGHTS:6.2%}")
    for nights in (1, 3, 14):
        for rate in (1.0, 0.5, 0.3):
            found: Counter[str] = Counter()
            for _ in range(NIGHTS):
                one = night(dice, "case", rate, tuple(Count(runs=RUNS) for _ in range(nights)))
                found.update([str(news.change) for news in compare.news([one])] or ["not seen"])
            shares = ", ".join(f"{name} {n / NIGHTS:.1%}" for name, n in found.most_common())
            print(f"0 -> {rate:.0%} after {nights:2} good nights: {shares}")


if __name__ == "__main__":
    main()
