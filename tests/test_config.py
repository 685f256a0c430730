"""lab.toml: what it takes, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import config
from lab.model import UserError

ROOT = Path(__file__).parent.parent


def test_empty_file_gives_the_defaults() -> None:
    assert config.parse("", file="lab.toml") == config.Config()


def test_the_projects_own_file_states_the_defaults() -> None:
    assert config.load(ROOT / "lab.toml") == config.Config()


def test_values_arrive() -> None:
    got = config.parse('arch = ["arm64"]\n[machine]\nmemory = "2G"\ncpus = 4\n', file="lab.toml")
    assert got.arch == ("arm64",)
    assert got.machine.memory_bytes == 2 << 30
    assert got.machine.cpus == 4


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("kernle = 'x'", "lab.toml: unknown key kernle", "did you mean kernel?"),
        ("[machine]\nmemroy = '1G'", "unknown key machine.memroy", "did you mean machine.memory?"),
        ("[splats]\nalow = []", "unknown key splats.alow", "did you mean splats.allow?"),
        ("[machine]\nzzz = 1", "unknown key machine.zzz", "known:"),
        ("machine = 3", "machine is a table", "[machine]"),
        ("[machine]\ncpus = 'two'", "machine.cpus: Expected `int`", ""),
        ("[machine]\ncpus = 0", "machine.cpus: 0 is below 1", ""),
        ("[machine]\nparallel = -1", "machine.parallel: -1 is below 0", ""),
        ("arch = []", "arch: none is listed", "x86_64"),
        ("[machine]\nmemory = 'lots'", "'lots' is not a size", "512M"),
        ("[machine]\naccel = 'warp'", "machine.accel: 'warp'", "kvm"),
        ("[run]\nrepeats = 17", "run.max_repeats: 16 is below 17", ""),
        ("= 3", "lab.toml: Invalid", ""),
        ("[nightly]\nbudget = 'soon'", "lab.toml: nightly.budget: 'soon'", "30m"),
        ('[nightly]\nmail_to = ["a@b\\nBcc: c@d"]', "nightly.mail_to", ""),
        ("[nightly]\nmail_from = 'me'", "nightly.mail_from: 'me' is not an address", ""),
        ("[nightly]\nmail_to = ['a@b']\nmail_command = []", "nightly.mail_command", "sendmail"),
    ],
)
def test_refusals_name_file_and_key(text: str, said: str, hint: str) -> None:
    with pytest.raises(UserError) as refusal:
        config.parse(text, file="lab.toml")
    assert said in refusal.value.message
    assert hint in refusal.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing\\.toml: No such file"):
        config.load(tmp_path / "nothing.toml")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30m", 1800), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert config.duration_s(text, where="--budget") == seconds


def test_a_bad_duration_names_its_place() -> None:
    with pytest.raises(UserError, match="--budget: 'soon'"):
        config.duration_s("soon", where="--budget")
