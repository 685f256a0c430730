"""A suite's name and the configuration go in, all that it could run comes out, for `lab suites`.

Nothing is built or booted for it: of suites that bring their own programs only what the lab itself
knows of them can be listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lab import kconfig, subject
from lab.config import Config
from lab.suites import faultstress, registry, scratch, xfsconfig
from lab.suites.protocol import Needs, PlannedCase, Suite, Supplied

_ARCH = "x86_64"  # the fragments of any will do: what suites need is the same on all


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a list."""

    name: str  # what --suite or --only takes
    what: str
    needs: tuple[str, ...] = ()  # Kconfig
    profiles: tuple[str, ...] = ()  # of Kconfig fragments, that ask for all of it
    planned: bool | None = None  # a plain `--suite NAME` runs it; None: only its programs know


def overview() -> tuple[Row, ...]:
    """All suites."""
    return tuple(
        Row(name=suite.name, what=suite.one_line, needs=suite.needs().symbols)
        for suite in registry.SUITES.values()
    )


def cases(name: str, config: Config) -> tuple[Row, ...]:
    """What there is in a suite. Raises `UserError` for one that nobody knows."""
    (suite,) = registry.find([name])
    if isinstance(suite, Supplied):
        return _supplied(suite, config)
    options = subject.suite_options(config)
    usual = {case.name for case in suite.plan(options)}
    every = replace(options, filesystems=tuple(scratch.FILESYSTEMS))
    if suite.name == "faultstress":
        every = replace(
            every,
            filesystems=(*every.filesystems, *scratch.DAX),
            scenarios=faultstress.SCENARIOS,
        )
    asked = _asked()
    return tuple(_row(case, suite, asked, planned=case.name in usual) for case in suite.plan(every))


def _row(
    case: PlannedCase, suite: Suite, asked: Sequence[tuple[str, str]], *, planned: bool
) -> Row:
    own = scratch.symbols_of(case.filesystem) if case.filesystem else ()
    needs = tuple(dict.fromkeys((*suite.needs().symbols, *own, *case.symbols, *case.required)))
    return Row(
        name=case.name,
        what=case.what or suite.one_line,
        needs=needs,
        profiles=_profiles(case.required or own, asked),
        planned=planned,
    )


def _asked() -> tuple[tuple[str, str], ...]:
    """Each profile with the text of all its fragments."""
    return tuple(
        (profile, "\n".join(one.text for one in kconfig.fragments(profile, _ARCH)))
        for profile in kconfig.profiles()
    )


def _profiles(symbols: Sequence[str], asked: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    needs = Needs(symbols=tuple(symbols))
    return tuple(profile for profile, text in asked if not registry.missing_symbols(needs, text))


def _supplied(suite: Supplied, config: Config) -> tuple[Row, ...]:
    if suite.name == "xfstests":
        groups = [
            Row(
                name=f"{suite.name}:{group.name}",
                what=f"{group.about} ({len(group.tests)} tests)",
            )
            for group in xfsconfig.groups().values()
        ]
        places = [
            Row(
                name=f"{suite.name}/{one.name}",
                what=one.about,
                needs=one.symbols,
                planned=one.name in config.xfstests.configs,
            )
            for one in xfsconfig.configs().values()
        ]
        return (*groups, *places)
    return tuple(
        Row(name=f"{suite.name}:{name}", what="a collection of the kernel under test", planned=True)
        for name in config.kselftest.collections
    )
