"""Jobs and a time of the day go in, the text of workflow files comes out. Pure but for templates.

What comes from `lab.toml` stands in them as quoted scalars: a name cannot become a key of YAML, an
expression of the service, or a specifier of systemd.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lab.matrix import Job
from lab.model import UserError

_HERE = Path(__file__).parent
GITHUB_JOBS = 256  # of one matrix: the service refuses more


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """When and how the matrix runs."""

    at: str  # "HH:MM", UTC
    budget_s: float | None
    runner: str = ""  # label or tag of the machine that runs the jobs
    timeout_s: float = 6 * 3600  # of one job

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", self.at):
            raise UserError(f"--at: {self.at!r} is not a time", hint='write it like "22:00"')

    @property
    def cron(self) -> str:
        hour, minute = self.at.split(":")
        return f"{int(minute)} {int(hour)} * * *"

    @property
    def timeout_min(self) -> int:
        return max(1, round(self.timeout_s / 60))


def github(jobs: Sequence[Job], night: Night) -> str:
    """A workflow for `.github/workflows/`: each job a leg of one matrix.

    Raises `UserError` for more jobs than the service takes.
    """
    if len(jobs) > GITHUB_JOBS:
        raise UserError(
            f"{len(jobs)} jobs: GitHub takes {GITHUB_JOBS} in one matrix",
            hint="narrow [matrix] with exclude, or join suites with a comma",
        )
    return _render("github.yml.j2", jobs, night)


def gitlab(jobs: Sequence[Job], night: Night) -> str:
    """A `.gitlab-ci.yml`: a job each, for pipelines that a schedule or a person starts."""
    return _render("gitlab.yml.j2", jobs, night)


def systemd(
    night: Night, *, program: Path, options: Sequence[str | Path], folder: Path
) -> dict[str, str]:
    """Name -> text of a service and its timer. `options` stand before the command `nightly`.

    The service runs in `folder`, where it finds its lab.toml.
    """
    words = [str(program), *map(str, options), "--quiet", "nightly"]
    if night.budget_s is not None:
        words += ["--budget", f"{night.budget_s:.0f}s"]
    values = {
        "command": " ".join(map(_systemd_word, words)),
        "folder": _systemd_specifiers(str(folder)),
        "path": _path(program),
        "night": night,
    }
    names = ("lab-nightly.service", "lab-nightly.timer")
    return {name: _environment().get_template(f"{name}.j2").render(values) for name in names}


def _path(program: Path) -> str:
    """A PATH for a service: QEMU and make are where distributions put them."""
    return f"{program.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".replace("%", "%%")


def _systemd_specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _systemd_word(text: str) -> str:
    """One argument of ExecStart=: `%` and `$` mean something there."""
    escaped = _systemd_specifiers(text).replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", escaped):
        return escaped
    quoted = escaped.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def _render(template: str, jobs: Sequence[Job], night: Night) -> str:
    labelled = [(job.name, shlex.join(job.words), job.key) for job in jobs]
    return _environment().get_template(template).render(jobs=labelled, night=night)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = _yaml
    environment.filters["literal"] = _literal
    return environment


def _yaml(text: str) -> str:
    """A double-quoted scalar: JSON's strings are YAML's."""
    return json.dumps(text, ensure_ascii=True)


def _literal(text: str) -> str:
    """A scalar in which GitHub sees no expression of its own."""
    return _yaml(text.replace("${{", "$ {{"))
