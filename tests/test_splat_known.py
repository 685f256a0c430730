"""What a splat is measured against: the kernel's taint, and the allow-list of known splats."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from lab.model import Splat, UserError
from lab.splat import allow, taint
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
