"""Hosts over ssh: fabric against a real sshd on loopback, with keys and a port of its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lab
from lab import hosts
from lab.config import Host, parse
from lab.hosts import State
from lab.model import Event, UserError
from tests.test_fleet import free_port

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
PACKAGES = next(path for path in sys.path if path.endswith("site-packages"))
needs_sshd = pytest.mark.skipif(
    SSHD is None, reason="no sshd: make test-tools installs openssh-server"
)
CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host_key
AuthorizedKeysFile {root}/authorized_keys
PidFile {root}/sshd.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PermitRootLogin yes
PermitUserEnvironment no
Subsystem sftp internal-sftp
SetEnv {environment}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    root: Path
    port: int

    @property
    def host(self) -> Host:
        return Host(
            address=f"127.0.0.1:{self.port}",
            key=str(self.root / "key"),
            folder=str(self.root / "remote" / "lab"),
            python=sys.executable,
        )


def keygen(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


def listening(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)):
            return True
    except OSError:
        return False


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A sshd whose sessions find this lab's Python packages, so that pip there has little to do;
    and a home for us that knows its key."""
    root, home, port = tmp_path / "sshd", tmp_path / "home", free_port()
    root.mkdir()
    (home / ".ssh").mkdir(parents=True)
    key = keygen(root / "host_key")
    (root / "authorized_keys").write_text(keygen(root / "key"))
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
    others = root / "packages"
    others.mkdir()
    for entry in Path(PACKAGES).iterdir():
        if "kernel_patch_lab" not in entry.name:  # it must be the one that was brought
            (others / entry.name).symlink_to(entry)
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    words = {"PYTHONPATH": str(others), "HOME": str(root / "remote"), **pip}
    environment = " ".join(f'"{name}={value}"' for name, value in words.items())
    (root / "remote").mkdir()
    (root / "config").write_text(CONFIG.format(root=root, port=port, environment=environment))
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    assert SSHD is not None
    with (root / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", root / "config"], stderr=log)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    try:
        deadline = time.monotonic() + 60
        while not listening(port):
            assert process.poll() is None, (root / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Server(root=root, port=port)
    finally:
        process.terminate()
        process.wait()


def quiet(event: Event) -> None:
    """Nobody looks at it."""


def check(host: Host) -> State:
    (state,) = hosts.check({"left": host}, (), quiet)
    return state


def names(state: State, *, ok: bool) -> list[str]:
    return [line.name for line in state.checks if line.ok is ok]


@needs_sshd
@pytest.mark.fake
@pytest.mark.timeout(600)
def test_a_host_is_looked_at_set_up_and_ready(server: Server) -> None:
    before = check(server.host)
    assert not before.ready
    assert names(before, ok=True) == ["system", "python"]
    assert before.checks[0].found.startswith("Linux ")
    assert before.checks[-1].hint == "lab hosts setup left"
    assert not Path(server.host.folder).exists(), "a look has changed something"

    events: list[Event] = []
    (state,) = hosts.setup({"left": server.host}, ("left",), events.append)
    assert names(state, ok=False) == [], [line.found for line in state.checks]
    assert state.ready
    folder = Path(server.host.folder)
    program = folder / ".venv" / "bin" / "lab"
    # It is the lab that was brought, not the one that brought it.
    where = subprocess.run(
        [program.with_name("python"), "-c", "import lab; print(lab.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(server.root / "packages")},
    )
    assert where.stdout.startswith(f"{folder}/source-")
    assert any("bringing" in event.text for event in events)

    after = check(server.host)
    assert after.ready
    assert f"version {lab.__version__}" in str(after.checks)
    (line,) = (line for line in after.checks if line.name == "lab")
    assert "not these sources" not in line.found
    (folder / "lab.digest").write_text("of another day")
    (line,) = (line for line in check(server.host).checks if line.name == "lab")
    assert "not these sources" in line.found
    assert line.hint == "lab hosts setup left"


@needs_sshd
@pytest.mark.fake
def test_what_does_not_let_us_in(server: Server, tmp_path: Path) -> None:
    keygen(tmp_path / "stranger")
    stranger = Host(address=server.host.address, key=str(tmp_path / "stranger"))
    state = check(stranger)
    assert not state.ready
    assert "Authentication" in state.checks[0].found
    nobody = check(Host(address=f"127.0.0.1:{free_port()}", key=server.host.key))
    assert not nobody.ready and nobody.checks[0].name == "ssh"


@needs_sshd
@pytest.mark.fake
@pytest.mark.parametrize("known", ["", "another"])
def test_a_key_that_nobody_knows_is_refused(server: Server, tmp_path: Path, known: str) -> None:
    file = Path(os.environ["HOME"]) / ".ssh" / "known_hosts"
    other = keygen(tmp_path / "other")
    file.write_text(f"[127.0.0.1]:{server.port} {other}" if known else "")
    state = check(server.host)
    assert not state.ready
    assert [line.name for line in state.checks] == ["ssh"]
    assert "known_hosts" in state.checks[0].hint


@needs_sshd
@pytest.mark.fake
def test_the_command_says_it_and_ends_with_2(server: Server, tmp_path: Path) -> None:
    toml = tmp_path / "lab.toml"
    host = server.host
    toml.write_text(
        f'[hosts]\nleft = {{ address = "{host.address}", key = "{host.key}", '
        f'folder = "{host.folder}", python = "{host.python}" }}\n'
    )
    argv = [str(Path(sys.executable).with_name("lab")), "--config", str(toml), "hosts", "check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    assert "no lab there" in done.stdout
    told = subprocess.run(
        [*argv, "--json"], capture_output=True, text=True, timeout=100, check=False
    )
    assert json.loads(told.stdout)[0]["ready"] is False


def test_hosts_are_named_in_lab_toml() -> None:
    config = parse('[hosts]\nleft = { address = "me@left:22" }\nright = {}\n', file="lab.toml")
    assert config.hosts == {"left": Host(address="me@left:22"), "right": Host()}
    with pytest.raises(UserError, match="adress"):
        parse('[hosts]\nleft = { adress = "x" }\n', file="lab.toml")


def test_names_that_nobody_knows() -> None:
    with pytest.raises(UserError, match="no hosts"):
        hosts.check({}, (), quiet)
    with pytest.raises(UserError, match="'rigth'"):
        hosts.check({"right": Host()}, ("rigth",), quiet)


def test_what_is_brought_is_the_lab_and_the_same_each_time() -> None:
    assert hosts.sources() == hosts.sources()
    with tarfile.open(fileobj=io.BytesIO(hosts.sources())) as archive:
        brought = set(archive.getnames())
    assert {"lab/fleet/worker.py", "images/guest/agent.c", "pyproject.toml"} <= brought
    assert not {name for name in brought if "__pycache__" in name or name.startswith(".")}
