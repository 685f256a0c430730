"""What holds the rooms of a run together, where no kernel is needed to see it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from lab import campaign
from lab.accel import AcceleratorLost
from lab.config import Config

LOST = AcceleratorLost("KVM is lost: no such device")


class Rounds:
    """Stands in for pools and rounds: each round ends as it was told to."""

    def __init__(self, *ends: AcceleratorLost | None) -> None:
        self.ends = list(ends)
        self.opened: list[AcceleratorLost | None] = []
        self.ran: list[object] = []

    async def open_pool(self, *args: object, **named: object) -> object:
        told = (*args, *named.values())
        self.opened.append(next((one for one in told if isinstance(one, AcceleratorLost)), None))
        return len(self.opened)

    async def test(self, _ready: object, machines: object, *_rest: object) -> None:
        self.ran.append(machines)
        if end := self.ends.pop(0):
            raise end


def run_arch(rounds: Rounds, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_open_pool", rounds.open_pool)
    monkeypatch.setattr(campaign, "_test", rounds.test)
    nothing = cast(Any, SimpleNamespace(trials=[]))
    asyncio.run(
        campaign._test_arch(
            nothing, nothing, config, nothing, Path(), nothing, nothing, print, None
        )
    )


def test_kvm_that_is_lost_makes_all_of_an_architecture_run_again_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = Rounds(LOST, None)
    run_arch(rounds, Config(), monkeypatch)
    assert rounds.opened == [None, LOST], "the second pool knows why, and is TCG's"
    assert rounds.ran == [1, 2], "nothing of the first pool's round stands"


def test_a_run_that_insists_on_kvm_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(LOST)
    machine = msgspec.structs.replace(Config().machine, accel="kvm")
    with pytest.raises(AcceleratorLost, match="no such device"):
        run_arch(rounds, msgspec.structs.replace(Config(), machine=machine), monkeypatch)
    assert rounds.opened == [None]


def test_what_is_lost_twice_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(LOST, LOST)
    with pytest.raises(AcceleratorLost):
        run_arch(rounds, Config(), monkeypatch)
    assert len(rounds.opened) == 2
