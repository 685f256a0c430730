"""`lab replay`: a run planned again from what it kept, with real git and short of any build."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import campaign, cli, model
from lab.archive import replay
from lab.archive.replay import Replay
from lab.config import Build, Config, Faultstress, Machine, Paths, Run
from lab.model import ExitCode, Manifest, UserError
from lab.series import parse, toml_text
from lab.store import Cache, remove_tree, write_atomically
from lab.subject import Request
from tests import records
from tests.test_tree import commit, edit, git, repository

__all__ = ["repository"]

TOML = 'title = "mine"\nconfig = ["CONFIG_TOY=y"]\ncounters = ["fault_read"]\n'
Begin = Callable[..., Path]


def _silent(_event: object) -> None:
    pass


@pytest.fixture
def series(repository: Path, tmp_path: Path) -> Path:
    """Two of three patches, in a quilt order, with a series.toml."""
    for number in range(1, 4):
        edit(repository / "mm/memory.c", **{f"n{20 * number - 10}": f"changed {number}"})
        commit(repository, f"mm: change {number}")
    folder = tmp_path / "mine"
    git(repository, "format-patch", "--quiet", "-o", str(folder), "v6.1.7")
    patches = sorted(folder.glob("*.patch"))
    (folder / "series").write_text(f"{patches[2].name}\n{patches[0].name}\n")
    (folder / "series.toml").write_text(TOML)
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs"))


@pytest.fixture
def begin(repository: Path, series: Path, paths: Paths, tmp_path: Path) -> Begin:
    """Begins a run as `lab run` does, up to the first build, and ends it there."""

    def run(**changes: object) -> Path:
        config = msgspec.structs.replace(
            Config(
                kernel=f"{repository}@v6.1.7",
                arch=("x86_64",),
                suites=("boot", "faultstress"),
                paths=paths,
                machine=Machine(cpus=1),
                run=Run(repeats=3, max_repeats=9, seed=7, only=("faultstress/ext4/*",)),
                faultstress=Faultstress(duration_s=2.0),
            ),
            **changes,
        )
        request = Request(patch=str(series), config=config, command=("lab", "run"))
        cache = Cache(root=config.paths.cache_dir)
        planned, manifest = campaign.prospect(request, cache, _silent)
        folder = config.paths.runs_dir / manifest.run
        write_atomically(folder / "manifest.json", model.encode(manifest))
        campaign._keep_series(planned.subject.series, folder)
        campaign._keep_fragments(config, folder)
        return folder

    return run


def prepared(folder: Path, paths: Paths, **more: str) -> Replay:
    return replay.prepare(folder, paths=paths, command=("lab", "replay"), emit=_silent, **more)  # type: ignore[arg-type]


def told(folder: Path) -> Manifest:
    return model.decode((folder / "manifest.json").read_bytes(), Manifest)


def plan_of(found: Replay, paths: Paths) -> Manifest:
    return campaign.prospect(found.request, Cache(root=paths.cache_dir), _silent)[1]


@pytest.mark.fake
def test_the_same_run_again(begin: Begin, paths: Paths, series: Path, repository: Path) -> None:
    """Its origins have gone or moved on; what the run kept suffices."""
    folder = begin()
    shutil.rmtree(series)
    edit(repository / "mm/memory.c", n1="moved on")
    commit(repository, "mm: later")
    git(repository, "tag", "--force", "v6.1.7")
    found = prepared(folder, paths)
    assert found.changed == ()
    then, now = told(folder), plan_of(found, paths)
    assert now.plan_digest == then.plan_digest
    assert now.replays == then.run
    assert (now.series_digest, now.series_title) == (then.series_digest, "mine")
    assert now.series_origin == then.series_origin
    assert now.patch_names == ("mm: change 3", "mm: change 1")
    assert (now.source, now.cases, now.seed) == (then.source, then.cases, 7)
    taken = found.request.series
    assert taken is not None
    assert (taken.fragment, taken.counters) == ("CONFIG_TOY=y\n", ("fault_read",))


@pytest.mark.fake
def test_what_differs_is_told(begin: Begin, paths: Paths) -> None:
    folder = begin()
    then = told(folder)
    older = replace(
        then,
        tools=then.tools | {"gcc": "gcc 11.1", "qemu-system-x86_64": "QEMU 6.0"},
        host=then.host | {"cpus": "64"},
        lab_version="0.0.1",
        fragments=then.fragments | {"base.config": "0" * 64},
        cases=(*then.cases, "faultstress/ext4/vanished"),
    )
    (folder / "manifest.json").write_bytes(model.encode(older))
    changed = {one.what: (one.first, one.second) for one in prepared(folder, paths).changed}
    assert set(changed) == {
        "tool gcc",
        "tool qemu-system-x86_64",
        "host cpus",
        "lab",
        "fragment base.config",
        "cases",
    }
    assert changed["tool gcc"] == ("gcc 11.1", then.tools["gcc"])
    assert "faultstress/ext4/vanished" in changed["cases"][0]


@pytest.mark.fake
def test_a_fragment_that_changed_is_taken_from_the_run(
    begin: Begin, paths: Paths, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.config"
    mine.write_text("CONFIG_TOY=y\n")
    folder = begin(build=Build(fragments=(str(mine),)))
    assert prepared(folder, paths).request.config.build.fragments == (str(mine),)
    mine.write_text("CONFIG_TOY=n\n")
    (kept,) = prepared(folder, paths).request.config.build.fragments
    assert Path(kept).read_text() == "CONFIG_TOY=y\n"
    Path(kept).unlink()
    with pytest.raises(UserError, match=r"mine\.config is not what it was"):
        prepared(folder, paths)


@pytest.mark.fake
def test_a_kernel_that_left_the_cache_is_found_where_it_came_from(
    begin: Begin, paths: Paths, repository: Path
) -> None:
    folder = begin()
    edit(repository / "mm/memory.c", n1="moved on")
    commit(repository, "mm: later")
    was = git(repository, "rev-parse", "v6.1.7^{commit}")
    git(repository, "tag", "--force", "v6.1.7")
    remove_tree(paths.cache_dir)
    found = prepared(folder, paths)
    assert found.request.source is not None
    assert found.request.source.commit == was
    assert found.changed == ()


@pytest.mark.fake
def test_a_kernel_that_is_nowhere_is_named(begin: Begin, paths: Paths, repository: Path) -> None:
    folder = begin()
    remove_tree(paths.cache_dir)
    remove_tree(repository)
    with pytest.raises(UserError, match=r"is not here any more as it was: 6\.1\.7, commit"):
        prepared(folder, paths)


@pytest.mark.fake
def test_another_tree_under_the_same_name_is_not_taken(
    begin: Begin, paths: Paths, repository: Path
) -> None:
    """Debian's package moves on under its name, and so does a branch."""
    folder = begin()
    then = told(folder)
    gone = replace(then.source, git_dir=Path("/none"), commit="1" * 40, tree="2" * 40)
    (folder / "manifest.json").write_bytes(model.encode(replace(then, source=gone)))
    with pytest.raises(UserError, match=r"is now 6\.1\.7, commit"):
        prepared(folder, paths)


