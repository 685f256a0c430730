"""What is searched comes in - a series, a git range, a configuration - and one `Point` for each
revision of it goes out: a source and fragments, from which a kernel can be built."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import intake, kconfig, patching, source, subject
from lab.arch import arch as arch_row
from lab.bisect import Revision
from lab.config import Config
from lab.kconfig import Fragment
from lab.model import Emit, Series, Source, UserError
from lab.patching import Applied
from lab.source import git
from lab.store import Cache

_RANGE = "good..bad: the failure is in bad, and is not in good"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A revision as the lab can build it."""

    revision: Revision
    step: Applied
    fragments: tuple[Fragment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """All revisions in order, the good end first."""

    what: str  # "series", "history", "configuration"
    title: str
    source: Source  # every point is built as what differs from it
    points: tuple[Point, ...]

    @property
    def revisions(self) -> tuple[Revision, ...]:
        return tuple(point.revision for point in self.points)


def profile(name: str, config: Config) -> tuple[Fragment, ...]:
    """The fragments of a profile and the user's own, for the one architecture of a bisection."""
    (arch,) = config.arch
    return (
        *kconfig.fragments(name, arch_row(arch).name),
        *subject.own_fragments(config),
    )


def _content(step: Applied, fragments: Sequence[Fragment]) -> str:
    """Equal for points that are surely one kernel."""
    merged = kconfig.merge(fragments)
    return hashlib.sha256(f"{step.tree}\0{merged.text}".encode()).hexdigest()


def _point(
    step: Applied, fragments: tuple[Fragment, ...], *, label: str, title: str, id: str = ""
) -> Point:
    content = _content(step, fragments)
    revision = Revision(id=id or content[:16], label=label, title=title, content=content)
    return Point(revision=revision, step=step, fragments=fragments)


def _open(config: Config, series: Series | None, cache: Cache, emit: Emit) -> Source:
    name = config.kernel or (series.kernel if series else None) or subject.DEFAULT_KERNEL
    return source.open_source(name, cache=cache, emit=emit)


def take_series(patch: str, config: Config, cache: Cache, emit: Emit) -> Series:
    """The series that `patch` names; a git range is looked up in the kernel's own tree."""
    name = config.kernel
    candidate = Path(name.partition("@")[0]).expanduser() if name else None
    inside = candidate is not None and not name.startswith("debian:") and candidate.is_dir()
    return intake.take(patch, repository=candidate if inside else None, cache=cache, emit=emit)


# --- a series ----------------------------------------------------------------------------------


def of_series(series: Series, config: Config, cache: Cache, emit: Emit) -> Track:
    """The base, then one more patch each. Raises `UserError` if the series does not apply.

    The configuration that a series.toml asks for is a step of its own, the first.
    """
    kernel = _open(config, series, cache, emit)
    steps = patching.apply(kernel, series.patches, cache=cache, emit=emit, kernel=series.kernel)
    plain = profile(config.profile, config)
    points = [_point(steps[0], plain, label="the base", title=kernel.version)]
    fragments = plain
    if series.fragment:
        fragments = (*plain, subject.where_present(series.fragment))
        title = "the configuration that the series asks for"
        points.append(_point(steps[0], fragments, label="series.toml", title=title))
    count = len(series.patches)
    for number, (patch, step) in enumerate(zip(series.patches, steps[1:], strict=True), 1):
        points.append(_point(step, fragments, label=f"patch {number}/{count}", title=patch.subject))
    return Track(what="series", title=series.title, source=kernel, points=tuple(points))


# --- git history -------------------------------------------------------------------------------


def of_history(span: str, config: Config, cache: Cache, emit: Emit) -> Track:
    """The commits of good..bad on the first-parent line of bad. Raises `UserError`."""
    good, dots, bad = span.partition("..")
    if not dots or not good or bad.startswith("."):
        raise UserError(f"{span!r} is no range", hint=_RANGE)
    if not config.kernel or config.kernel.startswith("debian:"):
        raise UserError(
            f"{span}: in which git tree?", hint="lab bisect --kernel DIR good..bad --case CASE"
        )
    directory = config.kernel.partition("@")[0]
    base = source.open_source(f"{directory}@{good}", cache=cache, emit=emit)
    last = source.open_source(f"{directory}@{bad or 'HEAD'}", cache=cache, emit=emit)
    commits = _first_parents(base, last, span, directory)
    fragments = profile(config.profile, config)
    short = base.commit[:12]
    points = [
        _point(
            Applied(commit=base.commit, tree=base.tree),
            fragments,
            label="the good end",
            title=f"{short} {base.version}",
            id=base.commit,
        )
    ]
    points += [
        _point(
            Applied(commit=commit, tree=tree),
            fragments,
            label=f"commit {commit[:12]}" + (" (a merge)" if merge else ""),
            title=title,
            id=commit,
        )
        for commit, tree, merge, title in commits
    ]
    return Track(what="history", title=span, source=base, points=tuple(points))


def _first_parents(
    base: Source, last: Source, span: str, directory: str
) -> list[tuple[str, str, bool, str]]:
    """(commit, tree, is it a merge, subject), oldest first."""
    ancestor = git(
        base.git_dir, "merge-base", "--is-ancestor", base.commit, last.commit, check=False
    )
    if ancestor.status != 0:
        found = git(base.git_dir, "merge-base", base.commit, last.commit, check=False).text.strip()
        raise UserError(
            f"{span}: the good end is no ancestor of the bad one in {directory}",
            hint=f"their merge base is {found[:12]}: is it good?" if found else _RANGE,
        )
    listed = git(
        base.git_dir, "log", "--first-parent", "--reverse", "--format=%H %T %P%x00%s",
        f"{base.commit}..{last.commit}",
    ).text.splitlines()  # fmt: skip
    if not listed:
        raise UserError(f"{span}: both ends are one commit", hint=_RANGE)
    commits = []
    for line in listed:
        head, _, title = line.partition("\0")
        commit, tree, *parents = head.split()
        commits.append((commit, tree, len(parents) > 1, title))
    return commits


# --- configuration -----------------------------------------------------------------------------


def of_fragments(
    span: str, series: Series | None, config: Config, cache: Cache, emit: Emit
) -> Track:
    """From one configuration to another, one option each, in the order of the bad one's fragments.

    GOOD..BAD are profiles, or files of configuration lines on top of the profile; an empty one is
    the profile as it is. Raises `UserError`.
    """
    good, dots, bad = span.partition("..")
    if not dots:
        raise UserError(
            f"{span!r} is no pair of configurations",
            hint="--fragments GOOD..BAD: each a profile, or a file of CONFIG_ lines",
        )
    kernel = _open(config, series, cache, emit)
    patches = series.patches if series else ()
    step = patching.apply(kernel, patches, cache=cache, emit=emit)[-1]
    before, after = (kconfig.merge(_configuration(name, series, config)) for name in (good, bad))
    old = {symbol: one.value for symbol, one in before.asked.items()}
    new = {symbol: one.value for symbol, one in after.asked.items()}
    # What goes, goes last first: as it came, an option stands below those that it depends on.
    gone = [symbol for symbol in reversed(old) if symbol not in new]
    changed = [symbol for symbol in new if old.get(symbol) != new[symbol]]
    if not gone and not changed:
        raise UserError(f"{span}: both configurations ask for the same")
    optional = {name for side in (before, after) for name, a in side.asked.items() if a.if_present}
    current = dict(old)
    points = [_point(step, (_whole(current, optional),), label="the good end", title=good)]
    for symbol in (*changed, *gone):
        if symbol in new:
            current[symbol] = new[symbol]
            title = f"CONFIG_{symbol}={new[symbol]} ({after.asked[symbol].where})"
        else:
            del current[symbol]
            title = f"CONFIG_{symbol} no longer asked for ({before.asked[symbol].where})"
        number = len(points)
        label = f"option {number}/{len(changed) + len(gone)}"
        points.append(_point(step, (_whole(current, optional),), label=label, title=title))
    title = f"{series.title}, {span}" if series else span
    return Track(what="configuration", title=title, source=kernel, points=tuple(points))


def _configuration(name: str, series: Series | None, config: Config) -> tuple[Fragment, ...]:
    extra = series.fragment if series else ""
    own = (Fragment(name="series.toml", text=extra),) if extra else ()
    if name in kconfig.profiles():
        return (*profile(name, config), *own)
    plain = profile(config.profile, config)
    if not name:
        return (*plain, *own)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"--fragments: {name!r} is neither a profile nor a file",
            hint=f"profiles: {', '.join(sorted(kconfig.profiles()))}",
        )
    return (*plain, *own, Fragment(name=path.name, text=path.read_text(encoding="utf-8")))


def _whole(values: dict[str, str], optional: set[str]) -> Fragment:
    """A configuration as one fragment."""
    lines = [
        (f"# CONFIG_{symbol} is not set" if value == "n" else f"CONFIG_{symbol}={value}")
        + ("  # if present" if symbol in optional else "")
        for symbol, value in values.items()
    ]
    return Fragment(name="configuration", text="\n".join(lines) + "\n")
