"""The same work in turn, in one run: our scripts, the SDK's CLI, the plain SDK, aria2c and curl.

python -m tests.bench                  every scenario; prints a table, writes tests/BENCH.md
python -m tests.bench --only small     those whose name holds "small"
python -m tests.bench --runs 5         more runs of each; the median counts
python -m tests.bench --size 0.01      a hundredth of the bytes, to see that it works

A figure is the median of interleaved runs; its ratio is to the CLI's in the same run, as an
absolute time says little on a machine that others use. Nothing is asserted. Only a full run
writes BENCH.md. Everything lies in the folder for temporary files: TMPDIR=/dev/shm leaves the
disk out. Needs Linux, as it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
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
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from tests.hub import Hub, Store
from tests.support.client import ROOT, wait_until

MODEL = "bench/model"
MB = 1_000_000
CLI = str(Path(sys.executable).parent / "modelscope")
PAGE = Path(__file__).parent / "BENCH.md"
FIGURES = Path(__file__).parent / ".bench.json"
TOOLS = ["ours", "cli", "sdk", "aria2c", "curl"]
RUNS = 3
HEAD = """\
| scenario | CLI, s | ours | plain SDK | aria2c | curl | bytes written | peak memory, MB |
|---|---|---|---|---|---|---|---|"""

INTRODUCTION = """\
# How fast it is

Written by `python -m tests.bench`, which runs the same work in turn with each tool, against the
stand-in hub on the same machine. Do not edit.
"""
EXPLANATION = """\
## How it was measured

- A time is the median of {runs} interleaved runs, in wall-clock seconds for the SDK's command
  (CLI), else as a ratio to it: 0.5 is half its time. A tool's cell is blank where it does not do
  this work.
- **ours** is `download_model.py` or `upload_model.py`; **plain SDK** is the one call that they
  make, and nothing else; **aria2c** has 16 connections and checks no digest; **curl** fetches one
  file after the other, and `sha256sum` follows.
- **bytes written**, ours / CLI, for each byte of the model: what the process and its children
  handed to the kernel in write calls (`wchar` in `/proc/PID/io`). It counts the same on a disk and
  on a RAM disk. `write_bytes` would not: it is 0 on a RAM disk, and on a disk it leaves out what
  was deleted before it got there, as the parts of a file that is joined soon after.
- **peak memory**, ours / CLI: the largest resident set of the process.
- "50 MB/s a connection" and "50 ms" are kept by the hub: a limit on each connection, a wait before
  each answer. "resumed half way" goes on where a killed run of the same tool had half of the bytes.
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
    suffix: str = "safetensors"


