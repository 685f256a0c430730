"""Arguments go in, one library call is made, a renderer prints, an exit code comes out.

stdout is the result, stderr is progress. Exit codes are `lab.model.ExitCode`; an interrupt is 130.
"""

from __future__ import annotations

import asyncio
import json
import platform
import signal
import sys
import traceback
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

import lab
from lab import (
    campaign,
    config,
    debug,
    desk,
    doctor,
    host,
    image,
    lockdesk,
    model,
    selftest,
    symbols,
)
from lab.arch import ARCHS
from lab.arch import arch as arch_row
from lab.config import Config
from lab.lockgraph.diff import LockDiff
from lab.lockgraph.focus import suggest
from lab.model import ExitCode, LabError, Outcome, RunRecord, Side, UserError
from lab.report import html, junit, locks, terminal
from lab.report import selftest as selftest_report
from lab.splat import reading
from lab.store import Cache, write_atomically
from lab.subject import Request
from lab.suites import registry

_EXIT = {
    Outcome.CLEAN: ExitCode.CLEAN,
    Outcome.REGRESSED: ExitCode.REGRESSED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Outcome.LAB_FAULT: ExitCode.LAB_FAULT,
}
_INTERRUPTED = 130
_GIT_ABORT = 128  # git bisect run stops at it, and above


@dataclass(slots=True)
class Context:
    """What every command shares."""

    config: Config
    out: Console
    quiet: bool

    @property
    def cache(self) -> Cache:
        return Cache(root=self.config.paths.cache_dir)

    def progress(self) -> terminal.Progress:
        return terminal.progress(quiet=self.quiet)


def _override(base: Config, **tables: dict[str, Any]) -> Config:
    """`base` with the options that were given on the command line (None: not given)."""
    changed: dict[str, Any] = {}
    for table, values in tables.items():
        given = {key: value for key, value in values.items() if value not in (None, ())}
        if table == "top":
            changed.update(given)
        elif given:
            changed[table] = msgspec.structs.replace(getattr(base, table), **given)
    return msgspec.structs.replace(base, **changed)


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    """--arch a,b --arch c -> (a, b, c)."""
    return tuple(part for value in values for part in value.split(",") if part)


def _one_arch(context: Context, given: str | None) -> str:
    """For one machine: as given, else this host's if it is configured, else the first."""
    if given:
        return given
    names = context.config.arch
    native = [name for name in names if arch_row(name).machine == platform.machine()]
    return (*native, *names)[0]


# --- options that several commands share -------------------------------------------------------

