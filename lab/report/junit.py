"""A `RunRecord` goes in, JUnit XML as CI systems read it comes out.

Green is only what was shown: a regression is a failure, whatever proved nothing is an error, and
a run whose verdict is not clean has at least one of them. What fails on the base too is skipped
with its reason: a failure would blame the series, a pass would hide it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from lab.model import CaseVerdict, Comparison, Finding, Outcome, RunRecord, Side
from lab.report import view

# XML 1.0 has no place for these, not even escaped; a guest may print them.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml(record: RunRecord) -> bytes:
    """The whole document: a suite for each architecture, and one for the run itself."""
    document = JUnitXml(name="kernel-patch-lab")
    for suite in (_run_suite(record), *(_arch_suite(record, a) for a in record.manifest.archs)):
        document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    root: ElementTree.Element = document._elem
    _clean_tree(root)
    raw: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return raw


def _clean_tree(root: ElementTree.Element) -> None:
    for element in root.iter():
        element.text = element.text and _FORBIDDEN.sub("\ufffd", element.text)
        for name, value in element.attrib.items():
            element.set(name, _FORBIDDEN.sub("\ufffd", value))


def _case(name: str, classname: str, seconds: float = 0.0) -> TestCase:
    case = TestCase(name, classname=classname)
    case.time = round(seconds, 3)
    return case


def _with_text(element: Error | Failure | Skipped, text: str) -> Error | Failure | Skipped:
    element.text = text
    return element


# --- the run -----------------------------------------------------------------------------------


def _run_suite(record: RunRecord) -> TestSuite:
    """The verdict itself, and each finding that is not a case's own."""
    verdict = record.verdict
    suite = TestSuite("verdict")
    suite.timestamp = record.manifest.created
    for name, value in _properties(record):
        suite.add_property(name, value)
    whole = _case("verdict", "lab", record.timing.wall_s)
    told = "\n".join((verdict.sentence, *verdict.reasons))
    match verdict.outcome:
        case Outcome.REGRESSED:
            whole.result = [_with_text(Failure(verdict.sentence, "regressed"), told)]
        case Outcome.INCONCLUSIVE | Outcome.LAB_FAULT:
            whole.result = [_with_text(Error(verdict.sentence, str(verdict.outcome)), told)]
        case Outcome.CLEAN:
            whole.system_out = told
    suite.add_testcase(whole)
    for finding in verdict.findings:
        if finding.kind != "case":
            suite.add_testcase(_finding(finding))
    return suite


def _finding(finding: Finding) -> TestCase:
    case = _case(f"{finding.kind}: {finding.title}", f"{finding.arch}.{finding.kind}")
    since = f"\nfirst with patch {finding.patch}" if finding.patch else ""
    case.result = [_with_text(Failure(finding.title, finding.kind), finding.detail + since)]
    return case


def _properties(record: RunRecord) -> Iterator[tuple[str, str]]:
    manifest = record.manifest
    yield "outcome", str(record.verdict.outcome)
    yield "run", manifest.run
    yield "lab", manifest.lab_version
    yield "series", f"{manifest.series_title} ({manifest.series_origin})"
    yield "series.sha256", manifest.series_digest
    yield "source", f"{manifest.source.name} {manifest.source.version} {manifest.source.commit}"
    yield "profile", manifest.profile
    yield "seed", str(manifest.seed)
    for tool, version in sorted(manifest.tools.items()):
        yield f"tool.{tool}", version
    for kernel in record.kernels:
        yield f"kernel.{kernel.arch}.{kernel.side}", f"{kernel.key} {kernel.compiler}"
    for row in view.matrix(record):
        if row.accelerators:
            yield f"accelerator.{row.arch}.{row.side}", ", ".join(row.accelerators)


# --- the cases ---------------------------------------------------------------------------------


def _arch_suite(record: RunRecord, arch: str) -> TestSuite:
    """One test case for each planned case; what both sides said of it is its output."""
    suite = TestSuite(arch)
    suite.timestamp = record.manifest.created
    for case in record.verdict.cases:
        if case.arch == arch:
            suite.add_testcase(_compared(record, case))
    return suite


def _compared(record: RunRecord, verdict: CaseVerdict) -> TestCase:
    group, _, name = verdict.name.rpartition("/")
    classname = ".".join((verdict.arch, verdict.profile, *group.split("/"))).rstrip(".")
    said = [
        (trial.cell.side, trial.cell.repeat, result)
        for trial in record.trials
        if trial.cell.arch == verdict.arch
        for result in trial.results
        if result.name == verdict.name
    ]
    case = _case(name, classname, sum(r.duration_s for side, _, r in said if side is Side.PATCHED))
    told = "\n".join(
        (
            f"base: {view.counts(verdict.base)}; patched: {view.counts(verdict.patched)}",
            *(
                f"{side} #{repeat + 1}: {result.state} {result.message}".rstrip()
                for side, repeat, result in said
            ),
        )
    )
    reason = verdict.reason or str(verdict.comparison)
    match verdict.comparison:
        case Comparison.SAME_PASS | Comparison.FIXED:
            case.system_out = told
        case Comparison.FLAKY | Comparison.SAME_FAIL:
            case.result = [_with_text(Skipped(reason, str(verdict.comparison)), told)]
        case Comparison.REGRESSED:
            case.result = [_with_text(Failure(reason, "regressed"), told)]
        case Comparison.UNKNOWN if view.skipped_alike(verdict):
            case.result = [_with_text(Skipped(reason, "skipped"), told)]
        case Comparison.UNKNOWN | Comparison.SUSPECT:
            case.result = [_with_text(Error(reason, str(verdict.comparison)), told)]
    return case
