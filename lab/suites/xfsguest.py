"""The guest's side of xfstests: calls of its script go out, files, state and message of a test come
back. What a guest reports is hostile input: bounded, and a pass only if exit status, report and
list of times all say so.
"""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import msgspec

from lab import prose
from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState
from lab.suites.injection import Injection
from lab.suites.protocol import Commands, Told

SCRIPT = Path(__file__).parent.parent.parent / "images" / "guest" / "xfstests.sh"
SETUP_S = 300.0
SHOW_S = 60.0
FILE_BYTES = 256 << 10
_LINE = 300
_HEADER = re.compile(rb"file ([a-z.]{1,20}) ([0-9]{1,9})")
# What `check` prints when it ends, whatever ended it, and its word on xfstests.sh's first words.
_CHATTER = re.compile(
    r"Interrupted!|Passed all 0 tests|Xunit report|SECTION  |=+$|.* readonly function$"
)


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One test on one configuration, as it travels with its case."""

    test: str  # generic/247
    config: str  # also the name of its section
    made: str  # file system on its disks; "" if it needs none
    mkfs: str
    section: str
    options: tuple[str, ...] = ()  # of `check`
    limit_s: float  # of the test alone
    spoils: bool = False  # what is on its scratch disk
    profile: Injection | None = None  # what fails meanwhile

    @property
    def label(self) -> str:
        """The configuration as its user named it."""
        return f"{self.config}+{self.profile.name}" if self.profile else self.config


def to_text(test: Test) -> str:
    return msgspec.json.encode(test).decode()


def from_text(text: str) -> Test:
    return msgspec.json.decode(text, type=Test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The guest script of the suite, for one test in one guest. A slow machine has `slower` times
    as long for each step."""

    guest: Commands
    test: Test
    slower: float = 1.0
    environment: tuple[str, ...] = ()  # NAME=VALUE

    # What becomes of the test: three commands.

    def set_up(self) -> tuple[str, ...]:
        one = self.test
        return self.argv("setup", one.label, one.made, one.mkfs, one.section)

    def check(self) -> tuple[str, ...]:
        return self.argv("check", self.test.config, self.test.test, *self.test.options)

    def show(self) -> tuple[str, ...]:
        """It prints what the test left, for `unpack`."""
        return self.argv("show", self.test.config, self.test.test, str(FILE_BYTES))

    def within(self, limit_s: float) -> float:
        """That limit on this machine."""
        return limit_s * self.slower

    def argv(self, *words: str) -> tuple[str, ...]:
        script = SCRIPT.read_text(encoding="utf-8")
        return ("env", *self.environment, "/bin/sh", "-c", script, SCRIPT.name, *words)


async def run(script: Script, name: str) -> CaseResult | Told | Down:
    """The case of that name: its test, once."""
    began = time.monotonic()
    ready = await script.guest.run(script.set_up(), timeout_s=script.within(SETUP_S))
    if isinstance(ready, Down):
        return ready
    if (failed := not_ready(name, ready)) is not None:
        return failed
    limit_s = script.within(script.test.limit_s)
    checked = await script.guest.run(script.check(), timeout_s=limit_s)
    if isinstance(checked, Down):
        return checked
    duration_s = time.monotonic() - began
    shown = await script.guest.run(script.show(), timeout_s=script.within(SHOW_S))
    if isinstance(shown, Down):
        return shown
    files = unpack(shown.stdout)
    state, message = judge(script.test.test, checked, files)
    result = CaseResult(name=name, state=state, message=message, duration_s=duration_s)
    if state in (CaseState.PASSED, CaseState.SKIPPED):
        return result
    return Told(result=result, files={"check.log": said_by(checked), **files})


def said_by(checked: Exited | TimedOut) -> bytes:
    return (checked.stdout + checked.stderr)[-FILE_BYTES:]


