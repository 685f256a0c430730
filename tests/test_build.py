"""Builds of a toy kernel with the real make, compiler, ccache and sandbox."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import host
from lab.arch import ARCHS
from lab.build import build, first_broken
from lab.build.diagnostics import Places, first_error, host_fault, step, warnings
from lab.kconfig import Fragment
from lab.model import (
    BuildFailure,
    Diagnostic,
    Event,
    EventKind,
    Kernel,
    LabFault,
    Side,
    Source,
    UserError,
    encode,
)
from lab.store import Cache
from lab.tree import Tree
from tests import records

TOY = Path(__file__).parent / "toykernel"
FRAGMENT = Fragment(name="toy.config", text='CONFIG_TOY_FS=y\nCONFIG_LOCALVERSION="-lab"\n')
LONG_AGO_S = 1_000_000_000
OBJECTS = 4  # of the toy with TOY_FS


# --- the toy -----------------------------------------------------------------------------------


def git(where: Path, *words: str) -> str:
    identity = ("-c", "user.name=toy", "-c", "user.email=toy@localhost")
    return host.run(["git", "-C", where, *identity, *words]).text.strip()


@dataclass
class Toy:
    """Makes trees of the toy kernel, builds them in a cache of their own, keeps the events."""

    root: Path
    events: list[Event] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self.cache = Cache(root=self.root / "cache")
        self.base = self._checkout({})
        commit, tree = (git(self.base, "rev-parse", one) for one in ("HEAD", "HEAD^{tree}"))
        self.source = Source(
            name="toy",
            git_dir=self.base / ".git",
            commit=commit,
            tree=tree,
            version="6.1.0",
            provenance="tests",
        )

    def _checkout(self, edits: Mapping[str, str | None]) -> Path:
        self.made += 1
        path = self.root / f"tree{self.made}"
        shutil.copytree(TOY, path)
        for one in path.rglob("*"):
            if one.is_file():
                os.utime(one, (LONG_AGO_S, LONG_AGO_S))
        for name, content in edits.items():
            if content is None:
                (path / name).unlink()
            else:
                (path / name).write_text(content)
        git(path, "init", "-q")
        git(path, "add", ".")
        git(path, "commit", "-q", "-m", "toy")
        (path / "build").mkdir()
        return path

    def tree(self, edits: Mapping[str, str | None] | None = None) -> Tree:
        """The toy with files replaced (None: removed), as a patch would leave them."""
        path = self._checkout(edits) if edits else self.base
        if edits:  # where the lab has its commits: in the source's repository
            git(self.base, "fetch", "-q", str(path), "HEAD")
        return Tree(
            path=path,
            tree=git(path, "rev-parse", "HEAD^{tree}"),
            commit=git(path, "rev-parse", "HEAD"),
            source=self.source,
            patches=(),
            changed=tuple(edits or ()),
        )

    def read(self, name: str) -> str:
        return (TOY / name).read_text()

    def build(
        self,
        tree: Tree,
        *,
        side: Side = Side.BASE,
        arch: str = "x86_64",
        config: str = "",
        seed: Kernel | None = None,
        keep: bool = False,
        cache: Cache | None = None,
        counted: tuple[str, ...] = (),
    ) -> Kernel | BuildFailure:
        extra = (Fragment(name="extra.config", text=config),) if config else ()
        return build(
            tree,
            arch=arch,
            side=side,
            fragments=(FRAGMENT, *extra),
            cache=cache or self.cache,
            emit=self.events.append,
            jobs=2,
            seed=seed,
            keep=keep,
            counted=counted,
        )

    def kernel(self, tree: Tree, **how: object) -> Kernel:
        built = self.build(tree, **how)  # type: ignore[arg-type]
        assert isinstance(built, Kernel), built
        return built

    def failure(self, tree: Tree, **how: object) -> BuildFailure:
        built = self.build(tree, **how)  # type: ignore[arg-type]
        assert isinstance(built, BuildFailure), built
        return built


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file of a folder: digest and time stamp."""
    return {
        str(one.relative_to(folder)): (
            hashlib.sha256(one.read_bytes()).hexdigest(),
            one.stat().st_mtime_ns,
        )
        for one in folder.rglob("*")
        if one.is_file()
    }


