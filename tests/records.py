"""Whole records of runs for tests: a few stories, each as a real run would have left it.

Every verdict in here comes from `judge`, never by hand.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from lab.model import (
    Accelerator,
    BuildFailure,
    CaseResult,
    CaseState,
    Cell,
    Diagnostic,
    Kernel,
    MachineEnd,
    Manifest,
    RootImage,
    RunRecord,
    Side,
    Source,
    Splat,
    Timing,
    Trial,
)
from lab.verdict import JudgeInput, judge, needs_more

TCG = Accelerator(
    name="tcg",
    cpu="Nehalem",
    boot_s=3.4,
    tried=("kvm, -cpu host: the kernel did not say hello within 20 s",),
)
KVM = Accelerator(name="kvm", cpu="host", boot_s=0.6)
CASES = (
    "boot/hello",
    "faultstress/ext4/read",
    "faultstress/ext4/munmap",
    "faultstress/ext4/mapfixed",
    "faultstress/ext4/mprotect",
    "faultstress/ext4/truncate",
    "faultstress/xfs/munmap",
    "faultstress/xfs/truncate",
    "faultstress/tmpfs/truncate",
)
PATCHES = (
    "0001-mm-count-page-faults-by-kind.patch",
    "0002-mm-show-fault-counters-in-vmstat.patch",
    "0003-mm-filemap-drop-mmap_lock-around-readahead.patch",
)
SUBJECTS = (
    "mm: count page faults by kind",
    "mm: show the fault counters in /proc/vmstat",
    "mm: filemap: drop mmap_lock around readahead",
)
CHANGED = ("include/linux/vm_event_item.h", "mm/filemap.c", "mm/memory.c", "mm/vmstat.c")
STARTED = "2026-03-14T09:26:53+00:00"

UAF_TEXT = """\
==================================================================
BUG: KASAN: slab-use-after-free in filemap_fault+0x1c4/0x1130
Read of size 8 at addr ffff888009a3c0b8 by task faultstress/412

CPU: 1 PID: 412 Comm: faultstress Not tainted 6.1.192-lab #1
Hardware name: QEMU Standard PC (Q35 + ICH9, 2009)
Call Trace:
 <TASK>
 dump_stack_lvl+0x49/0x63
 print_report+0x17a/0x4a8
 kasan_report+0xad/0xe0
 filemap_fault+0x1c4/0x1130
 __do_fault+0x71/0x2f0
 do_fault+0x2d4/0x8a0
 __handle_mm_fault+0xa11/0x1460
 handle_mm_fault+0x12c/0x3f0
 do_user_addr_fault+0x29f/0x9d0
 exc_page_fault+0x6e/0x110
 asm_exc_page_fault+0x22/0x30
 </TASK>

Freed by task 415:
 kasan_save_stack+0x1e/0x40
 kmem_cache_free+0xd8/0x2e0
 remove_vma+0x66/0x90
 do_mas_align_munmap+0x5d2/0x8c0
 __vm_munmap+0x115/0x1f0
 __x64_sys_munmap+0x2c/0x40
