"""Lock graphs: real files of our guests, identity over boots, what counts can say, cycles."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import model
from lab.lockgraph import cycles, keys, news, proc, stored
from lab.lockgraph.diff import Change, Counts, LockDiff, Observation, change, diff
from lab.lockgraph.focus import find, focus, suggest
from lab.lockgraph.graph import LockGraph, build
from lab.lockgraph.identity import identify
from lab.model import Side, UserError
from tests import locks
from tests.locks import BOOTS, DATA, HASHED, boot, real, runs

B, P = Side.BASE, Side.PATCHED
AB, BA, BC, CA = ("a", "b"), ("b", "a"), ("b", "c"), ("c", "a")


# --- the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [path.name for path in sorted(DATA.iterdir())])
def test_every_line_of_a_real_file_is_understood(name: str) -> None:
    graph = real(name)
    assert graph.unread == 0
    assert len(graph.classes) > 50
    assert graph.alive is True
    assert graph.limits == ()
    assert {"R", "W", ""} == {stat.row.mode for stat in graph.stats}


def test_what_a_real_file_says() -> None:
    folder = DATA / BOOTS[0]
    entries = {e.named.full: e for e in proc.classes((folder / "lockdep").read_text()).entries}
    mmap = entries["&mm->mmap_lock"]
    assert (mmap.ops, mmap.forward, mmap.backward, mmap.usage) == (245535, 165, 20, "++++")
    assert {"sb_pagefaults", "sb_pagefaults#2"} <= {lock.full for lock in mmap.after}
    assert entries["&mm->mmap_lock/1"].named.subclass == 1
    stat = proc.lock_stat((folder / "lock_stat").read_text())
    (row,) = [r for r in stat.rows if (r.name, r.mode) == ("&mm->mmap_lock", "R")]
    assert (row.contentions, row.acquisitions) == (12015, 239839)
    assert (row.wait_max_us, row.hold_max_us) == (482698.50, 344849.01)
    waits = [w for w in stat.waiters if w.name == "&mm->mmap_lock" and not w.holds]
    holds = [w for w in stat.waiters if w.name == "&mm->mmap_lock" and w.holds]
    assert max(waits, key=lambda w: w.count).place == "lock_mm_and_find_vma+0x183/0x2a0"
    assert [w.count for w in holds] == [5240, 957, 124, 6866]


def test_limits_are_told() -> None:
    text = (DATA / BOOTS[0] / "lockdep_stats").read_text()
    full = text.replace("4714 [max: 131072]", "131072 [max: 131072]")
    graph = build(lockdep=locks.lockdep([AB]), stats=full)
    assert graph.limits == ("direct dependencies: 131072 of 131072",)


@pytest.mark.parametrize("read", [proc.classes, proc.chains, proc.stats, proc.lock_stat])
def test_another_text_is_an_error_of_the_user(read: object) -> None:
    assert callable(read)
    with pytest.raises(UserError):
        read("root:x:0:0:root:/root:/bin/bash\n")


names = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20
).filter(lambda text: text.strip() == text and "\x85" not in text)


@given(names, st.integers(1, 200), st.integers(0, 7))
def test_a_name_comes_apart_as_it_was_put_together(name: str, number: int, subclass: int) -> None:
    whole = proc.Named(key="0" * 16, name=name, number=number, subclass=subclass)
    again = proc.named("0" * 16, whole.full)
    assert again.full == whole.full
    if not any(char in name for char in "#/"):
        assert again == whole


@given(st.lists(st.tuples(names, names), max_size=12, unique=True))
def test_classes_and_edges_come_back(pairs: list[tuple[str, str]]) -> None:
    found = proc.classes(locks.lockdep(pairs))
    assert found.unread == 0
    assert {(e.named.full, b.full) for e in found.entries for b in e.after} == set(pairs)


@given(st.text(max_size=300))
def test_no_text_breaks_the_readers(text: str) -> None:
    proc.classes(f"all lock classes:\n{text}")
    proc.chains(f"all lock chains:\n{text}")
    proc.lock_stat(f"lock_stat version 0.4\n{text}")


def test_a_graph_round_trips() -> None:
    for name in (*BOOTS, HASHED):
        graph = real(name)
        assert model.decode(model.encode(graph), LockGraph) == graph
    whole = diff([*runs(B, real(BOOTS[0])), *runs(P, real(BOOTS[1]))])
    assert model.decode(model.encode(whole), LockDiff) == whole


def test_the_edge_past_a_trylock_is_found_again() -> None:
    """c was waited for with a held and b taken by trylock in between: lockdep drew a -> c too."""
    key = {name: f"{n:016x}" for n, name in enumerate("abc", 1)}
    chains = "all lock chains:\n"
    for held in (["a"], ["a", "b", "c"]):
        chains += "irq_context: 0\n" + "".join(f"[{key[n]}] {n}\n" for n in held) + "\n"
    found = build(lockdep=locks.lockdep([BC]), chains=chains)
    # The keys of the two texts differ, so names are what is left.
    label = [lock.name for lock in found.classes]
    past = {(label[e.before], label[e.after]) for e in found.edges if not e.direct}
    assert ("a", "c") in past
    # Had b been waited for, its own chain would be there, and lockdep would have stopped at it.
    chains += f"irq_context: 0\n[{key['a']}] a\n[{key['b']}] b\n\n"
    found = build(lockdep=locks.lockdep([BC]), chains=chains)
    assert not {e for e in found.edges if not e.direct and label[e.after] == "c"} - {
        e for e in found.edges if label[e.before] == "b"
    }


def test_a_cut_name_of_lock_stat_means_all_that_it_may_mean() -> None:
    """Versions from 10 on lose a digit: "#1" is 10 to 19."""
    edges = [(f"&x->wait#{n}", "b") for n in (2, 10, 11)]
    graph = build(lockdep=locks.lockdep(edges), lock_stat=locks.lock_stat(["&x->wait#1"]))
    (stat,) = graph.stats
    assert sorted(graph.classes[n].number for n in stat.classes) == [10, 11]


# --- keys and identity -------------------------------------------------------------------------

NM = """\
0000000000000000 a super.c
ffffffff82000000 T _stext
ffffffff82001000 d $d
ffffffff82001000 d ext4_fs_type
ffffffff82002000 b __key.3
ffffffff82002010 b __key.11
0000000000000000 a core.c
ffffffff82003000 b __key.0
0000000000000000 a core.c
ffffffff82003010 b __key.0
ffffffff82004000 D init_mm
ffffffff82005000 B _end
0000000000000018 D per_cpu_thing
"""


def test_a_key_is_known_by_its_symbol() -> None:
    known = keys.symbols(NM)
    listed = ["ffffffff82001088", "ffffffff82002010", "ffffffff82003010", "ffff888012345678"]
    found = {entry.key: entry.home for entry in keys.homes(listed, known)}
    assert found["ffffffff82001088"] == keys.Home(
        symbol="ext4_fs_type", offset=0x88, file="super.c", nth_file=1
    )
    assert (found["ffffffff82002010"].rank, found["ffffffff82002010"].of) == (2, 2)
    assert found["ffffffff82003010"].nth_file == 2
    assert "ffff888012345678" not in found, "the heap has no symbols"
    moved = {entry.key: entry.home for entry in keys.homes(["ffffffff92001088"], known, text=0)}
    assert moved == {}
    slid = keys.homes(["ffffffff92001088"], known, text=0xFFFFFFFF92000000)
    assert slid[0].home == found["ffffffff82001088"]


def test_numbers_of_two_boots_that_differ_are_the_same_locks() -> None:
    """The second boot took xfs first, so it numbered the file systems' locks the other way."""
    first, second = (real(name) for name in BOOTS)
    known = identify([first, second])
    number = [
        {labels[n]: lock.number for n, lock in enumerate(graph.classes)}
        for graph, labels in zip((first, second), known.labels, strict=True)
    ]
    label = "sb_pagefaults (ext4)"
    assert (number[0][label], number[1][label]) == (1, 2)
    assert all(len(set(labels)) == len(labels) for labels in known.labels)
    vague = {label for label, lock in known.ids.items() if not lock.exact}
    assert vague == {"lock", "lock#4", "lock#5", "lock#6"}, "per-CPU keys have no symbol"


