"""Two records go in; how the second differs from the first comes out.

Only results of equal grounds are compared: same architecture, profile, accelerator and size of the
guest. Counts differ if Fisher's exact test says so, all questions together; what differs less is
told as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from lab.ledger import CaseRow, Extract, Ground, MetricRow, SplatRow, extract
from lab.model import ExitCode, Finding, Manifest, Outcome, RunRecord, Side, Tally
from lab.verdict import LEVEL
from lab.verdict.chance import discoveries, fisher


class Change(StrEnum):
    SAME = "same"
    WORSE = "worse"
    BETTER = "better"
    PERHAPS_WORSE = "perhaps worse"  # it fails more often, but not significantly
    PERHAPS_BETTER = "perhaps better"
    UNKNOWN = "unknown"  # one of the runs has no answer
    ONLY_FIRST = "only in the first"
    ONLY_SECOND = "only in the second"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that was not the same in both runs, and may explain a difference."""

    what: str
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One case, boot or splat of one side; of a splat, `failed` is "seen"."""

    kind: str  # "case" | "splat"
    name: str
    title: str  # of a splat
    ground: Ground
    side: Side
    first: Tally
    second: Tally
    change: Change
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A number that a case measured, as medians."""

    name: str
    metric: str
    ground: Ground
    side: Side
    first: float
    second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    first: str
    second: str
    outcomes: tuple[Outcome, Outcome]
    conditions: tuple[Condition, ...]
    findings_gone: tuple[Finding, ...]
    findings_new: tuple[Finding, ...]
    differences: tuple[Difference, ...]  # what did not change is left out
    same: int  # cases and splats that are as they were
    not_compared: tuple[str, ...]  # grounds that only one of the runs has
    speeds: tuple[Speed, ...]

    @property
    def exit_code(self) -> ExitCode:
        """1: something is worse in the second; 4: nothing could be compared, or an answer that the
        first run gave is missing in the second."""
        changes = {one.change for one in self.differences}
        if Change.WORSE in changes or self.findings_new:
            return ExitCode.REGRESSED
        if Change.UNKNOWN in changes or (not self.same and not self.differences):
            return ExitCode.INCONCLUSIVE
        return ExitCode.CLEAN


def compare(first: RunRecord, second: RunRecord, *, level: float = LEVEL) -> RunComparison:
    """How `second` differs from `first`; `level` is the chance of calling anything different in
    two runs of the same."""
    rows = extract(first), extract(second)
    grounds = tuple(_grounds(one) for one in rows)
    asked = [*_pairs(rows, grounds[0] & grounds[1])]
    differences = _judged(asked, level)
    findings = [
        {_key(finding): finding for finding in one.verdict.findings} for one in (first, second)
    ]
    return RunComparison(
        first=first.manifest.run,
        second=second.manifest.run,
        outcomes=(first.verdict.outcome, second.verdict.outcome),
        conditions=tuple(_conditions(first, second)),
        findings_gone=tuple(f for key, f in findings[0].items() if key not in findings[1]),
        findings_new=tuple(f for key, f in findings[1].items() if key not in findings[0]),
        differences=tuple(one for one in differences if one.change is not Change.SAME),
        same=sum(one.change is Change.SAME for one in differences),
        not_compared=tuple(
            f"{ground} ran only in the {which}"
            for which, mine, other in (
                ("first", grounds[0], grounds[1]),
                ("second", grounds[1], grounds[0]),
            )
            for ground in sorted(mine - other)
        ),
        speeds=tuple(_speeds(rows)),
    )


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding.kind, finding.arch, finding.title


def _grounds(rows: Extract) -> set[Ground]:
    return {row.ground for row in rows.cases}


# --- conditions --------------------------------------------------------------------------------


def _conditions(first: RunRecord, second: RunRecord) -> Iterator[Condition]:
    told = (_told(first), _told(second))
    for what in dict.fromkeys((*told[0], *told[1])):
        values = tuple(one.get(what, "") for one in told)
        if values[0] != values[1]:
            yield Condition(what=what, first=values[0], second=values[1])


def _told(record: RunRecord) -> dict[str, str]:
    """What a run depends on, in words."""
    told = conditions_of(record.manifest)
    for name in record.manifest.archs:
        used = {t.accelerator.name for t in record.trials if t.cell.arch == name}
        told[f"accelerator {name}"] = " and ".join(sorted(used)) or "none: nothing ran"
    for kernel in record.kernels:
        told[f"{kernel.side} kernel {kernel.arch}"] = kernel.key
    for image in record.images:
        told[f"root image {image.arch}"] = image.sha256
    return told


def conditions_of(manifest: Manifest) -> dict[str, str]:
    """What a run was to depend on before anything was built, in words."""
    source = manifest.source
    told = {
        "kernel": f"{source.name} {source.version} {source.commit}",
        "series": f"{manifest.series_title} {manifest.series_digest}",
        "profile": manifest.profile,
        "architectures": ", ".join(manifest.archs),
        "suites": ", ".join(manifest.suites),
        "seed": str(manifest.seed),
        "repeats": f"{manifest.repeats} to {manifest.max_repeats}",
        "lab": manifest.lab_version,
    }
    told |= {f"fragment {name}": digest for name, digest in manifest.fragments.items()}
    told |= {f"tool {name}": version for name, version in manifest.tools.items()}
    told |= {f"host {name}": value for name, value in manifest.host.items()}
    return told


# --- counts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    kind: str
    name: str
    title: str
    ground: Ground
    side: Side
    first: Tally | None
    second: Tally | None


_Place = tuple[str, str, Ground, Side]


