"""A tree, an architecture and fragments come in; a whole kernel or a failure to build it goes out.

builds/KEY/           a kernel: record.json, inputs.json, image, vmlinux, config, build.log; and
                      obj/, unless it started from another's objects
builds/KEY.partial/   one being made; an interrupted one is taken up by the next call
builds/KEY.failed/    the log of one that does not build
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import host, kconfig, patching
from lab.arch import Arch
from lab.arch import arch as arch_row
from lab.build import counted as counters
from lab.build import diagnostics, recipe, sandbox
from lab.build import seed as seeding
from lab.build.recipe import Inputs
from lab.build.sandbox import Bench
from lab.kconfig import Dropped, Fragment, Merged
from lab.model import (
    BuildFailure,
    Diagnostic,
    Emit,
    Event,
    EventKind,
    Kernel,
    LabFault,
    Side,
    UserError,
    encode,
)
from lab.store import (
    Cache,
    disk_full_explained,
    publish,
    recall,
    remove_tree,
    sha256_file,
    write_atomically,
)
from lab.tree import Tree

_CONFIG_S = 600.0  # for configuring; a loaded machine needs some seconds
_MAKE_S = 6 * 3600.0  # allyesconfig under emulation would fit
_ROUGH_TOTAL = 1700  # objects of the default profile, until a first build has counted them
_FREE_BYTES = 2 << 30  # what a build needs, at least, on the cache's file system


def build(
    tree: Tree,
    *,
    arch: str,
    side: Side,
    fragments: Sequence[Fragment],
    cache: Cache,
    emit: Emit,
    jobs: int,
    seed: Kernel | None = None,
    keep: bool = False,
    counted: Sequence[str] = (),
) -> Kernel | BuildFailure:
    """The kernel of `tree` for `arch`, from the cache or built.

    `seed` is a kernel whose objects may be started from; it is used where that is sound, and the
    result does not depend on it. With `keep` the new objects are kept even so, for kernels that
    have one patch more. Objects in `counted` count how often their lines run. Raises `UserError`
    for fragments that contradict each other or that the kernel does not follow, `LabFault` where
    the host is at fault. A source that does not build is a `BuildFailure`; so is a patch that takes
    away an option which the fragments need.
    """
    row = arch_row(arch)
    merged = kconfig.merge(fragments)
    tools = recipe.toolchain(row)
    inputs = Inputs(
        recipe=recipe.VERSION,
        arch=row.name,
        tree=tree.tree,
        base_tree=tree.source.tree,
        config=merged.text,
        toolchain=tools,
        changed=tuple(sorted(tree.changed)),
        stamp=recipe.stamp(tree.source.git_dir, tree.source.commit),
        counted=tuple(counted),
        counter_flags=counters.flags(row, tools.cc) if counted else (),
    )
    step = f"build {side} {row.name}{' with counters' if counted else ''}"
    with cache.lock(f"build {inputs.key}", emit=emit, step=step):
        stored = _stored(cache.sub("builds") / inputs.key, side)
        if stored is not None and (not keep or (stored.folder / "obj").is_dir()):
            emit(Event(kind=EventKind.DONE, step=step, text="already built"))
            return stored
        job = _Job(
            row=row,
            tree=tree,
            side=side,
            merged=merged,
            inputs=inputs,
            cache=cache,
            bench=_bench(tree, inputs, row, cache, emit),
            emit=emit,
            jobs=jobs,
            step=step,
            keep=keep,
        )
        with disk_full_explained(cache.root):
            return job.run(seed)


def _stored(folder: Path, side: Side) -> Kernel | None:
    """The kernel in `folder`, if it is whole; what is damaged is removed."""
    kernel = recall(folder / "record.json", Kernel)
    image = folder / "image"
    whole = all((folder / name).is_file() for name in ("image", "vmlinux", "config"))
    if kernel is None or not whole or sha256_file(image) != kernel.image_sha256:
        remove_tree(folder)
        return None
    # The cache may have moved since, and a kernel knows no side: equal trees are equal kernels.
    return dataclasses.replace(
        kernel,
        side=side,
        make_ran=False,
        folder=folder,
        image=image,
        vmlinux=folder / "vmlinux",
        config=folder / "config",
    )


def _bench(tree: Tree, inputs: Inputs, row: Arch, cache: Cache, emit: Emit) -> Bench:
    kind = sandbox.wall(cache)
    if kind != "bwrap":
        emit(
            Event(
                kind=EventKind.WARNING,
                step=f"sandbox {row.name}",
                text=f"make runs without a sandbox, and patched kernels are compiled whole: {kind}",
            )
        )
    elif not (tree.path / sandbox.OBJECTS).is_dir():
        raise LabFault(f"{tree.path} has no empty folder {sandbox.OBJECTS}/ to build in")
    tools = [Path(host.tool(name)) for name in (inputs.toolchain.cc, "ccache", "make")]
    return Bench(
        kind=kind,
        source=tree.path,
        objects=cache.sub("builds") / f"{inputs.key}.partial" / "obj",
        ccache=cache.sub("ccache"),
        visible=sandbox.visible_folders(tools),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What a half-made build says about itself, written before make starts."""

    boot_id: str  # of the host: after a crash of it, files may lack their contents
    seed: str | None


