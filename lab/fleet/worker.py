"""Jobs come in over Dask's scheduler and run on this host; packed trials go out.

A job that nobody wants any more - cancelled, its sender dead, the scheduler gone - ends at once,
and its machine with it. What this host can do is measured, and told to the scheduler as resources.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import dask.config
from distributed import Worker, WorkerPlugin, get_worker

from lab import model
from lab.accel import AcceleratorLost
from lab.fleet import capability, job, parcel
from lab.fleet.job import Execute, Job, Proof
from lab.model import Accelerator, Emit, Event, EventKind, LabError, LabFault, Trial, UserError
from lab.store import Cache

T = TypeVar("T")
PLUGIN: Final = "kernel-patch-lab"
_REJOIN_S = 1.0  # between two tries to reach the scheduler
_JOIN_LIMIT_S = 30.0
_AT_WORK = ("executing", "long-running")
_UNWANTED = ("released", "cancelled", "forgotten")


class Kind(StrEnum):
    """What an answer is: what was asked for, or the failure that it brings back."""

    DONE = "done"
    USER = "user"
    FAULT = "fault"
    LOST = "lost"  # the accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a worker sends back. Failures are values here: no exception crosses hosts."""

    kind: Kind
    host: str
    parcel: bytes = b""  # of a trial; of a proof the `Accelerator`
    message: str = ""
    hint: str = ""


def answer_of(error: LabError, host: str) -> Answer:
    match error:
        case AcceleratorLost():
            kind = Kind.LOST
        case UserError():
            kind = Kind.USER
        case _:
            kind = Kind.FAULT
    return Answer(kind=kind, host=host, message=error.message, hint=error.hint)


def error_of(answer: Answer) -> LabError:
    """The failure that an answer brings, with the host that it comes from."""
    message = f"{answer.host}: {answer.message}"
    match answer.kind:
        case Kind.LOST:
            return AcceleratorLost(message, answer.hint)
        case Kind.USER:
            return UserError(message, answer.hint)
        case Kind.FAULT | Kind.DONE:
            return LabFault(message, answer.hint)