def test_a_name_that_is_a_line_of_the_source_may_move() -> None:
    moved = [boot(("a", f"mm/vmstat.c:{line}")) for line in (2006, 2008)]
    for graph in moved:
        (lock,) = [c for c in graph.classes if "vmstat" in c.name]
        assert lock.home is not None
    same = [
        replace(g, classes=tuple(replace(c, home=keys.Home(symbol=c.name[:8])) for c in g.classes))
        for g in moved
    ]
    known = identify(same)
    assert set(known.ids) == {"a", "mm/vmstat.c"}


def test_nesting_levels_of_one_key_belong_together() -> None:
    """ "i_mutex_dir_key#5/1" and "#6" of this boot are one lock, by their key."""
    graph = real(BOOTS[0])
    (labels,) = identify([graph]).labels
    numbers = {labels[n]: lock.number for n, lock in enumerate(graph.classes)}
    assert numbers["&type->i_mutex_dir_key/1 (ext4)"] != numbers["&type->i_mutex_dir_key (ext4)"]


def test_hashed_keys_leave_numbered_locks_untold() -> None:
    whole = diff([*runs(B, real(BOOTS[0])), *runs(P, real(HASHED))])
    told = {edge.change for edge in whole.edges if "sb_pagefaults" in edge.before + edge.after}
    assert told <= {Change.SAME, Change.UNTOLD}
    assert any("hashed" in doubt for doubt in whole.doubts)


