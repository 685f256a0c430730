"""A `RunRecord` goes in, JUnit XML as CI systems read it comes out.

Green is only what was shown: a regression is a failure, whatever proved nothing is an error, and
a run whose verdict is not clean has at least one of them. What fails on the base too is skipped
with its reason: a failure would blame the series, a pass would hide it.

Only what the strict schema of Jenkins' xunit plugin (junit-10) knows is written. Consoles and logs
are attached by lines `[[ATTACHMENT|PATH]]` in system-out, as Jenkins and GitLab read them: Jenkins
takes each such line with an absolute path, GitLab the first one, relative to the project.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never
from xml.etree import ElementTree

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from lab.model import CaseVerdict, Comparison, Finding, Outcome, RunRecord, Side, Trial
from lab.report import view

# XML 1.0 has no place for these, not even escaped; a guest may print them.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# A guest that prints such a line would have a CI server publish a file of its host.
_TAG = re.compile(r"\[\[(?=ATTACHMENT)", re.IGNORECASE)
_ATTACHED = 4  # consoles of one case: the first says most, GitLab shows no other


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where what a run left can be attached from."""

    folder: Path | None = None  # of the run; None: nothing is attached
    project: Path | None = None  # what paths are told relative to, where they lie in it

    def attach(self, *paths: Path) -> str:
        """Lines that attach those of the paths that are files."""
        return "".join(
            f"[[ATTACHMENT|{self._named(path)}]]\n"
            for path in dict.fromkeys(paths)
            # GitLab ends a path at any of these, and a line break would end the tag.
            if path.is_file() and not set(str(path)) & set("[]|\n")
        )

    def _named(self, path: Path) -> Path:
        whole = path.absolute()
        if self.project is not None and whole.is_relative_to(self.project.absolute()):
            return whole.relative_to(self.project.absolute())
        return whole

    def of_trial(self, trial: Trial, log: str = "") -> tuple[Path, ...]:
        if self.folder is None:
            return ()
        here = self.folder / "trials" / trial.id
        return (here / trial.console, *([here / log] if log else []))

    def of_run(self, name: str) -> tuple[Path, ...]:
        return () if self.folder is None else (self.folder / name,)


NO_FILES = Files()


def xml(record: RunRecord, files: Files = NO_FILES) -> bytes:
    """The whole document: a suite for each architecture, and one for the run itself."""
    document = JUnitXml(name="kernel-patch-lab")
    archs = (_arch_suite(record, arch, files) for arch in record.manifest.archs)
    for suite in (_run_suite(record, files), *archs):
        document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    root: ElementTree.Element = document._elem
    root.attrib.pop("skipped", None)  # the schema has it in suites only
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
    element.text = _TAG.sub("[ [", text)
    return element


# --- the run -----------------------------------------------------------------------------------


def _run_suite(record: RunRecord, files: Files) -> TestSuite:
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
            whole.system_out = _TAG.sub("[ [", told)
    if whole.result and (attached := files.attach(*files.of_run("report.html"))):
        whole.system_out = attached
    suite.add_testcase(whole)
    for finding in verdict.findings:
        if finding.kind != "case":
            suite.add_testcase(_finding(record, finding, files))
    return suite


def _finding(record: RunRecord, finding: Finding, files: Files) -> TestCase:
    case = _case(f"{finding.kind}: {finding.title}", f"{finding.arch}.{finding.kind}")
    since = f"\nfirst with patch {finding.patch}" if finding.patch else ""
    case.result = [_with_text(Failure(finding.title, finding.kind), finding.detail + since)]
    if attached := files.attach(*_evidence(record, finding, files)):
        case.system_out = attached
    return case


def _evidence(record: RunRecord, finding: Finding, files: Files) -> tuple[Path, ...]:
    """The files that show a finding which is not a case's own."""
    if finding.kind == "build":
        return tuple(one.log for one in record.failures if one.arch == finding.arch)
    if finding.kind == "boot" and (dead := view.failed_boot(record, finding.arch)):
        return files.of_trial(dead)
    for row in view.splat_rows(record) if finding.kind == "splat" else ():
        if (row.verdict.title, row.verdict.arch) == (finding.title, finding.arch):
            return files.of_trial(row.trial)
    return ()


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


def _arch_suite(record: RunRecord, arch: str, files: Files) -> TestSuite:
    """One test case for each planned case; what both sides said of it is its output."""
    suite = TestSuite(arch)
    suite.timestamp = record.manifest.created
    for case in record.verdict.cases:
        if case.arch == arch:
            suite.add_testcase(_compared(record, case, files))
    return suite


def _compared(record: RunRecord, verdict: CaseVerdict, files: Files) -> TestCase:
    group, _, name = verdict.name.rpartition("/")
    classname = ".".join((verdict.arch, verdict.profile, *group.split("/"))).rstrip(".")
    said = [
        (trial, result)
        for trial in record.trials
        if trial.cell.arch == verdict.arch
        for result in trial.results
        if result.name == verdict.name
    ]
    took = sum(result.duration_s for trial, result in said if trial.cell.side is Side.PATCHED)
    case = _case(name, classname, took)
    told = "\n".join(
        (
            f"base: {view.counts(verdict.base)}; patched: {view.counts(verdict.patched)}",
            *(
                f"{of.side} #{of.repeat + 1}: {result.state} {result.message}".rstrip()
                for of, result in ((trial.cell, result) for trial, result in said)
            ),
        )
    )
    reason = verdict.reason or str(verdict.comparison)
    match verdict.comparison:
        case Comparison.SAME_PASS | Comparison.FIXED:
            case.system_out = _TAG.sub("[ [", told)
        case Comparison.FLAKY | Comparison.SAME_FAIL:
            case.result = [_with_text(Skipped(reason, str(verdict.comparison)), told)]
        case Comparison.REGRESSED:
            case.result = [_with_text(Failure(reason, "regressed"), told)]
        case Comparison.UNKNOWN if view.skipped_alike(verdict):
            case.result = [_with_text(Skipped(reason, "skipped"), told)]
        case Comparison.UNKNOWN | Comparison.SUSPECT:
            case.result = [_with_text(Error(reason, str(verdict.comparison)), told)]
        case _ as unreachable:
            assert_never(unreachable)
    if any(isinstance(result, Failure | Error) for result in case.result):
        shown = sorted(
            ((trial, result) for trial, result in said if result.state in view.FAILING),
            key=lambda seen: seen[0].cell.side is Side.BASE,  # the series' own first
        )
        paths = [path for t, r in shown[:_ATTACHED] for path in files.of_trial(t, r.log)]
        if attached := files.attach(*paths):
            case.system_out = attached
    return case
