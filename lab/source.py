"""The name of a kernel source goes in, a `Source` comes out: one commit in a git repository.

    debian:6.1            Debian's package linux-source-6.1, installed or downloaded with apt-get
    debian:6.1=6.1.192-2  that version of it
    DIR, DIR@REF          a git repository of the user's, whose objects are borrowed
    linux-6.1.tar.xz      a tarball, or a linux-source .deb

The repository is the lab's own. A tarball becomes one commit with a fixed author and date, so
that the same sources have the same commit id everywhere. A directory without git is refused: it
has no name for its content, so that every run would have to read all of it to know whether it
is still the same; a tarball has a digest, a commit has an id.

Layout below sources/KEY/: `repo.git`; `source.json`; `files/`, the unpacked tarball, which
`lab.tree` takes over as the first checkout.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lab import host, store
from lab.model import Emit, Event, EventKind, LabFault, Source, UserError, decode, encode
from lab.store import Cache

FORMS = (
    "a kernel source is: debian:6.1, debian:6.12, a git directory DIR or DIR@REF, "
    "a tarball, a linux-source .deb"
)
# What every git command of the lab's own runs with: nobody's configuration, no prompt, and
# an author and a date that make commit ids a function of the content.
OWN_GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "kernel patch lab",
    "GIT_AUTHOR_EMAIL": "lab@localhost",
    "GIT_AUTHOR_DATE": "946684800 +0000",
    "GIT_COMMITTER_NAME": "kernel patch lab",
    "GIT_COMMITTER_EMAIL": "lab@localhost",
    "GIT_COMMITTER_DATE": "946684800 +0000",
}
_USER_GIT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
# No attribute of the tree changes a byte on the way in or out.
_ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding -export-subst\n"
_SOURCE_JSON = "source.json"
_INSTALLED = Path("/usr/src")
_TARBALL = re.compile(r".*\.(tar(\.(xz|gz|bz2|zst|lzma))?|tgz|txz|deb)")
_DEBIAN = re.compile(r"debian:(\d+\.\d+)(?:=([A-Za-z0-9.+~:-]+))?")
_PARTIAL = r"^(extensions\.partialclone|remote\..*\.promisor)$"
_DOWNLOAD_TIMEOUT_S = 3600.0
_IMPORT_TIMEOUT_S = 1800.0


def open_source(name: str, *, cache: Cache, emit: Emit) -> Source:
    """The source that `name` names, imported if it is not there yet.

    Raises `UserError` for what is no kernel source or cannot be had.
    """
    if name.startswith("debian:"):
        return _debian(name, cache, emit)
    found = _directory_and_ref(name)
    if found is not None:
        return _git_directory(name, *found, cache)
    path = Path(name).expanduser()
    if path.is_file() and _TARBALL.fullmatch(path.name):
        return _tarball(name, path, cache, emit)
    if path.is_file():
        raise UserError(f"{name} is no tarball", hint=FORMS)
    raise UserError(f"{name!r} is no kernel source: no such file or directory", hint=FORMS)


def git(
    git_dir: Path,
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    check: bool = True,
    cwd: Path | None = None,
    wrapper: tuple[str | Path, ...] = (),
    leash: bool = False,
    timeout_s: float = 300.0,
) -> host.Completed:
    """Run git on a repository of the lab's own, within the command `wrapper`.

    `leash` is for what takes long: a question of milliseconds ends by itself if the lab dies.
    """
    return host.run(
        [*wrapper, "git", "--no-pager", "-c", "gc.auto=0", "-c", "maintenance.auto=false",
         "-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false", "-c", "core.fileMode=true",
         "-c", "commit.gpgSign=false", "-c", "core.fsmonitor=false", *words],
        env={**OWN_GIT, "GIT_DIR": str(git_dir), **(env or {})},
        stdin=stdin,
        cwd=cwd,
        check=check,
        leash=leash,
        timeout_s=timeout_s,
    )  # fmt: skip


# --- Debian ------------------------------------------------------------------------------------


def _debian(name: str, cache: Cache, emit: Emit) -> Source:
    match = _DEBIAN.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r}: no Debian kernel source", hint=FORMS)
    package, wanted = f"linux-source-{match[1]}", match[2]
    installed = _INSTALLED / f"{package}.tar.xz"
    if installed.is_file():
        version = _installed_version(package)
        if version and wanted in (None, version):
            return _import_debian(name, package, version, installed, cache, emit)
    pointer = cache.sub("sources") / f"{package}{f'={wanted}' if wanted else ''}.version"
    if pointer.is_file():
        # A run of tomorrow is compared with one of today: the version that was taken stays.
        whole = _whole(cache, f"{package}-{pointer.read_text().strip()}", name)
        if whole is not None:
            return whole
    with (
        cache.lock(f"download {package}", emit=emit, step=f"download {package}"),
        cache.staging() as staging,
    ):
        package_file = _download(package, wanted, staging, emit)
        version = _deb_field(package_file, "Version")
        tarball = _unpack_deb(package_file, staging)
        source = _import_debian(name, package, version, tarball, cache, emit)
        store.write_atomically(pointer, version.encode())
    return source


def _installed_version(package: str) -> str:
    with contextlib.suppress(UserError):  # no dpkg: the file is somebody's own
        done = host.run(["dpkg-query", "-W", "-f", "${Version}", package], check=False)
        return done.text.strip() if done.status == 0 else ""
    return ""


def _download(package: str, version: str | None, staging: Path, emit: Emit) -> Path:
    """Get a package with apt-get, which checks its signature and needs no root for it."""
    step = f"download {package}"
    emit(Event(kind=EventKind.STARTED, step=step))
    asked = f"{package}={version}" if version else package
    done = host.run(
        ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=", asked],
        cwd=staging,
        check=False,
        leash=True,
        timeout_s=_DOWNLOAD_TIMEOUT_S,
    )
    files = sorted(staging.glob("*.deb"))
    if done.status != 0 or not files:
        raise UserError(
            f"apt-get has not got {asked}:\n{done.complaint}",
            hint="sudo apt-get update, and check that /etc/apt/sources.list has this release; "
            "offline, name a linux-source .deb or a tarball",
        )
    emit(Event(kind=EventKind.DONE, step=step, text=files[0].name))
    return files[0]


def _deb_field(package_file: Path, name: str) -> str:
    done = host.run(["dpkg-deb", "-f", package_file, name], check=False)
    if done.status != 0 or not done.text.strip():
        raise UserError(f"{package_file.name} is no Debian package:\n{done.complaint}", hint=FORMS)
    return done.text.strip()


def _unpack_deb(package_file: Path, staging: Path) -> Path:
    """The tarball in a linux-source package."""
    folder = staging / "package"
    host.run(["dpkg-deb", "-x", package_file, folder], leash=True, timeout_s=_IMPORT_TIMEOUT_S)
    found = sorted(folder.glob("usr/src/linux-source-*.tar.*"))
    if len(found) != 1:
        raise UserError(f"{package_file.name} holds no kernel source", hint=FORMS)
    return found[0]


def _import_debian(
    name: str, package: str, version: str, tarball: Path, cache: Cache, emit: Emit
) -> Source:
    key = f"{package}-{version}"
    whole = _whole(cache, key, name)
    if whole is not None:
        return whole
    digest = store.sha256_file(tarball)
    provenance = f"Debian {package} {version}, {tarball.name} sha256 {digest}"
    return _import(name, key, tarball, provenance, cache, emit)


# --- tarballs ----------------------------------------------------------------------------------


def _tarball(name: str, path: Path, cache: Cache, emit: Emit) -> Source:
    if path.suffix == ".deb":
        package, version = _deb_field(path, "Package"), _deb_field(path, "Version")
        key = f"{package}-{version}-{store.sha256_file(path)[:16]}"
        whole = _whole(cache, key, name)
        if whole is not None:
            return whole
        with cache.staging() as staging:
            tarball = _unpack_deb(path, staging)
            provenance = (
                f"Debian {package} {version}, {tarball.name} sha256 {store.sha256_file(tarball)}"
            )
            return _import(name, key, tarball, provenance, cache, emit)
    digest = store.sha256_file(path)
    key = f"tar-{digest[:32]}"
    whole = _whole(cache, key, name)
    if whole is not None:
        return whole
    return _import(name, key, path, f"{path.name} sha256 {digest}", cache, emit)


def _whole(cache: Cache, key: str, name: str) -> Source | None:
    """The source that an earlier import published under `key`."""
    folder = cache.sub("sources") / key
    record = folder / _SOURCE_JSON
    if not record.is_file():
        return None
    # The cache may have been moved since.
    return replace(decode(record.read_bytes(), Source), name=name, git_dir=folder / "repo.git")


def _import(
    name: str, key: str, tarball: Path, provenance: str, cache: Cache, emit: Emit
) -> Source:
    """Unpack and commit in staging, then publish in one rename: a killed import leaves nothing."""
    final = cache.sub("sources") / key
    with cache.lock(f"source {key}", emit=emit, step=f"import {name}"):
        whole = _whole(cache, key, name)  # another lab may have made it while we waited
        if whole is not None:
            return whole
        cache.sweep()  # an import that was killed left gigabytes
        with cache.staging() as staging:
            step = f"import {name}"
            emit(Event(kind=EventKind.STARTED, step=step, text=tarball.name))
            made = staging / "source"
            files = _unpack(tarball, made)
            emit(Event(kind=EventKind.PROGRESS, step=step, text="unpacked", fraction=0.4))
            repo = _new_repository(made / "repo.git")
            commit, tree = _commit_files(files, repo, provenance)
            source = Source(
                name=name,
                git_dir=final / "repo.git",
                commit=commit,
                tree=tree,
                version=_version(repo, commit, name),
                provenance=provenance,
            )
            (made / _SOURCE_JSON).write_bytes(encode(source))
            store.publish(made, final)
            emit(Event(kind=EventKind.DONE, step=step, text=f"Linux {source.version}"))
    return source


def _unpack(tarball: Path, made: Path) -> Path:
    """Unpack into `made/files`, without the one directory that everything in a tarball is in."""
    raw = made / "unpacked"
    raw.mkdir(parents=True)
    # tar refuses absolute names and `..`, and makes symbolic links only after all files.
    done = host.run(
        ["tar", "--extract", "--no-same-owner", "--no-same-permissions",
         "--file", tarball, "--directory", raw],
        check=False,
        leash=True,
        timeout_s=_IMPORT_TIMEOUT_S,
    )  # fmt: skip
    if done.status != 0:
        if "No space left" in done.complaint:
            raise LabFault(
                f"no space left on the file system of {raw}",
                hint="lab clean frees the cache; [paths] in lab.toml moves it",
            )
        raise UserError(f"{tarball} cannot be unpacked:\n{done.complaint}", hint=FORMS)
    inside = list(raw.iterdir())
    top = inside[0] if len(inside) == 1 and inside[0].is_dir() else raw
    files = made / "files"
    top.rename(files)
    shutil.rmtree(raw, ignore_errors=True)
    return files


def _new_repository(repo: Path) -> Path:
    host.run(
        ["git", "init", "--quiet", "--bare", "--template=", "--initial-branch=source", repo],
        env=OWN_GIT,
    )
    (repo / "info").mkdir(exist_ok=True)
    (repo / "info/attributes").write_text(_ATTRIBUTES)
    return repo


def _commit_files(files: Path, repo: Path, message: str) -> tuple[str, str]:
    """One commit of all of `files`; its id depends on the content and the message alone."""
    # A threshold of one byte makes git stream the files into one pack: 0.3 GB instead of 80,000
    # loose objects of 1.4 GB. Level 1: the pack is written once and read a few times.
    git(repo, "-c", "core.bigFileThreshold=1", "-c", "core.compression=1", "add", "--all",
        "--force", ".", env={"GIT_WORK_TREE": str(files), "GIT_INDEX_FILE": str(repo / "index")},
        leash=True, timeout_s=_IMPORT_TIMEOUT_S)  # fmt: skip
    tree = git(repo, "write-tree").text.strip()
    (repo / "index").unlink()
    commit = git(repo, "commit-tree", tree, "-m", message).text.strip()
    git(repo, "update-ref", "refs/heads/source", commit)
    return commit, tree


# --- git directories ---------------------------------------------------------------------------


def _directory_and_ref(name: str) -> tuple[Path, str] | None:
    """DIR@REF taken apart; both may hold an `@`, so the longest directory that exists wins."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path, "HEAD"
    cuts = [at for at, char in enumerate(name) if char == "@"]
    for at in reversed(cuts):
        path = Path(name[:at]).expanduser()
        if at and path.is_dir():
            return path, name[at + 1 :] or "HEAD"
    return None


