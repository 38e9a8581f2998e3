"""Print a fingerprint of the models that a build would download now; it moves no weights.

MODEL_ID, MODEL_REVISION, SPEC_DRAFT_MODEL_ID and SPEC_DRAFT_MODEL_REVISION name them, as in the
build; MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN are the hub and the token, where they are set.
A new model card is not a new model: fixing a typo in it must not make every user build again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys

from modelscope_hub import HubApi

LEFT_OUT = {"README.md", ".gitattributes"}


def describe(model: str, revision: str, token: str) -> tuple[object, ...]:
    """Return a model's name, revision and digests; exit with the cause if there are none."""
    endpoint = None
    with contextlib.suppress(Exception):  # the list will tell
        # As in a download: modelscope.ai, where modelscope.cn doesn't have the model.
        endpoint = HubApi(token=token or None).resolve_endpoint_for_read(model)
    api = HubApi(token=token or None, endpoint=endpoint)
    try:
        entries = api.list_repo_files(model, "model", revision=revision)
    except Exception as error:  # whatever it is, there is nothing to compare
        sys.exit(f"{model}: the file list could not be read: {error!r}")
    files = sorted((file.path, file.sha256 or file.size) for file in entries if not file.is_dir)
    if not files:
        sys.exit(f"{model}: the hub lists no files (revision={revision})")
    return model, revision, [file for file in files if file[0] not in LEFT_OUT]


def main() -> None:
    env = {name: value.strip() for name, value in os.environ.items()}
    # A blank one would hide a stored login.
    token = os.environ.pop("MODELSCOPE_API_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):  # an error of the SDK would show it
        sys.exit("MODELSCOPE_API_TOKEN has characters that cannot occur in a token; copy it again")
    if not env.get("MODEL_ID"):
        sys.exit("MODEL_ID is not set")
    models = [describe(env["MODEL_ID"], env.get("MODEL_REVISION") or "master", token)]
    if draft := env.get("SPEC_DRAFT_MODEL_ID"):
        models.append(describe(draft, env.get("SPEC_DRAFT_MODEL_REVISION") or "master", token))
    print(hashlib.sha256(repr(models).encode()).hexdigest())


if __name__ == "__main__":
    main()
