"""A `RunRecord` goes in, a report for KCIDB (kernelci.org) comes out, as `kcidb-submit` reads it.

Base and patched are two checkouts, each kernel is a build, each answer of each machine a test. What
the verdict blames on the series is an issue, with an incident for each test that showed it. Nothing
of the host is told but its accelerator; files are named only where they are published.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_never

from lab.model import (
    BuildFailure,
    CaseResult,
    CaseState,
    Comparison,
    Kernel,
    LabFault,
    MachineEnd,
    RunRecord,
    Side,
    Splat,
    Trial,
    UserError,
)
from lab.report import view

# The schema of kcidb-io 141; a later minor version takes it, too.
VERSION = {"major": 5, "minor": 3}
ORIGIN = "kernel_patch_lab"
_ORIGIN = re.compile(r"[a-z0-9_]+")
_URL = re.compile(r"https?://\S+")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_MESSAGE_ID = re.compile(r"<?([^\s/<>@]+@[^\s/<>@]+)>?")
_NOT_IN_PATH = re.compile(r"[^A-Za-z0-9_-]+")
_EXCERPT = 16384  # characters that the schema lets a log excerpt have
_STATUS = {
    CaseState.PASSED: "PASS",
    CaseState.FAILED: "FAIL",
    CaseState.CRASHED: "FAIL",
    CaseState.HUNG: "FAIL",
    CaseState.TIMEOUT: "FAIL",
    CaseState.SKIPPED: "SKIP",
    CaseState.MISSING: "MISS",
    CaseState.UNCOVERED: "DONE",  # it ended, and says nothing of the kernel: lockdep was off
}
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitter:
    """Who submits, and where the run's folder can be read, if anywhere."""

    origin: str = ORIGIN  # as agreed with kernelci.org
    url: str = ""  # of the folder; "": consoles are not published

    def __post_init__(self) -> None:
        if not _ORIGIN.fullmatch(self.origin):
            raise UserError(
                f"{self.origin!r} is no origin of KCIDB",
                hint="a-z, 0-9 and _, as kernelci.org has it",
            )
        if self.url and not _URL.fullmatch(self.url):
            raise UserError(f"{self.url!r} is no address", hint="https://HOST/PATH of the run")

    def id(self, *parts: str) -> str:
        return f"{self.origin}:{_clean(':'.join(parts))}"


def report(record: RunRecord, submitter: Submitter) -> bytes:
    """The document, as indented JSON. It is checked against the schema where kcidb-io is installed.

    Raises `LabFault` if the schema refuses it.
    """
    tests = list(_tests(record, submitter))
    issues, incidents = _issues(record, submitter)
    document: Document = {
        "version": VERSION,
        "checkouts": [_checkout(record, side, submitter) for side in Side],
        "builds": list(_builds(record, submitter)),
        "tests": tests,
    }
    if issues:
        document |= {"issues": issues, "incidents": incidents}
    _validate(document)
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _validate(document: Document) -> None:
    if importlib.util.find_spec("kcidb_io") is None:
        return
    from kcidb_io.schema import V5_3  # optional: it is for those who submit

    try:
        V5_3.validate(document)
    except Exception as error:  # of jsonschema, which kcidb-io brings
        raise LabFault(f"KCIDB would refuse the report: {error}") from error


