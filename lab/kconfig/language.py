"""Kconfig files come in (through a reader); out goes why an option did not become what was asked.

Not a configuration engine: the kernel's own `conf` decides. This reads just enough of the language
to name the unmet dependency that it does not name. Macros such as $(cc-option,...) are not run:
they are reported as toolchain tests. (kconfiglib 14.1.0 gives up on the bare `modules` attribute
that kernels have since commit 6dd85ff178cd ("kconfig: change "modules" from sub-option to
first-level attribute") (in v5.13).)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lab.kconfig.fragments import Dropped, values

Reader = Callable[[str], str | None]  # path relative to the kernel tree -> text, None if absent

_TRISTATE = {"n": 0, "m": 1, "y": 2}
_TYPES = ("bool", "tristate", "int", "hex", "string")


def srcarch(arch: str) -> str:
    """The folder below arch/ for make's ARCH."""
    return {"x86_64": "x86", "i386": "x86"}.get(arch, arch)


# --- expressions -------------------------------------------------------------------------------


class Op(StrEnum):
    SYMBOL = "symbol"
    LITERAL = "literal"
    MACRO = "macro"  # $(...), which this module does not run
    NOT = "!"
    AND = "&&"
    OR = "||"
    EQUAL = "="
    UNEQUAL = "!="
    LESS = "<"
    LESS_EQUAL = "<="
    MORE = ">"
    MORE_EQUAL = ">="


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A node: `text` of a leaf, or the arguments of an operator."""

    op: Op
    text: str = ""
    arguments: tuple[Expression, ...] = ()


_COMPARE: dict[Op, Callable[[int], bool]] = {
    Op.EQUAL: lambda order: order == 0,
    Op.UNEQUAL: lambda order: order != 0,
    Op.LESS: lambda order: order < 0,
    Op.LESS_EQUAL: lambda order: order <= 0,
    Op.MORE: lambda order: order > 0,
    Op.MORE_EQUAL: lambda order: order >= 0,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|(?P<op>&&|\|\||!=|<=|>=|[=<>!()])|(?P<macro>\$\()|(?P<word>[\w./-]+)|(?P<end>\#.*|$))"""
)
_NUMBER = re.compile(r"-?\d+|0[xX][0-9a-fA-F]+")


class _Unreadable(Exception):
    """Not an expression that this module knows."""


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _Unreadable(text)
        if match.lastgroup == "end":
            return
        at = match.end()
        if match.lastgroup == "macro":
            depth, start = 1, at - 2
            while depth and at < len(text):
                depth += {"(": 1, ")": -1}.get(text[at], 0)
                at += 1
            yield "macro", text[start:at]
        elif match.lastgroup == "string" and "$(" in match["string"]:
            yield "macro", match["string"]
        else:
            yield match.lastgroup, match[match.lastgroup]


class _Expressions:
    """Recursive descent over one expression's tokens."""

    def __init__(self, tokens: Iterable[tuple[str, str]]) -> None:
        self.tokens = list(tokens)
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def whole(self) -> Expression:
        found = self.chain(Op.OR, lambda: self.chain(Op.AND, self.unary))
        if self.at != len(self.tokens):
            raise _Unreadable(self.peek())
        return found

    def chain(self, op: Op, inner: Callable[[], Expression]) -> Expression:
        parts = [inner()]
        while self.peek() == op.value:
            self.at += 1
            parts.append(inner())
        return parts[0] if len(parts) == 1 else Expression(op=op, arguments=tuple(parts))

    def unary(self) -> Expression:
        if self.peek() == "!":
            self.at += 1
            return Expression(op=Op.NOT, arguments=(self.unary(),))
        if self.peek() == "(":
            self.at += 1
            found = self.chain(Op.OR, lambda: self.chain(Op.AND, self.unary))
            if self.peek() != ")":
                raise _Unreadable("unbalanced")
            self.at += 1
            return found
        left = self.leaf()
        if self.peek() in ("=", "!=", "<", "<=", ">", ">="):
            op = Op(self.peek())
            self.at += 1
            return Expression(op=op, arguments=(left, self.leaf()))
        return left

    def leaf(self) -> Expression:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] == "op":
            raise _Unreadable("operand missing")
        kind, text = self.tokens[self.at]
        self.at += 1
        match kind:
            case "string":
                return Expression(op=Op.LITERAL, text=text[1:-1])
            case "macro":
                return Expression(op=Op.MACRO, text=text)
            case _:
                constant = text in _TRISTATE or _NUMBER.fullmatch(text)  # 64BIT is a symbol
                return Expression(op=Op.LITERAL if constant else Op.SYMBOL, text=text)


