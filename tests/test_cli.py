"""The command line as a real process: exit codes, one message, a way out."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab import cli
from lab.model import ExitCode, LabFault, UserError
from tests.conftest import ROOT, SERIES, MakeLab

pytestmark = pytest.mark.fake


def lab(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lab")
    return subprocess.run(
        [program, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_help_is_the_manual() -> None:
    done = lab("--help")
    assert done.returncode == 0
    for command in ("run", "build", "boot", "image", "splats", "report", "doctor", "clean"):
        assert command in done.stdout
    assert "4 inconclusive" in done.stdout


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["run"], "Missing option '--patch'", ""),
        (["run", "--patch", "/no/such/series"], "/no/such/series", "hint:"),
        (["frobnicate"], "No such command", ""),
        (["run", "--patch", "x", "--duration", "soon"], "--duration: 'soon'", "30m"),
        (["image", "build", "--arch", "vax"], "unknown architecture 'vax'", "x86_64"),
        # What follows the guest's command is the command's.
        (["boot", "--arch", "vax", "uname", "-a"], "unknown architecture 'vax'", "x86_64"),
        (["splats", "/no/such/log"], "/no/such/log", ""),
        (["--config", "/no/such.toml", "suites"], "/no/such.toml", ""),
    ],
)
def test_a_bad_request_is_exit_2_and_no_traceback(args: list[str], said: str, hint: str) -> None:
    done = lab("-q", *args)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert said in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_key_names_file_and_key(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text("[machine]\ncpsu = 4\n")
    done = lab("--config", config, "suites")
    assert done.returncode == ExitCode.USAGE
    assert f"{config}: unknown key machine.cpsu" in done.stderr
    assert "did you mean machine.cpus?" in done.stderr


def test_an_empty_series(tmp_path: Path) -> None:
    done = lab("run", "--patch", tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("mm/truncate.c", "../../etc/passwd", "../../etc/passwd"),
        ("100644", "120000", "symbolic link"),
    ],
)
def test_a_hostile_patch_is_refused_before_anything_is_built(
    tmp_path: Path, make_lab: MakeLab, old: str, new: str, reason: str
) -> None:
    (good,) = (SERIES / "warns").iterdir()
    (tmp_path / "series").mkdir()
    bad = tmp_path / "series" / "0001-bad.patch"
    bad.write_text(good.read_text().replace(old, new))
    runner = make_lab(f'[paths]\ncache = "{tmp_path / "cache"}"\n')
    done = runner("run", "--patch", bad.parent)
    assert done.returncode == ExitCode.USAGE
    assert "0001-bad.patch" in done.stderr
    assert reason in done.stderr
    assert not (tmp_path / "cache" / "builds").exists()


def path_without(name: str, tmp_path: Path) -> str:
    """A PATH with everything on it but one program."""
    farm = tmp_path / "bin"
    farm.mkdir()
    for folder in (*os.environ["PATH"].split(":"), "/usr/sbin", "/sbin"):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            if program.name != name and not (farm / program.name).exists():
                (farm / program.name).symlink_to(program)
    return str(farm)


def test_doctor_names_what_is_missing_and_its_package(tmp_path: Path) -> None:
    env = {"PATH": path_without("qemu-system-x86_64", tmp_path)}
    done = lab("doctor", "--no-boot", "--arch", "x86_64", env=env)
    assert done.returncode == ExitCode.USAGE
    assert "qemu-system-x86_64" in done.stdout
    assert "apt-get install qemu-system-x86" in done.stdout
    names = lab("doctor", "--packages", "--arch", "x86_64", env=env)
    assert "qemu-system-x86" in names.stdout.split()


def test_a_missing_qemu_is_told_before_anything_is_done(tmp_path: Path) -> None:
    env = {"PATH": path_without("qemu-system-x86_64", tmp_path)}
    cache = tmp_path / "cache"
    done = lab("--cache", cache, "run", "--patch", SERIES / "warns", env=env)
    assert done.returncode == ExitCode.USAGE
    assert "x86_64 needs what is not installed: qemu-system-x86_64" in done.stderr
    assert "sudo apt-get install qemu-system-x86" in done.stderr
    assert "apt-get install qemu-system-x86" in done.stderr
    assert not (cache / "sources").exists()


@pytest.mark.skipif(platform.machine() == "aarch64", reason="arm64 is no foreign architecture here")
def test_a_missing_cross_compiler_is_told_before_anything_is_done(tmp_path: Path) -> None:
    env = {"PATH": path_without("aarch64-linux-gnu-gcc", tmp_path)}
    cache = tmp_path / "cache"
    done = lab("--cache", cache, "run", "--patch", SERIES / "warns", env=env)
    assert done.returncode == ExitCode.USAGE
    assert "arm64 needs what is not installed: aarch64-linux-gnu-gcc" in done.stderr
    assert "sudo apt-get install gcc-aarch64-linux-gnu" in done.stderr
    assert "--arch x86_64" in done.stderr
    assert not (cache / "sources").exists()


def test_an_empty_machine_gets_the_whole_list(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    names = lab("-q", "doctor", "--packages", env={"PATH": str(tmp_path / "bin")}).stdout.split()
    wanted = {"gcc", "make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "libc6-dev"}
    wanted |= {"qemu-system-x86", "qemu-utils", "mmdebstrap", "ccache", "bubblewrap", "git"}
    assert wanted <= set(names)


def test_doctor_as_json() -> None:
    checks = json.loads(lab("doctor", "--no-boot", "--json").stdout)
    assert {"name", "health", "found", "hint"} <= set(checks[0])
    assert any(check["name"] == "sandbox" for check in checks)


@pytest.mark.parametrize("many", [False, True])
def test_splats_of_a_log(tmp_path: Path, many: bool) -> None:
    log = tmp_path / "console.log"
    log.write_text("[    1.0] Kernel panic - not syncing: planted\n")
    files = [log, tmp_path / "other.log"] if many else [log]
    shutil.copy(log, tmp_path / "other.log")
    done = lab("splats", "--json", *files)
    assert done.returncode == ExitCode.REGRESSED
    found = json.loads(done.stdout)
    (splat,) = found[str(log)] if many else found
    assert splat["kind"] == "panic"
    assert splat["first_line"] == 1


def test_splats_of_a_clean_log_is_exit_0(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("[    0.0] Linux version 6.1.0\n")
    assert lab("splats", log).returncode == ExitCode.CLEAN


def test_a_taint_without_a_report_is_hinted(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("[    1.0] CPU: 0 PID: 1 Comm: x Tainted: G        W          6.1.0 #1\n")
    done = lab("splats", log)
    assert done.returncode == ExitCode.CLEAN
    assert "tainted (W: the kernel issued a warning) without a report" in done.stderr


def test_splats_with_a_kernel_that_cannot_be_read(tmp_path: Path) -> None:
    log, vmlinux = tmp_path / "console.log", tmp_path / "vmlinux"
    log.write_text("[    1.0] WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2\n")
    vmlinux.write_text("no kernel")
    done = lab("splats", log, "--vmlinux", vmlinux)
    assert done.returncode == ExitCode.USAGE
    assert "not a little-endian 64-bit ELF file" in done.stderr and "hint:" in done.stderr
    done = lab("splats", log, "--modules", tmp_path)
    assert done.returncode == ExitCode.USAGE and "--modules needs --vmlinux" in done.stderr


def test_no_run_to_report(make_lab: MakeLab) -> None:
    done = make_lab()("report")
    assert done.returncode == ExitCode.USAGE
    assert "no finished run" in done.stderr
    done = make_lab()("report", "2020")
    assert "no run 2020" in done.stderr


def test_clean_touches_only_what_the_lab_made(tmp_path: Path) -> None:
    mine = tmp_path / "precious.c"
    mine.write_text("int main(void) {}\n")
    for folder in ("builds/abc", "images/x", "src"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_text("x" * 5000)
    dry = lab("--cache", tmp_path, "clean", "--all", "--dry-run", "--json")
    assert set(json.loads(dry.stdout)) == {str(tmp_path / "builds/abc"), str(tmp_path / "images/x")}
    assert (tmp_path / "builds/abc/file").exists()
    assert lab("--cache", tmp_path, "clean").returncode == 0
    assert (tmp_path / "builds/abc/file").exists(), "used just now: kept without --all"
    assert lab("--cache", tmp_path, "clean", "--all").returncode == 0
    assert not (tmp_path / "builds/abc").exists()
    assert mine.exists()
    assert (tmp_path / "src/file").exists()


def test_a_group_of_failures_tells_the_lab_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    group = BaseExceptionGroup("", [ValueError("noise"), UserError("ours", hint="out")])
    assert cli.explain_group(group) == ExitCode.USAGE
    assert capsys.readouterr().err == "lab: ours\nhint: out\n"
    assert cli.explain_group(BaseExceptionGroup("", [LabFault("broke")])) == ExitCode.LAB_FAULT


def test_the_readme_opens_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    block = text.split("```")[1]
    assert [line.split("#")[0].strip() for line in block.strip().splitlines()] == [
        "make run",
        "make test",
    ]


def test_a_bug_of_the_lab_is_not_a_regression(capsys: pytest.CaptureFixture[str]) -> None:
    group = BaseExceptionGroup("", [KeyError("who")])
    assert cli.explain_group(group) == ExitCode.LAB_FAULT
    said = capsys.readouterr().err
    assert "Traceback" in said or "KeyError" in said
    assert "lab: a bug of the lab: KeyError" in said


def test_a_bug_in_a_command_ends_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_args: object, **_named: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("lab.cli.upkeep.doctor.examine", broken)
    assert cli.entry(["doctor", "--no-boot"]) == ExitCode.LAB_FAULT
    said = capsys.readouterr().err
    assert "broken" in said
    assert "hint: " in said


def test_suites_lists_the_cases_of_one() -> None:
    rows = json.loads(lab("suites", "faultinject", "--json").stdout)
    found = {row["name"]: row for row in rows}
    row = found["faultinject/failslab/ext4"]
    assert "FAILSLAB" in row["needs"] and row["profiles"] == ["faultinject"] and row["planned"]
    assert "lockdep" in found["faultinject/dm-error/xfs"]["profiles"]
    stress = {row["name"]: row for row in json.loads(lab("suites", "faultstress", "--json").stdout)}
    assert stress["faultstress/ext4/munmap"]["planned"]
    assert not stress["faultstress/btrfs/freeze"]["planned"]
    shown = lab("suites", "stress-ng").stdout
    assert "stress-ng/ext4/userfaultfd" in shown and "resolves" in shown
    assert "xfstests:fault" in lab("suites", "xfstests").stdout
    unknown = lab("suites", "shoes")
    assert unknown.returncode == ExitCode.USAGE and "known:" in unknown.stderr
