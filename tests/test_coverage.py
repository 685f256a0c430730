"""Which lines of a series ran: what is built, what a guest sends, what is said of each line."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from lab import counters, host, model
from lab.arch import ARCHS
from lab.build import counted, recipe
from lab.build.counted import Notes
from lab.build.diagnostics import Places
from lab.cli import entry
from lab.config import Config
from lab.coverage import lines, reading, record, study
from lab.coverage.lines import Judge, Seen
from lab.coverage.reading import Reader
from lab.coverage.record import Coverage, LineState, PatchCoverage, sentence
from lab.guest import Down, Exited, Guest, TimedOut
from lab.machine import Timeouts
from lab.model import (
    CaseResult,
    CaseState,
    Cell,
    Emit,
    LabFault,
    MachineEnd,
    Patch,
    Series,
    Side,
    Source,
    Splat,
    Trial,
)
from lab.pool import Pool, Split
from lab.report import coverage as shown
from lab.report import html, terminal
from lab.store import Cache, write_atomically
from lab.subject import Plan, Subject
from lab.suites.protocol import PlannedCase
from lab.symbols import history
from lab.tree import Tree
from lab.trial import Kit
from tests import records
from tests.test_build import Toy, git
from tests.test_control import trial

# --- what is built -----------------------------------------------------------------------------


def files(folder: Path, contents: Mapping[str, str]) -> Path:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return files(
        tmp_path / "source",
        {
            "mm/Makefile": "obj-y := memory.o\n",
            "mm/memory.c": "",
            "mm/new.c": "",
            "mm/internal.h": "",
            "lib/vdso/gettime.c": "",
            "lib/Makefile": "",
            "arch/x86/boot/Makefile": "KCOV := n\nGCOV_PROFILE := n\n",
            "arch/x86/boot/memory.c": "",
            "arch/x86/entry/vdso/Makefile": "GCOV_PROFILE := n\n",
            "kernel/sched/Makefile": "",
            "kernel/sched/fair.c": "",
            "tools/vm/page.c": "",
            "mm/$(shell id).c": "",
        },
    )


def test_changed_c_files_are_counted_where_their_makefile_lets_them(source: Path) -> None:
    changed = [str(path.relative_to(source)) for path in source.rglob("*.[ch]")]
    wanted = counted.targets(source, [*changed, "mm/removed.c", "Documentation/x.rst"], None)
    assert wanted == ("kernel/sched/fair.o", "lib/vdso/gettime.o", "mm/memory.o", "mm/new.o")


def test_a_file_that_others_include_is_counted_in_these(source: Path, tmp_path: Path) -> None:
    objects = files(
        tmp_path / "obj",
        {
            "kernel/sched/.build_policy.o.cmd": "deps := \\\n  ../kernel/sched/fair.c \\\n  x.h\n",
            "arch/x86/entry/vdso/.vclock.o.cmd": "deps := ../lib/vdso/gettime.c \\\n",
            "mm/.memory.o.cmd": "source := ../mm/memory.c\n",
            "mm/.other.o.cmd": "source := ../mm/memory.c.h\n",
        },
    )
    changed = ("kernel/sched/fair.c", "lib/vdso/gettime.c", "mm/memory.c")
    assert set(counted.targets(source, changed, objects)) == {
        "kernel/sched/build_policy.o",
        "kernel/sched/fair.o",
        "lib/vdso/gettime.o",
        "mm/memory.o",
    }


def inputs(**how: object) -> recipe.Inputs:
    tools = recipe.Toolchain(cross="", compiler="gcc 12", linker="ld 2.40")
    given = recipe.Inputs(
        recipe=1,
        arch="x86_64",
        tree="t",
        base_tree="b",
        config="CONFIG_X=y\n",
        toolchain=tools,
        changed=(),
        stamp="s",
    )
    return replace(given, **how)  # type: ignore[arg-type]


def test_counters_make_another_kernel_and_their_absence_the_same_as_ever() -> None:
    # The key of kernels without counters: a change would build every cached kernel anew.
    assert inputs().key == "f0d04b2a1e7332e25e226b15b2fad217"
    one, other = inputs(counted=("mm/a.o",)), inputs(counted=("mm/b.o",))
    flagged = inputs(counted=("mm/a.o",), counter_flags=("-O1",))
    assert len({inputs().key, one.key, other.key, flagged.key}) == 4


def test_make_is_told_of_single_objects() -> None:
    assert counted.words((), ("-x",)) == ()
    words = counted.words(("mm/a.o", "fs/b.o"), ("-fprofile-arcs", "-x"))
    assert "GCOV_PROFILE=$(if $(filter init/main.o mm/a.o fs/b.o,$@),y)" in words
    (flags,) = [word for word in words if word.startswith("CFLAGS_GCOV=")]
    assert flags.endswith(" $(if $(filter mm/a.o fs/b.o,$@),-fprofile-arcs -x)")


RULES = """\
ifeq ($(CONFIG_GCOV_KERNEL),y)
name = $(basename $(notdir $@)).o
flags = $(if $(patsubst n%,,$(GCOV_PROFILE_$(name))$(GCOV_PROFILE)),$(CFLAGS_GCOV))
endif
GCOV_PROFILE_exempt.o := n
GCOV_PROFILE := n
cppflags-y :=
script = $(cppflags-y)
objtool := tools/objtool
objtool-args-$(CONFIG_GCOV_KERNEL) += --no-unreachable
%.o:; @echo '$@' $(flags) $(objtool-args-y)
%.lds:; @echo '$@' $(script)
sub:; @$(MAKE) -s -f Makefile init/main.o mm/a.o mm/exempt.o other/a.o arch/x86/kernel/vmlinux.lds
"""


@pytest.mark.fake
def test_makes_variables_hold_for_what_they_name_in_makes_below_too(tmp_path: Path) -> None:
    """By rules as kbuild has them."""
    files(tmp_path, {"Makefile": RULES})
    words = counted.words(("mm/a.o", "mm/exempt.o"), ("-fprofile-arcs", "-x"))
    done = host.run(["make", "-s", "-C", tmp_path, *words, "sub"])
    constructors = "-DCONFIG_CONSTRUCTORS=1"
    assert [line for line in done.text.splitlines() if "make" not in line] == [
        f"init/main.o {constructors}",
        "mm/a.o -fprofile-arcs -x",
        "mm/exempt.o",
        "other/a.o",
        f"arch/x86/kernel/vmlinux.lds {constructors} -DCONFIG_GCOV_KERNEL=1",
    ]


@pytest.mark.fake
def test_a_build_keeps_the_notes_of_what_it_counts_and_of_nothing_else(toy: Toy) -> None:
    base = toy.kernel(toy.tree())
    edited = toy.tree({"mm/memory.c": toy.read("mm/memory.c") + "\n"})
    kernel = toy.kernel(edited, seed=base, counted=("mm/memory.o", "mm/not-built.o"))
    notes = counted.notes(kernel.folder)
    assert notes.files == ("mm/memory.gcno",)
    assert (kernel.folder / "gcov/mm/memory.gcno").read_bytes()[:4] == b"oncg"
    assert not list(kernel.folder.rglob("mmap.gcno"))
    plain = toy.kernel(edited, seed=base)
    assert plain.key != kernel.key
    with pytest.raises(LabFault, match="not built with counters"):
        counted.notes(plain.folder)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


ERRORS = """\
extern int work(int);
int f(int x, int *p)
{
	int ret;

	if (x > 5)
		return -22;
	if (!p) {
		ret = -12;
		goto out;
	}
	ret = work(x);
out:
	return ret;
}
"""


@pytest.mark.fake
def test_lines_that_only_choose_a_constant_have_counters(tmp_path: Path) -> None:
    """gcc alone makes `return -22;` a choice without code of its own, before it inserts any."""
    files(tmp_path, {"f.c": ERRORS})
    flags = counted.flags(ARCHS["x86_64"], "gcc")
    host.run(["gcc", "-O2", *flags, "-c", "f.c", "-o", "f.o"], cwd=tmp_path)
    said = host.run(["gcov", "--json-format", "--stdout", "f.gcno"], cwd=tmp_path, check=False)
    (document,) = [json.loads(line) for line in said.stdout.splitlines() if line.strip()]
    have = {line["line_number"] for file in document["files"] for line in file["lines"]}
    assert {6, 7, 8, 9, 10, 12, 14} <= have


# --- what a guest sends ------------------------------------------------------------------------


def tar(members: Mapping[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for one in odd:
            archive.addfile(one)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


class Answering:
    """A guest with one answer."""

    def __init__(self, answer: Exited | TimedOut | Down) -> None:
        self.answer = answer
        self.asked = b""

    async def run(
        self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", limit_bytes: int = 0
    ) -> Exited | TimedOut | Down:
        assert timeout_s > 0 and limit_bytes > 0
        self.asked = stdin
        return self.answer


def taken(answer: Exited | TimedOut | Down, folder: Path, case: str = "fs/ext4/a") -> str:
    return asyncio.run(counters.take(cast(Guest, Answering(answer)), folder, case))


def exited(
    stdout: bytes = b"", *, status: int = 0, stderr: bytes = b"", cut: bool = False
) -> Exited:
    return Exited(status=status, stdout=stdout, stderr=stderr, duration_s=0.1, truncated=cut)


INSIDE = "/lab/linux/build/mm/memory.gcda"


def test_what_a_case_counted_is_kept_under_its_name(tmp_path: Path) -> None:
    assert taken(exited(tar({f".{INSIDE}": b"adcg"})), tmp_path, "xfstests/ext4 4k/../x:1") == ""
    (name, archive) = next(iter(counters.stored(tmp_path).items()))
    assert name == "xfstests/ext4 4k/../x:1"
    assert archive.parent == tmp_path / "counters"
    assert counters.contents(archive, {INSIDE: "mm/memory.gcno"}) == {"mm/memory.gcno": b"adcg"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Down(end=MachineEnd.PANICKED, detail="x"), "the machine ended (panicked)"),
        (TimedOut(stdout=b"", stderr=b"", duration_s=9.0), "could not be read in"),
        (exited(status=1, stderr=b"sh: x\ncd: can't cd\n"), "cd: can't cd"),
        (exited(b"much", cut=True), "larger than 64 MiB"),
    ],
)
def test_counters_that_cannot_be_had_are_said_and_not_kept(
    answer: Exited | TimedOut | Down, said: str, tmp_path: Path
) -> None:
    told = taken(answer, tmp_path)
    assert told.startswith("no counters of fs/ext4/a: ") and said in told
    assert counters.stored(tmp_path) == {}


def test_only_what_the_host_knows_is_read_from_an_archive(tmp_path: Path) -> None:
    link = tarfile.TarInfo(f".{INSIDE}")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
    raw = tar({"../../etc/passwd": b"x", "./lab/linux/build/mm/other.gcda": b"x"}, link)
    taken(exited(raw), tmp_path)
    (archive,) = counters.stored(tmp_path).values()
    assert counters.contents(archive, {INSIDE: "mm/memory.gcno"}) == {}


@pytest.mark.parametrize("raw", [b"", b"no gzip", gzip.compress(b"no tar" * 200)])
def test_what_is_no_archive_is_no_crash(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.tar\.gz cannot be read"):
        counters.contents(tmp_path / "a.tar.gz", {INSIDE: "mm/memory.gcno"})


# --- what gcov makes of it ---------------------------------------------------------------------

NOTES = Notes(source="/lab/linux", objects="/lab/linux/build", files=("mm/memory.gcno",))
DOCUMENT = {
    "format_version": "1",
    "gcc_version": "12.2.0",
    "current_working_directory": "/lab/linux/build",
    "data_file": "mm/memory.gcda",
    "files": [
        {
            "file": "../mm/memory.c",
            "functions": [{"name": "f", "start_line": 9}],
            "lines": [
                {"line_number": 7, "count": 0, "unexecuted_block": True, "branches": []},
                {"line_number": 9, "count": 3, "function_name": "f", "branches": []},
                {"line_number": 9, "count": 2, "function_name": "g", "branches": []},
            ],
        },
        {"file": "./include/generated/a.h", "lines": [{"line_number": 1, "count": 1}]},
        {"file": "/usr/lib/gcc/x.h", "lines": [{"line_number": 1, "count": 1}]},
    ],
}


def test_gcovs_json_becomes_counts_of_lines_of_the_tree() -> None:
    other = dict(DOCUMENT, data_file="fs/inode.gcda", files=[])
    raw = json.dumps(DOCUMENT) + "\n\n" + json.dumps(other) + "\n"
    found = reading.parse(raw.encode(), NOTES)
    assert found.objects == {"mm/memory", "fs/inode"}
    assert found.functions == {"f"}
    assert found.lines == {
        "mm/memory.c": {7: 0, 9: 5},
        "include/generated/a.h": {1: 1},
        "/usr/lib/gcc/x.h": {1: 1},
    }
    with pytest.raises(ValueError, match="cannot be read"):
        reading.parse(b'{"files": 3}', NOTES)


PROGRAM = """\
int main(int argc, char **argv)
{
	if (argc > 1)
		return 7;
	return 0;
}
"""


@pytest.fixture
def built(tmp_path: Path) -> tuple[Reader, Path]:
    """A reader of a kernel's folder with the notes of a program, and the folder it was built in."""
    bench = files(tmp_path / "bench", {"mm/memory.c": PROGRAM})
    (bench / "build/mm").mkdir(parents=True)
    flags = counted.flags(ARCHS["x86_64"], "gcc")
    host.run(
        ["gcc", "-O2", *flags, "--coverage", "../mm/memory.c", "-c", "-o", "mm/memory.o"],
        cwd=bench / "build",
    )
    host.run(["gcc", "--coverage", "mm/memory.o", "-o", "a.out"], cwd=bench / "build")
    host.run([bench / "build/a.out"], cwd=bench)
    notes = Notes(source=str(bench), objects=str(bench / "build"), files=("mm/memory.gcno",))
    kernel = tmp_path / "kernel"
    (kernel / "gcov/mm").mkdir(parents=True)
    (kernel / "gcov/notes.json").write_bytes(model.encode(notes))
    shutil.copyfile(bench / "build/mm/memory.gcno", kernel / "gcov/mm/memory.gcno")
    return Reader.of(kernel, "", Cache(root=tmp_path / "cache")), bench