def _expression(text: str) -> Expression:
    """The parsed text; what cannot be read is treated as a macro: its value is not known."""
    try:
        return _Expressions(_tokens(text)).whole()
    except _Unreadable:
        return Expression(op=Op.MACRO, text=text.strip())


def _plain(node: Expression, config: Mapping[str, str]) -> str:
    if node.op is Op.SYMBOL:
        return config.get(node.text, "n").strip('"')
    return node.text


def _order(left: str, right: str) -> int:
    def number(text: str) -> int | None:
        try:
            return int(text, 0)
        except ValueError:
            return None

    a, b = number(left), number(right)
    if a is not None and b is not None:
        return (a > b) - (a < b)
    return (left > right) - (left < right)


def evaluate(node: Expression, config: Mapping[str, str]) -> int:
    """0, 1, 2 for n, m, y. A macro counts as y: `explain` names it where nothing else is unmet."""
    match node.op:
        case Op.SYMBOL | Op.LITERAL:
            return _TRISTATE.get(_plain(node, config), 0)
        case Op.MACRO:
            return 2
        case Op.NOT:
            return 2 - evaluate(node.arguments[0], config)
        case Op.AND:
            return min(evaluate(one, config) for one in node.arguments)
        case Op.OR:
            return max(evaluate(one, config) for one in node.arguments)
        case _:
            left, right = (_plain(one, config) for one in node.arguments)
            return 2 * _COMPARE[node.op](_order(left, right))


def _leaves(node: Expression) -> Iterator[Expression]:
    if not node.arguments:
        yield node
    for one in node.arguments:
        yield from _leaves(one)


def _culprits(node: Expression, config: Mapping[str, str], level: int) -> Iterator[str]:
    """Symbols that keep `node` below `level`."""
    match node.op:
        case Op.AND | Op.OR:
            for one in node.arguments:
                if evaluate(one, config) < level:
                    yield from _culprits(one, config, level)
        case _:
            yield from (one.text for one in _leaves(node) if one.op is Op.SYMBOL)


# --- files -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One `depends on`, `if` or `visible if`, as written."""

    text: str
    expression: Expression
    prompt_only: bool = False  # it hides the prompt and leaves selects and defaults alone


@dataclass(slots=True, kw_only=True)
class _Block:
    """A menu, an `if`, a choice: what holds for everything within."""

    keyword: str
    conditions: list[Condition] = field(default_factory=list)
    members: list[str] = field(default_factory=list)  # of a choice


@dataclass(slots=True, kw_only=True)
class Definition:
    """One `config` entry of a symbol; a symbol may have several."""

    where: str
    blocks: tuple[_Block, ...]
    own: list[Condition] = field(default_factory=list)
    prompt: bool = False
    ranges: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)  # macros in its defaults

    @property
    def conditions(self) -> list[Condition]:
        return [*self.own, *(one for block in self.blocks for one in block.conditions)]

    @property
    def choice(self) -> tuple[str, ...]:
        """The members of the choice that it belongs to; empty if it belongs to none."""
        for block in self.blocks:
            if block.keyword == "choice":
                return tuple(block.members)
        return ()


@dataclass(slots=True, kw_only=True)
class Kconfig:
    """All entries that are reachable from the root Kconfig for one architecture."""

    symbols: dict[str, list[Definition]] = field(default_factory=dict)
    # Symbol -> who selects it, and under which condition.
    selects: dict[str, list[tuple[str, Expression | None]]] = field(default_factory=dict)


def parse(reader: Reader, arch: str) -> Kconfig:
    """The tree's Kconfig for make's ARCH=`arch`. Files that `reader` does not have are left out."""
    found = Kconfig()
    _Files(reader, {"ARCH": arch, "SRCARCH": srcarch(arch), "srctree": "."}, found).read("Kconfig")
    return found


