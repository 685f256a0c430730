"""What the doctor looks at beside programs: the kernels that the lab has built."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lab import model
from lab.doctor import newest_kernel
from lab.model import Kernel, Side
from lab.store import Cache, write_atomically
from tests import records


def stored(cache: Cache, key: str, *, age_s: float, content: bytes | None = None) -> Kernel:
    folder = cache.sub("builds") / key
    image = folder / "image"
    write_atomically(image, b"kernel")
    kernel = dataclasses.replace(records.kernel(Side.BASE), key=key, folder=folder, image=image)
    write_atomically(folder / "record.json", model.encode(kernel) if content is None else content)
    then = image.stat().st_mtime - age_s
    os.utime(folder / "record.json", (then, then))
    return kernel


def test_the_newest_kernel_is_one_that_this_lab_can_read(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    assert newest_kernel(cache, "x86_64") is None
    old = stored(cache, "old", age_s=200)
    new = stored(cache, "new", age_s=100)
    stored(cache, "of-another-version", age_s=0, content=b'{"key": "of-another-version"}')
    assert newest_kernel(cache, "x86_64") == new
    new.image.unlink()
    assert newest_kernel(cache, "x86_64") == old
    assert newest_kernel(cache, "arm64") is None
