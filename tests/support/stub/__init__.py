"""A machine where a stub stands in for `modelscope`, to see what the scripts ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.client import ROOT, Result

SDK = Path(__file__).parent / "sdk"

# What a script finds where it looks for the SDK.
ALONE = "stub"
BESIDE = "stub beside modelscope_hub"
PATCHED = "modelscope, patched"
MISSING = "no SDK"

# The real SDK is imported, as the stub comes last on the path; then its names are replaced.
PATCH = """
import importlib, sys
sys.path += sys.argv.pop(1).split(":")
script = importlib.import_module(sys.argv.pop(1))
import recorder
for name in {"snapshot_download", "HubApi"} & vars(script).keys():
    setattr(script, name, getattr(recorder, name))
code = script.main()
assert type(code) is int, code
sys.exit(code)
"""

EVALUATE = """
import importlib, json, sys
name, expression = sys.argv.pop(1), sys.argv.pop(1)
print(json.dumps(eval(expression, vars(importlib.import_module(name)))))
"""


class StubClient:
    """Runs the scripts as processes, with a clean environment and a HOME of their own."""

    def __init__(self, tmp_path: Path, sdk: str = ALONE) -> None:
        self.sdk = sdk
        self.home = tmp_path / "home"
        self.work = tmp_path / "work"
        self.record = tmp_path / "calls"
        self.home.mkdir()
        self.work.mkdir()
        self.record.touch()
        # `-S` leaves only the standard library, whatever is installed here.
        self.python = [sys.executable, *(["-S"] if sdk in (ALONE, MISSING) else [])]
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "MODELSCOPE_ENDPOINT": "http://127.0.0.1:1",  # no request is expected, and none leaves
            "PYTHONDONTWRITEBYTECODE": "1",
            "STUB_CALLS": str(self.record),
        }
        if sdk in (ALONE, BESIDE):
            self.env["PYTHONPATH"] = str(SDK)

    def run(self, script: str, *options: object, **env: str) -> Result:
        """Run a script by its name; where names are to be patched, by its `main`."""
        if self.sdk == PATCHED:
            return self.start("-c", PATCH, f"{SDK}:{ROOT}", Path(script).stem, *options, **env)
        return self.start(ROOT / script, *options, **env)

    def evaluate(self, script: str, expression: str, *options: object, **env: str) -> Any:
        """Return the value of an expression inside of a script that is imported, not run."""
        path = f"{SDK}:{ROOT}"
        command = ("-c", EVALUATE, Path(script).stem, expression, *options)
        result = self.start(*command, **{"PYTHONPATH": path, **env})
        assert result.code == 0, result
        return json.loads(result.out)

    def start(self, *words: object, **env: str) -> Result:
        command = [*self.python, *map(str, words)]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True}
        text: dict[str, Any] = {"text": True, "encoding": "utf-8"}
        environment = {**self.env, **env}
        done = subprocess.run(command, cwd=self.work, env=environment, timeout=60, **pipes, **text)
        return Result(done.returncode, done.stdout, done.stderr)

    @property
    def calls(self) -> list[list[Any]]:
        """Each call so far: its name, positional and keyword arguments; folders are absolute."""
        calls = [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]
        for _, _, kwargs in calls:
            for name in {"cache_dir", "folder_path"} & kwargs.keys():
                kwargs[name] = str(Path(self.work, kwargs[name]).resolve())
        return calls