=================================================================="""

UAF = Splat(
    kind="kasan",
    title="KASAN: slab-use-after-free Read in filemap_fault",
    first_line=812,
    last_line=842,
    function="filemap_fault",
    file="mm/filemap.c",
    fingerprint="9d1f0c2ab3e44711",
    text=UAF_TEXT,
)
PANIC = Splat(
    kind="null-deref",
    title="BUG: kernel NULL pointer dereference in vm_event_init",
    first_line=203,
    last_line=231,
    function="vm_event_init",
    file="mm/vmstat.c",
    fingerprint="51c0ffee00aa9821",
    fatal=True,
    text="BUG: kernel NULL pointer dereference, address: 0000000000000018\n"
    "#PF: supervisor write access in kernel mode\n"
    "RIP: 0010:vm_event_init+0x31/0x60\n"
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009",
)
WARNING = Splat(
    kind="warning",
    title="WARNING in ext4_dirty_folio",
    first_line=640,
    last_line=668,
    function="ext4_dirty_folio",
    file="fs/ext4/inode.c",
    fingerprint="77aa01b2c3d4e5f6",
    text="------------[ cut here ]------------\n"
    "WARNING: CPU: 0 PID: 398 at fs/ext4/inode.c:3607 ext4_dirty_folio+0x52/0x80\n"
    "---[ end trace 0000000000000000 ]---",
)
IMPLICIT = Diagnostic(
    severity="error",
    file="mm/memory.c",
    line=4127,
    message="implicit declaration of function 'count_vm_fault_kind'",
    text="mm/memory.c: In function 'do_read_fault':\n"
    "mm/memory.c:4127:9: error: implicit declaration of function 'count_vm_fault_kind'; did you "
    "mean 'count_vm_event'? [-Werror=implicit-function-declaration]\n"
    " 4127 |         count_vm_fault_kind(vma, FAULT_READ);\n"
    "      |         ^~~~~~~~~~~~~~~~~~~\n"
    "      |         count_vm_event",
)
UNUSED = Diagnostic(
    severity="warning",
    file="mm/filemap.c",
    line=3119,
    message="unused variable 'mapping' [-Wunused-variable]",
    text="mm/filemap.c:3119:31: warning: unused variable 'mapping' [-Wunused-variable]",
)


# --- parts -------------------------------------------------------------------------------------


def kernel(side: Side, arch: str = "x86_64", warnings: tuple[Diagnostic, ...] = ()) -> Kernel:
    key = {Side.BASE: "b4a1", Side.PATCHED: "c97e"}[side] + arch.replace("_", "")
    folder = Path("/cache/builds") / key
    return Kernel(
        key=key,
        arch=arch,
        side=side,
        release="6.1.192-lab",
        folder=folder,
        image=folder / "bzImage",
        vmlinux=folder / "vmlinux",
        config=folder / "config",
        image_sha256=key.ljust(64, "0"),
        compiler="gcc (Debian 12.2.0-14) 12.2.0",
        build_s=318.0 if side is Side.BASE else 41.0,
        make_ran=True,
        seeded_from=None if side is Side.BASE else kernel(Side.BASE, arch).key,
        compiled=2431 if side is Side.BASE else 96,
        sandbox="bwrap",
        warnings=warnings,
    )


def image(arch: str = "x86_64") -> RootImage:
    return RootImage(
        name="default",
        arch=arch,
        path=Path("/cache/images/default.ext4"),
        sha256="5e1f" * 16,
        size_bytes=432 << 20,
        packages=98,
        recipe_sha256="ab" * 32,
    )


def cell(
    side: Side,
    repeat: int,
    *,
    arch: str = "x86_64",
    cases: tuple[str, ...] = CASES,
    profile: str = "lockdep",
) -> Cell:
    return Cell(
        arch=arch,
        side=side,
        profile=profile,
        suites=("boot", "faultstress"),
        cases=cases,
        kernel_key=kernel(side, arch).key,
        image_sha256="5e1f" * 16,
        repeat=repeat,
        seed=1 + repeat,
        memory_bytes=1 << 30,
        cpus=2,
    )


def trial(
    of: Cell,
    *,
    results: tuple[CaseResult, ...] | None = None,
    end: MachineEnd = MachineEnd.POWERED_OFF,
    boots: bool = True,
    boot_splats: tuple[Splat, ...] = (),
    accelerator: Accelerator = TCG,
    restored: bool = False,
) -> Trial:
    """What a cell left: by default every case passed."""
    if results is None:
        results = tuple(passed(name, of) for name in of.cases) if boots else ()
    guest_s = sum(result.duration_s for result in results) + 1.1
    boot_s = 3.3 + 0.1 * of.repeat if boots else None
    return Trial(
        id=f"{of.arch}-{of.side}-{of.repeat + 1:02}-{len(of.cases):06x}-1",
        cell=of,
        end=end,
        accelerator=accelerator,
        started=f"2026-03-14T09:{30 + 2 * of.repeat + (of.side is Side.PATCHED):02}:10+00:00",
        boot_s=boot_s,
        guest_s=guest_s,
        wall_s=guest_s + (boot_s or 12.0),
        results=results,
        boot_splats=boot_splats,
        vmstat={"pgfault": 918273, "pgmajfault": 412},
        lockdep_alive=True,
        restored=restored,
    )


def passed(name: str, of: Cell) -> CaseResult:
    """A case that passed, with the metrics that a stress program reports."""
    noise = random.Random(f"{name}{of.side}{of.repeat}")
    faults = (21400 if of.side is Side.BASE else 23900) * noise.uniform(0.96, 1.04)
    stress = name.startswith("faultstress/")
    return CaseResult(
        name=name,
        state=CaseState.PASSED,
        duration_s=5.2 if stress else 0.4,
        metrics={"faults_per_s": round(faults), "fault_p99_us": round(2.4e6 / faults, 1)}
        if stress
        else {},
        log=f"cases/{name.replace('/', '-')}.log",
    )


def failed(
    name: str,
    message: str,
    state: CaseState = CaseState.FAILED,
    splats: tuple[Splat, ...] = (),
) -> CaseResult:
    return CaseResult(
        name=name,
        state=state,
        duration_s=2.7,
        message=message,
        splats=splats,
        log=f"cases/{name.replace('/', '-')}.log",
    )


def manifest(**changes: object) -> Manifest:
    plain = Manifest(
        run="20260314-092653-7f3a",
        created=STARTED,
        lab_version="0.1.0",
        command=("lab", "run", "--patch", "patches/demo"),
        source=Source(
            name="debian:6.1",
            git_dir=Path("/cache/sources/debian-6.1.git"),
            commit="3b1f0e9d2c4a5b6978e0f1a2b3c4d5e6f7a8b9c0",
            tree="a0b1c2d3e4f5061728394a5b6c7d8e9f00112233",
            version="6.1.192",
            provenance="linux-source-6.1 6.1.192-2 from Debian",
        ),
        series_digest="4c" * 32,
        series_title="demo",
        series_origin="patches/demo",
        patch_names=SUBJECTS,
        archs=("x86_64",),
        profile="lockdep",
        fragments={"base.config": "11" * 32, "lockdep.config": "22" * 32},
        suites=("boot", "faultstress"),
        cases=CASES,
        repeats=2,
        max_repeats=8,
        seed=1,
        plan_digest="99" * 32,
        host={"machine": "x86_64", "cpus": "8", "kernel": "6.1.0-31-amd64", "memory": "31 GiB"},
        tools={
            "gcc": "12.2.0",
            "qemu-system-x86_64": "7.2.15",
            "ccache": "4.8",
            "git": "2.39.5",
        },
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


# --- whole runs --------------------------------------------------------------------------------

Answer = Callable[[Cell], Trial]


def run(
    base: Answer,
    patched: Answer,
    *,
    kernels: tuple[Kernel, ...] | None = None,
    failures: tuple[BuildFailure, ...] = (),
    **changes: object,
) -> RunRecord:
    """Run the lab's loop against machines that answer like this, and judge."""
    told = manifest(**changes)
    built = kernels or tuple(kernel(side, arch) for arch in told.archs for side in Side)
    sides: Mapping[Side, Answer] = {Side.BASE: base, Side.PATCHED: patched}
    present = {(k.arch, k.side) for k in built}
    trials: list[Trial] = []

    def case_input() -> JudgeInput:
        return JudgeInput(
            title=told.series_title,
            archs=told.archs,
            cases=told.cases,
            profile=told.profile,
            trials=tuple(trials),
            kernels=built,
            failures=failures,
            repeats=told.repeats,
            max_repeats=told.max_repeats,
            changed_files=CHANGED,
        )

    for arch in told.archs:
        if all((arch, side) in present for side in Side):
            for repeat in range(told.repeats):
                trials += [
                    sides[side](cell(side, repeat, arch=arch, cases=told.cases)) for side in Side
                ]
    while more := needs_more(case_input()):
        for ask in more:
            for repeat in ask.repeats:
                trials += [
                    sides[side](cell(side, repeat, arch=ask.arch, cases=ask.cases)) for side in Side
                ]
    make_s = sum(k.build_s for k in built)
    guest_s = sum(t.wall_s for t in trials)
    return RunRecord(
        manifest=told,
        kernels=built,
        failures=failures,
        images=tuple(image(arch) for arch in told.archs),
        trials=tuple(trials),
        verdict=judge(case_input()),
        timing=Timing(
            wall_s=make_s + guest_s + 9.5,
            make_s=make_s,
            guest_s=guest_s,
            setup_s=0.0,
            other_s=9.5,
        ),
        finished="2026-03-14T09:58:02+00:00",
    )


