"""`python -m lab.splat FILE... [--json]`: console logs in, splats out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.model import ExitCode, LabError
from lab.splat.reading import printable, read_files, to_json


def main() -> int:
    """Print the splats of each log. 0: none or `--json`; 1: some; 2: a log cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m lab.splat", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="a JSON list, and exit 0")
    options = parser.parse_args()
    try:
        results = read_files(options.logs)
    except LabError as error:
        sys.stderr.write(f"{printable(error.message)}\n")
        return ExitCode.USAGE
    if options.json:
        splats = [splat for result in results for splat in result.splats]
        sys.stdout.write(to_json(splats) + "\n")
        return ExitCode.CLEAN
    for result in results:
        for splat in result.splats:
            where = f"{result.path}:{splat.first_line}-{splat.last_line}"
            note = f" ({splat.corrupted})" if splat.corrupted else ""
            sys.stdout.write(printable(f"{where}: {splat.kind}: {splat.title}{note}") + "\n")
    return ExitCode.REGRESSED if any(result.splats for result in results) else ExitCode.CLEAN


if __name__ == "__main__":
    sys.exit(main())