class Post(WorkerPlugin):
    """What a worker is for: one of these sits on each, and its jobs are run by it."""

    name = PLUGIN

    def __init__(
        self,
        cache: Cache,
        *,
        label: str,
        emit: Emit,
        crowding: float = 1.0,
        execute: Execute | None = None,
    ) -> None:
        self.cache = cache
        self.label = label
        self.emit = emit
        self._crowding = crowding
        self._execute = execute or self._on_this_host
        self._lock = threading.Lock()
        self._running: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = {}
        self._unwanted: set[str] = set()
        self._proven: dict[tuple[str, str], Accelerator] = {}  # by name and architecture

    # --- what Dask calls -------------------------------------------------------------------

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """A job at work that becomes unwanted is ended; Dask itself would let it run on."""
        if start in _AT_WORK and finish in _UNWANTED:
            self._end(str(key))

    def teardown(self, worker: Worker) -> None:
        """The worker closes, or has lost its scheduler: nobody will take these results."""
        with self._lock:
            keys = tuple(self._running)
        for key in keys:
            self._end(key)

    def _end(self, key: str) -> None:
        with self._lock:
            running = self._running.get(key)
            if running is None:
                self._unwanted.add(key)  # its thread has not begun yet
                return
        loop, task = running
        with contextlib.suppress(RuntimeError):  # it has just ended by itself
            loop.call_soon_threadsafe(task.cancel)

    # --- jobs ------------------------------------------------------------------------------

    def run(self, key: str, raw: bytes) -> Answer:
        """Run a job to its end, in the thread that calls. Raises `asyncio.CancelledError` if it
        became unwanted meanwhile; its machine is down then."""
        try:
            wanted = model.decode(raw, Job)
            job.check(wanted)
            with self.cache.staging() as folder:
                place = folder / wanted.name
                self._note(EventKind.STARTED, wanted.name)
                trial = asyncio.run(self._cancellable(key, self._one(wanted, place)))
                self._note(EventKind.DONE, wanted.name, f"{trial.end}, {trial.wall_s:.1f} s")
                return Answer(kind=Kind.DONE, host=self.label, parcel=parcel.pack(place))
        except LabError as error:
            self._note(EventKind.WARNING, "cell", error.message)
            return answer_of(error, self.label)
        except asyncio.CancelledError:
            self._note(EventKind.NOTE, "cell", "ended: nobody wants it any more")
            raise

    async def _cancellable(self, key: str, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        with self._lock:
            if key in self._unwanted:
                self._unwanted.discard(key)
                task.cancel()
            else:
                self._running[key] = (asyncio.get_running_loop(), task)
        try:
            return await task
        finally:
            with self._lock:
                self._running.pop(key, None)

    async def _one(self, wanted: Job, folder: Path) -> Trial:
        accelerator = self._proven.get((wanted.accelerator, wanted.cell.arch))
        if accelerator is None:
            accelerator = await self.prove(job.proof_of(wanted), wanted.accelerator)
        return await self._execute(wanted, accelerator, folder, self.emit)

    async def _on_this_host(
        self, wanted: Job, accelerator: Accelerator, folder: Path, emit: Emit
    ) -> Trial:
        return await job.run(
            wanted, accelerator, folder, emit, cache=self.cache, crowding=self._crowding
        )

    def _note(self, kind: EventKind, step: str, text: str = "") -> None:
        self.emit(Event(kind=kind, step=step, text=text))

    # --- what this host can do -------------------------------------------------------------

    async def prove(self, proof: Proof, force: str | None) -> Accelerator:
        """Boot the kernel, unless it is known what does that here."""
        known = await job.prove(proof, self.cache, self.emit, force=force)
        self._proven[known.name, proof.arch] = known
        return known

    def tags(self) -> dict[str, float]:
        """What has been proven so far, as resources."""
        return {
            capability.proven(known, arch): capability.PLENTY
            for (_, arch), known in tuple(self._proven.items())
        }


def post_of(worker: Worker) -> Post:
    """Raises `LabFault` on a worker of plain Dask."""
    found = worker.plugins.get(PLUGIN)
    if not isinstance(found, Post):
        raise LabFault("this worker is not the lab's", hint="lab worker starts one")
    return found


def run_job(raw: bytes) -> Answer:
    """The task that a scheduler sends: a job, encoded."""
    worker = get_worker()
    return post_of(worker).run(str(worker.get_current_task()), raw)


async def prove_host(raw: bytes, force: str | None, dask_worker: Worker) -> Answer:
    """Measure what boots the kernel of a `Proof` on this worker, and let the scheduler know."""
    post = post_of(dask_worker)

    def work() -> Accelerator:
        return asyncio.run(post.prove(model.decode(raw, Proof), force))

    try:
        known = await asyncio.to_thread(work)
    except LabError as error:
        return answer_of(error, post.label)
    await dask_worker.set_resources(**post.tags())
    return Answer(kind=Kind.DONE, host=post.label, parcel=model.encode(known))


async def serve(
    address: str, post: Post, offers: dict[str, float], *, listen: str | None = None
) -> None:
    """Be a worker of that scheduler until cancelled; one that goes is waited for to come back.

    `offers` is what this host has (`capability.offers`); `listen` the address at which others
    reach it, if Dask does not find that out.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    # It would look at every thread a hundred times a second.
    dask.config.set({"distributed.worker.profile.enabled": False})
    told = ""
    with post.cache.staging() as scratch:
        while True:
            try:
                async with Worker(
                    address,
                    name=post.label,
                    nthreads=max(1, int(offers[capability.CORES])),
                    resources={**offers, **post.tags()},
                    plugins=(post,),
                    memory_limit=0,
                    local_directory=str(scratch),
                    dashboard=False,
                    host=listen,
                    death_timeout=_JOIN_LIMIT_S,
                ) as worker:
                    told = f"joined {address} as {worker.address}"
                    post.emit(Event(kind=EventKind.NOTE, step="worker", text=told))
                    await worker.finished()
                why = f"{address} is gone"
            except (OSError, TimeoutError) as error:
                why = f"{address} does not answer: {error}"
            if why != told:
                told = why
                text = f"{why}; waiting for it"
                post.emit(Event(kind=EventKind.WARNING, step="worker", text=text))
            await asyncio.sleep(_REJOIN_S)
