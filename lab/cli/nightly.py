"""The matrix every night: `lab matrix`, `lab nightly`, `lab nights`, `lab ci`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from lab import config, host, ledger, matrix, model, workflow
from lab.cli.context import Context, cli, json_option
from lab.cli.runs import EXIT
from lab.matrix import Job
from lab.model import Event, EventKind, ExitCode, LabError
from lab.night import record, watch
from lab.night.process import Program
from lab.night.record import Night
from lab.report import night as report
from lab.store import write_atomically


def _jobs(context: Context) -> tuple[Job, ...]:
    file = context.file or Path(config.FILE_NAME)
    return matrix.jobs(context.config, file=str(file))


def _program() -> Path:
    """The lab itself, as it can be called again."""
    return Path(sys.executable).with_name("lab")


def _options(context: Context) -> list[str]:
    """What stands before the command, so that another process sees what this one sees."""
    paths = context.config.paths
    words = ["--cache", str(paths.cache_dir), "--runs", str(paths.runs_dir)]
    return [*(("--config", str(context.file.absolute())) if context.file else ()), *words]


@cli.command(name="matrix")
@json_option
@click.pass_obj
def matrix_command(context: Context, as_json: bool) -> int:
    """The jobs that [matrix] in lab.toml makes, each as the command that runs it."""
    found = _jobs(context)
    context.answer(found, report.jobs, as_json=as_json)
    return ExitCode.CLEAN


@cli.command()
@click.option(
    "--budget",
    metavar="TIME",
    help="8h, 90m. No job begins that would not fit, and what runs at its end is taken down. "
    "Default: what lab.toml says, else as long as it takes.",
)
@click.option("--fresh", is_flag=True, help="Do not go on with a night that was cut off.")
@click.option("--no-mail", is_flag=True, help="Write the mail, do not send it.")
@json_option
@click.pass_obj
def nightly(context: Context, budget: str | None, fresh: bool, no_mail: bool, as_json: bool) -> int:
    """The matrix of lab.toml, against the last good night.

    What failed last runs first, then what has not run longest. What looks new is run again while
    the budget lasts, and what did not run is named: such a night is not clean. Cut off, the same
    command goes on.

    \b
    Exit codes:  0 clean   1 regressed   2 usage   3 the lab broke   4 inconclusive
    """
    told = budget or context.config.nightly.budget
    request = watch.Request(
        jobs=_jobs(context),
        runs=context.config.paths.runs_dir,
        budget_s=config.duration_s(told, where="--budget") if told else None,
        program=Program(argv=(str(_program()), *_options(context))),
        command=tuple(sys.argv),
        fresh=fresh,
        again=context.config.run.max_repeats,
    )
    with context.progress() as progress:
        night = asyncio.run(watch.run(request, progress.emit))
        _write(context, night)
        if not no_mail and context.config.nightly.mail_to:
            _send(context, night, progress.emit)
    _show(context, night, as_json)
    return EXIT[night.record.outcome]


def _write(context: Context, night: Night) -> None:
    runs, nightly = context.config.paths.runs_dir, context.config.nightly
    earlier = [one for one in record.load(runs) if one.record.id < night.record.id]
    page = night.folder / "report.html"
    with ledger.opened(runs) as book:
        write_atomically(page, report.page(night, earlier, book).encode())
    mail = report.mail(
        night, sender=nightly.mail_from, to=nightly.mail_to, page_path=str(page.absolute())
    )
    write_atomically(night.folder / "mail.eml", mail)


def _send(context: Context, night: Night, emit: model.Emit) -> None:
    """A mail that cannot be sent is told of; the night stands as it is."""
    command = context.config.nightly.mail_command
    try:
        host.run(command, stdin=(night.folder / "mail.eml").read_bytes(), timeout_s=120)
    except LabError as error:
        text = f"not sent: {error.message.splitlines()[0]}; it lies in {night.folder}/mail.eml"
        emit(Event(kind=EventKind.WARNING, step="mail", text=text))


def _show(context: Context, night: Night, as_json: bool) -> None:
    if as_json:
        click.echo(model.encode(night.record), nl=False)
    else:
        report.summary(night, context.out)
        click.echo(f"\n{night.folder / 'report.html'}")


@cli.command()
@click.argument("name", metavar="[NIGHT]", required=False)
@click.option(
    "--accept",
    is_flag=True,
    help="From now on this night is good for all its jobs that ran: what they found is known.",
)
@json_option
@click.pass_obj
def nights(context: Context, name: str | None, accept: bool, as_json: bool) -> int:
    """Nights that are kept; with NIGHT (an id, the beginning of one, or latest), that one again.

    Its page and mail are written anew.
    """
    runs = context.config.paths.runs_dir
    if name is None and not accept:
        found = record.load(runs)
        if as_json:
            click.echo(model.encode([night.record for night in found]), nl=False)
        else:
            report.listing(found, context.out)
        return ExitCode.CLEAN
    night = record.find(runs, None if name == "latest" else name)
    if accept:
        write_atomically(night.folder / "accepted", b"")
        night = record.find(runs, night.record.id)
    _write(context, night)
    _show(context, night, as_json)
    return ExitCode.CLEAN if accept else EXIT[night.record.outcome]


@cli.command(name="ci")
@click.argument("service", type=click.Choice(["github", "gitlab", "systemd"]))
@click.option("--at", default="22:00", metavar="HH:MM", show_default=True, help="UTC.")
@click.option("--budget", metavar="TIME", help="Of lab nightly under systemd: 8h.")
@click.option("--runner", default="", metavar="LABEL", help="Machines that run the jobs.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write there, not to stdout."
)
@click.pass_obj
def ci(
    context: Context, service: str, at: str, budget: str | None, runner: str, output: Path | None
) -> int:
    """A workflow, or a timer of systemd, that runs the matrix of lab.toml every night.

    \b
    lab ci github  --output .github/workflows
    lab ci gitlab  --output .
    lab ci systemd --output ~/.config/systemd/user
    """
    jobs = _jobs(context)
    told = budget or context.config.nightly.budget
    night = workflow.Night(
        at=at,
        budget_s=config.duration_s(told, where="--budget") if told else None,
        runner=runner,
    )
    match service:
        case "github":
            _warn_of_paths(jobs)
            files = {"lab-nightly.yml": workflow.github(jobs, night)}
        case "gitlab":
            _warn_of_paths(jobs)
            files = {".gitlab-ci.yml": workflow.gitlab(jobs, night)}
        case _:
            files = workflow.systemd(
                night, program=_program(), options=_options(context), folder=Path.cwd()
            )
    for name, text in files.items():
        if output is None:
            click.echo(f"# {name}\n{text}", nl=False)
        else:
            write_atomically(output / name, text.encode())
            click.echo(output / name)
    return ExitCode.CLEAN


def _warn_of_paths(jobs: Sequence[Job]) -> None:
    """A service runs the jobs in a checkout on another machine."""
    words = dict.fromkeys(word for job in jobs for word in (job.series, job.kernel))
    for word in words:
        if word.startswith(("/", "~")):
            click.echo(
                f"lab: warning: {word}: has to be there on the machines that run the jobs; write "
                "it relative to the checkout if it is part of it",
                err=True,
            )
