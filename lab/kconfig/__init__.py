"""Fragments of configuration come in; one merged config goes out, and why an option was dropped."""

from lab.kconfig.fragments import (
    Asked,
    Dropped,
    Fragment,
    Merged,
    dropped,
    fragments,
    graft,
    merge,
    profiles,
    values,
)
from lab.kconfig.language import Kconfig, explain, parse, srcarch

__all__ = [
    "Asked",
    "Dropped",
    "Fragment",
    "Kconfig",
    "Merged",
    "dropped",
    "explain",
    "fragments",
    "graft",
    "merge",
    "parse",
    "profiles",
    "srcarch",
    "values",
]
