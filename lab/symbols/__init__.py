"""Splats and the kernel that made them in; the same splats with source lines out."""

from lab.symbols.history import History, mark
from lab.symbols.lookup import doubts, symbolise, symbolise_logs

__all__ = ["History", "doubts", "mark", "symbolise", "symbolise_logs"]
