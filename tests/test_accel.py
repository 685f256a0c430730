"""The choice of an accelerator: what is tried, what proves it, what is remembered."""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path

import pytest

from lab import accel, arch
from lab.model import Accelerator, Event, EventKind, LabFault, UserError
from lab.store import Cache
from tests.fakeqemu import build_agent, install

X86 = arch.arch("x86_64")


# --- pure --------------------------------------------------------------------------------------


def _names(force: str | None, obstacle: str) -> list[str]:
    return [f"{c.name} {c.cpu}" for c in accel.candidates(X86, force=force, obstacle=obstacle)]


def test_what_is_tried_and_in_which_order() -> None:
    assert _names(None, "") == ["kvm host", "kvm max", f"tcg {X86.tcg_cpu}"]
    assert _names(None, "no") == [f"tcg {X86.tcg_cpu}"]
    assert _names("kvm", "") == ["kvm host", "kvm max"]
    assert _names("kvm", "no") == []
    assert _names("tcg", "") == [f"tcg {X86.tcg_cpu}"]


def test_what_stands_in_the_way_of_kvm(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert accel.kvm_obstacle(X86, device, "aarch64") == "this host is aarch64"
    assert "there is no" in accel.kvm_obstacle(X86, device, "x86_64")
    device.touch()
    assert accel.kvm_obstacle(X86, device, "x86_64") == ""


def test_one_line_says_it_all() -> None:
    chosen = Accelerator(name="tcg", cpu="max", boot_s=6.14, tried=("KVM host: no", "KVM max: no"))
    assert accel.describe(chosen) == "TCG, boots in 6.1 s (KVM host: no; KVM max: no)"


# --- a fake QEMU -------------------------------------------------------------------------------


class Bench:
    """One cache, one stand-in for QEMU, and the events that came."""

    def __init__(self, folder: Path, agent: Path) -> None:
        self.folder = folder
        self.agent = agent
        self.events: list[Event] = []
        self.device = folder / "kvm"
        self.device.touch()

    def choose(self, mode: str, force: str | None = None) -> Accelerator:
        kernel = self.folder / "kernel"
        kernel.write_text(mode)
        self.events.clear()
        return accel.choose(
            "x86_64",
            kernel=kernel,
            initramfs=self.agent,
            cache=Cache(root=self.folder / "cache"),
            emit=self.events.append,
            force=force,
            device=self.device,
        )


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def bench(tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if platform.machine() != X86.machine:
        pytest.skip("the stand-in is an x86_64 QEMU")
    install(tmp_path / "bin", monkeypatch)
    return Bench(tmp_path, agent)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits: the stand-in boots in a fraction of a second, or never."""
    monkeypatch.setattr(accel, "KVM_BOOT_S", 2.0)
    monkeypatch.setattr(accel, "TCG_BOOT_S", 10.0)


@pytest.mark.fake
def test_kvm_that_boots_is_taken_and_remembered(bench: Bench) -> None:
    first = bench.choose("ok")
    assert (first.name, first.cpu, first.tried) == ("kvm", "host", ())
    assert bench.events[0].kind is EventKind.STARTED
    # Were it not for the cache, this kernel would prove nothing.
    assert bench.choose("hang") == first
    assert [event.kind for event in bench.events] == [EventKind.DONE]


@pytest.mark.fake
def test_kvm_that_aborts_gives_way_to_tcg(bench: Bench) -> None:
    chosen = bench.choose("kvm-dies")
    assert chosen.name == "tcg" and chosen.boot_s > 0
    assert chosen.tried == (
        "KVM host: QEMU ended: error: failed to set MSR 0x10a",
        "KVM max: QEMU ended: error: failed to set MSR 0x10a",
    )
    assert bench.events[-1].text.startswith("TCG, boots in")


@pytest.mark.fake
def test_kvm_that_spins_gives_way_to_tcg(bench: Bench, impatient: None) -> None:
    chosen = bench.choose("kvm-spins")
    assert chosen.name == "tcg"
    assert chosen.tried == ("KVM host: no hello within 2 s", "KVM max: no hello within 2 s")


@pytest.mark.fake
def test_kvm_by_force_that_does_not_work(bench: Bench) -> None:
    with pytest.raises(UserError, match="failed to set MSR"):
        bench.choose("kvm-dies", force="kvm")
    bench.device.unlink()
    with pytest.raises(UserError, match="there is no"):
        bench.choose("ok", force="kvm")


@pytest.mark.fake
def test_kvm_that_is_lost_gives_way_and_is_tried_again_later(bench: Bench) -> None:
    assert bench.choose("ok").name == "kvm"
    chosen = asyncio.run(
        accel.fall_back(
            "x86_64",
            kernel=bench.folder / "kernel",
            initramfs=bench.agent,
            cache=Cache(root=bench.folder / "cache"),
            emit=bench.events.append,
            reason="QEMU ended: no such device",
        )
    )
    assert chosen.name == "tcg" and chosen.boot_s > 0
    assert chosen.tried == ("KVM: lost in the middle of a run: QEMU ended: no such device",)
    assert bench.choose("kvm-dies").name == "tcg"  # not from memory


@pytest.mark.fake
def test_tcg_by_force(bench: Bench) -> None:
    chosen = bench.choose("ok", force="tcg")
    assert chosen.name == "tcg" and chosen.tried == ()
    # A choice by force says nothing about what is best here.
    assert bench.choose("ok").name == "kvm"


@pytest.mark.fake
def test_a_kernel_that_boots_nowhere_proves_nothing(bench: Bench) -> None:
    chosen = bench.choose("panic-plain")
    assert (chosen.name, chosen.boot_s) == ("tcg", accel.TCG_BOOT_S)
    assert len(chosen.tried) == 3 and "planted by a test" in chosen.tried[-1]
    assert bench.events[-1].kind is EventKind.WARNING
    assert bench.choose("ok").name == "kvm"  # nothing was remembered


@pytest.mark.fake
def test_a_qemu_that_never_runs_is_a_fault(bench: Bench) -> None:
    with pytest.raises(LabFault, match="could not set up the board"):
        bench.choose("die")


@pytest.mark.fake
def test_it_can_be_asked_from_a_loop(bench: Bench) -> None:
    kernel = bench.folder / "kernel"
    kernel.write_text("ok")
    coroutine = accel.choose_async(
        "x86_64",
        kernel=kernel,
        initramfs=bench.agent,
        cache=Cache(root=bench.folder / "cache"),
        emit=bench.events.append,
        device=bench.device,
    )
    assert asyncio.run(coroutine).name == "kvm"
