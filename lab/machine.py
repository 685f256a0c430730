"""A specification goes in; the argv of a QEMU, or a running machine and how it ended, come out.

The first half is pure. The second runs one QEMU for the length of an `async with` block, tees its
console, watches it with three watchdogs, and says truthfully how its life ended: what the kernel
did is a `MachineEnd`, never an exception. Raises `UserError` if QEMU is not installed, `LabFault`
if the lab's own disk is full or a file of the specification is absent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu.qmp import EventListener, QMPClient, QMPError, Runstate

from lab import arch as architectures
from lab import guest as guests
from lab import host
from lab.console import Console
from lab.guest import Down, Guest
from lab.model import Accelerator, LabFault, MachineEnd
from lab.store import write_atomically

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,19}")  # virtio-blk carries 20 bytes


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A virtio disk; the guest finds it as /dev/disk/by-lab/SERIAL."""

    path: Path
    format: str  # "raw" | "qcow2"
    readonly: bool
    serial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits of the three watchdogs."""

    boot_s: float  # from QEMU's start to the agent's hello
    silence_s: float  # without a byte on the console and from the agent
    wall_s: float  # of the whole machine


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    arch: str
    kernel: Path
    initramfs: Path
    disks: tuple[Disk, ...]
    memory_bytes: int
    cpus: int
    accelerator: Accelerator
    timeouts: Timeouts
    append: str = ""  # added to the kernel's command line


# --- the argv ----------------------------------------------------------------------------------


def command_line(spec: MachineSpec) -> str:
    """The kernel's command line."""
    row = architectures.arch(spec.arch)
    # A panic resets at once, and -no-reboot turns the reset into QEMU's end.
    # Without KASLR addresses in two logs can be compared, and nothing has to be relocated.
    words = [f"console={row.console}", row.cmdline, "panic=-1 nokaslr"]
    if spec.accelerator.name == "tcg":
        words.append(row.tcg_cmdline)
    words.append(spec.append)
    return " ".join(word for word in words if word)


def _disk_argv(number: int, disk: Disk) -> list[str]:
    if not _SERIAL.fullmatch(disk.serial):
        raise LabFault(f"not a disk serial: {disk.serial!r}")
    name = str(disk.path).replace(",", ",,")
    drive = f"if=none,id=disk{number},file={name},format={disk.format}"
    # Nobody reads these disks after a crash of the host: no flush has to reach the platter.
    drive += ",cache=unsafe,discard=unmap"
    if disk.readonly:
        drive += ",readonly=on"
    device = f"virtio-blk-pci,drive=disk{number},serial={disk.serial}"
    return ["-drive", drive, "-device", device]


def qemu_argv(
    spec: MachineSpec, *, control_fd: int, console_fd: int, qmp_fd: int
) -> tuple[str, ...]:
    """The whole command. The three descriptors are connected sockets that QEMU inherits."""
    row = architectures.arch(spec.arch)
    threads = ",thread=multi" if spec.accelerator.name == "tcg" else ""
    argv = [
        *(row.qemu, "-name", "lab", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-action", "panic=none", "-sandbox", _SANDBOX, "-nic", "none"),
        *(
            "-machine",
            row.board,
            "-accel",
            f"{spec.accelerator.name}{threads}",
        ),
        *("-cpu", spec.accelerator.cpu, "-smp", str(spec.cpus)),
        *("-m", f"{spec.memory_bytes >> 20}M"),
        *("-kernel", str(spec.kernel), "-initrd", str(spec.initramfs)),
        *("-append", command_line(spec)),
        *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=control,fd={control_fd}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=control,name=lab.control"),
        *("-device", "virtio-rng-pci", "-device", "pvpanic-pci"),
    ]
    for number, disk in enumerate(spec.disks):
        argv += _disk_argv(number, disk)
    return tuple(argv)


# --- a running machine -------------------------------------------------------------------------


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
        self.boot_s: float | None = None
        self.detail = ""  # more about the end: the panic's line, QEMU's complaint
        self.fault: LabFault | None = None

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

    # --- a hang ----------------------------------------------------------------------------

    async def _examine(self, reason: str) -> None:
        """Have a hung machine tell what it can: hang.txt, and the kernel's answers to sysrq."""
        self._console.note(f"{reason}; sysrq w, l, d follow")
        parts = [f"{reason}\n"]
        await self._ask_kernel()
        for title, command in (
            ("query-status", "query-status"),
            ("info registers -a", "human-monitor-command"),
        ):
            arguments = {"command-line": title} if command == "human-monitor-command" else {}
            answer = await self._execute(command, **arguments)
            text = answer if isinstance(answer, str) else json.dumps(answer, indent=1)
            parts.append(f"--- {title}\n{text}\n".replace("\r", ""))
        write_atomically(self._folder / "hang.txt", "\n".join(parts).encode())

    async def _ask_kernel(self) -> None:
        """Sysrq over the serial line: it needs neither the agent nor any process."""
        if self._serial is None:
            return
        if self.guest is not None:
            await asyncio.wait((asyncio.ensure_future(self.guest.sysrq("wld")),), timeout=1.0)
        for key in b"wld":
            await self._execute("chardev-send-break", id="console")
            await self.type_on_console(bytes([key]))
            before = -1
            for _ in range(20):  # at most 2 s a key; less if it prints nothing more
                if self._console.received_bytes == before:
                    break
                before = self._console.received_bytes
                await asyncio.sleep(0.1)

    async def _execute(self, command: str, **arguments: object) -> object:
        """A QMP command; what went wrong is the answer then."""
        try:
            return await asyncio.wait_for(self._qmp.execute(command, arguments or None), _QMP_S)
        except (TimeoutError, QMPError, OSError, EOFError) as error:
            return f"no answer: {type(error).__name__} {error}"

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
    spec: MachineSpec, folder: Path, *, on_line: Callable[[int, str], None] | None = None
) -> AsyncIterator[Machine]:
    """A machine for the length of the block: booted, or with `guest` None and its `end` set.

    `folder` gets console.log, qemu.log and, after a hang, hang.txt. However the block is left,
    QEMU is dead after it; left without an exception, `end` is known after it.
    """
    _check_files(spec)
    folder.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        console = Console(folder / "console.log", on_line=on_line)
        stack.callback(console.close)
        machine = Machine(spec, folder, console)
        pairs = [stack.enter_context(_pair()) for _ in range(3)]
        (control, control_fd), (serial, serial_fd), (qmp, qmp_fd) = pairs
        machine.argv = qemu_argv(
            spec,
            control_fd=control_fd.fileno(),
            console_fd=serial_fd.fileno(),
            qmp_fd=qmp_fd.fileno(),
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
            guests.connect(control, settle=machine.settle, on_activity=machine.on_agent)
        )
        tee = await _ended_with_us(stack, machine.listen_to_console(serial))
        greeting = await _ended_with_us(stack, machine.connect_qmp(qmp))
        watch = await _ended_with_us(stack, machine.watch(process, leash.aclose, tee, greeting))
        await machine.wait_for_hello(guest)
        if machine.guest is None:
            await watch
        if machine.fault is None:
            yield machine
            await machine.power_off()
            await watch
        if machine.fault is not None:
            raise machine.fault
