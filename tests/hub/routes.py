"""What the hub answers, a function an address: read off the SDK's source and the records of the
real hub; `tests/README.md` says which."""

from __future__ import annotations

import base64
import posixpath
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub.messages import Answer, Request, Response, Slice
from tests.hub.store import MASTER, Blob, Model, is_large

if TYPE_CHECKING:
    from tests.hub.server import Hub

LIST_LIMIT = 3000  # entries in one answer; the SDK walks the folders when it sees this many
COMMITTED = 1_700_000_000  # the one date of all files
COMMIT_ID = re.compile("[0-9a-f]{40}")

# The hub's own codes. A missing model has no file list and no information.
MISSING = 10010205001
NO_ACCESS = 10010200001
NO_TREE = 10990101004
NOT_LOGGED_IN = REJECTED = 10030000001
BAD_TOKEN = 10010103009
EXISTS = 10010101001


def ok(data: object, headers: dict[str, str] | None = None) -> Response:
    payload = {"Code": 200, "Success": True, "Message": "", "Data": data}
    return Response.json(payload, headers=headers)


def error(status: int, message: str, code: int | str | None = None) -> Response:
    payload = {"Code": code or status, "Success": False, "Message": message, "Data": None}
    return Response.json(payload, status)


def openapi_error(status: int, message: str, code: str) -> Response:
    return Response.json({"success": False, "code": code, "message": message}, status)


# --- users --------------------------------------------------------------------------------------


def login(hub: Hub, request: Request) -> Response:
    token = request.json["AccessToken"]
    user = hub.store.users.get(token)
    if user is None:
        return error(400, "AccessToken is invalid or expired", BAD_TOKEN)
    data = {"AccessToken": f"git-{token}", "Username": user, "Email": f"{user}@example.com"}
    return ok(data, {"Set-Cookie": f"m_session_id={token}; Path=/; Max-Age=2592000"})


def me(hub: Hub, request: Request) -> Response:
    if request.user is None:
        return openapi_error(401, "invalid token", "InvalidAuthentication")
    data = {"username": request.user, "email": f"{request.user}@example.com"}
    return Response.json({"success": True, "data": data})


# --- models -------------------------------------------------------------------------------------


def info(hub: Hub, request: Request, owner: str, name: str) -> Response:
    """`/openapi/v1/models/…`, which does not take a bad token even for a public model."""
    if request.token and request.user is None:
        return openapi_error(401, "invalid token", "InvalidAuthentication")
    model = hub.store.visible(request.user, f"{owner}/{name}")
    if model is None:
        return openapi_error(404, "model not found", "ResourceNotFound")
    data = {"id": model.id, "owner": owner, "name": name, "private": model.private}
    return Response.json({"success": True, "data": data})


def legacy_info(hub: Hub, request: Request, owner: str, name: str) -> Response:
    """`/api/v1/models/…`"""
    model = hub.store.visible(request.user, f"{owner}/{name}")
    if model is None:
        return not_found(hub, f"{owner}/{name}", "获取模型信息失败")
    return ok({"Path": owner, "Name": name, "Visibility": 1 if model.private else 5})


def not_found(hub: Hub, model_id: str, failed: str) -> Response:
    """A model that does not exist, or not for this user, is a 404 either way; the code differs."""
    if model_id in hub.store.models:
        return error(404, f"{failed}，信息：no access", NO_ACCESS)
    return error(404, f"{failed}，信息：record not found", MISSING)


def enveloped(hub: Hub, response: Response) -> Response:
    if hub.rules.envelope:
        response.status = 200
    return response


def create(hub: Hub, request: Request) -> Response:
    owner, name = request.json["Path"], request.json["Name"]
    model_id = f"{owner}/{name}"
    if request.user is None:
        return error(400, "user not logged in", NOT_LOGGED_IN)
    if not hub.store.owns(request.user, model_id):
        return error(403, "no permission to create this model")
    if model_id in hub.store.models:
        return error(400, "the model exists already", EXISTS)
    hub.store.create(model_id, private=request.json.get("Visibility") == 1)
    return ok({"Path": owner, "Name": name})


def revisions(hub: Hub, request: Request, owner: str, name: str) -> Response:
    model = hub.store.visible(request.user, f"{owner}/{name}")
    if model is None:
        return enveloped(hub, not_found(hub, f"{owner}/{name}", "获取模型信息失败"))
    if not model.revisions:  # a repo without a branch
        return enveloped(hub, error(404, "获取模型版本失败", NO_TREE))
    names = [name for name in model.revisions if not COMMIT_ID.fullmatch(name)]
    branches = [{"Revision": name, "CreatedAt": COMMITTED} for name in names]
    return ok({"RevisionMap": {"Branches": branches, "Tags": []}})


# --- files --------------------------------------------------------------------------------------