def not_ready(name: str, ready: Exited | TimedOut) -> CaseResult | None:
    """The result of a case whose setting up went wrong; None if it did not."""
    if isinstance(ready, TimedOut):
        message = f"setting up did not end in {ready.duration_s:.0f} s"
        return CaseResult(name=name, state=CaseState.TIMEOUT, message=message)
    if ready.status == 0:
        return None
    why = last_line(ready.stderr or ready.stdout)
    if "there is no tree" in why:
        return CaseResult(name=name, state=CaseState.SKIPPED, message=why)
    state = CaseState.MISSING if "left" in why else CaseState.FAILED
    return CaseResult(name=name, state=state, message=f"setting up: {why}")


def unpack(shown: bytes) -> dict[str, bytes]:
    """The files in what the script shows; those that came whole, and nothing else."""
    files: dict[str, bytes] = {}
    rest = shown
    while rest:
        line, _, rest = rest.partition(b"\n")
        header = _HEADER.fullmatch(line)
        if header is None:
            break
        size = int(header[2])
        if size > FILE_BYTES or len(rest) < size:
            break
        files[header[1].decode()] = rest[:size]
        rest = rest[size + 1 :]
    return files


def judge(
    test: str, checked: Exited | TimedOut, files: Mapping[str, bytes]
) -> tuple[CaseState, str]:
    """What became of a test, from how `check` ended and the files that it left."""
    match checked:
        case TimedOut():
            return CaseState.TIMEOUT, "it did not end in its time"
        case Exited():
            status = checked.status
        case _:
            assert_never(checked)
    reported = _reported(test, files.get("result.xml", b""))
    if reported is None:
        if status == 0:
            return CaseState.MISSING, "check ended well and reported nothing of this test"
        said = _last_word(checked.stdout + checked.stderr)
        return CaseState.FAILED, f"check ended with status {status} and no report: {said}"
    state, message = reported
    match state:
        case CaseState.SKIPPED:
            why = message or last_line(files.get("notrun", b""))
            return state, why or "not run, without a reason"
        case CaseState.PASSED if status != 0:
            return CaseState.FAILED, f"reported as passed, but check ended with status {status}"
        case CaseState.PASSED if not _timed(test, files.get("check.time", b"")):
            return CaseState.MISSING, "reported as passed, but it never ran"
        case CaseState.PASSED:
            return state, ""
        case _:
            return state, "; ".join(part for part in (message, _first_difference(files)) if part)


def _reported(test: str, raw: bytes) -> tuple[CaseState, str] | None:
    """What the xunit report says of the test; None if nothing that can be read."""
    # Entities are where XML becomes dangerous, and no report has a use for one.
    if not raw or b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        return None
    try:
        root = ElementTree.fromstring(raw.decode("utf-8", "replace"))
    except (ElementTree.ParseError, ValueError, RecursionError):
        return None
    found = [case for case in root.iter("testcase") if case.get("name") == test]
    if len(found) != 1:
        return None
    for kind, state in (("failure", CaseState.FAILED), ("error", CaseState.FAILED)):
        if (node := found[0].find(kind)) is not None:
            return state, prose.cut(node.get("message") or "it failed", _LINE)
    if (node := found[0].find("skipped")) is not None:
        return CaseState.SKIPPED, prose.cut(node.get("message") or "", _LINE)
    return CaseState.PASSED, ""


def _timed(test: str, times: bytes) -> bool:
    """Whether `check` kept how long the test took, which it does for what has passed."""
    lines = times.decode("utf-8", "replace").splitlines()
    return any(line.split(" ")[0] == test for line in lines)


def _first_difference(files: Mapping[str, bytes]) -> str:
    """The first line that the test said and should not have, or should have and did not."""
    lines = files.get("out.diff", b"").decode("utf-8", "replace").splitlines()
    for line in lines[2:]:
        if line.startswith(("+", "-")):
            return prose.cut(line, _LINE)
    return ""


def _last_word(said: bytes) -> str:
    """The last line of `check` that is not about its own end."""
    lines = said.decode("utf-8", "replace").splitlines()
    told = [line for line in lines if line.strip() and not _CHATTER.match(line)]
    return prose.cut(told[-1], _LINE) if told else "(it said nothing)"


def last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return prose.cut(lines[-1], _LINE) if lines else "(it said nothing)"
