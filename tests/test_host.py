"""The door to processes: what they say, how they end, and that they do end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lab import host
from lab.host import CommandFailed
from lab.model import LabFault, UserError

pytestmark = pytest.mark.fake


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("leash", [False, True])
def test_a_command_and_what_it_says(leash: bool, tmp_path: Path) -> None:
    done = host.run(
        ["sh", "-c", "cat; pwd; echo $ONE; echo err >&2; exit 3"],
        stdin=b"in\n",
        cwd=tmp_path,
        env={"ONE": "1"},
        check=False,
        leash=leash,
    )
    assert done.status == 3
    assert done.text == f"in\n{tmp_path}\n1\n"
    assert done.stderr == b"err\n"
    assert done.complaint == "err"
    assert Path(done.argv[0]).is_absolute()


@pytest.mark.parametrize("leash", [False, True])
def test_a_status_that_nobody_expected(leash: bool) -> None:
    with pytest.raises(CommandFailed, match="ended with status 7") as caught:
        host.run(["sh", "-c", "echo because; exit 7"], leash=leash)
    assert "because" in caught.value.message
    assert caught.value.completed.status == 7


@pytest.mark.parametrize("leash", [False, True])
def test_a_signal_is_128_plus_its_number(leash: bool) -> None:
    assert host.run(["sh", "-c", "kill -SEGV $$"], check=False, leash=leash).status == 139


@pytest.mark.parametrize("leash", [False, True])
def test_lines_come_while_it_runs(leash: bool) -> None:
    seen: list[tuple[float, str]] = []
    started = time.monotonic()
    done = host.run(
        ["sh", "-c", "echo one; echo two >&2; sleep 1; printf three"],
        leash=leash,
        on_line=lambda line: seen.append((time.monotonic() - started, line)),
    )
    assert [line for _, line in seen] == ["one", "two", "three"]
    assert seen[2][0] - seen[1][0] > 0.5
    assert done.stdout == b"one\ntwo\nthree"


def test_much_input_and_much_output_do_not_lock_up() -> None:
    much = os.urandom(3 << 20)
    assert host.run(["cat"], stdin=much, timeout_s=60).stdout == much
    assert host.run(["true"], stdin=much).status == 0


@pytest.mark.parametrize(
    "script",
    ["sleep 600", "sleep 600 & sleep 600", "trap '' TERM INT HUP; sleep 600; sleep 600"],
    ids=["child", "grandchild", "stubborn"],
)
@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("leash", [False, True])
def test_a_timeout_kills(script: str, leash: bool, lines: bool, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    on_line: Callable[[str], None] | None = (lambda line: None) if lines else None
    started = time.monotonic()
    with pytest.raises(LabFault, match="did not end within 1 s"):
        host.run(
            ["sh", "-c", f"echo $$ > {note}; sh -c 'echo $$ > {note}2; exec sleep 600' & {script}"],
            timeout_s=1,
            leash=leash,
            on_line=on_line,
        )
    assert time.monotonic() - started < 20
    for file in (note, tmp_path / "pid2"):
        pid = int(file.read_text())
        wait_until(lambda pid=pid: not alive(pid), f"{pid} runs on")  # type: ignore[misc]


def test_output_that_stays_open_does_not_outlast_the_leash() -> None:
    """A daemon that keeps stdout: without the leash the lab would wait for its end."""
    started = time.monotonic()
    done = host.run(["sh", "-c", "setsid sleep 600 & echo out"], leash=True, timeout_s=60)
    assert done.stdout == b"out\n"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("name", "hint"),
    [("qemu-system-x86_64", "qemu-system-x86"), ("b4", "pip install"), ("no-such", "lab doctor")],
)
def test_a_missing_tool_is_one_sentence_and_its_package(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if Path(f"/usr/sbin/{name}").exists():
        pytest.skip("there all the same")
    with pytest.raises(UserError, match=f"{name} is not installed") as caught:
        host.run([name])
    assert hint in caught.value.hint


def test_the_environment_is_a_list_of_what_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-k")
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    lines = host.run(["env"]).text.splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert not names & {"MAKEFLAGS", "GIT_DIR"}
    assert "LC_ALL=C.UTF-8" in lines


def test_every_command_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    host.run(["echo", "it's", "$x"], cwd=folder, env={"ONE": "1 2"})
    line = host.transcript[-1]
    assert host.run(["sh", "-c", line]).text == "it's $x\n"


# --- asyncio -----------------------------------------------------------------------------------


def spawned(argv: Sequence[str], body: Callable[[asyncio.subprocess.Process], None]) -> int:
    async def main() -> int:
        async with host.spawn(argv, stdout=asyncio.subprocess.PIPE) as process:
            assert process.stdout is not None
            first = await asyncio.wait_for(process.stdout.readline(), 20)
            pid = int(first)
            assert alive(pid)
            body(process)
        assert process.returncode is not None
        return pid

    return asyncio.run(main())


def test_what_is_spawned_is_dead_after_its_block() -> None:
    pid = spawned(["sh", "-c", "trap '' TERM; echo $$; sleep 600; sleep 600"], lambda process: None)
    assert not alive(pid)


def test_what_is_spawned_is_dead_after_an_error_and_a_cancel() -> None:
    pids: list[int] = []

    async def main(cancelled: bool) -> None:
        async with host.spawn(
            ["sh", "-c", "setsid sh -c 'echo $$; exec sleep 600' & wait"],
            stdout=asyncio.subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            pids.append(int(await asyncio.wait_for(process.stdout.readline(), 20)))
            if cancelled:
                await asyncio.sleep(600)
            raise RuntimeError

    async def cancel() -> None:
        task = asyncio.create_task(main(True))
        while len(pids) < 2:
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.raises(RuntimeError):
        asyncio.run(main(False))
    asyncio.run(asyncio.wait_for(cancel(), 40))
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid), f"{pid} runs on")  # type: ignore[misc]


def test_descriptors_keep_their_numbers() -> None:
    inner, ours = os.pipe()

    async def main() -> bytes:
        async with host.spawn(
            ["cat", f"/proc/self/fd/{inner}"], pass_fds=(inner,), stdout=asyncio.subprocess.PIPE
        ) as process:
            os.write(ours, b"through\n")
            os.close(ours)
            os.close(inner)
            assert process.stdout is not None
            return await asyncio.wait_for(process.stdout.read(), 20)

    assert asyncio.run(main()) == b"through\n"


def test_a_spawned_tool_that_is_missing() -> None:
    async def main() -> None:
        async with host.spawn(["no-such-tool"]):
            pass

    with pytest.raises(UserError, match="no-such-tool is not installed"):
        asyncio.run(main())


def test_what_is_spawned_can_be_asked_to_end() -> None:
    """It ends by itself, with a status of its own; its children go with it."""
    script = "trap 'echo asked; exit 7' TERM; sleep 600 & echo up; wait"

    async def play() -> tuple[bytes, int]:
        async with host.spawn(["sh", "-c", script], stdout=asyncio.subprocess.PIPE) as process:
            assert process.stdout is not None
            said = await process.stdout.readline()
            host.ask_to_end(process)
            said += await process.stdout.readline()
            return said, await process.wait()

    assert asyncio.run(play()) == (b"up\nasked\n", 7)
