"""A specification goes in; a running machine, and how it ended, come out.

One QEMU runs for the length of an `async with` block. Its console is teed, watchdogs watch it, and
how its life ended is said truthfully: what the kernel did is a `MachineEnd`, never an exception.
Raises `UserError` if QEMU is not installed, `LabFault` if the lab's own disk is full or a file of
the specification is absent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Final

from qemu.qmp import EventListener, QMPClient, QMPError, Runstate

from lab import guest as guests
from lab import host
from lab.console import Console
from lab.guest import Down, Guest
from lab.machine import dump, state
from lab.machine.argv import MachineSpec, qemu_argv
from lab.machine.witness import Witness
from lab.model import LabFault, MachineEnd
from lab.store import write_atomically

# After "panicked" a kernel still flushes its console and resets; then -no-reboot ends QEMU.
_PANIC_GRACE_S: Final = 10.0
_POWEROFF_S: Final = 5.0
_QMP_S: Final = 5.0
_TICK_S: Final = 0.25
_CONSOLE_CHUNK: Final = 65536
_CONSOLE_PAUSE_S: Final = 0.02
# A kernel may report a stall for ever, while nothing else runs on it.
_DEAF_FACTOR: Final = 3

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # a QEMU that ends is no news


class Machine:
    """One machine's life. Made by `boot`; `end` may be asked for once it has ended."""

    def __init__(self, spec: MachineSpec, folder: Path, console: Console) -> None:
        self._spec = spec
        self._folder = folder
        self._console = console
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._heard = self._started  # from the console or the agent
        self._heard_agent = self._started
        self._panicked_at: float | None = None
        self._asked = False  # to power off
        self._end: MachineEnd | None = None
        self._ended = asyncio.Event()
        self._qmp = QMPClient("lab")
        self._events = EventListener(("GUEST_PANICKED", "SHUTDOWN"))
        self._qmp.register_listener(self._events)
        self._serial: socket.socket | None = None
        self.argv: tuple[str, ...] = ()
        self.guest: Guest | None = None  # None: it did not boot, and `end` says how
        self.release = ""  # of the kernel that runs
        self.boot_s: float | None = None  # or of the restore, from QEMU's start to the answer
        self.restored = False  # it began from a snapshot
        self.detail = ""  # more about the end: the panic's line, QEMU's complaint
        self.fault: LabFault | None = None
        self.dump: Path | None = None  # the guest's memory when it panicked or hung

    @property
    def running(self) -> bool:
        return self._end is None

    @property
    def end(self) -> MachineEnd:
        assert self._end is not None, "the machine still runs"
        return self._end

    def _finish(self, end: MachineEnd, detail: str) -> None:
        """The first word on the end is the last: what follows a hang is the lab's own doing."""
        if self._end is None:
            self._end, self.detail = end, detail

    # --- listening -------------------------------------------------------------------------

    def on_agent(self) -> None:
        self._heard = self._heard_agent = self._loop.time()

    async def listen_to_console(self, sock: socket.socket) -> None:
        """Tee the console until QEMU closes it."""
        self._serial = sock
        # A QEMU that dies with keys of ours unread resets the connection.
        with contextlib.suppress(ConnectionError):
            while data := await self._loop.sock_recv(sock, _CONSOLE_CHUNK):
                self._heard = self._loop.time()
                self._console.feed(data)
                # QEMU writes a serial console byte by byte: to wake up for each would cost more
                # than the guest's own work. A flood is drained without a pause.
                await asyncio.sleep(0 if len(data) == _CONSOLE_CHUNK else _CONSOLE_PAUSE_S)

    async def connect_qmp(self, sock: socket.socket) -> None:
        # QEMU may die before it greets; then its exit tells more.
        # A descriptor of its own: were ours closed under a transport that a failed disconnect
        # left open, asyncio would mistake the next socket of that number for it.
        with contextlib.suppress(QMPError, OSError):
            await self._qmp.connect(sock.dup())
            if self._spec.dump:
                await self._qmp.execute("set-action", {"panic": "pause"})

    async def restore(self, greeting: asyncio.Task[None], guest: Guest, fd: int) -> None:
        """Begin from the state in that file; what does not work ends the machine."""
        await asyncio.wait((greeting,))
        try:
            await state.load(self._qmp, fd)
            await state.go_on(self._qmp)
        except state.StateError as error:
            # A QEMU that dislikes the state ends, and its last words say more.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _QMP_S)
            self._finish(MachineEnd.LOST, f"its state cannot be loaded: {error}")
            return
        # An answer that says what went wrong, or that is not the one asked for, ends it as well.
        await guest.resume(timeout_s=self._spec.timeouts.boot_s)

    async def save(self, fd: int, at_rest: Callable[[], None]) -> None:
        """Write the state to a file, call `at_rest` while the disks stand still, and go on.

        No command may be under way. Raises `StateError`; then the machine either goes on as if
        nothing had been, or has ended.
        """
        assert self.guest is not None
        if not await self.guest.quiesce(timeout_s=self._spec.timeouts.boot_s):
            self._lose(self.guest, "the agent did not become quiet")
            raise state.StateError("the agent did not become quiet")
        saving = asyncio.create_task(state.save(self._qmp, fd))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait((saving, ended), return_when="FIRST_COMPLETED")
            if not saving.done():
                raise state.StateError("the machine ended")
            await saving
            at_rest()
        finally:
            for task in (saving, ended):
                task.cancel()
            await asyncio.wait((saving, ended))
            await self._wake(self.guest)

    async def _wake(self, guest: Guest) -> None:
        """Let a saved machine go on; one that does not is lost, by no fault of its kernel."""
        if self._ended.is_set():
            return
        try:
            await state.go_on(self._qmp)
        except state.StateError as error:
            self._lose(guest, f"it does not go on after a snapshot: {error}")
            return
        failure = await guest.resume(timeout_s=self._spec.timeouts.boot_s)
        if failure != "" and self._end is None:
            told = failure or "no answer"
            self._lose(guest, f"the agent does not go on after a snapshot: {told}")

    def _lose(self, guest: Guest, detail: str) -> None:
        """Give the machine up; whoever asks its guest hears of it at once."""
        self._finish(MachineEnd.LOST, detail)
        guest.end(Down(end=MachineEnd.LOST, detail=detail))

    async def disconnect_qmp(self) -> None:
        with contextlib.suppress(QMPError, OSError, EOFError, asyncio.TimeoutError):
            await asyncio.wait_for(self._qmp.disconnect(), _QMP_S)

    def _shutdown_reason(self) -> str:
        """Why QEMU says it ended; "" if it did not say."""
        for event in self._events.history:
            if event["event"] == "SHUTDOWN":
                data = event["data"]
                return str(data.get("reason", "")) if isinstance(data, dict) else ""
        return ""

    def _panic_event(self) -> bool:
        return any(event["event"] == "GUEST_PANICKED" for event in self._events.history)

    # --- watching --------------------------------------------------------------------------

    async def watch(
        self,
        process: asyncio.subprocess.Process,
        kill: Callable[[], Awaitable[None]],
        tee: asyncio.Task[None],
        greeting: asyncio.Task[None],
    ) -> None:
        """Until QEMU is gone: end it when a watchdog says so. Then say how it ended."""
        exited = asyncio.ensure_future(process.wait())
        try:
            while not exited.done():
                await asyncio.wait((exited,), timeout=_TICK_S)
                torn = tee.done() and tee.exception() is not None
                if not exited.done() and (torn or await self._overdue()):
                    await kill()
            status = await exited
            # Its last words may still be in the sockets.
            await asyncio.wait((tee, greeting), timeout=_QMP_S)
            await self._qmp_read_out()
            error = tee.exception() if tee.done() else None
            if isinstance(error, LabFault):
                self.fault = error
            elif error is not None:
                raise error
            self._classify(status)
        finally:
            exited.cancel()
            self._ended.set()
            if self.guest is not None and self._end is not None:
                self.guest.end(Down(end=self._end, detail=self.detail))

    async def _qmp_read_out(self) -> None:
        """Until the last event of a QEMU that is gone was taken."""
        with contextlib.suppress(asyncio.TimeoutError):
            while self._qmp.runstate is Runstate.RUNNING:
                await asyncio.wait_for(self._qmp.runstate_changed(), _QMP_S)

    async def _overdue(self) -> bool:
        """Whether a watchdog's time is over; then the hang was examined and recorded."""
        now = self._loop.time()
        limits = self._spec.timeouts
        if self._end is not None:
            return True
        if self._panicked_at is None and self._panic_event():
            self._panicked_at = now
            await self._after_panic()
            return False
        if self._panicked_at is not None:
            return now - self._panicked_at > _PANIC_GRACE_S
        if now - self._started > limits.wall_s:
            end, text = MachineEnd.WALL_CLOCK, f"still ran after {limits.wall_s:.0f} s"
        elif self.boot_s is None and now - self._started > limits.boot_s:
            end, text = MachineEnd.HUNG_BOOT, f"no hello within {limits.boot_s:.0f} s"
        elif self.boot_s is not None and now - self._heard > limits.silence_s:
            end, text = MachineEnd.HUNG_SILENT, f"silent for {limits.silence_s:.0f} s"
        elif self.boot_s is not None and now - self._heard_agent > limits.silence_s * _DEAF_FACTOR:
            silence_s = limits.silence_s * _DEAF_FACTOR
            end, text = MachineEnd.HUNG_SILENT, f"the agent was silent for {silence_s:.0f} s"
        else:
            return False
        if self._console.panic:
            end, text = MachineEnd.PANICKED, f"{self._console.panic} (and then it hung)"
        self._finish(end, text)
        await self._examine(text)
        return True

    def _classify(self, status: int) -> None:
        """Say how a QEMU ended that is gone."""
        reason = self._shutdown_reason()
        panic = self._console.panic
        if self._panic_event():
            self._finish(MachineEnd.PANICKED, panic or "pvpanic told of a panic")
        elif reason == "guest-shutdown":
            detail = "" if self._asked else "the guest powered itself off"
            self._finish(MachineEnd.POWERED_OFF, detail)
        elif panic and (reason == "guest-reset" or (not reason and status == 0)):
            # The second: it reset before QMP was up, and -no-reboot ends QEMU with 0.
            self._finish(MachineEnd.PANICKED, f"{panic} (from the console: no pvpanic)")
        elif reason == "guest-reset":
            self._finish(MachineEnd.PANICKED, "the guest reset without a word")
        else:
            said = (self._folder / "qemu.log").read_text(errors="replace").strip()
            self._finish(
                MachineEnd.QEMU_DIED,
                f"QEMU ended with status {status}: {said[-2000:] or '(silent)'}",
            )

    async def settle(self, reason: str, broken: bool) -> Down:
        """What the end of the control port means."""
        if broken:
            self._finish(MachineEnd.LOST, reason)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _PANIC_GRACE_S + _QMP_S)
        if self._end is None:
            self._finish(MachineEnd.LOST, reason)  # and the watchdog ends QEMU
        return Down(end=self.end, detail=self.detail)

    async def type_on_console(self, keys: bytes) -> None:
        """Bytes into the guest's serial line."""
        if self._serial is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._loop.sock_sendall(self._serial, keys), _QMP_S)

    # --- a hang, a panic -------------------------------------------------------------------

    async def _examine(self, reason: str) -> None:
        """Have a hung machine tell what it can, before it is killed."""
        self._console.note(f"{reason}; sysrq w, d, l and an NMI follow")
        if self.guest is not None:
            await asyncio.wait((asyncio.ensure_future(self.guest.sysrq("wdl")),), timeout=1.0)
        witness = Witness(qmp=self._qmp, console=self._console, keys=self.type_on_console)
        await witness.ask_kernel()
        told = await witness.machine_state(reason)
        if self._spec.dump:
            await self._dump()
        told += await witness.interrupt()
        write_atomically(self._folder / "hang.txt", told.encode())

    async def _dump(self) -> None:
        """Keep the guest's memory; without it the trial goes on as it would have."""
        if self.dump is not None:
            return
        path = self._folder / dump.file_name(self._spec.arch)
        complaint = await dump.take(
            self._qmp, path, arch=self._spec.arch, release=self.release or "unknown"
        )
        if complaint:
            self._console.note(f"no memory dump: {complaint}")
        else:
            self.dump = path

    async def _after_panic(self) -> None:
        """QEMU stands still in the moment of the panic if a dump is wanted: take it, and let the
        kernel say the rest."""
        if not self._spec.dump:
            return
        await self._dump()
        with contextlib.suppress(state.StateError):
            await state.go_on(self._qmp)
        self._panicked_at = self._loop.time()

    # --- begin and end ---------------------------------------------------------------------

    async def wait_for_hello(self, guest: Guest) -> None:
        """Until the agent is there or the machine is not."""
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((guest.hello, ended), return_when="FIRST_COMPLETED")
        finally:
            ended.cancel()
        if not guest.hello.done() or self._end is not None:
            return
        hello = guest.hello.result()
        if hello.failure:
            self._finish(MachineEnd.LOST, f"the agent: {hello.failure}")
            await self._ended.wait()
            return
        self.release = hello.release
        self.boot_s = self._loop.time() - self._started
        self.on_agent()
        self.guest = guest

    async def power_off(self) -> None:
        """End a machine that is no longer needed."""
        if self.guest is not None and not self._ended.is_set():
            self._asked = True
            await self.guest.poweroff()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _POWEROFF_S)
        if not self._ended.is_set():
            self._finish(MachineEnd.POWERED_OFF, "killed: it did not power off when asked")
            await self._ended.wait()