# --- a kernel ----------------------------------------------------------------------------------


@pytest.mark.fake
@pytest.mark.parametrize("arch", ARCHS)
def test_a_kernel_is_whole(toy: Toy, arch: str) -> None:
    kernel = toy.kernel(toy.tree(), arch=arch)
    assert kernel.release == "6.1.0-lab"
    assert kernel.compiled == OBJECTS
    assert kernel.make_ran and kernel.seeded_from is None
    assert kernel.folder == toy.cache.root / "builds" / kernel.key
    assert hashlib.sha256(kernel.image.read_bytes()).hexdigest() == kernel.image_sha256
    assert kernel.vmlinux.stat().st_size > 0
    assert "CONFIG_TOY_FS=y" in kernel.config.read_text()
    assert "  CC      mm/memory.o" in (kernel.folder / "build.log").read_text()
    # Nothing half-made beside it, and what a link makes anew is not kept twice.
    assert [one.name for one in (toy.cache.root / "builds").iterdir()] == [kernel.key]
    assert not (kernel.folder / "obj" / ARCHS[arch].image).exists()
    assert toy.events[-1].kind is EventKind.DONE


@pytest.mark.fake
def test_a_built_kernel_is_taken_from_the_cache_without_make(toy: Toy) -> None:
    first = toy.kernel(toy.tree())
    before = len(host.transcript)
    again = toy.kernel(toy.tree(), side=Side.PATCHED)
    calls = [line for line in host.transcript[before:] if "tinyconfig" in line or "-j2" in line]
    assert calls == []
    assert not again.make_ran and again.side is Side.PATCHED
    assert again.key == first.key and again.image_sha256 == first.image_sha256


@pytest.mark.fake
def test_a_damaged_kernel_is_built_again(toy: Toy) -> None:
    first = toy.kernel(toy.tree())
    first.image.write_bytes(b"torn")
    again = toy.kernel(toy.tree())
    assert again.make_ran and again.image_sha256 == first.image_sha256


@pytest.mark.fake
def test_a_cache_that_moved_still_serves(toy: Toy) -> None:
    first = toy.kernel(toy.tree())
    moved = toy.root / "elsewhere"
    toy.cache.root.rename(moved)
    again = toy.kernel(toy.tree(), cache=Cache(root=moved))
    assert not again.make_ran and again.image.is_relative_to(moved)
    assert again.key == first.key


@pytest.mark.fake
def test_equal_inputs_give_equal_images_anywhere(toy: Toy) -> None:
    one = toy.kernel(toy.tree())
    other = toy.kernel(toy.tree(), cache=Cache(root=toy.root / "other"))
    assert other.make_ran and other.key == one.key
    assert other.image_sha256 == one.image_sha256


@pytest.mark.fake
def test_config_and_source_are_in_the_key(toy: Toy) -> None:
    keys = {
        toy.kernel(toy.tree()).key,
        toy.kernel(toy.tree(), config="CONFIG_TOY_DEBUG=y\n").key,
        toy.kernel(toy.tree({"mm/mmap.c": toy.read("mm/mmap.c") + "\nint more;\n"})).key,
    }
    assert len(keys) == 3


# --- seeding -----------------------------------------------------------------------------------


