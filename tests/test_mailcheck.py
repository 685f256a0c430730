"""One patch as b4 hands it over: what it is compared with, and what b4 makes of the answer."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab import campaign, cli, host, mailcheck, tree
from lab.build import recipe
from lab.config import Config, Paths, Run
from lab.model import ExitCode, Outcome, RunRecord, Side, UserError
from lab.store import Cache
from lab.subject import Request
from tests import records
from tests.test_tree import commit, edit, git, repository

__all__ = ["repository"]


@pytest.fixture
def branch(repository: Path) -> Path:
    """Three commits on top of v6.1.7; two of them have the same subject."""
    for number, subject in enumerate(("mm: one", "mm: same", "mm: same"), 1):
        edit(repository / "mm/memory.c", **{f"n{15 * number}": f"changed {number}"})
        commit(repository, subject)
    return repository


def mail_of(where: Path, revision: str) -> bytes:
    return git(where, "format-patch", "-1", "--stdout", revision).encode() + b"\n"


def asked(mail: bytes, where: Path, config: Config | None = None) -> Request:
    cache = Paths(cache=str(where.parent / "cache"))
    chosen = config or Config(paths=cache)
    return mailcheck.request(mail, where, chosen, ("lab", "check"), lambda event: None)


# --- what it is compared with ------------------------------------------------------------------


@pytest.mark.fake
@pytest.mark.parametrize(("patch", "base"), [("HEAD", "HEAD^"), ("HEAD^", "HEAD^^")])
def test_a_commit_of_the_branch_is_compared_with_its_parent(
    branch: Path, patch: str, base: str
) -> None:
    """Of two commits of one subject the one with the same change."""
    found = asked(mail_of(branch, patch), branch / "mm")
    assert found.config.kernel == f"{branch}@{git(branch, 'rev-parse', base)}"
    assert found.series is not None
    (only,) = found.series.patches
    assert only.subject == "mm: same"
    assert found.config.suites == ("boot",)
    assert found.config.run.repeats == 1


@pytest.mark.fake
def test_the_kernel_with_a_patch_is_the_base_of_the_next(branch: Path) -> None:
    """Same tree, same time of building: the same kernel, whoever committed it when."""
    cache = Cache(root=branch.parent / "cache")
    made = []
    for patch in ("HEAD^", "HEAD"):
        found = asked(mail_of(branch, patch), branch)
        assert found.series is not None and found.source is not None
        base = found.source
        patched = tree.checkout(base, found.series.patches, cache=cache, emit=lambda event: None)
        times = recipe.stamp(base.git_dir, base.commit)
        made.append((base.tree, patched.tree, times))
        assert not base.provenance.startswith("git "), "it is a commit that nobody else has"
    assert made[0][1] == made[1][0], "the tree with the first is the base of the second"
    assert made[0][2] == made[1][2] == "Sat Jan  1 00:00:00 UTC 2000"


@pytest.mark.fake
def test_a_patch_that_is_not_there_is_tried_on_top(branch: Path) -> None:
    mail = mail_of(branch, "HEAD")
    git(branch, "reset", "--quiet", "--hard", "HEAD^")
    assert asked(mail, branch).config.kernel == f"{branch}@{git(branch, 'rev-parse', 'HEAD')}"


@pytest.mark.fake
def test_what_is_configured_stands(branch: Path, tmp_path: Path) -> None:
    config = Config(
        kernel="debian:6.12", suites=("faultstress",), run=Run(repeats=4, max_repeats=9)
    )
    found = asked(mail_of(branch, "HEAD"), branch, config)
    assert found.config.kernel == "debian:6.12"
    assert found.config.suites == ("faultstress",)
    assert found.config.run == Run(repeats=1, max_repeats=9)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    there = asked(mail_of(branch, "HEAD"), elsewhere)
    assert (there.config.kernel, there.source) == ("", None), "the lab's default"


@pytest.mark.parametrize(
    ("mail", "said"),
    [
        (b"", "no mail"),
        (b" \n", "no mail"),
        (b"Subject: hello\n\nno diff\n", "no diff"),
        (b"x" * (9 << 20), "is no patch"),
    ],
)
def test_what_is_no_patch(tmp_path: Path, mail: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        asked(mail, tmp_path)


@pytest.mark.fake
def test_a_mailbox_is_refused(branch: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 mails where one is checked"):
        asked(mail_of(branch, "HEAD") + b"\n" + mail_of(branch, "HEAD^"), tmp_path)


# --- what b4 makes of it -----------------------------------------------------------------------


def flags(told: tuple[str, ...]) -> set[str]:
    """As b4 reads lines of standard output."""
    return {"fail" if "ERROR:" in line else "warning" for line in told}


@pytest.mark.parametrize("story", records.STORIES)
def test_only_a_clean_patch_is_silent(story: str) -> None:
    record = records.STORIES[story]()
    told = mailcheck.lines(record)
    match record.verdict.outcome:
        case Outcome.CLEAN:
            assert told == ()
        case Outcome.REGRESSED:
            assert "fail" in flags(told)
        case Outcome.INCONCLUSIVE | Outcome.LAB_FAULT:
            assert flags(told) == {"warning"}
            assert all(line.startswith("inconclusive: ") for line in told)
    assert all(record.manifest.run in line for line in told), "where to read on"


def test_a_build_failure_and_a_warning() -> None:
    (line,) = mailcheck.lines(records.unbuildable())
    assert line.startswith("ERROR: does not build: mm/memory.c:4127: implicit declaration")
    warned = records.kernel(Side.PATCHED, warnings=(records.UNUSED,))
    record = records.run(records.well, records.well, kernels=(records.kernel(Side.BASE), warned))
    (line,) = mailcheck.lines(record)
    assert line.startswith("WARNING: mm/filemap.c:3119: unused variable")
    assert flags((line,)) == {"warning"}


def test_a_guest_raises_no_error_and_no_line() -> None:
    record = records.suspicious()
    verdict = replace(record.verdict, reasons=("a\nERROR: b\x1b[31m",))
    (line,) = mailcheck.lines(replace(record, verdict=verdict))
    assert flags((line,)) == {"warning"}
    assert "\n" not in line and "\x1b" not in line


# --- the command, as a program that b4 starts --------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Request]:
    """`lab check` where a run has this outcome; its requests."""
    seen: list[Request] = []

    async def run(request: Request, _emit: object) -> tuple[RunRecord, Path]:
        seen.append(request)
        assert request.series is not None
        broken = "broken" in request.series.patches[0].subject
        return (records.unbuildable() if broken else records.clean()), tmp_path

    monkeypatch.setattr(campaign, "run", run)
    return seen


@pytest.mark.fake
def test_the_command(
    branch: Path,
    tmp_path: Path,
    ran: list[Request],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(branch)

    def check(mail: bytes, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(mail)))
        status = cli.entry(
            ["--cache", str(tmp_path / "cache"), "check", "--arch", "x86_64", *words]
        )
        return status, *capsys.readouterr()

    assert check(mail_of(branch, "HEAD")) == (ExitCode.CLEAN, "", "")
    assert ran[0].config.arch == ("x86_64",)
    edit(branch / "mm/memory.c", n3="broken")
    commit(branch, "mm: broken")
    status, out, err = check(mail_of(branch, "HEAD"))
    assert (status, err) == (ExitCode.REGRESSED, "")
    assert out.startswith("ERROR: does not build")
    status, out, err = check(b"")
    assert (status, out) == (ExitCode.USAGE, "")
    assert "no mail" in err, "a failure to b4, too"


@pytest.mark.fake
def test_b4_itself_reads_what_is_printed(branch: Path, tmp_path: Path) -> None:
    """Real b4 starts a command that prints what `lab check` would, for each commit of a branch."""
    b4 = Path(sys.executable).with_name("b4")
    if not b4.exists():
        pytest.skip("b4 is not installed: pip install 'kernel-patch-lab[lore]'")
    env = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_COLOR": "1"}
    (tmp_path / ".gitconfig").write_text("[user]\nname = a\nemail = a@example.org\n")
    host.run([b4, "--no-interactive", "prep", "-n", "topic", "-f", "v6.1.7"], cwd=branch, env=env)
    edit(branch / "mm/memory.c", n5="five")
    # b4 looks for its own commit among those of the last year.
    git_now = ("git", "-C", branch, "commit", "--quiet", "-a", "-m", "mm: five")
    host.run(git_now, env=env)
    for story, wanted in (
        ("clean", "Success: 1, Warning: 0, Error: 0"),
        ("unbuildable", "Success: 0, Warning: 0, Error: 1"),
        ("suspicious", "Success: 0, Warning: 1, Error: 0"),
    ):
        told = "".join(f"{line}\n" for line in mailcheck.lines(records.STORIES[story]()))
        program = tmp_path / f"say-{story}"
        program.write_text(f"#!/bin/sh\ncat > {tmp_path}/mail\ncat <<'END'\n{told}END\n")
        program.chmod(0o755)
        git(branch, "config", "b4.prep-perpatch-check-cmd", str(program))
        words = ("--no-interactive", "prep", "--check")
        done = host.run([b4, *words], cwd=branch, env=env, check=False)
        assert wanted in done.text + done.stderr.decode(), story
    found = asked((tmp_path / "mail").read_bytes(), branch)
    assert found.config.kernel == f"{branch}@{git(branch, 'rev-parse', 'HEAD^')}", "its own mail"
