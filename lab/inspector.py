"""drgn on a dump: inspector.py CORE VMLINUX ARCH RELEASE SYMBOLS [-e EXPR | -s SCRIPT ARG... | -i]

A process of its own, because drgn is optional and a dump is a guest's word. Without an option it
prints what is asked first: the last lines of the log, the stack of every CPU, and the stacks of
blocked tasks. Imported by nobody; of the lab it knows nothing.

The kernel's own VMCOREINFO is not needed, and so no option for it: what drgn wants to know are
addresses in vmlinux (SYMBOLS, as JSON), and where in physical memory the kernel lies, and that is
where its banner is found.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from typing import Any

STEP = 2 << 20  # kernels are loaded at a multiple of this
# Where RAM begins: on a PC, and on QEMU's arm64 board.
RAM_BASES = {"x86_64": 0, "arm64": 0x40000000}
SEARCHED_BYTES = 1 << 30
LOG_LINES = 40
TASKS = 50  # stacks shown at most


def vmcoreinfo(names: dict[str, int], release: str, arch: str, physical: int) -> str:
    """What the kernel itself would have noted down. `physical` is the address of _text."""
    lines = [
        f"OSRELEASE={release}",
        "PAGESIZE=4096",
        f"SYMBOL(init_uts_ns)={names['init_uts_ns']:x}",
        "KERNELOFFSET=0",
    ]
    if arch == "x86_64":
        # _text is linked at the kernel's base plus its own preferred address, 16 MiB.
        lines += [
            f"SYMBOL(swapper_pg_dir)={names['init_top_pgt']:x}",
            f"NUMBER(phys_base)={physical - (names['_text'] - 0xFFFFFFFF80000000)}",
            "NUMBER(pgtable_l5_enabled)=0",
        ]
    else:
        # The image lies at the beginning of the lower part of the kernel's half.
        bits = (~names["_text"] & ((1 << 64) - 1)).bit_length() + 1
        lines += [
            f"SYMBOL(swapper_pg_dir)={names['swapper_pg_dir']:x}",
            f"NUMBER(kimage_voffset)=0x{names['_text'] - physical:x}",
            f"NUMBER(VA_BITS)={bits}",
            f"NUMBER(TCR_EL1_T1SZ)=0x{64 - bits:x}",
        ]
    return "\n".join(lines) + "\n"


def open_core(core: str, vmlinux: str, arch: str, release: str, names: dict[str, int]) -> Any:
    """A drgn program for the dump."""
    drgn = importlib.import_module("drgn")
    banner = f"Linux version {release} ".encode()

    def attempt(physical: int) -> Any:
        program = drgn.Program(vmcoreinfo=vmcoreinfo(names, release, arch, physical))
        program.set_core_dump(core)
        return program

    base = RAM_BASES[arch]
    first = attempt(base)
    for physical in range(base, base + SEARCHED_BYTES, STEP):
        try:
            if (
                first.read(physical + names["linux_banner"] - names["_text"], len(banner), True)
                == banner
            ):
                program = attempt(physical)
                program.load_debug_info([vmlinux])
                return program
        except drgn.FaultError:
            continue
    raise SystemExit(f"{core} holds no kernel {release}")


def summary(program: Any) -> None:
    """What is asked first."""
    linux = importlib.import_module("drgn.helpers.linux")
    printk = importlib.import_module("drgn.helpers.linux.printk")
    write = sys.stdout.write
    write("--- the end of the log\n")
    for line in printk.get_dmesg(program).decode("utf-8", "replace").splitlines()[-LOG_LINES:]:
        write(f"{visible(line)}\n")
    for cpu in linux.for_each_present_cpu(program):
        show(program, linux.cpu_curr(program, cpu), f"CPU {cpu}")
    blocked = [
        task for task in linux.for_each_task(program) if linux.task_state_to_char(task) == "D"
    ]
    write(f"\n--- {len(blocked)} blocked tasks\n")
    for task in blocked[:TASKS]:
        show(program, task, "blocked")


def show(program: Any, task: Any, where: str) -> None:
    """One task's stack; one that cannot be unwound says so."""
    name = visible(task.comm.string_().decode("utf-8", "replace"))
    sys.stdout.write(f"\n--- {where}: {name} [{task.pid.value_()}]\n")
    try:
        sys.stdout.write(f"{program.stack_trace(task)}\n")
    except (ValueError, LookupError) as error:
        sys.stdout.write(f"no stack: {error}\n")


def visible(text: str) -> str:
    """A guest's word without what could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def main(argv: list[str]) -> int:
    core, vmlinux, arch, release, symbols, *rest = argv
    program = open_core(core, vmlinux, arch, release, json.loads(symbols))
    match rest:
        case []:
            summary(program)
        case ["-i"]:
            importlib.import_module("drgn.cli").run_interactive(program)
        case ["-e", expression]:
            scope = _scope(program)
            sys.stdout.write(f"{eval(expression, scope)}\n")
        case ["-s", script, *words]:
            sys.argv = [script, *words]
            sys.path.insert(0, os.path.dirname(os.path.abspath(script)))  # noqa: PTH100, PTH120
            runpy.run_path(script, init_globals=_scope(program), run_name="__main__")
        case _:
            raise SystemExit((__doc__ or "").splitlines()[0])
    return 0


def _scope(program: Any) -> dict[str, Any]:
    """The names that drgn's own command offers."""
    scope: dict[str, Any] = {"prog": program}
    for module in ("drgn", "drgn.helpers.linux"):
        loaded = importlib.import_module(module)
        scope |= {name: getattr(loaded, name) for name in loaded.__all__}
    return scope


if __name__ == "__main__":
    os.environ.setdefault("PAGER", "cat")
    sys.exit(main(sys.argv[1:]))
