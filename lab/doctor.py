"""This machine goes in, a list of checks comes out: what is there, what is missing, the way out."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab import accel, host, initramfs
from lab.arch import Arch
from lab.arch import arch as arch_row
from lab.config import Config
from lab.model import Emit, Kernel, LabError
from lab.store import Cache, recall

_DISK_WANTED_BYTES = 12 << 30
_MEMORY_WANTED_BYTES = 4 << 30


class Health(StrEnum):
    OK = "ok"
    MISSING = "missing"  # the lab cannot do its work without it
    WORSE = "worse"  # it works, but slower or less safe
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. `hint` is the way out wherever the health is not ok."""

    name: str
    health: Health
    found: str
    hint: str = ""
    package: str = ""  # Debian package that cures it


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program that the lab starts, and what for."""

    name: str
    use: str
    required: bool = True


_TOOLS: tuple[Tool, ...] = (
    Tool(name="git", use="private kernel trees"),
    Tool(name="make", use="building kernels"),
    Tool(name="gcc", use="building kernels and guest programs"),
    Tool(name="ld", use="building kernels"),
    Tool(name="flex", use="building kernels"),
    Tool(name="bison", use="building kernels"),
    Tool(name="bc", use="building kernels"),
    Tool(name="perl", use="building kernels"),
    Tool(name="tar", use="kernel sources"),
    Tool(name="xz", use="kernel sources"),
    Tool(name="mmdebstrap", use="root images"),
    Tool(name="mke2fs", use="root images"),
    Tool(name="qemu-img", use="throw-away disks"),
    Tool(name="unshare", use="root images"),
    Tool(name="ccache", use="fast rebuilds"),
    Tool(name="dpkg-deb", use="kernel sources from Debian"),
    Tool(name="dot", use="pictures of lock dependencies", required=False),
    Tool(name="nm", use="telling lock classes apart", required=False),
    Tool(name="bwrap", use="building somebody else's patches in a sandbox", required=False),
    Tool(name="rsync", use="the kernel's self-tests (suite kselftest)", required=False),
    Tool(name="fakeroot", use="root images without being root", required=False),
)
# Header files of libraries that a kernel build compiles its tools against.
_HEADERS: dict[str, str] = {
    "gelf.h": "libelf-dev",
    "openssl/opensslv.h": "libssl-dev",
    "stdio.h": "libc6-dev",
}


def examine(config: Config, *, cache: Cache, emit: Emit, boot: bool = True) -> tuple[Check, ...]:
    """All checks for the architectures of `config`. With `boot`, KVM is proven by a real boot."""
    rows = [arch_row(name) for name in config.arch]
    checks = [_tool(tool) for tool in _TOOLS]
    if os.geteuid() != 0:
        checks.append(_tool(Tool(name="newuidmap", use="root images without being root")))
    for row in rows:
        checks.append(_tool(Tool(name=row.qemu, use=f"{row.name} guests")))
        checks += _foreign(row)
    checks += _headers()
    checks += [_disk(config), _memory(), _sandbox(), _subordinate_ids()]
    if boot:
        checks += [_accelerator(row, config, cache, emit) for row in rows]
    return tuple(check for check in checks if check is not None)


def packages(checks: Sequence[Check]) -> tuple[str, ...]:
    """Debian packages that cure what is missing or worse."""
    return tuple(sorted({check.package for check in checks if check.package}))


def _tool(tool: Tool) -> Check:
    try:
        path = host.tool(tool.name)
    except LabError as error:
        return Check(
            name=tool.name,
            health=Health.MISSING if tool.required else Health.WORSE,
            found=f"not installed; needed for {tool.use}",
            hint=error.hint,
            package=host.PACKAGES.get(tool.name, ""),
        )
    return Check(name=tool.name, health=Health.OK, found=path)


def _foreign(row: Arch) -> list[Check]:
    """What an architecture that is not the host's needs on top."""
    if row.machine == platform.machine():
        return []
    checks = [
        _tool(Tool(name=f"{row.cross}gcc", use=f"building {row.name} kernels")),
        _tool(Tool(name=f"{row.cross}ld", use=f"building {row.name} kernels")),
        _tool(Tool(name="arch-test", use=f"{row.name} root images")),
        _tool(Tool(name=row.emulator, use=f"{row.name} root images")),
    ]
    libc, name = row.static_libc, f"static libc for {row.name}"
    if libc.exists():
        return [*checks, Check(name=name, health=Health.OK, found=str(libc))]
    package = host.PACKAGES[str(libc)]
    missing = Check(
        name=name,
        health=Health.MISSING,
        found="not installed; needed for guest programs",
        hint=f"sudo apt-get install {package}",
        package=package,
    )
    return [*checks, missing]


