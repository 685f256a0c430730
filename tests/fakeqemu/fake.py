#!/usr/bin/env python3
"""A process that stands in for QEMU: `-initrd` is the agent of this host, `-kernel` a mode.

It serves QMP and the console on the descriptors that it is given, and runs the real agent on the
control port. Modes (the first word of the "kernel"):

    ok              boots, serves, powers off when asked
    gate FILE CONSOLE   boots when there is such a file, then as follow CONSOLE
    hang            says a few lines and never boots
    die             complains on stderr and ends with status 3
    garbage         sends bytes that are no frames on the control port
    flood N         prints N megabytes on the console before it boots
    panic           boots; the first line on its console's input makes it panic, with pvpanic
    panic-plain     panics while it boots, without pvpanic
    follow FILE     boots; what is appended to FILE comes on its console, and a panic there ends it
    silent          boots, then neither console nor agent is heard of again
    deaf            boots, then the agent stops but the console talks on
    kvm-dies        with -accel kvm it aborts, else ok
    kvm-spins       with -accel kvm it never boots, else ok
    off-early       powers off before it has said hello
    off-between     boots, then powers off
    off-half        boots, then powers off in the middle of a message
    failed-root     the agent cannot set the guest up

It can be saved and restored: the state it writes is a line of text, which it insists on when it
comes back. Then the second word of the "kernel" counts:

    stale           the port has a frame from before the snapshot in it
    other           the answer is one that another machine was asked for
    mute            no answer comes
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

STATE = b"the state of a fake machine\n"
PANIC = "[    1.5] Kernel panic - not syncing: planted by a test"


class Fake:
    def __init__(self, argv: list[str]) -> None:
        chardevs = [argv[i + 1] for i, word in enumerate(argv) if word == "-chardev"]
        self.fds = {}
        for text in chardevs:
            fields = dict(part.partition("=")[::2] for part in text.split(","))
            self.fds[fields["id"]] = int(fields["fd"])
        self.mode, *self.words = Path(argv[argv.index("-kernel") + 1]).read_text().split()
        self.accel = argv[argv.index("-accel") + 1].partition(",")[0]
        self.agent_path = argv[argv.index("-initrd") + 1]
        self.qmp = socket.socket(fileno=self.fds["qmp"])
        self.console = socket.socket(fileno=self.fds["console"])
        self.agent: subprocess.Popen[bytes] | None = None
        self.requests = ""
        self.followed = 0  # bytes of the file that were taken
        self.passed: list[int] = []
        self.incoming = "-incoming" in argv
        self.loaded = False
        self.finishing = 0  # so often it is still at its end when asked

    def say(self, line: str) -> None:
        self.console.sendall(line.encode() + b"\r\n")

    def send(self, message: object) -> None:
        self.qmp.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: object) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def greet(self) -> None:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"}
        self.send({"QMP": {"version": version, "capabilities": []}})

    def answer(self) -> None:
        data, fds, _, _ = socket.recv_fds(self.qmp, 65536, 4)
        self.passed += fds
        if not data:
            sys.exit(1)
        self.requests += data.decode()
        while self.requests.strip():
            # Requests follow each other without a separator.
            request, end = json.JSONDecoder().raw_decode(self.requests.lstrip())
            self.requests = self.requests.lstrip()[end:]
            result: object = {}
            if request["execute"] == "query-status":
                result = {"status": "running", "running": True}
                if self.finishing:
                    self.finishing -= 1
                    result = {"status": "finish-migrate", "running": False}
            if request["execute"] == "cont" and self.finishing:
                error = {"class": "GenericError", "desc": "Migration is not finalized yet"}
                self.send({"error": error, "id": request.get("id")})
                continue
            if request["execute"] == "human-monitor-command":
                result = f"CPU#0 answered {request['arguments']['command-line']}\r\n"
            if request["execute"] == "chardev-send-break":
                self.say("fake: break")
            if request["execute"] == "inject-nmi":
                self.say("fake: NMI")
            self.send({"return": result, "id": request.get("id")})
            if request["execute"] in ("migrate", "migrate-incoming"):
                self.migrate(incoming=request["execute"] != "migrate")
            if request["execute"] == "cont" and self.loaded:
                self.loaded = False
                self.go_on()

    def migrate(self, *, incoming: bool) -> None:
        fd = self.passed.pop()
        if incoming and os.read(fd, 1000) != STATE:
            sys.stderr.write("fake: load of migration failed\n")
            sys.exit(1)
        if not incoming:
            os.write(fd, STATE)
        self.loaded = incoming
        # QEMU tells of the end before it has left the state in which it cannot go on.
        self.finishing = 0 if incoming else 2
        self.event("MIGRATION", status="completed")

    def go_on(self) -> None:
        match self.words:
            case ["stale"]:
                self.frame(0x88, struct.pack("<Q", 1))
            case ["other"]:
                self.frame(0x8B, struct.pack("<QQ", 1, 1) + b"fake\0\0")
            case ["mute"]:
                return
        self.start_agent("--quiet")

    def start_agent(self, *options: str) -> None:
        fd = self.fds["control"]
        argv = [self.agent_path, "--fd", str(fd), *options]
        self.agent = subprocess.Popen(argv, pass_fds=[fd])
        self.say("lab: agent ready")

    def frame(self, kind: int, payload: bytes) -> None:
        header = struct.pack("<IHHII", 0x5742414C, kind, 0, 0, len(payload))
        os.write(self.fds["control"], header + payload)

    def hello(self, failure: str) -> None:
        payload = struct.pack("<IQ", 2, 1) + b"fake\0" + failure.encode() + b"\0"
        self.frame(0x81, payload)

    def boot(self) -> None:
        if self.incoming:
            return
        if self.mode == "kvm-dies" and self.accel == "kvm":
            sys.stderr.write("qemu-system-x86_64: error: failed to set MSR 0x10a\nAborted\n")
            sys.exit(134)
        self.say("[    0.1] Linux version fake")
        match self.mode:
            case "die":
                sys.stderr.write("fake: could not set up the board\n")
                sys.exit(3)
            case "hang":
                pass
            case "gate":
                self.answer()  # the greeting; then nothing is heard of it
                while not Path(self.words[0]).exists():
                    time.sleep(0.02)
                self.mode, self.words = "follow", self.words[1:]
                self.start_agent()
            case "kvm-spins" if self.accel == "kvm":
                pass
            case "garbage":
                os.write(self.fds["control"], b"not a frame, not at all")
            case "off-early":
                self.answer()  # a kernel takes longer to come to this than QMP to be up
                self.off()
            case "failed-root":
                self.hello("cannot mount the root disk root: Invalid argument")
            case "panic-plain":
                self.say(PANIC)
                self.event("SHUTDOWN", guest=True, reason="guest-reset")
                sys.exit(0)
            case "flood":
                block = (b"x" * 99 + b"\n") * 10000
                for _ in range(int(self.words[0])):
                    self.console.sendall(block)
                self.start_agent()
            case _:
                self.start_agent()

    def off(self) -> None:
        self.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        sys.exit(0)

    def follow(self) -> None:
        file = Path(self.words[0])
        text = file.read_text() if file.exists() else ""
        fresh = text[self.followed : text.rfind("\n") + 1]
        self.followed += len(fresh)
        for line in fresh.splitlines():
            if "Kernel panic" in line:
                self.panic()
            self.say(line)

    def panic(self) -> None:
        self.say(PANIC)
        self.event("GUEST_PANICKED", action="run")
        self.say("[    1.6] ---[ after pvpanic ]---")
        self.event("SHUTDOWN", guest=True, reason="guest-reset")
        sys.exit(0)

    def serve(self) -> None:
        booted = time.monotonic()
        # Keys that nobody reads: to its peer such a console ends with a reset.
        sources = [self.qmp, self.console] if self.mode == "panic" else [self.qmp]
        while True:
            readable, _, _ = select.select(sources, [], [], 0.05)
            if self.qmp in readable:
                self.answer()
            if self.console in readable and self.console.recv(64):
                self.panic()
            if self.agent is None:
                continue
            if self.mode == "follow":
                self.follow()
            if self.mode in ("silent", "deaf") and time.monotonic() - booted > 0.3:
                self.agent.send_signal(signal.SIGSTOP)
                if self.mode == "deaf":
                    self.say("watchdog: BUG: soft lockup - CPU#0 stuck")
            if self.mode in ("off-between", "off-half") and time.monotonic() - booted > 0.5:
                self.agent.kill()
                if self.mode == "off-half":
                    os.write(self.fds["control"], struct.pack("<IHHII", 0x5742414C, 0x88, 0, 0, 8))
                self.off()
            if self.agent.poll() is not None:
                self.off()


def main() -> None:
    if "--version" in sys.argv:
        sys.stdout.write("QEMU emulator version 0.0.1 (fake)\n")
        return
    fake = Fake(sys.argv[1:])
    fake.greet()
    fake.boot()
    fake.serve()


if __name__ == "__main__":
    main()
