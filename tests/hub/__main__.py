"""Rehearse against a hub of your own, on loopback: no account, no internet.

python -m tests.hub -- COMMAND …   runs COMMAND against the hub and passes its exit code on
python -m tests.hub                serves until Ctrl-C and prints the lines to paste

COMMAND finds the hub's address and a token in its environment. The token may read and write all.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hub import Hub, Store
from tests.hub.models import EMPTY, PRIVATE, SERVED, add_defaults, add_empty, files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hub",
        description=__doc__,
        epilog=list_models(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    models = parser.add_mutually_exclusive_group()
    models.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="serve and keep models in DIR/OWNER/NAME/… (default: small models, kept nowhere)",
    )
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="OWNER/NAME",
        help="serve a small model under this id as well; may be repeated",
    )
    parser.add_argument("command", nargs="*", help="what to run, after a lone --")
    return parser.parse_args()


def list_models() -> str:
    """The ids that are served, a line each, with what is behind them."""
    lines = [f"  {model_id:34} {name}" for model_id, name in SERVED.items()]
    lines = [f"{line}, private" if PRIVATE in line else line for line in lines]
    return "\n".join(["models:", *lines, f"  {EMPTY:34} empty, private: to upload to"])


def settings(hub: Hub, home: str) -> dict[str, str]:
    """A client's environment: this hub, a token that may do all, no login of the user's own."""
    return {
        "MODELSCOPE_ENDPOINT": hub.url,
        "MODELSCOPE_HOME": home,
        "MODELSCOPE_API_TOKEN": hub.store.add_user("*"),
        "NO_PROXY": "127.0.0.1,localhost",
    }


def run(command: list[str], env: dict[str, str]) -> int:
    """Run `command` and return its exit code as a shell would; Ctrl-C is the command's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    code = subprocess.run(command, env=os.environ | env, **restore).returncode
    return code if code >= 0 else 128 - code


def serve(env: dict[str, str]) -> int:
    for name, value in env.items():
        print(f"export {name}={shlex.quote(value)}")
    # A shell starts what runs in the background deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("# serving until Ctrl-C", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        return 130


def main() -> int:
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-") as scratch:
        store = Store(args.data or Path(scratch, "models"))
        if args.data is None:
            add_defaults(store)
        for model_id in args.model:
            store.add(model_id, files())
        add_empty(store)
        with Hub(store) as hub:
            env = settings(hub, str(Path(scratch, "home")))
            return run(args.command, env) if args.command else serve(env)


if __name__ == "__main__":
    sys.exit(main())