def archive_of(bench: Path, content: bytes, folder: Path) -> Path:
    taken(exited(tar({f".{bench}/build/mm/memory.gcda": content})), folder)
    (archive,) = counters.stored(folder).values()
    return archive


@pytest.mark.fake
def test_counters_are_read_by_the_real_gcov(built: tuple[Reader, Path], tmp_path: Path) -> None:
    reader, bench = built
    data = (bench / "build/mm/memory.gcda").read_bytes()
    found = reader.read(archive_of(bench, data, tmp_path))
    assert found.lines == {"mm/memory.c": {1: 1, 3: 1, 4: 0, 5: 1}}
    assert list((tmp_path / "cache/staging").iterdir()) == []


@pytest.mark.fake
@pytest.mark.parametrize("kind", ["stamp", "cut", "garbage", "empty"])
def test_counters_that_do_not_fit_say_nothing_rather_than_never(
    kind: str, built: tuple[Reader, Path], tmp_path: Path
) -> None:
    """gcov takes all of these for "not executed"."""
    reader, bench = built
    data = bytearray((bench / "build/mm/memory.gcda").read_bytes())
    if kind == "stamp":
        data[8] ^= 0xFF
    content = {
        "stamp": bytes(data),
        "cut": bytes(data[:-9]),
        "garbage": b"\xff" * 300,
        "empty": b"",
    }
    with pytest.raises(ValueError, match="gcov"):
        reader.read(archive_of(bench, content[kind], tmp_path))


