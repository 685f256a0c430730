"""Hosts under `[hosts]` go in; how ready each is to run cells comes out, over ssh.

`check` looks; `setup` also brings this lab there, and the packages that it needs. A host whose key
ssh does not know is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shlex
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lab
from lab import model
from lab.config import Host
from lab.doctor import Check, Health
from lab.fleet.artefact import HINT
from lab.model import Emit, Event, EventKind, LabFault, UserError

ROOT: Final = Path(__file__).parent.parent
_PARTS = ("lab", "images", "kconfigs", "patches", "pyproject.toml", "README.md")
_CONNECT_S = 15
_LOOK_S = 60.0
_INSTALL_S = 1800.0
_AT_ONCE = 8
_PYTHON = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
_DIGEST = "lab.digest"  # of the sources that were brought last, beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing looked at on a host."""

    name: str
    ok: bool
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How ready a host is."""

    name: str
    address: str
    ready: bool
    checks: tuple[Line, ...]


class _NotReady(LabFault):
    """The host cannot be brought further; the message becomes its last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """How a command there ended."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        return (self.err or self.out)[-400:]


@dataclass(slots=True)
class _Remote:
    """An open connection to one host."""

    name: str
    host: Host
    connection: Any  # of fabric, which has no types

    def say(self, argv: Sequence[str], *, limit_s: float = _LOOK_S) -> _Said:
        """Run a command there. Raises `_NotReady` if it does not end."""
        try:
            done = self.connection.run(
                shlex.join(argv), hide=True, warn=True, in_stream=False, timeout=limit_s
            )
        except Exception as error:
            # fabric, invoke and paramiko each have a dozen of their own.
            raise _NotReady(f"{argv[0]}: {type(error).__name__}: {error}") from error
        out, err = str(done.stdout).strip(), str(done.stderr).strip()
        return _Said(status=int(done.exited), out=out, err=err)

    def must(self, argv: Sequence[str], *, limit_s: float = _LOOK_S, hint: str = "") -> str:
        """What it prints; another status than 0 ends the matter. Raises `_NotReady`."""
        said = self.say(argv, limit_s=limit_s)
        if said.status != 0:
            command = shlex.join(argv)[:160]
            raise _NotReady(f"{command} ended with {said.status}: {said.complaint}", hint)
        return said.out

    @property
    def program(self) -> str:
        return f"{self.host.folder}/.venv/bin/lab"

    def put(self, raw: bytes, place: str) -> None:
        try:
            self.connection.put(io.BytesIO(raw), place)
        except Exception as error:
            raise _NotReady(f"{place} cannot be written: {error}") from error


@contextlib.contextmanager
def _connected(name: str, host: Host) -> Iterator[_Remote]:
    """Raises `UserError` without fabric, `_NotReady` if the host does not let us in."""
    try:
        import fabric
        from paramiko.client import RejectPolicy
    except ImportError as error:
        raise UserError("fabric is not installed", hint=HINT) from error
    options: dict[str, Any] = {}
    if host.key:
        options = {
            "key_filename": str(Path(host.key).expanduser()),
            "look_for_keys": False,
            "allow_agent": False,
        }
    with fabric.Connection(
        host.address or name, connect_timeout=_CONNECT_S, connect_kwargs=options
    ) as connection:
        connection.client.load_system_host_keys()
        connection.client.set_missing_host_key_policy(RejectPolicy())
        try:
            connection.open()
        except Exception as error:
            hint = "does ssh get there without a question? its key must be in ~/.ssh/known_hosts"
            raise _NotReady(f"{type(error).__name__}: {error}", hint) from error
        yield _Remote(name=name, host=host, connection=connection)


def _chosen(hosts: Mapping[str, Host], names: Sequence[str]) -> dict[str, Host]:
    if not hosts:
        raise UserError("no hosts are named", hint='[hosts] in lab.toml: big = { address = "..." }')
    for name in names:
        if name not in hosts:
            raise UserError(f"no host {name!r} in lab.toml", hint=f"known: {', '.join(hosts)}")
    return {name: hosts[name] for name in (names or hosts)}


def check(hosts: Mapping[str, Host], names: Sequence[str], emit: Emit) -> tuple[State, ...]:
    """Look at those hosts, or at all, side by side; nothing there changes. Raises `UserError`."""
    return _each(_chosen(hosts, names), _looked_at, emit)


def setup(hosts: Mapping[str, Host], names: Sequence[str], emit: Emit) -> tuple[State, ...]:
    """Bring this lab and its packages there, then look. Raises `UserError`."""
    raw = sources()
    digest = hashlib.sha256(raw).hexdigest()

    def work(remote: _Remote, emit: Emit) -> list[Line]:
        _bring(remote, raw, digest, emit)
        return _looked_at(remote, emit)

    return _each(_chosen(hosts, names), work, emit)


def _each(
    chosen: Mapping[str, Host], work: Callable[[_Remote, Emit], list[Line]], emit: Emit
) -> tuple[State, ...]:
    def one(name: str) -> State:
        host = chosen[name]
        emit(Event(kind=EventKind.STARTED, step=f"host {name}"))
        lines: list[Line] = []
        try:
            with _connected(name, host) as remote:
                lines = work(remote, emit)
        except _NotReady as error:
            lines = [Line(name="ssh", ok=False, found=error.message, hint=error.hint)]
        ready = all(line.ok for line in lines)
        text = "ready" if ready else "not ready"
        emit(Event(kind=EventKind.DONE, step=f"host {name}", text=text))
        return State(name=name, address=host.address or name, ready=ready, checks=tuple(lines))

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return tuple(pool.map(one, chosen))


# --- looking -----------------------------------------------------------------------------------


def _looked_at(remote: _Remote, emit: Emit) -> list[Line]:
    """What is there, up to the first thing without which the rest cannot be told."""
    lines = [Line(name="system", ok=True, found=remote.must(("uname", "-sm")))]
    python = remote.say((remote.host.python, "-c", _PYTHON))
    fit = python.status == 0
    lines.append(
        Line(
            name="python",
            ok=fit,
            found=f"{remote.host.python} is fit" if fit else f"no fit Python: {python.complaint}",
            hint="" if fit else "Python 3.11 with venv; [hosts] python names another one",
        )
    )
    version = remote.say((remote.program, "--version"))
    way_out = f"lab hosts setup {remote.name}"
    if version.status != 0:
        lines.append(Line(name="lab", ok=False, found="no lab there", hint=way_out))
        return lines
    same = version.out.split()[-1:] == [lab.__version__]
    digest = remote.say(("cat", f"{remote.host.folder}/{_DIGEST}")).out
    brought = digest == hashlib.sha256(sources()).hexdigest()
    lines.append(
        Line(
            name="lab",
            ok=same,
            found=f"{version.out}, {'these' if brought else 'not these'} sources",
            hint="" if same and brought else way_out,
        )
    )
    return lines + _diagnosis(remote)


def _diagnosis(remote: _Remote) -> list[Line]:
    """What the lab's doctor finds wrong there; one line if that is nothing."""
    said = remote.say((remote.program, "--quiet", "doctor", "--no-boot", "--json"))
    try:
        checks = model.decode(said.out, tuple[Check, ...])
    except LabFault:
        told = said.complaint or f"status {said.status}"
        return [Line(name="doctor", ok=False, found=f"the doctor there does not work: {told}")]
    wrong = [
        Line(
            name=check.name,
            ok=check.health is not Health.MISSING,
            found=f"{check.name}: {check.found}",
            hint=check.hint,
        )
        for check in checks
        if check.health in (Health.MISSING, Health.WORSE)
    ]
    return wrong or [Line(name="doctor", ok=True, found=f"{len(checks)} checks, nothing missing")]