@pytest.mark.fake
@pytest.mark.parametrize(
    ("path", "line", "compiled"),
    [("mm/memory.c", "int more;", 1), ("include/linux/mm.h", "#define MORE 1", 2)],
)
def test_a_seeded_build_compiles_what_the_patch_touches(
    toy: Toy, path: str, line: str, compiled: int
) -> None:
    base = toy.tree()
    # Both trees are there before anything is built, as in a run: the patched file is older than
    # the base's objects, and is to be compiled all the same.
    patched = toy.tree({path: f"{toy.read(path)}{line}\n"})
    seed = toy.kernel(base)
    before = contents(seed.folder)
    kernel = toy.kernel(patched, side=Side.PATCHED, seed=seed)
    assert kernel.seeded_from == seed.key
    assert kernel.compiled == compiled
    assert contents(seed.folder) == before
    # Nothing ever starts from a patched kernel's objects.
    assert (seed.folder / "obj").is_dir() and not (kernel.folder / "obj").exists()
    # The same kernel as one that is built whole.
    whole = toy.kernel(patched, cache=Cache(root=toy.root / "other"))
    assert whole.compiled == OBJECTS and whole.image_sha256 == kernel.image_sha256
    assert kernel.image_sha256 != seed.image_sha256 or path.endswith(".h")


@pytest.mark.fake
def test_a_seed_that_has_some_of_the_patches_saves_what_they_touch(toy: Toy) -> None:
    """A header that all include, and then one file more: only that is compiled again."""
    first = {"include/linux/mm.h": toy.read("include/linux/mm.h") + "#define MORE 1\n"}
    both = {**first, "mm/memory.c": toy.read("mm/memory.c") + "int more;\n"}
    # The order of the check-outs must not matter: the header of the second is the older one.
    second_tree, first_tree = toy.tree(both), toy.tree(first)
    base = toy.kernel(toy.tree())
    seed = toy.kernel(first_tree, side=Side.PATCHED, seed=base, keep=True)
    assert seed.compiled == 2 and (seed.folder / "obj").is_dir()
    kernel = toy.kernel(second_tree, side=Side.PATCHED, seed=seed)
    assert kernel.seeded_from == seed.key
    assert kernel.compiled == 1
    whole = toy.kernel(second_tree, cache=Cache(root=toy.root / "other"))
    assert whole.compiled == OBJECTS and whole.image_sha256 == kernel.image_sha256


@pytest.mark.fake
def test_objects_can_be_kept_of_a_kernel_that_is_there(toy: Toy) -> None:
    base = toy.kernel(toy.tree())
    tree = toy.tree({"mm/memory.c": toy.read("mm/memory.c") + "int more;\n"})
    first = toy.kernel(tree, side=Side.PATCHED, seed=base)
    assert not (first.folder / "obj").exists()
    again = toy.kernel(tree, side=Side.PATCHED, seed=base, keep=True)
    assert again.key == first.key and again.image_sha256 == first.image_sha256
    assert (again.folder / "obj").is_dir()
    assert not toy.kernel(tree, side=Side.PATCHED, keep=True).make_ran


@pytest.mark.fake
def test_a_seeded_build_follows_another_config(toy: Toy) -> None:
    seed = toy.kernel(toy.tree())
    patched = toy.tree({"mm/memory.c": toy.read("mm/memory.c") + "int more;\n"})
    kernel = toy.kernel(patched, seed=seed, config="CONFIG_TOY_DEBUG=y\n")
    assert kernel.seeded_from == seed.key
    assert "CONFIG_TOY_DEBUG=y" in kernel.config.read_text()


@pytest.mark.fake
def test_a_seed_with_changes_of_its_own_is_not_used(toy: Toy) -> None:
    seed = toy.kernel(toy.tree({"mm/mmap.c": toy.read("mm/mmap.c") + "int more;\n"}))
    patched = toy.tree({"mm/memory.c": toy.read("mm/memory.c") + "int more;\n"})
    kernel = toy.kernel(patched, seed=seed)
    assert kernel.seeded_from is None and kernel.compiled == OBJECTS


@pytest.mark.fake
def test_a_removed_file_is_noticed_in_a_seeded_build(toy: Toy) -> None:
    seed = toy.kernel(toy.tree())
    failure = toy.failure(toy.tree({"mm/mmap.c": None}), seed=seed)
    assert "mm/mmap" in failure.first_error.text


