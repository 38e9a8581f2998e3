"""The same work in turn: our scripts, and the SDK's own command.

TMPDIR=/dev/shm python -m tests.bench --disk /var/tmp   everything; writes tests/BENCH.md
python -m tests.bench --only small                      what has "small" in its name; only prints
python -m tests.bench --size 0.001 --runs 1             a thousandth of the bytes: does it work?

Nothing is asserted. Rows "to a slow disk" need Linux, root, and what `tests/support/slow_disk.py`
makes one of.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tests.hub import Hub, Store
from tests.support.client import ROOT, wait_until
from tests.support.slow_disk import slow_disk, why_none

MODEL = "bench/model"
MB = 1_000_000
CLI = str(Path(sys.executable).parent / "modelscope")
TOOLS = ("cli", "ours")
PAGE = """\
# How fast it is

Written by `TMPDIR=/dev/shm python -m tests.bench --disk DIR`, which runs the same work in turn with
each tool, against the stand-in hub on the same machine. Do not edit.

{note}

| scenario | CLI, s | ours |
|---|---|---|
{rows}

## How it was measured

- A time is the median of {runs} runs, in wall-clock seconds for the SDK's command (CLI). **ours**
  is that of `download_model.py` or `upload_model.py`, as a ratio to it: 0.5 is half its time.
- "50 MB/s" is the hub's limit for a connection, "50 ms" its wait before an answer. Files come to a
  RAM disk, unless a row says "to a disk", or "to a slow disk": one that the kernel holds to
  125 MB/s, as many a cloud volume is, while at most 32 MB wait in memory to be written. "half way":
  the same tool was killed when half of the bytes had come; of a slow disk, memory keeps none of
  them. "half there": the hub has every other file.