def _clean(text: str) -> str:
    """Without NUL, which the schema has in no text, and without halves of characters."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


# --- what was tested ---------------------------------------------------------------------------


def _checkout(record: RunRecord, side: Side, submitter: Submitter) -> Document:
    manifest, source = record.manifest, record.manifest.source
    told: Document = {
        "id": _checkout_id(record, side, submitter),
        "origin": submitter.origin,
        "patchset_hash": "" if side is Side.BASE else manifest.series_digest,
        "comment": _clean(f"{source.version}: {source.provenance}"),
        "start_time": manifest.created,
        "valid": True,
        "misc": {"tree": source.tree, "profile": manifest.profile, "lab": manifest.lab_version},
    }
    # A package or a tarball is one commit of the lab's own, which nobody else has.
    if source.provenance.startswith("git ") and _SHA1.fullmatch(source.commit):
        told["git_commit_hash"] = source.commit
    if side is Side.PATCHED:
        told["comment"] = _clean(f"{manifest.series_title} on {told['comment']}")
        told["misc"] |= {
            "outcome": record.verdict.outcome,
            "verdict": _clean(record.verdict.sentence),
            "patches": [_clean(name) for name in manifest.patch_names],
        }
        if found := _MESSAGE_ID.fullmatch(manifest.series_origin):
            told["message_id"] = found[1]
    return told


def _checkout_id(record: RunRecord, side: Side, submitter: Submitter) -> str:
    source = record.manifest.source
    parts = [source.commit] if side is Side.BASE else [source.commit, record.manifest.series_digest]
    return submitter.id(*parts)


def _build_id(record: RunRecord, arch: str, side: Side, submitter: Submitter) -> str:
    return submitter.id(record.manifest.run, arch, side)


def _builds(record: RunRecord, submitter: Submitter) -> Iterator[Document]:
    for kernel in record.kernels:
        yield {
            **_build(record, kernel, submitter),
            "compiler": _clean(kernel.compiler),
            "status": "PASS",
            "misc": {"key": kernel.key, "image_sha256": kernel.image_sha256},
        }
    for failure in record.failures:
        yield {
            **_build(record, failure, submitter),
            "status": "FAIL",
            "log_excerpt": _clean(failure.first_error.text)[:_EXCERPT],
            "misc": {"key": failure.key, "phase": failure.phase, "patch": failure.patch or ""},
        }


def _build(record: RunRecord, built: Kernel | BuildFailure, submitter: Submitter) -> Document:
    return {
        "id": _build_id(record, built.arch, built.side, submitter),
        "checkout_id": _checkout_id(record, built.side, submitter),
        "origin": submitter.origin,
        "architecture": built.arch,
        "config_name": record.manifest.profile,
        "duration": built.build_s,
    }


# --- what the tests said -----------------------------------------------------------------------


def _tests(record: RunRecord, submitter: Submitter) -> Iterator[Document]:
    for trial in record.trials:
        if not trial.restored:
            yield {
                **_test(record, trial, "boot", submitter),
                "status": _boot_status(trial),
                **({"duration": trial.boot_s} if trial.boot_s is not None else {}),
            }
        said = {result.name: result for result in trial.results}
        for name in dict.fromkeys((*trial.cell.cases, *said)):
            yield _answer(record, trial, name, said.get(name), submitter)


def _boot_status(trial: Trial) -> str:
    if trial.boot_s is not None:
        return "PASS"
    match trial.end:
        case MachineEnd.QEMU_DIED | MachineEnd.LOST:
            return "MISS"
        case (
            MachineEnd.POWERED_OFF
            | MachineEnd.PANICKED
            | MachineEnd.HUNG_BOOT
            | MachineEnd.HUNG_SILENT
            | MachineEnd.WALL_CLOCK
        ):
            return "FAIL"
        case _ as unreachable:
            assert_never(unreachable)


def _answer(
    record: RunRecord, trial: Trial, name: str, result: CaseResult | None, submitter: Submitter
) -> Document:
    told = _test(record, trial, f"case:{name}", submitter)
    told["path"] = ".".join(_NOT_IN_PATH.sub("_", part) for part in re.split("[/:]", name) if part)
    told["status"] = _STATUS[result.state] if result else "MISS"
    if result is None:
        return told
    told["duration"] = result.duration_s
    told["misc"] |= {"state": result.state, "message": _clean(result.message)}
    if result.splats:
        told["misc"]["splats"] = [_clean(splat.title) for splat in result.splats]
        told["log_excerpt"] = _clean(result.splats[0].text)[:_EXCERPT]
    if result.metrics:
        told["misc"]["metrics"] = result.metrics
    return told


def _test(record: RunRecord, trial: Trial, what: str, submitter: Submitter) -> Document:
    """What all tests of one machine share."""
    cell = trial.cell
    told: Document = {
        "id": _test_id(record, trial, what, submitter),
        "build_id": _build_id(record, cell.arch, cell.side, submitter),
        "origin": submitter.origin,
        "path": "boot",
        "start_time": trial.started,
        "environment": {
            "comment": f"QEMU, {trial.accelerator.name}, {cell.cpus} cpus, "
            f"{cell.memory_bytes >> 20} MiB",
            "misc": {"accelerator": trial.accelerator.name, "cpu": trial.accelerator.cpu},
        },
        "misc": {"repeat": cell.repeat + 1, "seed": cell.seed, "end": trial.end},
    }
    if submitter.url:
        told["log_url"] = f"{submitter.url.rstrip('/')}/trials/{trial.id}/{trial.console}"
    return told


def _test_id(record: RunRecord, trial: Trial, what: str, submitter: Submitter) -> str:
    return submitter.id(record.manifest.run, trial.id, what)


# --- what is blamed on the series --------------------------------------------------------------


def _issues(record: RunRecord, submitter: Submitter) -> tuple[list[Document], list[Document]]:
    """Splats that the series brings, and the tests that showed them."""
    issues: list[Document] = []
    incidents: list[Document] = []
    for row in view.splat_rows(record):
        verdict = row.verdict
        if verdict.comparison is not Comparison.REGRESSED:
            continue
        issue = submitter.id("splat", verdict.fingerprint)
        if issue not in {one["id"] for one in issues}:
            issues.append(
                {
                    "id": issue,
                    "version": 1,
                    "origin": submitter.origin,
                    "report_subject": _clean(verdict.title),
                    "culprit": {"code": True, "tool": False, "harness": False},
                    "comment": f"in {verdict.patched} of {verdict.patched_trials} runs with the "
                    f"series, {verdict.base} of {verdict.base_trials} without",
                    "misc": {"kind": verdict.kind, "file": _clean(row.splat.file)},
                }
            )
        for trial, what in _sightings(record, verdict.fingerprint, verdict.arch):
            incidents.append(
                {
                    "id": submitter.id("incident", record.manifest.run, trial.id, what, issue),
                    "origin": submitter.origin,
                    "issue_id": issue,
                    "issue_version": 1,
                    "test_id": _test_id(record, trial, what, submitter),
                    "present": True,
                }
            )
    return issues, incidents


def _sightings(record: RunRecord, fingerprint: str, arch: str) -> Iterator[tuple[Trial, str]]:
    def shows(splats: tuple[Splat, ...]) -> bool:
        return any(splat.fingerprint == fingerprint for splat in splats)

    for trial in record.trials:
        if trial.cell.arch != arch:
            continue
        if shows(trial.boot_splats) and not trial.restored:
            yield trial, "boot"
        for result in trial.results:
            if shows(result.splats):
                yield trial, f"case:{result.name}"