def well(of: Cell) -> Trial:
    """A machine on which everything passes."""
    return trial(of)


def failing(name: str, result: CaseResult, when: Callable[[Cell], bool] = lambda _: True) -> Answer:
    """A machine on which one case gives that result, in the repeats that `when` picks."""

    def answer(of: Cell) -> Trial:
        return trial(
            of,
            results=tuple(
                result if case == name and when(of) else passed(case, of) for case in of.cases
            ),
        )

    return answer


def clean() -> RunRecord:
    return run(well, well)


def corrupting() -> RunRecord:
    """The series lets a fault read a page that truncate has taken away."""
    message = "page 17 of file 3 holds generation 4, expected 5 (offset 69632)"
    case = "faultstress/ext4/truncate"
    return run(well, failing(case, failed(case, message)))


def use_after_free() -> RunRecord:
    case = "faultstress/ext4/munmap"
    result = failed(case, f"ended well, but: {UAF.title}", splats=(UAF,))
    return run(well, failing(case, result))


def unbuildable() -> RunRecord:
    broken = BuildFailure(
        key="dead01",
        arch="x86_64",
        side=Side.PATCHED,
        phase="compile",
        first_error=IMPLICIT,
        log=Path("/cache/builds/dead01/make.log"),
        patch=PATCHES[1],
        build_s=17.0,
    )
    return run(well, well, kernels=(kernel(Side.BASE),), failures=(broken,))


