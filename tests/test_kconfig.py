"""Fragments merge or say where they clash; a dropped option gets its reason named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.arch import ARCHS
from lab.kconfig import (
    Dropped,
    Fragment,
    dropped,
    explain,
    fragments,
    graft,
    merge,
    parse,
    profiles,
    srcarch,
    values,
)
from lab.kconfig.fragments import FOLDER
from lab.model import UserError

DATA = Path(__file__).parent / "data" / "kconfig"


def fragment(text: str, name: str = "a.config") -> Fragment:
    return Fragment(name=name, text=text)


# --- merge -------------------------------------------------------------------------------------


def test_merge_keeps_order_and_says_who_asked() -> None:
    merged = merge(
        [
            fragment("# prose\nCONFIG_A=y\n\n# CONFIG_B is not set\n"),
            fragment('CONFIG_C="x # y"\nCONFIG_D=0x10\nCONFIG_E=n\n', "b.config"),
        ]
    )
    assert merged.text == (
        "CONFIG_A=y\n# CONFIG_B is not set\n"
        'CONFIG_C="x # y"\nCONFIG_D=0x10\n# CONFIG_E is not set\n'
    )
    assert merged.asked["B"].where == "a.config:4"
    assert merged.asked["C"].value == '"x # y"'
    assert merged.asked["E"].where == "b.config:3"


@pytest.mark.parametrize(
    "line",
    [
        "CONFIG_A = y",
        "CONFIG_A",
        "CONFIG_A=",
        "A=y",
        "CONFIG_A=yes",
        'CONFIG_A="open',
        "CONFIG_A=y z",
        "# CONFIG_A is not set anymore",
        "#CONFIG_A is not set",
        "CONFIG_A=y # overide",
        "CONFIG_A=y # because",
    ],
)
def test_malformed_line_names_fragment_and_line(line: str) -> None:
    with pytest.raises(UserError, match=r"^a\.config:2: ") as caught:
        merge([fragment(f"CONFIG_Z=y\n{line}\n")])
    assert caught.value.hint


@pytest.mark.parametrize("line", ["# CONFIG_A=y", "#", "# words", "  ", "# CONFIG_A matters"])
def test_comments_are_comments(line: str) -> None:
    if line == "# CONFIG_A matters":
        # So near to a setting that reading it as prose would hide a mistake.
        with pytest.raises(UserError):
            merge([fragment(line)])
    else:
        assert merge([fragment(line)]).asked == {}


def test_contradiction_names_both_places() -> None:
    with pytest.raises(UserError, match=r"CONFIG_A .*: y by a\.config:1, n by b\.config:2"):
        merge([fragment("CONFIG_A=y"), fragment("\n# CONFIG_A is not set", "b.config")])


def test_contradiction_within_a_fragment_cannot_be_overridden() -> None:
    with pytest.raises(UserError, match=r"a\.config:1, .* a\.config:2"):
        merge([fragment("CONFIG_A=y\nCONFIG_A=n # override")])


def test_a_marked_later_fragment_overrides() -> None:
    merged = merge([fragment("CONFIG_A=17"), fragment("CONFIG_A=18  # override", "b.config")])
    assert merged.text == "CONFIG_A=18\n"
    assert merged.asked["A"].where == "b.config:1"


def test_equal_values_are_no_contradiction() -> None:
    merged = merge([fragment("CONFIG_A=0x1F"), fragment("CONFIG_A=0x1f", "b.config")])
    assert merged.asked["A"].where == "a.config:1"


def test_a_string_is_not_a_number() -> None:
    with pytest.raises(UserError):
        merge([fragment('CONFIG_A="1"'), fragment("CONFIG_A=1", "b.config")])


# --- the final config --------------------------------------------------------------------------


def test_graft_replaces_what_is_asked_for() -> None:
    merged = merge([fragment("CONFIG_A=y\n# CONFIG_B is not set\n")])
    whole = graft("# head\n# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_AB=y\n", merged)
    assert values(whole) == {"A": "y", "AB": "y"}
    assert whole.count("CONFIG_A ") + whole.count("CONFIG_A=") == 1


def test_dropped_compares_every_kind_of_value() -> None:
    asked = merge(
        [
            fragment(
                "CONFIG_YES=y\nCONFIG_GONE=y\n# CONFIG_OFF is not set\n# CONFIG_FORCED is not set\n"
                'CONFIG_NUMBER=20\nCONFIG_HEX=0xA\nCONFIG_TEXT="-lab"\nCONFIG_MODULE=y\n'
                "CONFIG_NEW=y # if present\n"
            )
        ]
    ).asked
    final = (
        "CONFIG_YES=y\n# CONFIG_GONE is not set\nCONFIG_FORCED=y\nCONFIG_NUMBER=17\n"
        'CONFIG_HEX=0xa\nCONFIG_TEXT="-lab"\nCONFIG_MODULE=m\n'
    )
    missed = dropped(asked, final)
    assert [(one.symbol, one.asked, one.got, one.line) for one in missed] == [
        ("GONE", "y", "n", 2),
        ("FORCED", "n", "y", 4),
        ("NUMBER", "20", "17", 5),
        ("MODULE", "y", "m", 8),
        ("NEW", "y", "n", 9),
    ]
    assert [one.symbol for one in missed if one.if_present] == ["NEW"]


# --- reasons -----------------------------------------------------------------------------------


def reader(path: str) -> str | None:
    file = DATA / path
    return file.read_text() if file.is_file() else None


FINAL = "CONFIG_MMU=y\nCONFIG_X86=y\nCONFIG_64BIT=y\nCONFIG_DEBUG=y\nCONFIG_GCC_VERSION=120200\n"
ASKED_DROPPED = "debug.config:3 asks for CONFIG_{}={}, the kernel dropped it: "
POISONED = FINAL + "CONFIG_POISON=y\nCONFIG_POISON_OUTLINE=y\n"


@pytest.mark.parametrize(
    ("symbol", "asked", "config", "reason"),
    [
        (
            "POISON_VMALLOC",
            "y",
            POISONED,
            "depends on POISON_OUTLINE && HAVE_POISON_VMALLOC; HAVE_POISON_VMALLOC=n",
        ),
        (
            "POISON_VMALLOC",
            "y",
            FINAL + "CONFIG_HAVE_POISON_VMALLOC=y\nCONFIG_POISON_OUTLINE=y\n",
            "depends on POISON; POISON=n",
        ),
        (
            "POISON",
            "y",
            FINAL,
            "depends on CC_HAS_POISON; CC_HAS_POISON=n "
            "(toolchain test $(cc-option, -fpoison=kernel(address)))",
        ),
        ("POISON_INLINE", "y", POISONED, "the choice fell on POISON_OUTLINE"),
        (
            "POISON_INLINE",
            "y",
            POISONED + "CONFIG_SMALL=y\n",
            "depends on !SMALL; SMALL=y",
        ),
        ("NOT_A_SYMBOL", "y", FINAL, "this kernel has no such option"),
        ("ARM64", "y", FINAL, "this kernel has no such option"),
        ("SMALL", "y", FINAL, "is offered only if EXPERT; EXPERT=n"),
        ("STACKS", "y", FINAL, "it has no prompt; only a select sets it: POISON_VMALLOC"),
        ("NR_CPUS_RANGE_END", "9", FINAL, "it has no prompt; its default decides"),
        (
            "STRICT",
            "y",
            FINAL,
            "depends on DEBUG && (SMALL || GHOST); SMALL=n, GHOST=n (no such option)",
        ),
        ("FLAGGED", "y", FINAL, "it depends on a toolchain test: $(cc-option,-fflag)"),
        ("VERSIONED", "y", FINAL, "depends on GCC_VERSION >= 130000; GCC_VERSION=120200"),
        (
            "DRIVER",
            "y",
            FINAL + "CONFIG_BUS=y\n",
            "is offered only if EXPERT; EXPERT=n",
        ),
        ("TWICE", "y", FINAL, "depends on GHOST; GHOST=n (no such option)"),
        (
            "MODULES",
            "y",
            FINAL.replace("CONFIG_MMU=y\n", ""),
            "depends on MMU != n; MMU=n",
        ),
    ],
)
def test_reason_of_a_dropped_option(symbol: str, asked: str, config: str, reason: str) -> None:
    missed = Dropped(symbol=symbol, asked=asked, got="n", fragment="debug.config", line=3)
    found = explain(parse(reader, "x86_64"), missed, config)
    assert found == ASKED_DROPPED.format(symbol, asked) + reason


def test_reason_of_a_weaker_value() -> None:
    config = FINAL + "CONFIG_EXPERT=y\nCONFIG_BUS=m\nCONFIG_DRIVER=m\nCONFIG_NR_CPUS=8\n"
    config += "CONFIG_NR_CPUS_RANGE_END=8\n"
    known = parse(reader, "x86_64")
    weaker = Dropped(symbol="DRIVER", asked="y", got="m", fragment="f", line=1)
    assert explain(known, weaker, config).endswith("the kernel made it m: depends on BUS; BUS=m")
    number = Dropped(symbol="NR_CPUS", asked="99", got="8", fragment="f", line=1)
    assert explain(known, number, config).endswith("the kernel made it 8: its range is 2 to 8")


@pytest.mark.parametrize(
    ("symbol", "config", "reason"),
    [
        ("DEBUG", FINAL + "CONFIG_EXPERT=y\n", "selected by EXPERT"),
        (
            "HAVE_POISON_VMALLOC",
            FINAL + "CONFIG_HAVE_POISON_VMALLOC=y\n",
            "selected by X86",
        ),
        ("MMU", FINAL, "it has no prompt: its default decides"),
        (
            "POISON_OUTLINE",
            POISONED,
            "it is the chosen one of a choice; set another member of it",
        ),
    ],
)
def test_reason_of_an_option_that_would_not_go(symbol: str, config: str, reason: str) -> None:
    missed = Dropped(symbol=symbol, asked="n", got="y", fragment="f.config", line=1)
    expected = f"f.config:1 asks for CONFIG_{symbol} not to be set, the kernel has CONFIG_{symbol}"
    assert explain(parse(reader, "x86_64"), missed, config) == f"{expected}=y: {reason}"


def test_the_architecture_decides_what_is_sourced() -> None:
    assert "ARM64" in parse(reader, "arm64").symbols
    assert "X86" not in parse(reader, "arm64").symbols
    assert srcarch("x86_64") == "x86"


def test_a_kconfig_that_sources_itself_ends() -> None:
    assert parse(lambda path: 'source "Kconfig"\nconfig A\n', "x86_64").symbols.keys() == {"A"}


# --- the shipped fragments ---------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("profile", profiles())
def test_shipped_profiles_merge(profile: str, arch: str) -> None:
    merged = merge(fragments(profile, arch))
    assert {"SMP", "EXT4_FS", "XFS_FS", "BTRFS_FS"} <= merged.asked.keys()
    assert ("PROVE_LOCKING" in merged.asked) == (profile not in ("plain", "kcsan"))
    assert ("FS_DAX" in merged.asked) == (profile == "dax")


def test_every_fragment_has_a_profile_and_a_line_in_the_readme() -> None:
    used = {name.name for arch in ARCHS for row in profiles() for name in fragments(row, arch)}
    readme = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.config"):
        assert path.name in used
        assert path.name in readme or path.name.startswith("arch-")


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(UserError, match="unknown profile 'fast'") as caught:
        fragments("fast", "x86_64")
    assert "lockdep" in caught.value.hint


def test_a_fragment_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text('[own]\nfragments = ["base", "gone"]\n')
    (tmp_path / "base.config").write_text("CONFIG_A=y\n")
    with pytest.raises(UserError, match=r"gone\.config") as caught:
        fragments("own", "x86_64", folder=tmp_path)
    assert "base" in caught.value.hint


@pytest.mark.parametrize("text", ["[own]\n", "own = 1\n", "[own]\nfragments = [1]\n", "[own\n"])
def test_a_bad_table_of_profiles_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "profiles.toml").write_text(text)
    with pytest.raises(UserError, match=r"profiles\.toml"):
        profiles(tmp_path)