def _check_files(spec: MachineSpec) -> None:
    for path in (spec.kernel, spec.initramfs, *(disk.path for disk in spec.disks)):
        if not path.is_file():
            raise LabFault(f"there is no {path} to boot with")


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end and QEMU's. Ours belongs to asyncio later; closing it twice does no harm."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def _ended_with_us(
    stack: contextlib.AsyncExitStack, work: Coroutine[None, None, None]
) -> asyncio.Task[None]:
    """A task that is cancelled and gone when the stack unwinds."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.wait((task,))

    stack.push_async_callback(end)
    return task


@contextlib.asynccontextmanager
async def boot(
    spec: MachineSpec,
    folder: Path,
    *,
    on_line: Callable[[int, str], None] | None = None,
    state_fd: int | None = None,
) -> AsyncIterator[Machine]:
    """A machine for the length of the block: booted, or with `guest` None and its `end` set.

    With `state_fd`, a file that `Machine.save` of an equal machine wrote, it begins there.
    `folder` gets console.log, qemu.log and, after a hang, hang.txt. However the block is left,
    QEMU is dead after it; left without an exception, `end` is known after it.
    """
    _check_files(spec)
    folder.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        console = Console(folder / "console.log", on_line=on_line)
        stack.callback(console.close)
        machine = Machine(spec, folder, console)
        if state_fd is not None:
            machine.restored = True
            console.remark("restored from a snapshot; what it said as it booted is in boot.log")
        pairs = [stack.enter_context(_pair()) for _ in range(3)]
        (control, control_fd), (serial, serial_fd), (qmp, qmp_fd) = pairs
        machine.argv = qemu_argv(
            spec,
            control_fd=control_fd.fileno(),
            console_fd=serial_fd.fileno(),
            qmp_fd=qmp_fd.fileno(),
            incoming=machine.restored,
        )
        log = stack.enter_context((folder / "qemu.log").open("wb"))
        leash = await stack.enter_async_context(contextlib.AsyncExitStack())
        process = await leash.enter_async_context(
            host.spawn(
                machine.argv,
                pass_fds=[theirs.fileno() for _, theirs in pairs],
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        )
        for _, theirs in pairs:
            theirs.close()
        stack.push_async_callback(machine.disconnect_qmp)
        guest = await stack.enter_async_context(
            guests.connect(
                control,
                settle=machine.settle,
                on_activity=machine.on_agent,
                quiet=machine.restored,
            )
        )
        tee = await _ended_with_us(stack, machine.listen_to_console(serial))
        greeting = await _ended_with_us(stack, machine.connect_qmp(qmp))
        watch = await _ended_with_us(stack, machine.watch(process, leash.aclose, tee, greeting))
        if state_fd is not None:
            await _ended_with_us(stack, machine.restore(greeting, guest, state_fd))
        await machine.wait_for_hello(guest)
        if machine.guest is None:
            await watch
        if machine.fault is None:
            yield machine
            await machine.power_off()
            await watch
        if machine.fault is not None:
            raise machine.fault
