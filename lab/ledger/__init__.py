"""The records of finished runs -> a history of cases, splats and numbers that can be asked.

It is an index: all of it can be made again from the runs' folders.
"""

from lab.ledger.book import FILE_NAME, Ledger, Synced, opened
from lab.ledger.extract import extract, ground_of
from lab.ledger.past import past
from lab.ledger.rows import (
    CaseRow,
    Extract,
    Ground,
    MetricRow,
    RunRow,
    SplatRow,
    Where,
)

__all__ = [
    "FILE_NAME",
    "CaseRow",
    "Extract",
    "Ground",
    "Ledger",
    "MetricRow",
    "RunRow",
    "SplatRow",
    "Synced",
    "Where",
    "extract",
    "ground_of",
    "opened",
    "past",
]
