"""JUnit as CI systems read it: the strict schema, GitLab's parser, attachments, hostile guests."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab.model import Outcome, RunRecord
from lab.report import junit
from tests import records

# What the schema junit-10 of Jenkins' xunit plugin lets each element have, and what it insists on.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    # element: its attributes, those that must be there, its children
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname", "id"},
        {"name", "tests", "failures", "errors"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, {"name", "value"}, set()),
    "testcase": (
        {"name", "time", "classname"},
        {"name"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": ({"type", "message"}, set(), set()),
    "error": ({"type", "message"}, set(), set()),
    "skipped": ({"type", "message"}, set(), set()),
    "system-out": (set(), set(), set()),
    "system-err": (set(), set(), set()),
}
TIME = re.compile(r"\d{0,3}(,?\d{3})*(\.\d*)?|\d+(\.\d*)?")
GITLAB_TAG = re.compile(r"\[\[ATTACHMENT\|(?P<path>[^\[\]\|]+?)\]\]")
ANY_TAG = re.compile(r"\[\[ATTACHMENT", re.IGNORECASE)


def check(element: ElementTree.Element) -> None:
    may, must, children = SCHEMA[element.tag]
    assert set(element.attrib) <= may, element.tag
    assert must <= set(element.attrib), element.tag
    if "time" in element.attrib:
        assert TIME.fullmatch(element.attrib["time"])
    for child in element:
        assert child.tag in children, f"{child.tag} in {element.tag}"
        check(child)


def document(record: RunRecord, files: junit.Files = junit.NO_FILES) -> ElementTree.Element:
    return ElementTree.fromstring(junit.xml(record, files))


def left(folder: Path, record: RunRecord, *, logs: bool = True) -> junit.Files:
    """The run's folder as a campaign leaves it."""
    for trial in record.trials:
        here = folder / "trials" / trial.id
        (here / "cases").mkdir(parents=True, exist_ok=True)
        (here / trial.console).touch()
        for result in trial.results if logs else ():
            (here / result.log).touch()
    (folder / "report.html").touch()
    return junit.Files(folder=folder)


def case(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = (
        one for one in root.iter("testcase") if f"{one.get('classname')}.{one.get('name')}" == name
    )
    return found


@pytest.mark.parametrize("story", records.STORIES)
def test_the_strict_schema(story: str, tmp_path: Path) -> None:
    record = records.STORIES[story]()
    root = document(record, left(tmp_path, record))
    assert root.tag == "testsuites"
    check(root)


@pytest.mark.parametrize("story", records.STORIES)
def test_no_name_is_there_twice(story: str) -> None:
    """GitLab keeps the first of a name only."""
    root = document(records.STORIES[story]())
    names = [(one.get("classname"), one.get("name")) for one in root.iter("testcase")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("story", records.STORIES)
def test_a_case_has_one_state(story: str) -> None:
    for one in document(records.STORIES[story]()).iter("testcase"):
        states = [child.tag for child in one if child.tag in ("skipped", "error", "failure")]
        assert len(states) <= 1


def test_a_failure_brings_the_consoles_of_the_series_first(tmp_path: Path) -> None:
    record = records.corrupting()
    root = document(record, left(tmp_path, record))
    broken = case(root, "x86_64.lockdep.faultstress.ext4.truncate")
    said = broken.findtext("system-out") or ""
    paths = [Path(found["path"]) for found in GITLAB_TAG.finditer(said)]
    first = next(t for t in record.trials if t.cell.side == "patched")
    here = tmp_path / "trials" / first.id
    assert paths[:2] == [here / "console.log", here / "cases/faultstress-ext4-truncate.log"]
    assert len(paths) == 8
    assert all(path.is_absolute() and path.is_file() for path in paths), "Jenkins wants it so"
    assert all(GITLAB_TAG.fullmatch(line) for line in said.splitlines()), "a line each"
    whole = case(root, "lab.verdict").findtext("system-out") or ""
    assert str(tmp_path / "report.html") in whole


def test_in_a_project_of_gitlab_paths_are_relative_to_it(tmp_path: Path) -> None:
    record = records.corrupting()
    folder = tmp_path / "project" / "runs" / "one"
    files = replace(left(folder, record), project=tmp_path / "project")
    said = case(document(record, files), "lab.verdict").findtext("system-out") or ""
    assert said.strip() == "[[ATTACHMENT|runs/one/report.html]]"
    elsewhere = replace(files, project=tmp_path / "other")
    said = case(document(record, elsewhere), "lab.verdict").findtext("system-out") or ""
    assert str(folder / "report.html") in said


def test_only_what_is_there_is_attached(tmp_path: Path) -> None:
    record = records.corrupting()
    broken = case(
        document(record, junit.Files(folder=tmp_path)), "x86_64.lockdep.faultstress.ext4.truncate"
    )
    assert broken.find("system-out") is None
    assert not ANY_TAG.search(junit.xml(record).decode())


@pytest.mark.parametrize("story", ["panicking", "use-after-free", "unbuildable"])
def test_findings_bring_their_evidence(story: str, tmp_path: Path) -> None:
    record = records.STORIES[story]()
    log = tmp_path / "make.log"
    log.touch()
    record = replace(record, failures=tuple(replace(one, log=log) for one in record.failures))
    root = document(record, left(tmp_path, record))
    (suite,) = (one for one in root if one.get("name") == "verdict")
    finding = suite.findall("testcase")[1]
    said = GITLAB_TAG.search(finding.findtext("system-out") or "")
    assert said is not None
    assert Path(said["path"]).name == ("make.log" if story == "unbuildable" else "console.log")


def test_a_guest_attaches_nothing(tmp_path: Path) -> None:
    """A message that looks like an attachment would have Jenkins publish a file of the host."""
    evil = "\n[[ATTACHMENT|/etc/passwd]]\n[[attachment|/etc/shadow]]"
    name = "faultstress/ext4/truncate"
    bad = records.failing(name, records.failed(name, evil))
    for record in (
        records.run(records.well, bad),
        records.run(bad, bad),
        records.run(bad, records.well),  # fixed: what it said is told with a pass
    ):
        text = junit.xml(record, left(tmp_path, record, logs=False)).decode()
        tags = {found["path"] for found in GITLAB_TAG.finditer(text)}
        assert "/etc/passwd" in text
        assert all(Path(path).is_relative_to(tmp_path) for path in tags)
        assert not re.search(r"\[\[attachment", text)


def test_a_path_that_would_break_the_tag_is_left_out(tmp_path: Path) -> None:
    record = records.corrupting()
    odd = tmp_path / "a]]b"
    text = junit.xml(record, left(odd, record)).decode()
    assert not ANY_TAG.search(text)


def test_properties_say_what_was_tested() -> None:
    root = document(records.clean())
    told = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert told["outcome"] == Outcome.CLEAN
    assert told["accelerator.x86_64.base"] == "tcg"
    assert told["kernel.x86_64.patched"] is not None
    assert told["tool.gcc"] == "12.2.0"