def panicking() -> RunRecord:
    def dies(of: Cell) -> Trial:
        return trial(of, boots=False, end=MachineEnd.PANICKED, boot_splats=(PANIC,))

    return run(well, dies)


def base_dead() -> RunRecord:
    def hangs(of: Cell) -> Trial:
        return trial(of, boots=False, end=MachineEnd.HUNG_BOOT)

    return run(hangs, hangs)


def flaky() -> RunRecord:
    """One case fails now and then on both sides, one fails always on both, one is skipped."""

    def answer(of: Cell) -> Trial:
        sometimes = of.repeat % 2 == (of.side is Side.PATCHED)
        results = {
            "faultstress/xfs/munmap": failed("faultstress/xfs/munmap", "xfs is not in this kernel"),
            "faultstress/ext4/mprotect": CaseResult(
                name="faultstress/ext4/mprotect",
                state=CaseState.SKIPPED,
                message="needs 4 GiB of memory",
            ),
        }
        if sometimes:
            results["faultstress/xfs/truncate"] = failed(
                "faultstress/xfs/truncate", "no progress for 5 s", CaseState.TIMEOUT, (WARNING,)
            )
        return trial(of, results=tuple(results.get(c) or passed(c, of) for c in of.cases))

    return run(answer, answer)


def suspicious() -> RunRecord:
    """One failure with the series that never comes back."""
    case = "faultstress/tmpfs/truncate"
    result = failed(case, "read 0x00 where generation 3 was written")
    return run(well, failing(case, result, lambda of: of.repeat == 1))


def uncovered() -> RunRecord:
    """Lockdep was off in half of the cases, and one got lost."""

    def answer(of: Cell) -> Trial:
        results = tuple(
            replace(passed(case, of), state=CaseState.UNCOVERED, message="lockdep was off")
            if case.startswith("faultstress/xfs")
            else passed(case, of)
            for case in of.cases
            if case != "faultstress/ext4/read"
        )
        return trial(of, results=results)

    return run(answer, answer)


STORIES: dict[str, Callable[[], RunRecord]] = {
    "clean": clean,
    "corrupting": corrupting,
    "use-after-free": use_after_free,
    "unbuildable": unbuildable,
    "panicking": panicking,
    "base-dead": base_dead,
    "flaky": flaky,
    "suspicious": suspicious,
    "uncovered": uncovered,
}
