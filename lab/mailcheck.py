"""One patch as a mail goes in; the request that tests it against its parent, and lines of what came
of it as b4 reads them, come out.

`b4 prep --check` starts a command for each patch, in the top folder of the repository, with the
mail on standard input. A line with "ERROR:" is a failure to it, any other line a warning, a line on
stderr a failure, and nothing at all with exit 0 a success.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from lab import host, prose, series, source
from lab.config import Config
from lab.intake import GIT, READ_ONLY_GIT
from lab.model import Emit, Finding, Outcome, RunRecord, Series, Source, UserError
from lab.series import MAX_PATCH_BYTES
from lab.store import Cache
from lab.subject import Request

_SEARCHED = 300  # commits of the branch in which the patch is looked for
_SUITES = ("boot",)
_WARNS = ("compiler-warning",)  # what is a warning to b4; everything else that is found is an error


def request(
    mail: bytes, where: Path, config: Config, command: tuple[str, ...], emit: Emit
) -> Request:
    """What `lab run` would be asked: that patch alone, against the commit before it.

    If the patch is a commit of the branch that is checked out in `where`, its base is the parent of
    that commit, else the head of that branch; outside of a repository, the configured kernel.
    Screening takes one run a side, for this is asked for each patch of a series. Raises `UserError`
    for a mail that is no patch.
    """
    taken = _taken(mail)
    kernel, base = config.kernel, None
    if not kernel and (top := _top(where)) is not None:
        kernel = f"{top}@{_base(top, taken)}"
        cache = Cache(root=config.paths.cache_dir)
        base = _undated(source.open_source(kernel, cache=cache, emit=emit))
    chosen = msgspec.structs.replace(
        config,
        kernel=kernel,
        suites=config.suites or _SUITES,
        run=msgspec.structs.replace(config.run, repeats=1),
    )
    return Request(patch=taken.origin, config=chosen, command=command, series=taken, source=base)


def _undated(found: Source) -> Source:
    """The same tree as a commit of the lab's own, which has no parents and always the same date.

    A kernel says when its source was committed. Without that, the one with a patch is the very one
    that is the base of the next patch: each patch of a branch costs one build.
    """
    commit = source.git(found.git_dir, "commit-tree", found.tree, "-m", found.tree).text.strip()
    told = f"tree of {found.commit[:12]}, {found.provenance}"
    return replace(found, commit=commit, provenance=told)


def _taken(mail: bytes) -> Series:
    if not mail.strip():
        raise UserError("no mail on standard input", hint="lab check < 0001-some.patch")
    if len(mail) > MAX_PATCH_BYTES:
        raise UserError(f"a mail of {len(mail)} bytes is no patch of one")
    mails = series.split_mbox(mail)
    if len(mails) != 1:
        raise UserError(f"{len(mails)} mails where one is checked", hint="lab run tests a series")
    origin = f"mail {hashlib.sha256(mail).hexdigest()[:12]}"
    return series.parse([("", mails[0])], title="", origin=origin, ordered=True)


# --- where it belongs --------------------------------------------------------------------------


def _git(where: Path, *words: str, stdin: bytes = b"") -> host.Completed:
    return host.run([*GIT, "-C", where, *words], env=READ_ONLY_GIT, stdin=stdin, check=False)


def _top(where: Path) -> Path | None:
    """The kernel repository around `where`."""
    found = _git(where, "rev-parse", "--show-toplevel")
    top = Path(found.text.strip()) if found.status == 0 else None
    return top if top is not None and (top / "Kconfig").is_file() else None


def _base(top: Path, taken: Series) -> str:
    """The commit that the patch is to be compared with."""
    head = _git(top, "rev-parse", "--verify", "HEAD")
    if head.status != 0:
        raise UserError(f"{top} has no commit", hint="--kernel TREE names a kernel")
    wanted = _patch_id(top, series.mail_bytes(taken.patches[0]))
    log = _git(top, "log", "--no-merges", f"-n{_SEARCHED}", "--format=%H %s", "HEAD").text
    subject = taken.patches[0].subject
    for line in log.splitlines():
        commit, _, said = line.partition(" ")
        if said == subject and _patch_id(top, _git(top, "show", commit).stdout) == wanted:
            return _git(top, "rev-parse", f"{commit}^").text.strip()
    return head.text.strip()


def _patch_id(top: Path, patch: bytes) -> str:
    """Equal for equal changes, wherever they stand; "" if there is none."""
    return _git(top, "patch-id", "--stable", stdin=patch).text.partition(" ")[0]


# --- what came of it ---------------------------------------------------------------------------


def lines(record: RunRecord) -> tuple[str, ...]:
    """One line for each thing to know; () if the patch is clean."""
    verdict, run = record.verdict, record.manifest.run
    told = [*_findings(verdict.findings, run)]
    match verdict.outcome:
        case Outcome.CLEAN | Outcome.REGRESSED:
            pass
        case Outcome.INCONCLUSIVE:
            told += [f"inconclusive: {_flat(reason)} [{run}]" for reason in verdict.reasons]
        case Outcome.LAB_FAULT:
            told += [f"ERROR: the lab broke: {_flat(reason)} [{run}]" for reason in verdict.reasons]
    return tuple(told)


def _findings(findings: tuple[Finding, ...], run: str) -> Iterator[str]:
    for finding in findings:
        mark = "WARNING" if finding.kind in _WARNS else "ERROR"
        what = {"build": "does not build: ", "compiler-warning": ""}.get(
            finding.kind, f"{finding.kind}: "
        )
        yield f"{mark}: {what}{_flat(finding.title)} [{finding.arch}, {run}]"


def _flat(text: str) -> str:
    """One line, without what could steer a terminal; what is no error is not called one."""
    return " ".join(prose.shown(text, " ").split()).replace("ERROR:", "ERROR")
