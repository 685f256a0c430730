"""A patched build that touches a few files against the full build of its base, in one run.

    python benchmarks/incremental_build.py [--kernel debian:6.1] [--arch x86_64] [FILE...]

Builds the base whole with an empty compiler cache, then the base plus a patch that adds a function
to each FILE (by default some of mm/*.c) from the base's objects, and prints the ratio of the wall
times (the aim: at most 0.2). Both start from nothing but the source: neither kernel nor object of
an earlier run is used. Exits with 1 if the ratio is missed, 3 if one of them does not build.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import sys
import time

from lab import series
from lab.build import build
from lab.config import Config
from lab.kconfig import fragments
from lab.model import BuildFailure, Event, EventKind, Kernel, Patch, Side
from lab.source import git, open_source
from lab.store import Cache
from lab.tree import Tree, checkout

AIM = 0.2
FILES = ("mm/memory.c", "mm/mmap.c", "mm/filemap.c", "mm/page_alloc.c")


def say(event: Event) -> None:
    if event.kind is not EventKind.PROGRESS:
        sys.stderr.write(f"{event.kind} {event.step} {event.text}\n")


def touching(base: Tree, files: list[str]) -> tuple[Patch, ...]:
    """A patch, as a mail, that adds a function to the end of each file."""
    diffs = []
    for path in files:
        old = git(base.source.git_dir, "show", f"{base.source.commit}:{path}").text
        name = f"lab_touched_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        new = f"{old}\nint {name}(void);\nint {name}(void)\n{{\n\treturn {len(old)};\n}}\n"
        lines = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}"
        )
        diffs.append(f"diff --git a/{path} b/{path}\n" + "".join(lines))
    mail = (
        "From: Benchmark <benchmark@localhost>\nDate: Mon, 1 Jan 2024 00:00:00 +0000\n"
        "Subject: [PATCH] mm: add a function to each of some files\n\n"
        "So that they have to be compiled.\n\n"
        "Signed-off-by: Benchmark <benchmark@localhost>\n---\n\n" + "".join(diffs) + "-- \n2.39\n"
    )
    parsed = series.parse([("0001-touch.patch", mail.encode())], title="touch", origin="benchmark")
    return parsed.patches


def timed(
    tree: Tree, side: Side, arch: str, cache: Cache, jobs: int, seed: Kernel | None
) -> Kernel:
    """A kernel that was really made just now; the time is its `build_s`."""
    built = build(
        tree,
        arch=arch,
        side=side,
        fragments=fragments("lockdep", arch),
        cache=cache,
        emit=say,
        jobs=jobs,
        seed=seed,
    )
    if isinstance(built, BuildFailure):
        sys.stderr.write(f"{built.first_error.text}\nsee {built.log}\n")
        sys.exit(3)
    assert built.make_ran
    return built


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("files", nargs="*", default=list(FILES), metavar="FILE")
    parser.add_argument("--kernel", default="debian:6.1")
    parser.add_argument("--arch", default="x86_64")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    sources = Cache(root=Config().paths.cache_dir)
    source = open_source(asked.kernel, cache=sources, emit=say)
    base = checkout(source, (), cache=sources, emit=say)
    patched = checkout(source, touching(base, asked.files), cache=sources, emit=say)
    with sources.staging() as folder:  # on the cache's file system, and gone at the end
        cache = Cache(root=folder)
        full = timed(base, Side.BASE, asked.arch, cache, asked.jobs, None)
        began = time.monotonic()
        partial = timed(patched, Side.PATCHED, asked.arch, cache, asked.jobs, full)
        seeded_s = time.monotonic() - began
        assert partial.seeded_from == full.key
    ratio = seeded_s / full.build_s
    result = {
        "full_s": round(full.build_s, 1),
        "full_objects": full.compiled,
        "incremental_s": round(seeded_s, 1),
        "incremental_objects": partial.compiled,
        "ratio": round(ratio, 3),
        "aim": AIM,
        "jobs": asked.jobs,
        "compiler": full.compiler,
    }
    print(json.dumps(result, indent=1))
    return 0 if ratio <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
