"""Jobs go out to the workers of Dask's scheduler; their trials come in, each exactly once.

A worker that dies, or a scheduler that is started again, costs time and nothing else: what was
under way is sent again, and what comes back twice is taken once. What no worker can do is an error
before anything is sent; what no worker can do any more is one after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError as Disowned
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from distributed import Client, Future, KilledWorker

import lab
from lab import model, symbols, trial
from lab.config import Fleet, Machine
from lab.fleet import capability, job, parcel
from lab.fleet.artefact import Depot
from lab.fleet.capability import Amounts
from lab.fleet.job import Job, Proof
from lab.fleet.worker import Answer, Kind, error_of, prove_host, run_job
from lab.model import (
    Accelerator,
    Cell,
    Emit,
    Event,
    EventKind,
    LabFault,
    Splat,
    Trial,
    UserError,
)
from lab.pool import OVERHEAD_BYTES
from lab.store import Cache, publish, remove_tree, write_atomically
from lab.symbols import History
from lab.trial import Kit

CELL_FILE: Final = "cell.json"
_CONNECT_S = 5.0
_LOOK_S = 2.0  # between two looks at who is there
_CELL: Final = "lab-cell-"  # keys of the tasks
_HINT = "lab worker ADDRESS makes a host one; lab workers shows what each can do"


class _Stuck(Exception):
    """Dask does not look again at what waits for a resource when a worker gains it."""


def stuck_cells(dask_scheduler: Any) -> list[str]:
    """On the scheduler: the cells that wait because no worker could take them."""
    return [
        key
        for key, task in dask_scheduler.tasks.items()
        if str(key).startswith(_CELL) and task.state == "no-worker"
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What boots an architecture's kernels? Asked of every worker that comes."""

    proof: bytes
    force: str | None
    wanted: Amounts


