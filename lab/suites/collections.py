"""A kernel tree and names of self-test collections go in; built ones come out, as a disk.

They are built from the tree under test, where the kernel itself is built (`lab.build.sandbox`),
and run in guests of the root image. What does not build is left out, and why is said.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import host, model
from lab.arch import Arch
from lab.build import recipe, sandbox
from lab.build.sandbox import Bench
from lab.model import Emit, Event, EventKind, LabFault
from lab.store import Cache, publish, write_atomically
from lab.suites import payload, programs
from lab.suites.programs import Userland
from lab.tree import MOUNT_POINT, Tree

_VERSION = 2  # of how they are built
_TESTS = "tools/testing/selftests"
_INSTALLED = "lab-selftests"  # below the object folder
_LIST = "kselftest-list.txt"
_BUILD_S = 1800.0
_ERROR = re.compile(r"(?:fatal )?error: .*|.*: undefined reference to .*|.*cannot find -l\S+.*")
_RENAMED = {"mm": "vm", "vm": "mm"}  # commit baa489fabd01 ("selftests/vm: rename ...", v6.3)
_IGNORED = re.compile(r"/kselftest/(\S+)/([\w.+-]+)\] Error \d+ \(ignored\)")
_CONFIG = re.compile(r"^CONFIG_(\w+)=(?:y|m)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The collections of one tree, for one architecture."""

    tests: tuple[str, ...]  # "vm:madv_populate": on the disk
    unbuilt: dict[str, str]  # those that are not, and why
    symbols: dict[str, tuple[str, ...]]  # collection -> Kconfig that it asks for
    folder: Path | None = None  # None: nothing could be built


