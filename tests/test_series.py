"""Mails to series: order, validation, series.toml; every refusal names the patch."""

from __future__ import annotations

import base64
import quopri
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab import diff, series
from lab.diff import DiffError, parse_diff
from lab.model import FileChange, Series, UserError, decode, encode

DIFF = """\
diff --git a/mm/memory.c b/mm/memory.c
index 1111111..2222222 100644
--- a/mm/memory.c
+++ b/mm/memory.c
@@ -10,4 +10,5 @@ int fault(void)
 one
-two
+TWO
+and a half
 three
 four
@@ -40,2 +41,3 @@
 x
+y
 z
"""


def mail(
    subject: str,
    body: str = DIFF,
    *,
    author: str = "A U Thor <a@example.org>",
    message: str = "Because.\n",
    headers: str = "",
) -> bytes:
    return (
        f"From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"
        f"From: {author}\nDate: Mon, 6 Jan 2025 10:00:00 +0100\nSubject: {subject}\n{headers}\n"
        f"{message}---\n mm/memory.c | 3 ++-\n\n{body}-- \n2.39.5\n\n"
    ).encode()


def parse(mails: Sequence[tuple[str, bytes]], toml: str | None = None) -> Series:
    return series.parse(
        mails, title="t", origin="dir", toml=None if toml is None else toml.encode()
    )


def refused(body: str, name: str = "0001-a.patch") -> UserError:
    with pytest.raises(UserError) as caught:
        parse([(name, mail("[PATCH] a", body))])
    assert name in caught.value.message
    assert caught.value.hint
    return caught.value


# --- what is read ------------------------------------------------------------------------------


def test_a_patch_as_format_patch_writes_it() -> None:
    found = parse([("0001-a.patch", mail("[PATCH v3] mm: say why"))])
    (patch,) = found.patches
    assert (patch.name, patch.subject) == ("0001-a.patch", "mm: say why")
    assert patch.author == "A U Thor <a@example.org>"
    assert patch.changes == (
        FileChange(
            old_path="mm/memory.c",
            new_path="mm/memory.c",
            added=3,
            removed=1,
            added_lines=(11, 12, 42),
        ),
    )
    assert series.mail_bytes(patch) == mail("[PATCH v3] mm: say why")


@pytest.mark.parametrize("encoding", ["quoted-printable", "base64"])
def test_transfer_encodings_are_undone(encoding: str) -> None:
    head, _, body = mail("[PATCH] =?utf-8?q?mm=3A_caf=C3=A9?=").partition(b"\n\n")
    coded = quopri.encodestring(body) if encoding[0] == "q" else base64.encodebytes(body)
    raw = head + f"\nContent-Transfer-Encoding: {encoding}\n\n".encode() + coded
    (patch,) = parse([("a.patch", raw)]).patches
    assert patch.subject == "mm: café"
    assert patch.changes[0].added_lines == (11, 12, 42)


def test_the_author_in_the_text_wins_as_in_git_am() -> None:
    raw = mail("[PATCH] a", message="From: Real <real@example.org>\n\nBecause.\n")
    assert parse([("a", raw)]).patches[0].author == "Real <real@example.org>"


def test_a_bare_diff_of_quilt_becomes_a_mail() -> None:
    (patch,) = parse([("fix-it.patch", DIFF.encode())]).patches
    assert patch.subject == "fix-it"
    assert patch.mail.startswith("From: ")
    assert patch.changes[0].path == "mm/memory.c"


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("--- a/x.c\t2024-01-01\n+++ b/x.c\t2024\n@@ -1 +1 @@\n-a\n+b\n", "x.c", "x.c"),
        ("--- /dev/null\n+++ b/n.c\n@@ -0,0 +1 @@\n+b\n", None, "n.c"),
        ("--- a/g.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-b\n", "g.c", None),
        ("diff --git a/e b/e\nnew file mode 100644\nindex 000..e69\n", None, "e"),
        ("diff --git a/e b/e\nold mode 100644\nnew mode 100755\n", "e", "e"),
        ("diff --git a/a b c b/a b c\ndeleted file mode 100644\n", "a b c", None),
        (
            "diff --git a/o.c b/n.c\nsimilarity index 100%\nrename from o.c\nrename to n.c\n",
            "o.c",
            "n.c",
        ),
        (
            'diff --git "a/f\\303\\266.c" "b/f\\303\\266.c"\nindex 1..2 100644\n'
            '--- "a/f\\303\\266.c"\n+++ "b/f\\303\\266.c"\n@@ -1 +1 @@\n-a\n+b\n',
            "fö.c",
            "fö.c",
        ),
    ],
)
def test_kinds_of_change(text: str, old: str | None, new: str | None) -> None:
    (change,) = parse_diff(text.encode())
    assert (change.old_path, change.new_path) == (old, new)