@pytest.mark.fake
def test_warnings_do_not_depend_on_seeding(toy: Toy) -> None:
    warned = toy.read("mm/mmap.c") + "static int unused;\n"
    toy_base = toy.tree({"mm/mmap.c": warned})
    seed = toy.kernel(toy_base)
    assert [(one.file, one.line, one.severity) for one in seed.warnings] == [
        ("mm/mmap.c", len(warned.splitlines()), "warning")
    ]
    assert "static int unused;" in seed.warnings[0].text
    patched = toy.tree(
        {
            "mm/mmap.c": warned,
            "mm/memory.c": toy.read("mm/memory.c") + "static int idle;\n",
        }
    )
    kernel = toy.kernel(patched, seed=seed, side=Side.PATCHED)
    # In the order in which parallel jobs ended.
    assert sorted(one.file for one in kernel.warnings) == ["mm/memory.c", "mm/mmap.c"]


# --- what does not build -----------------------------------------------------------------------


@pytest.mark.fake
def test_a_compile_error_has_file_line_and_excerpt(toy: Toy) -> None:
    broken = toy.read("mm/memory.c") + "int broken = missing;\n"
    failure = toy.failure(toy.tree({"mm/memory.c": broken}), side=Side.PATCHED)
    error = failure.first_error
    assert failure.phase == "compile" and failure.side is Side.PATCHED
    assert (error.file, error.line) == ("mm/memory.c", len(broken.splitlines()))
    assert "'missing' undeclared" in error.message
    assert "int broken = missing;" in error.text and "^" in error.text
    assert error.message in failure.log.read_text()
    # Nothing of it can be taken for a kernel.
    assert [one.name for one in (toy.cache.root / "builds").iterdir()] == [f"{failure.key}.failed"]


@pytest.mark.fake
def test_a_link_error_is_one(toy: Toy) -> None:
    undefined = toy.read("mm/mmap.c").replace("return address", "return gone(address)")
    undefined = "int gone(int);\n" + undefined
    failure = toy.failure(toy.tree({"mm/mmap.c": undefined}))
    assert failure.phase == "link"
    assert "undefined reference to `gone'" in failure.first_error.message
    assert "mm/mmap" in failure.first_error.text


@pytest.mark.fake
@pytest.mark.parametrize("recipe", ["true", "mkdir -p $(@D) && : > $@"])
def test_make_that_ends_well_without_an_image_is_a_failure(toy: Toy, recipe: str) -> None:
    makefile = toy.read("Makefile").replace("mkdir -p $(@D) && cp vmlinux $@", recipe)
    failure = toy.failure(toy.tree({"Makefile": makefile}))
    assert failure.phase == "link"
    assert "made no arch/x86/boot/bzImage" in failure.first_error.message


@pytest.mark.fake
def test_a_failed_build_that_is_mended_builds(toy: Toy) -> None:
    seed = toy.kernel(toy.tree())
    toy.failure(toy.tree({"mm/memory.c": "broken\n"}), seed=seed)
    mended = toy.tree({"mm/memory.c": toy.read("mm/memory.c") + "int more;\n"})
    assert toy.kernel(mended, seed=seed).compiled == 1


@pytest.mark.fake
def test_an_option_that_the_kernel_drops_is_the_users_error(toy: Toy) -> None:
    with pytest.raises(UserError) as caught:
        toy.build(toy.tree(), config="CONFIG_TOY_ARM64=y\nCONFIG_TOY_GONE=y\n")
    assert caught.value.message.splitlines() == [
        "extra.config:1 asks for CONFIG_TOY_ARM64=y, the kernel dropped it: "
        "this kernel has no such option",
        "extra.config:2 asks for CONFIG_TOY_GONE=y, the kernel dropped it: "
        "this kernel has no such option",
    ]
    assert not list((toy.cache.root / "builds").iterdir())


@pytest.mark.fake
def test_an_option_of_other_kernels_may_be_absent_and_is_noted(toy: Toy) -> None:
    toy.kernel(toy.tree(), config="CONFIG_TOY_GONE=y # if present\n")
    notes = [one.text for one in toy.events if one.kind is EventKind.NOTE]
    assert notes == ["CONFIG_TOY_GONE does not exist in 6.1.0"]