@pytest.mark.fake
def test_an_archive_without_the_kernels_objects_says_nothing(
    built: tuple[Reader, Path], tmp_path: Path
) -> None:
    reader, _ = built
    with pytest.raises(ValueError, match="no counters of a changed file"):
        reader.read(archive_of(Path("/elsewhere"), b"adcg", tmp_path))


# --- what is said of a line --------------------------------------------------------------------

MEMORY = """\
#include <linux/mm.h>

static int count;

int fault(int x)
{
	if (x)
		return one(x);
	/* nothing */
	if (y)
		return -ENOMEM;
	if (z)
		return -EIO;
	return 0;
}

#ifdef CONFIG_NOT
int never_compiled(void)
{
	return 1;
}
#endif
"""
HEADER = "struct s {\n\tint a;\n};\n" + "".join(
    f"static inline int {name}(void)\n{{\n\treturn 1;\n}}\n" for name in "fghh"
)
TEXTS = {"mm/memory.c": MEMORY, "mm/off.c": MEMORY, "mm/lost.c": MEMORY, "include/mm.h": HEADER}
CASES = (counters.BOOTING, "faultstress/ext4/a", "faultinject/slab/b")
SEEN = Seen(
    cases=CASES,
    lines={
        "mm/memory.c": {
            5: frozenset({0, 1, 2}),
            7: frozenset({0, 1, 2}),
            8: frozenset({1, 2}),
            10: frozenset({0, 1}),
            11: frozenset({2}),
            12: frozenset({1}),
            13: frozenset(),
            14: frozenset({0}),
        },
        "include/mm.h": {14: frozenset({1})},
    },
    functions=frozenset({"fault", "g"}),
)
JUDGE = Judge(seen=SEEN, left_out={"mm/off.c"}, injecting={"faultinject"}, text=TEXTS.__getitem__)


