"""Root images: recipes, where packages come from, overlays, and a whole image made for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lab import host, image, model
from lab.arch import ARCHS
from lab.arch import arch as arch_row
from lab.image import ImageManifest, Package
from lab.model import Event, EventKind, LabFault, RootImage, UserError
from lab.store import Cache

AMD64 = arch_row("x86_64")
NATIVE = next(name for name, row in ARCHS.items() if row.machine == os.uname().machine)
FOREIGN = next(name for name in ARCHS if name != NATIVE)
LEAST = 'suite = "bookworm"\n'


def recipe_file(folder: Path, text: str, name: str = "own") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(text)
    return folder


def published(cache: Cache, size_bytes: int = 1 << 20, name: str = "default") -> RootImage:
    """An image that is not one, in its place in the cache."""
    folder = cache.sub("images") / f"root-x86_64-{name}-0123456789abcdef"
    folder.mkdir()
    path = folder / "root.ext4"
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
    found = RootImage(
        name=name,
        arch="x86_64",
        path=path,
        sha256="0" * 64,
        size_bytes=size_bytes,
        packages=1,
        recipe_sha256="1" * 64,
    )
    manifest = ImageManifest(
        image=found,
        made="2026-01-01T00:00:00+00:00",
        suite="bookworm",
        sources=("deb http://example.org/debian bookworm main",),
        packages=(Package(name="bash", version="5.2"),),
    )
    (folder / "manifest.json").write_bytes(model.encode(manifest))
    return found


# --- recipes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", sorted(path.stem for path in image.RECIPES.glob("*.toml")))
def test_every_recipe_reads_for_every_architecture(name: str, arch: str) -> None:
    recipe = image.read_recipe(name, arch_row(arch))
    assert {"e2fsprogs", "xfsprogs", "btrfs-progs", "util-linux"} <= set(recipe.packages)


def test_recipes_differ_by_architecture_and_by_every_byte(tmp_path: Path) -> None:
    recipes = recipe_file(tmp_path / "r", LEAST)
    first = image.read_recipe("own", AMD64, recipes=recipes)
    other_arch = image.read_recipe("own", arch_row("arm64"), recipes=recipes)
    recipe_file(recipes, LEAST + "# a comment\n")
    other_text = image.read_recipe("own", AMD64, recipes=recipes)
    assert len({first.sha256, other_arch.sha256, other_text.sha256}) == 3


def test_an_architecture_adds_its_packages(tmp_path: Path) -> None:
    text = LEAST + 'packages = ["bash"]\n[arch.arm64]\npackages = ["kmod"]\n'
    recipes = recipe_file(tmp_path / "r", text)
    assert image.read_recipe("own", AMD64, recipes=recipes).packages == ("bash",)
    arm = image.read_recipe("own", arch_row("arm64"), recipes=recipes)
    assert arm.packages == ("bash", "kmod")


def test_an_architecture_may_have_a_suite_of_its_own(tmp_path: Path) -> None:
    recipes = recipe_file(tmp_path / "r", LEAST + '[arch.arm64]\nsuite = "trixie"\n')
    assert image.read_recipe("own", AMD64, recipes=recipes).suite == "bookworm"
    assert image.read_recipe("own", arch_row("arm64"), recipes=recipes).suite == "trixie"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("suite = [", "own.toml"),
        ("", "suite"),
        ('suite = "../x"\n', "suite"),
        ('suite = "--help"\n', "suite"),
        (LEAST + 'packages = ["bash", "--include=x"]\n', "packages"),
        (LEAST + 'packages = "bash"\n', "packages"),
        (LEAST + 'exclude = ["usr; rm"]\n', "exclude"),
        (LEAST + "headroom_bytes = -1\n", "headroom_bytes"),
        (LEAST + "headroom_bytes = true\n", "headroom_bytes"),
        (LEAST + 'pakages = ["bash"]\n', "'pakages'"),
        (LEAST + '[arch.x86_64]\npakages = ["bash"]\n', "'arch.x86_64.pakages'"),
        (LEAST + 'arch = "x86_64"\n', "arch"),
    ],
)
def test_a_bad_recipe_is_named_with_its_key(tmp_path: Path, text: str, complaint: str) -> None:
    recipes = recipe_file(tmp_path / "r", text)
    with pytest.raises(UserError) as caught:
        image.read_recipe("own", AMD64, recipes=recipes)
    assert complaint in caught.value.message and "own.toml" in caught.value.message


def test_an_unknown_recipe_is_answered_with_the_known() -> None:
    with pytest.raises(UserError, match="'soup'") as caught:
        image.read_recipe("soup", AMD64)
    assert "default" in caught.value.hint


# --- where packages come from --------------------------------------------------------------------

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_the_hosts_own_mirrors_are_used() -> None:
    said = "\n".join(
        [
            "http://mirror.example/debian/|bookworm|main|/etc/own.gpg|Debian",
            "http://mirror.example/debian/|bookworm|contrib|/etc/own.gpg|Debian",
            "http://mirror.example/debian/|bookworm-updates|main|$(SIGNED_BY)|$(ORIGIN)",
            "http://mirror.example/sec/|bookworm-security|main||Debian",
            "http://other.example/debian/|bookworm-updates|main||Debian",
            "http://vendor.example/apt/|bookworm|main||Vendor",
            "https://cloud.example/apt/|cloud-sdk-bookworm|main||cloud",
            "nonsense",
        ]
    )
    assert image.sources_from(said, "bookworm") == (
        "deb [signed-by=/etc/own.gpg] http://mirror.example/debian bookworm main",
        f"deb [signed-by={KEY}] http://mirror.example/debian bookworm-updates main",
        f"deb [signed-by={KEY}] http://mirror.example/sec bookworm-security main",
    )


def test_a_host_without_the_suite_has_no_sources_for_it() -> None:
    said = "http://mirror.example/debian/|bookworm-security|main||Debian"
    assert image.sources_from(said, "bookworm") == ()
    assert image.sources_from("", "bookworm") == ()


def test_the_hosts_proxy_is_used_and_nothing_else_of_its_apt() -> None:
    dump = "\n".join(
        [
            'APT::Install-Recommends "true";',
            'Acquire::http::Proxy "http://proxy.example:3128";',
            'Acquire::http::Proxy "";',
            'Acquire::Check-Valid-Until "false";',
            'Dir::Etc "etc/apt";',
        ]
    )
    assert image.apt_options_from(dump) == (
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::Check-Valid-Until "false";',
    )


def test_arguments_of_mmdebstrap(tmp_path: Path) -> None:
    text = LEAST + 'packages = ["bash", "kmod"]\nexclude = ["/usr/share/man/*"]\n'
    recipe = image.read_recipe("own", AMD64, recipes=recipe_file(tmp_path / "r", text))
    argv = image.mmdebstrap_arguments(
        AMD64, recipe, Path("/w/root"), ("deb http://m/debian bookworm main",), ('A::B "c";',)
    )
    assert argv == (
        "--mode=root",
        "--format=directory",
        "--variant=minbase",
        "--architectures=amd64",
        "--include=bash,kmod",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        '--aptopt=A::B "c";',
        "bookworm",
        "/w/root",
        "deb http://m/debian bookworm main",
    )


# --- using images --------------------------------------------------------------------------------


def test_images_are_listed_where_they_are_now(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path / "a")
    published(cache)
    published(cache, name="other")
    (cache.sub("images") / "root-x86_64-half").mkdir()
    (tmp_path / "a").rename(tmp_path / "b")
    found = image.list_images(Cache(root=tmp_path / "b"))
    assert [one.name for one in found] == ["default", "other"]
    assert all(one.path.is_file() for one in found)


def test_a_manifest_round_trips(tmp_path: Path) -> None:
    found = published(Cache(root=tmp_path))
    raw = (found.path.parent / "manifest.json").read_bytes()
    assert model.encode(model.decode(raw, ImageManifest)) == raw


def test_an_image_that_lost_its_end_is_a_fault(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    found = published(cache)
    os.truncate(found.path, 4096)
    with pytest.raises(LabFault, match="not whole"):
        image.list_images(cache)


def test_a_scratch_disk_takes_no_room(tmp_path: Path) -> None:
    path = image.scratch_disk(tmp_path, "scratch", 1 << 30)
    assert path.stat().st_size == 1 << 30
    assert path.stat().st_blocks == 0
    with pytest.raises(FileExistsError):
        image.scratch_disk(tmp_path, "scratch", 1 << 20)


@pytest.mark.fake
def test_an_overlay_names_its_backing_file_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = published(Cache(root=Path("cache")))
    (tmp_path / "trial").mkdir()
    path = image.overlay(found, Path("trial"))
    said = json.loads(host.run(("qemu-img", "info", "--output=json", path)).text)
    assert said["format"] == "qcow2"
    assert said["backing-filename"] == str(tmp_path / "cache" / found.path.relative_to("cache"))
    assert said["backing-filename-format"] == "raw"
    assert said["virtual-size"] == found.size_bytes


# --- the shell -----------------------------------------------------------------------------------

INSIDE = """
#include <stdio.h>
#include <sys/stat.h>
int main(int argc, char **argv)
{
	struct stat st;

	printf("inside %s %d\\n", argv[argc - 1], stat("/root-only", &st) == 0 && st.st_uid == 0);
	fclose(fopen("/written", "w"));
	for (int i = 2; i < argc; i++)
		fclose(fopen(argv[i], "w"));
	return 7;
}
"""


def make_userland(tmp_path: Path, arch: str) -> tuple[Cache, RootImage]:
    """An image whose /bin/sh is a program of ours: all that a userland needs here."""
    cache = Cache(root=tmp_path / "cache")
    found = replace(published(cache, size_bytes=32 << 20), arch=arch)
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "root-only").touch()
    (tmp_path / "inside.c").write_text(INSIDE)
    row = arch_row(arch)
    gcc = "gcc" if row.machine == os.uname().machine else f"{row.cross}gcc"
    host.run((gcc, "-static", "-o", tree / "bin" / "sh", tmp_path / "inside.c"))
    options = ("-q", "-t", "ext4", "-d", tree, "-E", "root_owner=0:0")
    host.run(("mke2fs", *options, found.path))
    return cache, found


@pytest.mark.fake
@pytest.mark.parametrize("arch", ARCHS)
def test_a_shell_runs_in_a_copy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arch: str
) -> None:
    cache, found = make_userland(tmp_path, arch)
    before = found.path.read_bytes()
    try:
        status = image.shell(found, cache=cache, command=("/bin/sh", "word"))
    except UserError as error:
        if arch == NATIVE:
            raise
        pytest.skip(error.message)  # Linux before 6.7, and no emulator registered
    assert status == 7
    assert "inside word" in capfd.readouterr().out
    assert found.path.read_bytes() == before
    assert list(cache.sub("staging").iterdir()) == []
    assert str(cache.root) not in Path("/proc/self/mounts").read_text()


@pytest.mark.fake
def test_a_bound_folder_is_the_real_one(tmp_path: Path) -> None:
    cache, found = make_userland(tmp_path, NATIVE)
    shared = tmp_path / "shared"
    shared.mkdir()
    target = shared / "made"
    image.shell(found, cache=cache, bind=(shared,), command=("/bin/sh", "x", str(target)))
    assert target.exists()


@pytest.mark.fake
def test_a_foreign_image_needs_an_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cache = Cache(root=tmp_path / "cache")
    with pytest.raises(UserError) as caught:
        image.root_image(FOREIGN, cache=cache, emit=lambda event: None)
    assert "not installed" in caught.value.message and "apt-get" in caught.value.hint
    assert list(cache.sub("images").iterdir()) == []


# --- whole images ------------------------------------------------------------------------------


@pytest.mark.vm
@pytest.mark.timeout(1200)
def test_a_whole_image(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    events: list[Event] = []
    made = image.root_image("x86_64", cache=cache, emit=events.append)
    assert [events[0].kind, events[-1].kind] == [EventKind.STARTED, EventKind.DONE]
    assert any("download" in event.text for event in events)
    check = host.run(("e2fsck", "-f", "-n", made.path), check=False, timeout_s=120)
    assert check.status == 0, check.complaint
    manifest = model.decode((made.path.parent / "manifest.json").read_bytes(), ImageManifest)
    names = {package.name for package in manifest.packages}
    assert {"xfsprogs", "btrfs-progs", "e2fsprogs"} <= names and len(names) == made.packages
    # Files belong to root, and the file system takes far less room than its size.
    owner = host.run(("debugfs", "-R", "stat /etc/passwd", made.path)).text
    assert "User:     0" in owner
    assert made.path.stat().st_blocks * 512 < made.size_bytes - (256 << 20)
    assert list(cache.sub("staging").iterdir()) == []
    # The second time there is nothing to do.
    events.clear()
    assert image.root_image("x86_64", cache=cache, emit=events.append) == made
    assert events == []
    status = image.shell(made, cache=cache, command=("mkfs.btrfs", "--version"))
    assert status == 0


KILLED = """
import sys
from pathlib import Path
from lab import image
from lab.store import Cache
image.root_image("x86_64", cache=Cache(root=Path(sys.argv[1])),
                 emit=lambda event: print(event.text, flush=True))
"""


@pytest.mark.vm
@pytest.mark.timeout(300)
def test_a_killed_lab_leaves_nothing_running_and_nothing_mounted(tmp_path: Path) -> None:
    lab = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert lab.stdout is not None
    for line in lab.stdout:
        if "extracting" in line:
            break
    lab.send_signal(signal.SIGKILL)
    lab.wait()
    deadline = time.monotonic() + 30
    while using(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert using(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    cache = Cache(root=tmp_path)
    assert cache.sweep() == 1
    assert list(cache.sub("staging").iterdir()) == []
    assert image.list_images(cache) == ()
    shutil.rmtree(tmp_path)


def using(folder: Path) -> list[str]:
    """Command lines of processes that name the folder, except ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(words.decode("utf-8", "replace"))
    return found
