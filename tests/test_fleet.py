"""Cells on a real cluster: Dask's own scheduler, workers in processes of their own, and a process
that stands in for QEMU. What dies, dies by SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lab import model, plan
from lab.config import Fleet, Machine
from lab.fleet.crew import CELL_FILE, Crew, joined
from lab.fleet.job import Job
from lab.machine import Timeouts
from lab.model import (
    Accelerator,
    CaseState,
    Cell,
    Event,
    LabFault,
    MachineEnd,
    Side,
    Trial,
    UserError,
)
from lab.plan import Matrix
from lab.pool import Pool, Split
from lab.store import Cache
from lab.suites.boot import CASE, Boot
from lab.suites.protocol import SuiteOptions
from lab.suites.registry import SUITES
from lab.trial import Kit
from tests.conftest import ROOT
from tests.fakeqemu import FAKE, build_agent
from tests.test_supplied import PROBE, machine_files

pytestmark = [pytest.mark.fake, pytest.mark.timeout(300)]

MACHINE = Machine(cpus=1, memory="64M")
_PATIENCE_S = 60.0  # of a test with a loaded host
Found = Callable[[str], Sequence[int]]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent"))


def quiet(event: Event) -> None:
    """Nobody looks at it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(what: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


async def eventually_async(what: Callable[[], object], why: str) -> None:
    await asyncio.to_thread(eventually, what, why)


@dataclass
class Cluster:
    """A scheduler and its workers, each a process that can be killed."""

    root: Path
    agent: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def _start(self, name: str, argv: Sequence[str | Path]) -> None:
        binaries = self.root / "bin"
        if not binaries.exists():
            binaries.mkdir()
            (binaries / "qemu-system-x86_64").symlink_to(FAKE)
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"},
            )

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def scheduler(self) -> None:
        program = Path(sys.executable).with_name("dask")
        options = ("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        self._start("scheduler", (program, "scheduler", *options))

        def up() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return True
            return False

        eventually(up, "the scheduler does not listen")

    def cache(self, name: str) -> Path:
        return self.root / f"cache-{name}"

    def worker(self, name: str, *, cores: int = 1) -> None:
        before = self.log(name).count("joined") if (self.root / f"{name}.log").exists() else 0
        probe = self.root / "probe.sh"
        probe.write_text(PROBE.format(console=self.root / "console"))
        words = (self.address, name, self.cache(name), str(cores), probe)
        self._start(name, (sys.executable, "-m", "tests.fleetworker", *words))
        eventually(lambda: self.log(name).count("joined") > before, f"{name} does not join")

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in tuple(self.processes):
            self.kill(name)

    def kit(self, gate: Path | None = None) -> Kit:
        """Of a "kernel" that boots; with `gate`, once there is such a file."""
        console = self.root / "console"
        mode = f"gate {gate} {console}" if gate else f"follow {console}"
        folder = self.root / f"kernel-{len(list(self.root.iterdir()))}"
        folder.mkdir()
        kernel, image = machine_files(folder, mode)
        kernel.config.write_text("CONFIG_PROC_FS=y\n")
        return Kit(
            kernel=kernel,
            initramfs=self.agent,
            image=image,
            accelerator=Accelerator(name="tcg", cpu="max", boot_s=1.0),
            timeouts=Timeouts(boot_s=60, silence_s=60, wall_s=200),
            suites=(SUITES["boot"],),
            cases={case.name: case for case in Boot().plan(SuiteOptions())},
            scratch_bytes=1 << 20,
        )

    async def proven(self, crew: Crew, arch: str = "x86_64") -> Accelerator:
        kit = self.kit()
        return await crew.prove(
            arch, MACHINE, kernel=kit.kernel.image, initramfs=kit.initramfs, force="tcg"
        )

    @contextlib.asynccontextmanager
    async def crew(
        self, events: list[Event] | None = None, *, patience_s: float = 120.0
    ) -> AsyncIterator[Crew]:
        told: list[Event] = [] if events is None else events
        fleet = Fleet(scheduler=self.address, patience_s=patience_s)
        async with joined(fleet, Cache(root=self.root / "cache"), told.append) as crew:
            yield crew


@pytest.fixture
def cluster(tmp_path: Path, agent: Path) -> Iterator[Cluster]:
    made = Cluster(root=tmp_path, agent=agent)
    made.scheduler()
    try:
        yield made
    finally:
        made.stop()


def cell(kit: Kit, repeat: int = 0) -> Cell:
    return Cell(
        arch="x86_64",
        side=Side.BASE,
        profile="lockdep",
        suites=("boot",),
        cases=(CASE,),
        kernel_key=kit.kernel.key,
        image_sha256=kit.image.sha256,
        repeat=repeat,
        seed=1,
        memory_bytes=MACHINE.memory_bytes,
        cpus=1,
    )


def machines(found: Found, cluster: Cluster, name: str = "") -> Sequence[int]:
    """Live stand-ins for QEMU of a worker, or of all: their disks are in its cache."""
    return [pid for pid in found(str(cluster.root / f"cache-{name}")) if is_qemu(pid)]


def is_qemu(pid: int) -> bool:
    with contextlib.suppress(OSError):  # it has just ended
        return b"qemu-system" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    return False


def whole(folder: Path) -> Trial:
    """The trial in a folder, which holds all that it should."""
    record = model.decode((folder / "trial.json").read_bytes(), Trial)
    assert record.id == folder.name
    assert (folder / record.console).read_text().startswith("[")
    job = model.decode((folder / CELL_FILE).read_bytes(), Job)
    assert job.cell == record.cell
    return record


def test_a_cell_runs_on_a_worker_and_its_trial_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    cluster.worker("one")

    async def scenario() -> tuple[Trial, int]:
        async with cluster.crew() as crew:
            chosen = await cluster.proven(crew)
            assert chosen.name == "tcg" and 0 < chosen.boot_s < 60
            kit = replace(cluster.kit(), accelerator=chosen)
            trial = await crew.execute(cell(kit), kit, tmp_path / "run" / "one-1", quiet)
            return trial, await crew.capacity("x86_64", MACHINE, chosen)

    trial, capacity = asyncio.run(scenario())
    assert trial == whole(tmp_path / "run" / "one-1")
    assert [result.state for result in trial.results] == [CaseState.PASSED]
    assert trial.end is MachineEnd.POWERED_OFF
    assert trial.host == "one"
    assert capacity == 1
    assert not list((cluster.cache("one") / "staging").glob("*/one-1"))
    # By digest, in a cache of its own.
    assert len(list((cluster.cache("one") / "artefacts").iterdir())) >= 4


def test_a_worker_killed_in_mid_cell_loses_and_doubles_nothing(
    cluster: Cluster, tmp_path: Path, processes_of: Found
) -> None:
    cluster.worker("first")
    cluster.worker("second")
    gate = tmp_path / "gate"
    events: list[Event] = []

    async def scenario() -> list[Trial]:
        async with cluster.crew(events) as crew:
            chosen = await cluster.proven(crew)
            kit = replace(cluster.kit(gate), accelerator=chosen)
            other = replace(kit, kernel=replace(kit.kernel, key="p", side=Side.PATCHED))
            count = await crew.capacity("x86_64", MACHINE, chosen)
            assert count == 2
            pool = Pool(
                arch="x86_64",
                kits={Side.BASE: kit, Side.PATCHED: other},
                folder=tmp_path / "run",
                split=Split(machines=count, costs={}),
                trials=[],
                emit=events.append,
                execute=crew.execute,
                far=True,
            )
            matrix = Matrix(
                arch="x86_64",
                profile="lockdep",
                suites=("boot",),
                cases=(CASE,),
                image_sha256=kit.image.sha256,
                seed=1,
                memory_bytes=MACHINE.memory_bytes,
                cpus=1,
            )
            cells = plan.rounds(matrix, kit.kernel, other.kernel, range(3))
            running = asyncio.create_task(pool.run(cells))
            for name in ("first", "second"):
                await eventually_async(
                    lambda name=name: machines(processes_of, cluster, name),  # type: ignore[misc]
                    f"no machine on {name}",
                )
            cluster.kill("first")
            await eventually_async(
                lambda: not machines(processes_of, cluster, "first"), "its machine lives on"
            )
            gate.touch()
            await running
            return pool.trials

    trials = asyncio.run(scenario())
    names = sorted(path.name for path in (tmp_path / "run" / "trials").iterdir())
    assert len(names) == 6, names
    assert sorted(trial.id for trial in trials) == names
    assert {(trial.cell.side, trial.cell.repeat) for trial in trials} == {
        (side, repeat) for side in Side for repeat in range(3)
    }
    for name in names:
        record = whole(tmp_path / "run" / "trials" / name)
        assert [result.state for result in record.results] == [CaseState.PASSED]
        assert record.host == "second"
    # The one that was lost began twice, and no other did.
    started = cluster.log("first").count("started") + cluster.log("second").count("started")
    proofs = 2
    assert started - proofs == 6 + 1


def test_a_scheduler_that_is_started_again_is_waited_for(
    cluster: Cluster, tmp_path: Path, processes_of: Found
) -> None:
    cluster.worker("one")
    gate = tmp_path / "gate"
    events: list[Event] = []

    async def scenario() -> Trial:
        async with cluster.crew(events) as crew:
            chosen = await cluster.proven(crew)
            kit = replace(cluster.kit(gate), accelerator=chosen)
            running = asyncio.create_task(
                crew.execute(cell(kit), kit, tmp_path / "run" / "one-1", events.append)
            )
            await eventually_async(lambda: machines(processes_of, cluster), "no machine")
            cluster.kill("scheduler")
            await eventually_async(lambda: not machines(processes_of, cluster), "it lives on")
            await asyncio.to_thread(cluster.scheduler)
            gate.touch()
            return await running

    trial = asyncio.run(scenario())
    assert trial == whole(tmp_path / "run" / "one-1")
    assert trial.results[0].state is CaseState.PASSED
    assert any("sent again" in event.text for event in events)
    assert cluster.log("one").count("joined") == 2


def test_what_nobody_waits_for_leaves_no_machine(
    cluster: Cluster, tmp_path: Path, processes_of: Found
) -> None:
    """Cancelled; its sender gone at his leisure; its sender killed. The worker stays fit."""
    cluster.worker("one")

    async def scenario(how: str) -> None:
        async with cluster.crew() as crew:
            chosen = await cluster.proven(crew)
            kit = replace(cluster.kit(tmp_path / "never"), accelerator=chosen)
            running = asyncio.create_task(
                crew.execute(cell(kit), kit, tmp_path / "run" / f"{how}-1", quiet)
            )
            await eventually_async(lambda: machines(processes_of, cluster), "no machine")
            match how:
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "cancelled":
                    running.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await running
                    await eventually_async(lambda: not machines(processes_of, cluster), "lives on")

    for number, how in enumerate(("cancelled", "left", "killed"), 1):
        if how == "killed":
            child = os.fork()
            if child == 0:
                asyncio.run(scenario(how))
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        else:
            asyncio.run(scenario(how))
        eventually(lambda: not machines(processes_of, cluster), "its machine lives on")
        staging = cluster.cache("one") / "staging"
        eventually(lambda staging=staging: not list(staging.glob("*/*-1")), "its folder stays")  # type: ignore[misc]
        eventually(
            lambda number=number: cluster.log("one").count("nobody wants it") == number,  # type: ignore[misc]
            "it does not say so",
        )
        assert not (tmp_path / "run" / f"{how}-1").exists()

    async def next_one() -> Trial:
        async with cluster.crew() as crew:
            kit = replace(cluster.kit(), accelerator=await cluster.proven(crew))
            return await crew.execute(cell(kit), kit, tmp_path / "run" / "two-1", quiet)

    assert asyncio.run(next_one()).results[0].state is CaseState.PASSED


def test_what_no_worker_can_do_is_an_error_that_names_it(cluster: Cluster) -> None:
    cluster.worker("one")
    wanted = (
        ("arm64", MACHINE, "no worker has qemu:arm64"),
        ("x86_64", Machine(cpus=64, memory="64M"), "no worker has 64 cores"),
        ("x86_64", Machine(cpus=1, memory="100G"), "memory-mib"),
    )

    async def scenario() -> None:
        async with cluster.crew() as crew:
            for arch, machine, named in wanted:
                with pytest.raises(UserError, match=named) as error:
                    await crew.admit((arch,), machine)
                assert "one: 1 cores" in error.value.message  # and who is there
                assert "lab worker" in error.value.hint
            chosen = await cluster.proven(crew)
            with pytest.raises(UserError, match="no worker has kvm-host:x86_64"):
                await crew.capacity("x86_64", MACHINE, replace(chosen, name="kvm", cpu="host"))

    asyncio.run(scenario())


def test_the_last_worker_that_goes_is_an_error_after_a_while(
    cluster: Cluster, tmp_path: Path, processes_of: Found
) -> None:
    cluster.worker("one")

    async def scenario() -> None:
        async with cluster.crew(patience_s=3.0) as crew:
            chosen = await cluster.proven(crew)
            kit = replace(cluster.kit(tmp_path / "never"), accelerator=chosen)
            running = asyncio.create_task(
                crew.execute(cell(kit), kit, tmp_path / "run" / "one-1", quiet)
            )
            await eventually_async(lambda: machines(processes_of, cluster), "no machine")
            cluster.kill("one")
            await running

    with pytest.raises(LabFault, match="one-1 waits for a worker that does not come"):
        asyncio.run(scenario())
    assert not machines(processes_of, cluster)


def test_a_worker_that_comes_later_proves_itself_and_helps(
    cluster: Cluster, tmp_path: Path, processes_of: Found
) -> None:
    """As one does that was started again after it died."""
    cluster.worker("one")
    gate = tmp_path / "gate"

    async def scenario() -> Trial:
        async with cluster.crew() as crew:
            chosen = await cluster.proven(crew)
            kit = replace(cluster.kit(gate), accelerator=chosen)
            running = asyncio.create_task(
                crew.execute(cell(kit), kit, tmp_path / "run" / "one-1", quiet)
            )
            await eventually_async(lambda: machines(processes_of, cluster), "no machine")
            cluster.kill("one")
            await asyncio.to_thread(cluster.worker, "two")
            gate.touch()
            return await running

    assert asyncio.run(scenario()).host == "two"


def test_no_scheduler_is_an_error_at_once(tmp_path: Path, agent: Path) -> None:
    nobody = Cluster(root=tmp_path, agent=agent)

    async def scenario() -> None:
        async with nobody.crew():
            raise AssertionError("there is nobody")

    with pytest.raises(UserError, match="no scheduler answers"):
        asyncio.run(scenario())


def test_a_cell_file_runs_anywhere(cluster: Cluster, tmp_path: Path) -> None:
    """`lab cell run` of what a fleet left, in a fresh cache, from the file alone."""
    cluster.worker("one")

    async def scenario() -> None:
        async with cluster.crew() as crew:
            kit = replace(cluster.kit(), accelerator=await cluster.proven(crew))
            await crew.execute(cell(kit), kit, tmp_path / "run" / "one-1", quiet)

    asyncio.run(scenario())
    code = (
        "import sys; from pathlib import Path; from lab import trial; from lab.cli import entry;"
        f"trial.PROBE = Path({str(tmp_path / 'probe.sh')!r}); sys.exit(entry(sys.argv[1:]))"
    )
    out = tmp_path / "trial.tar.gz"
    file = tmp_path / "run" / "one-1" / CELL_FILE
    argv = [sys.executable, "-c", code, "--quiet", "--cache", str(tmp_path / "fresh")]
    done = subprocess.run(
        [*argv, "cell", "run", str(file), "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["results"][0]["state"] == "passed"
    listed = subprocess.run(["tar", "-tzf", out], capture_output=True, text=True, check=True)
    assert {"trial.json", "console.log"} <= set(listed.stdout.split())