def _ask(directory: Path, *words: str) -> host.Completed:
    """Ask the user's repository; nothing is written to it."""
    return host.run(
        ["git", "--no-optional-locks", "--no-pager", "-c", "core.fsmonitor=false",
         "-C", directory, *words],
        env=_USER_GIT,
        check=False,
    )  # fmt: skip


def _git_directory(name: str, directory: Path, ref: str, cache: Cache) -> Source:
    found = _ask(directory, "rev-parse", "--path-format=absolute", "--git-common-dir",
                 "--is-bare-repository", "--show-toplevel")  # fmt: skip
    words = found.text.splitlines()
    if len(words) < 2:
        raise UserError(
            f"{directory} is no usable git repository:\n{found.complaint}",
            hint="make a tarball of it (tar -caf linux.tar.xz DIR), or git init && git add . && "
            f"git commit; {FORMS}",
        )
    common, bare = Path(words[0]), words[1] == "true"
    if not bare and (len(words) < 3 or Path(words[2]).resolve() != directory.resolve()):
        raise UserError(f"{directory} is a part of the repository {words[2:]}", hint=FORMS)
    if _ask(directory, "config", "--get-regexp", _PARTIAL).text.strip():
        raise UserError(
            f"{directory} is a partial clone: objects that it lacks cannot be borrowed",
            hint="git fetch --refetch --filter=blob:limit=1t completes it, or use a tarball",
        )
    resolved = _ask(directory, "rev-parse", "--verify", "--quiet", "--end-of-options",
                    f"{ref}^{{commit}}")  # fmt: skip
    if resolved.status != 0:
        raise UserError(f"{directory}: {ref!r} is no commit", hint=f"git -C {directory} tag lists")
    commit = resolved.text.strip()
    repo = _borrowing_repository(directory, common, cache)
    tree = git(repo, "rev-parse", f"{commit}^{{tree}}").text.strip()
    described = _ask(directory, "describe", "--always", "--tags", commit).text.strip()
    dirty = not bare and bool(
        _ask(directory, "status", "--porcelain", "--untracked-files=no").text.strip()
    )
    return Source(
        name=name,
        git_dir=repo,
        commit=commit,
        tree=tree,
        version=_version(repo, commit, name),
        provenance=f"git {described} of {directory.resolve()}",
        dirty=dirty,
    )


