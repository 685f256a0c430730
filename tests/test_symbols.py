"""Source lines of stack frames, and which patch touched them: real compilers, real debug info."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.model import CodeFrame, FrameKind, Splat, UserError
from lab.splat import places
from lab.splat.reading import LogSplats
from lab.symbols import history
from lab.symbols.history import History, Hunk, Touched, after, function_lines
from lab.symbols.lookup import doubts, symbolise, symbolise_logs

FILES = {
    "init/main.c": """\
int start_kernel(int *p);
int outer(int *p);
static __attribute__((noipa)) int twin(int *p)
{
	return p[0] * p[1] * p[2] * p[3] + p[7];
}
static __attribute__((noipa)) void tick(int *p)
{
	*p = 1;
}
int start_kernel(int *p)
{
	tick(p);

	return twin(p) * 3;
}
""",
    "include/linux/inner.h": """\
int leaf(int *p);
static inline __attribute__((always_inline)) int inner(int *p)
{
	return leaf(p) + 1;
}
""",
    "mm/memory.c": """\
#include "../include/linux/inner.h"
int outer(int *p);
static __attribute__((noipa)) int twin(int *p)
{
	return *p;
}
__attribute__((noinline)) int leaf(int *p)
{
	return p[1] + twin(p);
}
static inline __attribute__((always_inline)) int middle(int *p)
{
	int found = inner(p);

	return found ^ 5;
}
int outer(int *p)
{
	int found = middle(p);

	found += leaf(p + 1);
	return found * 2;
}
""",
    "kernel/same.c": """\
static __attribute__((noipa, used)) int alike(int *p)
{
	return *p + 1;
}
""",
    "kernel/same2.c": """\
