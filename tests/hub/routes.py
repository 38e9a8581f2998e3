"""What the hub answers, a function for each address; `tests/README.md` names the sources."""

from __future__ import annotations

import base64
import posixpath
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub.faults import Answer, Response
from tests.hub.store import MASTER, Blob, Model, is_large

if TYPE_CHECKING:
    from tests.hub.server import Hub, Request

COMMITTED = 1_700_000_000  # the one date of all files
COMMIT_ID = re.compile("[0-9a-f]{40}")

# The hub's own codes.
MISSING, NO_ACCESS, NO_TREE = 10010205001, 10010200001, 10990101004
NOT_LOGGED_IN, BAD_TOKEN, EXISTS = 10030000001, 10010103009, 10010101001


def ok(data: object) -> Response:
    return Response.json({"Code": 200, "Success": True, "Message": "", "Data": data})


@dataclass(eq=False)
class HubError(Exception):
    """A request that is refused, with the hub's own code."""

    status: int
    message: str
    code: int = 0


def openapi(status: int, **fields: object) -> Response:
    return Response.json({"success": status == 200, **fields}, status)


def login(hub: Hub, request: Request) -> Response:
    token = request.json["AccessToken"]
    user = hub.store.users.get(token)
    if user is None:
        raise HubError(400, "AccessToken is invalid or expired", BAD_TOKEN)
    data = {"AccessToken": f"git-{token}", "Username": user, "Email": f"{user}@example.com"}
    response = ok(data)
    response.headers["Set-Cookie"] = f"m_session_id={token}; Path=/; Max-Age=2592000"
    return response


def me(hub: Hub, request: Request) -> Response:
    if request.user is None:
        return openapi(401, code="InvalidAuthentication", message="invalid token")
    return openapi(200, data={"username": request.user, "email": f"{request.user}@example.com"})


def find_model(
    hub: Hub, request: Request, model_id: str, failed: str = "获取模型信息失败"
) -> Model:
    """A model that does not exist, or not for this user, is a 404 either way; the code differs."""
    if model := hub.store.visible(request.user, model_id):
        return model
    if model_id in hub.store.models:
        raise HubError(404, f"{failed}，信息：no access", NO_ACCESS)
    raise HubError(404, f"{failed}，信息：record not found", MISSING)


def need_login(request: Request) -> None:
    if request.user is None:
        raise HubError(400, "user not logged in", NOT_LOGGED_IN)


def info(hub: Hub, request: Request, model_id: str) -> Response:
    """`/openapi/v1/models/…`, which does not take a bad token even for a public model."""
    if request.token and request.user is None:
        return openapi(401, code="InvalidAuthentication", message="invalid token")
    model = hub.store.visible(request.user, model_id)
    if model is None:
        return openapi(404, code="ResourceNotFound", message="model not found")
    return openapi(200, data={"id": model.id, "private": model.private})


def legacy_info(hub: Hub, request: Request, model_id: str) -> Response:
    """`/api/v1/models/…`"""
    model = find_model(hub, request, model_id)
    return ok({"Path": model_id.split("/")[0], "Visibility": 1 if model.private else 5})


def create(hub: Hub, request: Request) -> Response:
    model_id = f"{request.json['Path']}/{request.json['Name']}"
    need_login(request)
    if not hub.store.owns(request.user, model_id):
        raise HubError(403, "no permission to create this model")
    if model_id in hub.store.models:
        raise HubError(400, "the model exists already", EXISTS)
    hub.store.create(model_id, private=request.json.get("Visibility") == 1)
    return ok({"Path": request.json["Path"], "Name": request.json["Name"]})


def revisions(hub: Hub, request: Request, model_id: str) -> Response:
    model = find_model(hub, request, model_id)
    if not model.revisions:
        raise HubError(404, "获取模型版本失败", NO_TREE)
    names = [name for name in model.revisions if not COMMIT_ID.fullmatch(name)]
    branches = [{"Revision": name, "CreatedAt": COMMITTED} for name in names]
    return ok({"RevisionMap": {"Branches": branches, "Tags": []}})


def list_files(hub: Hub, request: Request, model_id: str) -> Response:
    model = find_model(hub, request, model_id, "获取模型目录树失败")
    revision = request.query.get("Revision", MASTER)
    files = model.revisions.get(revision)
    if files is None and COMMIT_ID.fullmatch(revision):
        files = {}  # an unknown commit "succeeds"
    if files is None:
        raise HubError(404, "获取模型目录树失败", NO_TREE)
    entries = {path: entry(hub, model, path, blob) for path, blob in files.items()}
    for path in files:
        while path := posixpath.dirname(path):
            entries[path] = entry(hub, model, path, None)
    return ok({"Files": [entries[path] for path in sorted(entries)]})


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


def find_file(hub: Hub, request: Request, model_id: str) -> Blob | None:
    model = hub.store.visible(request.user, model_id)
    files = model and model.revisions.get(request.query.get("Revision", MASTER))
    return files.get(request.query.get("FilePath", "")) if files else None


def is_stored(hub: Hub, request: Request, model_id: str) -> bool:
    """Whether this file comes from the storage host; a HEAD is answered by the hub."""
    if request.method == "HEAD" or hub.rules.direct or "storage" not in hub.names:
        return False
    blob = find_file(hub, request, model_id)
    return blob is not None and is_large(request.query["FilePath"], blob.size)


def file(hub: Hub, request: Request, model_id: str) -> Response:
    blob = find_file(hub, request, model_id)
    if blob is None:
        raise HubError(404, "model, revision or file not found", MISSING)
    return content(hub, request, blob)