"""


@dataclass
class Scenario:
    name: str
    files: int
    size: int  # bytes of each
    rate: float | None = None  # bytes a second for a connection
    latency: float = 0  # seconds before an answer
    start: str = "empty"  # what is there already: empty, complete, half
    upload: bool = False
    target: str = "memory"  # where files come to: "memory", "disk", "slow disk"
    suffix: str = "safetensors"


FAST = {"rate": 50 * MB}
SLOW = {"target": "slow disk"}
SCENARIOS = [
    Scenario("3 x 600 MB, 50 MB/s a connection", 3, 600 * MB, **FAST),
    Scenario("3 x 600 MB, 50 MB/s a connection, to a disk", 3, 600 * MB, **FAST, target="disk"),
    Scenario("1 x 2 GB, 50 MB/s a connection", 1, 2000 * MB, **FAST),
    Scenario("24 x 140 MB, 50 MB/s a connection", 24, 140 * MB, **FAST),
    Scenario("24 x 140 MB, 50 MB/s a connection, to a disk", 24, 140 * MB, **FAST, target="disk"),
    Scenario("3 x 600 MB, 50 MB/s a connection, to a slow disk", 3, 600 * MB, **FAST, **SLOW),
    Scenario("8 x 240 MB, 50 MB/s a connection, to a slow disk", 8, 240 * MB, **FAST, **SLOW),
    Scenario("1 x 1.2 GB, 20 MB/s a connection, to a slow disk", 1, 1200 * MB, 20 * MB, **SLOW),
    Scenario("200 small files, 50 ms", 200, 10_000, latency=0.05, suffix="json"),
    Scenario("1000 small files", 1000, 10_000, suffix="json"),
    Scenario("3 x 600 MB, nothing capped", 3, 600 * MB),
    Scenario("24 x 140 MB, nothing capped", 24, 140 * MB),
    Scenario("3 x 600 MB, second run", 3, 600 * MB, start="complete"),
    Scenario("3 x 600 MB, 50 MB/s, resumed half way", 3, 600 * MB, **FAST, start="half"),
    Scenario(
        "12 x 300 MB, 50 MB/s, resumed half way, to a slow disk",
        *(12, 300 * MB),
        start="half",
        **FAST,
        **SLOW,
    ),
    Scenario("upload 4 x 100 MB", 4, 100 * MB, upload=True),
    Scenario("upload 4 x 100 MB, 50 MB/s a connection", 4, 100 * MB, **FAST, upload=True),
    Scenario("upload 60 small files, 50 ms", 60, 10_000, latency=0.05, upload=True),
    Scenario("upload 1000 small files, half there", 1000, 1000, start="half", upload=True),
]


class Bench:
    """A hub with the scenario's files, and a machine that fetches or sends them."""

    def __init__(self, scenario: Scenario, folder: Path, target: Path) -> None:
        self.scenario, self.folder, self.target = scenario, folder, target
        self.store = Store(folder / "hub")
        self.hub = Hub(self.store, rate=scenario.rate, latency=scenario.latency)
        self.source = folder / "source"
        self.source.mkdir()
        names = [f"model-{i:05}.{scenario.suffix}" for i in range(scenario.files)]
        self.files = {name: self.source / name for name in names}
        for path in self.files.values():
            write_random(path, scenario.size)
        self.bytes = scenario.files * scenario.size
        self.store.add(MODEL, self.files)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
        self.env["MODELSCOPE_ENDPOINT"] = self.hub.url
        if scenario.upload:
            login = [CLI, "login", "--token", self.store.add_user("bench")]
            subprocess.run(login, env=self.env, check=True, capture_output=True)

    def prepare(self, tool: str) -> None:
        """Put everything where it was before a run."""
        self.hub.log.clear()
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir()
        if self.scenario.upload:
            (self.source / ".ms_upload_cache").unlink(missing_ok=True)
            self.store.blobs.clear()
            names = list(self.files)[::2] if self.scenario.start == "half" else []
            self.store.add(MODEL, {name: self.files[name] for name in names})
        elif self.scenario.start != "empty":
            self.begin(tool)
        os.sync()
        if self.scenario.target == "slow disk" and self.scenario.start == "half":
            Path("/proc/sys/vm/drop_caches").write_text("3")  # what is resumed has to be read

    def begin(self, tool: str) -> None:
        """Let a run of this tool come through, or kill it when the hub has sent half."""
        with self.start(tool) as process:
            if self.scenario.start == "half":
                wait_until(lambda: self.hub.sent() >= self.bytes / 2, 600)
                process.kill()
        wait_until(lambda: not self.hub.open)  # the hub has noticed

    def command(self, tool: str) -> list[object]:
        verb, place = "download", ["--cache_dir", self.target]
        options = ["--model_name", MODEL, *place]
        if self.scenario.upload:
            verb, place = "upload", [self.source]
            options = ["--repo-id", MODEL, "--model-dir", *place]
        script = [sys.executable, ROOT / f"{verb}_model.py", *options]
        return script if tool == "ours" else [CLI, verb, MODEL, *place]

    def start(self, tool: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(self.command(tool), env=self.env, stdout=log, stderr=log)

    def measure(self, tool: str) -> float:
        """Return the seconds that a run takes."""
        self.prepare(tool)
        started = time.monotonic()
        if self.start(tool).wait():
            log = (self.folder / "log").read_text()[-2000:]
            raise RuntimeError(f"{tool} failed at {self.scenario.name}: {log}")
        return time.monotonic() - started


def write_random(path: Path, size: int) -> None:
    """Write `size` bytes that differ from file to file."""
    block = os.urandom(MB)
    with path.open("wb") as file:
        for start in range(0, size, MB):
            file.write(block[: size - start])


@contextlib.contextmanager
def make_target(scenario: Scenario, disk: str | None) -> Iterator[Path]:
    """A folder for what comes, where the scenario wants it."""
    if scenario.target == "slow disk":
        with slow_disk(2 * scenario.files * scenario.size + 100 * MB) as folder:
            yield folder
        return
    place = disk if scenario.target == "disk" else None
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as folder:
        size = scenario.files * scenario.size
        write_random(Path(folder, "all"), size)  # or the first to write would pay for all
        Path(folder, "all").unlink()
        yield Path(folder)


def run(scenario: Scenario, disk: str | None, runs: int) -> dict[str, list[float]]:
    """Run each tool `runs` times, in turn."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        make_target(scenario, disk) as target,
    ):
        bench = Bench(scenario, Path(folder), target / "files")
        with bench.hub:
            turns = [{tool: bench.measure(tool) for tool in TOOLS} for _ in range(runs)]
        return {tool: [turn[tool] for turn in turns] for tool in TOOLS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", allow_abbrev=False)
    parser.add_argument("--only", default="", help="the scenarios whose name holds this")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--size", type=float, default=1, help="factor on the size of each file")
    parser.add_argument("--disk", help="folder on a disk, for the rows that say so")
    args = parser.parse_args()
    rows, spreads = [], []
    lacking = {"disk": "" if args.disk else "--disk names none", "slow disk": why_none()}
    for scenario in SCENARIOS:
        if args.only not in scenario.name:
            continue
        if reason := lacking.get(scenario.target):
            print(f"{scenario.name}: skipped, {reason}")
        else:
            scenario.size = max(1, int(scenario.size * args.size))
            times = run(scenario, args.disk, args.runs)
            spreads += [(max(t) / min(t), tool, scenario.name) for tool, t in times.items()]
            cli, ours = (median(times[tool]) for tool in TOOLS)
            rows.append(f"| {scenario.name} | {cli:.2f} | {ours / cli:.2f} |")
            print(rows[-1], flush=True)
    if not rows:
        return
    spread = "{:.2f} ({}, {})".format(*max(spreads))
    packages = ", ".join(f"{name} {version(name)}" for name in ("modelscope", "modelscope-hub"))
    note = f"{packages}, {os.cpu_count()} cores. "
    note += f"Widest spread between runs, slowest / fastest: {spread}."
    print(note)
    if args.disk and not args.only and args.size == 1 and args.runs >= 3:
        page = PAGE.format(note=note, rows="\n".join(rows), runs=args.runs)
        Path(__file__).with_name("BENCH.md").write_text(page)


if __name__ == "__main__":
    main()
