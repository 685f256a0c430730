"""A run's folder goes in; links to its files, relative to the page, and ends of logs come out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lab.model import CaseResult, Trial

_LOG_BYTES = 8 << 10  # of a case's log on the page: its end, where it says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files of the run, relative to the page; "" for what is not there."""

    folder: Path | None

    def to(self, path: str) -> str:
        return quote(path) if self._inside(path) is not None else ""

    def console(self, trial: Trial) -> str:
        return self.to(f"trials/{trial.id}/{trial.console}")

    def log(self, trial: Trial, result: CaseResult) -> str:
        return self.to(f"trials/{trial.id}/{result.log}") if result.log else ""

    def end_of(self, trial: Trial, result: CaseResult) -> str:
        """The end of a case's log, or ""."""
        path = self._inside(f"trials/{trial.id}/{result.log}") if result.log else None
        if path is None:
            return ""
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _LOG_BYTES))
            text = stream.read(_LOG_BYTES).decode("utf-8", "replace")
        return f"[... {size - _LOG_BYTES} bytes before]\n{text}" if size > _LOG_BYTES else text

    def _inside(self, path: str) -> Path | None:
        """The file, if it lies in the folder: a record may come from elsewhere."""
        if self.folder is None:
            return None
        folder = self.folder.resolve()
        try:
            target = (folder / path).resolve()
            return target if target.is_relative_to(folder) and target.is_file() else None
        except (OSError, ValueError):  # too long, or with a NUL: no name of a file of ours
            return None
