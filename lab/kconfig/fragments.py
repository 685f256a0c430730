"""Fragments of a kernel configuration come in; one merged config goes out, and what was dropped.

A fragment is a file of lines as `.config` has them, and of comments. A line may carry one remark:

    CONFIG_X=y  # override      it may contradict a fragment that comes before
    CONFIG_X=y  # if present    a kernel that has no such option at all is fine
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lab.model import UserError

# Beside the package in a checkout. One place, so that what is read is what the user can edit.
FOLDER = Path(__file__).resolve().parents[2] / "kconfigs"

_SET = re.compile(
    r'(?:CONFIG_(?P<symbol>\w+)=(?P<value>"(?:[^"\\]|\\.)*"|[^\s"#]+)'
    r"|# CONFIG_(?P<unset>\w+) is not set)"
    r"(?:\s+#\s*(?P<remark>.*?))?\s*"
)
# A comment that was surely meant as a setting: reading it as prose would drop it silently.
_NEARLY = re.compile(r"#\s*CONFIG_\w+\s+is\s+not\s+set\b.*|#?\s*(?:export\s+)?CONFIG_\w+\s.*")
_VALUE = re.compile(r'[ymn]|-?\d+|0[xX][0-9a-fA-F]+|".*"')
_OVERRIDE, _IF_PRESENT = "override", "if present"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A piece of configuration; `name` is the file name that messages show."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a fragment asks for: `value` as `.config` spells it, "n" for "is not set"."""

    value: str
    fragment: str
    line: int
    override: bool = False
    if_present: bool = False

    @property
    def where(self) -> str:
        return f"{self.fragment}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Fragments as one: `text` goes to .config, `asked` (by symbol, no CONFIG_) is verified."""

    text: str
    asked: dict[str, Asked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An option that the final config does not have as it was asked for."""

    symbol: str
    asked: str
    got: str  # "n" where the final config does not mention it
    fragment: str
    line: int
    if_present: bool = False

    @property
    def text(self) -> str:
        """`file:3 asks for CONFIG_X=y, the kernel dropped it`; the reason is not in it."""
        where, option = f"{self.fragment}:{self.line}", f"CONFIG_{self.symbol}"
        if self.asked == "n":
            return f"{where} asks for {option} not to be set, the kernel has {option}={self.got}"
        became = "dropped it" if self.got == "n" else f"made it {self.got}"
        return f"{where} asks for {option}={self.asked}, the kernel {became}"


def merge(fragments: Sequence[Fragment]) -> Merged:
    """All fragments, in order, as one config.

    Raises `UserError` naming fragment and line for a line that is none, and both places for two
    values of one symbol, unless the later one is in another fragment and says `# override`.
    """
    asked: dict[str, Asked] = {}
    for fragment in fragments:
        for number, line in enumerate(fragment.text.splitlines(), start=1):
            parsed = _parse_line(fragment.name, number, line)
            if parsed is None:
                continue
            symbol, new = parsed
            old = asked.get(symbol)
            if old is not None and not _same(old.value, new.value):
                _allow(symbol, old, new)
            if old is None or new.override:
                asked[symbol] = new
    return Merged(text=_config(asked), asked=asked)


def _parse_line(name: str, number: int, line: str) -> tuple[str, Asked] | None:
    """The symbol and what is asked of it; None for a blank line or a comment."""
    stripped = line.strip()
    match = _SET.fullmatch(stripped)
    if match is None:
        if not stripped or (stripped.startswith("#") and not _NEARLY.fullmatch(stripped)):
            return None
        raise UserError(
            f"{name}:{number}: not a line of a kernel configuration: {stripped}",
            hint="a setting is CONFIG_X=value or '# CONFIG_X is not set', without blanks at '='",
        )
    symbol, value = match["symbol"] or match["unset"], match["value"] or "n"
    if not _VALUE.fullmatch(value):
        raise UserError(
            f"{name}:{number}: CONFIG_{symbol} cannot be {value}",
            hint='a value is y, m, n, a number, 0x and hexadecimal digits, or a "string"',
        )
    remark = match["remark"] or ""
    if remark not in ("", _OVERRIDE, _IF_PRESENT):
        raise UserError(
            f"{name}:{number}: unknown remark '# {remark}' after CONFIG_{symbol}",
            hint="known: '# override', '# if present'; other comments stand on a line of their own",
        )
    return symbol, Asked(
        value=value,
        fragment=name,
        line=number,
        override=remark == _OVERRIDE,
        if_present=remark == _IF_PRESENT,
    )


def _allow(symbol: str, old: Asked, new: Asked) -> None:
    """Raises `UserError` if `new` may not replace `old`."""
    if new.override and new.fragment != old.fragment:
        return
    raise UserError(
        f"CONFIG_{symbol} is asked for twice: {old.value} by {old.where}, "
        f"{new.value} by {new.where}",
        hint="leave one out"
        if new.fragment == old.fragment
        else "leave one out, or write '# override' behind the later line",
    )


def _config(asked: Mapping[str, Asked]) -> str:
    return "".join(
        f"# CONFIG_{symbol} is not set\n" if one.value == "n" else f"CONFIG_{symbol}={one.value}\n"
        for symbol, one in asked.items()
    )


def _same(left: str, right: str) -> bool:
    """Whether two values are one: 0x10 is 0X010, while "10" is not 10."""

    def normal(value: str) -> str | int:
        if re.fullmatch(r"0[xX][0-9a-fA-F]+", value):
            return int(value, 16)
        return int(value) if re.fullmatch(r"-?\d+", value) else value

    return normal(left) == normal(right)


_FINAL = re.compile(r"CONFIG_(\w+)=(.*)")


def values(config: str) -> dict[str, str]:
    """Symbol -> value of a `.config`; what it does not mention, or has as not set, is absent."""
    matches = (_FINAL.fullmatch(line) for line in config.splitlines())
    return {match[1]: match[2] for match in matches if match and match[2] != "n"}


def graft(config: str, merged: Merged) -> str:
    """`config` (a whole .config) with what `merged` asks for in place of what it had."""
    symbol = re.compile(r"(?:# )?CONFIG_(\w+)(?:=.*| is not set)")
    kept = [
        line
        for line in config.splitlines()
        if (match := symbol.fullmatch(line)) is None or match[1] not in merged.asked
    ]
    return "\n".join(kept) + "\n" + merged.text


def dropped(asked: Mapping[str, Asked], final_config: str) -> tuple[Dropped, ...]:
    """What `asked` has and `final_config` (the text of .config) has not, or has otherwise."""
    final = values(final_config)
    return tuple(
        Dropped(
            symbol=symbol,
            asked=one.value,
            got=final.get(symbol, "n"),
            fragment=one.fragment,
            line=one.line,
            if_present=one.if_present,
        )
        for symbol, one in asked.items()
        if not _same(one.value, final.get(symbol, "n"))
    )


# --- profiles ----------------------------------------------------------------------------------


@cache
def profiles(folder: Path = FOLDER) -> dict[str, tuple[str, ...]]:
    """Profile -> names of its fragments, from `profiles.toml`; "arch" stands for the arch's own.

    Raises `UserError` if the table is absent or is not such a table.
    """
    path = folder / "profiles.toml"
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist", hint="run the lab from its checkout (pip install -e .)"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}") from error
    found: dict[str, tuple[str, ...]] = {}
    for name, row in table.items():
        names = row.get("fragments") if isinstance(row, dict) else None
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise UserError(f"{path}: [{name}] needs fragments = [names]")
        found[name] = tuple(names)
    return found


def fragments(profile: str, arch: str, *, folder: Path = FOLDER) -> tuple[Fragment, ...]:
    """The fragments of a profile for an architecture, in the order of merging.

    Raises `UserError` listing what is known for a profile or a file that does not exist.
    """
    table = profiles(folder)
    if profile not in table:
        raise UserError(f"unknown profile {profile!r}", hint=f"known: {', '.join(sorted(table))}")
    found: list[Fragment] = []
    for name in table[profile]:
        path = folder / f"{f'arch-{arch}' if name == 'arch' else name}.config"
        if not path.is_file():
            known = ", ".join(sorted(one.stem for one in folder.glob("*.config")))
            raise UserError(
                f"profile {profile} needs {path.name}, which is not in {folder}",
                hint=f"there are: {known}",
            )
        found.append(Fragment(name=path.name, text=path.read_text()))
    return tuple(found)
