"""The only door to processes: an argv goes in, a `Completed` or a live process comes out.

No shell, no chdir of the lab itself, an environment from an allow-list, and every command kept in
`transcript` so that it can be pasted. What is started with `leash=True` or `spawn` dies with the
lab, however the lab dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.arch import ARCHS
from lab.model import LabFault, UserError

_LEASH = Path(__file__).with_name("leash.py")
_ENV_ALLOWED = (
    "HOME",
    "LANG",
    "LOGNAME",
    "PATH",
    "SSH_AUTH_SOCK",
    "TERM",
    "TMPDIR",
    "USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)

# Which Debian package brings a tool that the lab may call, or a file that it needs.
PACKAGES: dict[str, str] = {
    "apt-get": "apt",
    "arch-test": "arch-test",
    "bc": "bc",
    "bison": "bison",
    "bwrap": "bubblewrap",
    "ccache": "ccache",
    "cpio": "cpio",
    "debugfs": "e2fsprogs",
    "dot": "graphviz",
    "dpkg-deb": "dpkg",
    "fakeroot": "fakeroot",
    "flex": "flex",
    "gcc": "gcc",
    "gcov": "gcc",
    "git": "git",
    "ld": "binutils",
    "make": "make",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "nm": "binutils",
    "perl": "perl",
    "qemu-img": "qemu-utils",
    "rsync": "rsync",
    "tar": "tar",
    "unshare": "util-linux",
    "xz": "xz-utils",
    **{name: package for row in ARCHS.values() for name, package in row.packages.items()},
}
# Tools that do not come from Debian, and where they do come from.
_ELSEWHERE = {"b4": "pip install 'kernel-patch-lab[lore]'"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that ended by itself. `status` is 128 plus the signal if one ended it."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    duration_s: float

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "surrogateescape")

    @property
    def complaint(self) -> str:
        """The last lines that it said, for an error message."""
        said = (self.stderr or self.stdout).decode("utf-8", "replace").strip()
        return "\n".join(said.splitlines()[-12:])


class CommandFailed(LabFault):
    """A command of the lab's own ended with a status that its caller did not expect."""

    def __init__(self, completed: Completed) -> None:
        super().__init__(
            f"{shlex.join(completed.argv)[:400]} ended with status {completed.status}:\n"
            f"{completed.complaint}"
        )
        self.completed = completed


transcript: list[str] = []
_leashes: set[int] = set()  # our ends of the pipes that keep children alive
_spawned: dict[int, int] = {}  # of `spawn`: process id -> our end of its leash
_lock = threading.RLock()  # a signal handler may find its own thread holding it
_aborted = threading.Event()


def abort() -> None:
    """End everything on a leash, in any thread, and let nothing new start: the lab is leaving."""
    _aborted.set()
    with _lock:
        for fd in tuple(_leashes):
            # The number stays ours until its owner closes it; only the pipe behind it goes.
            os.dup2(_null(), fd, inheritable=False)


def _null() -> int:
    """A descriptor of /dev/null, opened once."""
    global _null_fd
    if _null_fd < 0:
        _null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return _null_fd


_null_fd = -1


def _find(name: str) -> str | None:
    path = shutil.which(name)
    if path is None and not name.startswith("/"):
        # Debian keeps mke2fs and its like out of a plain user's PATH.
        path = shutil.which(name, path="/usr/sbin:/sbin")
    return path


def installed(name: str) -> bool:
    """Whether a tool, or a file by its full path, is on this machine."""
    return Path(name).exists() if name.startswith("/") else _find(name) is not None


def tool(name: str) -> str:
    """The full path of a tool. Raises `UserError` that names the package it comes in."""
    path = _find(name)
    if path is not None:
        return path
    if name in _ELSEWHERE:
        hint = _ELSEWHERE[name]
    elif name in PACKAGES:
        hint = f"sudo apt-get install {PACKAGES[name]}   (lab doctor lists everything missing)"
    else:
        hint = "lab doctor lists everything missing"
    raise UserError(f"{name} is not installed", hint=hint)


def version(name: str) -> str:
    """The first line of a program's --version. Raises `UserError` if it is not installed."""
    return run([name, "--version"], timeout_s=30).text.splitlines()[0]


