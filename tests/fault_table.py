"""Faults down the side, our scripts and the SDK's own CLI across.

python -m tests.fault_table            runs every fault against both and prints the table
python -m tests.fault_table --only X   those whose name holds X

Both sides run against a stand-in hub each, with the same environment, in which the SDK's waits are
cut short by its own settings. `tests/test_faults.py` runs our side of the same list.
"""

from __future__ import annotations

import argparse
import sys

from tests.support.cases import DOWNLOADS, HANG, UPLOADS, Case, judge, scene_of


def row(case: Case) -> str:
    """Run a case on both sides and return its line of the table."""
    cells = []
    for who in ("ours",) if case.hostile else ("ours", "cli"):
        with scene_of(case) as scene:
            outcome = judge(scene, who)
        code = "–" if outcome.verdict == HANG else outcome.code
        unnamed = "" if outcome.named or not outcome.code else ", no cause"
        cells.append(f"{outcome.verdict}{unnamed} ({code}, {outcome.seconds:.0f} s)")
    cells += ["not run"] * (2 - len(cells))
    return f"| {case.name} | {cells[0]} | {cells[1]} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", default="", help="the cases whose name holds this")
    only = parser.parse_args().only
    for title, cases in (("download", DOWNLOADS), ("upload", UPLOADS)):
        print(f"\n| {title} | ours | the SDK's CLI |\n|---|---|---|", flush=True)
        for case in cases:
            if only in case.name:
                print(row(case), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