def test_lines_that_look_like_headers_inside_a_hunk_are_lines() -> None:
    text = "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n--- old\n+++ new\n c\n"
    (change,) = parse_diff(text.encode())
    assert (change.added, change.removed) == (1, 1)


def test_a_hunk_quoted_in_the_message_is_prose() -> None:
    raw = mail("[PATCH] a", message="@@ -1,9 +1,9 @@ is what broke\nBinary files a and b differ\n")
    assert len(parse([("a", raw)]).patches[0].changes) == 1


def test_no_newline_at_the_end() -> None:
    text = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n\\ No newline\n"
    assert parse_diff(text.encode())[0].added == 1


# --- order -------------------------------------------------------------------------------------


def test_numbers_decide_and_the_cover_is_taken_apart() -> None:
    found = parse(
        [
            ("c", mail("[PATCH v2 2/2] second")),
            ("b", mail("[PATCH v2 1/2] first")),
            ("a", mail("[PATCH v2 0/2] Both of them", "", message="Hello,\n\nthis is why.\n")),
        ]
    )
    assert [patch.subject for patch in found.patches] == ["first", "second"]
    assert found.title == "Both of them"
    assert found.cover.startswith("Hello,")
    assert "2.39.5" not in found.cover


def test_ten_comes_after_nine() -> None:
    mails = [("", mail(f"[PATCH {n:02d}/10] p{n}")) for n in (10, *range(1, 10))]
    found = parse(mails).patches
    assert [patch.subject for patch in found] == [f"p{n}" for n in range(1, 11)]
    assert found[9].name == "0010-p10.patch"


@pytest.mark.parametrize(
    ("subjects", "words"),
    [
        (["[PATCH 1/3] a", "[PATCH 3/3] c"], ["2/3", "not complete"]),
        (["[PATCH 1/2] a", "[PATCH 1/2] b", "[PATCH 2/2] c"], ["twice", "m0", "m1"]),
        (["[PATCH 1/2] a", "[PATCH 2/3] b"], ["m1", "2/3"]),
        (["[PATCH 1/999999999999] a"], ["m0", "no part"]),
        (["[PATCH 3/2] a"], ["3/2"]),
        (["[PATCH 1/1] a", "stray"], ["m1", "not numbered"]),
        (["[PATCH 0/1] a"], ["no patch"]),
    ],
)
def test_incomplete_series_are_refused(subjects: list[str], words: list[str]) -> None:
    mails = [
        (f"m{place}", mail(subject, "" if " 0/" in subject else DIFF))
        for place, subject in enumerate(subjects)
    ]
    with pytest.raises(UserError) as caught:
        parse(mails)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_an_order_that_the_user_gave_stays() -> None:
    mails = [("b", mail("[PATCH 2/7] second")), ("a", mail("[PATCH 1/3] first"))]
    found = series.parse(mails, title="t", origin="o", ordered=True)
    assert [patch.name for patch in found.patches] == ["b", "a"]


def test_two_cover_letters() -> None:
    with pytest.raises(UserError, match="two cover letters"):
        parse([("a", mail("[PATCH 0/1] x", "")), ("b", mail("[PATCH 0/1] y", ""))])


def test_a_cover_with_a_diff_is_refused() -> None:
    with pytest.raises(UserError, match="carries a diff"):
        parse([("a", mail("[PATCH 0/1] x")), ("b", mail("[PATCH 1/1] y"))])


def test_an_empty_series() -> None:
    with pytest.raises(UserError, match="empty"):
        parse([])


def test_a_mail_without_a_diff_is_named() -> None:
    with pytest.raises(UserError, match=r"reply\.eml: no diff"):
        parse([("reply.eml", mail("Re: [PATCH] a", ""))])