def list_files(hub: Hub, request: Request, owner: str, name: str) -> Response:
    model = hub.store.visible(request.user, f"{owner}/{name}")
    if model is None:
        return enveloped(hub, not_found(hub, f"{owner}/{name}", "获取模型目录树失败"))
    revision = request.query.get("Revision", MASTER)
    files = hub.listed(model, revision)
    if files is None and COMMIT_ID.fullmatch(revision):
        files = {}  # an unknown commit "succeeds"
    if files is None:
        return enveloped(hub, error(404, "获取模型目录树失败", NO_TREE))
    entries = {path: entry(hub, model, path, blob) for path, blob in files.items()}
    for path in files:
        while path := posixpath.dirname(path):
            entries[path] = entry(hub, model, path, None)
    wanted = [entries[path] for path in sorted(entries) if is_wanted(request, path)]
    return ok({"Files": wanted[:LIST_LIMIT]})


def is_wanted(request: Request, path: str) -> bool:
    """Whether the list was asked for this path, by its `Root` and `Recursive`."""
    root = request.query.get("Root", "").strip("/")
    if request.query.get("Recursive") != "True":
        return posixpath.dirname(path) == root
    return not root or path.startswith(f"{root}/")


def entry(hub: Hub, model: Model, path: str, blob: Blob | None) -> dict[str, object]:
    """A line of the file list: a file, or a folder when there is no blob."""
    line: dict[str, object] = {"Name": posixpath.basename(path), "Path": path, "InCheck": False}
    line |= {"Revision": model.head, "CommittedDate": COMMITTED}
    if blob is None:
        return line | {"Type": "tree", "Size": 0, "Mode": "16384", "IsLFS": False, "Sha256": ""}
    large = is_large(path, blob.size)
    without = {"": False, "empty": not blob.size, "small": not large}[hub.rules.no_digest]
    line |= {"Type": "blob", "Size": blob.size, "Mode": "33188", "IsLFS": large}
    return line | {"Sha256": "" if without else blob.sha256}


def find_file(hub: Hub, request: Request, owner: str, name: str) -> Blob | None:
    model = hub.store.visible(request.user, f"{owner}/{name}")
    files = model and model.files(request.query.get("Revision", MASTER))
    return files.get(request.query.get("FilePath", "")) if files else None


def is_stored(hub: Hub, request: Request, owner: str, name: str) -> bool:
    """Whether this file comes from the storage host; a HEAD is answered by the hub."""
    if request.method == "HEAD" or hub.rules.direct or "storage" not in hub.names:
        return False
    blob = find_file(hub, request, owner, name)
    return blob is not None and is_large(request.query["FilePath"], blob.size)


def file(hub: Hub, request: Request, owner: str, name: str) -> Response:
    blob = find_file(hub, request, owner, name)
    if blob is None:
        return error(404, "model, revision or file not found", MISSING)
    return content(hub, request, blob)


def redirect(hub: Hub, request: Request, owner: str, name: str) -> Response:
    """The signed address of a large file."""
    blob = find_file(hub, request, owner, name)
    assert blob is not None
    key = f"{COMMITTED}-{secrets.token_hex(16)}-0-{secrets.token_hex(16)}"
    hub.signed[key] = request.query["FilePath"], blob
    digest = blob.sha256
    path = f"/prod/lfs-objects/{digest[:2]}/{digest[2:4]}/{digest[4:]}?auth_key={key}"
    return Response(302, headers={"Location": hub.address("storage") + path})


def stored(hub: Hub, request: Request) -> Response:
    """A large file on the storage host, which knows no users: the address is all it asks for."""
    key = request.query.get("auth_key", "")
    if key not in hub.signed or key in hub.expired:
        return Response(403, b"<Error><Code>AccessDenied</Code></Error>")
    return content(hub, request, hub.signed[key][1])


def content(hub: Hub, request: Request, blob: Blob) -> Response:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted:
        return Response(200, Slice(blob.path, 0, blob.size), headers)
    start, end = int(wanted[1]), min(int(wanted[2] or blob.size - 1), blob.size - 1)
    if start >= blob.size:
        return Response(416, headers={"Content-Range": f"bytes */{blob.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{blob.size}"
    status = 206 if hub.rules.partial else 200
    return Response(status, Slice(blob.path, start, end - start + 1), headers)


def region(hub: Hub, request: Request) -> Response:
    """The SDK asks whether it runs in the hub's own cloud; on loopback it doesn't."""
    return ok({"InternalRegionQueryAddress": ""})


# --- uploads ------------------------------------------------------------------------------------


def refuse_write(hub: Hub, request: Request, model_id: str) -> Response | None:
    """The refusal for a user who isn't logged in or cannot see the model."""
    if request.user is None:
        return error(400, "user not logged in", NOT_LOGGED_IN)
    if hub.store.visible(request.user, model_id) is None:
        return not_found(hub, model_id, "获取模型信息失败")
    return None


def batch(hub: Hub, request: Request, owner: str, name: str) -> Response:
    """LFS: an address for each blob that the hub lacks, and nothing for those that it has.

    Whether the user may write is not asked before the blob comes.
    """
    if refusal := refuse_write(hub, request, f"{owner}/{name}"):
        return refusal
    address = hub.address("hub" if hub.rules.direct else "uploads")
    objects = []
    for wanted in request.json["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        if oid not in hub.store.blobs or hub.store.blobs[oid].size != size:
            href = f"{address}/api/v1/repos/models/{owner}/{name}/blobs/{oid}/{size}"
            upload = {"href": href, "upload_header": {"Range": "bytes=0-"}}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload}})
    return ok({"objects": objects, "reused-objects": []})


