"""Changed files come in; which objects count the runs of their lines, and what of such a build is
kept to read the counters, goes out.

No file of any tree is written for it, and the configuration stays that of the kernel that is
tested: make gets variables which are true for these objects only. So little is compiled anew, and
the rest of the kernel is the same.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lab import host
from lab.arch import Arch
from lab.build.diagnostics import Places
from lab.model import LabFault, decode, encode
from lab.store import write_atomically

FOLDER = "gcov"
_INDEX = "notes.json"
# What make expands must not come from a patch.
_PLAIN = re.compile(r"[\w./+-]+")
# A directory whose code cannot have counters: it runs before the kernel, or in user space.
_REFUSES = re.compile(r"^\s*GCOV_PROFILE\s*[:?]?=\s*n\b", re.MULTILINE)
# Counters that several CPUs raise at once must not lose any: gcov computes the counts of most lines
# from those of others. Some kernels ask for that themselves.
_FLAGS = ("-fprofile-arcs", "-ftest-coverage", "-fno-tree-loop-im", "-fprofile-update=atomic")
# What gcc does before it inserts counters, and that would leave none in `return -ENOMEM;`: a
# constant that only one branch assigns is made a choice between two, without code of its own. All
# that comes after the counters stays as it is: kernels rely on it.
_EARLY = ("ccp1", "forwprop1", "ethread", "fre1", "evrp", "mergephi1", "dse1", "cddce1", "phiopt1")
_CALLER, _SCRIPT = "init/main.o", "arch/%/kernel/vmlinux.lds"  # of constructors
# What does not become a part of a kernel, whatever it is named.
_ELSEWHERE = ("Documentation", "scripts", "tools", "usr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What a build with counters kept: a .gcno file for each object that has some."""

    source: str  # paths as the compiler saw them
    objects: str
    files: tuple[str, ...]  # "mm/memory.gcno", relative to the kernel's folder for them


def targets(tree: Path, changed: Sequence[str], objects: Path | None) -> tuple[str, ...]:
    """Objects ("mm/memory.o") that the changed .c files are compiled into.

    `objects` is an object folder of nearly the same source: a file may be included by others.
    """
    sources = [
        path
        for path in changed
        if path.endswith(".c")
        and _PLAIN.fullmatch(path)
        and PurePosixPath(path).parts[0] not in _ELSEWHERE
        and (tree / path).is_file()
    ]
    found = {str(PurePosixPath(path).with_suffix(".o")) for path in sources}
    if objects is not None and sources:
        found |= set(_including(objects, sources))
    return tuple(sorted(one for one in found if not _refused(tree, one)))


def _including(objects: Path, sources: Sequence[str]) -> Iterator[str]:
    """Objects that were compiled from one of the files, by the dependencies that kbuild wrote."""
    needles = [f" ../{path} ".encode() for path in sources]
    for file in objects.rglob(".*.o.cmd"):
        content = file.read_bytes().replace(b"\n", b" ")
        if any(needle in content for needle in needles):
            name = str((file.parent / file.name[1:].removesuffix(".cmd")).relative_to(objects))
            if _PLAIN.fullmatch(name):
                yield name


def _refused(tree: Path, target: str) -> bool:
    """Whether the Makefile that makes the object says that nothing there has counters."""
    for folder in PurePosixPath(target).parents:
        for name in ("Kbuild", "Makefile"):
            makefile = tree / folder / name
            if makefile.is_file():
                return _REFUSES.search(makefile.read_text(errors="replace")) is not None
    return False


@functools.cache
def flags(row: Arch, cc: str) -> tuple[str, ...]:
    """Of the compiler, for objects with counters."""
    early = tuple(f"-fdisable-tree-{one}" for one in _EARLY)
    probe = [cc, "-O2", *early, "-x", "c", "-c", "-o", "/dev/null", "-"]
    known = host.run(probe, stdin=b"int x;\n", check=False, timeout_s=60).status == 0
    return (*_FLAGS, *row.counter_flags, *(early if known else ()))


def words(counted: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """Variables for make; they go before what the Makefiles say, but for single exempt objects."""
    if not counted:
        return ()
    objects = " ".join(counted)
    constructors = "-DCONFIG_CONSTRUCTORS=1"
    return (
        # For kernel/gcov, and for the rule that adds flags. Not behind the place where kbuild looks
        # for objtool: there it would change the command of every object.
        "CONFIG_GCOV_KERNEL=$(if $(objtool),,y)",
        # Objects with counters register themselves by constructors, which only these two know of.
        # As an option, it would change `struct module`, and with it most objects.
        f"cppflags-y=$(if $(filter {_SCRIPT},$@),{constructors} -DCONFIG_GCOV_KERNEL=1)",
        f"CFLAGS_GCOV=$(if $(filter {_CALLER},$@),{constructors}) "
        f"$(if $(filter {objects},$@),{' '.join(flags)})",
        f"GCOV_PROFILE=$(if $(filter {_CALLER} {objects},$@),y)",
    )


def keep(objects: Path, out: Path, counted: Sequence[str], places: Places) -> None:
    """Copy the notes of the objects that were built with counters to `out`/gcov."""
    kept: list[str] = []
    for target in counted:
        name = str(PurePosixPath(target).with_suffix(".gcno"))
        if not (objects / name).is_file():
            continue  # the configuration leaves it out, or its Makefile exempts it
        (out / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(objects / name, out / FOLDER / name)
        kept.append(name)
    notes = Notes(source=places.source, objects=places.objects, files=tuple(kept))
    write_atomically(out / FOLDER / _INDEX, encode(notes))


def notes(kernel: Path) -> Notes:
    """What the build in that folder kept. Raises `LabFault` if it has no counters."""
    try:
        return decode((kernel / FOLDER / _INDEX).read_bytes(), Notes)
    except OSError as error:
        raise LabFault(f"{kernel} was not built with counters: {error.strerror}") from error