static __attribute__((noipa, used)) int alike(int *p)
{
	return *p + 2;
}
int last(int *p);
int last(int *p)
{
	return *p;
}
""",
}
CFLAGS = ["-g", "-O2", "-fno-pie", "-fcf-protection=none", "-fno-ipa-ra", "-fno-reorder-functions"]


@dataclass(frozen=True)
class Built:
    """A tiny kernel: an ELF file made as kbuild makes one, in a folder beside its sources."""

    vmlinux: Path
    objdump: str

    def returns(self, function: str) -> list[int]:
        """Offsets in the function to which its calls come back."""
        return [offset for offset, call in self._code(function) if call]

    def size(self, function: str) -> int:
        """As a kernel prints it: up to the next function."""
        starts = sorted({int(row[0], 16) for row in self._symbols()})
        here = next(int(row[0], 16) for row in self._symbols() if row[-1] == function)
        return next(start for start in starts if start > here) - here

    def sizes(self, function: str) -> list[int]:
        starts = sorted({int(row[0], 16) for row in self._symbols()})
        found = [int(row[0], 16) for row in self._symbols() if row[-1] == function]
        return [next(start for start in starts if start > here) - here for here in found]

    def _symbols(self) -> list[list[str]]:
        said = run([self.objdump.replace("objdump", "nm"), str(self.vmlinux)])
        return [row for line in said.splitlines() if (row := line.split())[-2] in "tTbBdDrR"]

    def _code(self, function: str) -> list[tuple[int, bool]]:
        said = run([self.objdump, "-d", f"--disassemble={function}", str(self.vmlinux)])
        rows = re.findall(r"^\s*([0-9a-f]+):\t[0-9a-f ]+\t(\w+)", said, re.M)
        start = int(rows[0][0], 16)
        return [
            (int(later[0], 16) - start, row[1] in ("call", "bl")) for row, later in pairwise(rows)
        ]


def run(argv: list[str], cwd: Path | None = None) -> str:
    return subprocess.run(
        argv, cwd=cwd, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def build(folder: Path, cross: str) -> Built:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    objects = folder / "build"
    objects.mkdir()
    flags = [flag for flag in CFLAGS if not (cross and flag.startswith("-fcf"))]
    sources = [f"../{name}" for name in FILES if name.endswith(".c")]
    run(
        [f"{cross}gcc", *flags, "-nostdlib", "-static", "-Wl,-e,start_kernel", *sources, "-o",
         "vmlinux"], cwd=objects,
    )  # fmt: skip
    return Built(vmlinux=objects / "vmlinux", objdump=f"{cross}objdump")


@pytest.fixture(scope="module", params=["", "aarch64-linux-gnu-"], ids=["host", "arm64"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    if shutil.which(f"{request.param}gcc") is None:
        pytest.skip(f"no {request.param}gcc")
    return build(tmp_path_factory.mktemp("linux"), request.param)


def splat(*lines: str) -> Splat:
    return Splat(
        kind="warning", title="t", first_line=1, last_line=9, text="\n".join(lines), function="f"
    )


def told(found: Splat) -> list[tuple[str, str, int, bool]]:
    return [(frame.function, frame.file, frame.line, frame.inlined) for frame in found.frames]


# --- lines ---------------------------------------------------------------------------------------


@pytest.mark.fake
def test_inlined_functions_and_the_line_of_the_call(built: Built) -> None:
    first, second = built.returns("outer")[:2]
    size = built.size("outer")
    (found,) = symbolise(
        [splat("Call Trace:", f" outer+{first:#x}/{size:#x}", f" outer+{second:#x}/{size:#x}")],
        built.vmlinux,
    )
    assert told(found) == [
        ("inner", "include/linux/inner.h", 4, True),
        ("middle", "mm/memory.c", 13, True),
        ("outer", "mm/memory.c", 19, False),
        ("outer", "mm/memory.c", 21, False),
    ]
    assert found.file == "mm/memory.c"
    assert places.decorated(found).split("\n") == [
        "Call Trace:",
        " inner include/linux/inner.h:4 [inline]",
        " middle mm/memory.c:13 [inline]",
        f" outer+{first:#x}/{size:#x} mm/memory.c:19",
        f" outer+{second:#x}/{size:#x} mm/memory.c:21",
    ]


@pytest.mark.fake
def test_a_trapping_instruction_is_not_a_return_address(built: Built) -> None:
    """The same offset is another line, depending on how it came into the log."""
    back, size = built.returns("start_kernel")[0], built.size("start_kernel")
    place = f"start_kernel+{back:#x}/{size:#x}"
    (found,) = symbolise([splat(f"RIP: 0010:{place}", "Call Trace:", f" {place}")], built.vmlinux)
    returned, trapped = (
        symbolise([splat("Call Trace:", f" {place}")], built.vmlinux)[0].frames[0],
        found.frames[0],
    )
    assert (returned.kind, returned.line) == (FrameKind.RETURN, 13)
    assert (trapped.kind, trapped.line) == (FrameKind.PC, 15)
    # An arm64 trace begins with the trapped instruction once more: the same line again.
    assert [frame.line for frame in found.frames] == [trapped.line, trapped.line]


@pytest.mark.fake
def test_another_size_is_another_kernel(built: Built) -> None:
    size = built.size("outer")
    (found,) = symbolise([splat(f" outer+0x5/{size + 16:#x}", " gone+0x1/0x10")], built.vmlinux)
    assert [frame.file for frame in found.frames] == ["", ""]
    assert found.frames[0].note.startswith(f"{size:#x} bytes in this file")
    assert found.frames[1].note == "no such function in this file"
    assert places.decorated(found) == found.text
    (said,) = doubts([LogSplats(path=Path("x.log"), splats=(found,))])
    assert "2 of 2 frames do not fit" in said


@pytest.mark.fake
def test_functions_of_one_name_are_told_apart_by_their_size(built: Built) -> None:
    sizes = built.sizes("twin")
    assert len(sizes) == len(set(sizes)) == 2
    (found,) = symbolise([splat(*(f" twin+0x1/{size:#x}" for size in sizes))], built.vmlinux)
    assert sorted(frame.file for frame in found.frames) == ["init/main.c", "mm/memory.c"]


@pytest.mark.fake
def test_functions_of_one_name_and_size_are_not_guessed_at(built: Built) -> None:
    sizes = built.sizes("alike")
    if len(set(sizes)) != 1:
        pytest.skip("the compiler gave them different sizes")
    (found,) = symbolise([splat(f" alike+0x1/{sizes[0]:#x}")], built.vmlinux)
    assert (found.frames[0].file, found.frames[0].note) == (
        "",
        "2 functions have this name and size",
    )


@pytest.mark.fake
@pytest.mark.parametrize("cross", ["", "aarch64-linux-gnu-"], ids=["host", "arm64"])
def test_modules_are_symbolised_from_their_sections(tmp_path: Path, cross: str) -> None:
    if shutil.which(f"{cross}gcc") is None:
        pytest.skip(f"no {cross}gcc")
    kernel = build(tmp_path, cross)
    source = tmp_path / "drivers/fault.c"
    source.parent.mkdir()
    source.write_text(
        FILES["mm/memory.c"].replace(
            "int outer(int *p);", "int begin(int *p);\n__attribute__((noipa)) int outer(int *p);"
        )
        + 'int __attribute__((section(".init.text"))) begin(int *p)\n{\n\treturn outer(p) + 4;\n}\n'
    )
    folder = tmp_path / "lib/modules/6.1/extra"
    folder.mkdir(parents=True)
    run(
        [f"{cross}gcc", "-g", "-O2", "-fno-pie", "-c", "../drivers/fault.c", "-o",
         str(folder / "my-fault.ko")], cwd=tmp_path / "build",
    )  # fmt: skip
    made = Built(vmlinux=folder / "my-fault.ko", objdump=f"{cross}objdump")
    back = made.returns("begin")[0]
    end = int(
        next(
            row.split()[4]
            for row in run([f"{cross}objdump", "-t", str(made.vmlinux)]).splitlines()
            if row.endswith(" begin")
        ),
        16,
    )
    logged = splat(f" begin+{back:#x}/{end:#x} [my_fault]", f" begin+{back:#x}/{end:#x} [other]")
    (found,) = symbolise([logged], kernel.vmlinux, modules=tmp_path / "lib")
    assert told(found)[0] == ("begin", "drivers/fault.c", 27, False)
    assert found.frames[1].note == "other.ko is not at hand"
    (without,) = symbolise([logged], kernel.vmlinux)
    assert without.frames[0].note == "my_fault.ko is not at hand"


@pytest.mark.fake
def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    report = splat(" f+0x1/0x2")
    text = tmp_path / "vmlinux"
    text.write_text("not a kernel")
    with pytest.raises(UserError, match="not a little-endian 64-bit ELF"):
        symbolise([report], text)
    (tmp_path / "x.c").write_text("int start_kernel(int *p) { return *p; }\n")
    bare = tmp_path / "bare"
    run(["gcc", "-O2", "-nostdlib", "-static", "-Wl,-e,start_kernel", "x.c", "-o", str(bare)],
        cwd=tmp_path)  # fmt: skip
    with pytest.raises(UserError, match="no debug information"):
        symbolise([report], bare)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(bare.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        symbolise([report], damaged)
    assert symbolise([splat("nothing to look up")], text)[0].frames == ()


@pytest.mark.fake
def test_several_logs_share_one_look(built: Built) -> None:
    line = f" outer+0x1/{built.size('outer'):#x}"
    logs = [
        LogSplats(path=Path("a"), splats=(splat(line), splat("nothing"))),
        LogSplats(path=Path("b"), splats=(splat(line),)),
    ]
    done = symbolise_logs(logs, built.vmlinux)
    assert [[len(each.frames) > 0 for each in log.splats] for log in done] == [
        [True, False],
        [True],
    ]
    assert list(doubts(done)) == []


# --- what a text names ---------------------------------------------------------------------------


def kinds(*lines: str) -> list[tuple[str, str]]:
    return [(frame.function, str(frame.kind)) for frame in places.named("\n".join(lines))]


def test_kinds_of_frames_on_x86() -> None:
    assert kinds(
        "WARNING: CPU: 0 PID: 1 at mm/memory.c:12 zap+0x1f/0x40",
        "RIP: 0010:zap+0x1f/0x40",
        "Code: 0f 0b",
        "Call Trace:",
        " <TASK>",
        " ? show_regs+0x1/0x2",
        " unmap+0x10/0x20 [xfs]",
        "-> #0 (&mm->mmap_lock){++++}-{3:3}, at: do_fault+0x1/0x2",
        "BUG: KASAN: use-after-free in filemap_fault+0x1c4/0x1130",
    ) == [
        ("zap", "pc"),
        ("zap", "pc"),
        ("show_regs", "guess"),
        ("unmap", "return"),
        ("do_fault", "named"),
        ("filemap_fault", "named"),
    ]


def test_kinds_of_frames_on_arm64() -> None:
    """What an exception interrupted has no call before it; the trace begins with the trap."""
    assert kinds(
        "pc : zap+0x1c/0x40",
        "lr : unmap+0x10/0x20",
        "Call trace:",
        " zap+0x1c/0x40",
        " unmap+0x10/0x20",
        " el1h_64_irq+0x64/0x68",
        " busy+0x8/0x10",
        " main+0x8/0x10 (P)",
        " last+0x8/0x10",
    ) == [
        ("zap", "pc"),
        ("unmap", "return"),
        ("zap", "pc"),
        ("unmap", "return"),
        ("el1h_64_irq", "return"),
        ("busy", "pc"),
        ("main", "pc"),
        ("last", "return"),
    ]


def test_a_jump_into_nothing_is_not_moved_to_the_function_before() -> None:
    (frame,) = places.named(" f+0x0/0x10")
    assert frame.kind is FrameKind.RETURN and places.exact(frame)


def test_modules_and_build_ids() -> None:
    (frame,) = places.named(" f+0x1/0x10 [dm_mod 0123456789abcdef0123456789abcdef01234567]")
    assert frame.module == "dm_mod"


def test_two_places_on_one_line_keep_their_own_lines() -> None:
    text = "Preemption disabled at: a+0x1/0x2 from b+0x3/0x4"
    a, b = places.named(text)
    placed = (
        CodeFrame(index=0, function="a", offset=1, size=2, kind=a.kind, file="a.c", line=1),
        CodeFrame(index=0, function="b", offset=3, size=4, kind=b.kind, file="b.c", line=2),
    )
    shown = places.decorated(places.with_frames(splat(text), placed))
    assert shown == "Preemption disabled at: a+0x1/0x2 a.c:1 from b+0x3/0x4 b.c:2"


def test_marks_say_line_or_function() -> None:
    frame = CodeFrame(
        index=0, function="f", offset=1, size=2, kind=FrameKind.PC, file="f.c", line=1
    )
    assert places.mark(frame) == ""
    whole = {"index": 0, "function": "f", "offset": 1, "size": 2, "kind": FrameKind.PC}
    assert places.mark(CodeFrame(**whole, patches=(5,))) == " <in a function that patch 5 changed>"  # type: ignore[arg-type]
    assert (
        places.mark(CodeFrame(**whole, patches=(2, 5)))  # type: ignore[arg-type]
        == " <in a function that patches 2, 5 changed>"
    )
    assert (
        places.mark(CodeFrame(**whole, patches=(2, 5), line_patch=5))  # type: ignore[arg-type]
        == " <on a line that patch 5 added>"
    )


# --- what a series touched -----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 3)),
                         max_size=4), max_size=5))  # fmt: skip
def test_lines_are_followed_through_later_patches(
    patches: list[list[tuple[int, int, int]]],
) -> None:
    """Against a file whose every line knows which patch wrote it."""
    file = [(f"line {number}", 0) for number in range(20)]
    seen = Touched()
    for patch, edits in enumerate(patches, 1):
        old = list(file)
        for place, remove, add in edits:
            at = min(place, len(file))
            fresh = [(f"p{patch} {place} {number} {len(file)}", patch) for number in range(add)]
            file[at : at + remove] = fresh
        matcher = difflib.SequenceMatcher(None, old, file, autojunk=False)
        hunks = [
            Hunk(
                old=old_from + 1 if old_to > old_from else old_from,
                old_count=old_to - old_from,
                new=new_from + 1 if new_to > new_from else new_from,
                new_count=new_to - new_from,
            )
            for what, old_from, old_to, new_from, new_to in matcher.get_opcodes()
            if what != "equal"
        ]
        seen = after(seen, hunks, patch)
        assert seen.added == {place: by for place, (_, by) in enumerate(file, 1) if by}
        assert all(0 <= line <= len(file) for line, _ in seen.gone)


def test_a_line_that_went_is_remembered_where_it_was() -> None:
    one = after(Touched(), [Hunk(old=5, old_count=2, new=4, new_count=0)], 1)
    assert one.within(3, 6) == (1,) and one.within(5, 9) == () and one.within(1, 4) == ()
    two = after(one, [Hunk(old=1, old_count=0, new=2, new_count=10)], 2)
    assert two.within(13, 16) == (1,) and two.within(2, 11) == (2,)


def test_content_that_looks_like_a_header_is_content() -> None:
    text = (
        "diff --git f.c f.c\n--- f.c\n+++ f.c\n@@ -1,2 +1 @@\n--- a/x\n-@@ -9 +9 @@\n+++ y\n"
        "@@ -7,0 +7,2 @@\n+one\n+two\n"
    )
    (change,) = history.parse(text)
    assert (change.old, change.new) == ("f.c", "f.c")
    assert [(hunk.old, hunk.new, hunk.new_count) for hunk in change.hunks] == [(1, 1, 1), (7, 7, 2)]


C_FILE = """\
#include <linux/mm.h>