def _borrowing_repository(directory: Path, common: Path, cache: Cache) -> Path:
    """A bare repository of ours that reads the user's objects, with a copy of the names of tags."""
    objects = (common / "objects").resolve()
    fmt = _ask(directory, "rev-parse", "--show-object-format").text.strip() or "sha1"
    digest = hashlib.sha256(b"\0".join((bytes(objects), fmt.encode())))
    key = f"git-{digest.hexdigest()[:32]}"
    final = cache.sub("sources") / key
    repo = final / "repo.git"
    with cache.lock(f"source {key}"):
        if not repo.is_dir():
            with cache.staging() as staging:
                made = staging / "source"
                host.run(
                    ["git", "init", "--quiet", "--bare", "--template=", f"--object-format={fmt}",
                     made / "repo.git"],
                    env=OWN_GIT,
                )  # fmt: skip
                (made / "repo.git/info").mkdir(exist_ok=True)
                (made / "repo.git/info/attributes").write_text(_ATTRIBUTES)
                borrowed = made / "repo.git/objects/info/alternates"
                borrowed.parent.mkdir(exist_ok=True)
                borrowed.write_text(f"{objects}\n")
                store.publish(made, final)
        tags = _ask(directory, "for-each-ref", "--format=%(objectname) %(refname)", "refs/tags")
        store.write_atomically(repo / "packed-refs", tags.stdout)
        shallow = common / "shallow"
        if shallow.is_file():
            store.write_atomically(repo / "shallow", shallow.read_bytes())
        else:
            (repo / "shallow").unlink(missing_ok=True)
    return repo


# --- what makes it a kernel --------------------------------------------------------------------


def _version(repo: Path, commit: str, name: str) -> str:
    """VERSION.PATCHLEVEL.SUBLEVEL of the Makefile. Raises `UserError` if it is no kernel's."""
    shown = git(repo, "cat-file", "blob", f"{commit}:Makefile", check=False)
    kconfig = git(repo, "cat-file", "-e", f"{commit}:Kconfig", check=False)
    values: dict[str, str] = dict(
        re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", shown.text, re.M)
    )
    if shown.status != 0 or kconfig.status != 0 or not values.get("VERSION", "").isdigit():
        raise UserError(
            f"{name}: not a kernel tree: no Kconfig, or no VERSION in its Makefile", hint=FORMS
        )
    parts = [values.get(key) or "0" for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    return ".".join(parts) + values.get("EXTRAVERSION", "")
