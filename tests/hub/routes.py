"""What the hub answers, a function an address: read off the SDK's `_legacy_api`, `_openapi`."""

from __future__ import annotations

import base64
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from tests.hub.server import Request, Response, Slice
from tests.hub.store import MASTER, Blob, Model, Store, leads_out

LIST_LIMIT = 3000  # entries in one answer; the SDK walks the folders when it sees this many

Route = Callable[[Store, Request], Response]


def ok(data: object, **headers: str) -> Response:
    return Response.json({"Code": 200, "Success": True, "Message": "", "Data": data}, **headers)


def error(status: int, message: str, code: int | None = None) -> Response:
    payload = {"Code": code or status, "Success": False, "Message": message, "Data": None}
    return Response.json(payload, status)


def login(store: Store, request: Request) -> Response:
    token = request.json.get("AccessToken")
    user = store.users.get(token)
    if user is None:  # 400 and this code: what `errors._BUSINESS_CODE_MAP` knows as a bad token
        return error(400, "AccessToken is invalid or expired", 10010103009)
    data = {"AccessToken": f"git-{token}", "Username": user, "Email": f"{user}@example.com"}
    return ok(data, **{"Set-Cookie": f"m_session_id={token}; Path=/; Max-Age=2592000"})


def me(store: Store, request: Request) -> Response:
    if request.user is None:
        return error(401, "invalid token")
    data = {"username": request.user, "email": f"{request.user}@example.com"}
    return Response.json({"success": True, "data": data})


def info(store: Store, request: Request, owner: str, name: str) -> Response:
    """`/openapi/v1/models/…`"""
    model = store.visible(request.user, f"{owner}/{name}")
    if model is None:
        return error(404, "model not found")
    data = {"id": model.id, "owner": owner, "name": name, "private": model.private}
    return Response.json({"success": True, "data": data})


def legacy_info(store: Store, request: Request, owner: str, name: str) -> Response:
    """`/api/v1/models/…`"""
    model = store.visible(request.user, f"{owner}/{name}")
    if model is None:
        return error(404, "model not found")
    return ok({"Path": owner, "Name": name, "Visibility": 1 if model.private else 5})


def revisions(store: Store, request: Request, owner: str, name: str) -> Response:
    model = store.visible(request.user, f"{owner}/{name}")
    if model is None:
        return error(404, "model not found")
    entries = [{"Revision": revision, "CreatedAt": 0} for revision in model.revisions]
    tags = [entry for entry in entries if entry["Revision"] in model.tags]
    branches = [entry for entry in entries if entry["Revision"] not in model.tags]
    return ok({"RevisionMap": {"Branches": branches, "Tags": tags}})


def list_files(store: Store, request: Request, owner: str, name: str) -> Response:
    model = store.visible(request.user, f"{owner}/{name}")
    files = model and model.revisions.get(request.query.get("Revision", MASTER))
    if files is None:
        return error(404, "model or revision not found")
    root = request.query.get("Root", "").strip("/")
    entries = {path: entry(path, blob) for path, blob in files.items()}
    for path in files:
        while path := posixpath.dirname(path):
            entries[path] = entry(path, None)
    if root:
        entries = {path: e for path, e in entries.items() if path.startswith(f"{root}/")}
    if request.query.get("Recursive") != "True":
        entries = {path: e for path, e in entries.items() if posixpath.dirname(path) == root}
    return ok({"Files": [entries[path] for path in sorted(entries)][:LIST_LIMIT]})


def entry(path: str, blob: Blob | None) -> dict:
    """A line of the file list: a file, or a folder when there is no blob."""
    line = {"Name": posixpath.basename(path), "Path": path, "Type": "blob" if blob else "tree"}
    return line | ({"Size": blob.size, "Sha256": blob.sha256} if blob else {"Size": 0})


