"""Workflows of `lab ci`: what their services' own schemas and systemd say of them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lab import workflow
from lab.matrix import Job
from lab.model import UserError
from lab.workflow import Night

NIGHT = Night(at="22:05", budget_s=8 * 3600)


def job(**changes: str) -> Job:
    values = {
        "kernel": "debian:6.1",
        "series": "patches/srcu-vma",
        "arch": "x86_64",
        "profile": "lockdep",
        "filesystem": "ext4",
        "suite": "boot,faultstress",
    }
    return Job(**{**values, **changes})


# Names that are something else to YAML, to a shell, or to the service's own expressions.
ODD = (
    job(),
    job(arch="arm64", kernel="", filesystem=""),
    job(series="a: b # c"),
    job(series='it\'s $(reboot) `reboot` "q"'),
    job(series="${{ secrets.TOKEN }}"),
    job(series="- *anchor\nsecond: line"),
    job(series="ünïcode\x07"),
)


def parsed(text: str) -> Any:
    return YAML(typ="safe").load(text)


def valid(text: str, schema: str, tmp_path: Path) -> None:
    file = tmp_path / "workflow.yml"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, file],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.fake
@pytest.mark.parametrize("jobs", [ODD[:1], ODD])
@pytest.mark.parametrize("runner", ["", "kvm"])
def test_the_services_take_their_workflows(
    jobs: tuple[Job, ...], runner: str, tmp_path: Path
) -> None:
    night = Night(at="00:00", budget_s=None, runner=runner)
    valid(workflow.github(jobs, night), "vendor.github-workflows", tmp_path)
    valid(workflow.gitlab(jobs, night), "vendor.gitlab-ci", tmp_path)


@pytest.mark.fake
def test_the_schema_would_say_so_if_it_were_none(tmp_path: Path) -> None:
    broken = workflow.github(ODD, NIGHT).replace("runs-on:", "run-on:")
    with pytest.raises(AssertionError, match="run-on"):
        valid(broken, "vendor.github-workflows", tmp_path)
    broken = workflow.gitlab(ODD, NIGHT).replace("script:", "skript:")
    with pytest.raises(AssertionError, match="skript"):
        valid(broken, "vendor.gitlab-ci", tmp_path)


def test_github_runs_every_job_with_its_own_words() -> None:
    night = parsed(workflow.github(ODD, NIGHT))
    assert night["on"]["schedule"] == [{"cron": "5 22 * * *"}]
    legs = night["jobs"]["run"]["strategy"]["matrix"]["include"]
    assert len({leg["key"] for leg in legs}) == len(ODD)
    for leg, one in zip(legs, ODD, strict=True):
        if "${{" in one.series:
            assert "${{" not in leg["name"] + leg["words"]
        else:
            assert shlex.split(leg["words"]) == list(one.words)
            assert leg["name"] == one.name


@pytest.mark.fake
def test_githubs_step_hands_the_words_on_as_they_are(tmp_path: Path) -> None:
    """The step's script itself, in the shell that GitHub uses, with a lab that tells its words."""
    night = parsed(workflow.github(ODD, NIGHT))
    (step,) = [step for step in night["jobs"]["run"]["steps"] if "env" in step]
    fake = tmp_path / ".venv" / "bin" / "lab"
    fake.parent.mkdir(parents=True)
    fake.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    fake.chmod(0o755)
    for leg, one in zip(night["jobs"]["run"]["strategy"]["matrix"]["include"], ODD, strict=True):
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "WORDS": leg["words"]},
            capture_output=True,
            check=True,
            timeout=60,
        )
        expected = [word.replace("${{", "$ {{") for word in one.words]
        assert json.loads(done.stdout) == ["--runs", "runs", *expected]


def test_gitlab_runs_every_job_with_its_own_words() -> None:
    pipeline = parsed(workflow.gitlab(ODD, NIGHT))
    for one in ODD:
        (line,) = pipeline[one.name]["script"]
        head = [".venv/bin/lab", "--cache", "$LAB_CACHE", "--runs", "runs"]
        assert shlex.split(line) == [*head, *one.words]
        assert pipeline[one.name]["extends"] == ".lab"


def test_more_than_github_takes_is_refused() -> None:
    with pytest.raises(UserError, match="257 jobs: GitHub takes 256"):
        workflow.github([job(series=str(number)) for number in range(257)], NIGHT)


@pytest.mark.parametrize("at", ["24:00", "7:00", "22", "22:60", "22:00; reboot"])
def test_a_time_that_is_none(at: str) -> None:
    with pytest.raises(UserError, match="--at"):
        Night(at=at, budget_s=None)


@pytest.mark.fake
def test_systemd_takes_the_service_and_its_timer(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "bin with space" / "lab"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    odd = tmp_path / 'runs 50% of "$HOME"'
    units = workflow.systemd(NIGHT, program=program, options=("--runs", odd), folder=tmp_path)
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(tmp_path / name for name in units)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "lab-nightly" not in said, said
    assert f'"{tmp_path}/runs 50%% of \\"$$HOME\\""' in units["lab-nightly.service"]
    assert "--budget 28800s" in units["lab-nightly.service"]
    assert "OnCalendar=*-*-* 22:05:00 UTC" in units["lab-nightly.timer"]
