"""Rehearse against a hub of your own, on loopback: no account, no internet.

python -m tests.hub -- COMMAND …   runs COMMAND and passes its exit code on
python -m tests.hub -- sh          opens a shell, in which every command is a rehearsal

The commands find the hub's address and a token, ms-your-token, in their environment. It may read
and write everything. When it ends, the hub forgets what was uploaded.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hub import Hub, Store
from tests.hub.models import PRIVATE, SERVED, add_defaults

TOKEN = "ms-your-token"  # as the README has it, so that its lines can be pasted


def parse_args() -> argparse.Namespace:
    notes = {PRIVATE: ", private"}
    models = [f"  {model:34} {name}{notes.get(model, '')}" for model, name in SERVED.items()]
    parser = argparse.ArgumentParser(
        prog="python -m tests.hub",
        description=__doc__,
        epilog="\n".join(["models:", *models]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="+", help="what to run, after a lone --")
    return parser.parse_args()


def run(command: list[str], env: dict[str, str]) -> int:
    """Run `command` and return its exit code as a shell would; Ctrl-C is the command's."""
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which the command would inherit
    try:
        code = subprocess.run(command, env=os.environ | env).returncode
    except FileNotFoundError as error:
        sys.exit(str(error))
    return code if code >= 0 else 128 - code


def main() -> int:
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-", ignore_cleanup_errors=True) as scratch:
        store = Store(Path(scratch, "blobs"))
        store.users[TOKEN] = "*"
        add_defaults(store)
        with Hub(store) as hub:
            env = {
                "MODELSCOPE_ENDPOINT": hub.url,
                "MODELSCOPE_HOME": str(Path(scratch, "home")),  # no login of the user's own
                "MODELSCOPE_API_TOKEN": TOKEN,
                "NO_PROXY": "127.0.0.1,localhost",
            }
            return run(args.command, env)


if __name__ == "__main__":
    sys.exit(main())