def blob(hub: Hub, request: Request, owner: str, name: str, oid: str, size: str) -> Response:
    if request.user is None:
        return error(400, "user not logged in", NOT_LOGGED_IN)
    if not hub.store.owns(request.user, f"{owner}/{name}"):
        return error(403, "no write permission to repository")
    assert isinstance(request.body, Path)
    kept = hub.store.keep(request.body)
    if kept.sha256 != oid:
        del hub.store.blobs[kept.sha256]
        return error(400, "the blob does not match its digest")
    return ok({})


def commit(hub: Hub, request: Request, owner: str, name: str, branch: str) -> Response:
    if refusal := refuse_write(hub, request, f"{owner}/{name}"):
        return refusal
    model = hub.store.models[f"{owner}/{name}"]
    if not hub.store.owns(request.user, model.id):
        return error(404, "model not found")
    if model.revisions and branch not in model.revisions:
        return error(404, "no such branch")
    try:
        changes = dict(read_change(hub, action) for action in request.json["actions"])
    except LookupError:
        return error(400, "a blob is missing")
    if refusal := refuse_commit(hub, model.revisions.get(branch, {}), changes):
        return refusal
    hub.commit(model, branch, changes, request.json["commit_message"])
    return ok({"CommitId": model.head})


def read_change(hub: Hub, action: dict[str, str]) -> tuple[str, Blob]:
    """The path of one file in a commit and the blob behind it."""
    assert action["action"] == "create", f"a commit with {action}"
    if action["type"] == "lfs":
        return action["path"], hub.store.blobs[action["sha256"]]
    return action["path"], hub.store.keep(hub.store.write(base64.b64decode(action["content"])))


def refuse_commit(hub: Hub, files: dict[str, Blob], changes: dict[str, Blob]) -> Response | None:
    """The refusal of a whole commit, for one of its paths or because there were too many."""
    rules = hub.rules
    if any(re.fullmatch(rules.refused, path) for path in changes):
        return error(400, "commit rejected by repository policy", REJECTED)
    unchanged = [path for path, blob in changes.items() if files.get(path) == blob]
    if rules.refuse_unchanged and unchanged:
        return error(400, f"A file with this name already exists: {unchanged[0]}")
    with hub.lock:
        if rules.commits == 0:
            return error(429, "[E1021] Commit frequency limit exceeded", "E1021")
        if rules.commits is not None:
            rules.commits -= 1
    return None


MODEL = r"([^/]+)/([^/]+)"
LFS = rf"/api/v1/repos/models/{MODEL}"
ROUTES: list[tuple[str, str, str, str, Callable[..., Response]]] = [
    ("hub", "POST", "login", r"/api/v1/login", login),
    ("hub", "GET", "me", r"/openapi/v1/users/me", me),
    ("hub", "GET", "info", rf"/openapi/v1/models/{MODEL}", info),
    ("hub", "GET", "region", r"/api/v1/repos/internalAccelerationInfo", region),
    ("hub", "GET", "legacy_info", rf"/api/v1/models/{MODEL}", legacy_info),
    ("hub", "GET", "revisions", rf"/api/v1/models/{MODEL}/revisions", revisions),
    ("hub", "GET", "list", rf"/api/v1/models/{MODEL}/repo/files", list_files),
    ("hub", "GET|HEAD", "file", rf"/api/v1/models/{MODEL}/repo", file),
    ("storage", "GET|HEAD", "file", r"/prod/lfs-objects/../../[0-9a-f]{60}", stored),
    ("hub", "POST", "create", r"/api/v1/models", create),
    ("hub", "POST", "batch", rf"{LFS}/info/lfs/objects/batch", batch),
    ("hub|uploads", "PUT", "blob", rf"{LFS}/blobs/([0-9a-f]{{64}})/(\d+)", blob),
    ("hub", "POST", "commit", rf"{LFS}/commit/(.+)", commit),
]


def find(hub: Hub, request: Request) -> Answer | None:
    """Return what answers a request, with its address filled in, and name it in the log.

    The hub's answer for a large file is a route of its own, "redirect": so "file" is where the
    bytes come from, whichever host that is.
    """
    for hosts, methods, name, pattern, route in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if not match or request.host not in hosts.split("|"):
            continue
        if request.method in methods.split("|"):
            request.route, request.file = name, request.query.get("FilePath", "")
            if route is file and is_stored(hub, request, *match.groups()):
                request.route, route = "redirect", redirect
            if signed := hub.signed.get(request.query.get("auth_key", "")):
                request.file = signed[0]
            arguments = (hub, request, *match.groups())
            return lambda: route(*arguments)
    return None
