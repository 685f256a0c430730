"""The picture of a lock graph: well-formed, escaped, and what it shows; commands and report."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lab import locks as collecting
from lab import model
from lab.cli import cli
from lab.lockgraph import stored, svg
from lab.lockgraph.diff import LockDiff, Measure, StatDiff, diff
from lab.lockgraph.focus import focus
from lab.model import CaseState, Outcome, RunRecord, Side, Splat, Trial, Verdict
from lab.report import html, terminal
from lab.report import locks as shown
from lab.splat.kinds import Kind
from lab.verdict import JudgeInput, LockNews, judge
from tests import records
from tests.locks import BOOTS, DATA, boot, lock_stat, lockdep, runs

B, P = Side.BASE, Side.PATCHED
EVIL = '<script>alert("1")</script>'
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")


def changed() -> LockDiff:
    """An edge that goes, one that comes, and some that stay."""
    calm = [("a", "c"), ("z", "a"), ("a", EVIL)]
    return diff(
        [
            *runs(B, *[boot(("a", "b"), *calm)] * 3),
            *runs(P, *[boot(("a", EVIL + "2"), *calm)] * 3),
        ]
    )


@pytest.mark.parametrize(("runs_a_side", "coloured"), [(1, False), (3, False), (5, True)])
def test_a_change_that_chance_may_have_made_has_no_colour(runs_a_side: int, coloured: bool) -> None:
    measures = tuple(
        Measure(
            name=name,
            base=tuple(float(run) for run in range(1, runs_a_side + 1)),
            patched=tuple(float(run) for run in range(100, 100 + runs_a_side)),
        )
        for name, _, _ in shown.COLUMNS
    )
    compared = replace(changed(), stats=(StatDiff(label="a", mode="R", measures=measures),))
    (row,) = shown.stat_rows(compared, None)
    assert [alike for _, _, _, alike in row.cells] == [not coloured] * len(shown.COLUMNS)


def drawn(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return root


def texts(root: ElementTree.Element, tag: str) -> list[str]:
    return ["".join(e.itertext()) for e in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def plain_layout(source: str) -> str:
    """What Graphviz would say, without its care for beauty."""
    nodes = re.findall(r"^(\w+) \[width=([0-9.]+)", source, re.M)
    edges = re.findall(r"^(\w+) -> (\w+)", source, re.M)
    lines = [f"graph 1 10 {len(nodes)}"]
    lines += [f'node {n} 1 {i} {w} 0.33 "" solid box' for i, (n, w) in enumerate(nodes)]
    lines += [f"edge {a} {b} 4 0 0 1 1 2 2 3 3 solid black" for a, b in edges]
    return "\n".join([*lines, "stop"])


# --- the picture -------------------------------------------------------------------------------


@needs_dot
def test_a_picture_says_what_it_shows() -> None:
    root = drawn(shown.picture(changed(), "a"))
    assert "Lock dependencies around a" in texts(root, "title")
    assert any(
        "a → b: gone (3 of 3 base runs, 0 of 3 with the series)" in t for t in texts(root, "title")
    )
    assert "a → b: gone" in texts(root, "desc")[0]
    labels = texts(root, "text")
    assert {"a", "b", "c", "z", "gone", "new", "unchanged"} <= set(labels)
    assert EVIL in labels
    raw = shown.picture(changed(), "a")
    assert "<script" not in raw
    for kind in ("gone", "new", "same"):
        assert f'class="edge e-{kind}"' in raw
        assert f'id="lg-{kind}"' in raw
    assert "prefers-color-scheme: dark" in raw
    assert "http" not in raw.replace("http://www.w3.org/2000/svg", "")


def test_what_changed_differs_in_pattern_too() -> None:
    patterns = {
        kind: re.findall(rf"path\.e-{kind} {{[^}}]*stroke-dasharray: ([^;]+);", svg._STYLE)
        for kind in ("gone", "not-seen", "only-seen", "varies", "untold")
    }
    assert all(len(found) == 1 for found in patterns.values()), patterns
    assert len({found[0] for found in patterns.values()}) == len(patterns)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=6, unique=True))
def test_any_name_makes_a_whole_picture(names: Sequence[str]) -> None:
    kept = [n for n in ("".join(c for c in n if c.isprintable()).strip() for n in names) if n]
    edges = [(kept[0], name) for name in dict.fromkeys(kept[1:]) if name != kept[0]]
    if not edges:
        return
    graph = boot(*edges)
    whole = diff([*runs(B, graph), *runs(P, boot(edges[0]))])
    seen = focus(whole, whole.edges[0].before)
    drawn(svg.svg(seen, plain_layout(svg.dot_source(seen)), title=kept[0]))


def test_per_cpu_macros_are_folded() -> None:
    text = (DATA / BOOTS[0] / "lockdep").read_text()
    (long, *_) = re.findall(r"[-.+?]{4}: (.*vmstat_work.*->work\))$", text, re.M)
    assert len(long) > 200
    assert svg.short(long, 80) == "(work_completion)(&(per_cpu(vmstat_work))->work)"
    assert len(svg.short("x" * 500)) == len(svg.short("y" * 80))


# --- a run on disk -----------------------------------------------------------------------------


def with_locks(
    record: RunRecord, folder: Path, edges: dict[Side, list[tuple[str, str]]]
) -> RunRecord:
    """The record with lock files of each side's edges in the folder, as trials leave them."""
    trials: list[Trial] = []
    for trial in record.trials:
        mine = edges[trial.cell.side]
        here = folder / "trials" / trial.id
        texts = {
            "lockdep": lockdep(mine).encode(),
            "lockdep_stats": b" lock-classes: 4 [max: 8192]\n debug_locks: 1\n",
            "lock_stat": lock_stat(sorted({n for e in mine for n in e})).encode(),
        }
        files = collecting._keep(texts, Path("/no/vmlinux"), None, here, [], 0.4)
        trials.append(replace(trial, locks=files))
    return replace(record, trials=tuple(trials))


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunRecord, Path]:
    folder = tmp_path / "runs" / "20260314-092653-7f3a"
    edges = {B: [("a", "b"), ("a", EVIL)], P: [("a", EVIL)]}
    record = with_locks(records.run(records.well, records.well), folder, edges)
    (folder / "record.json").write_bytes(model.encode(record))
    return record, folder


