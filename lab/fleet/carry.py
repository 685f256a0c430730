"""The file of a cell goes in; it runs here, and its packed trial comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab import model
from lab.fleet import job, parcel
from lab.fleet.job import Job
from lab.model import CaseState, Emit, ExitCode, LabFault, MachineEnd, Trial, UserError
from lab.store import Cache, write_atomically

_NOTHING = (CaseState.SKIPPED, CaseState.MISSING, CaseState.UNCOVERED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    trial: Trial
    parcel: Path

    @property
    def exit_code(self) -> ExitCode:
        """What did not run is never green."""
        results = self.trial.results
        states = {result.state for result in results}
        if states - {CaseState.PASSED, *_NOTHING}:
            return ExitCode.REGRESSED
        whole = {result.name for result in results} >= set(self.trial.cell.cases)
        if whole and states == {CaseState.PASSED} and self.trial.end is MachineEnd.POWERED_OFF:
            return ExitCode.CLEAN
        return ExitCode.INCONCLUSIVE


async def out(
    file: Path, cache: Cache, emit: Emit, *, out: Path | None, force: str | None
) -> Carried:
    """Carry the cell out. It runs under the accelerator that it was planned for, unless `force`
    names another: results of the two are not to be compared.

    Raises `UserError` for a file that is no cell or that this host cannot run, `LabFault` if an
    artefact cannot be had.
    """
    try:
        wanted = model.decode(file.read_bytes(), Job)
    except LabFault as error:
        raise UserError(f"{file} is no cell: {error.message}") from error
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    job.check(wanted)
    chosen = await job.prove(job.proof_of(wanted), cache, emit, force=force or wanted.accelerator)
    place = out or Path(f"{wanted.name}.tar.gz")
    with cache.staging() as staging:
        folder = staging / wanted.name
        trial = await job.run(
            job.for_accelerator(wanted, chosen), chosen, folder, emit, cache=cache
        )
        write_atomically(place, parcel.pack(folder))
    return Carried(trial=trial, parcel=place)