def test_the_digest_is_of_the_mails_in_their_order() -> None:
    one, two = ("a", mail("[PATCH] a")), ("b", mail("[PATCH] b"))
    digests = {
        parse(mails).digest for mails in ([one, two], [two, one], [one], [("other-name", one[1])])
    }
    assert len(digests) == 3


# --- refusals ----------------------------------------------------------------------------------


def change_of(path: str) -> str:
    return f"--- {path}\n+++ {path}\n@@ -1 +1 @@\n-a\n+b\n"


@pytest.mark.parametrize(
    "path",
    [
        "a/../../etc/passwd",
        "a/mm/../x",
        "/etc/passwd",
        "a//etc/passwd",
        "a/./x",
        "a/.git/hooks/pre-commit",
        "a/mm/.GIT/config",
        "a/.git./config",
        "a/git~1/config",
        '"a/\\056\\056/x"',
        '"a/.g\\151t/x"',
        '"a/x\\000y"',
        '"a/x\\ny"',
        "memory.c",
    ],
)
def test_paths_that_leave_the_tree(path: str) -> None:
    refused(change_of(path))


@pytest.mark.parametrize(
    "text",
    [
        "diff --git a/x b/../y\nsimilarity index 100%\nrename from x\nrename to ../y\n",
        "diff --git a/.git/x b/y\nsimilarity index 100%\ncopy from .git/x\ncopy to y\n",
        "diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to /etc/y\n",
        "diff --git a/../x b/../x\nnew file mode 100644\n",
        'diff --git "a/\\056./x" "b/\\056./x"\nold mode 100644\nnew mode 100755\n',
    ],
)
def test_paths_of_renames_and_bare_headers(text: str) -> None:
    refused(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("diff --git a/l b/l\nnew file mode 120000\nindex 0..1\n", "symbolic link"),
        ("diff --git a/l b/l\nold mode 100644\nnew mode 120000\n", "symbolic link"),
        ("diff --git a/l b/l\ndeleted file mode 120000\n", "symbolic link"),
        (f"diff --git a/l b/l\nindex 1..2 120000\n{change_of('a/l')}", "symbolic link"),
        ("diff --git a/s b/s\nnew file mode 160000\nindex 0..1\n", "submodule"),
        ("diff --git a/s b/s\nnew file mode 104755\n", "plain file"),
        ("diff --git a/b b/b\nindex 1..2 100644\nGIT binary patch\nliteral 3\n", "binary"),
        ("diff --git a/b b/b\nindex 1..2 100644\nBinary files a/b and b/b differ\n", "binary"),
        ("--- a/x\n+++ b/x\n@@ -1,9 +1,9 @@\n a\n", "cut short"),
        ("--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\nwrapped by\n a mailer\n", "cut short"),
        ("diff --git a/x b/x\nindex 1..2 100644\n", "without a change"),
        ("@@ -1 +1 @@\n-a\n+b\n", "without the name"),
        ("--- a/x\n+++ b/x\n", "without a hunk"),
        ('--- "a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n', "does not end"),
        (f"diff --git a/x b/x\nindex 1..2\n{change_of('a/x')}{change_of('a/../y')}", "'..'"),
    ],
)
def test_what_no_patch_may_do(text: str, word: str) -> None:
    assert word in refused(text).message


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_PATCHES", 2)
    with pytest.raises(UserError, match="3 mails"):
        parse([("a", mail("a"))] * 3)
    monkeypatch.setattr(series, "MAX_PATCH_BYTES", 100)
    with pytest.raises(UserError, match=r"big\.patch: \d+ bytes"):
        parse([("big.patch", mail("a"))])
    monkeypatch.setattr(series, "MAX_PATCH_BYTES", 10_000)
    monkeypatch.setattr(series, "MAX_SERIES_BYTES", 600)
    with pytest.raises(UserError, match="a series may have"):
        parse([("a", mail("a")), ("b", mail("b"))])


# --- series.toml -------------------------------------------------------------------------------


def test_series_toml() -> None:
    found = parse(
        [("a", mail("[PATCH] a"))],
        'title = "Counters"\nkernel = "debian:6.1"\nsuites = ["boot"]\ncover = "Why"\n'
        'config = ["CONFIG_SRCU=y", "# CONFIG_KASAN is not set"]\n',
    )
    assert (found.title, found.kernel, found.cover) == ("Counters", "debian:6.1", "Why")
    assert found.suites == ("boot",)
    assert found.fragment == "CONFIG_SRCU=y\n# CONFIG_KASAN is not set\n"


