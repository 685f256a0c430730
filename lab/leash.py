"""A process that keeps another on a leash: `python -ISE leash.py FD COMMAND...`

The other end of FD's pipe is held by the lab alone. When the lab dies, by whatever means, the
pipe closes, and everything that COMMAND started is killed, grandchildren that changed their
process group included: the leash is their sub-reaper. A byte in the pipe asks COMMAND alone to end
(SIGTERM). Exits with COMMAND's status, or 128 plus the signal that ended it. Standard library
only, imported by nobody: it must start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
EXIT_NOT_FOUND = 127


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _descendants(root: int) -> list[int]:
    """Process ids below `root`, from one pass over /proc."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs start-up time
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:  # noqa: PTH123
                # The command name may hold spaces and parentheses: cut at the last one.
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:
            continue
        parents[int(entry)] = int(fields[1])
    found: list[int] = []
    wave = {root}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave}
        found.extend(wave)
    return found


def _kill_below(root: int) -> None:
    """Kill until nothing is left: a fork may race with the first rounds."""
    while True:
        for pid in _descendants(root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def main(argv: list[str]) -> int:
    leash, command = int(argv[1]), argv[2:]
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(sig, signal.SIG_IGN)  # the lab decides when, through the pipe
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(leash)
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(sig, signal.SIG_DFL)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
            os._exit(EXIT_NOT_FOUND)
    child_fd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(leash, select.POLLIN | select.POLLHUP)
    poll.register(child_fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    while child_fd not in ready and os.read(leash, 1):
        signal.pidfd_send_signal(child_fd, signal.SIGTERM)
        ready = {fd for fd, _ in poll.poll()}
    if child_fd in ready:
        _, status = os.waitpid(child, 0)
        _kill_below(os.getpid())
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
    _kill_below(os.getpid())
    return 128 + signal.SIGKILL


if __name__ == "__main__":
    sys.exit(main(sys.argv))