class Crew:
    """The workers of one scheduler, as a place where cells run."""

    def __init__(self, fleet: Fleet, cache: Cache, emit: Emit) -> None:
        self._fleet = fleet
        self._emit = emit
        self._depot = Depot(store=fleet.artefacts, cache=cache)
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._hosts: dict[str, dict[str, float]] = {}
        self._names: dict[str, str] = {}
        self._questions: dict[str, _Question] = {}  # by architecture
        self._asked: set[tuple[str, str | None, str]] = set()  # architecture, force, address
        self._offered: set[str] = set()  # kernels whose artefacts are in the depot
        self._stuck: frozenset[str] = frozenset()  # keys of cells that no worker could take
        self._asking: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> str:
        return self._fleet.scheduler

    def _say(self, text: str, kind: EventKind = EventKind.NOTE) -> None:
        self._emit(Event(kind=kind, step="fleet", text=text))

    # --- connection ------------------------------------------------------------------------

    async def join(self) -> None:
        """Raises `UserError` if there is no scheduler at the address."""
        try:
            await self._open()
        except (OSError, TimeoutError, ValueError) as error:
            raise UserError(
                f"no scheduler answers at {self.address}: {error}",
                hint="dask scheduler starts one; [fleet] scheduler or --scheduler names it",
            ) from error
        await self.look()

    async def _open(self) -> Client:
        client = Client(  # type: ignore[no-untyped-call]
            self.address, asynchronous=True, timeout=_CONNECT_S, set_as_default=False, name="lab"
        )
        self._client = await client
        return client

    async def _connected(self) -> Client:
        """The client, with a scheduler behind it; waits for one. Raises `LabFault` if none comes
        within the fleet's patience."""
        deadline = time.monotonic() + self._fleet.patience_s
        async with self._connecting:
            while True:
                client = self._client
                if client is not None and client.status == "running":
                    return client
                if client is None or client.status in ("closed", "closing"):
                    with contextlib.suppress(OSError, TimeoutError):
                        return await self._open()
                if time.monotonic() > deadline:
                    raise LabFault(
                        f"the scheduler at {self.address} has been gone for "
                        f"{self._fleet.patience_s:.0f} s",
                        hint="the same command goes on when it is back",
                    )
                await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Whatever is still under way is cancelled by that."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await self._client.close(timeout=_CONNECT_S)  # type: ignore[no-untyped-call]

    # --- who is there ----------------------------------------------------------------------

    async def look(self) -> dict[str, dict[str, float]]:
        """What each worker offers, by its address. Empty while there is no scheduler."""
        client = self._client
        if client is None or client.scheduler is None or client.status != "running":
            self._hosts = {}
            return self._hosts
        try:
            told = await client.scheduler.identity(n_workers=-1)
        except (OSError, TimeoutError):
            self._hosts = {}
            return self._hosts
        workers = {
            address: about
            for address, about in told["workers"].items()
            if about.get("status", "running") == "running"
        }
        self._hosts = {address: dict(about["resources"]) for address, about in workers.items()}
        self._names |= {address: str(about["name"]) for address, about in workers.items()}
        return self._hosts

    def name_of(self, address: str) -> str:
        return self._names.get(address, address)

    async def watch(self) -> None:
        """Look again and again, and let newcomers prove what they can; runs beside everything
        else until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()
            await self._look_for_stuck()
            for arch, question in tuple(self._questions.items()):
                if fresh := self._unasked(arch, question):
                    task = asyncio.create_task(self._ask(arch, question, fresh))
                    self._asking.add(task)
                    task.add_done_callback(self._asking.discard)

    async def _look_for_stuck(self) -> None:
        client = self._client
        self._stuck = frozenset()
        if client is not None and client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):
                found = await client.run_on_scheduler(stuck_cells)  # type: ignore[no-untyped-call]
                self._stuck = frozenset(found)

    def demand(self, wanted: Amounts) -> None:
        """Raises `UserError` that names what no worker has."""
        lacking = capability.unmatched(wanted, self._hosts)
        if lacking:
            there = "; ".join(
                f"{self.name_of(address)}: {capability.described(host)}"
                for address, host in sorted(self._hosts.items())
            )
            told = f" ({there})" if there else ""
            raise UserError(f"{self.address}: {lacking}{told}", hint=_HINT)

    async def admit(self, archs: Sequence[str], machine: Machine) -> None:
        """Before anything is built: could each architecture run at all? Raises `UserError`."""
        await self.look()
        for arch in archs:
            self.demand(_needs(arch, machine.cpus, machine.memory_bytes))

    async def capacity(self, arch: str, machine: Machine, accelerator: Accelerator) -> int:
        """How many machines all workers carry at once. Raises `UserError` if none does."""
        await self.look()
        wanted = _needs(arch, machine.cpus, machine.memory_bytes, accelerator)
        self.demand(wanted)
        count = capability.slots(wanted, self._hosts)
        return min(count, machine.parallel) if machine.parallel else count

    async def prove(
        self, arch: str, machine: Machine, *, kernel: Path, initramfs: Path, force: str | None
    ) -> Accelerator:
        """The accelerator for all cells of that architecture: KVM if it boots `kernel` on any
        worker, else TCG, with the CPU model that most of them have. Every worker that has not
        proven it does so now.

        Its `boot_s` is the slowest of those that will run cells. Raises `UserError`, `LabFault`.
        """
        wanted = _needs(arch, machine.cpus, machine.memory_bytes)
        self.demand(wanted)
        proof = Proof(
            lab_version=lab.__version__,
            arch=arch,
            kernel=await asyncio.to_thread(self._depot.offer, kernel),
            initramfs=await asyncio.to_thread(self._depot.offer, initramfs),
        )
        question = _Question(proof=model.encode(proof), force=force, wanted=wanted)
        self._asked.clear()
        known, failed = await self._ask(arch, question, self._unasked(arch, question))
        self._questions[arch] = question
        if not known:
            raise LabFault(f"no worker boots {arch}: {'; '.join(failed)}", hint=_HINT)
        best = "kvm" if any(one.name == "kvm" for one in known) else "tcg"
        models = Counter(one.cpu for one in known if one.name == best)
        ((cpu, _),) = models.most_common(1)
        await self.look()
        return max(
            (one for one in known if (one.name, one.cpu) == (best, cpu)),
            key=lambda accelerator: accelerator.boot_s,
        )

    def _unasked(self, arch: str, question: _Question) -> list[str]:
        """Workers that could be of use, and have not been asked."""
        return [
            address
            for address, host in self._hosts.items()
            if capability.slots(question.wanted, {address: host})
            and (arch, question.force, address) not in self._asked
        ]

    async def _ask(
        self, arch: str, question: _Question, addresses: list[str]
    ) -> tuple[list[Accelerator], list[str]]:
        """What those workers have proven, and why others have not."""
        self._asked |= {(arch, question.force, address) for address in addresses}
        self._say(f"what boots {arch}? proved by {', '.join(map(self.name_of, addresses))}")
        client = await self._connected()
        answers: dict[str, Any] = await client.run(
            prove_host, question.proof, question.force, workers=addresses, on_error="return"
        )
        known: list[Accelerator] = []
        failed: list[str] = []
        for address, answer in answers.items():
            if not isinstance(answer, Answer):
                failed.append(f"{self.name_of(address)}: {answer}")
            elif answer.kind is Kind.DONE:
                known.append(model.decode(answer.parcel, Accelerator))
            else:
                failed.append(error_of(answer).message)
        for text in failed:
            self._say(f"left out, it proves nothing: {text}", EventKind.WARNING)
        return known, failed

    # --- cells -----------------------------------------------------------------------------

    async def execute(self, cell: Cell, kit: Kit, folder: Path, emit: Emit) -> Trial:
        """As `trial.run`, on some worker. The folder appears whole, and once."""
        if kit.kernel.key in self._offered:
            wanted = job.describe(cell, kit, folder.name, self._depot)
        else:  # some hundred MB are read and perhaps sent
            wanted = await asyncio.to_thread(job.describe, cell, kit, folder.name, self._depot)
            self._offered.add(kit.kernel.key)
        raw = model.encode(wanted)
        needs = _needs(cell.arch, cell.cpus, cell.memory_bytes, kit.accelerator)
        answer = await self._answer(wanted.name, raw, needs)
        if answer.kind is not Kind.DONE:
            raise error_of(answer)
        return await asyncio.to_thread(receive, answer, wanted, raw, folder, kit.history)

    async def _answer(self, name: str, raw: bytes, needs: dict[str, float]) -> Answer:
        while True:
            client = await self._connected()
            future: Future[Answer] = client.submit(
                run_job, raw, key=f"{_CELL}{name}-{uuid.uuid4().hex[:12]}", resources=needs
            )
            try:
                return await self._watched(future, name, needs)
            except _Stuck:
                self._say(f"{name} is sent again: a worker that can take it has come")
            except Disowned:
                # The scheduler that knew of it is gone; a cell can always be run again.
                self._say(f"{name} is sent again: the scheduler lost it", EventKind.WARNING)
            except KilledWorker as error:
                raise LabFault(
                    f"{name} took its workers down, one after the other: {error}",
                    hint="look at what their hosts say: memory?",
                ) from error
            except (OSError, TimeoutError) as error:
                self._say(f"{name} is sent again: {error}", EventKind.WARNING)
            finally:
                if future.status == "pending":
                    with contextlib.suppress(OSError, TimeoutError, Disowned):
                        await asyncio.shield(_cancel(client, future))

    async def _watched(self, future: Future[Answer], name: str, needs: Amounts) -> Answer:
        """The answer, unless for too long no worker has been there that could give it."""
        waiting = asyncio.ensure_future(_result(future))
        since: float | None = None
        try:
            while True:
                done, _ = await asyncio.wait((waiting,), timeout=_LOOK_S)
                if done:
                    return waiting.result()
                lacking = capability.unmatched(needs, self._hosts)
                if not lacking:
                    if future.key in self._stuck:
                        raise _Stuck
                    since = None
                    continue
                since = time.monotonic() if since is None else since
                if time.monotonic() - since > self._fleet.patience_s:
                    raise LabFault(
                        f"{name} waits for a worker that does not come: {self.address}: {lacking}",
                        hint=f"{_HINT}; the same command goes on when there is one",
                    )
        finally:
            waiting.cancel()


async def _result(future: Future[Answer]) -> Answer:
    answer = await future
    assert isinstance(answer, Answer)
    return answer


async def _cancel(client: Client, future: Future[Answer]) -> None:
    if client.status == "running":
        await client.cancel([future], force=True)  # type: ignore[no-untyped-call]


def _needs(
    arch: str, cpus: int, memory_bytes: int, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """Of one machine, with what its QEMU takes besides."""
    name = accelerator.name if accelerator else max(OVERHEAD_BYTES, key=OVERHEAD_BYTES.__getitem__)
    return capability.needs(
        arch,
        cpus=cpus,
        memory_bytes=memory_bytes + OVERHEAD_BYTES[name],
        accelerator=accelerator,
    )


def receive(
    answer: Answer, wanted: Job, raw: bytes, folder: Path, history: History | None
) -> Trial:
    """The trial that a worker sent, in its folder; with `history`, its splats marked.

    Raises `LabFault` if it is not that of the job.
    """
    part = folder.parent / f".{folder.name}.part"
    remove_tree(part)
    try:
        parcel.unpack(answer.parcel, part)
        record = _checked(part, wanted, answer.host)
        record = replace(record, host=answer.host)
        if history is not None:
            record = _marked(record, history)
        (part / CELL_FILE).write_bytes(raw)
        write_atomically(part / trial.RECORD, model.encode(record))
        publish(part, folder)
    finally:
        remove_tree(part)
    return record


def _checked(part: Path, wanted: Job, host: str) -> Trial:
    try:
        record = model.decode((part / trial.RECORD).read_bytes(), Trial)
    except OSError as error:
        raise LabFault(f"{host} sent {wanted.name} without its record") from error
    if record.cell != wanted.cell or record.id != wanted.name:
        raise LabFault(f"{host} sent the record of another cell for {wanted.name}")
    if (record.accelerator.name, record.accelerator.cpu) != (wanted.accelerator, wanted.cpu):
        raise LabFault(
            f"{host} ran {wanted.name} under {record.accelerator.name} {record.accelerator.cpu}, "
            f"not {wanted.accelerator} {wanted.cpu}: such results are not compared"
        )
    return record


def _marked(record: Trial, history: History) -> Trial:
    """Its splats with the patches that touched their frames: only here is the repository."""

    def mark(splats: tuple[Splat, ...]) -> tuple[Splat, ...]:
        return symbols.mark(splats, history) if splats else splats

    return replace(
        record,
        boot_splats=mark(record.boot_splats),
        results=tuple(replace(result, splats=mark(result.splats)) for result in record.results),
    )


@contextlib.asynccontextmanager
async def joined(fleet: Fleet, cache: Cache, emit: Emit) -> AsyncIterator[Crew]:
    """The crew of that scheduler. What is under way at the end is cancelled."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    crew = Crew(fleet, cache, emit)
    await crew.join()
    watching = asyncio.create_task(crew.watch())
    try:
        yield crew
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await crew.close()
