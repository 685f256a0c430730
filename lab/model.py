"""The nouns that are stored or sent, and the three kinds of failure. Values in, values out.

Every dataclass here round-trips through JSON (`encode`, `decode`); a test walks over all of them.
Durations end in `_s` (seconds, float), sizes in `_bytes` (int).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


# --- failure -----------------------------------------------------------------------------------


class LabError(Exception):
    """Something the lab can explain: one sentence, and the way out."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(LabError):
    """What the user asked for cannot be done as asked (exit 2)."""


class LabFault(LabError):
    """The lab or its host broke: no statement about any kernel follows (exit 3)."""


class ExitCode(IntEnum):
    """Exit status of every `lab` command, as the manual lists it."""

    CLEAN = 0
    REGRESSED = 1
    USAGE = 2
    LAB_FAULT = 3
    INCONCLUSIVE = 4


# --- progress ----------------------------------------------------------------------------------


class EventKind(StrEnum):
    STARTED = "started"
    PROGRESS = "progress"
    DONE = "done"
    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of progress. `step` is stable over the life of a step ("build base x86_64")."""

    kind: EventKind
    step: str
    text: str = ""
    fraction: float | None = None  # 0..1 where the end is known


Emit = Callable[[Event], None]


# --- the series --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file that a patch touches; paths are relative to the kernel tree."""

    old_path: str | None  # None: the file is new
    new_path: str | None  # None: the file is removed
    added: int
    removed: int
    # Line numbers (1-based, in the new file) of the lines that the patch adds.
    added_lines: tuple[int, ...] = ()

    @property
    def path(self) -> str:
        path = self.new_path or self.old_path
        assert path is not None
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One mail of a series, as `git am` takes it."""

    name: str  # the file it came from, or NNNN-subject-slug.patch
    subject: str  # without the [PATCH n/m] prefix
    author: str
    mail: str  # the whole mail; str by surrogateescape of UTF-8
    sha256: str  # of `mail`
    changes: tuple[FileChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """An ordered, validated set of patches."""

    title: str
    origin: str  # what the user named: directory, mbox, range, message-id
    patches: tuple[Patch, ...]
    digest: str  # sha256 over the patches in order
    kernel: str | None = None  # the kernel it says it is for ("debian:6.1")
    fragment: str = ""  # Kconfig lines that only the patched side gets (series.toml)
    cover: str = ""  # text of the cover letter, if there is one
    suites: tuple[str, ...] = ()  # suites that series.toml asks for
    # Names in /proc/vmstat that must rise on the patched side: a run in which one of them stays 0
    # has not tested the series (series.toml).
    counters: tuple[str, ...] = ()


class Side(StrEnum):
    BASE = "base"
    PATCHED = "patched"


# --- kernels -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A kernel tree at one commit, in a git repository of the lab's own."""

    name: str  # what the user named: debian:6.1, /home/u/linux@v6.1, ...
    git_dir: Path  # bare; may borrow objects from the user's repository, never writes to it
    commit: str
    tree: str  # id of the git tree: the same sources give the same id
    version: str  # from the Makefile: "6.1.192"
    provenance: str  # package and version with digest, or the git description
    dirty: bool = False  # the user's tree has uncommitted changes, which are not in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """A compiler's or linker's message."""

    severity: str  # "error" | "warning"
    file: str  # relative to the kernel tree where it lies in it
    line: int  # 0 if the tool gave none
    message: str
    text: str  # the message with its context, as printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A built kernel, whole: its folder appeared by one rename."""

    key: str  # content key: source tree, patches, config, toolchain
    arch: str
    side: Side
    release: str  # "6.1.192-lab"
    folder: Path
    image: Path  # what QEMU boots
    vmlinux: Path  # with debug information
    config: Path
    image_sha256: str
    compiler: str
    build_s: float
    make_ran: bool  # False: taken from the cache
    seeded_from: str | None  # key of the build whose objects it started from
    compiled: int  # objects that this build compiled
    sandbox: str  # "bwrap" | "none: <reason>"
    warnings: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFailure:
    """A kernel that does not build: a finding about the source, not a fault of the lab."""

    key: str
    arch: str
    side: Side
    phase: str  # "config" | "compile" | "link"
    first_error: Diagnostic
    log: Path
    patch: str | None = None  # name of the first patch after which it fails, once known
    build_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What runs guest code, chosen by a timed real boot."""

    name: str  # "kvm" | "tcg"
    cpu: str  # QEMU's -cpu
    boot_s: float  # seconds from start to the agent's hello, in that boot
    tried: tuple[str, ...] = ()  # what else was tried, and how it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class RootImage:
    """A root file system, by digest."""

    name: str
    arch: str
    path: Path  # raw ext4, never booted writable: trials use an overlay
    sha256: str
    size_bytes: int
    packages: int
    recipe_sha256: str


# --- splats ------------------------------------------------------------------------------------


class FrameKind(StrEnum):
    PC = "pc"  # the instruction that trapped, or that was interrupted
    RETURN = "return"  # where a call will come back to: one past the call
    GUESS = "guess"  # "?": a word on the stack that looks like one
    NAMED = "named"  # named in a sentence: lockdep's "at:", KASAN's "in"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFrame:
    """One place in the code that a splat names, and its place in the source where that is known.

    A function that the compiler inlined stands before the one that it was inlined into.
    """

    index: int  # of the line in `Splat.text`, from 0
    function: str  # as printed; of an inlined one its own name
    offset: int
    size: int  # of the function; 0: the log does not say
    kind: FrameKind
    module: str = ""  # "" in the kernel proper
    file: str = ""  # relative to the kernel tree; "" if not symbolised
    line: int = 0
    inlined: bool = False  # into the next frame
    note: str = ""  # why there is no place in the source
    patches: tuple[int, ...] = ()  # of the series, from 1, that changed the function
    line_patch: int = 0  # the one that added this very line; 0: none did


@dataclass(frozen=True, slots=True, kw_only=True)
class Splat:
    """One problem report of a kernel, as found in a console log."""

    kind: str  # "lockdep-circular", "kasan", "warning", ... (lab.splat.kinds)
    title: str
    first_line: int  # 1-based line numbers in the log, inclusive
    last_line: int
    function: str = ""  # the function to blame
    file: str = ""  # the source file to blame, where the log says so
    fingerprint: str = ""  # equal for equal bugs over boots and builds; "" if corrupted
    corrupted: str = ""  # why it may not be whole; "" if it is
    fatal: bool = False  # the machine cannot be trusted to go on
    locks: tuple[str, ...] = ()
    text: str = ""
    frames: tuple[CodeFrame, ...] = ()  # empty: nobody had its kernel at hand
    allowed: str = ""  # why the allow-list lets it pass; "": it does not


# --- trials ------------------------------------------------------------------------------------


class CaseState(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CRASHED = "crashed"  # the machine went down while it ran
    HUNG = "hung"  # a watchdog ended it
    TIMEOUT = "timeout"  # it ran out of its own time; the machine lived
    MISSING = "missing"  # planned, and nothing was heard of it
    # It ended well and proves nothing: lockdep was off, no failure was injected, nothing was done.
    UNCOVERED = "uncovered"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    name: str  # "faultstress/ext4/truncate"
    state: CaseState
    duration_s: float = 0.0
    message: str = ""  # why, for everything but passed
    metrics: dict[str, float] = field(default_factory=dict)
    splats: tuple[Splat, ...] = ()
    log: str = ""  # file of the trial's folder, relative to it


# Between the name of a case and that of one of its parts: what a suite learns only from the run.
PART = ":"


def case_of(name: str) -> str:
    """The planned case that a case or a part of one belongs to."""
    return name.partition(PART)[0]


class MachineEnd(StrEnum):
    """How the life of a trial's machine ended."""

    POWERED_OFF = "powered-off"
    PANICKED = "panicked"
    HUNG_BOOT = "hung-boot"
    HUNG_SILENT = "hung-silent"
    WALL_CLOCK = "wall-clock"
    QEMU_DIED = "qemu-died"
    LOST = "lost"  # the guest broke the protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFiles:
    """What a kernel said of its locks at the end of a trial: gzip files in the trial's folder."""

    files: tuple[str, ...]  # relative to the trial's folder; () if there are none
    alive: bool | None  # lockdep was still on when they were read; None: not told
    full: tuple[str, ...]  # tables of lockdep that had no room left: "lock-classes: 8191 of 8192"
    placed: int  # lock classes that can be told apart by where their keys lie
    duration_s: float  # what reading them cost
    missing: str = ""  # why some or all are not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one trial runs. Self-contained: with its artefacts it runs anywhere."""

    arch: str
    side: Side
    profile: str  # name of the set of fragments
    suites: tuple[str, ...]
    cases: tuple[str, ...]  # planned case names
    kernel_key: str
    image_sha256: str  # "" without a root image
    repeat: int  # 0-based
    seed: int
    memory_bytes: int
    cpus: int
    shard: int = 0  # 0-based: which part of its repeat's cases
    shards: int = 1
    # Files of the guest (debugfs, sysctl, sysfs) and what is written there before the first case.
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The record of one cell that ran."""

    id: str
    cell: Cell
    end: MachineEnd
    accelerator: Accelerator
    started: str  # ISO 8601, UTC
    boot_s: float | None  # None: it never booted
    guest_s: float
    wall_s: float
    results: tuple[CaseResult, ...]
    boot_splats: tuple[Splat, ...] = ()  # before the first case or after the last
    vmstat: dict[str, int] = field(default_factory=dict)
    lockdep_alive: bool | None = None  # None: this kernel has no lockdep
    console: str = "console.log"
    note: str = ""
    locks: LockFiles | None = None  # None: of a lab that did not read them
    restored: bool = False  # it began from a snapshot: `boot_s` is the restore's
    dump: str = ""  # file of the trial's folder with the guest's memory; "" if none was kept
    host: str = ""  # name of the worker that ran it; "": the lab's own host


# --- verdict -----------------------------------------------------------------------------------


class Comparison(StrEnum):
    SAME_PASS = "same-pass"
    SAME_FAIL = "same-fail"
    REGRESSED = "regressed"
    FIXED = "fixed"
    FLAKY = "flaky"
    SUSPECT = "suspect"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """Verdict of a run; there is no default."""

    CLEAN = "clean"
    REGRESSED = "regressed"
    INCONCLUSIVE = "inconclusive"
    LAB_FAULT = "lab-fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts over the repeats of one case on one side."""

    passed: int = 0
    failed: int = 0  # failed, crashed, hung, timeout
    skipped: int = 0
    unknown: int = 0  # missing, uncovered: proves nothing either way

    @property
    def decided(self) -> int:
        return self.passed + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What earlier runs saw of a case or splat on their bases, on the same ground as this run."""

    failed: int  # of a splat: repeats that showed it
    decided: int
    runs: int
    versions: tuple[str, ...]  # of these bases, newest run first


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseVerdict:
    name: str
    arch: str
    profile: str
    base: Tally
    patched: Tally
    comparison: Comparison
    p_value: float | None  # one-sided Fisher, where both sides have counts
    reason: str
    past: Past | None = None  # None: no earlier run that may be compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something the series does that the base does not; each one alone makes a run regressed."""

    kind: str  # "build", "boot", "splat", "lock-cycle", "case", "compiler-warning", "speed"
    title: str
    detail: str
    arch: str
    patch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplatVerdict:
    fingerprint: str
    kind: str
    title: str
    base: int  # trials of the base that showed it
    base_trials: int
    patched: int
    patched_trials: int
    comparison: Comparison
    arch: str = ""
    past: Past | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedVerdict:
    """A number that passed runs of a case measured, on both sides."""

    arch: str
    case: str
    metric: str
    base: tuple[float, ...]
    patched: tuple[float, ...]
    ratio: float | None  # patched / base; None: not both above 0
    low: float | None  # of its 95 % interval; None: one run of a side says nothing of its noise
    high: float | None
    slower: bool  # by the rule in docs/verdict.md: a finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    outcome: Outcome
    sentence: str  # the answer in one sentence
    cases: tuple[CaseVerdict, ...]
    findings: tuple[Finding, ...]
    splats: tuple[SplatVerdict, ...]
    reasons: tuple[str, ...] = ()  # why it is inconclusive, or what was left out
    speeds: tuple[SpeedVerdict, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that a run depends on: what `lab replay` needs. Saved before the first risky step."""

    run: str
    created: str
    lab_version: str
    command: tuple[str, ...]
    source: Source
    series_digest: str
    series_title: str
    series_origin: str
    patch_names: tuple[str, ...]
    archs: tuple[str, ...]
    profile: str
    fragments: dict[str, str]  # file name -> sha256
    suites: tuple[str, ...]
    cases: tuple[str, ...]
    repeats: int
    max_repeats: int
    seed: int
    plan_digest: str
    host: dict[str, str]
    tools: dict[str, str]
    notes: tuple[str, ...] = ()  # what a reader must know besides, from before the first build
    config: str = ""  # the whole configuration in force, as JSON; "": of a lab that did not keep it
    each_patch: bool = False  # every prefix of the series was to be built and booted, too
    replays: str = ""  # the run that this one repeats
    coverage: bool = False  # which lines of the series run was to be measured, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the wall time of a run went, seconds."""

    wall_s: float
    make_s: float
    guest_s: float  # from QEMU's start to its end, all machines
    setup_s: float  # source and image, when they had to be made
    other_s: float  # the lab itself


class PrefixState(StrEnum):
    """How far the kernel with the first patches of a series got."""

    PASSED = "passed"
    BROKEN = "broken"
    UNKNOWN = "unknown"  # not built, not booted, or a result was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixResult:
    """The source with the first `number` patches, on one architecture."""

    number: int  # 1-based
    patch: str  # name of the last one
    subject: str
    arch: str
    state: PrefixState
    build_s: float  # 0.0: from the cache
    compiled: int
    boot_s: float | None
    broken: str = ""  # "build" | "warning" | "boot" | "case" | "splat"; "" if it is not
    reason: str = ""
    warnings: tuple[Diagnostic, ...] = ()  # new ones in files that the patches so far touch
    log: str = ""  # build log or console


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparator:
    """Another kernel in the cases of a run. No verdict rests on it."""

    name: str  # what the user named: debian:6.12
    version: str
    arch: str
    kernel_key: str = ""
    missing: str = ""  # why there are no trials
    trials: tuple[Trial, ...] = ()  # their cells say "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A finished run, whole."""

    manifest: Manifest
    kernels: tuple[Kernel, ...]
    failures: tuple[BuildFailure, ...]
    images: tuple[RootImage, ...]
    trials: tuple[Trial, ...]
    verdict: Verdict
    timing: Timing
    finished: str
    prefixes: tuple[PrefixResult, ...] = ()  # of --each-patch: empty if it was not asked for
    comparators: tuple[Comparator, ...] = ()  # of --comparator, one for each architecture


# --- selftest ----------------------------------------------------------------------------------


class Grade(StrEnum):
    """What a planted fault, or the clean kernel beside it, says about the lab's detectors."""

    CAUGHT = "caught"
    MISSED = "missed"  # by its detector, within its time, in its case
    QUIET = "quiet"  # a clean kernel in which nothing fired
    NOISY = "noisy"  # a clean kernel in which something did
    INCONCLUSIVE = "inconclusive"  # it could not be built, booted or run


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult:
    """One planted fault, or (QUIET, NOISY) what ran for it on the kernel without it."""

    name: str
    title: str
    on: str  # the series it stands on, or "base"
    profile: str
    arch: str
    expect: tuple[str, ...]
    grade: Grade
    reason: str  # in one sentence
    detector: str = ""  # what caught it, one of `expect`
    case: str = ""  # that it was charged to
    said: str = ""  # the splat's title, or the case's message
    within_s: float = 0.0  # of guest time, boots not counted: an upper bound
    limit_s: float = 0.0
    tries: int = 0
    also: tuple[str, ...] = ()  # titles of other splats
    build_s: float = 0.0  # 0.0: from the cache
    kernel_key: str = ""
    trials: tuple[str, ...] = ()  # folders


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestRecord:
    """A finished selftest, whole."""

    run: str
    created: str
    finished: str
    lab_version: str
    command: tuple[str, ...]
    digest: str  # of all that it depends on
    archs: tuple[str, ...]
    seed: int
    results: tuple[ControlResult, ...]
    kernels: tuple[Kernel, ...]
    failures: tuple[BuildFailure, ...]
    trials: tuple[Trial, ...]
    wall_s: float


# --- JSON --------------------------------------------------------------------------------------


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"cannot store {type(value)!r}")


def _decode_hook(kind: type, value: Any) -> Any:
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(f"cannot load {kind!r}")


def encode(value: Any) -> bytes:
    """The value as JSON, indented, with a final newline."""
    raw = msgspec.json.encode(value, enc_hook=_encode_hook)
    return msgspec.json.format(raw, indent=1) + b"\n"


def decode(raw: bytes | str, kind: type[T]) -> T:
    """The inverse of `encode`. Raises `LabFault` on anything that is not a `kind`."""
    try:
        return msgspec.json.decode(raw, type=kind, dec_hook=_decode_hook)
    except msgspec.MsgspecError as error:
        raise LabFault(f"stored {kind.__name__} cannot be read: {error}") from error