@settings(deadline=None)
@given(st.permutations(range(4)))
def test_labels_do_not_depend_on_the_order_of_boots(order: list[int]) -> None:
    graphs = [real(BOOTS[0]), real(BOOTS[1]), boot(AB), boot(BC)]
    plain = identify(graphs)
    mixed = identify([graphs[n] for n in order])
    assert mixed.ids == plain.ids
    assert [mixed.labels[order.index(n)] for n in range(4)] == list(plain.labels)


# --- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "patched", "expected"),
    [
        ((3, 3), (0, 3), Change.GONE),
        ((0, 3), (3, 3), Change.NEW),
        ((2, 2), (0, 2), Change.NOT_SEEN),
        ((0, 2), (2, 2), Change.ONLY_SEEN),
        ((1, 3), (0, 3), Change.VARIES),
        ((2, 3), (3, 3), Change.VARIES),
        ((3, 3), (3, 3), Change.SAME),
        ((5, 6), (0, 6), Change.GONE),
        ((3, 3), (0, 0), Change.UNTOLD),
        ((1, 9), (0, 9), Change.VARIES),
    ],
)
def test_what_counts_can_say(
    base: tuple[int, int], patched: tuple[int, int], expected: Change
) -> None:
    counts = Counts(base=base[0], base_runs=base[1], patched=patched[0], patched_runs=patched[1])
    assert change(counts) is expected


def the_edge(whole: LockDiff, before: str, after: str) -> tuple[Change, Counts]:
    (edge,) = [e for e in whole.edges if (e.before, e.after) == (before, after)]
    return edge.change, edge.counts


def test_an_edge_that_goes_is_gone() -> None:
    whole = diff([*runs(B, *[boot(AB, BC)] * 3), *runs(P, *[boot(BC)] * 3)])
    assert the_edge(whole, *AB)[0] is Change.GONE
    assert the_edge(whole, *BC)[0] is Change.SAME
    assert news.sentence(whole, "a").startswith(
        "1 edge gone, 0 new (chance alone would make about 0); no new cycle; a no more -> b"
    )