@dataclass(slots=True, kw_only=True)
class _Progress:
    """Counts what make says it does."""

    emit: Emit
    step: str
    expected: int
    compiled: list[str] = field(default_factory=list)
    said: float = 0.0

    def line(self, line: str) -> None:
        step = diagnostics.step(line)
        if step is None:
            return
        if step.compiles:
            self.compiled.append(step.target)
        # Twice a second is as much as a terminal shows.
        if time.monotonic() - self.said < 0.5:
            return
        self.said = time.monotonic()
        fraction = min(0.95, 0.95 * len(self.compiled) / max(1, self.expected))
        self.emit(
            Event(
                kind=EventKind.PROGRESS,
                step=self.step,
                text=f"{step.tool} {step.target}",
                fraction=fraction,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One build that is not in the cache. Its lock is held."""

    row: Arch
    tree: Tree
    side: Side
    merged: Merged
    inputs: Inputs
    cache: Cache
    bench: Bench
    emit: Emit
    jobs: int
    step: str
    keep: bool = False

    @property
    def final(self) -> Path:
        return self.cache.sub("builds") / self.inputs.key

    @property
    def partial(self) -> Path:
        return self.final.with_suffix(".partial")

    @property
    def objects(self) -> Path:
        return self.bench.objects

    # --- the way through ---------------------------------------------------------------------

    def run(self, seed: Kernel | None) -> Kernel | BuildFailure:
        started = time.monotonic()
        usable = self._usable(seed)
        self._room_on_disk()
        # What differs from the seed: all that the patches changed, or less if it has some of them.
        fresh = self._fresh(usable) if usable else self.inputs.changed
        resumed = self._prepare(seed if usable else None, fresh)
        seeded = seed if usable else None
        how = (
            "taken up again" if resumed else f"from the objects of {seeded.side}" if seeded else ""
        )
        self.emit(Event(kind=EventKind.STARTED, step=self.step, text=how))
        log: list[str] = []
        if not (usable and seeding.keeps_config(usable, self.inputs, fresh)):
            failure = self._configure(log, started)
            if failure is not None:
                return failure
        total = self._expected(seeded, fresh)
        progress = _Progress(emit=self.emit, step=self.step, expected=total)
        done = self._make([self.row.make_target, "vmlinux"], log, _MAKE_S, progress)
        if done.status != 0:
            return self._failed(log, started)
        for path in (self.row.image, "vmlinux"):
            made = self.objects / path
            if not made.is_file() or made.stat().st_size == 0:
                log.append(f"make ended with status 0 and made no {path}")
                return self._failed(log, started, phase="link")
        kernel = self._publish(log, started, progress.compiled, seeded, fresh)
        self.emit(
            Event(
                kind=EventKind.DONE,
                step=self.step,
                text=f"{kernel.compiled} objects in {kernel.build_s:.0f} s",
                fraction=1.0,
            )
        )
        return kernel

    def _usable(self, seed: Kernel | None) -> Inputs | None:
        """What `seed` was made from, if its objects are of use here."""
        # Without the sandbox the tree's path is in every command line, so all would be compiled.
        if seed is None or not self.bench.walled or not (seed.folder / "obj").is_dir():
            return None
        inputs = recall(seed.folder / "inputs.json", Inputs)
        return inputs if inputs and seeding.usable(inputs, self.inputs) else None

    def _fresh(self, seed: Inputs) -> tuple[str, ...]:
        """Paths in which the trees of the seed and of this build differ."""
        if seed.tree == seed.base_tree:
            return self.inputs.changed
        found = patching.changes(self.tree.source, seed.tree, self.inputs.tree)
        return tuple(sorted(change.path for change in found))

    def _room_on_disk(self) -> None:
        free = shutil.disk_usage(self.cache.root).free
        if free < _FREE_BYTES:
            raise LabFault(
                f"{free >> 20} MiB are free on the file system of {self.cache.root}; "
                f"a build needs {_FREE_BYTES >> 20} MiB",
                hint="lab clean frees the cache; [paths] in lab.toml moves it",
            )

    def _prepare(self, seed: Kernel | None, fresh: tuple[str, ...]) -> bool:
        """Make the object folder ready; True if a half-made one is taken up.

        A half-made seeded one is not: its objects have command files from before, so that one
        whose writing was cut off would look finished. A fresh build has none for what is not done.
        """
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state = self.partial / "state.json"
        sound = recall(state, _State) == _State(boot_id=boot_id, seed=None)
        if sound and seed is None and not (self.partial / "out").exists():
            return True
        remove_tree(self.partial)
        self.partial.mkdir(parents=True)
        if seed is None:
            self.objects.mkdir()
        else:
            seeding.copy(
                seed.folder / "obj", self.objects, self.tree.path, self.inputs.changed, fresh
            )
        key = seed.key if seed else None
        write_atomically(state, encode(_State(boot_id=boot_id, seed=key)))
        return False

    def _expected(self, seed: Kernel | None, fresh: tuple[str, ...]) -> int:
        if seed is not None and not self.inputs.counted:
            return seeding.expected(self.objects, fresh)
        counts = [
            kernel.compiled
            for record in self.cache.sub("builds").glob("*/record.json")
            if (kernel := recall(record, Kernel)) is not None
            and kernel.arch == self.row.name
            and kernel.seeded_from is None
        ]
        return max(counts, default=_ROUGH_TOTAL)

    def _make(
        self, targets: list[str], log: list[str], timeout_s: float, progress: _Progress | None
    ) -> host.Completed:
        """Run make; its lines go to `log` and to build.log as they come."""
        env = recipe.environment(self.row, self.inputs.stamp, self.bench.ccache_dir)
        words = recipe.words(self.row, self.inputs.toolchain, self.jobs)
        words += counters.words(self.inputs.counted, self.inputs.counter_flags)
        argv = self.bench.make([*words, *targets], env)
        fresh: list[str] = []
        with (self.partial / "build.log").open("a", buffering=1) as stream:  # for tail -f
            stream.write(f"# make {' '.join(targets)}\n")

            def on_line(line: str) -> None:
                fresh.append(line)
                stream.write(line + "\n")
                if progress is not None:
                    progress.line(line)

            done = host.run(
                argv, env=env, timeout_s=timeout_s, check=False, leash=True, on_line=on_line
            )
        log.extend(fresh)
        if done.status != 0:
            fault = diagnostics.host_fault(fresh)
            if fault is not None:
                message, hint, line = fault
                raise LabFault(f"{message}: {line.strip()}", hint=hint)
            if done.status > 128:
                raise LabFault(f"make was ended by signal {done.status - 128}")
        return done

    # --- configuration -----------------------------------------------------------------------

    def _configure(self, log: list[str], started: float) -> BuildFailure | None:
        """tinyconfig, the fragments on top, olddefconfig; then what was dropped."""
        config = self.objects / ".config"
        if self._make(["tinyconfig"], log, _CONFIG_S, None).status != 0:
            return self._failed(log, started, phase="config")
        config.write_text(kconfig.graft(config.read_text(), self.merged))
        if self._make(["olddefconfig"], log, _CONFIG_S, None).status != 0:
            return self._failed(log, started, phase="config")
        final = config.read_text()
        missed = kconfig.dropped(self.merged.asked, final)
        if not missed:
            return None
        return self._explain(missed, final, log, started)

    def _explain(
        self, missed: tuple[Dropped, ...], final: str, log: list[str], started: float
    ) -> BuildFailure | None:
        def reader(path: str) -> str | None:
            file = self.tree.path / path
            return file.read_text(errors="replace") if file.is_file() else None

        known = kconfig.parse(reader, self.row.kernel)
        absent = [one for one in missed if one.if_present and one.symbol not in known.symbols]
        for one in absent:
            text = f"CONFIG_{one.symbol} does not exist in {self.tree.source.version}"
            self.emit(Event(kind=EventKind.NOTE, step=self.step, text=text))
        reasons = [kconfig.explain(known, one, final) for one in missed if one not in absent]
        if not reasons:
            return None
        touched = [path for path in self.inputs.changed if Path(path).name.startswith("Kconfig")]
        if self.side is Side.PATCHED and touched:
            log.extend(reasons)
            error = Diagnostic(
                severity="error",
                file=touched[0],
                line=0,
                message=f"the patched Kconfig no longer gives what the lab asks for: {reasons[0]}",
                text="\n".join(reasons),
            )
            return self._failed(log, started, phase="config", error=error)
        remove_tree(self.partial)
        raise UserError(
            "\n".join(reasons),
            hint="correct the fragment; '# if present' behind the line is for options of other "
            "kernels",
        )

    # --- the ends ----------------------------------------------------------------------------

    def _failed(
        self,
        log: list[str],
        started: float,
        *,
        phase: str | None = None,
        error: Diagnostic | None = None,
    ) -> BuildFailure:
        found, first = diagnostics.first_error(log, self.bench.places)
        folder = self.final.with_suffix(".failed")
        write_atomically(folder / "build.log", ("\n".join(log) + "\n").encode())
        failure = BuildFailure(
            key=self.inputs.key,
            arch=self.row.name,
            side=self.side,
            phase=phase or found,
            first_error=error or first,
            log=folder / "build.log",
            build_s=time.monotonic() - started,
        )
        write_atomically(folder / "record.json", encode(failure))
        # Its objects are in ccache; a half-made folder is of use only if nothing is wrong with it.
        remove_tree(self.partial)
        self.emit(Event(kind=EventKind.DONE, step=self.step, text=f"fails: {first.message}"))
        return failure

    def _publish(
        self,
        log: list[str],
        started: float,
        compiled: list[str],
        seed: Kernel | None,
        fresh: tuple[str, ...],
    ) -> Kernel:
        out = self.partial / "out"
        out.mkdir()
        (self.objects / self.row.image).rename(out / "image")
        (self.objects / "vmlinux").rename(out / "vmlinux")
        shutil.copyfile(self.objects / ".config", out / "config")
        (self.partial / "build.log").rename(out / "build.log")
        release = (self.objects / "include/config/kernel.release").read_text().strip()
        if self.inputs.counted:
            counters.keep(self.objects, out, self.inputs.counted, self.bench.places)
        if (
            seed is None or self.keep
        ):  # others mostly serve nobody: what follows starts from the base
            seeding.prune(self.objects, self.row.image)
            self.objects.rename(out / "obj")
        write_atomically(out / "inputs.json", encode(self.inputs))
        kernel = Kernel(
            key=self.inputs.key,
            arch=self.row.name,
            side=self.side,
            release=release,
            folder=self.final,
            image=self.final / "image",
            vmlinux=self.final / "vmlinux",
            config=self.final / "config",
            image_sha256=sha256_file(out / "image"),
            compiler=self.inputs.toolchain.compiler,
            build_s=time.monotonic() - started,
            make_ran=True,
            seeded_from=seed.key if seed else None,
            compiled=len(compiled),
            sandbox=self.bench.kind,
            warnings=self._warnings(log, compiled, seed, fresh),
        )
        _flush([out / "image", out / "config"])  # vmlinux is large, and only explains splats
        write_atomically(out / "record.json", encode(kernel))
        if (self.final / "record.json").is_file() and self.keep:
            (out / "obj").rename(self.final / "obj")  # it was there, but for its objects
        publish(out, self.final)
        remove_tree(self.partial)
        remove_tree(self.final.with_suffix(".failed"))
        return kernel

    def _warnings(
        self, log: list[str], compiled: list[str], seed: Kernel | None, fresh: tuple[str, ...]
    ) -> tuple[Diagnostic, ...]:
        """All warnings of this source: the seed's too, for the files that were not compiled."""
        said = diagnostics.warnings(log, self.bench.places)
        again = {str(Path(target).with_suffix("")) for target in compiled}
        changed = set(fresh)
        kept = (
            one
            for one in (seed.warnings if seed else ())
            if one.file not in changed and str(Path(one.file).with_suffix("")) not in again
        )
        return tuple(dict.fromkeys((*kept, *said)))


def _flush(paths: Sequence[Path]) -> None:
    """Contents to the disk before the rename that says they are whole."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
