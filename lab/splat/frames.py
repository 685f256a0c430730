"""Lines of a stack trace in; frames out, and which of them names a bug rather than its reporter."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SYMBOL = r"[A-Za-z_$][\w.$]*"
_OFFSET = r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?"
_WHERE = r"(?P<file>[\w./-]+\.(?:c|h|S|rs|cc|y|l)):(?P<line>\d+)"

# " func+0x1/0x2 [module] file.c:1", with one or two addresses or without, x86, arm64, ppc, riscv;
# "(func) from [<addr>]" of 32-bit arm; "func file.c:1 [inline]" of a symboliser.
_FRAME = re.compile(
    r"^\s*(?:#\d+:?\s+)?(?:\[ *<?(?:0x)?[0-9a-f]{4,16}>?\] ?){0,2}\s*(?P<guess>\? +)?"
    rf"\(?(?P<func>{_SYMBOL})(?P<offset>{_OFFSET})?\)?"
    r"(?P<rest>.*)$"
)
_ARM32 = re.compile(rf"^\s*(?:\[ *<?[0-9a-f]+>?\] )?\((?P<func>{_SYMBOL})(?:{_OFFSET})?\) from ")
_INLINE = re.compile(
    rf"^\s*(?:\[<\s*inline\s*>\]\s*)?(?P<func>{_SYMBOL})\s+{_WHERE}(?:\s+\[inline\])?\s*$"
)
_POSITION = re.compile(_WHERE)
_PC = re.compile(
    r"(?:^|\s)(?:RIP|EIP)\s*:?\s*(?:(?P<cs>[0-9a-f]{4}):)?\s*(?:\[<[0-9a-f]+>\]\s*)*"
    rf"(?P<func>{_SYMBOL}){_OFFSET}(?P<rest>.*)"
    rf"|(?:^|\s)(?:pc : |epc : |PC is at |NIP \[[0-9a-f]+\] |PC: )\s*(?:\[<[0-9a-f]+>\]\s*)?"
    rf"(?P<func2>{_SYMBOL}){_OFFSET}(?P<rest2>.*)"
)
_USER_PC = re.compile(r"\b(?:RIP|EIP): (?:0033|0023|0073|002b):")
_LR = re.compile(rf"(?:^|\s)(?:lr : |LR is at |LR \[[0-9a-f]+\] )\s*(?P<func>{_SYMBOL}){_OFFSET}")

STACK_START = re.compile(
    r"(?:^|\s)(?:Call [Tt]race:?|[Bb]acktrace:|stack backtrace:|Stack backtrace:|CPU: \d+ .*PID: )"
)
TRACE_START = re.compile(r"(?:^|\s)(?:Call [Tt]race:?|[Bb]acktrace:)")

# Variants that the configuration chooses between; a bug keeps its name over them.
_ALIASES = (
    (re.compile(r"^synchronize_(?:rcu_\w+|sched|rcu)$"), "synchronize_rcu"),
    (re.compile(r"^smp_call_function(?:_\w+)?$"), "smp_call_function"),
)
_CLONE = re.compile(
    r"\.(?:isra|part|constprop|cold|llvm|localalias|lto_priv|str|clone)(?:\.?\w+)*$"
)
_SYSCALL = re.compile(
    r"^(?:__x64_|__ia32_|__arm64_|__riscv_|__s390x?_|__powerpc_)?"
    r"(?:__se_|__do_)?(?:compat_)?(?:SyS|SYSC|sys|ksys)_(?P<name>\w+)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One entry of a stack."""

    function: str  # as printed, without offset
    file: str = ""
    index: int = 0  # of the line in its report
    inline: bool = False
    pc: bool = False  # from an instruction-pointer line, not from the list of return addresses
    guess: bool = False  # "?": a word on the stack that looks like a return address


def name(function: str) -> str:
    """A function's name without what compilers and syscall wrappers put round it."""
    if function.startswith("<"):
        return function
    plain = clean(function)
    plain = re.sub(r"^__(?:pfx|cfi)_", "", plain)
    if plain.startswith("_R") and (rust := demangle(plain)):
        return rust
    wrapped = _SYSCALL.match(plain)
    if wrapped:
        return f"sys_{wrapped['name']}"
    for pattern, alias in _ALIASES:
        if pattern.match(plain):
            return alias
    return plain