def test_files_of_a_trial_are_named_in_its_record(run: tuple[RunRecord, Path]) -> None:
    record, folder = run
    for trial in record.trials:
        assert trial.locks is not None
        assert trial.locks.alive is True
        assert set(trial.locks.files) >= {"locks/lockdep.gz", "locks/keys.json.gz"}
        assert all((folder / "trials" / trial.id / name).is_file() for name in trial.locks.files)
        assert "vmlinux" in trial.locks.missing or "nm" in trial.locks.missing


def test_the_silence_of_a_run_that_lacks_a_case_says_nothing(run: tuple[RunRecord, Path]) -> None:
    record, folder = run
    short = [
        replace(t, results=t.results[:-1]) if t.cell.side is P and t.cell.repeat == 0 else t
        for t in record.trials
    ]
    seen = stored.of_run(short, folder, "x86_64")
    doubts = {o.name: o.doubt for o in seen}
    assert "did not pass there" in doubts["patched #1"]
    assert doubts["patched #2"] == doubts["base #1"] == ""


def test_machines_of_one_repeat_are_one_observation(run: tuple[RunRecord, Path]) -> None:
    record, folder = run
    seen = stored.of_run((*record.trials, *record.trials[:1]), folder, "x86_64")
    assert len(seen) == len({(t.cell.side, t.cell.repeat) for t in record.trials})
    assert max(len(o.graphs) for o in seen) == 2


@needs_dot
def test_the_report_has_the_picture_and_escapes_names(run: tuple[RunRecord, Path]) -> None:
    record, folder = run
    page = html.page(record, folder)
    assert page.count('class="lockgraph"') == 1
    assert "Lock dependencies" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)" in page
    assert "1 not seen with the series and 0 only with it" in page
    assert "Waiting for locks" not in page, "nothing changed there"
    console = Console(file=io.StringIO(), width=80)
    terminal.summary(record, folder, console)
    assert isinstance(console.file, io.StringIO)
    assert "Lock dependencies" in console.file.getvalue()


@needs_dot
def test_pictures_of_two_architectures_on_one_page_have_arrows_of_their_own(
    run: tuple[RunRecord, Path],
) -> None:
    record, folder = run
    other = tuple(replace(t, cell=replace(t.cell, arch="arm64")) for t in record.trials)
    manifest = replace(record.manifest, archs=("x86_64", "arm64"))
    page = html.page(replace(record, manifest=manifest, trials=(*record.trials, *other)), folder)
    assert page.count('class="lockgraph"') == 2
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) >= 2
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_a_run_without_locks_has_no_section(tmp_path: Path) -> None:
    assert "Lock dependencies" not in html.page(records.run(records.well, records.well), tmp_path)


def test_damaged_files_do_not_break_a_report(run: tuple[RunRecord, Path]) -> None:
    record, folder = run
    for path in folder.glob("trials/*patched*/locks/lockdep.gz"):
        path.write_bytes(b"\x1f\x8b" + b"x" * 40)
    page = html.page(record, folder)
    assert "no locks are known of the patched side" in page


# --- the commands ------------------------------------------------------------------------------


