"""What a cell needs and what hosts offer go in; how many fit, or what nobody has, comes out. Pure.

Needs and offers are what Dask calls resources: names with amounts. What a host either can or
cannot do is a name of which it has plenty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import lab
from lab.arch import ARCHS
from lab.model import Accelerator

CORES: Final = "cores"
MEMORY: Final = "memory-mib"
PLENTY: Final = 1e6

Amounts = Mapping[str, float]


def proven(accelerator: Accelerator, arch: str) -> str:
    """Of a host on which a timed boot has shown it: "kvm-host:x86_64"."""
    return f"{accelerator.name}-{accelerator.cpu}:{arch}"


def qemu(arch: str) -> str:
    """Of a host that has an emulator of that architecture, proven or not."""
    return f"qemu:{arch}"


def version() -> str:
    """Of a host with this very lab: a job is its own lab's matter."""
    return f"lab:{lab.__version__}"


def needs(
    arch: str, *, cpus: int, memory_bytes: int, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """Of one machine; `memory_bytes` of the host. Without an accelerator, of one to be proven."""
    tag = proven(accelerator, arch) if accelerator else qemu(arch)
    return {version(): 1, tag: 1, CORES: cpus, MEMORY: -(-memory_bytes >> 20)}


def offers(*, archs: tuple[str, ...], cores: int, memory_bytes: int) -> dict[str, float]:
    """Of a host that has proven nothing yet."""
    tags = dict.fromkeys((version(), *map(qemu, archs)), PLENTY)
    return {**tags, CORES: cores, MEMORY: memory_bytes >> 20}


def slots(wanted: Amounts, hosts: Mapping[str, Amounts]) -> int:
    """How many such machines all hosts carry together."""
    return sum(
        int(min(host.get(name, 0) // amount for name, amount in wanted.items()))
        for host in hosts.values()
    )


def unmatched(wanted: Amounts, hosts: Mapping[str, Amounts]) -> str:
    """What no host has of what is wanted, in words; "" if some host carries it."""
    if slots(wanted, hosts):
        return ""
    if not hosts:
        return f"no worker at all; wanted is {_said(wanted)}"
    lacking = []
    for name, amount in wanted.items():
        most = max(host.get(name, 0) for host in hosts.values())
        if most < amount:
            tag = most == 0 and amount == 1
            lacking.append(name if tag else f"{amount:g} {name} (the most is {most:g})")
    if lacking:
        return f"no worker has {', '.join(lacking)}"
    return f"no single worker has all of {_said(wanted)}"


def _said(amounts: Amounts) -> str:
    return ", ".join(
        f"{amount:g} {name}" if name in (CORES, MEMORY) else name
        for name, amount in amounts.items()
    )


def _proof_of(name: str, arch: str) -> bool:
    return name.endswith(f":{arch}") and name != qemu(arch)


def described(host: Amounts) -> str:
    """One host in words: "2 cores, 3200 MiB, kvm-host x86_64, arm64 not proven yet"."""
    told = []
    for arch in ARCHS:
        ways = [name for name in sorted(host) if _proof_of(name, arch)]
        told += [f"{name.partition(':')[0]} {arch}" for name in ways]
        if not ways and host.get(qemu(arch)):
            told.append(f"{arch} not proven yet")
    sizes = f"{host.get(CORES, 0):g} cores, {host.get(MEMORY, 0):g} MiB"
    return ", ".join([sizes, *told])