class _Files:
    """Walks over the Kconfig files, depth first as `source` says."""

    def __init__(self, reader: Reader, variables: dict[str, str], found: Kconfig) -> None:
        self.reader, self.variables, self.found = reader, variables, found
        self.blocks: list[_Block] = []
        self.entry: Definition | _Block | None = None
        self.symbol = ""
        self.open_files: list[str] = []

    def read(self, path: str) -> None:
        text = self.reader(path)
        if text is None or path in self.open_files:
            return
        self.open_files.append(path)
        for number, line in _statements(text):
            keyword, _, rest = line.partition(" ")
            self.statement(keyword, rest.strip(), f"{path}:{number}")
        self.open_files.pop()

    def statement(self, keyword: str, rest: str, where: str) -> None:
        match keyword:
            case "config" | "menuconfig":
                self.symbol = rest.split("#")[0].strip()
                self.entry = Definition(where=where, blocks=tuple(reversed(self.blocks)))
                self.found.symbols.setdefault(self.symbol, []).append(self.entry)
                if self.blocks and self.blocks[-1].keyword == "choice":
                    self.blocks[-1].members.append(self.symbol)
            case "menu" | "choice" | "if":
                block = _Block(keyword=keyword)
                if keyword == "if":
                    block.conditions.append(_condition(rest))
                self.blocks.append(block)
                self.entry = block
            case "endmenu" | "endchoice" | "endif":
                if self.blocks:
                    self.blocks.pop()
                self.entry = None
            case "comment" | "mainmenu":
                self.entry = None
            case "source" | "osource" | "rsource" | "orsource":
                self.entry = None
                self.read(self.source(rest, relative=keyword in ("rsource", "orsource")))
            case "depends" if self.entry is not None:
                self.conditions().append(_condition(rest.removeprefix("on").strip()))
            case "visible" if isinstance(self.entry, _Block):
                self.entry.conditions.append(
                    _condition(rest.removeprefix("if").strip(), prompt_only=True)
                )
            case _ if isinstance(self.entry, Definition):
                self.attribute(self.entry, keyword, rest)

    def conditions(self) -> list[Condition]:
        assert self.entry is not None
        return self.entry.own if isinstance(self.entry, Definition) else self.entry.conditions

    def attribute(self, entry: Definition, keyword: str, rest: str) -> None:
        value, condition = _split_if(rest)
        if keyword in (*_TYPES, "prompt"):
            if value:
                entry.prompt = True
                if condition:
                    entry.own.append(_condition(condition, prompt_only=True))
        elif keyword.startswith("def_") or keyword == "default":
            macros = (one.text for one in _leaves(_expression(value)) if one.op is Op.MACRO)
            entry.tests.extend(macros)
        elif keyword == "select":
            when = _expression(condition) if condition else None
            self.found.selects.setdefault(value, []).append((self.symbol, when))
        elif keyword == "range":
            entry.ranges.append(value)

    def source(self, rest: str, *, relative: bool) -> str:
        path = rest.split("#")[0].strip().strip("\"'")
        path = re.sub(r"\$\((\w+)\)", lambda m: self.variables.get(m[1], m[0]), path)
        if relative:
            path = f"{self.open_files[-1].rpartition('/')[0]}/{path}"
        return path.removeprefix("./")


def _condition(text: str, *, prompt_only: bool = False) -> Condition:
    return Condition(
        text=re.sub(r"\s+", " ", text.split("#")[0]).strip(),
        expression=_expression(text),
        prompt_only=prompt_only,
    )


def _split_if(rest: str) -> tuple[str, str]:
    """The parts before and behind a bare `if`, quotes and macros respected."""
    try:
        words = list(_tokens(rest))
    except _Unreadable:
        return rest, ""
    for index, (kind, text) in enumerate(words):
        if kind == "word" and text == "if":
            left, right = words[:index], words[index + 1 :]
            return " ".join(one for _, one in left), " ".join(one for _, one in right)
    return " ".join(text for _, text in words), ""


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each statement: continued lines joined, help texts skipped."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at]
        at += 1
        while line.endswith("\\") and at < len(lines):
            line = line[:-1] + " " + lines[at].strip()
            at += 1
        line = " ".join(line.split("\t")).strip()
        if line in ("help", "---help---"):
            at = _after_help(lines, at)
        elif line and not line.startswith("#"):
            yield number, line


