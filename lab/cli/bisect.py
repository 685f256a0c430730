"""`lab bisect`: which patch, commit or option."""

from __future__ import annotations

import sys

import click

from lab import (
    config,
)
from lab.cli.context import (
    Context,
    accel_option,
    cli,
    jobs_option,
    json_option,
    kernel_option,
    one_arch,
    override,
    patch_option,
    profile_option,
    split,
)
from lab.model import ExitCode, UserError


class _Bisect(click.Group):
    """`lab bisect ...` is a search unless its first word is `step`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        return super().parse_args(ctx, args if first in self.commands else ["search", *args])


@cli.group(name="bisect", cls=_Bisect, add_help_option=False)
def bisect_group() -> None:
    """Which patch, commit or option made it fail?"""


_splat = click.option(
    "--splat", default="", metavar="TEXT", help="Look for this splat: a fingerprint or title part."
)
_case = click.option(
    "--case", "cases", multiple=True, metavar="CASE", help="Fails or not: boot/hello, ..."
)
_duration = click.option("--duration", metavar="TIME", help="Of a faultstress case: 5, 30s, 2m.")


@bisect_group.command(name="search")
@click.argument("span", metavar="[GOOD..BAD]", required=False)
@patch_option
@click.option("--from-run", metavar="RUN", help="Series, kernel and what got worse of that run.")
@click.option(
    "--fragments",
    metavar="GOOD..BAD",
    help="Search between two configurations: each a profile, or a file of CONFIG_ lines.",
)
@_case
@_splat
@kernel_option
@click.option("--arch", metavar="ARCH", help="One: x86_64 or arm64. Default: this machine's.")
@profile_option
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.97,
    show_default=True,
    help="Stop when one culprit is that likely.",
)
@click.option("--budget", default="8h", metavar="TIME", show_default=True, help="Of all steps.")
@click.option("--max-runs", type=click.IntRange(1), default=2000, help="Of all kernels together.")
@click.option("--seed", type=int, help="Of the stress programs.")
@_duration
@click.option("--fresh", is_flag=True, help="Do not go on with an earlier bisection.")
@accel_option
@jobs_option
@json_option
@click.pass_obj
def bisect_search(
    context: Context,
    span: str | None,
    patch: str | None,
    from_run: str | None,
    fragments: str | None,
    cases: tuple[str, ...],
    splat: str,
    kernel: str | None,
    arch: str | None,
    profile: str | None,
    confidence: float,
    budget: str,
    max_runs: int,
    seed: int | None,
    duration: str | None,
    fresh: bool,
    accel: str | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Which patch, commit or option made it fail?

    Runs both ends first, then whatever tells most for what it costs, until one culprit is likely
    enough. A failure may be rare: how often it fails is measured, and every run counts. What does
    not build or boot is skipped, and never good or bad. Cut off, the same command goes on.

    \b
    lab bisect --patch SERIES --case CASE              the patches of a series
    lab bisect --from-run RUN                          what got worse in a run
    lab bisect --kernel DIR GOOD..BAD --case CASE      the commits of a git tree
    lab bisect --fragments lockdep..kasan --case CASE  the options of a configuration
    git bisect run lab bisect step --kernel . --case CASE

    \b
    Exit codes:  0 found   2 usage   3 the lab broke   4 inconclusive
    """
    from lab.bisect import Ending, Rules  # numpy: no other command waits for it
    from lab.culprit import hunt
    from lab.report import bisection

    chosen = override(
        context.config,
        top={"kernel": kernel, "arch": (one_arch(context, arch),), "profile": profile},
        run={"seed": seed},
        machine={"accel": accel},
        build={"jobs": jobs},
        faultstress={"duration_s": duration and config.duration_s(duration, where="--duration")},
    )
    rules = Rules(
        confidence=confidence,
        budget_s=config.duration_s(budget, where="--budget"),
        max_runs=max_runs,
    )
    request = hunt.Request(
        config=chosen,
        span=span,
        patch=patch,
        from_run=from_run,
        fragments=fragments,
        cases=split(cases),
        splat=splat,
        rules=rules,
        fresh=fresh,
        command=tuple(sys.argv),
    )
    with context.progress() as progress:
        record = hunt.run(request, progress.emit)
    context.answer(record, bisection.summary, as_json=as_json)
    found = record.result.ending is Ending.FOUND
    return ExitCode.CLEAN if found else ExitCode.INCONCLUSIVE


@bisect_group.command(name="step")
@_case
@_splat
@click.option("--kernel", default=".", metavar="DIR", help="The tree. Never written to. Default: .")
@click.option("--arch", metavar="ARCH", help="One: x86_64 or arm64. Default: this machine's.")
@profile_option
@click.option("--repeats", type=click.IntRange(1), help="Passing runs that make it good.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="How often it fails where the bug is; decides how often to run. Default: 0.9.",
)
@click.option(
    "--false-rate",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="How often it fails where the bug is not. Default: 0.",
)
@click.option(
    "--base", default="", metavar="REF", help="Builds start from it. Default: the first good."
)
@_duration
@accel_option
@jobs_option
@click.pass_obj
def bisect_step(
    context: Context,
    cases: tuple[str, ...],
    splat: str,
    kernel: str,
    arch: str | None,
    profile: str | None,
    repeats: int | None,
    rate: float | None,
    false_rate: float,
    base: str,
    duration: str | None,
    accel: str | None,
    jobs: int | None,
) -> int:
    """One step of `git bisect run`: build and test the commit that a tree stands at.

    \b
    git bisect run lab bisect step --kernel . --case CASE

    Runs until it is settled, by --rate and --false-rate, or by --repeats.

    \b
    Exit codes:  0 good   1 bad   125 cannot be tested (git bisect skips it)
                 130 usage, 131 the lab broke (git bisect stops)
    """
    from lab.bisect import Rates
    from lab.culprit import onestep

    if repeats is not None and rate is not None:
        raise UserError("--repeats and --rate: which?", hint="--rate says how often to run")
    if not cases and not splat:
        raise UserError("nothing to look for", hint="--case CASE, or --splat TEXT")
    if rate is not None and rate <= false_rate:
        raise UserError("--rate must be above --false-rate")
    chosen = override(
        context.config,
        top={"kernel": kernel, "arch": (one_arch(context, arch),), "profile": profile},
        machine={"accel": accel},
        build={"jobs": jobs},
        faultstress={"duration_s": duration and config.duration_s(duration, where="--duration")},
    )
    request = onestep.Request(
        config=chosen,
        cases=split(cases),
        splat=splat,
        base=base,
        rates=Rates(bad=0.9 if rate is None else rate, good=false_rate),
        repeats=repeats,
    )
    with context.progress() as progress:
        return onestep.run(request, progress.emit)