def _headers() -> list[Check]:
    """Whether the compiler finds them; without a compiler they count as missing too."""
    have_compiler = shutil.which("gcc") is not None
    checks: list[Check] = []
    for header, package in _HEADERS.items():
        include = f"#include <{header}>\n".encode()
        if have_compiler and not _preprocess(include).status:
            checks.append(Check(name=header, health=Health.OK, found=package))
        else:
            checks.append(
                Check(
                    name=header,
                    health=Health.MISSING,
                    found="not installed; needed for building kernels",
                    hint=f"sudo apt-get install {package}",
                    package=package,
                )
            )
    return checks


def _preprocess(source: bytes) -> host.Completed:
    return host.run(["gcc", "-E", "-x", "c", "-"], stdin=source, check=False)


def _disk(config: Config) -> Check:
    folder = config.paths.cache_dir
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.0f} GiB free for {folder}"
    if free >= _DISK_WANTED_BYTES:
        return Check(name="disk", health=Health.OK, found=found)
    return Check(
        name="disk",
        health=Health.WORSE,
        found=f"{found}; a first run takes about {_DISK_WANTED_BYTES >> 30} GiB",
        hint="lab clean frees the cache; [paths] in lab.toml moves it",
    )


def _memory() -> Check:
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{have / (1 << 30):.0f} GiB, {len(os.sched_getaffinity(0))} CPUs"
    if have >= _MEMORY_WANTED_BYTES:
        return Check(name="memory", health=Health.OK, found=found)
    return Check(
        name="memory",
        health=Health.WORSE,
        found=found,
        hint="lower [machine] memory and [build] jobs in lab.toml",
    )


def _sandbox() -> Check:
    """Whether builds can be fenced in: a patch series is somebody else's code."""
    if shutil.which("bwrap") is None:
        return Check(
            name="sandbox",
            health=Health.WORSE,
            found="builds of patches run with your own rights",
            hint="sudo apt-get install bubblewrap",
            package="bubblewrap",
        )
    probe = host.run(
        ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "true"], check=False
    )
    if probe.status == 0:
        return Check(name="sandbox", health=Health.OK, found="bubblewrap works")
    return Check(
        name="sandbox",
        health=Health.WORSE,
        found=f"bubblewrap fails: {probe.complaint}",
        hint="user namespaces are switched off: sysctl kernel.unprivileged_userns_clone=1, or "
        "the AppArmor restriction kernel.apparmor_restrict_unprivileged_userns=0",
    )


def _subordinate_ids() -> Check:
    if os.geteuid() == 0:
        return Check(name="root images", health=Health.OK, found="built as root")
    user = os.environ.get("USER", "")
    lines = Path("/etc/subuid").read_text().splitlines() if Path("/etc/subuid").exists() else []
    if any(line.startswith((f"{user}:", f"{os.geteuid()}:")) for line in lines):
        return Check(name="root images", health=Health.OK, found="subordinate ids for this user")
    return Check(
        name="root images",
        health=Health.MISSING,
        found=f"no subordinate ids for {user} in /etc/subuid",
        hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
    )


def _accelerator(row: Arch, config: Config, cache: Cache, emit: Emit) -> Check:
    """KVM or TCG, as proven by a boot of the newest kernel that the lab has built."""
    name = f"accelerator for {row.name}"
    kernel = newest_kernel(cache, row.name)
    if kernel is None:
        device = Path("/dev/kvm")
        if row.machine != platform.machine():
            found = f"TCG: this host is {platform.machine()}; speed unknown until a kernel is built"
        elif not device.exists():
            found = "TCG: there is no /dev/kvm; speed unknown until a kernel is built"
        else:
            can = os.access(device, os.R_OK | os.W_OK)
            found = f"/dev/kvm {'opens' if can else 'is not open to you'}; that proves nothing yet"
        return Check(
            name=name,
            health=Health.UNKNOWN,
            found=found,
            hint=f"lab build --arch {row.name}, then lab doctor again: only a boot proves it",
        )
    try:
        chosen = accel.choose(
            row.name,
            kernel=kernel.image,
            initramfs=initramfs.initramfs(row.name, cache=cache, emit=emit),
            cache=cache,
            emit=emit,
            force=config.machine.forced_accel,
        )
    except LabError as error:
        return Check(name=name, health=Health.MISSING, found=error.message, hint=error.hint)
    tried = "".join(f"; {line}" for line in chosen.tried)
    return Check(
        name=name,
        health=Health.OK if chosen.name == "kvm" else Health.WORSE,
        found=f"{chosen.name}, boots in {chosen.boot_s:.1f} s (-cpu {chosen.cpu}){tried}",
        hint="" if chosen.name == "kvm" else "everything works under TCG, several times slower",
    )


def newest_kernel(cache: Cache, arch: str) -> Kernel | None:
    """The kernel of that architecture that was built last, if there is one."""
    records = sorted(
        cache.sub("builds").glob("*/record.json"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in records:
        kernel = recall(path, Kernel)
        if kernel is not None and kernel.arch == arch and kernel.image.exists():
            return kernel
    return None
