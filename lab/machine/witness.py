"""A hung machine goes in; what its kernel and its processors say about themselves comes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from qemu.qmp import QMPClient, QMPError

from lab.console import Console

_QMP_S: Final = 5.0
_QUIET_S: Final = 0.1  # a console that says nothing for so long has said it all
_ANSWER_S: Final = 2.0  # at most so long for each question


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Asks in the order of harm: first what a living kernel survives."""

    qmp: QMPClient
    console: Console
    keys: Callable[[bytes], Awaitable[None]]  # into the guest's serial line

    async def ask_kernel(self) -> None:
        """Sysrq over the serial line: blocked tasks, held locks, what each CPU does. It needs
        neither the agent nor any process, only a CPU that takes interrupts."""
        for key in b"wdl":
            await self.execute("chardev-send-break", id="console")
            await self.keys(bytes([key]))
            await self._settle()

    async def machine_state(self, reason: str) -> str:
        """What QEMU knows, without the kernel's help."""
        parts = [f"{reason}\n"]
        parts.append(_section("query-status", await self.execute("query-status")))
        parts.append(_section("query-cpus-fast", await self.execute("query-cpus-fast")))
        for line in ("info registers -a",):
            answer = await self.execute("human-monitor-command", **{"command-line": line})
            parts.append(_section(line, answer))
        return "\n".join(parts)

    async def interrupt(self) -> str:
        """An NMI, which also a CPU takes that spins with interrupts off. It ends the kernel: it
        panics and shows where it was. Last, therefore, and with QEMU told to outlive it."""
        # The machine must still be there when the kernel has said where it was.
        await self.execute("set-action", shutdown="pause", panic="none")
        answer = await self.execute("inject-nmi")
        await self._settle()
        told = answer if isinstance(answer, str) else "sent; see the end of the console"
        return "\n" + _section("inject-nmi", told)

    async def _settle(self) -> None:
        """Until the console has fallen silent."""
        before = -1
        for _ in range(round(_ANSWER_S / _QUIET_S)):
            if self.console.received_bytes == before:
                return
            before = self.console.received_bytes
            await asyncio.sleep(_QUIET_S)

    async def execute(self, command: str, **arguments: object) -> object:
        """A QMP command; what went wrong is the answer then."""
        try:
            return await asyncio.wait_for(self.qmp.execute(command, arguments or None), _QMP_S)
        except (TimeoutError, QMPError, OSError, EOFError) as error:
            return f"no answer: {type(error).__name__} {error}"


def _section(title: str, answer: object) -> str:
    text = answer if isinstance(answer, str) else json.dumps(answer, indent=1)
    return f"--- {title}\n{text}\n".replace("\r", "")
