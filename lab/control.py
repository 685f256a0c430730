"""The text of a `control.toml` goes in, a `Control` comes out; and its trials go in, and whether it
was caught comes out. Pure.

A control is a fault planted on purpose: patches on a series or on the base, and the detector that
must fire. What the detector says counts only in a case that the fault was planted for.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from lab.config import duration_s
from lab.model import CaseResult, CaseState, Grade, MachineEnd, Splat, Trial, UserError
from lab.splat.kinds import Kind

TOML_NAME = "control.toml"
BASE = "base"
_OUTCOMES = ("corruption", "failed", "crashed", "hung", "timeout")
_STATES = {
    "failed": CaseState.FAILED,
    "crashed": CaseState.CRASHED,
    "hung": CaseState.HUNG,
    "timeout": CaseState.TIMEOUT,
}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_SETTING = re.compile(r"/(?:proc/sys|sys)/[\w./-]+")
_UNKNOWN = (CaseState.MISSING, CaseState.SKIPPED, CaseState.UNCOVERED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One detector: a kind of splat, or how a case of `suite` ("": of any) ends."""

    text: str  # as control.toml says it
    kind: Kind | None
    suite: str = ""
    outcome: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A planted fault and who must see it."""

    name: str
    title: str
    why: str
    on: str  # name of a series beside the controls, or BASE
    profile: str
    expect: tuple[Expected, ...]  # any one of them
    match: re.Pattern[str] | None  # searched in the splat's title and text, or the case's message
    suites: tuple[str, ...]
    filesystems: tuple[str, ...]
    scenarios: tuple[str, ...]
    duration_s: float  # of one case
    threads: int
    settings: dict[str, str]  # file in the guest -> what is written before the first case
    limit_s: float  # guest time within which it must be caught, boots not counted
    archs: tuple[str, ...] = ()  # empty: any
    patched: bool = True  # False: the kernel's own crash on demand, nothing is built for it


class _Toml(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    why: str
    on: str
    expect: tuple[str, ...]
    profile: str = "lockdep"
    match: str = ""
    suites: tuple[str, ...] = ("faultstress",)
    filesystems: tuple[str, ...] = ("ext4",)
    scenarios: tuple[str, ...] = ()
    duration: str | float = 15
    threads: int = 4
    settings: dict[str, str | int] = {}
    limit: str | float = "10m"
    archs: tuple[str, ...] = ()


def parse(raw: bytes, *, name: str, file: str) -> Control:
    """A control's description. Raises `UserError` that names the file and the key."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{file}: {name!r} is no name of a control", hint="a-z, 0-9 and -")
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from error
    known = msgspec.structs.fields(_Toml)
    for key in table:
        if key not in (names := [one.name for one in known]):
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
            raise UserError(f"{file}: unknown key {key}", hint=hint)
    try:
        toml = msgspec.convert(table, _Toml)
    except msgspec.ValidationError as error:
        raise UserError(f"{file}: {error}") from error
    return _checked(toml, name, file)


def _checked(toml: _Toml, name: str, file: str) -> Control:
    """Values of the right type that make no sense are errors too."""
    for key in ("title", "why", "on", "expect", "suites"):
        if not getattr(toml, key):
            raise UserError(f"{file}: {key} is empty")
    for path in toml.settings:
        if not _SETTING.fullmatch(path) or ".." in path:
            raise UserError(f"{file}: settings: {path!r} is no file below /sys or /proc/sys")
    if toml.threads < 2:
        raise UserError(f"{file}: threads: {toml.threads} is below 2")
    try:
        pattern = re.compile(toml.match) if toml.match else None
    except re.error as error:
        raise UserError(f"{file}: match: {error}") from error
    case_s = duration_s(str(toml.duration), where=f"{file}: duration")
    limit_s = duration_s(str(toml.limit), where=f"{file}: limit")
    if limit_s < case_s:
        raise UserError(f"{file}: limit: {limit_s:g} s is less than one case takes ({case_s:g} s)")
    return Control(
        name=name,
        title=toml.title,
        why=" ".join(toml.why.split()),
        on=toml.on,
        profile=toml.profile,
        expect=tuple(expected(text, file) for text in toml.expect),
        match=pattern,
        suites=toml.suites,
        filesystems=toml.filesystems,
        scenarios=toml.scenarios,
        duration_s=case_s,
        threads=toml.threads,
        settings={path: str(value) for path, value in toml.settings.items()},
        limit_s=limit_s,
        archs=toml.archs,
    )


def expected(text: str, file: str) -> Expected:
    """ "kasan", "hung", "faultstress:corruption". Raises `UserError` for anything else."""
    suite, colon, outcome = text.rpartition(":")
    if outcome in _OUTCOMES and bool(suite) == bool(colon):
        return Expected(text=text, kind=None, suite=suite, outcome=outcome)
    if text not in list(Kind):
        words = (*_OUTCOMES, *Kind)
        near = difflib.get_close_matches(text, words, n=1)
        hint = f"did you mean {near[0]}?" if near else f"an outcome: {', '.join(_OUTCOMES)}"
        raise UserError(f"{file}: expect: {text!r} is no kind of splat and no outcome", hint=hint)
    return Expected(text=text, kind=Kind(text))


