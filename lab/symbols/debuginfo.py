"""An ELF file with DWARF in; the source lines of a `function+offset/size` out, by drgn.

Debug information is somebody else's bytes: this runs in a process of its own (`__main__`).
"""

from __future__ import annotations

import posixpath
import struct
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import drgn

from lab.symbols.query import Answer, Query, SourceLine

# Not in kallsyms (scripts/mksysmap), so not the end of a function either: mapping symbols of
# arm64, local labels, checksums, types for control flow integrity, code for EFI and for EL2.
_HIDDEN = ("$", ".L", "__crc_", "__kcfi_typeid_", "__efistub_", "__kvm_nvhe_", "__pi_", "L0\x01")
_RELOCATABLE, _ALLOCATED, _EXECUTABLE = 1, 2, 4
_FIRST_SECTION = 0x1000_0000
_SECTION_STEP = 0x1_0000


class Unreadable(Exception):
    """The file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Symbol:
    address: int
    sizes: frozenset[int]  # what a log may give as its size
    least: int | None = None  # the last of its section: this or more


@dataclass(slots=True)
class Code:
    """The functions of one file, and where each of their instructions comes from."""

    program: drgn.Program
    symbols: dict[str, list[_Symbol]] = field(default_factory=lambda: defaultdict(list))
    root: str = ""  # what file names begin with that lie in the kernel tree

    def find(self, query: Query) -> Answer:
        """The source lines of one place, or why there are none."""
        named = self.symbols.get(query.function)
        if not named:
            return Answer(note="no such function in this file")
        fitting = [symbol for symbol in named if _fits(symbol, query.size)]
        if not fitting:
            here = " or ".join(sorted({hex(max(symbol.sizes)) for symbol in named}))
            return Answer(note=f"{here} bytes in this file: it is not the one that ran")
        found = {self._lines(symbol.address, query) for symbol in fitting}
        if len(found) > 1:
            return Answer(note=f"{len(found)} functions have this name and size")
        (lines,) = found
        return Answer(lines=lines, note="" if lines else "no line in the debug information")

    def _lines(self, address: int, query: Query) -> tuple[SourceLine, ...]:
        try:
            places = self.program.source_location(address + query.offset - (not query.exact))
        except LookupError:
            return ()
        return tuple(
            SourceLine(
                function=place.name() or query.function,
                file=relative(place.filename, self.root),
                line=place.line,
            )
            for place in places
            if place.filename and place.line
        )


def _fits(symbol: _Symbol, size: int) -> bool:
    return size in symbol.sizes or (symbol.least is not None and size >= symbol.least)


def relative(name: str, root: str) -> str:
    """A compiler's file name as it is called in the kernel tree."""
    return posixpath.normpath(name.removeprefix(root) if root else name)


def kernel(path: Path) -> Code:
    """A linked kernel. Raises `Unreadable`."""
    if _header(path)[0] == _RELOCATABLE:
        raise Unreadable("an object file, not a linked kernel")
    program = drgn.Program()
    module = program.extra_module("vmlinux", create=True)
    _load(module, path)
    module.address_ranges = [(1, 2**64 - 1)]
    code = Code(program=program)
    _index(code, program.symbols(), ends=())
    code.root = _root(code)
    return code


def module(path: Path, *, root: str) -> Code:
    """A loadable module, not linked yet: its sections are put at addresses of our own."""
    kind, sections = _header(path)
    if kind != _RELOCATABLE:
        raise Unreadable("not a kernel module")
    program = drgn.Program()
    loaded = program.relocatable_module(path.name, _FIRST_SECTION, create=True)
    place, ends = _FIRST_SECTION, []
    for name, flags, size in sections:
        if flags & _ALLOCATED and name not in loaded.section_addresses:
            loaded.section_addresses[name] = place
            if flags & _EXECUTABLE:
                ends.append(place + size)
            place += (size // _SECTION_STEP + 2) * _SECTION_STEP
    loaded.address_ranges = [(_FIRST_SECTION, place)]
    _load(loaded, path)
    code = Code(program=program, root=root)
    _index(code, program.symbols(), ends=tuple(ends))
    return code


def _load(module: drgn.Module, path: Path) -> None:
    module.try_file(str(path), force=True)
    if module.debug_file_status is not drgn.ModuleFileStatus.HAVE:
        raise Unreadable("no debug information in it")


def _index(code: Code, symbols: list[drgn.Symbol], *, ends: tuple[int, ...]) -> None:
    """The symbols by name, each with the sizes that a kernel may print for it.

    A kernel prints the distance to the next symbol that it knows (kernel/kallsyms.c,
    get_symbol_pos), padding included, not the size that the ELF file gives.
    """
    shown = [s for s in symbols if s.name and not s.name.startswith(_HIDDEN)]
    real = [s for s in shown if s.kind not in (drgn.SymbolKind.FILE, drgn.SymbolKind.SECTION)]
    every = sorted({s.address for s in real})
    functions = sorted({s.address for s in real if s.kind is drgn.SymbolKind.FUNC})
    for symbol in real:
        after = [
            addresses[place]
            for addresses in (every, functions)
            if (place := bisect_right(addresses, symbol.address)) < len(addresses)
        ]
        end = next((end for end in ends if symbol.address < end), None)
        last = end is not None and (not after or min(after) >= end)
        sizes = {symbol.size, *(address - symbol.address for address in after)}
        code.symbols[symbol.name].append(
            _Symbol(
                address=symbol.address,
                sizes=frozenset(sizes),
                least=symbol.size if last else None,
            )
        )


def _root(code: Code) -> str:
    """What stands before init/main.c in the name of the file that start_kernel() is in."""
    for symbol in code.symbols.get("start_kernel", ()):
        try:
            name = code.program.source_location(symbol.address)[-1].filename
        except LookupError:
            continue
        if name.endswith("init/main.c"):
            return str(name.removesuffix("init/main.c"))
    return ""


def _header(path: Path) -> tuple[int, list[tuple[str, int, int]]]:
    """Type of an ELF file, and name, flags and size of its sections. Raises `Unreadable`."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if head[:6] != b"\x7fELF\x02\x01":
                raise Unreadable("not a little-endian 64-bit ELF file")
            (kind,) = struct.unpack_from("<H", head, 16)
            if kind != _RELOCATABLE:
                return kind, []
            (at,) = struct.unpack_from("<Q", head, 40)
            each, count, names = struct.unpack_from("<HHH", head, 58)
            file.seek(at)
            rows = [struct.unpack("<IIQQQQIIQQ", file.read(each)[:64]) for _ in range(count)]
            file.seek(rows[names][4])
            table = file.read(rows[names][5])
    except (struct.error, IndexError) as error:
        raise Unreadable("a damaged ELF file") from error
    except OSError as error:
        raise Unreadable(error.strerror or "unreadable") from error
    texts = (table[row[0] : table.find(b"\0", row[0])] for row in rows)
    return kind, [
        (name.decode("utf-8", "replace"), row[2], row[5])
        for name, row in zip(texts, rows, strict=True)
    ]
