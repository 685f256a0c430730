"""A vmlinux goes in, a digest of what of it is loaded comes out: equal for equal kernels.

Sections that take part in the running kernel count, with their places and sizes; debug information
and notes (the build id) do not. The lab's own builds have no time, no
user and no counter in them, so that a patch which changes only comments gives the same signature -
unless it moves a line whose number a warning prints: that kernel does differ.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from lab.model import LabFault


def signature(vmlinux: Path) -> str:
    """Raises `LabFault` for what is no ELF file."""
    digest = hashlib.sha256()
    try:
        with vmlinux.open("rb") as stream:
            elf = ELFFile(stream)
            digest.update(elf["e_machine"].encode())
            for section in elf.iter_sections():
                if not section["sh_flags"] & SH_FLAGS.SHF_ALLOC:
                    continue
                if section["sh_type"] == "SHT_NOTE":
                    continue
                place = f"{section.name} {section['sh_addr']:x} {section['sh_size']:x}\0"
                digest.update(place.encode())
                if section["sh_type"] != "SHT_NOBITS":  # of these, only the size is in the file
                    digest.update(section.data())
    except (ELFError, OSError) as error:
        raise LabFault(f"{vmlinux} cannot be read: {error}", hint="lab clean --all") from error
    return digest.hexdigest()