# --- bringing ----------------------------------------------------------------------------------


def sources() -> bytes:
    """This lab, packed; equal for equal files. Raises `UserError` without its source tree."""
    if not (ROOT / "pyproject.toml").is_file():
        raise UserError("this lab has no source tree to bring", hint="pip install -e, from git")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(path for part in _PARTS for path in _files(ROOT / part)):
            info = archive.gettarinfo(path, arcname=path.relative_to(ROOT).as_posix())
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            with path.open("rb") as content:
                archive.addfile(info, content)
    return stream.getvalue()


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for inner in path.iterdir():
            if inner.name != "__pycache__":
                yield from _files(inner)
    elif path.is_file() and not path.is_symlink():
        yield path


def _bring(remote: _Remote, raw: bytes, digest: str, emit: Emit) -> None:
    """Sources, virtual environment, packages. What is half done is done again by the next one."""

    def step(text: str) -> None:
        emit(Event(kind=EventKind.PROGRESS, step=f"host {remote.name}", text=text))

    folder = remote.host.folder
    tree = f"{folder}/source-{digest[:16]}"
    if remote.say((remote.host.python, "-c", _PYTHON)).status != 0:
        step("installing python3-venv")
        _install(remote, ("python3-venv",))
    step("bringing the lab")
    remote.must(("mkdir", "-p", tree))
    remote.put(raw, f"{tree}.tar")
    remote.must(("tar", "-xf", f"{tree}.tar", "-C", tree))
    remote.must(("rm", f"{tree}.tar"))
    step("making its virtual environment")
    remote.must((remote.host.python, "-m", "venv", f"{folder}/.venv"), limit_s=_INSTALL_S)
    remote.must(
        (
            *(f"{folder}/.venv/bin/pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--editable", f"{tree}[fleet]"),
        ),
        limit_s=_INSTALL_S,
        hint="pip there must reach a package index",
    )
    remote.put(digest.encode(), f"{folder}/{_DIGEST}")
    missing = remote.must((remote.program, "--quiet", "doctor", "--packages")).split()
    if missing:
        step(f"installing {' '.join(missing)}")
        _install(remote, missing)


def _install(remote: _Remote, packages: Sequence[str]) -> None:
    """Raises `_NotReady` where that needs a password, or there is no apt-get."""
    root = remote.must(("id", "-u")) == "0"
    asked = () if root else ("sudo", "-n")
    wanted = " ".join(packages)
    by_hand = f"there: sudo apt-get install {wanted}"
    remote.must((*asked, "apt-get", "update", "-qq"), limit_s=_INSTALL_S, hint=by_hand)
    remote.must(
        (
            *(*asked, "env", "DEBIAN_FRONTEND=noninteractive"),
            *("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages),
        ),
        limit_s=_INSTALL_S,
        hint=by_hand,
    )
