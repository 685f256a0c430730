"""Kernels and images by hand: `lab build`, `lab boot`, `lab image`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from lab import (
    config,
    desk,
    image,
    model,
)
from lab.cli.context import (
    Context,
    accel_option,
    arch_option,
    cli,
    jobs_option,
    json_option,
    kernel_option,
    one_arch,
    override,
    patch_option,
    profile_option,
    split,
)
from lab.model import ExitCode, UserError
from lab.report import terminal


@cli.command()
@patch_option
@kernel_option
@arch_option
@profile_option
@jobs_option
@json_option
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
    chosen = override(
        context.config,
        top={"kernel": kernel, "arch": split(arch), "profile": profile},
        build={"jobs": jobs},
    )
    with context.progress() as progress:
        results = desk.build_kernels(patch, chosen, progress.emit)
    failed = [result for result in results if isinstance(result, model.BuildFailure)]
    context.answer(results, terminal.builds, as_json=as_json)
    return ExitCode.REGRESSED if failed else ExitCode.CLEAN


# Options after COMMAND's first word are its own: lab boot uname -a.
@cli.command(context_settings={"allow_interspersed_args": False})
@patch_option
@kernel_option
@click.option("--arch", metavar="ARCH", help="Default: what this host is.")
@profile_option
@accel_option
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
    chosen = override(
        context.config,
        top={"kernel": kernel, "arch": (one_arch(context, arch),), "profile": profile},
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


@cli.group(name="image")
def image_group() -> None:
    """Root images for the guests."""


@image_group.command(name="build")
@arch_option
@json_option
@click.pass_obj
def image_build(context: Context, arch: tuple[str, ...], as_json: bool) -> int:
    """Build the root image of each architecture, unless it is there."""
    names = split(arch) or context.config.arch
    with context.progress() as progress:
        images = [image.root_image(n, cache=context.cache, emit=progress.emit) for n in names]
    terminal.images(images, context.out, as_json=as_json)
    return ExitCode.CLEAN


@image_group.command(name="list")
@json_option
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
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def image_shell(
    context: Context, arch: str | None, bind: tuple[Path, ...], command: tuple[str, ...]
) -> int:
    """A shell (or COMMAND) in the userland of an image with a compiler, on a throw-away copy.

    ARCH is this host's unless given. With --bind DIR, what is built in DIR runs in its guests.
    """
    with context.progress() as progress:
        name = one_arch(context, arch)
        root = image.root_image(name, recipe="build", cache=context.cache, emit=progress.emit)
    return image.shell(root, cache=context.cache, bind=bind, command=command)