def test_what_one_boot_drew_counts_once() -> None:
    """Restored from one snapshot, all runs of a side show what its one boot happened to draw."""
    kept, drawn = ("a", "b"), ("a", "c")
    base = runs(Side.BASE, *[boot(kept, drawn)] * 6, boot="snapshot")
    patched = runs(Side.PATCHED, *[boot(kept)] * 6, boot="snapshot")
    found = diff([*base, *patched])
    (edge,) = [e for e in found.edges if (e.before, e.after) == drawn]
    assert edge.change is Change.NOT_SEEN
    assert (edge.counts.base, edge.counts.base_runs) == (6, 6)
    assert found.shared_boots and found.by_chance is None
    assert any("one boot" in doubt for doubt in found.doubts)


def test_what_came_after_a_shared_boot_counts_run_by_run() -> None:
    kept, later = ("a", "b"), ("a", "c")
    base = runs(Side.BASE, boot(kept), *[boot(kept, later)] * 7, boot="snapshot")
    patched = runs(Side.PATCHED, *[boot(kept)] * 8, boot="snapshot")
    (edge,) = [e for e in diff([*base, *patched]).edges if (e.before, e.after) == later]
    assert edge.change is Change.GONE


@pytest.mark.parametrize("dead", ["lockdep had switched itself off", "not all cases passed there"])
def test_the_silence_of_a_run_in_doubt_says_nothing(dead: str) -> None:
    silent = runs(P, *[boot(BC)] * 3, doubt=dead)
    whole = diff([*runs(B, *[boot(AB, BC)] * 3), *silent])
    found, counts = the_edge(whole, *AB)
    assert found is Change.UNTOLD
    assert counts == Counts(base=3, base_runs=3, patched=0, patched_runs=0)
    assert any(dead in doubt for doubt in whole.doubts)
    # What it shows, it shows.
    shown = diff([*runs(B, *[boot(BC)] * 3), *runs(P, boot(AB, BC), doubt=dead)])
    assert the_edge(shown, *AB)[1].patched == 1


def test_chance_is_told() -> None:
    """Edges that come and go in one kernel differ between any two halves of its runs."""
    mixed = [boot(AB, *((f"x{n}", f"y{n}") for n in range(8) if n >> bit & 1)) for bit in range(4)]
    whole = diff([*runs(B, *mixed[:2]), *runs(P, *mixed[2:])])
    assert whole.by_chance is not None
    assert whole.by_chance > 0
    same = diff([*runs(B, *[boot(AB)] * 2), *runs(P, *[boot(AB)] * 2)])
    assert same.by_chance == 0
    assert diff([*runs(B, boot(AB)), *runs(P, boot(AB))]).by_chance is None


pairs_of = st.lists(st.sampled_from([(a, b) for a in "abcd" for b in "abcd" if a != b]), max_size=6)
_SWAPPED = {
    Change.GONE: Change.NEW,
    Change.NEW: Change.GONE,
    Change.NOT_SEEN: Change.ONLY_SEEN,
    Change.ONLY_SEEN: Change.NOT_SEEN,
}


@settings(deadline=None)
@given(st.lists(pairs_of, min_size=1, max_size=4), st.lists(pairs_of, min_size=1, max_size=4))
def test_swapping_the_sides_swaps_the_words(
    base: list[list[tuple[str, str]]], patched: list[list[tuple[str, str]]]
) -> None:
    there = diff([*_observed(B, base), *_observed(P, patched)])
    back = diff([*_observed(P, base), *_observed(B, patched)])
    assert len(there.edges) == len(back.edges)
    for one, other in zip(there.edges, back.edges, strict=True):
        assert (one.before, one.after) == (other.before, other.after)
        assert _SWAPPED.get(one.change, one.change) is other.change
    assert there.by_chance == back.by_chance


