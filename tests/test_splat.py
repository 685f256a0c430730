"""The splat detector: console lines in, splats out."""

from __future__ import annotations

from lab.splat.detector import Detector, scan
from lab.splat.kinds import Kind

WARNING = """\
[    1.000001] ------------[ cut here ]------------
[    1.000002] WARNING: CPU: 1 PID: 71 at mm/mmap.c:1234 unmap_region+0x1f/0x40
[    1.000003] Modules linked in:
[    1.000004] CPU: 1 PID: 71 Comm: stress Not tainted 6.1.192 #1
[    1.000005] RIP: 0010:unmap_region+0x1f/0x40
[    1.000006] Call Trace:
[    1.000007]  <TASK>
[    1.000008]  do_mas_align_munmap+0x2f/0x400
[    1.000009]  __x64_sys_munmap+0x10/0x20
[    1.000010]  </TASK>
[    1.000011] ---[ end trace 0000000000000000 ]---
""".splitlines()


def test_a_warning_is_found_and_charged_to_the_function_that_warned() -> None:
    (splat,) = scan(WARNING)
    assert splat.kind == Kind.WARNING
    assert splat.function == "unmap_region"
    assert (splat.first_line, splat.last_line) == (1, 11)
    assert splat.corrupted == ""
    assert not splat.fatal


def test_feeding_gives_what_scanning_gives() -> None:
    detector = Detector()
    fed = [splat for line in WARNING for splat in detector.feed(line)]
    fed += detector.finish()
    assert fed == scan(WARNING)
