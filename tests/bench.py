"""The same work in turn, in one run: our scripts, the SDK's CLI, the plain SDK, aria2c and curl.

python -m tests.bench                  every scenario; prints a table, keeps the figures as JSON
python -m tests.bench --only small     those whose name holds "small"
python -m tests.bench --runs 5         more runs of each; the median counts
python -m tests.bench --size 0.01      a hundredth of the bytes, to see that it works

A figure is the median of interleaved runs; its ratio is to the CLI's in the same run, as an
absolute time says little on a machine that others use. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from download_model import SETTINGS
from tests.hub import Hub, Store
from tests.support.client import ROOT

MODEL = "bench/model"
MB = 1_000_000
CLI = str(Path(sys.executable).parent / "modelscope")
FIGURES = Path(__file__).parent / ".bench.json"
PART = int(SETTINGS["MODELSCOPE_DOWNLOAD_PART_SIZE_MB"]) << 20
TOOLS = ["ours", "cli", "sdk", "aria2c", "curl"]


@dataclass
class Scenario:
    name: str
    files: int
    size: int  # bytes of each
    rate: float | None = None  # bytes a second for a connection
    latency: float = 0  # seconds before an answer
    start: str = "empty"  # what is there already: empty, complete, half
    upload: bool = False
    suffix: str = "safetensors"


SCENARIOS = [
    Scenario("3 x 600 MB, 50 MB/s a connection", 3, 600 * MB, rate=50 * MB),
    Scenario("1 x 2 GB, 50 MB/s a connection", 1, 2000 * MB, rate=50 * MB),
    Scenario("200 small files, 50 ms", 200, 10_000, latency=0.05, suffix="json"),
    Scenario("3 x 600 MB, nothing capped", 3, 600 * MB),
    Scenario("3 x 600 MB, second run", 3, 600 * MB, start="complete"),
    Scenario("3 x 600 MB, 50 MB/s, resumed half way", 3, 600 * MB, rate=50 * MB, start="half"),
    Scenario("upload 4 x 100 MB", 4, 100 * MB, upload=True),
    Scenario("upload 60 small files, 50 ms", 60, 10_000, latency=0.05, upload=True),
    *(Scenario(f"growth: {n} files of 10 kB", n, 10_000, suffix="json") for n in (10, 100, 1000)),
    *(Scenario(f"growth: 1 x {n} MB", 1, n * MB) for n in (500, 1000, 2000)),
]


@dataclass
class Figure:
    """One run of one tool."""

    scenario: str
    tool: str
    seconds: float
    peak: float  # MB of the largest process


class Bench:
    """A hub with the scenario's files, and a machine that fetches or sends them."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.store = Store(folder / "hub")
        self.source, self.target = folder / "source", folder / "target"
        self.source.mkdir()
        names = [f"model-{i:05}.{scenario.suffix}" for i in range(scenario.files)]
        for name in names:
            write_random(self.source / name, scenario.size)
        self.names = names
        if not scenario.upload:
            self.store.add(MODEL, {name: self.source / name for name in names})
        self.hub = Hub(self.store, rate=scenario.rate, latency=scenario.latency)
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "MODELSCOPE_ENDPOINT": self.hub.url,
        }
        Path(self.env["HOME"]).mkdir()

    def prepare(self, tool: str) -> None:
        """Put everything where it was before a run."""
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir()
        (self.source / ".ms_upload_cache").unlink(missing_ok=True)
        if self.scenario.upload:
            self.store.models.pop(MODEL, None)
            self.store.blobs.clear()
            for blob in (self.store.root / ".blobs").iterdir():
                blob.unlink()
            self.store.add(MODEL)
        elif self.scenario.start != "empty":
            snapshot = self.target / "models" / MODEL.replace("/", "--") / "snapshots/master"
            snapshot.mkdir(parents=True)
            for name in self.names:
                self.leave(snapshot / name, in_parts=tool == "ours")

    def leave(self, path: Path, *, in_parts: bool) -> None:
        """Leave what a complete or a broken run of this tool leaves of a file."""
        source, half = self.source / path.name, self.scenario.size // 2
        if self.scenario.start == "complete":
            os.link(source, path)
            return
        with source.open("rb") as file:
            for start in range(0, half - PART, PART):
                left = f"_{start}_{start + PART - 1}" if in_parts else ".incomplete"
                with path.with_name(f"{path.name}{left}").open("ab") as unfinished:
                    # Piece by piece: a child's peak of memory is never below this process's own.
                    for _ in range(PART >> 20):
                        unfinished.write(file.read(1 << 20))

    def can(self, tool: str) -> bool:
        """Whether a tool does this work and is here; aria2c and curl fetch into an empty folder."""
        fetches = not self.scenario.upload and self.scenario.start == "empty"
        return tool in ("ours", "cli", "sdk") or (fetches and shutil.which(tool) is not None)

    def ours(self) -> list[str]:
        if self.scenario.upload:
            options = ["upload_model.py", "--repo-id", MODEL, "--model-dir", str(self.source)]
        else:
            options = ["download_model.py", "--model_name", MODEL, "--cache_dir", str(self.target)]
        return [sys.executable, str(ROOT / options[0]), *options[1:]]

    def cli(self) -> list[str]:
        up = ["upload", MODEL, str(self.source)]
        down = ["download", MODEL, "--cache_dir", str(self.target)]
        return [CLI, *(up if self.scenario.upload else down)]

    def sdk(self) -> list[str]:
        """The call that the scripts make, and nothing else."""
        up = f"HubApi().upload_folder({MODEL!r}, {str(self.source)!r})"
        down = f"snapshot_download({MODEL!r}, cache_dir={str(self.target)!r})"
        call = up if self.scenario.upload else down
        return [sys.executable, "-c", f"from modelscope import HubApi, snapshot_download; {call}"]

    def addresses(self) -> Iterator[tuple[str, str]]:
        for name in self.names:
            address = f"{self.hub.url}/api/v1/models/{MODEL}/repo?FilePath={quote(name)}"
            yield address, name

    def aria2c(self) -> list[str]:
        lines = (f"{address}\n out={name}\n" for address, name in self.addresses())
        (self.folder / "list").write_text("".join(lines))
        at_once = ["-x16", "-s16", "-k1M", "-j16", "-c", "--file-allocation=none", "-q"]
        return ["aria2c", *at_once, "-d", str(self.target), "-i", str(self.folder / "list")]

    def curl(self) -> list[str]:
        """One after the other, as in a shell loop, and the digests at the end."""
        lines = (f"url={a}\noutput={self.target / name}\n" for a, name in self.addresses())
        (self.folder / "list").write_text("".join(lines))
        return ["sh", "-c", f"curl -s -K {self.folder / 'list'} && sha256sum -b {self.target}/*"]

    def measure(self, tool: str) -> Figure | None:
        if not self.can(tool):
            return None
        self.prepare(tool)
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = time.monotonic()
        process = subprocess.Popen(getattr(self, tool)(), env=self.env, **streams)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{tool} failed at {self.scenario.name}: {process.returncode}")
        return Figure(self.scenario.name, tool, seconds, usage.ru_maxrss / 1000)


