"""What a splat is measured against: the kernel's taint, and the allow-list of known splats."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from lab.model import CaseResult, CaseState, Splat, UserError
from lab.splat import account, allow, taint
from lab.splat.detector import scan
from lab.splat.kinds import Kind

GUEST = Path(__file__).parent / "data" / "splat" / "guest"
TODAY = datetime.date(2026, 6, 1)
ENTRY = """
[[allow]]
kind = "warning"
function = "drop_nlink"
archs = ["arm64"]
reason = "the test unlinks twice on purpose"
link = "https://example.org/why"
expires = 2026-12-31
"""


def splat(kind: Kind, **facts: object) -> Splat:
    values: dict[str, object] = {"title": "t", "first_line": 1, "last_line": 2, **facts}
    return Splat(kind=kind, **values)  # type: ignore[arg-type]


# --- taint ---------------------------------------------------------------------------------------


def test_letters_are_the_kernels() -> None:
    assert taint.letters(0) == ""
    assert taint.letters(512 | 4096) == "WO"
    assert taint.letters((1 << 7) | (1 << 14)) == "DL"


@pytest.mark.parametrize(
    ("line", "letters"),
    [
        ("CPU: 0 PID: 1 Comm: init Tainted: G        W  O       6.1.192-lab #1", "WO"),
        ("CPU: 0 PID: 1 Comm: init Tainted: G    B D      L     6.1.0 #1", "BDL"),
        ("CPU: 1 UID: 0 PID: 7 Comm: x Tainted: [D]=DIE, [W]=WARN, [O]=OOT_MODULE 6.12", "DWO"),
        ("CPU: 0 PID: 1 Comm: init Not tainted 6.1.192-lab #1", ""),
        ("provoke: loading out-of-tree module taints kernel.", ""),
    ],
)
def test_taint_as_a_console_shows_it(line: str, letters: str) -> None:
    assert taint.from_console([line]) == letters


def test_a_warning_nobody_reported_is_a_missed_splat() -> None:
    (missed,) = taint.unexplained(512, [])
    assert missed.letter == "W" and "warning" in missed.meaning
    assert taint.unexplained(512, [splat(Kind.WARNING)]) == ()
    assert taint.unexplained(512, [splat(Kind.OOM)]) == (missed,)


def test_a_module_is_nobodys_splat_and_an_old_taint_is_old() -> None:
    assert taint.unexplained(1 << 12, []) == ()
    assert taint.unexplained(512 | 128, [], before=512 | 128) == ()
    assert [each.letter for each in taint.unexplained("DW", [], before="W")] == ["D"]


@pytest.mark.parametrize("log", sorted(GUEST.glob("*.log")), ids=lambda log: log.stem)
def test_every_taint_of_our_guests_is_accounted_for(log: Path) -> None:
    lines = log.read_text().splitlines()
    found = scan(lines)
    shown = taint.from_console(lines)
    assert taint.unexplained(shown, found) == ()
    if set(shown) & set("BDLMW"):
        assert taint.unexplained(shown, []) != ()


# --- what becomes of a case ----------------------------------------------------------------------

W, D, OOT = 1 << 9, 1 << 7, 1 << 12


def case(name: str, state: CaseState = CaseState.PASSED, *splats: Splat) -> CaseResult:
    return account.charged(CaseResult(name=name, state=state), splats)


def states(results: tuple[CaseResult, ...]) -> list[str]:
    return [str(result.state) for result in results]


def test_a_taint_without_a_report_is_never_green() -> None:
    results = (case("a"), case("b"), case("c", CaseState.SKIPPED))
    taints = {"a": (0, OOT), "b": (OOT, OOT | W), "c": (OOT | W, OOT | W | D)}
    checked = account.cross_checked(results, (), taints)
    assert states(checked) == ["passed", "failed", "failed"]
    assert checked[1].message == "tainted (W) without a report: a missed splat"
    assert "(D)" in checked[2].message


def test_a_taint_with_its_report_is_that_reports_case() -> None:
    warned = case("a", CaseState.PASSED, splat(Kind.WARNING))
    assert warned.state is CaseState.FAILED and warned.message == "ended well, but: t"
    (checked,) = account.cross_checked((warned,), (), {"a": (0, W)})
    assert checked == warned


def test_a_report_at_the_end_of_a_case_explains_the_taint_seen_after_the_next() -> None:
    results = (case("a", CaseState.PASSED, splat(Kind.WARNING)), case("b"), case("c"))
    taints = {"a": (0, 0), "b": (0, W), "c": (W, W | D)}
    checked = account.cross_checked(results, (), taints)
    assert states(checked) == ["failed", "passed", "failed"]
    assert "(D)" in checked[2].message


def test_a_boot_that_tainted_is_charged_to_the_first_case() -> None:
    checked = account.cross_checked((case("a"), case("b")), (), {account.BOOT: (0, W)})
    assert states(checked) == ["failed", "passed"]
    assert checked[0].message == "tainted (W) at boot without a report: a missed splat"
    explained = account.cross_checked((case("a"),), (splat(Kind.WARNING),), {account.BOOT: (0, W)})
    assert states(explained) == ["passed"]


def test_a_crashed_case_stays_crashed() -> None:
    (checked,) = account.cross_checked((case("a", CaseState.CRASHED),), (), {"a": (0, W)})
    assert checked.state is CaseState.CRASHED and "missed splat" in checked.message


def test_a_known_splat_is_let_pass_and_stays_visible() -> None:
    entries = allow.parse(ENTRY.encode(), origin="known.toml")
    known = splat(Kind.WARNING, function="drop_nlink")
    other = splat(Kind.WARNING, function="set_nlink")
    marked = account.excused([known, other], entries, arch="arm64", today=TODAY)
    assert [each.allowed for each in marked] == [
        "the test unlinks twice on purpose (https://example.org/why)",
        "",
    ]
    passed = case("a", CaseState.PASSED, marked[0])
    assert passed.state is CaseState.PASSED
    assert "allowed: t: the test unlinks twice" in passed.message and passed.splats
    assert account.cross_checked((passed,), (), {"a": (0, W)}) == (passed,)
    assert case("a", CaseState.PASSED, *marked).state is CaseState.FAILED


def test_a_case_awaits_splats_by_kind_or_by_kind_and_title() -> None:
    stale, other = splat(Kind.FS_ERROR, title="stale page"), splat(Kind.FS_ERROR, title="no inode")
    warned = splat(Kind.WARNING, title="stale page")

    def passes(*awaited: str) -> list[bool]:
        seen = account.expected((stale, other, warned), awaited)
        return [bool(each.allowed) for each in seen]

    assert passes("fs-error") == [True, True, False]
    assert passes("fs-error:stale page") == [True, False, False]
    assert passes("fs-error:", "io-error:no inode", "stale page") == [False] * 3


def test_an_expired_entry_is_reported_and_lets_nothing_pass() -> None:
    entries = allow.parse(ENTRY.encode(), origin="known.toml")
    later = datetime.date(2027, 1, 1)
    assert allow.expired(entries, today=TODAY) == ()
    assert allow.expired(entries, today=later) == (
        "known.toml, entry 1: expired on 2026-12-31, so warning drop_nlink is no longer allowed",
    )
    known = splat(Kind.WARNING, function="drop_nlink")
    (marked,) = account.excused([known], entries, arch="arm64", today=later)
    assert marked.allowed == ""


# --- allow-list ----------------------------------------------------------------------------------


def test_an_entry_excuses_what_it_names_and_nothing_else() -> None:
    entries = allow.parse(ENTRY.encode(), origin="known.toml")
    known = splat(Kind.WARNING, function="drop_nlink")
    excused = [
        entry
        for case in (
            known,
            splat(Kind.WARNING, function="set_nlink"),
            splat(Kind.BUG, function="drop_nlink"),
            splat(Kind.WARNING, function="drop_nlink", fatal=True),
        )
        for _, entry in allow.excuse([case], entries, arch="arm64", today=TODAY)
    ]
    assert excused == [entries[0], None, None, None]


def test_an_entry_holds_on_its_architecture_and_until_its_day() -> None:
    (entry,) = allow.parse(ENTRY.encode(), origin="known.toml")
    known = splat(Kind.WARNING, function="drop_nlink")
    assert entry.excuses(known, arch="arm64", today=entry.expires)
    assert not entry.excuses(known, arch="x86_64", today=TODAY)
    assert not entry.excuses(known, arch="arm64", today=entry.expires + datetime.timedelta(1))


def test_a_title_is_a_pattern() -> None:
    text = ENTRY.replace('function = "drop_nlink"', 'title = "WARNING in *_nlink"')
    (entry,) = allow.parse(text.encode(), origin="known.toml")
    known = splat(Kind.WARNING, title="WARNING in drop_nlink")
    assert entry.excuses(known, arch="arm64", today=TODAY)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('reason = "the test unlinks twice on purpose"', "", "reason is missing"),
        ('link = "https://example.org/why"', 'link = " "', "link is missing"),
        ("expires = 2026-12-31", "", "expires is not a date"),
        ("expires = 2026-12-31", 'expires = "never"', "expires is not a date"),
        ('function = "drop_nlink"', "", "it would excuse every splat"),
        ('kind = "warning"', 'kind = "warnung"', "unknown kind 'warnung'"),
        ('kind = "warning"', "kinds = 1", "unknown key 'kinds'"),
        ('archs = ["arm64"]', "archs = 64", "archs is not a list"),
        ("[[allow]]", "[[allowed]]", "unknown key 'allowed'"),
        ("[[allow]]", "[[allow", "known.toml: "),
    ],
)
def test_a_bad_entry_is_named(old: str, new: str, complaint: str) -> None:
    with pytest.raises(UserError) as raised:
        allow.parse(ENTRY.replace(old, new).encode(), origin="known.toml")
    assert complaint in raised.value.message and "known.toml" in raised.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        allow.load(tmp_path / "known.toml")
