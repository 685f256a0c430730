"""Whole nights: real processes in place of `lab run`, killed, cut off, taken up again."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab import ledger
from lab.cli import nightly as cli_nightly
from lab.cli.context import Context
from lab.config import Config, Nightly, Paths
from lab.matrix import Job
from lab.model import Event, Outcome, Side, UserError
from lab.night import record, watch
from lab.night.process import Program
from lab.night.record import Change, JobState, Night
from lab.report import night as report
from tests.conftest import ROOT

pytestmark = pytest.mark.fake

SCRIPTED = ROOT / "tests" / "scriptedlab.py"
TRUNCATE = "faultstress/ext4/truncate"


def job(arch: str, suite: str = "boot") -> Job:
    return Job(
        kernel="", series="patches/demo", arch=arch, profile="lockdep", filesystem="", suite=suite
    )


JOBS = (job("x86_64"), job("arm64"), job("x86_64", "faultstress"))


class Nights:
    """A folder of runs, and a script of what machines do in it."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.script = folder / "script.json"
        self.said: list[Event] = []
        self.rules()

    def rules(self, *rules: dict[str, Any]) -> None:
        self.script.write_text(json.dumps(rules))
        self.script.with_suffix(".calls").unlink(missing_ok=True)

    def calls(self) -> list[str]:
        path = self.script.with_suffix(".calls")
        return path.read_text().splitlines() if path.exists() else []

    def request(
        self, jobs: Sequence[Job] = JOBS, budget_s: float | None = None, *, fresh: bool = False
    ) -> watch.Request:
        argv = (sys.executable, str(SCRIPTED), str(self.script), "--runs", str(self.runs))
        return watch.Request(
            jobs=tuple(jobs),
            runs=self.runs,
            budget_s=budget_s,
            program=Program(argv=argv),
            command=("lab", "nightly"),
            fresh=fresh,
        )

    def run(self, jobs: Sequence[Job] = JOBS, budget_s: float | None = None) -> Night:
        return asyncio.run(watch.run(self.request(jobs, budget_s), self.said.append))

    def page(self, night: Night) -> str:
        earlier = [one for one in record.load(self.runs) if one.record.id < night.record.id]
        with ledger.opened(self.runs) as book:
            return report.page(night, earlier, book)


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def changes(night: Night) -> dict[str, Change]:
    return {one.title: one.change for one in night.record.news}


def states(night: Night) -> list[JobState]:
    return [one.state for one in night.record.results]