@pytest.mark.parametrize(
    ("file", "line", "state"),
    [
        ("mm/memory.c", 8, LineState.EXECUTED),
        ("mm/memory.c", 11, LineState.INJECTED),
        ("mm/memory.c", 13, LineState.NEVER),
        ("mm/memory.c", 14, LineState.EXECUTED),
        ("mm/memory.c", 3, LineState.NO_CODE),
        ("mm/memory.c", 9, LineState.NO_CODE),
        ("mm/memory.c", 20, LineState.NOT_COMPILED),
        ("mm/off.c", 8, LineState.NOT_COMPILED),
        ("mm/lost.c", 8, LineState.UNKNOWN),
        ("mm/lost.c", 3, LineState.NO_CODE),
        ("include/mm.h", 2, LineState.NO_CODE),
        ("include/mm.h", 6, LineState.UNKNOWN),
        ("include/mm.h", 10, LineState.NOT_COMPILED),  # another g() was
        ("include/mm.h", 14, LineState.EXECUTED),  # inlined: no function of its own
        ("include/mm.h", 18, LineState.NOT_COMPILED),  # another h() in this file was
        ("arch/x86/entry.S", 1, LineState.UNKNOWN),
        ("Documentation/x.rst", 1, LineState.NO_CODE),
        ("mm/Kconfig", 1, LineState.NO_CODE),
    ],
)
def test_what_is_known_of_a_line(file: str, line: int, state: LineState) -> None:
    assert JUDGE.state(file, line) is state


