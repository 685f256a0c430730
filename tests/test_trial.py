"""A trial's judgement of its own cases: health, splats by console span, lost machines."""

from __future__ import annotations

import asyncio

import pytest

from lab import trial
from lab.guest import Down
from lab.model import CaseResult, CaseState, MachineEnd, Splat
from lab.trial import Console, Health, Progress

PASSED = CaseResult(name="suite/a", state=CaseState.PASSED)


def splat(line: int) -> Splat:
    title = f"WARNING in line {line}"
    return Splat(kind="warning", title=title, first_line=line, last_line=line)


def charged(
    results: list[CaseResult], spans: dict[str, tuple[int, int]], splats: list[Splat]
) -> tuple[tuple[CaseResult, ...], tuple[Splat, ...]]:
    progress = Progress(results=results)
    progress.begun = {name: first for name, (first, _) in spans.items()}
    progress.ended = {name: last for name, (_, last) in spans.items() if last}
    console = Console()
    console.line, console.splats = 100, splats
    return trial._charge(progress, console, {})


def test_a_splat_is_charged_to_the_case_in_whose_span_it_began() -> None:
    results = [PASSED, CaseResult(name="suite/b", state=CaseState.PASSED)]
    spans = {"suite/a": (10, 19), "suite/b": (20, 29)}
    (a, b), rest = charged(results, spans, [splat(25), splat(3), splat(40)])
    assert a == PASSED
    assert b.state is CaseState.FAILED
    assert "WARNING in line 25" in b.message
    assert [one.first_line for one in rest] == [3, 40]


def test_a_case_that_took_the_machine_down_gets_what_came_after_it() -> None:
    crashed = CaseResult(name="suite/a", state=CaseState.CRASHED, message="machine panicked")
    ((only,), rest) = charged([crashed], {"suite/a": (10, 0)}, [splat(99)])
    assert only.state is CaseState.CRASHED
    assert len(only.splats) == 1
    assert rest == ()


def test_a_pass_without_lockdep_is_uncovered() -> None:
    off = Health(taint=0, lockdep_alive=False)
    assert trial._with_health(PASSED, off, off).state is CaseState.UNCOVERED
    none = Health(taint=0, lockdep_alive=None)
    assert trial._with_health(PASSED, none, none).state is CaseState.PASSED


def test_lockdep_that_dies_in_a_case_leaves_it_uncovered_the_last_one_too() -> None:
    on, off = (Health(taint=0, lockdep_alive=alive) for alive in (True, False))
    result = trial._with_health(PASSED, on, off)
    assert result.state is CaseState.UNCOVERED
    assert "no report" in result.message
    failed = CaseResult(name="suite/a", state=CaseState.FAILED, message="why")
    assert trial._with_health(failed, on, off) == failed
    # A report says more.
    ((told,), _) = charged([result], {"suite/a": (10, 19)}, [splat(12)])
    assert told.state is CaseState.FAILED
    assert "WARNING in line 12" in told.message


def test_lockdep_out_of_room_is_no_failure_of_the_case() -> None:
    limit = Splat(
        kind="lockdep-limit", title="MAX_LOCKDEP_ENTRIES too low!", first_line=12, last_line=13
    )
    result = trial._with_health(
        PASSED, Health(taint=0, lockdep_alive=True), Health(taint=0, lockdep_alive=False)
    )
    ((told,), _) = charged([result], {"suite/a": (10, 19)}, [limit])
    assert told.state is CaseState.UNCOVERED
    assert "ran out of room" in told.message
    assert told.splats == (limit,)
    ((both,), _) = charged([result], {"suite/a": (10, 19)}, [limit, splat(15)])
    assert both.state is CaseState.FAILED


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (MachineEnd.PANICKED, CaseState.CRASHED),
        (MachineEnd.QEMU_DIED, CaseState.CRASHED),
        (MachineEnd.HUNG_SILENT, CaseState.HUNG),
        (MachineEnd.WALL_CLOCK, CaseState.HUNG),
    ],
)
def test_a_lost_machine_is_charged_to_the_case_that_ran(end: MachineEnd, state: CaseState) -> None:
    result = trial._down("suite/a", Down(end=end, detail="why"))
    assert result.state is state
    assert "why" in result.message


def test_the_console_is_waited_for_up_to_the_mark() -> None:
    async def scenario() -> tuple[bool, int]:
        console = Console()
        waiting = asyncio.create_task(console.wait_mark("suite/a 1"))
        await asyncio.sleep(0)
        console.on_line(7, "[    1.0][   T60] lab: mark suite/a 0\n")
        console.on_line(8, "[    1.1][   T61] lab: mark suite/a 1\n")
        return await waiting, console.marks["suite/a 1"]

    assert asyncio.run(scenario()) == (True, 8)


HELD = (
    "[   46.1][  T101] ================================================",
    "[   46.2][  T101] WARNING: lock held when returning to user space!",
    "[   46.3][  T101] 6.1.192-lab #1 Not tainted",
    "[   46.4][  T101] ------------------------------------------------",
    "[   46.5][  T101] fs-fault2/101 is leaving the kernel with locks still held!",
)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_case_ends_when_the_console_has_shown_enough_and_says_no_more(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.setattr(trial, "_LAST_WORDS_S", 0.05)

    async def stuck() -> CaseResult:
        await asyncio.sleep(0.6)
        return PASSED

    async def scenario() -> object:
        kinds = frozenset({"lockdep-held-lock"}) if wanted else frozenset({"kasan"})
        console = Console(enough=kinds)
        for number, text in enumerate(HELD, 1):
            console.on_line(number, text)
        return await trial._unless_enough(stuck(), "suite/a", console)

    result = asyncio.run(scenario())
    assert isinstance(result, CaseResult)
    assert result.state is (CaseState.FAILED if wanted else CaseState.PASSED)