def identity() -> str:
    """This machine, its CPU and its kernel: what guests may do changes with any of them."""
    machine_id = Path("/etc/machine-id")
    known = machine_id.read_text().strip() if machine_id.exists() else platform.node()
    cpuinfo = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"^(?:model name|CPU part)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return f"{known} {cpu.group(1) if cpu else ''} {platform.release()}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every child: the allow-list, C.UTF-8, and `extra`."""
    kept = {name: os.environ[name] for name in _ENV_ALLOWED if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", **(extra or {})}


def _log(argv: Sequence[str], cwd: Path | None, extra: Mapping[str, str] | None) -> None:
    prefix = f"cd {shlex.quote(str(cwd))} && " if cwd else ""
    assigned = "".join(f"{name}={shlex.quote(value)} " for name, value in (extra or {}).items())
    transcript.append(prefix + assigned + shlex.join(argv))


@contextlib.contextmanager
def _leashed(argv: Sequence[str]) -> Iterator[tuple[list[str], int, int]]:
    """The argv behind the leash, the descriptor to hand down, and ours: the pipe between them
    lives as long as we do."""
    if _aborted.is_set():
        raise LabFault("interrupted")
    inner, ours = os.pipe()
    with _lock:
        _leashes.add(ours)
    try:
        yield [sys.executable, "-ISE", str(_LEASH), str(inner), *argv], inner, ours
    finally:
        with _lock:
            _leashes.discard(ours)
            os.close(ours)
        os.close(inner)


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout_s: float = 120.0,
    check: bool = True,
    leash: bool = False,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run to the end and return what it said.

    `on_line` gets each line of stdout and stderr together as it comes (stderr is then merged
    into stdout). Raises `UserError` for a missing tool, `CommandFailed` for a non-zero status if
    `check`, `LabFault` if `timeout_s` passes; in every case nothing of it runs on.
    """
    words = [tool(str(argv[0])), *(str(word) for word in argv[1:])]
    _log(words, cwd, env)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        command, fd, _ = stack.enter_context(_leashed(words)) if leash else (words, None, None)
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if on_line else subprocess.PIPE,
            pass_fds=(fd,) if fd is not None else (),
            start_new_session=True,
        )
        try:
            if on_line is None:
                out, err = process.communicate(stdin, timeout=timeout_s)
            else:
                out, err = _stream(process, stdin, on_line, started + timeout_s), b""
        except subprocess.TimeoutExpired as expired:
            raise LabFault(
                f"{shlex.join(words)[:400]} did not end within {timeout_s:.0f} s"
            ) from expired
        finally:
            stack.close()  # closes the leash's pipe: everything below it dies
            if process.poll() is None:
                if not leash:
                    # It leads a session of its own: its children go with it.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    done = Completed(
        argv=tuple(words),
        status=status,
        stdout=out,
        stderr=err,
        duration_s=time.monotonic() - started,
    )
    if check and status != 0:
        raise CommandFailed(done)
    return done


def _stream(
    process: subprocess.Popen[bytes], stdin: bytes, on_line: Callable[[str], None], deadline: float
) -> bytes:
    """Feed stdout to `on_line` until its end or `deadline` (monotonic)."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(stdin)
        process.stdin.close()
    kept: list[bytes] = []
    pending = b""
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise subprocess.TimeoutExpired(process.args, 0)
        if not poll.poll(left * 1000):
            continue
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        kept.append(chunk)
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            on_line(line.decode("utf-8", "replace"))
    if pending:
        on_line(pending.decode("utf-8", "replace"))
    process.wait(max(0.1, deadline - time.monotonic()))
    return b"".join(kept)


def interactive(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> int:
    """Run on our own terminal until the user ends it; its exit status. On the leash.

    Keys that interrupt go to it alone. Raises `UserError` for a missing tool.
    """
    words = [tool(str(argv[0])), *(str(word) for word in argv[1:])]
    _log(words, None, env)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _leashed(words) as (command, fd, _):
            status = subprocess.run(
                command, env=environment(env), pass_fds=(fd,), check=False
            ).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status


def ask_to_end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM for what `spawn` started, which may then take its own children down in order.

    Does nothing if it is already ending.
    """
    with contextlib.suppress(KeyError, BrokenPipeError):
        os.write(_spawned[process.pid], b".")


@contextlib.asynccontextmanager
async def spawn(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdout: int | None = asyncio.subprocess.DEVNULL,
    stderr: int | None = asyncio.subprocess.DEVNULL,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A leashed process that lives inside the `async with` block and is dead after it.

    `pass_fds` keep their numbers in the child. Raises `UserError` for a missing tool.
    """
    words = [tool(str(argv[0])), *(str(word) for word in argv[1:])]
    _log(words, cwd, env)
    with contextlib.ExitStack() as stack:
        command, fd, ours = stack.enter_context(_leashed(words))
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=environment(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(fd, *pass_fds),
            start_new_session=True,
        )
        _spawned[process.pid] = ours
        try:
            yield process
        finally:
            del _spawned[process.pid]
            stack.close()
            await asyncio.shield(process.wait())
