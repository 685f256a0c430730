"""What every command shares: the root group, the configuration, options."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console

import lab
from lab import config, model
from lab.arch import ARCHS
from lab.arch import arch as arch_row
from lab.config import Config
from lab.report import terminal
from lab.store import Cache

T = TypeVar("T")


@dataclass(slots=True)
class Context:
    """What every command shares."""

    config: Config
    out: Console
    quiet: bool
    file: Path | None = None  # the lab.toml in force

    @property
    def cache(self) -> Cache:
        return Cache(root=self.config.paths.cache_dir)

    def progress(self) -> terminal.Progress:
        return terminal.progress(quiet=self.quiet)

    def answer(self, found: T, show: Callable[[T, Console], None], *, as_json: bool) -> None:
        """The result of a command on stdout, as JSON or for a reader."""
        if as_json:
            click.echo(model.encode(found), nl=False)
        else:
            show(found, self.out)


def override(base: Config, **tables: dict[str, Any]) -> Config:
    """`base` with the options that were given on the command line (None: not given)."""
    changed: dict[str, Any] = {}
    for table, values in tables.items():
        given = {key: value for key, value in values.items() if value not in (None, ())}
        if table == "top":
            changed.update(given)
        elif given:
            changed[table] = msgspec.structs.replace(getattr(base, table), **given)
    return msgspec.structs.replace(base, **changed)


def split(values: tuple[str, ...]) -> tuple[str, ...]:
    """--arch a,b --arch c -> (a, b, c)."""
    return tuple(part for value in values for part in value.split(",") if part)


def one_arch(context: Context, given: str | None) -> str:
    """For one machine: as given, else this host's if it is configured, else the first."""
    if given:
        return given
    names = context.config.arch
    native = [name for name in names if arch_row(name).machine == platform.machine()]
    return (*native, *names)[0]


kernel_option = click.option(
    "--kernel",
    metavar="TREE",
    help="debian:6.1, debian:6.12, a git tree (DIR or DIR@REF) or a tarball. Never written to. "
    "Default: what the series asks for, else debian:6.1.",
)
arch_option = click.option(
    "--arch",
    multiple=True,
    metavar="ARCH[,ARCH]",
    help=f"{', '.join(ARCHS)}. Default: what lab.toml lists, else x86_64 and arm64.",
)
profile_option = click.option(
    "--profile",
    metavar="NAME",
    help="Set of Kconfig fragments: plain, lockdep, kasan, kcsan, faultinject, dax.",
)
patch_option = click.option(
    "--patch",
    metavar="SERIES",
    help="A directory of patches (with or without a quilt series file), an mbox, a git range "
    "BASE..TOPIC, or a lore message-id.",
)
jobs_option = click.option("--jobs", "-j", type=click.IntRange(1), help="Parallel make jobs.")
parallel_option = click.option(
    "--parallel",
    type=click.IntRange(1),
    metavar="N",
    help="Machines at once. Default: as many as cores and memory carry.",
)
accel_option = click.option(
    "--accel", type=click.Choice(["auto", "kvm", "tcg"]), help="Default: auto."
)
scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run cells on the workers of this Dask scheduler: tcp://HOST:8786. Default: what "
    "lab.toml says, else here.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")


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
    file = config_file or config.find(Path.cwd())
    loaded = config.load(file)
    loaded = override(loaded, paths={"cache": cache, "runs": runs})
    context.obj = Context(config=loaded, out=Console(soft_wrap=False), quiet=quiet, file=file)