@pytest.mark.fake
def test_if_present_does_not_excuse_an_unmet_dependency(toy: Toy) -> None:
    fragment = Fragment(name="a.config", text="CONFIG_TOY_DEBUG=y # if present\n")
    with pytest.raises(UserError, match="depends on TOY_FS; TOY_FS=n"):
        build(
            toy.tree(),
            arch="x86_64",
            side=Side.BASE,
            fragments=[fragment],
            cache=toy.cache,
            emit=toy.events.append,
            jobs=1,
        )


@pytest.mark.fake
def test_an_option_that_the_patch_takes_away_is_a_finding(toy: Toy) -> None:
    kconfig = toy.read("init/Kconfig").replace("TOY_FS", "TOY_FILES")
    tree = toy.tree({"init/Kconfig": kconfig})
    failure = toy.failure(tree, side=Side.PATCHED, seed=toy.kernel(toy.tree()))
    assert failure.phase == "config" and failure.first_error.file == "init/Kconfig"
    assert "CONFIG_TOY_FS=y" in failure.first_error.text
    # On the base side nothing was patched: there, the fragments are wrong.
    with pytest.raises(UserError, match="CONFIG_TOY_FS=y"):
        toy.build(tree, side=Side.BASE)


@pytest.mark.fake
def test_a_kconfig_that_cannot_be_parsed_is_a_finding(toy: Toy) -> None:
    broken = toy.read("mm/Kconfig") + "\nconfigure TOY_X\n"
    failure = toy.failure(toy.tree({"mm/Kconfig": broken}), side=Side.PATCHED)
    assert failure.phase == "config"
    assert failure.first_error.file == "mm/Kconfig"
    assert failure.first_error.line == len(broken.splitlines())
    assert "syntax error" in failure.first_error.message


# --- what is the host's fault ------------------------------------------------------------------


@pytest.mark.fake
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("@cat $< > /dev/full", "the disk filled up"),
        ("@echo x > /dev/full", "the host failed"),
        ("@kill -9 $$$$", "a tool of the build was killed"),
    ],
)
def test_a_sick_host_is_never_blamed_on_the_source(toy: Toy, recipe: str, message: str) -> None:
    rule = toy.read("scripts/object.mk").replace('@echo "  CC      $@"', recipe)
    with pytest.raises(LabFault, match=message):
        toy.build(toy.tree({"scripts/object.mk": rule}), side=Side.PATCHED)


@pytest.mark.fake
def test_a_patch_that_says_so_does_not_make_the_host_sick(toy: Toy) -> None:
    failure = toy.failure(toy.tree({"mm/mmap.c": "#error x: No space left on device\n"}))
    assert failure.first_error.file == "mm/mmap.c"


# --- the sandbox -------------------------------------------------------------------------------


@pytest.mark.fake
def test_make_sees_its_tree_alone_and_no_network(toy: Toy) -> None:
    secret = toy.root / "secret"
    secret.write_text("private")
    probe = (
        f"@test ! -e {secret} && echo hidden; "
        "touch $(srctree)/mm/mark 2>/dev/null || echo readonly; "
        'test -z "$$HOME" && echo homeless; '
        "test $$(grep -c : /proc/net/dev) = 1 && echo offline; "
        "test $$(ls -d /proc/[0-9]* | wc -l) -lt 30 && echo alone"
    )
    makefile = toy.read("Makefile").replace('@echo "  LD      $@"', probe)
    kernel = toy.kernel(toy.tree({"Makefile": makefile}))
    assert kernel.sandbox == "bwrap"
    log = (kernel.folder / "build.log").read_text().splitlines()
    assert {"hidden", "readonly", "homeless", "offline", "alone"} <= set(log)


