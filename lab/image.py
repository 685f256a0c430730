"""Recipes of Debian packages go in, root file system images come out, by digest.

An image lives whole in the cache, in a folder named after its recipe's digest, with a manifest.
It is made inside namespaces of its own (mount, process; user, unless the lab runs as root), so
that however that ends, no mount and no process stays. Trials never write to it: `overlay`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tomllib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import host, model
from lab.arch import Arch
from lab.arch import arch as arch_row
from lab.model import Emit, Event, EventKind, LabFault, RootImage, UserError
from lab.store import Cache, publish, sha256_file

IMAGES = Path(__file__).parent.parent / "images"
RECIPES = IMAGES / "recipes"
_BUILD = IMAGES / "build-root.sh"
_SHELL = IMAGES / "shell.sh"
_OWN_USERS = IMAGES / "own-users.sh"
_FOREIGN = IMAGES / "foreign.sh"
_BINFMT = Path("/usr/lib/binfmt.d")  # of qemu-user-static

_BUILD_LIMIT_S = 1800.0  # a foreign architecture through an emulator takes its time
_ROOMY_BYTES = 4 << 30
_SOURCE_DATE_EPOCH = "1700000000"
_NAMESPACE = uuid.UUID("9d0be49c-5f4d-4ac2-9a4e-8f3b6a1f0c55")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEBIAN = "http://deb.debian.org/debian"
_DEBIAN_SECURITY = "http://deb.debian.org/debian-security"
_OS_RELEASE = Path("/etc/os-release")
_STEP_LINE = re.compile(r"^I: (.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What goes into an image, for one architecture."""

    name: str
    suite: str  # of Debian
    variant: str  # of mmdebstrap
    packages: tuple[str, ...]
    exclude: tuple[str, ...]
    headroom_bytes: int
    sha256: str  # of the recipe, of the script that follows it, and of the architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageManifest:
    """What lies beside an image."""

    image: RootImage
    made: str  # ISO 8601, UTC
    suite: str
    sources: tuple[str, ...]  # lines of sources.list
    packages: tuple[Package, ...]


# --- recipes -----------------------------------------------------------------------------------


def read_recipe(name: str, row: Arch, *, recipes: Path = RECIPES) -> Recipe:
    """The recipe of that name for that architecture. Raises `UserError` that names file and key."""
    path = recipes / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in recipes.glob("*.toml")))
        raise UserError(f"no image recipe {name!r}", hint=f"known: {known}")
    raw = path.read_bytes()
    try:
        table = tomllib.loads(raw.decode())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    own = _table(table.pop("arch", {}), "arch", path).get(row.name, {})
    own = _table(own, f"arch.{row.name}", path)
    digest = hashlib.sha256(raw + b"\0" + _BUILD.read_bytes() + b"\0" + row.name.encode())
    recipe = Recipe(
        name=name,
        suite=_word(own.pop("suite", table.pop("suite", None)), "suite", path),
        variant=_word(table.pop("variant", "minbase"), "variant", path),
        packages=(
            *_words(table.pop("packages", []), "packages", path),
            *_words(own.pop("packages", []), f"arch.{row.name}.packages", path),
        ),
        exclude=_words(table.pop("exclude", []), "exclude", path),
        headroom_bytes=_size(table.pop("headroom_bytes", 512 << 20), "headroom_bytes", path),
        sha256=digest.hexdigest(),
    )
    for key in (*table, *(f"arch.{row.name}.{key}" for key in own)):
        raise UserError(f"{path}: unknown key {key!r}")
    return recipe


def _table(value: Any, key: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key} is not a table")
    return dict(value)


def _word(value: Any, key: str, path: Path) -> str:
    # These become arguments of mmdebstrap: nothing that could be an option or a path.
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", value):
        raise UserError(f"{path}: {key}: {value!r} is not a name")
    return value


def _words(value: Any, key: str, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} is not a list")
    if key == "exclude":
        for word in value:
            if not isinstance(word, str) or not re.fullmatch(r"/[\w./*-]+", word):
                raise UserError(f"{path}: {key}: {word!r} is not a path pattern")
        return tuple(value)
    return tuple(_word(word, key, path) for word in value)


