"""All suites by name; what a kernel configuration lacks for one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lab.model import UserError
from lab.suites.boot import Boot
from lab.suites.faultinject import Faultinject
from lab.suites.faultstress import Faultstress
from lab.suites.fio import Fio
from lab.suites.kselftest import Kselftest
from lab.suites.protocol import Needs, PlannedCase, Suite
from lab.suites.stressng import StressNg
from lab.suites.xfstests import Xfstests

_SET = re.compile(r"^CONFIG_(\w+)=[ym]$", re.MULTILINE)

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Boot(),
        Faultstress(),
        Faultinject(),
        Xfstests(),
        Kselftest(),
        Fio(),
        StressNg(),
    )
}


def find(names: Sequence[str]) -> tuple[Suite, ...]:
    """The suites of those names, in that order, each once. Raises `UserError`."""
    for name in names:
        if name not in SUITES:
            raise UserError(f"unknown suite {name!r}", hint=f"known: {', '.join(SUITES)}")
    return tuple(SUITES[name] for name in dict.fromkeys(names))


def required(suite: Suite, cases: Iterable[PlannedCase]) -> tuple[str, ...]:
    """Kconfig symbols without which a request for those cases of the suite is refused."""
    mine = (case for case in cases if suite_of(case.name) == suite.name)
    return tuple(dict.fromkeys(symbol for case in mine for symbol in case.required))


def runnable(suite: Suite, cases: Iterable[PlannedCase], config_text: str) -> tuple[str, ...]:
    """Of the suite's cases, the names of those that this kernel has all for."""
    return tuple(
        case.name
        for case in cases
        if suite_of(case.name) == suite.name
        and not missing_symbols(Needs(symbols=case.required), config_text)
    )


def suite_of(case: str) -> str:
    return case.partition("/")[0]


def missing_symbols(needs: Needs, config_text: str) -> tuple[str, ...]:
    """Which needed Kconfig symbols a .config does not set to y or m."""
    have = set(_SET.findall(config_text))
    return tuple(symbol for symbol in needs.symbols if symbol not in have)