def write_random(path: Path, size: int) -> None:
    """Write `size` bytes that differ from file to file, and do not compress."""
    block = os.urandom(min(size, 1 << 20))
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def run(scenario: Scenario, runs: int) -> list[Figure]:
    """Run every tool `runs` times, in turn."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(scenario, Path(folder))
        with bench.hub:
            if scenario.upload:
                token = bench.store.add_user("bench")
                login = [CLI, "login", "--token", token]
                subprocess.run(login, env=bench.env, check=True, capture_output=True)
            # The first to write would otherwise pay for what the others find ready.
            bench.target.mkdir()
            write_random(bench.target / "warm", scenario.files * scenario.size)
            turns = [tool for _ in range(runs) for tool in TOOLS]
            return [figure for tool in turns if (figure := bench.measure(tool))]


def run_help(runs: int) -> list[Figure]:
    commands = {
        "ours": [sys.executable, str(ROOT / "download_model.py"), "--help"],
        "cli": [CLI, "--help"],
    }
    figures = []
    for tool in [tool for _ in range(max(runs, 5)) for tool in commands]:
        started = time.monotonic()
        subprocess.run(
            commands[tool], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
        figures.append(Figure("--help", tool, time.monotonic() - started, 0))
    return figures


def table(figures: list[Figure]) -> str:
    """A line a scenario: each tool's time as a ratio to the CLI's, and our peak of memory."""
    lines = [
        "| scenario | CLI, s | ours | plain SDK | aria2c | curl | peak, ours / CLI |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(figure.scenario for figure in figures):
        times, peaks = {}, {}
        for tool in TOOLS:
            ours = [f for f in figures if f.scenario == name and f.tool == tool]
            times[tool] = statistics.median(f.seconds for f in ours) if ours else None
            peaks[tool] = max((f.peak for f in ours), default=0)
        cells = [f"{t / times['cli']:.2f}" if t else "" for t in times.values()]
        cells.pop(TOOLS.index("cli"))
        peak = f"{peaks['ours']:.0f} / {peaks['cli']:.0f} MB" if peaks["ours"] else ""
        lines.append(f"| {name} | {times['cli']:.2f} | {' | '.join(cells)} | {peak} |")
    return "\n".join(lines)


def noise(figures: list[Figure]) -> str:
    """How far runs of the same thing lie apart: the worst, and what to make of it."""
    spreads = []
    for key in {(figure.scenario, figure.tool) for figure in figures}:
        times = [f.seconds for f in figures if (f.scenario, f.tool) == key]
        spreads.append((max(times) / min(times), *key))
    worst, scenario, tool = max(spreads)
    verdict = "a noisy machine; run this again" if worst > 1.5 else "a quiet machine"
    return f"Slowest to fastest, same tool and work: {worst:.2f} ({tool}, {scenario}): {verdict}."


def limits(folder: Path) -> str:
    """What the disk and the loopback give without any tool, in MB a second."""
    size = 500 * MB
    write_random(folder / "a", size)
    started = time.monotonic()
    shutil.copyfile(folder / "a", folder / "b")
    disk = size / (time.monotonic() - started) / MB
    store = Store(folder / "hub")
    store.add(MODEL, {"a": folder / "a"})
    with Hub(store) as hub:
        address = f"{hub.url}/api/v1/models/{MODEL}/repo?FilePath=a"
        started = time.monotonic()
        subprocess.run(["curl", "-s", "-o", os.devnull, address], check=True)
        link = size / (time.monotonic() - started) / MB
    return f"A copy on this disk: {disk:.0f} MB/s. One stream over loopback: {link:.0f} MB/s."


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", default="", help="the scenarios whose name holds this")
    parser.add_argument("--runs", type=int, default=3, help="runs of each tool (default: 3)")
    parser.add_argument("--size", type=float, default=1, help="factor on the size of each file")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    figures = run_help(args.runs) if args.only in "--help" else []
    for scenario in (scenario for scenario in SCENARIOS if args.only in scenario.name):
        scenario.size = int(scenario.size * args.size)
        figures += run(scenario, args.runs)
        print(table(figures).splitlines()[-1], flush=True)
    FIGURES.write_text(json.dumps([vars(figure) for figure in figures], indent=1))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        print(f"\n{table(figures)}\n\n{limits(Path(folder))}\n{noise(figures)}")
    print(f"All figures: {FIGURES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
