"""`Event`s go in, lines or a live display on stderr come out. Nothing of it is a result."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from lab.model import Event, EventKind
from lab.prose import printable, span

# A step that says nothing for this long is mentioned again, so that a CI log shows life.
_REPEAT_S = 30.0
_MARKS = {EventKind.NOTE: "note", EventKind.WARNING: "warning"}


class Progress(Protocol):
    """What a command emits its events to, while it runs."""

    def emit(self, event: Event) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class NoProgress:
    """`--quiet`: warnings only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def emit(self, event: Event) -> None:
        if event.kind is EventKind.WARNING:
            print(f"warning: {printable(event.text)}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class PlainProgress:
    """For logs: a line when a step starts and one when it ends, with the time since the start."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._started: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        now = self._clock()
        text = printable(event.text)
        match event.kind:
            case EventKind.STARTED:
                self._started[event.step] = now
                self._say(now, event.step, text or "started")
            case EventKind.DONE:
                began = self._started.pop(event.step, None)
                took = "" if began is None else f" ({span(now - began)})"
                self._say(now, event.step, f"{text or 'done'}{took}")
            case EventKind.PROGRESS:
                if now - self._told.get(event.step, now) >= _REPEAT_S:
                    share = "" if event.fraction is None else f"{event.fraction:.0%} "
                    self._say(now, event.step, f"{share}{text}".rstrip())
                self._told.setdefault(event.step, now)
            case EventKind.NOTE | EventKind.WARNING:
                self._say(now, event.step, f"{_MARKS[event.kind]}: {text}")

    def _say(self, now: float, step: str, text: str) -> None:
        self._told[step] = now
        since = int(now - self._began)
        clock = f"{since // 60:3}:{since % 60:02}"
        print(f"{clock}  {printable(step)}: {text}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class TerminalProgress:
    """For people: running steps as live bars, finished ones as lines above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.fields[step]}", style="bold"),
            BarColumn(bar_width=18),
            TextColumn("{task.fields[text]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=False,
        )
        self._tasks: dict[str, TaskID] = {}

    def emit(self, event: Event) -> None:
        text = printable(event.text)
        match event.kind:
            case EventKind.STARTED | EventKind.PROGRESS:
                task = self._task(event.step)
                total = None if event.fraction is None else 1.0
                self._live.update(task, total=total, completed=event.fraction, text=text[:40])
            case EventKind.DONE:
                self._finish(event.step, text)
            case EventKind.NOTE:
                self._console.print(
                    Text.assemble(("• ", "cyan"), f"{printable(event.step)}: ", text)
                )
            case EventKind.WARNING:
                self._console.print(Text.assemble(("! ", "yellow"), text))

    def _task(self, step: str) -> TaskID:
        if step not in self._tasks:
            self._tasks[step] = self._live.add_task(step, total=None, step=printable(step), text="")
        return self._tasks[step]

    def _finish(self, step: str, text: str) -> None:
        took = ""
        if step in self._tasks:
            task = self._tasks.pop(step)
            took = span(self._live.tasks[self._live.task_ids.index(task)].elapsed or 0.0)
            self._live.remove_task(task)
        self._console.print(
            Text.assemble(
                ("✓ ", "green"), (printable(step), "bold"), f"  {text}", (f"  {took}", "dim")
            )
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def progress(*, quiet: bool, stream: TextIO, live: bool | None = None) -> Progress:
    """The renderer that fits `stream`: live for a terminal, lines otherwise, or next to nothing."""
    if quiet:
        return NoProgress(stream)
    console = Console(file=stream, soft_wrap=False)
    if console.is_terminal if live is None else live:
        return TerminalProgress(console)
    return PlainProgress(stream)