# --- was it caught? ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the trials of one control say."""

    grade: Grade
    reason: str
    detector: str = ""
    case: str = ""
    said: str = ""
    within_s: float = 0.0
    also: tuple[str, ...] = ()


def judge(control: Control, cases: Sequence[str], trials: Iterable[Trial]) -> Judged:
    """Whether one of `expect` fired in one of `cases`, and how much guest time that took.

    What fires outside of them is no catch: the lab must name the case. INCONCLUSIVE if no case
    said anything at all.
    """
    spent_s, ran = 0.0, False
    elsewhere: list[str] = []
    doubts: list[str] = []
    for trial in trials:
        stray = list(trial.boot_splats)
        for result in trial.results:
            spent_s += _took_s(result, trial)
            if result.name not in cases:
                stray += result.splats
                continue
            found = _fired(control, result)
            if found is not None:
                detector, said = found
                return Judged(
                    grade=Grade.CAUGHT if spent_s <= control.limit_s else Grade.MISSED,
                    reason=f"{detector} in {result.name}"
                    + ("" if spent_s <= control.limit_s else ", but too late"),
                    detector=detector,
                    case=result.name,
                    said=said,
                    within_s=spent_s,
                    also=_others(result.splats, said),
                )
            if result.state in _UNKNOWN:
                doubts.append(f"{result.name}: {result.state}: {result.message}")
            else:
                ran = True
                elsewhere += _told(result)
        elsewhere += [
            f"{splat.title} (outside of the control's cases)"
            for splat in stray
            if _kind_fits(control, splat)
        ]
        if not trial.results:
            how = "did not boot" if trial.boot_s is None else "no case ran"
            doubts.append(f"{how}: {trial.note or trial.end}")
    if not ran and not elsewhere:
        why = "; ".join(dict.fromkeys(doubts)) or "nothing ran"
        return Judged(grade=Grade.INCONCLUSIVE, reason=why, within_s=spent_s)
    wanted = " or ".join(one.text for one in control.expect)
    seen = f"; seen: {'; '.join(dict.fromkeys(elsewhere))}" if elsewhere else ""
    return Judged(
        grade=Grade.MISSED,
        reason=f"no {wanted} in {spent_s:.0f} s{seen}",
        within_s=spent_s,
        also=tuple(dict.fromkeys(elsewhere)),
    )


def judge_clean(control: Control, cases: Sequence[str], trials: Iterable[Trial]) -> Judged:
    """Whether the kernel without the fault stays quiet over the same cases."""
    passed: set[str] = set()
    spent_s = 0.0
    doubts: list[str] = []
    for trial in trials:
        for splat in trial.boot_splats:
            return Judged(
                grade=Grade.NOISY, reason=f"outside of any case: {splat.title}", said=splat.title
            )
        for result in trial.results:
            spent_s += _took_s(result, trial)
            if result.state is CaseState.PASSED:
                passed.add(result.name)
                continue
            if result.state in _UNKNOWN:
                doubts.append(f"{result.name}: {result.state}: {result.message}")
                continue
            fired = _fired(control, result)
            said = f"{fired[0]}: {fired[1]}" if fired else f"{result.state}: {result.message}"
            return Judged(
                grade=Grade.NOISY,
                reason=f"{result.name}: {said}",
                case=result.name,
                detector=fired[0] if fired else "",
                said=fired[1] if fired else result.message,
                within_s=spent_s,
            )
        if trial.boot_s is None or trial.end is not MachineEnd.POWERED_OFF:
            doubts.append(f"machine {trial.end}: {trial.note}")
    silent = [case for case in cases if case not in passed]
    if silent:
        why = "; ".join(dict.fromkeys(doubts)) or f"nothing is known of {', '.join(silent)}"
        return Judged(grade=Grade.INCONCLUSIVE, reason=why, within_s=spent_s)
    return Judged(grade=Grade.QUIET, reason=f"{len(passed)} cases pass, no splat", within_s=spent_s)


def _took_s(result: CaseResult, trial: Trial) -> float:
    # A case that lost its machine has no duration of its own.
    return result.duration_s or trial.guest_s


def _fired(control: Control, result: CaseResult) -> tuple[str, str] | None:
    """(detector, what it said), if one of the expected ones fired in this case."""
    for splat in result.splats:
        for one in control.expect:
            if one.kind == splat.kind and _matches(control, f"{splat.title}\n{splat.text}"):
                return one.text, splat.title
    for one in control.expect:
        ended = one.outcome and (not one.suite or one.suite == result.name.partition("/")[0])
        if ended and _ends(one.outcome, result) and _matches(control, result.message):
            return one.text, result.message
    return None


def _ends(outcome: str, result: CaseResult) -> bool:
    if outcome == "corruption":
        return result.metrics.get("corruptions", 0) > 0
    return result.state is _STATES[outcome]


def _matches(control: Control, text: str) -> bool:
    return control.match is None or control.match.search(text) is not None


def _kind_fits(control: Control, splat: Splat) -> bool:
    return any(one.kind == splat.kind for one in control.expect)


def _told(result: CaseResult) -> list[str]:
    """What a case of the control said that was not what is expected."""
    if result.state is CaseState.PASSED:
        return []
    return [splat.title for splat in result.splats] or [f"{result.state}: {result.message}"]


def _others(splats: Iterable[Splat], but: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(splat.title for splat in splats if splat.title != but))
