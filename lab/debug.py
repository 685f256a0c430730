"""A run and a trial go in; its memory dump is opened by drgn with the kernel it is of.

Raises `UserError` where there is no such dump, kernel or drgn.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab import host, model
from lab.model import Kernel, LabFault, Trial, UserError
from lab.store import Cache

_INSPECTOR: Final = Path(__file__).with_name("inspector.py")
_SYMBOLS: Final = ("_text", "init_top_pgt", "init_uts_ns", "linux_banner", "swapper_pg_dir")


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """A dump and what explains it."""

    path: Path
    kernel: Kernel


def find(run: Path, name: str, cache: Cache) -> Core:
    """The dump of a trial of that run: its name, or the beginning of it; "" if only one has one."""
    trials = {
        path.parent: model.decode(path.read_bytes(), Trial)
        for path in sorted(run.glob("trials/*/trial.json"))
    }
    dumped = [
        folder
        for folder, trial in trials.items()
        if trial.dump and (folder / Path(trial.dump).name).is_file()
    ]
    fitting = [folder for folder in dumped if folder.name.startswith(name)]
    if len(fitting) != 1:
        known = ", ".join(folder.name for folder in dumped) or "none: run with --dump"
        few = f"{name or 'which trial'} fits {len(fitting)}" if fitting else f"no dump of {name}"
        raise UserError(f"{run.name}: {few}", hint=f"trials with a dump: {known}")
    (folder,) = fitting
    trial = trials[folder]
    record = cache.sub("builds") / trial.cell.kernel_key / "record.json"
    try:
        kernel = model.decode(record.read_bytes(), Kernel)
    except (OSError, LabFault) as error:
        raise UserError(
            f"the kernel {trial.cell.kernel_key} of {folder.name} is not in the cache any more",
            hint="lab build with the same series makes it again",
        ) from error
    return Core(path=folder / Path(trial.dump).name, kernel=kernel)


def command(core: Core, options: Sequence[str]) -> tuple[str, ...]:
    """The argv of the inspector. Raises `UserError` without drgn."""
    if importlib.util.find_spec("drgn") is None:
        raise UserError("drgn is not installed", hint="pip install 'kernel-patch-lab[debug]'")
    return (
        # -P: the folder of the inspector, with modules named as the standard library's, stays out.
        *(sys.executable, "-P", str(_INSPECTOR), str(core.path), str(core.kernel.vmlinux)),
        *(
            core.kernel.arch,
            core.kernel.release,
            json.dumps(_symbols(core.kernel.vmlinux)),
            *options,
        ),
    )


def _symbols(vmlinux: Path) -> dict[str, int]:
    """The addresses that the inspector asks for."""
    found: dict[str, int] = {}
    for line in host.run(["nm", vmlinux]).text.splitlines():
        address, _, name = line.rpartition(" ")
        if name in _SYMBOLS:
            found[name] = int(address.split()[0], 16)
    return found


def options_for(
    expression: str | None, script: Sequence[str], *, interactive: bool
) -> tuple[str, ...]:
    """What the inspector is to do. Raises `UserError` if that is two things."""
    if expression is not None and script:
        raise UserError("an expression or a script, not both")
    if expression is not None:
        return ("-e", expression)
    if script:
        return ("-s", *script)
    return ("-i",) if interactive else ()
