"""The state of a machine goes to a file and comes back: QEMU's migration, over QMP.

The machine stands still while it is saved, so that its memory is written once and its disks are
of the same moment.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from qemu.qmp import EventListener, QMPClient, QMPError

_LIMIT_S: Final = 60.0  # of a step: a loaded host writes 100 MB in less
_POLL_S: Final = 0.01
# QEMU holds a migration to 128 MiB/s, so as not to fill a network.
_BANDWIDTH: Final = 1 << 40


class StateError(Exception):
    """The state could not be saved or loaded; says why."""


async def _ask(qmp: QMPClient, command: str, **arguments: Any) -> Any:
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await qmp.execute(command, arguments or None)
    except (TimeoutError, QMPError, OSError, EOFError) as error:
        raise StateError(f"{command}: {error or type(error).__name__}") from error


async def _migrate(qmp: QMPClient, command: str, fd: int) -> None:
    """Hand the descriptor over, start, and wait for the end."""
    name = "snapshot"
    with qmp.listener(("MIGRATION",)) as events:
        wanted = [{"capability": "events", "state": True}]
        await _ask(qmp, "migrate-set-capabilities", capabilities=wanted)
        try:
            qmp.send_fd_scm(fd)
        except (QMPError, OSError) as error:
            raise StateError(f"the file cannot be handed over: {error}") from error
        await _ask(qmp, "getfd", fdname=name)
        await _ask(qmp, command, uri=f"fd:{name}")
        await _ended(qmp, events)


async def _ended(qmp: QMPClient, events: EventListener) -> None:
    try:
        async with asyncio.timeout(_LIMIT_S):
            async for event in events:
                data = event["data"]
                assert isinstance(data, dict)
                match data.get("status"):
                    case "completed":
                        return
                    case "failed" | "cancelled":
                        told = await _ask(qmp, "query-migrate")
                        raise StateError(str(told.get("error-desc", "QEMU does not say why")))
    except TimeoutError as error:
        raise StateError(f"not done within {_LIMIT_S:.0f} s") from error
    raise StateError("QEMU ended")


async def save(qmp: QMPClient, fd: int) -> None:
    """Stop the machine and write its state. Its disks are at rest until `go_on`, whether this
    raises `StateError` or not."""
    await _ask(qmp, "stop")
    await _ask(qmp, "migrate-set-parameters", **{"max-bandwidth": _BANDWIDTH})
    await _migrate(qmp, "migrate", fd)


async def load(qmp: QMPClient, fd: int) -> None:
    """Read the state into a machine that waits for it; it stands still. Raises `StateError`."""
    await _migrate(qmp, "migrate-incoming", fd)


async def go_on(qmp: QMPClient) -> None:
    """Let a machine run that stands still. Raises `StateError`."""
    # QEMU tells of the end of a migration a moment before it can go on from it.
    try:
        async with asyncio.timeout(_LIMIT_S):
            while (await _ask(qmp, "query-status")).get("status") == "finish-migrate":
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise StateError(f"still saving after {_LIMIT_S:.0f} s") from error
    await _ask(qmp, "cont")