def _pairs(rows: tuple[Extract, Extract], common: set[Ground]) -> Iterator[_Pair]:
    """Everything that may be compared, in the order of the first run."""
    tallies: list[dict[_Place, Tally]] = []
    titles: dict[str, str] = {}
    ran: list[Mapping[tuple[Ground, Side], int]] = []
    for one in rows:
        here: dict[_Place, Tally] = {}
        for case in one.cases:
            here["case", case.name, case.ground, case.side] = case.tally
        for splat in one.splats:
            here["splat", splat.key, splat.ground, splat.side] = _seen(splat)
            titles[splat.key] = splat.title
        tallies.append(here)
        ran.append(_boots(one.cases))
    for place in dict.fromkeys((*tallies[0], *tallies[1])):
        kind, name, ground, side = place
        if ground not in common:
            continue
        first, second = (one.get(place) for one in tallies)
        if kind == "splat":  # a run that does not know it could have shown it in any repeat
            first = first or _quiet(ran[0], ground, side)
            second = second or _quiet(ran[1], ground, side)
        yield _Pair(
            kind=kind,
            name=name,
            title=titles.get(name, "") if kind == "splat" else "",
            ground=ground,
            side=side,
            first=first,
            second=second,
        )


def _seen(row: SplatRow) -> Tally:
    return Tally(failed=row.seen, passed=row.exposed - row.seen)


def _boots(rows: tuple[CaseRow, ...]) -> dict[tuple[Ground, Side], int]:
    """The most repeats that any case of that side had."""
    most: dict[tuple[Ground, Side], int] = {}
    for row in rows:
        place = (row.ground, row.side)
        most[place] = max(most.get(place, 0), row.tally.decided)
    return most


def _quiet(ran: Mapping[tuple[Ground, Side], int], ground: Ground, side: Side) -> Tally:
    return Tally(passed=ran.get((ground, side), 0))


def _judged(pairs: list[_Pair], level: float) -> list[Difference]:
    """All questions share the level: two runs of the same differ in nothing, but for chance.

    A question whose counts could not be significant whatever side the failures fell on is none
    (Tarone 1990; Gilbert 2005): hundreds of cases that never fail do not hide one that does.
    """
    p_values = [_p(pair) for pair in pairs]
    asked = [place for place, pair in enumerate(pairs) if _least_p(pair) <= level]
    shares = [p / level for place in asked if (p := p_values[place]) is not None]
    held = dict(zip(asked, discoveries(shares, len(asked)), strict=True)) if asked else {}
    return [
        Difference(
            kind=pair.kind,
            name=pair.name,
            title=pair.title,
            ground=pair.ground,
            side=pair.side,
            first=pair.first or Tally(),
            second=pair.second or Tally(),
            change=_change(pair, held.get(place, False)),
            p_value=p_values[place],
        )
        for place, pair in enumerate(pairs)
    ]


def _two_sided(first: Tally, second: Tally) -> float:
    """Nobody said which run should be the better one."""
    one = fisher(second.failed, second.decided, first.failed, first.decided)
    other = fisher(first.failed, first.decided, second.failed, second.decided)
    return min(1.0, 2 * min(one, other))


def _p(pair: _Pair) -> float | None:
    first, second = pair.first, pair.second
    if not first or not second or not first.decided or not second.decided:
        return None
    return _two_sided(first, second)


def _least_p(pair: _Pair) -> float:
    """The smallest p that so many failures in so many runs can have at all."""
    first, second = pair.first, pair.second
    if not first or not second or not first.decided or not second.decided:
        return 1.0
    failed = first.failed + second.failed

    def all_on(many: Tally, few: Tally) -> float:
        here = min(failed, many.decided)
        return _two_sided(
            Tally(failed=here, passed=many.decided - here),
            Tally(failed=failed - here, passed=few.decided - failed + here),
        )

    return min(all_on(first, second), all_on(second, first))


def _change(pair: _Pair, significant: bool) -> Change:
    first, second = pair.first, pair.second
    if first is None:
        return Change.ONLY_SECOND
    if second is None:
        return Change.ONLY_FIRST
    if not first.decided or not second.decided:
        nothing = not first.decided and not second.decided
        return Change.SAME if nothing and first.skipped and second.skipped else Change.UNKNOWN
    worse = second.failed * first.decided - first.failed * second.decided
    if not worse:
        return Change.SAME
    if significant:
        return Change.WORSE if worse > 0 else Change.BETTER
    return Change.PERHAPS_WORSE if worse > 0 else Change.PERHAPS_BETTER


# --- numbers -----------------------------------------------------------------------------------


def _speeds(rows: tuple[Extract, Extract]) -> Iterator[Speed]:
    """Numbers that both runs measured, those that changed most first."""
    known = [{_measured(row): row for row in one.metrics} for one in rows]
    found = [
        Speed(
            name=row.name,
            metric=row.metric,
            ground=row.ground,
            side=row.side,
            first=row.median,
            second=known[1][place].median,
        )
        for place, row in known[0].items()
        if place in known[1]
    ]
    yield from sorted(found, key=_magnitude, reverse=True)


def _measured(row: MetricRow) -> tuple[str, str, Ground, Side]:
    return row.name, row.metric, row.ground, row.side


def _magnitude(speed: Speed) -> float:
    least = min(abs(speed.first), abs(speed.second))
    most = max(abs(speed.first), abs(speed.second))
    if most == least:
        return 1.0
    return most / least if least else float("inf")


def drift(speeds: tuple[Speed, ...]) -> float | None:
    """The median ratio of second to first over the base's numbers: how much the machine changed."""
    ratios = [s.second / s.first for s in speeds if s.side is Side.BASE and s.first]
    return median(ratios) if ratios else None