SCENARIOS = [
    Scenario("3 x 600 MB, 50 MB/s a connection", 3, 600 * MB, rate=50 * MB),
    Scenario("1 x 2 GB, 50 MB/s a connection", 1, 2000 * MB, rate=50 * MB),
    Scenario("24 x 140 MB, 50 MB/s a connection", 24, 140 * MB, rate=50 * MB),
    Scenario("200 small files, 50 ms", 200, 10_000, latency=0.05, suffix="json"),
    Scenario("3 x 600 MB, nothing capped", 3, 600 * MB),
    Scenario("24 x 140 MB, nothing capped", 24, 140 * MB),
    Scenario("3 x 600 MB, second run", 3, 600 * MB, start="complete"),
    Scenario("3 x 600 MB, 50 MB/s, resumed half way", 3, 600 * MB, rate=50 * MB, start="half"),
    Scenario("upload 4 x 100 MB", 4, 100 * MB, upload=True),
    Scenario("upload 4 x 100 MB, 50 MB/s a connection", 4, 100 * MB, rate=50 * MB, upload=True),
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
    peak: float = 0  # MB of the largest process
    written: float = 0  # bytes handed to write calls, for each byte of the model


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
        self.bytes = scenario.files * scenario.size
        if not scenario.upload:
            self.store.add(MODEL, {name: self.source / name for name in names})
        self.hub = Hub(self.store, rate=scenario.rate, latency=scenario.latency)
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "MODELSCOPE_CACHE": str(folder / "cache"),
            "MODELSCOPE_ENDPOINT": self.hub.url,
        }
        Path(self.env["HOME"]).mkdir()

    def prepare(self, tool: str) -> None:
        """Put everything where it was before a run."""
        self.hub.log.clear()
        for folder in (self.target, self.folder / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        self.target.mkdir()
        if self.scenario.upload:
            self.empty_the_hub()
        elif self.scenario.start != "empty":
            self.begin(tool)

    def empty_the_hub(self) -> None:
        (self.source / ".ms_upload_cache").unlink(missing_ok=True)
        self.store.models.pop(MODEL, None)
        self.store.blobs.clear()
        for blob in self.store.root.iterdir():
            blob.unlink()
        self.store.add(MODEL)

    def begin(self, tool: str) -> None:
        """Let a run of this tool come through, or kill it when the hub has sent half."""
        with self.start(tool) as process:
            half = self.bytes / 2 if self.scenario.start == "half" else float("inf")
            while process.poll() is None:
                if self.hub.sent() >= half:
                    process.kill()
                time.sleep(0.01)
        wait_until(lambda: not self.hub.open)  # the hub has noticed

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
        fetch = f"curl -s -L -K {self.folder / 'list'}"
        return ["sh", "-c", f"{fetch} && sha256sum -b {self.target}/*"]

    def start(self, tool: str) -> subprocess.Popen:
        with (self.folder / "log").open("w") as log:
            command = getattr(self, tool)()
            return subprocess.Popen(command, env=self.env, stdout=log, stderr=log)

    def measure(self, tool: str) -> Figure | None:
        if not self.can(tool):
            return None
        self.prepare(tool)
        started = time.monotonic()
        process = self.start(tool)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its counters stay for now
        seconds = time.monotonic() - started
        written = count_written(process.pid) / self.bytes
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log = (self.folder / "log").read_text()[-2000:]
            raise RuntimeError(f"{tool} failed at {self.scenario.name}: {log}")
        return Figure(self.scenario.name, tool, seconds, usage.ru_maxrss / 1000, written)


def count_written(pid: int) -> int:
    """The bytes that a process and the children it waited for gave to write calls."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def write_random(path: Path, size: int) -> None:
    """Write `size` bytes that differ from file to file, and do not compress."""
    block = os.urandom(min(size, 1 << 20))
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


@contextlib.contextmanager
def bench_of(scenario: Scenario) -> Iterator[Bench]:
    """A bench whose hub serves, and which is logged in where that is needed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(scenario, Path(folder))
        with bench.hub:
            if scenario.upload:
                login = [CLI, "login", "--token", bench.store.add_user("bench")]
                subprocess.run(login, env=bench.env, check=True, capture_output=True)
            # The first to write would otherwise pay for what the others find ready.
            bench.target.mkdir()
            write_random(bench.target / "warm", bench.bytes)
            yield bench


def run(scenario: Scenario, runs: int) -> list[Figure]:
    """Run every tool `runs` times, in turn."""
    with bench_of(scenario) as bench:
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
        figures.append(Figure("`--help`", tool, time.monotonic() - started))
    return figures


def row(figures: list[Figure]) -> str:
    """A scenario's line: the time of each tool as a ratio to the CLI's, then bytes and memory."""
    tools = {tool: [f for f in figures if f.tool == tool] for tool in TOOLS}
    times = {t: statistics.median(f.seconds for f in fs) for t, fs in tools.items() if fs}
    others = [tool for tool in TOOLS if tool != "cli"]
    cells = [f"{times[tool] / times['cli']:.2f}" if tool in times else "" for tool in others]
    ours, cli = (max(tools[tool], key=lambda figure: figure.peak) for tool in ("ours", "cli"))
    if ours.peak:
        cells += [f"{ours.written:.1f} / {cli.written:.1f}", f"{ours.peak:.0f} / {cli.peak:.0f}"]
    else:
        cells += ["", ""]
    return f"| {ours.scenario} | {times['cli']:.2f} | {' | '.join(cells)} |"


def describe_spread(figures: list[Figure]) -> str:
    """How far runs of the same thing lie apart, at the worst."""
    spreads = []
    for key in {(figure.scenario, figure.tool) for figure in figures}:
        times = [f.seconds for f in figures if (f.scenario, f.tool) == key]
        spreads.append((max(times) / min(times), *key))
    worst, scenario, tool = max(spreads)
    return f"Slowest to fastest run of one thing, at the worst: {worst:.2f} ({tool}, {scenario})."


def describe_noise(bench: Bench) -> str:
    """How noisy the machine is: the same command twice, after one that warms it up."""
    _, one, two = (bench.measure("cli").seconds for _ in range(3))
    ratio = max(one, two) / min(one, two)
    verdict = "quiet" if ratio < 1.1 else "a little noisy" if ratio < 1.3 else "noisy, run it again"
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return f"The same command twice: {one:.2f} s and {two:.2f} s; {load}: {verdict}."


def describe_machine(bench: Bench) -> str:
    """What the disk and the loopback give without any tool, in MB a second."""
    file = bench.source / bench.names[0]
    started = time.monotonic()
    shutil.copyfile(file, bench.folder / "copy")
    disk = bench.bytes / (time.monotonic() - started) / MB
    [(address, _)] = bench.addresses()
    started = time.monotonic()
    subprocess.run(["curl", "-s", "-L", "-o", os.devnull, address], check=True)
    link = bench.bytes / (time.monotonic() - started) / MB
    kind = ["stat", "-f", "-c", "%T", str(bench.folder)]
    kind = subprocess.run(kind, capture_output=True, text=True, check=True).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("modelscope", "modelscope-hub"))
    return (
        f"A copy in the temporary folder ({kind}): {disk:.0f} MB/s. "
        f"One stream over loopback: {link:.0f} MB/s. {packages}."
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", default="", help="the scenarios whose name holds this")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each (default: {RUNS})")
    parser.add_argument("--size", type=float, default=1, help="factor on the size of each file")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    with bench_of(Scenario("probe", 1, int(500 * MB * args.size))) as bench:
        notes = [describe_noise(bench), describe_machine(bench)]
    print(*notes, HEAD, sep="\n\n", flush=True)
    rows, figures = [], []
    for scenario in [None, *SCENARIOS]:
        if args.only not in (scenario.name if scenario else "--help"):
            continue
        if scenario:
            scenario.size = int(scenario.size * args.size)
        new = run(scenario, args.runs) if scenario else run_help(args.runs)
        rows.append(row(new))
        figures += new
        print(rows[-1], flush=True)
    notes.insert(1, describe_spread(figures))
    print(f"\n{notes[1]}")
    FIGURES.write_text(json.dumps([vars(figure) for figure in figures], indent=1))
    if not args.only and args.size == 1 and args.runs >= RUNS:
        table = "\n".join([HEAD, *rows])
        how = EXPLANATION.format(runs=args.runs)
        PAGE.write_text("\n".join([INTRODUCTION, "\n\n".join(notes), "", table, "", how]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