@pytest.mark.fake
def test_without_a_sandbox_it_builds_and_says_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    # A bwrap that is there and cannot work, as where user namespaces are forbidden.
    folder = toy.root / "bin"
    folder.mkdir()
    (folder / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions >&2\nexit 1\n")
    (folder / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    seed = toy.kernel(toy.tree())
    assert seed.sandbox == "none: bwrap: No permissions"
    assert [one.kind for one in toy.events].count(EventKind.WARNING) == 1
    patched = toy.tree({"mm/memory.c": toy.read("mm/memory.c") + "int more;\n"})
    assert toy.kernel(patched, seed=seed).seeded_from is None
    failure = toy.failure(toy.tree({"mm/memory.c": "broken\n"}))
    assert failure.first_error.file == "mm/memory.c"


# --- interruption ------------------------------------------------------------------------------

SLOW = "CONFIG_TOY_SLOW=y\n"
DRIVER = """
import sys
from pathlib import Path
from lab.build import build
from lab.kconfig import Fragment
from lab.model import Side, Source, decode
from lab.store import Cache
from lab.tree import Tree
root, path, source, tree, commit, *fragments = sys.argv[1:]
build(
    Tree(path=Path(path), tree=tree, commit=commit, source=decode(source, Source), patches=(),
         changed=()),
    arch="x86_64", side=Side.BASE, cache=Cache(root=Path(root)), emit=lambda event: None, jobs=1,
    fragments=[Fragment(name=str(n), text=text) for n, text in enumerate(fragments)],
)
"""


def inside(objects: Path) -> list[int]:
    """Processes for which `objects` is the sandbox's object folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "root/lab/linux/build").samefile(objects):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.fake
def test_killed_at_any_point_leaves_no_make_and_is_taken_up(toy: Toy) -> None:
    tree = toy.tree()
    words = (toy.cache.root, tree.path, encode(tree.source).decode(), tree.tree, tree.commit)
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, words), FRAGMENT.text, SLOW]
    )
    builds = toy.cache.root / "builds"
    wait_for(lambda: list(builds.glob("*.partial/obj/mm/.slow1.o.cmd")))
    (objects,) = builds.glob("*.partial/obj")
    wait_for(lambda: inside(objects))
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    wait_for(lambda: not inside(objects), 5)
    assert not list(builds.glob("*/record.json"))
    done = {one.name for one in objects.rglob("*.o")}
    kernel = toy.kernel(tree, config=SLOW)
    assert "taken up again" in [one.text for one in toy.events]
    assert 0 < kernel.compiled < OBJECTS + 3 and "slow1.o" in done
    # The same as one that nobody interrupted.
    whole = toy.kernel(tree, config=SLOW, cache=Cache(root=toy.root / "other"))
    assert whole.compiled == OBJECTS + 3 and whole.image_sha256 == kernel.image_sha256


@pytest.mark.fake
def test_a_half_made_folder_from_before_a_crash_of_the_host_is_not_used(toy: Toy) -> None:
    kernel = toy.kernel(toy.tree())
    partial = kernel.folder.with_suffix(".partial")
    kernel.folder.rename(partial)
    (partial / "state.json").write_text('{"boot_id": "another", "seed": null}')
    again = toy.kernel(toy.tree())
    assert again.compiled == OBJECTS and again.image_sha256 == kernel.image_sha256
    assert not partial.exists()


# --- which patch -------------------------------------------------------------------------------


NOWHERE = Path("/nowhere")
GOOD = records.kernel(Side.PATCHED)
BAD = BuildFailure(
    key="k",
    arch="x86_64",
    side=Side.PATCHED,
    phase="compile",
    first_error=Diagnostic(severity="error", file="a.c", line=1, message="m", text="t"),
    log=NOWHERE,
)


def prefixes(count: int) -> list[Tree]:
    """The prefixes of a series; the commit's name is the number of patches."""
    source = Source(name="toy", git_dir=NOWHERE, commit="", tree="", version="6.1.0", provenance="")
    return [
        Tree(path=NOWHERE, tree="", commit=str(n), source=source, patches=(), changed=())
        for n in range(count + 1)
    ]


@pytest.mark.parametrize("first", range(10))
def test_the_first_broken_prefix_is_found(first: int) -> None:
    asked: list[int] = []

    def probe(tree: Tree) -> Kernel | BuildFailure:
        asked.append(int(tree.commit))
        return BAD if int(tree.commit) >= first else GOOD

    assert first_broken(prefixes(9), probe) == first
    assert len(asked) <= 2 + 4
    assert len(set(asked)) == len(asked)


def test_a_series_that_builds_after_all_blames_no_patch() -> None:
    with pytest.raises(LabFault, match="builds now"):
        first_broken(prefixes(3), lambda tree: GOOD)


@pytest.mark.fake
def test_the_patch_that_breaks_a_real_build_is_found(toy: Toy) -> None:
    seed = toy.kernel(toy.tree())
    memory, mmap = toy.read("mm/memory.c"), toy.read("mm/mmap.c")
    steps: list[dict[str, str | None]] = [
        {},
        {"mm/memory.c": memory + "int one;\n"},
        {"mm/memory.c": memory + "int one;\nint two = one +;\n"},
        {"mm/memory.c": memory + "int one;\nint two = one +;\n", "mm/mmap.c": mmap + "int x;\n"},
    ]
    trees = [toy.tree(edits) for edits in steps]

    def probe(tree: Tree) -> Kernel | BuildFailure:
        return toy.build(tree, seed=seed, side=Side.PATCHED)

    assert first_broken(trees, probe) == 2


# --- the log -----------------------------------------------------------------------------------

PLACES = Places(source="/lab/linux", objects="/lab/linux/build")


@pytest.mark.parametrize(
    ("log", "phase", "file", "line", "message"),
    [
        (
            "../mm/memory.c: In function 'f':\n../mm/memory.c:7:3: error: 'x' undeclared\n"
            "    7 |   x;\n      |   ^\nmake[3]: *** [../scripts/Makefile.build:250: mm/memory.o] "
            "Error 1\n",
            "compile",
            "mm/memory.c",
            7,
            "'x' undeclared",
        ),
        (
            "In file included from ../mm/memory.c:1:\n"
            "../include/linux/mm.h:12:10: fatal error: gone.h: No such file or directory\n",
            "compile",
            "include/linux/mm.h",
            12,
            "gone.h: No such file or directory",
        ),
        (
            "../arch/x86/entry/entry.S: Assembler messages:\n"
            "../arch/x86/entry/entry.S:9: Error: no such instruction: `movz %eax'\n",
            "compile",
            "arch/x86/entry/entry.S",
            9,
            "no such instruction: `movz %eax'",
        ),
        (
            "ld: mm/memory.o: in function `f':\n"
            "/lab/linux/build/../mm/memory.c:7: undefined reference to `gone'\n",
            "link",
            "mm/memory.c",
            7,
            "undefined reference to `gone'",
        ),
        (
            "aarch64-linux-gnu-ld: mm/memory.o: in function `f':\n"
            "memory.c:(.text+0x10): undefined reference to `gone'\n",
            "link",
            "memory.c",
            0,
            "undefined reference to `gone'",
        ),
        (
            'ERROR: modpost: "gone" [fs/x.ko] undefined!\n',
            "link",
            "",
            0,
            '"gone" [fs/x.ko] undefined!',
        ),
        (
            "mm/memory.o: error: objtool: f+0x1: unannotated indirect call\n",
            "compile",
            "mm/memory.o",
            0,
            "f+0x1: unannotated indirect call",
        ),
        (
            "make[2]: *** No rule to make target 'mm/gone.o', needed by 'mm/built-in.a'.  Stop.\n",
            "compile",
            "",
            0,
            "No rule to make target 'mm/gone.o', needed by 'mm/built-in.a'.",
        ),
        (
            "../mm/Makefile:3: *** missing separator.  Stop.\n",
            "compile",
            "mm/Makefile",
            3,
            "missing separator.  Stop.",
        ),
        (
            "make[3]: *** [../scripts/Makefile.build:250: mm/memory.o] Error 1\n",
            "compile",
            "scripts/Makefile.build",
            250,
            "mm/memory.o: Error 1",
        ),
        ("mm/Kconfig:12: syntax error\n", "config", "mm/Kconfig", 12, "syntax error"),
        (
            "../mm/Kconfig:12:error: recursive dependency detected!\n",
            "config",
            "mm/Kconfig",
            12,
            "recursive dependency detected!",
        ),
        ("something else\nwent wrong\n", "compile", "", 0, "went wrong"),
        ("", "compile", "", 0, "make failed and said nothing"),
    ],
)
def test_first_error(log: str, phase: str, file: str, line: int, message: str) -> None:
    found, error = first_error(log.splitlines(), PLACES)
    assert (found, error.file, error.line, error.message) == (phase, file, line, message)
    assert error.severity == "error"


def test_an_excerpt_has_the_context_and_nothing_of_the_next_step() -> None:
    log = (
        "  CC      mm/memory.o\n"
        "In file included from ../include/linux/a.h:3,\n"
        "                 from ../mm/memory.c:1:\n"
        "../mm/memory.c: In function 'f':\n"
        "../mm/memory.c:7:3: error: too few arguments\n"
        "    7 |   g();\n"
        "      |   ^\n"
        "../include/linux/a.h:3:5: note: declared here\n"
        "    3 | int g(int);\n"
        "  CC      mm/mmap.o\n"
    ).splitlines()
    _, error = first_error(log, PLACES)
    assert error.text.splitlines() == log[1:9]


def test_warnings_are_told_once() -> None:
    line = "../mm/memory.c:7:3: warning: unused variable 'x' [-Wunused-variable]"
    log = [line, "    7 |   int x;", line, "mm/m.o: warning: objtool: f() falls through to g()"]
    assert warnings(log, PLACES) == (
        Diagnostic(
            severity="warning",
            file="mm/memory.c",
            line=7,
            message="unused variable 'x' [-Wunused-variable]",
            text=f"{line}\n    7 |   int x;",
        ),
        Diagnostic(
            severity="warning",
            file="mm/m.o",
            line=0,
            message="f() falls through to g()",
            text=log[3],
        ),
    )


@pytest.mark.parametrize(
    ("line", "target", "compiles"),
    [
        ("  CC      mm/memory.o", "mm/memory.o", True),
        ("  CC [M]  fs/x/x.o", "fs/x/x.o", True),
        ("  AS      arch/x86/entry/entry_64.o", "arch/x86/entry/entry_64.o", True),
        ("  HOSTCC  scripts/kconfig/conf.o", "scripts/kconfig/conf.o", False),
        ("  CC      /lab/linux/build/tools/objtool/check.o", None, False),
        ("  AR      mm/built-in.a", "mm/built-in.a", False),
        ("  CC      kernel/bounds.s", "kernel/bounds.s", False),
    ],
)
def test_steps(line: str, target: str | None, compiles: bool) -> None:
    found = step(line)
    assert found is not None and found.compiles is compiles
    assert target is None or found.target == target


@pytest.mark.parametrize(
    "line",
    [
        "gcc: fatal error: Killed signal terminated program cc1",
        "as: final close failed: No space left on device",
        "/bin/sh: 1: echo: echo: I/O error: No space left on device",
        "cc1: out of memory allocating 65536 bytes after a total of 1 bytes",
        "make[2]: *** [../scripts/Makefile.build:250: mm/memory.o] Error 137",
        "collect2: fatal error: ld terminated with signal 9 [Killed]",
        "../tools/objtool/include/objtool/elf.h:10:10: fatal error: gelf.h: "
        "No such file or directory",
    ],
)
def test_signs_of_a_sick_host(line: str) -> None:
    assert host_fault([line]) is not None


@pytest.mark.parametrize(
    "line",
    [
        "../mm/memory.c:7:3: error: 'x' undeclared",
        "make[2]: *** [../scripts/Makefile.build:250: mm/memory.o] Error 1",
        '../mm/mmap.c:1:2: error: #error "x: No space left on device"',
        "  CC      mm/oom_kill.o",
        "../mm/memory.c:3:10: fatal error: linux/gone.h: No such file or directory",
    ],
)
def test_no_signs_of_a_sick_host(line: str) -> None:
    assert host_fault([line]) is None
