"""What travels between hosts: artefacts by digest, packed trials, cells."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import model
from lab.config import Machine
from lab.fleet import capability, job, parcel
from lab.fleet.artefact import Artefact, Depot, fetch
from lab.fleet.job import Job
from lab.model import Accelerator, LabFault, Side, UserError
from lab.pool import OVERHEAD_BYTES
from lab.store import Cache
from lab.suites.protocol import PlannedCase
from tests.test_pool import kits, rounds

CONTENT = b"a kernel, or so it says\n" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(root=tmp_path / "cache")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(CONTENT)
    return path


# --- artefacts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["", "file://{}/store", "memory://lab-tests"])
def test_an_artefact_comes_back_by_digest(
    tmp_path: Path, cache: Cache, file: Path, store: str
) -> None:
    depot = Depot(store=store.format(tmp_path), cache=cache)
    artefact = depot.offer(file)
    assert artefact == depot.offer(file)
    assert (artefact.sha256, artefact.size_bytes) == (DIGEST, len(CONTENT))
    found = fetch(artefact, cache)
    assert found.read_bytes() == CONTENT
    # Once it is here, nobody asks for it again.
    assert fetch(Artefact(sha256=DIGEST, size_bytes=1, url="file:///gone"), cache) == found
    assert not list((cache.root / "staging").iterdir())


def test_a_store_holds_a_file_once_and_whole(tmp_path: Path, cache: Cache, file: Path) -> None:
    store = tmp_path / "store"
    for _ in range(2):
        Depot(store=store.as_uri(), cache=cache).offer(file)
    (only,) = (path for path in store.rglob("*") if path.is_file())
    assert only == store / DIGEST[:2] / DIGEST
    only.write_bytes(CONTENT[:-1])  # cut short by somebody else: another size
    Depot(store=store.as_uri(), cache=cache).offer(file)
    assert only.read_bytes() == CONTENT


def test_a_file_that_changes_is_another_artefact(cache: Cache, file: Path) -> None:
    depot = Depot(store="", cache=cache)
    before = depot.offer(file)
    file.write_bytes(b"another one")
    os.utime(file, ns=(1, 1))
    assert depot.offer(file) != before


@pytest.mark.parametrize("other", [b"", CONTENT[:-1], CONTENT + b"x", b"y" * len(CONTENT)])
def test_what_is_not_what_its_digest_says_is_refused(
    tmp_path: Path, cache: Cache, other: bytes
) -> None:
    place = tmp_path / "store"
    place.write_bytes(other)
    artefact = Artefact(sha256=DIGEST, size_bytes=len(CONTENT), url=place.as_uri())
    with pytest.raises(LabFault, match=DIGEST[:16]):
        fetch(artefact, cache)
    assert not list((cache.root / "artefacts").iterdir())


@pytest.mark.parametrize("url", ["file:///nowhere/at/all", "memory://nowhere/at-all"])
def test_what_cannot_be_read_is_named(cache: Cache, url: str) -> None:
    with pytest.raises(LabFault, match="cannot be read") as error:
        fetch(Artefact(sha256=DIGEST, size_bytes=1, url=url), cache)
    assert url in error.value.message
    assert "artefacts" in error.value.hint


def test_a_digest_is_no_path(cache: Cache, file: Path) -> None:
    with pytest.raises(LabFault, match="no digest"):
        fetch(Artefact(sha256="../escaped", size_bytes=1, url=file.as_uri()), cache)


def test_an_unknown_kind_of_store_is_an_error_of_the_user(cache: Cache, file: Path) -> None:
    with pytest.raises(UserError, match="nonsense"):
        Depot(store="nonsense://x", cache=cache).offer(file)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "www"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.fake
def test_a_web_server_will_do(server: str, tmp_path: Path, cache: Cache) -> None:
    pytest.importorskip("aiohttp", reason="fsspec's http needs aiohttp")
    (tmp_path / "www" / DIGEST).write_bytes(CONTENT)
    artefact = Artefact(sha256=DIGEST, size_bytes=len(CONTENT), url=f"{server}/{DIGEST}")
    assert fetch(artefact, cache).read_bytes() == CONTENT


# --- packed trials -----------------------------------------------------------------------------


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    (folder / "cases" / "a b").mkdir(parents=True)
    (folder / "trial.json").write_bytes(b"{}")
    (folder / "cases" / "a b" / "log\n").write_bytes(bytes(range(256)) * 99)
    (folder / "empty").touch()
    (folder / "link").symlink_to("/etc/passwd")
    parcel.unpack(parcel.pack(folder), tmp_path / "back")
    back = {
        str(path.relative_to(tmp_path / "back")): path.read_bytes()
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    }
    assert back == {
        "trial.json": b"{}",
        "cases/a b/log\n": bytes(range(256)) * 99,
        "empty": b"",
    }


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "raw",
    [
        archive((member("../escaped"), b"x")),
        archive((member("/tmp/escaped"), b"x")),
        archive((member("a/../../escaped"), b"x")),
        archive((member("link", tarfile.SYMTYPE, "/etc"), b"")),
        archive((member("link", tarfile.LNKTYPE, "../x"), b"")),
        archive((member("fifo", tarfile.FIFOTYPE), b"")),
        archive((member("device", tarfile.CHRTYPE), b"")),
        archive((member("twice"), b"1"), (member("twice"), b"2")),
        archive((member("a"), b"1"), (member("a/b"), b"2")),
        archive((member("big"), b"\0" * 2_000_000)),
        archive((member("cut"), b"\0" * 5000))[:-20],
        gzip.compress(b"no archive"),
        b"nothing like it",
        b"",
    ],
)
def test_a_hostile_or_damaged_parcel_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(LabFault):
        parcel.unpack(raw, tmp_path / "in" / "back", limit_bytes=1_000_000)
    assert {path.name for path in tmp_path.rglob("escaped")} == set()


def test_a_folder_that_is_too_big_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"\0" * 2000)
    with pytest.raises(LabFault, match="too much"):
        parcel.pack(tmp_path, limit_bytes=1000)


# --- jobs --------------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path: Path, cache: Cache) -> Job:

    kit = kits()[Side.BASE]
    names = ("image", "vmlinux", "config", "initramfs", "root")
    image, vmlinux, config, ramfs, root = (tmp_path / name for name in names)
    for path in (image, vmlinux, config, ramfs, root):
        path.write_text(path.name)
    (cell, *_) = rounds(range(1))

    kit = replace(
        kit,
        kernel=replace(kit.kernel, image=image, vmlinux=vmlinux, config=config),
        initramfs=ramfs,
        image=replace(kit.image, path=root),
        accelerator=replace(kit.accelerator, boot_s=15.0),
        cases={name: PlannedCase(name=name, timeout_s=100.0) for name in cell.cases},
    )
    return job.describe(cell, kit, "x86_64-base-01-abcdef-1", Depot(store="", cache=cache))


def test_a_job_survives_json(described: Job) -> None:
    assert model.decode(model.encode(described), Job) == described


def test_limits_are_stretched_by_the_host_that_runs_it(described: Job, cache: Cache) -> None:
    slow = Accelerator(name="tcg", cpu="Nehalem", boot_s=30.0)  # twice as slow as the sender's
    kit = job.equip(described, slow, cache)
    assert {case.timeout_s for case in kit.cases.values()} == {200.0}
    assert kit.timeouts.boot_s == 2.0
    assert kit.kernel.image.read_text() == "image"
    assert kit.kernel.vmlinux.read_text() == "vmlinux"
    assert kit.kernel.config.read_text() == "config"
    assert kit.image.path.read_text() == "root"
    assert kit.initramfs.read_text() == "initramfs"
    assert kit.shelf is None


def test_results_of_another_accelerator_are_not_made(described: Job, cache: Cache) -> None:
    with pytest.raises(LabFault, match="for tcg Nehalem, here it is kvm host"):
        job.equip(described, Accelerator(name="kvm", cpu="host", boot_s=1.0), cache)


@pytest.mark.parametrize("change", [{"lab_version": "0.0.1"}, {"name": "../x"}, {"name": ""}])
def test_a_job_that_this_lab_did_not_write(described: Job, change: dict[str, Any]) -> None:

    job.check(described)
    with pytest.raises(UserError):
        job.check(replace(described, **change))


# --- capabilities ------------------------------------------------------------------------------

BIG = capability.offers(archs=("x86_64", "arm64"), cores=8, memory_bytes=16 << 30) | {
    "kvm-host:x86_64": 1e6
}
SMALL = capability.offers(archs=("x86_64",), cores=2, memory_bytes=2 << 30) | {
    "tcg-max:x86_64": 1e6
}


def wanted(arch: str = "x86_64", accelerator: str = "", cpus: int = 2) -> dict[str, float]:
    memory = Machine().memory_bytes + OVERHEAD_BYTES["tcg"]
    name, _, model_ = accelerator.partition("-")
    known = Accelerator(name=name, cpu=model_, boot_s=1.0) if name else None
    return capability.needs(arch, cpus=cpus, memory_bytes=memory, accelerator=known)


def test_slots_are_counted_by_what_runs_out_first() -> None:
    assert capability.slots(wanted(), {"big": BIG, "small": SMALL}) == 4 + 1
    assert capability.slots(wanted(accelerator="kvm-host"), {"big": BIG, "small": SMALL}) == 4
    assert capability.slots(wanted(cpus=1), {"small": SMALL}) == 1  # memory
    assert capability.slots(wanted(), {}) == 0


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (wanted(), ""),
        (wanted("arm64"), ""),
        (wanted("arm64", "tcg-max"), "no worker has tcg-max:arm64"),
        (wanted(accelerator="kvm-host", cpus=99), "no worker has 99 cores (the most is 8)"),
        (wanted(accelerator="tcg-max", cpus=4), "no single worker has all of"),
        (wanted() | {"lab:9.9": 1}, "no worker has lab:9.9"),
    ],
)
def test_what_is_lacking_is_said(needs: dict[str, float], said: str) -> None:
    told = capability.unmatched(needs, {"big": BIG, "small": SMALL})
    assert told.startswith(said)
    assert bool(told) == bool(said)


def test_no_worker_at_all_is_said() -> None:
    assert "no worker at all" in capability.unmatched(wanted(), {})


def test_a_host_is_described() -> None:
    assert capability.described(BIG) == "8 cores, 16384 MiB, kvm-host x86_64, arm64 not proven yet"
    assert capability.described(SMALL) == "2 cores, 2048 MiB, tcg-max x86_64"