def _observed(side: Side, boots: Iterable[list[tuple[str, str]]]) -> list[Observation]:
    return runs(side, *(boot(*dict.fromkeys(pairs)) for pairs in boots))


@settings(deadline=None)
@given(st.lists(pairs_of, min_size=1, max_size=5))
def test_a_kernel_does_not_differ_from_itself(boots: list[list[tuple[str, str]]]) -> None:
    whole = diff([*_observed(B, boots), *_observed(P, boots)])
    assert {e.change for e in whole.edges} <= {Change.SAME, Change.VARIES}
    assert whole.cycles == ()


# --- cycles ------------------------------------------------------------------------------------


def test_a_cycle_that_no_boot_could_see() -> None:
    whole = diff([*runs(B, *[boot(AB)] * 6), *runs(P, *[boot(BA)] * 5, boot(AB))])
    (cycle,) = whole.cycles
    assert cycle.certain
    assert cycle.text == "b -> a -> b"
    assert [step.on_base for step in cycle.steps] == [False, True]
    found = news.news(whole, "x86_64")
    assert found.doubts == ()
    ((title, evidence),) = found.cycles
    assert title == "b -> a -> b"
    assert "a -> b in patched #6, machine 11" in evidence
    assert "b -> a in patched #1, machine 6, patched #2" in evidence
    assert "(in no run of the base)" in evidence
    assert "1 new cycle" in news.sentence(whole)


def test_a_cycle_seen_once_never_blames_the_series() -> None:
    whole = diff([*runs(B, *[boot(AB)] * 2), *runs(P, boot(AB), boot(BA))])
    (cycle,) = whole.cycles
    assert not cycle.certain
    assert "may be chance" in cycle.doubt
    assert news.news(whole, "x86_64").cycles == ()
    assert "1 possible cycle to look at" in news.sentence(whole)


def test_a_cycle_within_one_boot_is_lockdeps_own_business() -> None:
    assert diff([*runs(B, boot(AB)), *runs(P, boot(AB, BA), boot(AB, BA))]).cycles == ()


def test_a_cycle_that_the_base_has_is_not_the_series() -> None:
    both = [boot(AB), boot(BA)]
    assert diff([*runs(B, *both), *runs(P, *both)]).cycles == ()


def test_recursive_readers_leave_a_cycle_in_doubt() -> None:
    pair = [boot(AB, readers=["a"]), boot(BA, readers=["a"])]
    (cycle,) = diff([*runs(B, pair[0]), *runs(P, *pair)]).cycles
    assert not cycle.certain
    assert "recursive readers" in cycle.doubt
    fair = [("&mm->mmap_lock", "b"), ("b", "&mm->mmap_lock")]
    pair = [boot(edge, readers=["&mm->mmap_lock"]) for edge in fair]
    (cycle,) = diff([*runs(B, *[pair[0]] * 6), *runs(P, pair[0], *[pair[1]] * 5)]).cycles
    assert cycle.certain, "a rwsem's readers wait for a waiting writer"


def test_locks_known_by_number_leave_a_cycle_in_doubt() -> None:
    edges = [("lock", "b"), ("b", "lock"), ("lock#2", "b")]
    pair = [boot(edges[0], edges[2], homes=False), boot(edges[1], edges[2], homes=False)]
    (cycle,) = diff([*runs(B, pair[0]), *runs(P, *pair)]).cycles
    assert not cycle.certain
    assert "different locks" in cycle.doubt