/* What it does. */
static int
first(int x)
{
	if (x)
		goto out;
out:
	return x;
}

static const struct ops ops = {
	.first = first,
};

SYSCALL_DEFINE1(second, int, x)
{
	return first(x);
}
"""


@pytest.mark.parametrize(
    ("line", "lines"),
    [(1, (1, 1)), (3, (3, 3)), (4, (4, 11)), (5, (4, 11)), (7, (4, 11)), (9, (4, 11)),
     (11, (4, 11)), (14, (14, 14)), (17, (17, 20)), (19, (17, 20)), (20, (17, 20)), (99, (99, 99))],
)  # fmt: skip
def test_the_function_round_a_line(line: int, lines: tuple[int, int]) -> None:
    assert function_lines(C_FILE, line) == lines


@pytest.mark.fake
def test_marks_from_the_commits_of_a_series(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *words], cwd=tmp_path)

    git("init", "-q")
    path = tmp_path / "mm" / "file with blank.c"
    path.parent.mkdir()
    versions = [
        C_FILE,
        C_FILE.replace("\tif (x)", "\tx++;\n\tif (x)"),  # 1: in first()
        C_FILE.replace("\tif (x)", "\tx++;\n\tif (x)").replace("#include", "#define X\n#include"),
        C_FILE.replace("\tif (x)", "\tx++;\n\tif (x)")
        .replace("#include", "#define X\n#include")
        .replace("\t\tgoto out;\n", "\t\t;\n"),  # 3: in first()
    ]
    commits = []
    for number, text in enumerate(versions):
        path.write_text(text)
        git("add", ".")
        git("commit", "-qm", str(number))
        commits.append(git("rev-parse", "HEAD").strip())
    git("mv", "mm/file with blank.c", "mm/new.c")
    git("commit", "-qm", "4")
    commits.append(git("rev-parse", "HEAD").strip())
    series = History(git_dir=tmp_path / ".git", commits=tuple(commits))

    def frame(line: int, file: str = "mm/new.c") -> CodeFrame:
        return CodeFrame(
            index=0, function="f", offset=0, size=9, kind=FrameKind.PC, file=file, line=line
        )

    frames = (frame(8), frame(9), frame(11), frame(21), frame(1), frame(8, "mm/other.c"))
    (found,) = history.mark([places.with_frames(splat("x"), frames)], series)
    assert [(each.patches, each.line_patch) for each in found.frames] == [
        ((1, 3), 1),  # x++
        ((1, 3), 0),  # if (x)
        ((1, 3), 0),
        ((), 0),  # second()
        ((2,), 2),  # outside of any function
        ((), 0),
    ]