def clean(function: str) -> str:
    """The name without the suffixes of compiler-made clones (.isra.0, .cold, ...)."""
    return _CLONE.sub("", function)


def demangle(symbol: str) -> str:
    """The path of a Rust v0 symbol, e.g. <rust_binder::process::Process>::update_ref; "" if not."""
    return _walk_rust(symbol)


def _walk_rust(symbol: str) -> str:
    """Identifiers of the mangled path in order; inherent methods get their type in brackets."""
    found: list[str] = []
    place = 2
    while place < len(symbol):
        if symbol[place] == "s" and (skip := re.compile(r"s[0-9A-Za-z]*_").match(symbol, place)):
            place = skip.end()
            continue
        number = re.compile(r"(\d+)_?").match(symbol, place)
        if number is None:
            if symbol[place] == "B":  # a back reference, not a name
                back = re.compile(r"B[0-9A-Za-z]*_").match(symbol, place)
                place = back.end() if back else place + 1
            else:
                place += 1
            continue
        size = int(number[1])
        word = symbol[number.end() : number.end() + size]
        if size and len(word) == size:
            found.append(word)
        place = number.end() + size
    if symbol.startswith("_RNvM") and len(found) >= 3:
        # impl path first, then the type's path, then the method
        path = found[:-1]
        return f"<{'::'.join(path)}>::{found[-1]}"
    return "::".join(found)


def parse(text: str, index: int = 0) -> Frame | None:
    """The frame that a line holds, or None. A line must look like one: an offset or a position."""
    if "+0x" not in text and ".c:" not in text and ".h:" not in text and ".rs:" not in text:
        arm = _ARM32.match(text)
        if arm is None:
            return None
        return Frame(function=arm["func"], index=index)
    pc = _PC.search(text)
    if pc is not None:
        if pc["cs"] in ("0033", "0023", "0073", "002b"):
            return None
        rest = pc["rest"] or pc["rest2"] or ""
        where = _POSITION.search(rest)
        return Frame(
            function=pc["func"] or pc["func2"],
            file=where["file"] if where else "",
            index=index,
            pc=True,
            inline="[inline]" in rest,
        )
    if text.lstrip().startswith(("RIP:", "EIP:", "pc :", "NIP")):
        # symbolised: "RIP: 0010:__lock file.h:1 [inline]"
        inner = re.search(
            rf"(?:RIP|EIP|pc|NIP)\s*:\s*(?:(?P<cs>\w{{4}}):)?\s*(?P<func>{_SYMBOL})\s+{_WHERE}",
            text,
        )
        if inner and inner["cs"] not in ("0033", "0023", "0073", "002b"):
            return Frame(
                function=inner["func"], file=inner["file"], index=index, pc=True, inline=True
            )
        return None
    arm = _ARM32.match(text)
    if arm is not None:
        where = _POSITION.search(text)
        return Frame(function=arm["func"], file=where["file"] if where else "", index=index)
    inline = _INLINE.match(text)
    if inline is not None:
        return Frame(
            function=inline["func"],
            file=inline["file"],
            index=index,
            inline=text.rstrip().endswith("[inline]") or "inline" in text,
        )
    match = _FRAME.match(text)
    if match is None or match["offset"] is None:
        return None
    if match["rest"] and not re.match(r"[\s,)\[(:]", match["rest"]):
        return None
    where = _POSITION.search(match["rest"])
    return Frame(
        function=match["func"],
        file=where["file"] if where else "",
        index=index,
        guess=match["guess"] is not None,
        inline="[inline]" in match["rest"],
    )


def link_register(text: str) -> str:
    """The function of an arm64 or powerpc link-register line; "" if it is none."""
    match = _LR.search(text)
    return match["func"] if match else ""


def user_pc(text: str) -> bool:
    """Is it the instruction pointer of user space, i.e. the end of the kernel's stack?"""
    return bool(_USER_PC.search(text))