@settings(deadline=None)
@given(st.lists(pairs_of, min_size=2, max_size=4), pairs_of)
def test_cycles_are_new_and_lie_in_no_boot(
    patched: list[list[tuple[str, str]]], base: list[tuple[str, str]]
) -> None:
    traits = {n: cycles.Trait(name=n, exact=True, shared=False) for n in "abcd"}
    boots = {f"#{n}": pairs for n, pairs in enumerate(patched)}
    union = {pair for pairs in patched for pair in pairs}
    found = cycles.new_cycles(boots, base, traits, direct=union)
    for cycle in found:
        around = [step.before for step in cycle.steps]
        assert len(set(around)) == len(around)
        edges = set(pairwise([*around, around[0]]))
        assert edges <= union
        assert edges - set(base)
        assert not any(edges <= set(pairs) for pairs in patched)
    if not found:  # then no new pair of edges closes a cycle of two over two boots
        for a, b in union - set(base):
            here = {n for n, pairs in enumerate(patched) if (a, b) in pairs}
            there = {n for n, pairs in enumerate(patched) if (b, a) in pairs}
            assert not there or here & there


# --- focus -------------------------------------------------------------------------------------


def test_a_class_is_found_by_the_name_that_people_use() -> None:
    labels = ["&mm->mmap_lock", "&mm->mmap_lock/1", "sb_pagefaults (ext4)", "sb_pagefaults (xfs)"]
    assert find(labels, "mmap_lock") == ("&mm->mmap_lock", "&mm->mmap_lock/1")
    assert find(labels, "sb_pagefaults (xfs)") == ("sb_pagefaults (xfs)",)
    assert len(find(labels, "sb_pagefaults")) == 2
    with pytest.raises(UserError) as failed:
        find(labels, "mmap_sem")
    assert "mmap_lock" in failed.value.hint


def test_the_focus_has_what_changed_and_counts_the_rest() -> None:
    calm = [("a", f"n{n:02}") for n in range(30)] + [(f"m{n}", "a") for n in range(3)]
    whole = diff([*runs(B, *[boot(AB, *calm)] * 3), *runs(P, *[boot(("a", "c"), *calm)] * 3)])
    assert suggest(whole) == "a"
    seen = focus(whole, "a")
    changed = {(e.before, e.after): e.change for e in seen.edges if e.change is not Change.SAME}
    assert changed == {AB: Change.GONE, ("a", "c"): Change.NEW}
    drawn = len(seen.nodes) - 3
    assert drawn + seen.hidden_before + seen.hidden_after == 33
    assert seen.hidden_after > 0


def test_an_mm_series_is_looked_at_around_mmap_lock() -> None:
    lost = [("&mm->mmap_lock", "sb_pagefaults"), ("x", "y"), ("x", "z"), ("x", "w")]
    whole = diff([*runs(B, *[boot(*lost, AB)] * 3), *runs(P, *[boot(AB)] * 3)])
    assert suggest(whole) == "x"
    assert suggest(whole, ["mm: drop it"]) == "&mm->mmap_lock"
    assert suggest(diff([*runs(B, boot(AB)), *runs(P, boot(AB))])) is None


# --- files on disk -----------------------------------------------------------------------------


def test_packed_and_plain_files_are_alike(tmp_path: Path) -> None:
    for file in (DATA / BOOTS[0]).iterdir():
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert stored.read(tmp_path) == real(BOOTS[0])
    (only,) = stored.boots(tmp_path / "lockdep.gz")
    assert only == real(BOOTS[0]), "its neighbours are read with it"
    assert len(stored.boots(DATA)) == len(list(DATA.iterdir()))


def test_damaged_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "lockdep.gz").write_bytes(gzip.compress(b"all lock classes:\n" * 99)[:-12])
    with pytest.raises(UserError, match="cannot be read"):
        stored.read(tmp_path)
    with pytest.raises(UserError, match="no lockdep file"):
        stored.read(tmp_path / "nothing")


def test_an_old_graph_without_homes_is_not_compared_by_place() -> None:
    keyed = real(BOOTS[0])
    bare = replace(keyed, classes=tuple(replace(c, home=None) for c in keyed.classes))
    assert identify([keyed, bare]).by_number