def test_all_cases_are_folded_into_one() -> None:
    by_case = {
        "a/x": {"f.c": {1: 4, 2: 0}},
        "b/y": {"f.c": {2: 1, 3: 0}, "g.c": {1: 0}},
    }
    seen = lines.fold(by_case)
    assert seen.cases == ("a/x", "b/y")
    assert seen.lines["f.c"] == {1: frozenset({0}), 2: frozenset({1}), 3: frozenset()}
    assert seen.suites("f.c", 2) == ("b",)
    assert seen.suites("f.c", 9) == ()


UNIFIED = """\
diff --git mm/memory.c mm/memory.c
index 1..2 100644
--- mm/memory.c
+++ mm/memory.c
@@ -4,5 +4,12 @@ static int count;
\x20
 int fault(int x)
 {
-	return 0;
+	if (x)
+		return one(x);
+	/* nothing */
+	if (y)
+		return -ENOMEM;
+	if (z)
+		return -EIO;
+	return 0;
 }
diff --git Documentation/old.rst Documentation/old.rst
deleted file mode 100644
--- Documentation/old.rst
+++ /dev/null
@@ -1 +0,0 @@
--- a line that looks like a header
"""


def diffs(*texts: str) -> tuple[tuple[history.FileDiff, ...], ...]:
    return tuple(history.parse(text) for text in texts)


FIRST = """\
diff --git mm/memory.c mm/memory.c
--- mm/memory.c
+++ mm/memory.c
@@ -7 +7,8 @@
-	return 0;
+	if (x)
+		return one(x);
+	/* nothing */
+	if (y)
+		return -ENOMEM;
+	if (z)
+		return -EIO;
+	return 0;
"""


def test_a_patch_is_counted_by_its_lines() -> None:
    found = lines.judged(1, "mm: x", UNIFIED, diffs(FIRST), JUDGE)
    assert found.counts == {
        LineState.EXECUTED: 5,
        LineState.NO_CODE: 1,
        LineState.INJECTED: 1,
        LineState.NEVER: 1,
    }
    assert found.suites == {"booting": 3, "faultstress": 4, "faultinject": 3}
    assert [file.path for file in found.files] == ["mm/memory.c", "Documentation/old.rst"]
    (hunk,) = found.files[0].hunks
    assert [line.mark for line in hunk.lines] == list("   -++++++++ ")
    assert hunk.lines[3].state is None
    assert hunk.lines[8].state is LineState.INJECTED
    assert sentence(found) == (
        "6 of 7 lines executed (faultstress 4, booting 3, faultinject 3), 1 never, "
        "1 only under injected faults"
    )


