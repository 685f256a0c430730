"""The dump of a trial: found by name, and opened with the kernel that it is of."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab import debug, host, initramfs, inspector, machine, model
from lab.debug import Core
from lab.machine import MachineSpec, Timeouts
from lab.model import Accelerator, Side, UserError
from lab.store import Cache
from tests import records

ROOT = Path(__file__).parent.parent


def a_run(folder: Path, *dumped: str) -> Path:
    """A run with two trials, of which those that are named left a dump."""
    for name in ("x86_64-base-01-aaaaaa-1", "x86_64-patched-01-bbbbbb-1"):
        trial = folder / "trials" / name
        trial.mkdir(parents=True)
        record = dataclasses.replace(
            records.trial(records.cell(Side.BASE, 0)), dump="memory.kdump" if name in dumped else ""
        )
        (trial / "trial.json").write_bytes(model.encode(record))
        if name in dumped:
            (trial / "memory.kdump").write_bytes(b"KDUMP   ")
    return folder


def a_cache(folder: Path) -> Cache:
    cache = Cache(root=folder / "cache")
    kernel = records.kernel(Side.BASE)
    build = cache.sub("builds") / records.cell(Side.BASE, 0).kernel_key
    build.mkdir()
    (build / "record.json").write_bytes(model.encode(kernel))
    return cache


def test_the_only_dump_needs_no_name(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "x86_64-patched-01-bbbbbb-1")
    core = debug.find(run, "", a_cache(tmp_path))
    assert core.path == run / "trials" / "x86_64-patched-01-bbbbbb-1" / "memory.kdump"
    assert core.kernel == records.kernel(Side.BASE)


@pytest.mark.parametrize(
    ("dumped", "name", "message"),
    [
        ((), "", "no dump of"),
        (("x86_64-patched-01-bbbbbb-1",), "x86_64-base", "no dump of x86_64-base"),
        (("x86_64-base-01-aaaaaa-1", "x86_64-patched-01-bbbbbb-1"), "", "which trial fits 2"),
    ],
)
def test_which_dump_is_meant(
    tmp_path: Path, dumped: tuple[str, ...], name: str, message: str
) -> None:
    run = a_run(tmp_path / "run", *dumped)
    with pytest.raises(UserError, match=message):
        debug.find(run, name, a_cache(tmp_path))


def test_a_kernel_that_was_swept(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "x86_64-base-01-aaaaaa-1")
    with pytest.raises(UserError, match="not in the cache any more"):
        debug.find(run, "x86_64-base", Cache(root=tmp_path / "empty"))


def test_what_is_asked_for() -> None:
    assert debug.options_for(None, (), interactive=False) == ()
    assert debug.options_for(None, (), interactive=True) == ("-i",)
    assert debug.options_for("1+1", (), interactive=True) == ("-e", "1+1")
    assert debug.options_for(None, ("a.py", "b"), interactive=True) == ("-s", "a.py", "b")
    with pytest.raises(UserError):
        debug.options_for("1", ("a.py",), interactive=False)


@pytest.mark.fake
def test_modules_of_the_lab_do_not_stand_in_for_the_standard_library(tmp_path: Path) -> None:
    """As a script, the inspector would have lab/bisect before Python's own `bisect`."""
    if importlib.util.find_spec("drgn") is None:
        pytest.skip("drgn is not installed")
    vmlinux = tmp_path / "vmlinux"
    source = "int linux_banner, init_uts_ns; void _text(void) {}"
    subprocess.run(
        ["gcc", "-shared", "-x", "c", "-", "-o", vmlinux], input=source, text=True, check=True
    )
    kernel = dataclasses.replace(records.kernel(Side.BASE), vmlinux=vmlinux)
    argv = debug.command(Core(path=tmp_path / "none", kernel=kernel), ())
    inspector_at = argv.index(str(Path(inspector.__file__)))
    probe = [*argv[:inspector_at], "-c", "import sys; print(sys.path)"]
    done = subprocess.run(probe, capture_output=True, text=True, check=True, cwd=ROOT / "lab")
    assert repr(str(ROOT / "lab")) not in done.stdout and "''" not in done.stdout
    assert set(json.loads(argv[inspector_at + 5])) == {"_text", "init_uts_ns", "linux_banner"}


