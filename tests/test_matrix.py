"""The matrix of lab.toml: its jobs, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from lab import config, matrix
from lab.matrix import Job
from lab.model import UserError
from lab.suites.registry import SUITES

SERIES = 'series = ["patches/srcu-vma"]\n'


def jobs(text: str) -> tuple[Job, ...]:
    return matrix.jobs(config.parse(f"[matrix]\n{text}", file="lab.toml"), file="lab.toml")


def rows(text: str, *keys: str) -> list[tuple[str, ...]]:
    return [tuple(getattr(job, key) for key in keys) for job in jobs(text)]


def test_every_combination_once_in_the_order_of_the_table() -> None:
    text = f'{SERIES}kernels = ["debian:6.1", "debian:6.12"]\narch = ["x86_64", "arm64"]\n'
    text += 'suites = ["boot", "faultstress"]\nprofiles = ["plain", "plain"]\n'
    assert rows(text, "kernel", "arch", "profile", "suite") == [
        (kernel, arch, "plain", suite)
        for kernel in ("debian:6.1", "debian:6.12")
        for arch in ("x86_64", "arm64")
        for suite in ("boot", "faultstress")
    ]


def test_an_axis_that_is_left_out_is_what_lab_run_takes() -> None:
    text = 'arch = ["arm64"]\nprofile = "kasan"\nsuites = ["boot", "kselftest"]\n'
    parsed = config.parse(f"{text}[matrix]\n{SERIES}", file="lab.toml")
    (job,) = matrix.jobs(parsed, file="lab.toml")
    assert job == Job(
        kernel="",
        series="patches/srcu-vma",
        arch="arm64",
        profile="kasan",
        filesystem="",
        suite="boot,kselftest",
    )
    assert job.command == (
        "lab run --patch patches/srcu-vma --arch arm64 --profile kasan --suite boot,kselftest"
    )


def test_a_file_system_goes_to_the_suites_that_know_it() -> None:
    text = f'{SERIES}arch = ["x86_64"]\nfilesystems = ["ext4", "ext4-1k", "xfs"]\n'
    text += 'suites = ["boot", "faultstress", "xfstests:quick", "boot,faultstress"]\n'
    assert rows(text, "suite", "filesystem") == [
        ("boot", ""),
        ("faultstress", "ext4"),
        ("faultstress", "xfs"),
        ("xfstests:quick", "ext4"),
        ("xfstests:quick", "ext4-1k"),
        ("xfstests:quick", "xfs"),
        ("boot,faultstress", "ext4"),
        ("boot,faultstress", "xfs"),
    ]
    words = {(job.suite, job.filesystem): job.words[-2:] for job in jobs(text)}
    assert words["boot", ""] == ("--suite", "boot")
    assert words["faultstress", "xfs"] == ("--filesystem", "xfs")
    assert words["xfstests:quick", "ext4"] == ("--xfstests-config", "ext4-4k")
    assert words["xfstests:quick", "ext4-1k"] == ("--xfstests-config", "ext4-1k")


def test_every_suite_that_works_on_file_systems_gets_them() -> None:
    names = [name for name in SUITES if name not in ("boot", "kselftest", "xfstests")]
    text = f'{SERIES}arch = ["x86_64"]\nfilesystems = ["ext4"]\nsuites = {names}\n'
    assert rows(text, "suite", "filesystem") == [(name, "ext4") for name in names]
    assert all(job.words[-2:] == ("--filesystem", "ext4") for job in jobs(text))


def test_exclude_takes_out_and_include_puts_in() -> None:
    text = f'{SERIES}kernels = ["debian:6.1"]\narch = ["x86_64", "arm64"]\n'
    text += 'profiles = ["lockdep", "kcsan"]\nsuites = ["boot"]\n'
    text += '[[matrix.exclude]]\narch = "arm64"\nprofile = "kcsan"\n'
    text += '[[matrix.include]]\nkernel = "debian:6.12"\nprofile = "plain"\n'
    assert rows(text, "kernel", "arch", "profile") == [
        ("debian:6.1", "x86_64", "lockdep"),
        ("debian:6.1", "x86_64", "kcsan"),
        ("debian:6.1", "arm64", "lockdep"),
        ("debian:6.12", "x86_64", "plain"),
        ("debian:6.12", "arm64", "plain"),
    ]


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "lab.toml: matrix.series: none is listed", "patches/srcu-vma"),
        ("sereis = []", "lab.toml: unknown key matrix.sereis", "did you mean matrix.series?"),
        (f'{SERIES}arch = ["arm46"]', "lab.toml: matrix.arch: 'arm46'", "did you mean arm64?"),
        (f'{SERIES}profiles = ["fast"]', "matrix.profiles: 'fast' is unknown", "kcsan"),
        (f'{SERIES}filesystems = ["etx4"]', "matrix.filesystems: 'etx4'", "ext4"),
        (f'{SERIES}suites = ["boot,bot"]', "matrix.suites: unknown suite 'bot'", "known: boot"),
        (f'{SERIES}kernels = [""]', "matrix.kernels: it is empty", "default"),
        (f"{SERIES}kernels = [6.1]", "matrix.kernels[0]: Expected `str`", ""),
        (
            f'{SERIES}exclude = [{{ arch = "vax" }}]',
            "matrix.exclude[0].arch: 'vax' is unknown",
            "x86_64",
        ),
        (
            f'{SERIES}include = [{{}}, {{ architecture = "arm64" }}]',
            "unknown key matrix.include[1].architecture",
            "arch",
        ),
        (
            f'{SERIES}kernels = ["debian:6.1"]\nexclude = [{{ kernel = "debian:6.12" }}]',
            "matrix.exclude[0]: no job is like that",
            "lab matrix",
        ),
        (f"{SERIES}exclude = [{{}}]", "matrix: every job is excluded", ""),
        ('include = [{ arch = "arm64" }]', "matrix.series: none is listed", ""),
        (
            'include = [{ series = "a" }, { arch = "arm64" }]',
            "matrix.include[1]: names no series",
            "",
        ),
    ],
)
def test_refusals_name_file_and_key(text: str, said: str, hint: str) -> None:
    with pytest.raises(UserError) as refusal:
        jobs(text)
    assert said in refusal.value.message
    assert hint in refusal.value.hint


def test_the_key_of_a_job_is_its_own_and_stays() -> None:
    one, two = jobs(f'{SERIES}arch = ["x86_64", "arm64"]')
    assert one.key != two.key
    assert dataclasses.replace(two, arch="x86_64").key == one.key
    assert matrix.digest([one, two]) != matrix.digest([two, one])