def wait_for(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- what is new -------------------------------------------------------------------------------


def test_nights_tell_what_is_new_what_stays_and_what_is_fixed(nights: Nights) -> None:
    first = nights.run(JOBS[:1])
    assert first.record.outcome is Outcome.CLEAN
    assert first.record.news == ()
    assert first.record.sentence.endswith(
        "1 of 1 jobs ran, and there is nothing to compare with yet"
    )
    page = nights.page(first)
    assert "Nothing changed" not in page and "Nothing to compare with" in page

    # On both sides alike: the base has moved, and no run of its own would say so.
    nights.rules({"fails": TRUNCATE, "side": "both", "splat": True})
    second = nights.run(JOBS[:1])
    assert second.record.outcome is Outcome.REGRESSED
    result = second.record.results[0]
    assert result.outcome is Outcome.CLEAN
    assert result.reference == first.record.id
    assert changes(second)[TRUNCATE] is Change.NEW
    (new, splat) = second.record.news
    assert {new.kind, splat.kind} == {"case", "splat"}
    assert new.sides == splat.sides == (Side.BASE, Side.PATCHED)
    assert len(result.again) == 1
    assert "--only faultstress/ext4/truncate --repeats" in nights.calls()[-1]
    assert not second.record.good_for(JOBS[0].key)

    third = nights.run(JOBS[:1])
    assert third.record.outcome is Outcome.REGRESSED
    assert third.record.results[0].reference == first.record.id
    assert {one.since for one in third.record.news} == {second.record.id}

    nights.rules()
    fourth = nights.run(JOBS[:1])
    assert fourth.record.outcome is Outcome.CLEAN
    assert changes(fourth)[TRUNCATE] is Change.FIXED


def test_an_accepted_night_is_what_later_ones_are_measured_by(nights: Nights) -> None:
    nights.run(JOBS[:1])
    nights.rules({"fails": TRUNCATE})
    bad = nights.run(JOBS[:1])
    assert bad.record.outcome is Outcome.REGRESSED
    (bad.folder / "accepted").touch()
    nights.run(JOBS[:1])
    calm = nights.run(JOBS[:1])
    assert calm.record.outcome is Outcome.CLEAN
    assert set(changes(calm).values()) == {Change.KNOWN}
    nights.rules()
    assert set(changes(nights.run(JOBS[:1])).values()) == {Change.FIXED}


def test_one_failure_that_does_not_come_back_is_a_flake(nights: Nights) -> None:
    nights.run(JOBS[:1])
    nights.rules({"fails": TRUNCATE, "side": "base", "repeats": [1], "without": "--only"})
    night = nights.run(JOBS[:1])
    (news,) = night.record.news
    assert news.change is Change.FLAKY
    assert (news.fresh.bad, news.fresh.runs) == (0, 16)
    assert night.record.outcome is Outcome.CLEAN


def test_one_failure_that_comes_back_once_is_neither(nights: Nights) -> None:
    for _ in range(2):
        nights.run(JOBS[:1])
    nights.rules({"fails": TRUNCATE, "side": "base", "repeats": [1]})
    night = nights.run(JOBS[:1])
    (news,) = night.record.news
    assert news.change is Change.SUSPECT
    assert night.record.outcome is Outcome.INCONCLUSIVE
    assert news.fresh.bad == 1  # its second repeat again, of many
    assert news.fresh.runs > 4


def test_a_case_that_comes_and_goes_is_flaky(nights: Nights) -> None:
    nights.rules({"fails": TRUNCATE, "side": "both", "repeats": [1]})
    nights.run(JOBS[:1])
    night = nights.run(JOBS[:1])
    assert set(changes(night).values()) == {Change.FLAKY}
    assert night.record.outcome is Outcome.CLEAN
    assert "Flakes" in nights.page(night)


def test_what_the_series_does_is_the_verdict_of_its_run(nights: Nights) -> None:
    nights.rules({"fails": TRUNCATE, "side": "patched"})
    night = nights.run(JOBS[:1])
    assert night.record.results[0].outcome is Outcome.REGRESSED
    assert night.record.outcome is Outcome.REGRESSED
    assert changes(night)[TRUNCATE] is Change.NEW


# --- what did not run --------------------------------------------------------------------------


def test_a_job_that_breaks_ends_no_other_and_is_named(nights: Nights) -> None:
    nights.rules(
        {"match": "--arch arm64", "exit": 3, "says": "lab: the disk is full\nhint: lab clean"},
        {"match": "--suite faultstress", "exit": 2, "says": "lab: no such suite"},
    )
    night = nights.run()
    assert states(night) == [JobState.RAN, JobState.FAULT, JobState.REFUSED]
    assert night.record.outcome is Outcome.INCONCLUSIVE
    assert night.record.results[1].reason == "the disk is full; lab clean"
    reasons = "\n".join(night.record.reasons)
    assert "arm64 lockdep boot: the lab broke: the disk is full" in reasons
    assert "cannot be carried out: no such suite" in reasons


def test_a_night_in_which_the_lab_only_broke_is_a_fault(nights: Nights) -> None:
    nights.rules({"exit": 139})
    assert nights.run().record.outcome is Outcome.LAB_FAULT


def test_a_status_without_a_record_is_a_fault(nights: Nights) -> None:
    nights.rules({"exit": 0})
    night = nights.run(JOBS[:1])
    assert states(night) == [JobState.FAULT]
    assert "exit 0, and no record" in night.record.results[0].reason


def test_kernels_that_do_not_boot_are_told_once(nights: Nights) -> None:
    nights.run(JOBS[:1])
    nights.rules({"boots": False})
    night = nights.run(JOBS[:1])
    assert night.record.results[0].outcome is Outcome.INCONCLUSIVE
    assert changes(night) == {"booting": Change.NEW}
    assert night.record.outcome is Outcome.REGRESSED


# --- the budget --------------------------------------------------------------------------------


def known_durations(nights: Nights, **took_s: float) -> None:
    """A good night in which those architectures' boot jobs took so long."""
    night = nights.run()
    path = night.folder / "record.json"
    told = json.loads(path.read_bytes())
    for one in told["results"]:
        one["duration_s"] = took_s.get(one["job"]["arch"], 0.1)
    path.write_text(json.dumps(told))


def test_what_does_not_fit_is_not_begun_and_is_named(nights: Nights) -> None:
    known_durations(nights, arm64=7200.0)
    nights.rules()
    night = nights.run(budget_s=3600.0)
    assert states(night) == [JobState.RAN, JobState.LEFT_OUT, JobState.RAN]
    assert "arm64" not in " ".join(nights.calls())
    assert night.record.outcome is Outcome.INCONCLUSIVE
    left_out = night.record.results[1].reason
    assert left_out.startswith("it takes 2h 00m, and ")
    assert "not run: demo arm64 lockdep boot" in night.record.sentence


def test_the_end_of_the_budget_takes_everything_down(nights: Nights) -> None:
    nights.rules({"match": "--arch arm64", "hang": True})
    began = time.monotonic()
    night = nights.run(JOBS[:2], budget_s=12.0)
    took_s = time.monotonic() - began
    assert states(night) == [JobState.RAN, JobState.CUT_OFF]
    assert night.record.outcome is Outcome.INCONCLUSIVE
    assert took_s > 10  # it was given its time
    assert nights.script.with_suffix(".down").read_text() == "taken down\n"
    (pids,) = nights.script.with_suffix(".pids").read_text().splitlines()
    assert not any(alive(int(pid)) for pid in pids.split())
    assert "cut off by the end of the budget" in "\n".join(night.record.reasons)

    # The next night takes it up: it never ran, so it comes first.
    nights.rules()
    after = nights.run(JOBS[:2], budget_s=600.0)
    assert [("arm64" in call) for call in nights.calls()] == [True, False]
    assert after.record.outcome is Outcome.CLEAN


def test_a_job_that_does_not_listen_is_killed(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.night.process._GRACE_S", 0.5)
    nights.rules({"hang": True, "deaf": True})
    night = nights.run(JOBS[:1], budget_s=6.0)
    assert states(night) == [JobState.CUT_OFF]
    (pids,) = nights.script.with_suffix(".pids").read_text().splitlines()
    assert not any(alive(int(pid)) for pid in pids.split())


# --- interruptions -----------------------------------------------------------------------------

DRIVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.test_nightly import JOBS, Nights
nights = Nights.__new__(Nights)
nights.runs, nights.script, nights.said = Path(sys.argv[2]), Path(sys.argv[3]), []
nights.run(JOBS, float(sys.argv[4]) if sys.argv[4] else None)
"""


def test_a_night_that_was_killed_goes_on(nights: Nights) -> None:
    nights.rules({"match": "--arch arm64", "hang": True})
    argv = [sys.executable, "-c", DRIVER, ROOT, nights.runs, nights.script, ""]
    driver = subprocess.Popen([str(word) for word in argv])
    pids = nights.script.with_suffix(".pids")
    try:
        wait_for(pids.exists, "the second job never came up")
        with pytest.raises(UserError, match="another night is running"):
            nights.run()
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    family = [int(pid) for pid in pids.read_text().split()]
    wait_for(lambda: not any(map(alive, family)), "something of the job lives on")
    assert not nights.script.with_suffix(".down").exists()  # nobody asked: the leash did it
    assert record.load(nights.runs) == ()

    nights.rules()
    night = nights.run()
    assert states(night) == [JobState.RAN] * 3
    assert len(nights.calls()) == 2  # the first job had ended before
    assert night.record.interrupted == 1
    assert night.record.outcome is Outcome.CLEAN
    assert len(list((nights.runs / "nights").glob("2*"))) == 1


def test_a_night_whose_time_is_over_is_closed_and_a_new_one_begins(nights: Nights) -> None:
    old = nights.run(JOBS[:1], budget_s=3600.0)
    (old.folder / "record.json").unlink()  # cut off before its end
    (old.folder / "jobs" / f"{JOBS[0].key}.json").unlink()
    start = json.loads((old.folder / "night.json").read_text())
    start["started"] = "2020-01-01T00:00:00+00:00"
    (old.folder / "night.json").write_text(json.dumps(start))

    new = nights.run(JOBS[:1], budget_s=3600.0)
    assert new.record.id != old.record.id
    closed = next(one for one in record.load(nights.runs) if one.record.id == old.record.id)
    assert closed.record.outcome is Outcome.INCONCLUSIVE
    assert "the night was cut off before it" in closed.record.results[0].reason


def test_another_matrix_begins_another_night(nights: Nights) -> None:
    old = nights.run(JOBS[:1])
    (old.folder / "record.json").unlink()
    new = nights.run(JOBS[:2])
    assert new.record.id != old.record.id
    assert states(new) == [JobState.RAN, JobState.RAN]


# --- page and mail -----------------------------------------------------------------------------


def test_the_page_shows_the_night_and_escapes_what_it_shows(nights: Nights) -> None:
    nights.run(JOBS[:1])
    nights.rules(
        {"match": "x86_64", "fails": TRUNCATE},
        {"match": "arm64", "exit": 3, "says": "lab: <script>alert(1)</script>\x1b[2J"},
    )
    night = nights.run(JOBS[:2])
    page = nights.page(night)
    assert night.record.id in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert f'href="../../{night.record.results[0].run}/report.html"' in page
    assert "is-regressed" in page
    assert "Flakes" not in page  # it broke: it does not come and go
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count('class="box ') >= 4


def test_the_mail_is_one_message_of_text(nights: Nights) -> None:
    nights.rules({"match": "arm64", "exit": 3, "says": "lab: a\x1b]0;b\x07\nhint: c"})
    night = nights.run(JOBS[:2])
    raw = report.mail(night, sender="Lab <lab@example.org>", to=["a@x.org"], page_path="/p")
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert message.defects == []
    assert message["To"] == "a@x.org"
    assert message["Subject"].startswith(f"[lab] {night.record.id}: inconclusive: 1 of 2 jobs ran")
    assert message["Message-ID"] == f"<night-{night.record.id}@example.org>"
    assert message["Date"].datetime is not None
    text = message.get_content()
    assert "fault          demo arm64 lockdep boot" in text
    assert "\x1b" not in text
    assert "Page: /p" in text


# --- the command line --------------------------------------------------------------------------


def lab(*words: str | Path, expect: int = 0) -> str:
    """stdout and stderr of the real command."""
    program = Path(sys.executable).with_name("lab")
    done = subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, timeout=100, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == expect, said
    return said


@pytest.fixture
def lab_toml(tmp_path: Path) -> Path:
    path = tmp_path / "lab.toml"
    path.write_text('[matrix]\nseries = ["patches/demo"]\nsuites = ["boot", "faultstress"]\n')
    return path


def test_lab_matrix_lists_what_would_run(lab_toml: Path) -> None:
    lines = lab("--config", lab_toml, "matrix").splitlines()
    assert len(lines) == 4
    last = "lab run --patch patches/demo --arch arm64 --profile lockdep --suite faultstress"
    assert lines[-1] == last
    told = json.loads(lab("--config", lab_toml, "matrix", "--json"))
    assert [one["arch"] for one in told] == ["x86_64", "x86_64", "arm64", "arm64"]
    lab_toml.write_text('[matrix]\nseries = ["a"]\narch = ["vax"]\n')
    for words in (("matrix",), ("nightly",), ("ci", "github")):
        said = lab("--config", lab_toml, *words, expect=2)
        assert f"{lab_toml}: matrix.arch: 'vax' is unknown" in said


def test_lab_ci_writes_files(lab_toml: Path, tmp_path: Path) -> None:
    for service, names in (
        ("github", {"lab-nightly.yml"}),
        ("gitlab", {".gitlab-ci.yml"}),
        ("systemd", {"lab-nightly.service", "lab-nightly.timer"}),
    ):
        folder = tmp_path / service
        words = ("ci", service, "--at", "23:15", "--budget", "90m", "--output", folder)
        lab("--config", lab_toml, *words)
        assert {path.name for path in folder.iterdir()} == names
    service = (tmp_path / "systemd" / "lab-nightly.service").read_text()
    assert f"--config {lab_toml}" in service
    assert "nightly --budget 5400s" in service
    assert "is not a time" in lab("--config", lab_toml, "ci", "gitlab", "--at", "later", expect=2)


def test_lab_ci_warns_of_what_only_this_machine_has(lab_toml: Path) -> None:
    assert "warning" not in lab("--config", lab_toml, "ci", "github")
    lab_toml.write_text(
        '[matrix]\nseries = ["/home/me/series"]\nkernels = ["~/linux@v6.1"]\nsuites = ["boot"]\n'
    )
    for service in ("github", "gitlab"):
        said = lab("--config", lab_toml, "ci", service)
        for path in ("/home/me/series", "~/linux@v6.1"):
            assert said.count(f"warning: {path}: has to be there") == 1
    assert "warning" not in lab("--config", lab_toml, "ci", "systemd"), "that runs here"


def test_lab_nights_lists_shows_and_accepts(nights: Nights, lab_toml: Path) -> None:
    words = ("--config", lab_toml, "--runs", nights.runs, "nights")
    assert "no night yet" in lab(*words)
    nights.run(JOBS[:1])
    nights.rules({"fails": TRUNCATE})
    bad = nights.run(JOBS[:1])
    listed = lab(*words).splitlines()
    assert len(listed) == 3
    assert listed[1].startswith(bad.record.id)
    assert "regressed" in listed[1]
    shown = lab(*words, "latest", expect=1)
    assert TRUNCATE in shown
    assert (bad.folder / "report.html").exists()
    assert (nights.runs / "nights" / "latest" / "mail.eml").exists()
    lab(*words, bad.record.id, "--accept")
    assert "accepted" in lab(*words).splitlines()[1]
    assert json.loads(lab(*words, "--json"))[0]["start"]["id"] == bad.record.id
    assert "no night 1999" in lab(*words, "1999", expect=2)


@pytest.mark.parametrize(
    ("command", "warned"),
    [
        (("tee", "sent.eml"), ""),
        (("/no/such/mailer", "-t"), "/no/such/mailer is not installed"),
        (("sh", "-c", "exit 75"), "ended with status 75"),
    ],
)
def test_a_mail_that_cannot_be_sent_is_told_of(
    nights: Nights,
    command: tuple[str, ...],
    warned: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    night = nights.run(JOBS[:1])
    told = Config(
        paths=Paths(runs=str(nights.runs)),
        nightly=Nightly(mail_to=("a@x.org",), mail_command=command),
    )
    context = Context(config=told, out=Console(), quiet=True)
    cli_nightly._write(context, night)
    said: list[Event] = []
    cli_nightly._send(context, night, said.append)
    assert warned in "".join(event.text for event in said)
    assert bool(said) == bool(warned)
    if not warned:
        assert (tmp_path / "sent.eml").read_bytes() == (night.folder / "mail.eml").read_bytes()
