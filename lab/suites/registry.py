"""All suites by name; what a kernel configuration lacks for one of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lab.model import UserError
from lab.suites.boot import Boot
from lab.suites.faultstress import Faultstress
from lab.suites.kselftest import Kselftest
from lab.suites.protocol import Needs, Suite
from lab.suites.xfstests import Xfstests

_SET = re.compile(r"^CONFIG_(\w+)=[ym]$", re.MULTILINE)

SUITES: dict[str, Suite] = {
    suite.name: suite for suite in (Boot(), Faultstress(), Xfstests(), Kselftest())
}


def find(names: Sequence[str]) -> tuple[Suite, ...]:
    """The suites of those names, in that order, each once. Raises `UserError`."""
    for name in names:
        if name not in SUITES:
            raise UserError(f"unknown suite {name!r}", hint=f"known: {', '.join(SUITES)}")
    return tuple(SUITES[name] for name in dict.fromkeys(names))


def missing_symbols(needs: Needs, config_text: str) -> tuple[str, ...]:
    """Which needed Kconfig symbols a .config does not set to y or m."""
    have = set(_SET.findall(config_text))
    return tuple(symbol for symbol in needs.symbols if symbol not in have)
