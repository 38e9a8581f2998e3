"""Faults down the side, our scripts and the SDK's own CLI across.

python -m tests.fault_table            runs every fault against both and writes tests/FAULTS.md
python -m tests.fault_table --only X   those whose name holds X; prints them, writes nothing

Both sides run against a stand-in hub each, with the same environment, in which the SDK's waits are
cut short by its own settings. `tests/test_faults.py` runs our side of the same list.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.cases import (
    DOWNLOADS,
    FAILED,
    HANG,
    SUCCEEDED,
    UPLOADS,
    Case,
    Outcome,
    judge,
    scene_of,
)

PAGE = Path(__file__).parent / "FAULTS.md"
INTRODUCTION = """\
# What a fault makes of a run

Written by `python -m tests.fault_table`, which runs each fault against our script and against the
SDK's `modelscope` command, each with a stand-in hub of its own. Do not edit. Both have the same
environment, in which the SDK's waits are cut short by its own settings.

A cell says what the exit code was worth, then the code and the seconds:

- **succeeded**: 0, and every byte is where it was to go;
- **failed with a cause**: not 0, and an error is printed;
- **false success**: 0, and it is not so. A link that leads nowhere or to a folder counts as
  something that the hub is to hold; a pipe or a socket doesn't. Of a file that changes meanwhile,
  either version may be on the hub, as long as it is one that the folder held;
- hang, damage outside the folder, secret shown, traceback, failed without a cause.

One false success is ours too: a storage that loses a blob after the hub has listed it. The list is
what an upload is compared with; such a loss can show at a download only.

A fault in which the hub is hostile on purpose is run with our script alone.
"""


def run(case: Case, who: str) -> Outcome | None:
    """Run a case on one side, in a world of its own."""
    if case.hostile and who != "ours":
        return None
    with scene_of(case) as scene:
        return judge(scene, who)


def cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run"
    code = "–" if outcome.verdict == HANG else outcome.result.code
    return f"{outcome.verdict} ({code}, {outcome.result.seconds:.0f} s)"


def tabulate(title: str, cases: list[Case]) -> tuple[str, list[tuple[Outcome | None, ...]]]:
    """Run the cases, as many at once as there are processors, and print their table."""
    lines = [f"| {title} | ours | the SDK's CLI |", "|---|---|---|"]
    print("", *lines, sep="\n", flush=True)
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = [[pool.submit(run, case, who) for who in ("ours", "cli")] for case in cases]
        for case, pair in zip(cases, pairs, strict=True):
            rows.append(tuple(future.result() for future in pair))
            lines.append(f"| {case.name} | {' | '.join(map(cell, rows[-1]))} |")
            print(lines[-1], flush=True)
            for outcome in filter(None, rows[-1]):
                print(*outcome.evidence, sep="\n", end="", file=sys.stderr)
    return "\n".join(lines), rows


def summarize(rows: list[tuple[Outcome | None, ...]]) -> str:
    """Count both sides: what succeeded, what failed with a cause, and anything else."""
    sides = [Counter(o.verdict for o in side if o) for side in zip(*rows, strict=True)]
    named = [(name, [side[name] for side in sides]) for name in (SUCCEEDED, FAILED)]
    others = [side.total() - side[SUCCEEDED] - side[FAILED] for side in sides]
    ours, cli = (side.total() for side in sides)
    lines = [f"| | ours, {ours} faults | the SDK's CLI, {cli} of them |", "|---|---|---|"]
    for name, counts in [*named, ("anything else", others)]:
        lines.append(f"| {name} | {counts[0]} | {counts[1]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", default="", help="the cases whose name holds this")
    only = parser.parse_args().only
    tables, rows = [], []
    for title, cases in (("download", DOWNLOADS), ("upload", UPLOADS)):
        if cases := [case for case in cases if only in case.name]:
            table, new = tabulate(title, cases)
            tables.append(table)
            rows += new
    if not rows:
        parser.error(f"no case has {only!r} in its name")
    summary = summarize(rows)
    print(f"\n{summary}")
    if not only:
        PAGE.write_text("\n\n".join([INTRODUCTION.rstrip(), summary, *tables]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
