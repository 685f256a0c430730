"""Built programs go in; whether they run in a root image comes out, before anything boots.

What is looked at: the machine that an ELF file is for, its interpreter, the shared libraries that
it needs, and the versions of glibc's symbols.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.segments import InterpSegment

from lab import host, model
from lab.arch import Arch
from lab.image import ImageManifest
from lab.model import LabFault, RootImage

_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}  # uname -m -> ELF
_NAMES = {elf: name for name, elf in _MACHINES.items()}
_GLIBC = re.compile(r"GLIBC_(\d+(?:\.\d+)+)")
Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the header of one dynamic or static executable says."""

    path: Path
    machine: str  # as uname -m says it, or the ELF name of one that the lab does not know
    interpreter: str  # "" for a static one
    needs: tuple[str, ...]  # sonames
    glibc: Version  # the newest symbol version that it needs; () if none


@dataclass(frozen=True, slots=True, kw_only=True)
class Userland:
    """What a root image offers to programs."""

    machine: str
    libraries: frozenset[str]  # file names
    glibc: Version


def read(path: Path) -> Program | None:
    """The program in that file; None if it is no whole ELF executable or library."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"\x7fELF":
                return None
            elf = ELFFile(stream)
            if elf["e_type"] not in ("ET_EXEC", "ET_DYN"):
                return None
            return _program(path, elf)
    except (ELFError, OSError, UnicodeDecodeError, KeyError, ValueError):
        return None


def _program(path: Path, elf: ELFFile) -> Program:
    interpreter = ""
    needs: list[str] = []
    versions: list[Version] = [()]
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = str(segment.get_interp_name())
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            needs += [str(getattr(tag, "needed", "")) for tag in section.iter_tags("DT_NEEDED")]
        elif isinstance(section, GNUVerNeedSection):
            for _, wanted in section.iter_versions():
                versions += [_glibc(str(one.name)) for one in wanted]
    machine = str(elf["e_machine"])
    return Program(
        path=path,
        machine=_NAMES.get(machine, machine),
        interpreter=interpreter,
        needs=tuple(needs),
        glibc=max(versions),
    )


def _glibc(name: str) -> Version:
    found = _GLIBC.fullmatch(name)
    return tuple(map(int, found[1].split("."))) if found else ()


def userland(image: RootImage, row: Arch) -> Userland:
    """What the image has. Raises `LabFault` if it is no Debian with a C library."""
    raw = (image.path.parent / "manifest.json").read_bytes()
    manifest = model.decode(raw, ImageManifest)
    versions = {package.name: package.version for package in manifest.packages}
    found = re.match(r"(\d+)\.(\d+)", versions.get("libc6", ""))
    if found is None:
        raise LabFault(f"the root image {image.path} has no package libc6")
    names: set[str] = set()
    for folder in ("/usr/lib", f"/usr/lib/{row.machine}-linux-gnu", "/usr/lib64"):
        listed = host.run(("debugfs", "-R", f"ls -p {folder}", image.path), check=False).text
        # One file a line: /inode/mode/uid/gid/name/size/
        names |= {line.split("/")[5] for line in listed.splitlines() if line.count("/") >= 6}
    return Userland(
        machine=row.machine,
        libraries=frozenset(names),
        glibc=(int(found[1]), int(found[2])),
    )


def misfit(program: Program, land: Userland, own: frozenset[str] = frozenset()) -> str:
    """Why the program does not run there; "" if it does. `own`: libraries that come with it."""
    name = program.path.name
    if program.machine != land.machine:
        return f"{name} is for {program.machine}, not for {land.machine}"
    if program.interpreter and Path(program.interpreter).name not in land.libraries:
        return f"{name} wants {program.interpreter}, which the root image does not have"
    for library in program.needs:
        if library not in land.libraries and library not in own:
            return f"{name} needs {library}, which the root image does not have"
    if program.glibc > land.glibc:
        newest, have = (".".join(map(str, v)) for v in (program.glibc, land.glibc))
        return f"{name} needs glibc {newest}, and the root image has {have}"
    return ""


def programs(folders: Iterable[Path]) -> Iterator[Program]:
    """All ELF executables and libraries below the folders, links left out."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix != ".o":
                program = read(path)
                if program is not None:
                    yield program