def _size(value: Any, key: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1 << 40:
        raise UserError(f"{path}: {key}: {value!r} is not a number of bytes")
    return value


# --- where packages come from --------------------------------------------------------------------


def sources_from(index_targets: str, suite: str) -> tuple[str, ...]:
    """Lines of sources.list for `suite`, from what `apt-get indextargets` says of the host.

    Empty if the host has none for the suite itself: it is no Debian of that suite.
    """
    wanted = (suite, f"{suite}-updates", f"{suite}-security")
    lines: dict[str, str] = {}
    for row in index_targets.splitlines():
        fields = row.split("|")
        if len(fields) != 5:
            continue
        uri, release, component, signed_by, origin = fields
        # A field that apt does not know stays as it was written: "$(ORIGIN)".
        if release not in wanted or component != "main" or origin not in ("Debian", "$(ORIGIN)"):
            continue
        key = signed_by if signed_by.startswith("/") else str(_KEYRING)
        lines.setdefault(release, f"deb [signed-by={key}] {uri.rstrip('/')} {release} main")
    return tuple(lines[name] for name in wanted if name in lines) if suite in lines else ()


def apt_options_from(dump: str) -> tuple[str, ...]:
    """The host's settings of how packages are fetched, from `apt-config dump`."""
    kept = re.compile(r"^Acquire::(?:https?::|Retries|Check-Valid-Until|Check-Date)")
    return tuple(
        line for line in dump.splitlines() if kept.match(line) and not line.endswith(' "";')
    )


def _sources(suite: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Source lines and apt options: the host's own where it is such a Debian, else Debian's."""
    lines: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    release = _OS_RELEASE.read_text() if _OS_RELEASE.exists() else ""
    if f"VERSION_CODENAME={suite}" in release.split():
        form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)|$(ORIGIN)"
        argv = ("apt-get", "indextargets", "--format", form, "Created-By: Packages")
        lines = sources_from(host.run(argv, timeout_s=60).text, suite)
        options = apt_options_from(host.run(("apt-config", "dump"), timeout_s=60).text)
    if not lines:
        if not _KEYRING.exists():
            raise UserError(
                f"the keys of Debian's archive are not on this machine ({_KEYRING})",
                hint="sudo apt-get install debian-archive-keyring",
            )
        trust = f"deb [signed-by={_KEYRING}]"
        lines = (
            f"{trust} {_DEBIAN} {suite} main",
            f"{trust} {_DEBIAN} {suite}-updates main",
            f"{trust} {_DEBIAN_SECURITY} {suite}-security main",
        )
    return lines, options


# --- namespaces ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """The words before a command that shall run with its own mounts and processes, as root."""

    argv: tuple[str | Path, ...]
    hint: str  # for when it does not work


def _namespaces(fifo: Path | None) -> _Words:
    """With `fifo`, a path where nothing is, root gets its own user namespace too."""
    own = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
    if os.geteuid() == 0:
        around = ("/bin/sh", _OWN_USERS, fifo) if fifo else ()
        hint = "a container needs CAP_SYS_ADMIN (docker run --privileged) to make root images"
        return _Words(argv=(*around, "unshare", *own, "--"), hint=hint)
    host.tool("newuidmap")
    name = os.environ.get("USER") or str(os.geteuid())
    hint = (
        "a plain user needs user namespaces (sysctl kernel.unprivileged_userns_clone=1) and "
        "subordinate ids: "
        f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
    )
    users = ("--user", "--map-root-user", "--map-auto")
    return _Words(argv=("unshare", *users, *own, "--"), hint=hint)


def _confine(row: Arch, staging: Path) -> tuple[str | Path, ...]:
    """The words before a command that makes or uses an image of that architecture, tried out.

    Raises `UserError` where this machine has no such namespaces, or cannot run the programs.
    """
    plain = _namespaces(None)
    probe = host.run((*plain.argv, "true"), check=False, timeout_s=30)
    if probe.status != 0:
        raise UserError(f"no namespaces for root images: {probe.complaint}", hint=plain.hint)
    if platform.machine() == row.machine:
        return plain.argv
    for name in ("arch-test", f"qemu-{row.machine}-static"):
        host.tool(name)
    if host.run(("arch-test", row.debian), check=False, timeout_s=60).status == 0:
        return plain.argv
    # The machine as a whole has no emulator registered: do it in a namespace, for us alone.
    conf = _BINFMT / f"qemu-{row.machine}.conf"
    words = (*_namespaces(staging / "fifo").argv, "/bin/sh", _FOREIGN, conf)
    probe = host.run((*words, "arch-test", row.debian), check=False, timeout_s=60, leash=True)
    if probe.status != 0:
        raise UserError(
            f"this machine does not run {row.name} programs, which a {row.name} image needs: "
            f"{probe.complaint}",
            hint="sudo apt-get install qemu-user-static binfmt-support (for a container: outside)",
        )
    return words


# --- making an image -----------------------------------------------------------------------------


def root_image(
    arch: str,
    *,
    recipe: str = "default",
    cache: Cache,
    emit: Emit,
    recipes: Path = RECIPES,
) -> RootImage:
    """The image of that recipe, made now unless it is there.

    Raises `UserError` for a bad recipe or a machine that cannot make images, `CommandFailed` if
    the packages cannot be had.
    """
    row = arch_row(arch)
    wanted = read_recipe(recipe, row, recipes=recipes)
    final = cache.sub("images") / f"root-{row.name}-{wanted.name}-{wanted.sha256[:16]}"
    step = f"image {row.name}"
    with cache.lock(final.name, emit=emit, step=step):
        if final.is_dir():
            return _manifest(final).image
        emit(Event(kind=EventKind.STARTED, step=step))
        with cache.staging() as staging:
            made = _make(row, wanted, final, staging, emit, step)
        emit(Event(kind=EventKind.DONE, step=step, text=f"{made.packages} packages"))
    return made


def _make(
    row: Arch, recipe: Recipe, final: Path, staging: Path, emit: Emit, step: str
) -> RootImage:
    for name in ("mmdebstrap", "mke2fs"):
        host.tool(name)
    confined = _confine(row, staging)
    sources, options = _sources(recipe.suite)
    work, out = staging / "work", staging / "out"
    work.mkdir()
    out.mkdir()
    identity = str(uuid.uuid5(_NAMESPACE, recipe.sha256))
    # In memory it is faster, and files of other users, which a plain user could not remove, are
    # gone with the namespace however we die.
    where = "tmpfs" if os.geteuid() != 0 or _available_bytes() > _ROOMY_BYTES else "disk"
    host.run(
        (
            *confined,
            *("/bin/sh", _BUILD, work, where, out, str(recipe.headroom_bytes), identity),
            *mmdebstrap_arguments(row, recipe, work / "root", sources, options),
        ),
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "SOURCE_DATE_EPOCH": _SOURCE_DATE_EPOCH,
            "E2FSPROGS_FAKE_TIME": _SOURCE_DATE_EPOCH,
        },
        timeout_s=_BUILD_LIMIT_S,
        leash=True,
        on_line=_progress(emit, step),
    )
    packages = _installed(out / "dpkg-status")
    (out / "dpkg-status").unlink()
    path = out / "root.ext4"
    path.chmod(0o444)
    image = RootImage(
        name=recipe.name,
        arch=row.name,
        path=final / path.name,
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        packages=len(packages),
        recipe_sha256=recipe.sha256,
    )
    manifest = ImageManifest(
        image=image,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        suite=recipe.suite,
        sources=sources,
        packages=packages,
    )
    (out / "manifest.json").write_bytes(model.encode(manifest))
    publish(out, final)
    return image


def _available_bytes() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def mmdebstrap_arguments(
    row: Arch, recipe: Recipe, target: Path, sources: Sequence[str], options: Sequence[str]
) -> tuple[str, ...]:
    """The arguments of mmdebstrap; it runs as root, if only of its namespace."""
    return (
        "--mode=root",
        "--format=directory",
        f"--variant={recipe.variant}",
        f"--architectures={row.debian}",
        *((f"--include={','.join(recipe.packages)}",) if recipe.packages else ()),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.exclude),
        *(f"--aptopt={option}" for option in options),
        recipe.suite,
        str(target),
        *sources,
    )


def _progress(emit: Emit, step: str) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        match = _STEP_LINE.match(line)
        if match:
            emit(Event(kind=EventKind.PROGRESS, step=step, text=match[1]))

    return on_line


def _installed(status: Path) -> tuple[Package, ...]:
    """What dpkg's status file lists as installed."""
    found: list[Package] = []
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            found.append(Package(name=fields["Package"], version=fields["Version"]))
    if not found:
        raise LabFault("the image that was made holds no installed package")
    return tuple(sorted(found, key=lambda package: package.name))


def _manifest(folder: Path) -> ImageManifest:
    """The manifest of an image, its path true even if the cache was moved."""
    manifest = model.decode((folder / "manifest.json").read_bytes(), ImageManifest)
    path = folder / manifest.image.path.name
    if not path.is_file() or path.stat().st_size != manifest.image.size_bytes:
        raise LabFault(
            f"the root image {path} is not whole",
            hint=f"rm -r {folder}; the next run makes it anew",
        )
    return replace(manifest, image=replace(manifest.image, path=path))


# --- using images --------------------------------------------------------------------------------


def list_images(cache: Cache) -> tuple[RootImage, ...]:
    """The images in the cache, by architecture and name."""
    folders = cache.sub("images").glob("root-*")
    images = [_manifest(folder).image for folder in folders if (folder / "manifest.json").exists()]
    return tuple(sorted(images, key=lambda image: (image.arch, image.name, image.recipe_sha256)))


def overlay(image: RootImage, folder: Path) -> Path:
    """A throw-away qcow2 in `folder` on top of the image, which it never writes to."""
    path = folder / "root.qcow2"
    backing = image.path.resolve()
    host.run(("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, path))
    return path


def scratch_disk(folder: Path, name: str, size_bytes: int) -> Path:
    """An empty raw disk in `folder` that takes room only as the guest writes to it."""
    path = folder / f"{name}.raw"
    with path.open("xb") as stream:
        stream.truncate(size_bytes)
    return path


def shell(
    image: RootImage,
    *,
    cache: Cache,
    bind: Sequence[Path] = (),
    command: Sequence[str] = (),
) -> int:
    """Run a shell, or `command`, in the image's userland on this machine; its exit status.

    It works on a copy in memory that is gone afterwards; the folders in `bind` are the real
    ones, at their own absolute paths. Raises `UserError` where namespaces are not to be had.
    """
    host.tool("debugfs")
    pairs = [str(folder.resolve()) for folder in bind for _ in range(2)]
    with cache.staging() as staging:
        work = staging / "work"
        work.mkdir()
        inside = tuple(command) or ("/bin/bash", "-l")
        script: tuple[str | Path, ...] = ("/bin/sh", _SHELL, work, image.path)
        return host.interactive(
            (*_confine(arch_row(image.arch), staging), *script, str(len(bind)), *pairs, *inside),
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