def test_lines_are_looked_up_where_later_patches_put_them() -> None:
    """The first patch wrote three lines at the top of old.c; the second renamed the file and put
    two before them, the third wrote the second of them anew."""
    second = (
        "diff --git old.c new.c\nrename from old.c\nrename to new.c\n"
        "--- old.c\n+++ new.c\n@@ -0,0 +1,2 @@\n+a\n+b\n"
    )
    third = "diff --git new.c new.c\n--- new.c\n+++ new.c\n@@ -4 +4 @@\n-x\n+y\n"
    series = diffs("", second, third)
    assert lines.carried(series, 1, "old.c", 1) == ("new.c", 3)
    assert lines.carried(series, 1, "old.c", 2) is None
    assert lines.carried(series, 1, "old.c", 3) == ("new.c", 5)
    assert lines.carried(series, 3, "new.c", 4) == ("new.c", 4)
    removed = "diff --git new.c new.c\n--- new.c\n+++ /dev/null\n@@ -1,5 +0,0 @@\n" + "-\n" * 5
    assert lines.carried(diffs("", second, third, removed), 1, "old.c", 1) is None


def test_of_a_huge_patch_all_lines_count_and_not_all_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "_SHOWN_LINES", 5)
    found = lines.judged(1, "mm: x", UNIFIED, diffs(FIRST), JUDGE)
    assert sum(found.counts.values()) == 8
    assert sum(len(hunk.lines) for file in found.files for hunk in file.hunks) == 5
    assert found.cut == 9


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "no code"),
        ({LineState.NO_CODE: 9}, "no code"),
        ({LineState.UNKNOWN: 3}, "3 unknown"),
        ({LineState.NEVER: 1}, "0 of 1 line executed, 1 never"),
        ({LineState.NOT_COMPILED: 2, LineState.SUPERSEDED: 1},
         "2 not compiled, 1 superseded by later patches"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_patch(counts: dict[LineState, int], said: str) -> None:
    assert sentence(PatchCoverage(number=1, subject="x", counts=counts)) == said


# --- what a run makes of it --------------------------------------------------------------------

WARNED = Splat(kind="warning", title="WARNING in x", first_line=1, last_line=1, fingerprint="f1")
KNOWN = Coverage(
    arch="x86_64",
    kernel_key="k",
    tool="gcov 12",
    objects=("mm/memory.gcno",),
    cases=CASES[1:],
    injecting=("faultinject",),
    patches=(lines.judged(1, "mm: <b>x</b>", UNIFIED, diffs(FIRST), JUDGE),),
)
UNKNOWN = Coverage(arch="x86_64", why="the kernel with counters does not boot: <i>panicked")


def kept(folder: Path, *found: Coverage) -> Path:
    for one in found:
        record.file_of(folder, one.arch).write_bytes(model.encode(one))
    return folder


def test_coverage_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert record.of_run(tmp_path) == ()
    assert record.of_run(kept(tmp_path, KNOWN)) == (KNOWN,)
    record.file_of(tmp_path, "arm64").write_text("{")
    broken, _ = record.of_run(tmp_path)
    assert broken.arch == "arm64" and not broken.known


def test_a_report_that_only_the_counting_kernel_makes_leaves_the_verdict_open() -> None:
    found = {"x86_64": replace(KNOWN, splats=(WARNED,))}
    (doubt,) = study.doubts(found, [trial()])
    assert "WARNING in x" in doubt
    assert study.doubts(found, [trial(boot_splats=(WARNED,))]) == ()
    assert study.doubts({"x86_64": KNOWN}, []) == ()


def test_the_page_shows_the_diff_and_what_ran(tmp_path: Path) -> None:
    page = html.page(records.clean(), kept(tmp_path, KNOWN))
    assert "Which lines of the series ran" in page
    assert "mm: &lt;b&gt;x&lt;/b&gt;" in page and "<b>x</b>" not in page
    assert "6 of 7 lines executed (faultstress 4" in page
    assert page.count('<tr class="never">') == 1
    assert page.count('<tr class="injected">') == 1
    assert page.count('<tr class="context gone">') == 1
    assert "Documentation/old.rst</span>: no code" in page
    assert "Which lines of the series ran" not in html.page(records.clean(), tmp_path / "none")


def test_absent_data_is_unknown_and_never_nothing(tmp_path: Path) -> None:
    kept(tmp_path, UNKNOWN)
    page = html.page(records.clean(), tmp_path)
    assert "Unknown: the kernel with counters does not boot: &lt;i&gt;panicked" in page
    assert " 0 of " not in page.partition("Which lines of the series ran")[2].partition("</sec")[0]
    (line,) = shown.told(tmp_path)
    assert line.startswith("unknown: ")


def test_cases_without_counters_are_told_before_the_figures_are_believed(tmp_path: Path) -> None:
    kept(tmp_path, replace(KNOWN, lost=("a/x", "a/y"), failed=("a/x timeout",)))
    said = "\n".join(shown.told(tmp_path))
    assert "2 of 4 cases left no counters" in said and "never executed: a/x, a/y" in said
    assert "a/x timeout" in said


def test_the_summary_of_a_run_has_a_line_for_each_patch(tmp_path: Path) -> None:
    out = StringIO()
    console = Console(file=out, width=200)
    terminal.summary(records.clean(), kept(tmp_path, KNOWN), console)
    assert "patch 1: 6 of 7 lines executed (faultstress 4, booting 3, faultinject 3)" in (
        out.getvalue()
    )


def lab(tmp_path: Path, *words: str) -> int:
    return entry(["--runs", str(tmp_path), "coverage", *words])


def test_the_command_shows_single_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "20260101-x"
    folder.mkdir()
    (folder / "record.json").write_bytes(model.encode(records.clean()))
    assert lab(tmp_path) == model.ExitCode.USAGE
    kept(folder, KNOWN)
    assert lab(tmp_path) == model.ExitCode.CLEAN
    assert lab(tmp_path, "--patch", "2") == model.ExitCode.USAGE
    assert lab(tmp_path, "--arch", "arm64") == model.ExitCode.USAGE
    capsys.readouterr()
    assert lab(tmp_path, "--patch", "1") == model.ExitCode.CLEAN
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("✗ +") and "return -EIO;" in line for line in said)
    assert any(line.startswith("! +") and "[faultinject]" in line for line in said)
    assert lab(tmp_path, "--json") == model.ExitCode.CLEAN
    assert model.decode(capsys.readouterr().out, tuple[Coverage, ...]) == (KNOWN,)
    kept(folder, UNKNOWN)
    assert lab(tmp_path) == model.ExitCode.INCONCLUSIVE