_kernel = click.option(
    "--kernel",
    metavar="TREE",
    help="debian:6.1, debian:6.12, a git tree (DIR or DIR@REF) or a tarball. Never written to. "
    "Default: what the series asks for, else debian:6.1.",
)
_arch = click.option(
    "--arch",
    multiple=True,
    metavar="ARCH[,ARCH]",
    help=f"{', '.join(ARCHS)}. Default: what lab.toml lists, else x86_64 and arm64.",
)
_profile = click.option(
    "--profile", metavar="NAME", help="Set of Kconfig fragments: plain, lockdep, kasan."
)
_patch = click.option(
    "--patch",
    metavar="SERIES",
    help="A directory of patches (with or without a quilt series file), an mbox, a git range "
    "BASE..TOPIC, or a lore message-id.",
)
_jobs = click.option("--jobs", "-j", type=click.IntRange(1), help="Parallel make jobs.")
_parallel = click.option(
    "--parallel",
    type=click.IntRange(1),
    metavar="N",
    help="Machines at once. Default: as many as cores and memory carry.",
)
_accel = click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), help="Default: auto.")
_json = click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lab.__version__, prog_name="lab")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Instead of ./lab.toml or ~/.config/kernel-patch-lab/lab.toml.",
)
@click.option("--cache", metavar="DIR", help="Where kernels, images and sources are kept.")
@click.option("--runs", metavar="DIR", help="Where the records of runs are kept.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@click.pass_context
def cli(
    context: click.Context,
    config_file: Path | None,
    cache: str | None,
    runs: str | None,
    quiet: bool,
) -> None:
    """What does this kernel patch series change?

    Builds kernels with and without it, boots both in QEMU, tests both, and answers with one
    verdict.

    \b
    Exit codes:  0 clean   1 regressed   2 usage   3 the lab broke   4 inconclusive
    """
    loaded = config.load(config_file or config.find(Path.cwd()))
    loaded = _override(loaded, paths={"cache": cache, "runs": runs})
    context.obj = Context(config=loaded, out=Console(soft_wrap=False), quiet=quiet)


# --- run ---------------------------------------------------------------------------------------


@cli.command()
@click.option(
    "--patch",
    metavar="SERIES",
    required=True,
    help="A directory of patches (with or without a quilt series file), an mbox, a git range "
    "BASE..TOPIC, or a lore message-id.",
)
@_kernel
@_arch
@_profile
@click.option("--suite", multiple=True, metavar="NAME[:GROUP][,...]", help="See: lab suites.")
@click.option(
    "--only", multiple=True, metavar="CASE[,CASE]", help="Single cases: generic/247, xfs/*."
)
@click.option(
    "--each-patch",
    is_flag=True,
    help="Build and boot the base with the first 1, 2, ... patches, too, and name the first patch "
    "that breaks the build, warns or breaks the boot.",
)
@click.option("--repeats", type=click.IntRange(1), help="Of every case on each side.")
@click.option("--max-repeats", type=click.IntRange(1), help="Of a suspect case on each side.")
@click.option("--seed", type=int, help="Of the stress programs; the same seed, the same run.")
@click.option("--duration", metavar="TIME", help="Of each faultstress case: 5, 30s, 2m.")
@click.option("--filesystem", multiple=True, metavar="FS[,FS]", help="For faultstress.")
@click.option("--scenario", multiple=True, metavar="NAME[,NAME]", help="For faultstress.")
@click.option("--xfstests", metavar="DIR", help="A tree of xfstests that you have built.")
@click.option(
    "--xfstests-config", multiple=True, metavar="NAME[,NAME]", help="File systems: ext4-4k, xfs."
)
@click.option(
    "--dump",
    is_flag=True,
    default=None,
    help="Keep the memory of a guest that panics or hangs, for lab debug.",
)
@_accel
@_parallel
@_jobs
@_json
@click.pass_obj
def run(
    context: Context,
    patch: str,
    kernel: str | None,
    arch: tuple[str, ...],
    profile: str | None,
    suite: tuple[str, ...],
    only: tuple[str, ...],
    each_patch: bool,
    repeats: int | None,
    max_repeats: int | None,
    seed: int | None,
    duration: str | None,
    filesystem: tuple[str, ...],
    scenario: tuple[str, ...],
    xfstests: str | None,
    xfstests_config: tuple[str, ...],
    dump: bool | None,
    accel: str | None,
    parallel: int | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Base against patched: one verdict.

    Everything is built and booted in the lab's own folders. Cut off at any point, the same
    command takes the run up where it stopped.
    """
    seconds = None if duration is None else config.duration_s(duration, where="--duration")
    chosen = _override(
        context.config,
        top={"kernel": kernel, "arch": _split(arch), "profile": profile, "suites": _split(suite)},
        run={
            "repeats": repeats,
            "max_repeats": max_repeats,
            "seed": seed,
            "only": _split(only),
        },
        machine={"accel": accel, "parallel": parallel, "dump": dump},
        build={"jobs": jobs},
        faultstress={
            "duration_s": seconds,
            "filesystems": _split(filesystem),
            "scenarios": _split(scenario),
        },
        xfstests={
            "tree": xfstests,
            "trees": {} if xfstests else None,
            "configs": _split(xfstests_config),
        },
    )
    if chosen.run.max_repeats < chosen.run.repeats:
        raised = msgspec.structs.replace(chosen.run, max_repeats=chosen.run.repeats)
        chosen = msgspec.structs.replace(chosen, run=raised)
    request = Request(patch=patch, config=chosen, command=tuple(sys.argv), each_patch=each_patch)
    with context.progress() as progress:
        record, folder = asyncio.run(campaign.run(request, progress.emit))
    _write_reports(record, folder)
    _show(context, record, folder, as_json)
    return _EXIT[record.verdict.outcome]


def _write_reports(record: RunRecord, folder: Path) -> None:
    write_atomically(folder / "report.html", html.page(record, folder).encode())
    write_atomically(folder / "junit.xml", junit.xml(record))


def _show(context: Context, record: RunRecord, folder: Path, as_json: bool) -> None:
    if as_json:
        click.echo(model.encode(record), nl=False)
    else:
        terminal.summary(record, folder, context.out)


# --- build, boot -------------------------------------------------------------------------------


@cli.command()
@_patch
@_kernel
@_arch
@_profile
@_jobs
@_json
@click.pass_obj
def build(
    context: Context,
    patch: str | None,
    kernel: str | None,
    arch: tuple[str, ...],
    profile: str | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Build the base kernel, and with --patch the patched one too."""
    chosen = _override(
        context.config,
        top={"kernel": kernel, "arch": _split(arch), "profile": profile},
        build={"jobs": jobs},
    )
    with context.progress() as progress:
        results = desk.build_kernels(patch, chosen, progress.emit)
    failed = [result for result in results if isinstance(result, model.BuildFailure)]
    if as_json:
        click.echo(model.encode(results), nl=False)
    else:
        terminal.builds(results, context.out)
    return ExitCode.REGRESSED if failed else ExitCode.CLEAN


@cli.command()
@_patch
@_kernel
@click.option("--arch", metavar="ARCH", help="Default: what this host is.")
@_profile
@_accel
@click.option("--shell", is_flag=True, help="A shell in the guest; Ctrl-] leaves it.")
@click.option("--append", metavar="ARGS", default="", help="More kernel command line.")
@click.option("--timeout", default="10m", metavar="TIME", help="For the command. Default: 10m.")
@click.option(
    "--no-snapshot", is_flag=True, help="Boot, even if a machine of this kernel was saved."
)
@click.option("--gdb", is_flag=True, help="Wait for gdb before the first instruction.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def boot(
    context: Context,
    patch: str | None,
    kernel: str | None,
    arch: str | None,
    profile: str | None,
    accel: str | None,
    shell: bool,
    append: str,
    timeout: str,
    no_snapshot: bool,
    gdb: bool,
    command: tuple[str, ...],
) -> int:
    """Boot a kernel on a throw-away root and run COMMAND in it (default: uname -a).

    With --patch it is the patched kernel, else the base. What is not built yet is built first.
    A kernel that has booted well before is not booted again: its machine was saved then, and is
    restored in a fraction of a second.
    Exits with 0 if COMMAND did, 1 if it failed, 4 if the machine was lost.
    """
    chosen = _override(
        context.config,
        top={"kernel": kernel, "arch": (_one_arch(context, arch),), "profile": profile},
        machine={"accel": accel},
    )
    request = desk.BootRequest(
        patch=patch,
        config=chosen,
        command=command or ("uname", "-a"),
        shell=shell,
        append=append,
        timeout_s=config.duration_s(timeout, where="--timeout"),
        snapshot=not no_snapshot,
        gdb=gdb,
    )
    if shell and not sys.stdin.isatty():
        raise UserError("--shell needs a terminal", hint="give a COMMAND instead")
    with context.cache.staging() as folder:
        with context.progress() as progress:
            rig = desk.prepare(request, progress.emit)
            coroutine = desk.boot(
                request, rig, folder, progress.emit, sys.stdout.buffer, sys.stderr.buffer
            )
        return asyncio.run(coroutine)


# --- selftest ----------------------------------------------------------------------------------


@cli.command(name="selftest")
@click.option(
    "--control", multiple=True, metavar="NAME[,NAME]", help="Only these. See --list. Default: all."
)
@click.option("--list", "only_list", is_flag=True, help="Only say which controls there are.")
@click.option(
    "--controls",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Instead of the lab's own patches/controls. Series that they stand on lie beside DIR.",
)
@_kernel
@_arch
@click.option("--seed", type=int, help="Of the stress programs; the same seed, the same run.")
@_accel
@_jobs
@_json
@click.pass_obj
def selftest_command(
    context: Context,
    control: tuple[str, ...],
    only_list: bool,
    folder: Path | None,
    kernel: str | None,
    arch: tuple[str, ...],
    seed: int | None,
    accel: str | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Is every planted fault caught by its detector?

    Builds and runs each control of patches/controls and the kernel without it, and the kernel's
    own crashes on demand (lkdtm). Exits with 0 if every one is caught, in its case and its time,
    and the kernels without them stay quiet; with 1 if not; with 4 if something could not be run.
    """
    where = folder or selftest.PATCHES / "controls"
    if only_list:
        controls = selftest.choose(selftest.load(where), _split(control))
        selftest_report.listing(controls, context.out, as_json=as_json)
        return ExitCode.CLEAN
    chosen = _override(
        context.config,
        top={"kernel": kernel, "arch": _split(arch)},
        run={"seed": seed},
        machine={"accel": accel},
        build={"jobs": jobs},
    )
    request = selftest.Request(
        config=chosen, names=_split(control), folder=where, command=tuple(sys.argv)
    )
    with context.progress() as progress:
        record, path = asyncio.run(selftest.run(request, progress.emit))
    code = selftest.exit_code(record)
    if as_json:
        click.echo(model.encode(record), nl=False)
    else:
        selftest_report.summary(record, path, code, context.out)
    return code


# --- bisect ------------------------------------------------------------------------------------


class _Bisect(click.Group):
    """`lab bisect ...` is a search unless its first word is `step`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        return super().parse_args(ctx, args if first in self.commands else ["search", *args])


@cli.group(name="bisect", cls=_Bisect, add_help_option=False)
def bisect_group() -> None:
    """Which patch, commit or option made it fail?"""


_splat = click.option(
    "--splat", default="", metavar="TEXT", help="Look for this splat: a fingerprint or title part."
)
_case = click.option(
    "--case", "cases", multiple=True, metavar="CASE", help="Fails or not: boot/hello, ..."
)
_duration = click.option("--duration", metavar="TIME", help="Of a faultstress case: 5, 30s, 2m.")


@bisect_group.command(name="search")
@click.argument("span", metavar="[GOOD..BAD]", required=False)
@_patch
@click.option("--from-run", metavar="RUN", help="Series, kernel and what got worse of that run.")
@click.option(
    "--fragments",
    metavar="GOOD..BAD",
    help="Search between two configurations: each a profile, or a file of CONFIG_ lines.",
)
@_case
@_splat
@_kernel
@click.option("--arch", metavar="ARCH", help="One: x86_64 or arm64. Default: this machine's.")
@_profile
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.97,
    show_default=True,
    help="Stop when one culprit is that likely.",
)
@click.option("--budget", default="8h", metavar="TIME", show_default=True, help="Of all steps.")
@click.option("--max-runs", type=click.IntRange(1), default=2000, help="Of all kernels together.")
@click.option("--seed", type=int, help="Of the stress programs.")
@_duration
@click.option("--fresh", is_flag=True, help="Do not go on with an earlier bisection.")
@_accel
@_jobs
@_json
@click.pass_obj
def bisect_search(
    context: Context,
    span: str | None,
    patch: str | None,
    from_run: str | None,
    fragments: str | None,
    cases: tuple[str, ...],
    splat: str,
    kernel: str | None,
    arch: str | None,
    profile: str | None,
    confidence: float,
    budget: str,
    max_runs: int,
    seed: int | None,
    duration: str | None,
    fresh: bool,
    accel: str | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Which patch, commit or option made it fail?

    Runs both ends first, then whatever tells most for what it costs, until one culprit is likely
    enough. A failure may be rare: how often it fails is measured, and every run counts. What does
    not build or boot is skipped, and never good or bad. Cut off, the same command goes on.

    \b
    lab bisect --patch SERIES --case CASE              the patches of a series
    lab bisect --from-run RUN                          what got worse in a run
    lab bisect --kernel DIR GOOD..BAD --case CASE      the commits of a git tree
    lab bisect --fragments lockdep..kasan --case CASE  the options of a configuration
    git bisect run lab bisect step --kernel . --case CASE

    \b
    Exit codes:  0 found   2 usage   3 the lab broke   4 inconclusive
    """
    from lab.bisect import Ending, Rules  # numpy: no other command waits for it
    from lab.culprit import hunt
    from lab.report import bisection

    chosen = _override(
        context.config,
        top={"kernel": kernel, "arch": (_one_arch(context, arch),), "profile": profile},
        run={"seed": seed},
        machine={"accel": accel},
        build={"jobs": jobs},
        faultstress={"duration_s": duration and config.duration_s(duration, where="--duration")},
    )
    rules = Rules(
        confidence=confidence,
        budget_s=config.duration_s(budget, where="--budget"),
        max_runs=max_runs,
    )
    request = hunt.Request(
        config=chosen,
        span=span,
        patch=patch,
        from_run=from_run,
        fragments=fragments,
        cases=_split(cases),
        splat=splat,
        rules=rules,
        fresh=fresh,
        command=tuple(sys.argv),
    )
    with context.progress() as progress:
        record = hunt.run(request, progress.emit)
    if as_json:
        click.echo(model.encode(record), nl=False)
    else:
        bisection.summary(record, context.out)
    found = record.result.ending is Ending.FOUND
    return ExitCode.CLEAN if found else ExitCode.INCONCLUSIVE


@bisect_group.command(name="step")
@_case
@_splat
@click.option("--kernel", default=".", metavar="DIR", help="The tree. Never written to. Default: .")
@click.option("--arch", metavar="ARCH", help="One: x86_64 or arm64. Default: this machine's.")
@_profile
@click.option("--repeats", type=click.IntRange(1), help="Passing runs that make it good.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="How often it fails where the bug is; decides how often to run. Default: 0.9.",
)
@click.option(
    "--false-rate",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="How often it fails where the bug is not. Default: 0.",
)
@click.option(
    "--base", default="", metavar="REF", help="Builds start from it. Default: the first good."
)
@_duration
@_accel
@_jobs
@click.pass_obj
def bisect_step(
    context: Context,
    cases: tuple[str, ...],
    splat: str,
    kernel: str,
    arch: str | None,
    profile: str | None,
    repeats: int | None,
    rate: float | None,
    false_rate: float,
    base: str,
    duration: str | None,
    accel: str | None,
    jobs: int | None,
) -> int:
    """One step of `git bisect run`: build and test the commit that a tree stands at.

    \b
    git bisect run lab bisect step --kernel . --case CASE

    Runs until it is settled, by --rate and --false-rate, or by --repeats.

    \b
    Exit codes:  0 good   1 bad   125 cannot be tested (git bisect skips it)
                 130 usage, 131 the lab broke, 255 a bug of the lab (git bisect stops)
    """
    from lab.bisect import Rates
    from lab.culprit import onestep

    if repeats is not None and rate is not None:
        raise UserError("--repeats and --rate: which?", hint="--rate says how often to run")
    if not cases and not splat:
        raise UserError("nothing to look for", hint="--case CASE, or --splat TEXT")
    if rate is not None and rate <= false_rate:
        raise UserError("--rate must be above --false-rate")
    chosen = _override(
        context.config,
        top={"kernel": kernel, "arch": (_one_arch(context, arch),), "profile": profile},
        machine={"accel": accel},
        build={"jobs": jobs},
        faultstress={"duration_s": duration and config.duration_s(duration, where="--duration")},
    )
    request = onestep.Request(
        config=chosen,
        cases=_split(cases),
        splat=splat,
        base=base,
        rates=Rates(bad=0.9 if rate is None else rate, good=false_rate),
        repeats=repeats,
    )
    with context.progress() as progress:
        return onestep.run(request, progress.emit)


# --- image -------------------------------------------------------------------------------------


@cli.group(name="image")
def image_group() -> None:
    """Root images for the guests."""


@image_group.command(name="build")
@_arch
@_json
@click.pass_obj
def image_build(context: Context, arch: tuple[str, ...], as_json: bool) -> int:
    """Build the root image of each architecture, unless it is there."""
    names = _split(arch) or context.config.arch
    with context.progress() as progress:
        images = [image.root_image(n, cache=context.cache, emit=progress.emit) for n in names]
    terminal.images(images, context.out, as_json=as_json)
    return ExitCode.CLEAN


@image_group.command(name="list")
@_json
@click.pass_obj
def image_list(context: Context, as_json: bool) -> int:
    """List the root images in the cache."""
    terminal.images(image.list_images(context.cache), context.out, as_json=as_json)
    return ExitCode.CLEAN


@image_group.command(name="shell")
@click.argument("arch", required=False)
@click.option(
    "--bind", multiple=True, type=click.Path(exists=True, path_type=Path), help="Show DIR inside."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def image_shell(
    context: Context, arch: str | None, bind: tuple[Path, ...], command: tuple[str, ...]
) -> int:
    """A shell (or COMMAND) in the userland of an image with a compiler, on a throw-away copy.

    ARCH is this host's unless given. With --bind DIR, what is built in DIR runs in its guests.
    """
    with context.progress() as progress:
        name = _one_arch(context, arch)
        root = image.root_image(name, recipe="build", cache=context.cache, emit=progress.emit)
    return image.shell(root, cache=context.cache, bind=bind, command=command)


# --- reading -----------------------------------------------------------------------------------


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--vmlinux",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of the kernel that printed the logs, with debug information: source lines and inlined "
    "functions for every frame.",
)
@click.option(
    "--modules",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where its .ko files are, at any depth.",
)
@_json
@click.pass_obj
def splats(
    context: Context,
    files: tuple[Path, ...],
    vmlinux: Path | None,
    modules: Path | None,
    as_json: bool,
) -> int:
    """Problem reports in console logs; "-" reads standard input. Exits with 1 if there is any.

    With one FILE, --json gives a list; with more, an object from file to list.
    """
    if modules is not None and vmlinux is None:
        raise UserError("--modules needs --vmlinux")
    paths = [Path("/dev/stdin") if str(file) == "-" else file for file in files]
    logs = reading.read_files(paths)
    if vmlinux is not None:
        logs = symbols.symbolise_logs(logs, vmlinux, modules=modules)
    for line in (*reading.missed(logs), *symbols.doubts(logs)):
        click.echo(f"lab: {reading.printable(line)}", err=True)
    found = {log.path: log.splats for log in logs}
    if not as_json:
        terminal.splats(found, context.out)
    elif len(found) == 1:
        (only,) = found.values()
        click.echo(reading.to_json(only))
    else:
        whole = {
            str(path): [reading.as_object(splat) for splat in splats]
            for path, splats in found.items()
        }
        click.echo(json.dumps(whole, indent=1))
    return ExitCode.REGRESSED if any(found.values()) else ExitCode.CLEAN


@cli.command(name="report")
@click.argument("run_name", metavar="[RUN]", required=False)
@_json
@click.pass_obj
def report_command(context: Context, run_name: str | None, as_json: bool) -> int:
    """Show a finished run again, and write its report anew. Default: the newest.

    RUN is the name of a run, the beginning of one, or its folder. Exits as the run did.
    """
    folder = campaign.find_run(context.config.paths.runs_dir, run_name)
    record = model.decode((folder / "record.json").read_bytes(), RunRecord)
    _write_reports(record, folder)
    _show(context, record, folder, as_json)
    return _EXIT[record.verdict.outcome]


@cli.command(name="debug")
@click.argument("which", metavar="[RUN][/TRIAL]", default="")
@click.option("-e", "expression", metavar="EXPR", help="Evaluate one expression.")
@click.argument("script", metavar="[-- SCRIPT ARGS...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def debug_command(
    context: Context, which: str, expression: str | None, script: tuple[str, ...]
) -> int:
    """Open the memory of a guest that panicked or hung (lab run --dump) with drgn.

    At a terminal it is drgn's own prompt. Elsewhere it prints the end of the kernel's log and the
    stacks of all CPUs and blocked tasks. Default: the newest run, and its only dump.
    """
    run_name, _, trial_name = which.partition("/")
    folder = campaign.find_run(context.config.paths.runs_dir, run_name or None)
    core = debug.find(folder, trial_name, context.cache)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    options = debug.options_for(expression, script, interactive=interactive)
    return host.interactive(debug.command(core, options))


# --- locks -------------------------------------------------------------------------------------

_around = click.option("--around", metavar="CLASS", help="A lock class to look at: mmap_lock.")
_depth = click.option(
    "--depth", type=click.IntRange(1, 5), default=1, help="Steps around it that are drawn."
)
_svg = click.option(
    "--svg", type=click.Path(path_type=Path), help="Draw what is around it into this file."
)
_arch_of_run = click.option("--arch", metavar="ARCH", help="Of a run with several.")


@cli.group(name="lockgraph")
def lockgraph_group() -> None:
    """What was locked inside of what: /proc/lockdep of a run, or of files."""


@lockgraph_group.command(name="diff")
@click.argument("names", nargs=-1, metavar="[RUN | BASE PATCHED]")
@_arch_of_run
@_around
@_depth
@_svg
@_json
@click.pass_obj
def lockgraph_diff(
    context: Context,
    names: tuple[str, ...],
    arch: str | None,
    around: str | None,
    depth: int,
    svg: Path | None,
    as_json: bool,
) -> int:
    """Lock dependencies that come and go: of a run (default: the newest), or of BASE and PATCHED.

    BASE and PATCHED are copies of /proc/lockdep, folders with them and its neighbours, folders of
    such folders (one for each boot), or runs; RUN:base and RUN:patched name a side.

    Exits with 1 if there is a new lock cycle, with 4 if there may be one or nothing to compare.
    """
    if len(names) > 2:
        raise UserError("more than two things to compare", hint="name a run, or BASE and PATCHED")
    found = lockdesk.compare(names, context.config.paths.runs_dir, arch)
    around = around or suggest(found.diff, found.subjects)
    if svg is not None:
        _draw(found.diff, around, depth, svg, every=False)
    if as_json:
        click.echo(model.encode(found), nl=False)
    else:
        locks.show_diff(found.diff, around, context.out)
    return lockdesk.exit_code(found.diff)


@lockgraph_group.command(name="show")
@click.argument("name", metavar="[RUN|FILE|FOLDER]", required=False)
@_arch_of_run
@click.option(
    "--side", type=click.Choice([str(side) for side in Side]), default="patched", help="Of a run."
)
@_around
@_depth
@click.option("--edge", nargs=2, metavar="A B", help="Who takes B inside of A: the lock chains.")
@_svg
@_json
@click.pass_obj
def lockgraph_show(
    context: Context,
    name: str | None,
    arch: str | None,
    side: str,
    around: str | None,
    depth: int,
    edge: tuple[str, str] | None,
    svg: Path | None,
    as_json: bool,
) -> int:
    """The union of one side's lock graphs; with --around, what is before and after a class."""
    seen = lockdesk.observations(name, Side(side), context.config.paths.runs_dir, arch)
    whole = lockdesk.union(seen)
    if svg is not None:
        _draw(whole, around, depth, svg, every=True)
    if edge is not None:
        chains = lockdesk.chains(seen, whole, *edge)
        if as_json:
            click.echo(model.encode(chains), nl=False)
        else:
            locks.show_chains(chains, context.out)
    elif as_json:
        click.echo(model.encode(whole), nl=False)
    else:
        locks.show_graph(whole, around, context.out)
    return ExitCode.CLEAN


def _draw(graph: LockDiff, around: str | None, depth: int, path: Path, *, every: bool) -> None:
    if around is None:
        raise UserError("nothing changed that could be drawn", hint="--around CLASS names a lock")
    write_atomically(path, locks.picture(graph, around, depth=depth, every=every).encode())


@cli.command()
@_json
@click.pass_obj
def suites(context: Context, as_json: bool) -> int:
    """What can be run, and what it needs of the kernel."""
    rows = [
        {"name": suite.name, "what": suite.one_line, "needs": list(suite.needs().symbols)}
        for suite in registry.SUITES.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return ExitCode.CLEAN
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("suite", "what", "needs"):
        table.add_column(title)
    for row in rows:
        table.add_row(str(row["name"]), str(row["what"]), ", ".join(row["needs"]))
    context.out.print(table)
    return ExitCode.CLEAN


@cli.command(name="doctor")
@_arch
@click.option("--no-boot", is_flag=True, help="Do not boot a kernel to prove KVM.")
@click.option("--packages", "only_packages", is_flag=True, help="Only names of missing packages.")
@_json
@click.pass_obj
def doctor_command(
    context: Context, arch: tuple[str, ...], no_boot: bool, only_packages: bool, as_json: bool
) -> int:
    """What is missing on this machine, how to get it, and does KVM really boot.

    Exits with 2 if something that the lab cannot do without is missing.
    """
    chosen = _override(context.config, top={"arch": _split(arch)})
    boot_it = not no_boot and not only_packages
    with context.progress() as progress:
        checks = doctor.examine(chosen, cache=context.cache, emit=progress.emit, boot=boot_it)
    if only_packages:
        click.echo("\n".join(doctor.packages(checks)), nl=bool(doctor.packages(checks)))
        return ExitCode.CLEAN
    if as_json:
        click.echo(model.encode(checks), nl=False)
    else:
        terminal.checks(checks, context.out)
    missing = any(check.health is doctor.Health.MISSING for check in checks)
    return ExitCode.USAGE if missing else ExitCode.CLEAN


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Kernels, images, sources and ccache too.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would go.")
@click.option("--older-than", metavar="TIME", default="30d", help="Default: 30d.")
@_json
@click.pass_obj
def clean(context: Context, everything: bool, dry_run: bool, older_than: str, as_json: bool) -> int:
    """Free the cache: unfinished leftovers, and builds and trees not used for a while.

    Records of runs stay. Only folders that the lab itself made are touched.
    """
    age_s = 0.0 if everything else config.duration_s(older_than, where="--older-than")
    removed = context.cache.reclaim(older_than_s=age_s, everything=everything, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(removed, indent=1))
    else:
        terminal.removed(removed, context.out, dry_run=dry_run)
    return ExitCode.CLEAN


# --- the way in --------------------------------------------------------------------------------


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End make and QEMU in every thread at once, then unwind."""
    host.abort()
    raise KeyboardInterrupt


def main() -> None:
    """Console script `lab`."""
    argv = sys.argv[1:]
    sys.exit(_git_bisect_step(argv) if ("bisect", "step") in pairwise(argv) else entry(argv))


def _git_bisect_step(argv: list[str]) -> int:
    """`entry`, where 1 to 127 would mean "bad" to git bisect: what is no answer makes it stop."""
    answers = (0, 1, 125)
    try:
        status = entry(argv)
    except Exception:
        traceback.print_exc()
        return 255
    if status in answers or status >= _GIT_ABORT:
        return status
    return _GIT_ABORT + status


def entry(argv: list[str]) -> int:
    """Run one command line and return its exit code; every failure becomes one message."""
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    try:
        status = cli.main(args=argv, prog_name="lab", standalone_mode=False)
        return int(status or 0)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort, asyncio.CancelledError):
        _complain("interrupted", "nothing is lost: the same command goes on from here")
        return _INTERRUPTED
    except BaseExceptionGroup as group:
        host.abort()
        return explain_group(group)
    except LabError as error:
        return _explain(error)


def explain_group(group: BaseExceptionGroup[BaseException]) -> int:
    """The exit code of tasks that failed together, after one message."""
    return _explain(_first(group))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one failure of a task group that tells why: ours before any other."""
    ours, others = group.split(LabError)
    chosen = ours or others
    assert chosen is not None
    inner = chosen.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _explain(error: BaseException) -> int:
    """One message for what the lab can explain; anything else is a bug with its traceback."""
    if not isinstance(error, LabError):
        raise error
    _complain(error.message, error.hint)
    return ExitCode.USAGE if isinstance(error, UserError) else ExitCode.LAB_FAULT


def _complain(message: str, hint: str) -> None:
    click.echo(f"lab: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
