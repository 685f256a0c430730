"""A worker as `lab worker` makes it, but for the probe of a guest that is this very host.

usage: fleetworker.py ADDRESS NAME CACHE CORES PROBE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lab import trial
from lab.fleet import capability, worker
from lab.model import Event
from lab.store import Cache


def say(event: Event) -> None:
    print(event.kind, event.step, event.text, file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    address, name, cache, cores, probe = sys.argv[1:]
    trial.PROBE = Path(probe)
    post = worker.Post(Cache(root=Path(cache)), label=name, emit=say)
    offers = capability.offers(archs=("x86_64",), cores=int(cores), memory_bytes=8 << 30)
    asyncio.run(worker.serve(address, post, offers))


if __name__ == "__main__":
    main()