# --- a whole study, but for machines and kbuild ------------------------------------------------

BASE_TEXT = "int hook(int x)\n{\n\treturn x;\n}\n"
FIRST_TEXT = """\
int broken(int x)
{
	return x - 1;
}
int hook(int x)
{
	if (x > 2)
		return broken(x);
	return x;
}
"""
SECOND_TEXT = FIRST_TEXT.replace("if (x > 2)", "if (x > 1)") + (
    "#ifdef NOT_SET\nint unused(void)\n{\n\treturn 1;\n}\n#endif\n"
)
MAIN_TEXT = "#include <stdlib.h>\nint hook(int);\n" + (
    "int main(int n, char **v) { for (int i = 1; i < n; i++) hook(atoi(v[i])); return 0; }\n"
)
# What each case hands to the program that stands for a kernel: only one reaches the error path.
ARGUMENTS = {"boot/hello": ("1",), "faultstress/ext4/a": ("1", "1"), "faultinject/slab/a": ("9",)}


class Bench:
    """A series of two patches in git, its last tree compiled with counters as a program, and
    machines that run the program instead of booting."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = files(root / "source", {"mm/x.c": BASE_TEXT, "main.c": MAIN_TEXT})
        git(self.source, "init", "-q")
        self.commits = [self._commit("base")]
        for text in (FIRST_TEXT, SECOND_TEXT):
            files(self.source, {"mm/x.c": text})
            self.commits.append(self._commit("patch"))
        (self.source / "build/mm").mkdir(parents=True)
        flags = counted.flags(ARCHS["x86_64"], "gcc")
        run = ["gcc", "-O2", "-fno-inline", *flags, "-c", "../mm/x.c", "-o", "mm/x.o"]
        host.run(run, cwd=self.source / "build")
        host.run(["gcc", "--coverage", "mm/x.o", "../main.c", "-o", "vmlinux"], cwd=self.objects)
        self.kernel = replace(records.kernel(Side.PATCHED), folder=root / "kernel")
        counted.keep(
            self.objects,
            self.kernel.folder,
            ("mm/x.o",),
            Places(source=str(self.source), objects=str(self.objects)),
        )
        self.down: set[str] = set()  # cases in which the machine ends

    @property
    def objects(self) -> Path:
        return self.source / "build"

    def _commit(self, subject: str) -> str:
        git(self.source, "add", "mm", "main.c")
        git(self.source, "commit", "-q", "-m", subject)
        return git(self.source, "rev-parse", "HEAD")

    def planned(self) -> Plan:
        source = Source(
            name="toy",
            git_dir=self.source / ".git",
            commit=self.commits[0],
            tree="",
            version="6.1.0",
            provenance="tests",
        )
        patches = tuple(
            Patch(name=f"{n}.patch", subject=f"mm: part {n}", author="a", mail="", sha256="",
                  changes=())
            for n in (1, 2)
        )  # fmt: skip
        series = Series(title="toy", origin="here", patches=patches, digest="d")
        tree = Tree(
            path=self.source,
            tree="",
            commit=self.commits[-1],
            source=source,
            patches=patches,
            changed=("mm/x.c",),
        )
        return Plan(
            subject=Subject(series=series, source=source, base=tree, patched=tree),
            suites=(),
            cases=tuple(PlannedCase(name=name, timeout_s=9.0) for name in ARGUMENTS),
            fragments={},
            archs=("x86_64",),
        )

    async def execute(self, cell: Cell, kit: Kit, folder: Path, _emit: Emit) -> Trial:
        assert kit.counters and kit.shelf is None and kit.kernel == self.kernel
        results = []
        data = self.objects / "mm/x.gcda"
        for case in cell.cases:
            if case in self.down:
                results.append(CaseResult(name=case, state=CaseState.CRASHED))
                break
            data.unlink(missing_ok=True)
            host.run([self.objects / "vmlinux", *ARGUMENTS[case]])
            guest = Answering(exited(tar({f".{data}": data.read_bytes()})))
            assert await counters.take(cast(Guest, guest), folder, case) == ""
            results.append(CaseResult(name=case, state=CaseState.PASSED))
        crashed = len(results) < len(cell.cases) or results[-1].state is CaseState.CRASHED
        ended = MachineEnd.PANICKED if crashed else MachineEnd.POWERED_OFF
        one = records.trial(cell, results=tuple(results), end=ended)
        one = replace(one, id=folder.name)
        write_atomically(folder / "trial.json", model.encode(one))
        return one

    def study(self) -> Coverage:
        kit = Kit(
            kernel=records.kernel(Side.PATCHED),
            initramfs=Path("/initramfs"),
            image=records.image(),
            accelerator=records.TCG,
            timeouts=Timeouts(boot_s=9.0, silence_s=9.0, wall_s=9.0),
            suites=(),
            cases={},
            scratch_bytes=1,
            history=history.History(git_dir=self.source / ".git", commits=tuple(self.commits)),
        )
        machines = Pool(
            arch="x86_64",
            kits={Side.PATCHED: kit},
            folder=self.root / "run",
            split=Split(machines=1, costs={}),
            trials=[],
            emit=lambda event: None,
            execute=self.execute,
        )
        cache = Cache(root=self.root / "cache")
        config = Config()
        return asyncio.run(
            study.cover(self.kernel, machines, self.planned(), config, cache, self.root / "run")
        )


@pytest.mark.fake
def test_a_series_is_measured_case_by_case(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    found = bench.study()
    assert found.why == "" and found.notes == () and found.lost == ()
    assert found.cases == tuple(ARGUMENTS)
    assert found.objects == ("mm/x.gcno",)
    assert found.injecting == ("faultinject",)
    first, second = found.patches
    # The head of hook() stood there before; its condition was written anew by the second patch.
    assert first.counts == {
        LineState.INJECTED: 3,
        LineState.SUPERSEDED: 1,
        LineState.NO_CODE: 2,
    }
    assert second.counts == {
        LineState.EXECUTED: 1,
        LineState.NOT_COMPILED: 4,
        LineState.NO_CODE: 2,
    }
    assert second.suites == {"boot": 1, "faultinject": 1, "faultstress": 1}
    assert record.of_run(tmp_path / "run") == (found,)


@pytest.mark.fake
def test_a_case_that_took_its_machine_down_left_no_counters_and_the_rest_did(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    bench.down.add("faultstress/ext4/a")
    found = bench.study()
    assert found.lost == ("faultstress/ext4/a",)
    assert found.failed == ("faultstress/ext4/a crashed",)
    assert found.cases == ("boot/hello", "faultinject/slab/a")
    assert found.patches[0].count(LineState.INJECTED) == 3


@pytest.mark.fake
def test_without_any_counters_all_is_unknown(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.down |= set(ARGUMENTS)
    found = bench.study()
    assert not found.known and found.patches == ()
    assert found.why