@pytest.mark.fake
def test_a_series_that_was_touched_is_refused(begin: Begin, paths: Paths) -> None:
    folder = begin()
    patch = folder / "series" / "0001-mm-change-3.patch"
    patch.write_text(patch.read_text().replace("changed 3", "changed 4"))
    with pytest.raises(UserError, match="is not the series that"):
        prepared(folder, paths)


@pytest.mark.fake
def test_the_accelerator_is_the_one_that_the_run_had(begin: Begin, paths: Paths) -> None:
    folder = begin()
    assert prepared(folder, paths).request.config.machine.accel == "auto"
    (folder / "record.json").write_bytes(model.encode(records.clean()))
    assert prepared(folder, paths).request.config.machine.accel == "tcg"
    assert prepared(folder, paths, accel="kvm").request.config.machine.accel == "kvm"


@pytest.mark.parametrize(
    ("config", "said"),
    [("", "did not keep its configuration"), ('{"karnel": ""}', "a configuration of another lab")],
)
def test_a_run_of_another_lab_says_how_it_was_started(
    tmp_path: Path, config: str, said: str
) -> None:
    write_atomically(tmp_path / "manifest.json", model.encode(records.manifest(config=config)))
    with pytest.raises(UserError, match=said) as caught:
        prepared(tmp_path, Paths())
    assert "lab run --patch patches/demo" in caught.value.hint


@pytest.mark.fake
def test_the_check_of_the_command_line(
    begin: Begin, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin()
    where = ("-q", "--cache", paths.cache, "--runs", paths.runs, "replay", folder.name, "--check")
    assert cli.entry([*where]) == ExitCode.CLEAN
    assert "all that it depended on is as it was" in capsys.readouterr().out
    then = told(folder)
    older = replace(then, tools=then.tools | {"gcc": "gcc 11.1"})
    (folder / "manifest.json").write_bytes(model.encode(older))
    assert cli.entry([*where]) == ExitCode.INCONCLUSIVE
    assert "tool gcc: gcc 11.1 -> " in capsys.readouterr().out
    assert cli.entry([*where, "--json"]) == ExitCode.INCONCLUSIVE
    assert '"tool gcc"' in capsys.readouterr().out
    assert [path.name for path in paths.runs_dir.iterdir()] == [folder.name], "nothing was begun"


# --- what series.toml keeps --------------------------------------------------------------------

PATCH = (
    b"From: A <a@example.org>\nSubject: [PATCH] x\n\n---\n"
    b"--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1 +1 @@\n-a\n+b\n"
)
_text = st.text(st.characters(codec="utf-8"), max_size=40)


@given(title=_text.filter(str.strip), cover=_text, suites=st.lists(_text, max_size=3))
def test_a_series_toml_says_what_the_series_was(title: str, cover: str, suites: list[str]) -> None:
    plain = parse([("x.patch", PATCH)], title="", origin="x", ordered=True)
    whole = replace(
        plain,
        title=title,
        cover=cover,
        suites=tuple(suites),
        counters=("fault_read",),
        kernel="debian:6.1",
        fragment="CONFIG_A=y\n# CONFIG_B is not set\n",
    )
    again = parse(
        [("x.patch", PATCH)], title="", origin="x", toml=toml_text(whole).encode(), ordered=True
    )
    assert again == whole