@pytest.mark.parametrize(
    ("toml", "word"),
    [
        ('titel = "x"', "titel"),
        ("title = 3", "title"),
        ('config = ["SRCU=y"]', "'SRCU=y'"),
        ('config = ["CONFIG_A=y\\nCONFIG_B=y"]', "config"),
        ("title = ", "not TOML"),
        ('suites = "boot"', "suites"),
    ],
)
def test_a_wrong_series_toml_names_file_and_key(toml: str, word: str) -> None:
    with pytest.raises(UserError) as caught:
        parse([("a", mail("[PATCH] a"))], toml)
    assert "series.toml" in caught.value.message
    assert word in caught.value.message


# --- mailboxes ---------------------------------------------------------------------------------


def test_an_mbox_is_split_at_its_from_lines_only() -> None:
    first = mail("[PATCH 1/2] a", message="\nFrom here on it fails.\n\nFrom now: on\n")
    second = mail("[PATCH 2/2] b")
    assert series.split_mbox(first + second) == [first, second]
    assert series.split_mbox(second) == [second]
    assert series.split_mbox(b"no mbox\n" + second) == [b"no mbox\n" + second]
    assert series.split_mbox(b" \n") == []


# --- properties --------------------------------------------------------------------------------

_FRAGMENTS = st.sampled_from(
    [
        b"diff --git ", b"a/x", b"b/x", b" ", b"\n", b"--- ", b"+++ ", b"@@ -1,2 +1,2 @@",
        b"@@ -0,0 +1 @@", b"@@ -1 +0,0 @@", b"/dev/null", b"new file mode 100644\n",
        b"rename from ", b"rename to ", b'"', b"\\303", b"\\", b"-old\n", b"+new\n", b" same\n",
        b"index 1..2 100644\n", b"\t", b"\r\n", b"---\n", b"old mode 100644\n", b"\0", b"\xff",
    ]
)  # fmt: skip
_DIFFISH = st.lists(_FRAGMENTS, max_size=40).map(b"".join)


@given(st.one_of(st.binary(max_size=400), _DIFFISH))
@settings(max_examples=400, deadline=None)
def test_no_diff_crashes_and_what_is_taken_stays_inside(text: bytes) -> None:
    try:
        changes = parse_diff(text)
    except DiffError as error:
        assert error.reason
        assert error.hint
        return
    for change in changes:
        assert not diff.bad_path(change.path)
        assert change.added == len(change.added_lines)


@given(st.one_of(st.binary(max_size=300), _DIFFISH), st.binary(max_size=200))
@example(b"", b"Subject: =?utf-8?b?====?=\nContent-Type: multipart/mixed\n")
@example(b"", b"Content-Transfer-Encoding: base64\nContent-Type: text/plain; charset=nope\n")
@settings(max_examples=300, deadline=None)
def test_no_mail_crashes(body: bytes, head: bytes) -> None:
    raw = b"Subject: x\n" + head + b"\n\n---\n" + body
    try:
        found = series.parse([("a.patch", raw)], title="t", origin="o")
    except UserError as error:
        assert error.hint
        return
    encode(found.title)
    assert series.mail_bytes(found.patches[0]) == raw


_TEXT = st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=8))


@given(_TEXT, _TEXT, _TEXT)
def test_added_lines_are_those_of_the_new_file(a: list[str], b: list[str], c: list[str]) -> None:
    """A hunk of context a, removed b, added c: the numbers come out, whatever the lines hold."""
    lines = [f" {x}" for x in a] + [f"-{x}" for x in b] + [f"+{x}" for x in c]
    if not b and not c:
        return
    header = f"@@ -7,{len(a) + len(b)} +7,{len(a) + len(c)} @@"
    text = "\n".join(["--- a/x", "+++ b/x", header, *lines, ""])
    (change,) = parse_diff(text.encode())
    assert change.removed == len(b)
    assert change.added_lines == tuple(range(7 + len(a), 7 + len(a) + len(c)))


def test_a_series_is_stored_and_read_back() -> None:
    found = parse([("a", mail("[PATCH] a"))])
    assert decode(encode(found), Series) == found
