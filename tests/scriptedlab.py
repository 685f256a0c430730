#!/usr/bin/env python3
"""A process that stands in for `lab run`: its words are real, its machines are a script.

    scriptedlab.py SCRIPT --runs DIR run --patch ... --json

SCRIPT is a JSON file: rules, each with a `match` that the words of the job must hold. What a rule
can say (with `without`, it does not count where the words hold that):

    fails: CASE     that case fails; `side` (base, patched, both), `repeats` (which; absent: all)
    splat: true     ... with a splat
    boots: false    no machine boots
    hang: true      starts a child, notes both ids in SCRIPT.pids, and runs until it is asked to end
    deaf: true      ... and does not listen
    says, exit      ends so, with that on stderr
    sleep: SECONDS  takes that long

Every call is noted in SCRIPT.calls, a line of words.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab import model
from lab.model import Cell, RunRecord, Trial
from lab.store import write_atomically
from tests import records

CASES = ("boot/hello", "faultstress/ext4/truncate", "faultstress/xfs/munmap")


def option(words: Sequence[str], name: str) -> list[str]:
    return [words[n + 1] for n, word in enumerate(words) if word == name]


def answer(rules: Sequence[dict[str, Any]]) -> records.Answer:
    def machine(of: Cell) -> Trial:
        results = {case: records.passed(case, of) for case in of.cases}
        for rule in rules:
            name, side = rule.get("fails"), rule.get("side", "both")
            if rule.get("boots") is False:
                return records.trial(of, boots=False)
            if name not in results or side not in ("both", of.side):
                continue
            if of.repeat in rule.get("repeats", [of.repeat]):
                splats = (records.WARNING,) if rule.get("splat") else ()
                results[name] = records.failed(name, "as the script says", splats=splats)
        return records.trial(of, results=tuple(results.values()))

    return machine


def hang(script: Path, deaf: bool) -> None:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)

    def asked(_signal: int, _frame: object) -> None:
        child.kill()
        child.wait()
        script.with_suffix(".down").write_text("taken down\n")
        sys.exit(130)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else asked)
    with script.with_suffix(".pids").open("a") as stream:
        stream.write(f"{os.getpid()} {child.pid}\n")
    while True:
        time.sleep(60)


def record_of(words: Sequence[str], rules: Sequence[dict[str, Any]]) -> RunRecord:
    only = option(words, "--only")
    created = datetime.now(UTC)
    name = f"{created:%Y%m%d-%H%M%S}-{os.getpid()}"
    repeats = int((option(words, "--repeats") or ["2"])[0])
    arch = option(words, "--arch")[0]
    machine = answer(rules)
    return records.run(
        machine,
        machine,
        run=name,
        created=created.isoformat(),
        archs=(arch,),
        cases=tuple(case for case in CASES if not only or case in only),
        repeats=repeats,
        max_repeats=max(repeats, 8),
        command=tuple(words),
    )


def main(argv: Sequence[str]) -> int:
    script, words = Path(argv[1]), list(argv[2:])
    line = " ".join(words)
    with script.with_suffix(".calls").open("a") as stream:
        stream.write(line + "\n")
    told = json.loads(script.read_text())
    rules = [
        rule
        for rule in told
        if rule.get("match", "") in line and rule.get("without", "\n") not in line
    ]
    for rule in rules:
        if rule.get("hang"):
            hang(script, rule.get("deaf", False))
        with contextlib.suppress(KeyError):
            time.sleep(rule["sleep"])
        if "exit" in rule:
            sys.stderr.write(rule.get("says", "") + "\n")
            return int(rule["exit"])
    runs = Path(option(words, "--runs")[0])
    done = record_of(words, rules)
    raw = model.encode(done)
    write_atomically(runs / done.manifest.run / "record.json", raw)
    sys.stdout.write(raw.decode())
    status = {"clean": 0, "regressed": 1, "lab-fault": 3, "inconclusive": 4}
    return status[done.verdict.outcome]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
