"""A disk as slow as a cloud's common volume: a loop device over memory, throttled by the kernel.

python -m tests.support.slow_disk sh     a shell in such a disk, which is gone when it ends
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEMORY = Path("/dev/shm")
THROTTLE = Path("/sys/fs/cgroup/blkio")  # of cgroup v1, as in v2 the root group has no limits
DIRTY = Path("/proc/sys/vm/dirty_bytes")  # what may wait in memory to be written
RATE = 125_000_000  # bytes a second


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return done.stdout.strip()


def why_none() -> str:
    """What this machine lacks for such a disk, or nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can make one"
    needed = [MEMORY, THROTTLE / "blkio.throttle.write_bps_device", Path("/dev/loop-control")]
    missing = [str(path) for path in needed if not path.exists()]
    return f"this machine has no {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def slow_disk(size: int, rate: int = RATE) -> Iterator[Path]:
    """A folder with room for `size` bytes, which takes and gives `rate` bytes a second."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # all is put back then, too
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slow-", dir=MEMORY)))
        with (image := folder / "image").open("wb") as file:
            file.truncate(size)
        device = run("losetup", "--find", "--show", image)
        stack.callback(run, "losetup", "--detach", device)
        run("mkfs.ext4", "-q", "-m0", "-Elazy_itable_init=0,lazy_journal_init=0", device)
        (place := folder / "disk").mkdir()
        run("mount", "-o", "discard", device, place)
        stack.callback(run, "umount", place)
        numbers = os.stat(device).st_rdev
        for way in ("read", "write"):
            limit = THROTTLE / f"blkio.throttle.{way}_bps_device"
            limit.write_text(f"{os.major(numbers)}:{os.minor(numbers)} {rate}")
            stack.callback(limit.write_text, f"{os.major(numbers)}:{os.minor(numbers)} 0")
        stack.enter_context(little_dirty_memory())
        yield place


@contextlib.contextmanager
def little_dirty_memory() -> Iterator[None]:
    """Let little wait in memory to be written, or a small model would not feel the disk."""
    # Writing one of a pair sets the other to 0, and 0 can't be written.
    settings = [DIRTY, DIRTY.with_name("dirty_background_bytes")]
    ratios = [DIRTY.with_name(path.name.replace("bytes", "ratio")) for path in settings]
    before = {path: path.read_text().strip() for path in (*settings, *ratios)}
    for path in settings:
        path.write_text("32000000" if path == DIRTY else "16000000")
    try:
        yield
    finally:
        for path, value in before.items():
            if value != "0":
                path.write_text(value)


if __name__ == "__main__":
    if reason := why_none():
        sys.exit(f"no slow disk: {reason}")
    with slow_disk(8 << 30) as disk:
        sys.exit(subprocess.run(sys.argv[1:], cwd=disk).returncode)