def lab(*args: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return int(done.return_value), done.output


def test_diff_of_two_kernels_files() -> None:
    code, said = lab("lockgraph", "diff", DATA / BOOTS[0], DATA / BOOTS[1])
    assert code == 0
    assert "0 edges gone, 0 new" in said
    code, said = lab("lockgraph", "diff", "--json", DATA / BOOTS[0], DATA / BOOTS[1])
    whole = json.loads(said)["diff"]
    assert whole["runs"] == {"base": 1, "base_runs": 1, "patched": 1, "patched_runs": 1}


@needs_dot
def test_diff_of_a_run_and_its_picture(run: tuple[RunRecord, Path], tmp_path: Path) -> None:
    _, folder = run
    picture = tmp_path / "a.svg"
    code, said = lab("--runs", folder.parent, "lockgraph", "diff", "--svg", picture)
    assert code == 0
    assert "- a -> b" in said
    assert "not seen with the series: 2 of 2 base runs, 0 of 2 with the series" in said
    drawn(picture.read_text())


@pytest.mark.parametrize(("boots", "expected", "said"), [(6, 1, "new"), (2, 4, "possible")])
def test_a_cycle_and_its_exit_code(tmp_path: Path, boots: int, expected: int, said: str) -> None:
    for side in Side:
        for number in range(boots):
            here = tmp_path / side / str(number)
            here.mkdir(parents=True)
            turned = side is P and number > 0
            (here / "lockdep").write_text(lockdep([("b", "a") if turned else ("a", "b")]))
            (here / "lock_stat").write_text(lock_stat("ab"))
    code, output = lab("lockgraph", "diff", tmp_path / "base", tmp_path / "patched")
    assert code == expected
    assert f"{said} cycle" in output
    assert "b -> a -> b" in output


def test_show_one_side_of_a_run(run: tuple[RunRecord, Path]) -> None:
    _, folder = run
    for side, edges in (("base", 2), ("patched", 1)):
        code, said = lab("--runs", folder.parent, "lockgraph", "show", "--side", side)
        assert code == 0
        assert f"{edges} direct dependencies" in said


def test_show_around_and_who_takes_it() -> None:
    code, said = lab("lockgraph", "show", DATA / BOOTS[0], "--around", "sb_pagefaults")
    assert code == 0
    assert "&mm->mmap_lock -> sb_pagefaults (ext4)  1 of 1 runs" in said
    code, said = lab("lockgraph", "show", DATA / BOOTS[0], "--edge", "mmap_lock", "sb_pagefaults")
    assert "&mm->mmap_lock -> sb_pagefaults (ext4) -> jbd2_handle" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["diff", "a", "b", "c"], "more than two"),
        (["diff", str(DATA / BOOTS[0])], "one side only"),
        (["show", "/no/such"], "no "),
        (["show", str(DATA / BOOTS[0]), "--around", "mmap_sem"], "no lock class"),
        (["show", str(DATA / BOOTS[0] / "lockdep_stats")], "not the text of /proc/lockdep"),
    ],
)
def test_what_cannot_be_had_is_said(args: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(model.UserError, match=said):
        lab("--runs", str(tmp_path), "lockgraph", *args)


# --- the verdict -------------------------------------------------------------------------------


def judged(record: RunRecord, *trials: Trial, locks: tuple[LockNews, ...] = ()) -> Verdict:
    return judge(
        JudgeInput(
            title="series",
            archs=record.manifest.archs,
            cases=record.manifest.cases,
            profile=record.manifest.profile,
            trials=trials or record.trials,
            kernels=record.kernels,
            failures=(),
            repeats=record.manifest.repeats,
            max_repeats=record.manifest.repeats,
            locks=locks,
        )
    )


def test_a_certain_cycle_is_a_finding() -> None:
    record = records.run(records.well, records.well)
    news = LockNews(arch="x86_64", cycles=(("a -> b -> a", "a -> b in patched #1"),), doubts=())
    verdict = judged(record, locks=(news,))
    assert verdict.outcome is Outcome.REGRESSED
    assert [f.kind for f in verdict.findings] == ["lock-cycle"]
    assert "new lock cycle: a -> b -> a" in verdict.sentence


def test_a_cycle_in_doubt_is_a_reason_to_look_and_no_regression() -> None:
    record = records.run(records.well, records.well)
    news = LockNews(arch="x86_64", cycles=(), doubts=("lock cycle a -> b -> a; not certain",))
    verdict = judged(record, locks=(news,))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.findings == ()
    assert any("a -> b -> a" in reason for reason in verdict.reasons)


def test_lockdep_out_of_room_is_coverage_lost_and_no_fault_of_the_series() -> None:
    record = records.run(records.well, records.well)
    limit = Splat(
        kind=Kind.LOCKDEP_LIMIT,
        title="BUG: MAX_LOCKDEP_ENTRIES too low!",
        first_line=7,
        last_line=9,
        fingerprint="f",
    )

    def spent(trial: Trial) -> Trial:
        *whole, last = trial.results
        over = replace(last, state=CaseState.UNCOVERED, splats=(limit,), message="no room")
        return replace(trial, results=(*whole, over))

    trials = tuple(spent(t) if t.cell.side is P else t for t in record.trials)
    verdict = judged(record, *trials)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.findings == ()
    told = [reason for reason in verdict.reasons if "coverage lost" in reason]
    assert len(told) == 1
    assert "2 of 2 patched machines (BUG: MAX_LOCKDEP_ENTRIES too low!)" in told[0]
    # Without a word on the console, but full all the same.
    files = replace(collecting.none(""), full=("lock-classes: 8192 of 8192",))
    full = tuple(replace(t, locks=files) if t.cell.side is B else t for t in record.trials)
    verdict = judged(record, *full)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert any("lock-classes: 8192 of 8192" in reason for reason in verdict.reasons)