def present(tree: Path, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those collections as this tree calls them, and those that it does not have."""
    found: dict[str, None] = {}
    absent: list[str] = []
    for name in names:
        other = _RENAMED.get(name, name)
        here = next((one for one in (name, other) if (tree / _TESTS / one).is_dir()), None)
        if here is None:
            absent.append(name)
            continue
        # A collection may be a folder of collections: filesystems/epoll.
        makefiles = sorted((tree / _TESTS / here).rglob("Makefile"))
        found |= {str(path.parent.relative_to(tree / _TESTS)): None for path in makefiles}
    return tuple(found), tuple(absent)


def build(
    tree: Tree,
    row: Arch,
    names: Sequence[str],
    land: Userland,
    *,
    cache: Cache,
    emit: Emit,
    jobs: int,
) -> Built:
    """The collections of those names (see `present`), from the cache or built."""
    tools = recipe.toolchain(row)
    host.tool("rsync")
    digest = hashlib.sha256(
        model.encode([_VERSION, tree.tree, row.name, tuple(names), tools, land.glibc])
    )
    final = cache.sub("payloads") / f"selftests-{digest.hexdigest()[:24]}"
    step = f"self-tests {row.name}"
    with cache.lock(f"payload {final.name}", emit=emit, step=step):
        record = final / "built.json"
        if record.is_file():
            stored = model.decode(record.read_bytes(), Built)
            return _at(stored, final)
        emit(Event(kind=EventKind.STARTED, step=step, text=", ".join(names)))
        with cache.staging() as staging:
            made = staging / "made"
            made.mkdir()
            built = _make(tree, row, names, land, staging, made, tools, cache, jobs)
            write_atomically(made / record.name, model.encode(built))
            publish(made, final)
        text = f"{len(built.tests)} tests, {len(built.unbuilt)} do not build"
        emit(Event(kind=EventKind.DONE, step=step, text=text))
        return _at(built, final)


def _at(built: Built, final: Path) -> Built:
    """With the folder where it is now: a cache may move."""
    return Built(
        tests=built.tests,
        unbuilt=built.unbuilt,
        symbols=built.symbols,
        folder=final / "tests" if built.tests else None,
    )


def _make(
    tree: Tree,
    row: Arch,
    names: Sequence[str],
    land: Userland,
    staging: Path,
    made: Path,
    tools: recipe.Toolchain,
    cache: Cache,
    jobs: int,
) -> Built:
    kind = sandbox.wall(cache)
    if kind == "bwrap" and not (tree.path / MOUNT_POINT).is_dir():
        raise LabFault(f"{tree.path} has no empty folder {MOUNT_POINT}/ to build in")
    objects = staging / "obj"
    objects.mkdir()
    compilers = [Path(host.tool(name)) for name in (tools.cc, "make")]
    bench = Bench(
        kind=kind,
        source=tree.path,
        objects=objects,
        ccache=cache.sub("ccache"),
        visible=sandbox.visible_folders(compilers),
    )
    stamp = recipe.stamp(tree.source.git_dir, tree.source.commit)
    env = recipe.environment(row, stamp, bench.ccache_dir)
    arch = (f"ARCH={row.kernel}", f"CROSS_COMPILE={tools.cross}")
    headers = bench.make((f"-j{jobs}", *arch, "headers"), env)
    said = host.run(headers, env=env, timeout_s=_BUILD_S, check=False, leash=True)
    if said.status != 0:
        why = f"make headers fails: {_reason(said.text + said.complaint)}"
        return Built(tests=(), unbuilt=dict.fromkeys(names, why), symbols={})
    inside = bench.places
    words = (
        # -i: one program that does not build must not cost the others.
        *(f"-j{jobs}", "-i", "-C", _TESTS, f"O={inside.objects}", *arch),
        *(f"TARGETS={' '.join(names)}", "SKIP_TARGETS=", f"MACHINE={_machine(row)}"),
        f"KSFT_INSTALL_PATH={inside.objects}/{_INSTALLED}",
        "install",
    )
    done = host.run(bench.make(words, env), env=env, timeout_s=_BUILD_S, check=False, leash=True,
                    on_line=lambda _line: None)  # fmt: skip
    (made / "build.log").write_bytes(done.stdout)
    installed = objects / _INSTALLED
    return _sorted_out(tree, names, installed, land, made, done.text)


def _machine(row: Arch) -> str:
    """What `uname -m` would say there: makefiles of tests ask the host."""
    return "arm64" if row.machine == "aarch64" else row.machine


def _sorted_out(
    tree: Tree, names: Sequence[str], installed: Path, land: Userland, made: Path, log: str
) -> Built:
    """What of the planned is there and runs on that userland."""
    listing = installed / _LIST
    planned = listing.read_text().split() if listing.is_file() else []
    for name in names:
        if not any(one.startswith(f"{name}:") for one in planned):
            planned += _unlisted(installed, name)
    tests: list[str] = []
    unbuilt: dict[str, str] = {}
    for name in planned:
        collection, _, test = name.partition(":")
        path = installed / collection / test
        if not path.is_file():
            unbuilt[name] = f"not built: {_reason(log, test)}"
            continue
        program = programs.read(path)
        why = programs.misfit(program, land) if program else ""
        if why:
            unbuilt[name] = why
        else:
            tests.append(name)
    for collection, program in _IGNORED.findall(log):
        # Programs that a listed script starts.
        if collection in names and not (installed / collection / program).exists():
            why = f"not built: {_reason(log, program)}"
            unbuilt.setdefault(f"{collection}:{program}", why)
    for name in names:
        if not any(one.startswith(f"{name}:") for one in planned):
            unbuilt[name] = "no tests of its own, or none that can be installed"
    symbols = {}
    for name in names:
        config = tree.path / _TESTS / name / "config"
        if config.is_file():
            symbols[name] = tuple(_CONFIG.findall(config.read_text(errors="replace")))
    if tests:
        listing.write_text("".join(f"{name}\n" for name in tests))
        installed.rename(made / "tests")
    return Built(tests=tuple(tests), unbuilt=unbuilt, symbols=symbols)


def _unlisted(installed: Path, collection: str) -> list[str]:
    """The programs of a collection that lists no test: some call theirs plain files."""
    found = programs.programs([installed / collection])
    return [f"{collection}:{one.path.name}" for one in found if one.path.parent.name in collection]


def _reason(log: str, program: str = "") -> str:
    """The first error in what make said, of that program if it is named."""
    lines = [line for line in log.splitlines() if _ERROR.search(line)]
    mine = [line for line in lines if program and re.search(rf"\b{re.escape(program)}\b", line)]
    first = (mine or lines or ["make gave no reason"])[0]
    return first.strip()[:300]


def disk(built: Built, row: Arch, *, cache: Cache, emit: Emit) -> Path | None:
    """The collections as a read-only disk; None if there is nothing to put on it."""
    if built.folder is None:
        return None
    name = f"kselftest-{row.name}"
    return payload.disk_of(built.folder, name, cache=cache, emit=emit, skip=frozenset())