def file(store: Store, request: Request, owner: str, name: str) -> Response:
    model = store.visible(request.user, f"{owner}/{name}")
    files = model and model.revisions.get(request.query.get("Revision", MASTER))
    blob = files and files.get(request.query.get("FilePath", ""))
    if not blob:
        return error(404, "model, revision or file not found")
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted:
        return Response(200, Slice(blob.path, 0, blob.size), headers)
    start, end = int(wanted[1]), min(int(wanted[2] or blob.size - 1), blob.size - 1)
    if start >= blob.size:
        return Response(416, headers={"Content-Range": f"bytes */{blob.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{blob.size}"
    return Response(206, Slice(blob.path, start, end - start + 1), headers)


def region(store: Store, request: Request) -> Response:
    """The SDK asks whether it runs in the hub's own cloud; on loopback it doesn't."""
    return ok({"InternalRegionQueryAddress": ""})


def create(store: Store, request: Request) -> Response:
    model_id = f"{request.json['Path']}/{request.json['Name']}"
    if not store.owns(request.user, model_id):
        return error(401 if request.user is None else 403, "no permission to create this model")
    if model_id in store.models:
        return error(400, "the model exists already", 10010101001)
    store.models[model_id] = Model(model_id, private=request.json.get("Visibility") == 1)
    return ok({"Path": request.json["Path"], "Name": request.json["Name"]})


def batch(store: Store, request: Request, owner: str, name: str) -> Response:
    """LFS: an address for each blob that the hub has not; it says nothing of those that it has."""
    if refusal := refuse_write(store, request, f"{owner}/{name}"):
        return refusal
    base = f"{request.scheme}://{request.headers['Host']}/lfs/{owner}/{name}"
    missing = [o for o in request.json["objects"] if o["oid"] not in store.blobs]
    return ok(
        {"objects": [o | {"actions": {"upload": {"href": f"{base}/{o['oid']}"}}} for o in missing]}
    )


def blob(store: Store, request: Request, owner: str, name: str, oid: str) -> Response:
    if refusal := refuse_write(store, request, f"{owner}/{name}"):
        return refusal
    assert isinstance(request.body, Path)
    kept = store.keep(request.body)
    if kept.sha256 != oid:
        del store.blobs[kept.sha256]
        return error(400, "the blob does not match its digest")
    return ok({})


def commit(store: Store, request: Request, owner: str, name: str, revision: str) -> Response:
    if refusal := refuse_write(store, request, f"{owner}/{name}"):
        return refusal
    model = store.models[f"{owner}/{name}"]
    if revision not in model.revisions or revision in model.tags:
        return error(404, "no such branch")
    changes: dict[str, Blob | None] = {}
    for action in request.json["actions"]:
        path = action["path"]
        if leads_out(path):
            return error(400, "a path leads out of the repo")
        if action["action"] == "delete":
            changes[path] = None
        elif action["type"] == "lfs":
            if action["sha256"] not in store.blobs:
                return error(400, "a blob is missing")
            changes[path] = store.blobs[action["sha256"]]
        else:
            changes[path] = store.keep(store.write(base64.b64decode(action["content"])))
    store.commit(model, revision, changes, request.json["commit_message"])
    return ok({"CommitId": f"{len(model.messages):040x}"})


def refuse_write(store: Store, request: Request, model_id: str) -> Response | None:
    if request.user is None:
        return error(401, "user not logged in")
    if store.visible(request.user, model_id) is None:
        return error(404, "model not found")
    return None if store.owns(request.user, model_id) else error(403, "no permission to write")


MODEL = r"([^/]+)/([^/]+)"
ROUTES: list[tuple[str, str, str, Route]] = [
    ("POST", "login", r"/api/v1/login", login),
    ("GET", "me", r"/openapi/v1/users/me", me),
    ("GET", "info", rf"/openapi/v1/models/{MODEL}", info),
    ("GET", "region", r"/api/v1/repos/internalAccelerationInfo", region),
    ("GET", "legacy_info", rf"/api/v1/models/{MODEL}", legacy_info),
    ("GET", "revisions", rf"/api/v1/models/{MODEL}/revisions", revisions),
    ("GET", "list", rf"/api/v1/models/{MODEL}/repo/files", list_files),
    ("GET|HEAD", "file", rf"/api/v1/models/{MODEL}/repo", file),
    ("POST", "create", r"/api/v1/models", create),
    ("POST", "batch", rf"/api/v1/repos/models/{MODEL}/info/lfs/objects/batch", batch),
    ("PUT", "blob", rf"/lfs/{MODEL}/([0-9a-f]{{64}})", blob),
    ("POST", "commit", rf"/api/v1/repos/models/{MODEL}/commit/(.+)", commit),
]


def find(request: Request) -> Route | None:
    """Return the route of a request with its address filled in, and name it in the log."""
    for methods, name, pattern, route in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and request.method in methods.split("|"):
            request.route = name
            request.file = request.query.get("FilePath", "")
            return lambda store, request: route(store, request, *match.groups())
    return None