def redirect(hub: Hub, request: Request, model_id: str) -> Response:
    """The signed address of a large file."""
    blob = find_file(hub, request, model_id)
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
        return Response(200, blob.content, headers)
    start, end = int(wanted[1]), min(int(wanted[2] or blob.size - 1), blob.size - 1)
    if start >= blob.size:
        return Response(416, headers={"Content-Range": f"bytes */{blob.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{blob.size}"
    status = 206 if hub.rules.partial else 200
    return Response(status, blob.content[start : end + 1], headers)


def region(hub: Hub, request: Request) -> Response:
    """The SDK asks whether it runs in the hub's own cloud; on loopback it doesn't."""
    return ok({"InternalRegionQueryAddress": ""})


def batch(hub: Hub, request: Request, model_id: str) -> Response:
    """An address for each blob that the hub lacks; who may write is asked when the blob comes."""
    need_login(request)
    find_model(hub, request, model_id)
    address = hub.address("hub" if hub.rules.direct else "uploads")
    objects = []
    for wanted in request.json["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        if oid not in hub.store.blobs or hub.store.blobs[oid].size != size:
            href = f"{address}/api/v1/repos/models/{model_id}/blobs/{oid}/{size}"
            upload = {"href": href, "upload_header": {"Range": "bytes=0-"}}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload}})
    return ok({"objects": objects, "reused-objects": []})


def blob(hub: Hub, request: Request, model_id: str, oid: str, size: str) -> Response:
    need_login(request)
    if not hub.store.owns(request.user, model_id):
        raise HubError(403, "no write permission to repository")
    assert isinstance(request.body, Path)
    kept = hub.store.keep(request.body)
    if kept.sha256 != oid:
        del hub.store.blobs[kept.sha256]
        raise HubError(400, "the blob does not match its digest")
    return ok({})


def commit(hub: Hub, request: Request, model_id: str, branch: str) -> Response:
    need_login(request)
    model = find_model(hub, request, model_id)
    if not hub.store.owns(request.user, model.id):
        raise HubError(404, "model not found")
    if model.revisions and branch not in model.revisions:
        raise HubError(404, "no such branch")
    changes = dict(read_change(hub, action) for action in request.json["actions"])
    files = model.revisions.get(branch, {})
    unchanged = [path for path, blob in changes.items() if files.get(path) == blob]
    if hub.rules.refuse_unchanged and unchanged:
        raise HubError(400, f"A file with this name already exists: {unchanged[0]}")
    hub.store.commit(model, branch, changes, request.json["commit_message"])
    return ok({"CommitId": model.head})


def read_change(hub: Hub, action: dict[str, str]) -> tuple[str, Blob]:
    """The path of one file in a commit and the blob behind it."""
    assert action["action"] == "create", f"a commit with {action}"
    if action["type"] != "lfs":
        return action["path"], hub.store.keep(base64.b64decode(action["content"]))
    if action["sha256"] not in hub.store.blobs:
        raise HubError(400, "a blob is missing")
    return action["path"], hub.store.blobs[action["sha256"]]


MODEL = r"([^/]+/[^/]+)"
LFS = rf"/api/v1/repos/models/{MODEL}"
ROUTES: list[tuple[str, str, Callable[..., Response]]] = [
    ("login", r"hub POST /api/v1/login", login),
    ("me", r"hub GET /openapi/v1/users/me", me),
    ("info", rf"hub GET /openapi/v1/models/{MODEL}", info),
    ("region", r"hub GET /api/v1/repos/internalAccelerationInfo", region),
    ("legacy_info", rf"hub GET /api/v1/models/{MODEL}", legacy_info),
    ("revisions", rf"hub GET /api/v1/models/{MODEL}/revisions", revisions),
    ("list", rf"hub GET /api/v1/models/{MODEL}/repo/files", list_files),
    ("file", rf"hub (?:GET|HEAD) /api/v1/models/{MODEL}/repo", file),
    ("file", r"storage (?:GET|HEAD) /prod/lfs-objects/../../[0-9a-f]{60}", stored),
    ("create", r"hub POST /api/v1/models", create),
    ("batch", rf"hub POST {LFS}/info/lfs/objects/batch", batch),
    ("blob", rf"(?:hub|uploads) PUT {LFS}/blobs/([0-9a-f]{{64}})/(\d+)", blob),
    ("commit", rf"hub POST {LFS}/commit/(.+)", commit),
]


def find(hub: Hub, request: Request) -> Answer | None:
    """Return what answers a request, and name its route in the log.

    "file" is where bytes come from, on any host; the hub's answer for a large one is "redirect".
    """
    for name, pattern, route in ROUTES:
        match = re.fullmatch(pattern, f"{request.host} {request.method} {request.path}")
        if match:
            request.route, request.file = name, request.query.get("FilePath", "")
            if signed := hub.signed.get(request.query.get("auth_key", "")):
                request.file = signed[0]
            if route is file and is_stored(hub, request, *match.groups()):
                request.route, route = "redirect", redirect
            return partial(respond, hub, request, route, *match.groups())
    return None


def respond(hub: Hub, request: Request, route: Callable[..., Response], *ids: str) -> Response:
    """Call a route; where it refuses, say so."""
    try:
        return route(hub, request, *ids)
    except HubError as error:
        payload = {"Code": error.code or error.status, "Success": False, "Message": error.message}
        enveloped = hub.rules.envelope and request.route in ("list", "revisions")
        return Response.json(payload | {"Data": None}, 200 if enveloped else error.status)