def _after_help(lines: list[str], at: int) -> int:
    """The index of the first line behind a help text, which its indentation ends."""
    indent: int | None = None
    for index in range(at, len(lines)):
        line = lines[index].expandtabs()
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if indent is None:
            indent = depth
            if depth == 0:
                return index
        if depth < indent:
            return index
    return len(lines)


# --- reasons -----------------------------------------------------------------------------------


def explain(kconfig: Kconfig, missed: Dropped, config: str) -> str:
    """One line: which fragment asked for what, what became of it, and why.

    `config` is the text of the final .config.
    """
    final = values(config)
    definitions = kconfig.symbols.get(missed.symbol, [])
    if not definitions:
        reason = "this kernel has no such option"
    elif missed.asked == "n":
        reason = _why_set(kconfig, missed.symbol, definitions, final)
    else:
        reason = _why_unset(kconfig, missed, definitions, final)
    return f"{missed.text}: {reason}"


def _why_set(
    kconfig: Kconfig, symbol: str, definitions: list[Definition], final: Mapping[str, str]
) -> str:
    by = _selectors(kconfig, symbol, final)
    if by:
        return f"selected by {', '.join(by[:6])}"
    if any(set(one.choice) - {symbol} for one in definitions):
        return "it is the chosen one of a choice; set another member of it"
    if not any(one.prompt for one in definitions):
        return "it has no prompt: its default decides"
    return "its prompt is not offered, so its default decides"


def _selectors(kconfig: Kconfig, symbol: str, final: Mapping[str, str]) -> list[str]:
    return [
        by
        for by, when in kconfig.selects.get(symbol, [])
        if by in final and (when is None or evaluate(when, final))
    ]


def _why_unset(
    kconfig: Kconfig, missed: Dropped, definitions: list[Definition], final: Mapping[str, str]
) -> str:
    level = max(1, _TRISTATE.get(missed.asked, 1))
    offered = [one for one in definitions if one.prompt]
    if not offered:
        names = sorted({by for by, _ in kconfig.selects.get(missed.symbol, [])})
        how = f"only a select sets it: {', '.join(names[:6])}" if names else "its default decides"
        return f"it has no prompt; {how}"

    def unmet(one: Definition) -> list[Condition]:
        return [c for c in one.conditions if evaluate(c.expression, final) < level]

    best = min(offered, key=lambda one: len(unmet(one)))
    if reasons := unmet(best):
        return "; ".join(_unmet_text(kconfig, one, final, level) for one in reasons)
    chosen = [one for one in best.choice if final.get(one) == "y" and one != missed.symbol]
    if chosen:
        return f"the choice fell on {chosen[0]}"
    macros = [
        leaf.text for c in best.conditions for leaf in _leaves(c.expression) if leaf.op is Op.MACRO
    ]
    if macros:
        return f"it depends on a toolchain test: {', '.join(macros)}"
    if missed.got != "n" and best.ranges:
        bounds = (" to ".join(final.get(w, w) for w in one.split()) for one in best.ranges)
        return f"its range is {' or '.join(bounds)}"
    if by := _selectors(kconfig, missed.symbol, final):
        return f"selected by {', '.join(by[:6])}"
    return f"its entry at {best.where} shows no reason"


def _unmet_text(
    kconfig: Kconfig, condition: Condition, final: Mapping[str, str], level: int
) -> str:
    verb = "is offered only if" if condition.prompt_only else "depends on"
    said: list[str] = []
    for symbol in dict.fromkeys(_culprits(condition.expression, final, level)):
        entries = kconfig.symbols.get(symbol)
        tests = [test for one in entries or () for test in one.tests]
        note = "" if entries else " (no such option)"
        if tests and symbol not in final:
            note = f" (toolchain test {tests[0]})"
        said.append(f"{symbol}={final.get(symbol, 'n')}{note}")
    return f"{verb} {condition.text}" + (f"; {', '.join(said)}" if said else "")