def test_what_the_kernel_would_have_noted_down() -> None:
    names = {
        "_text": 0xFFFFFFFF81000000,
        "init_top_pgt": 0xFFFFFFFF82011000,
        "init_uts_ns": 0xFFFFFFFF82480820,
        "swapper_pg_dir": 0xFFFF800009000000,
    }
    info = inspector.vmcoreinfo(names, "6.1", "x86_64", 16 << 20).splitlines()
    assert "NUMBER(phys_base)=0" in info and "SYMBOL(swapper_pg_dir)=ffffffff82011000" in info
    names["_text"] = 0xFFFF800008000000
    info = inspector.vmcoreinfo(names, "6.1", "arm64", 0x40200000).splitlines()
    assert "NUMBER(kimage_voffset)=0xffff7fffc7e00000" in info
    assert "NUMBER(VA_BITS)=48" in info and "NUMBER(TCR_EL1_T1SZ)=0x10" in info
    names["_text"] = 0xFFFFFFC008000000
    assert "NUMBER(VA_BITS)=39" in inspector.vmcoreinfo(names, "6.1", "arm64", 0).splitlines()


def test_a_guests_word_does_not_steer_the_terminal() -> None:
    assert inspector.visible("a\x1b[2Jb\tc") == "a\ufffd[2Jb\tc"


@pytest.mark.vm
@pytest.mark.timeout(400)
def test_drgn_opens_the_memory_of_a_real_panic(boot_kernel: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("drgn") is None:
        pytest.skip("drgn is not installed")
    vmlinux = boot_kernel.with_name("vmlinux")
    if not vmlinux.exists():
        pytest.skip("the kernel has no vmlinux beside it")
    spec = MachineSpec(
        arch="x86_64",
        kernel=boot_kernel,
        initramfs=initramfs.initramfs(
            "x86_64", cache=Cache(root=tmp_path / "cache"), emit=lambda event: None
        ),
        disks=(),
        memory_bytes=512 << 20,
        cpus=2,
        accelerator=Accelerator(name="tcg", cpu="Nehalem", boot_s=5.0),
        timeouts=Timeouts(boot_s=100, silence_s=60, wall_s=300),
        dump=True,
    )

    async def crash() -> machine.Machine:
        async with machine.boot(spec, tmp_path / "t") as box:
            assert box.guest is not None, box.detail
            await box.guest.sysrq("c")
            await box.guest.run(["/init"], timeout_s=200)
        return box

    box = asyncio.run(crash())
    assert box.dump is not None, (tmp_path / "t" / "console.log").read_text()[-2000:]
    kernel = dataclasses.replace(
        records.kernel(Side.BASE), vmlinux=vmlinux, release=box.release, image=boot_kernel
    )
    core = Core(path=box.dump, kernel=kernel)

    def ask(*options: str) -> str:
        argv = debug.command(core, options)
        return subprocess.run(
            argv, capture_output=True, text=True, check=True, timeout=200, env=host.environment()
        ).stdout

    summary = ask()
    assert "Kernel panic - not syncing: sysrq triggered crash" in summary
    stack = summary.partition("--- CPU 0")[2] + summary.partition("--- CPU 1")[2]
    assert "sysrq_handle_crash (" in stack and "drivers/tty/sysrq.c:" in stack
    assert box.release in ask("-e", 'prog["init_uts_ns"].name.release')
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "tasks = [task.pid.value_() for task in for_each_task(prog)]\n"
        "print(json.dumps([sys.argv[1], 1 in tasks, sizeof(prog.type('struct page'))]))\n"
    )
    assert json.loads(ask("-s", str(script), "word")) == ["word", True, 64]
    other = dataclasses.replace(kernel, release="9.9.9")
    argv = debug.command(dataclasses.replace(core, kernel=other), ())
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0 and "holds no kernel 9.9.9" in done.stderr
    assert argv[0] == sys.executable
