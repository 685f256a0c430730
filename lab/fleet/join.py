"""A configuration goes in; the crew of its scheduler comes out, or None where there is none.

The way in for everybody else: Dask is loaded only here, and only if it is wanted.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from lab.config import Config
from lab.fleet.artefact import HINT
from lab.model import Emit, UserError
from lab.store import Cache

if TYPE_CHECKING:
    from lab.fleet.crew import Crew


def demand_dask() -> None:
    """Raises `UserError` where the extra is not installed."""
    if importlib.util.find_spec("distributed") is None:
        raise UserError("Dask's distributed is not installed", hint=HINT)


@contextlib.asynccontextmanager
async def crew(
    config: Config, archs: Sequence[str], cache: Cache, emit: Emit
) -> AsyncIterator[Crew | None]:
    """Raises `UserError` before anything is built, if nobody answers or no worker could run what
    is asked for. What is still under way at the end is cancelled."""
    if not config.fleet.scheduler:
        yield None
        return
    if config.machine.dump:
        raise UserError(
            "a memory dump stays on the host that made it", hint="--dump without --scheduler"
        )
    demand_dask()
    from lab.fleet.crew import joined

    async with joined(config.fleet, cache, emit) as workers:
        await workers.admit(archs, config.machine)
        yield workers
