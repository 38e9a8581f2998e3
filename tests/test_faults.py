"""Long tables of faults, each on each route, and what takes long."""

import re
from collections.abc import Iterator

import pytest

from tests.hub import Fault, Hub, Response, faults
from tests.support.cases import BIG, FILES, MODEL, download, lists_big, snapshot, upload, uploaded
from tests.support.client import PARTS, Client, Result, tree

pytestmark = pytest.mark.gate

# The waits for a hub that says nothing.
SHORTER_WAITS = {
    "MODELSCOPE_API_TIMEOUT": "1",
    "MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS": "1",
    "MODELSCOPE_UPLOAD_BLOB_READ_TIMEOUT_SECONDS": "1",
}
STALL = faults.stall()
PAGE = faults.answers(b"<html><body>Please sign in</body></html>")
FORBIDDEN, MISSING, BUSY, BROKEN = map(faults.status, (403, 404, 429, 500))
REFUSED = faults.answers({"Code": 10990101004, "Success": False, "Message": "rejected"})
NO_DATA = faults.answers({"Code": 200, "Success": True, "Data": None})
CUT_JSON = faults.answers(b'{"Code": 200, "Data": {"Files": [{"Path": "con')

# How a run ends when it meets a fault once, and when it always does: "+" well, "-" with exit code 1
# and a cause, "?" one or the other; "." is not run, as it can't be met or takes long and ends as
# "file" does. The SDK asks once for a login. It takes a 403 there for a token that may only read,
# and goes on with it; so it does when the answer is no login.
DOWNLOAD_ROUTES = ("login", "list", "redirect", "file", "parts")
DOWNLOAD_FAULTS = [
    ("-- +- +. +- +.", "reset", faults.refuse),
    ("-- +- +. +- +.", "stall", STALL),
    ("++ .. +- .. ..", "403", FORBIDDEN),
    ("-- +- +- +- +-", "404", MISSING),
    ("-- +- +. +- +.", "429", BUSY),
    ("-- +- +. +- +.", "500", BROKEN),
    ("-- +- +- +- +-", "web page", PAGE),
    (".. +- +. +- +.", "redirect to itself", lambda _: Response(302, headers={"Location": "#"})),
    ("++ +- .. .. ..", "Success is false", REFUSED),
    ("-- +- .. .. ..", "no data", NO_DATA),
    ("-- +- .. .. ..", "cut JSON", CUT_JSON),
    (".. .. .. ++ ++", "reset midway", faults.truncate(200_000)),
    (".. .. .. ++ +?", "stall midway", faults.stall(200_000)),
    (".. .. .. +. +.", "a byte a second", faults.slow(1)),
    (".. .. .. +- +.", "too short", faults.short(1000)),
    (".. .. .. ++ ++", "longer than it says", faults.long(1000, announced=False)),
    (".. .. .. +- +-", "too long", faults.long(1000, announced=True)),
    (".. .. .. +- +-", "wrong bytes", faults.corrupt),
]
UPLOAD_ROUTES = ("login", "info", "batch", "blob", "commit", "list")
UPLOAD_FAULTS = [
    ("-- ++ +- +- +- +-", "reset", faults.refuse),
    ("-- ++ +- +- +- +-", "stall", STALL),
    ("++ ++ +- -- -- +-", "403", FORBIDDEN),
    ("-- ++ +- -- -- +-", "404", MISSING),
    ("-- ++ +- +- +- +-", "429", BUSY),
    ("-- ++ +- +- +- +-", "500", BROKEN),
    ("-- ++ +- -- +- +-", "web page", PAGE),
    ("++ ++ -- +- +- +-", "Success is false", REFUSED),
    (".. .. -- -- -- +-", "no data", NO_DATA),
]
LISTS = {
    "-, a huge size": lists_big(Size=10**18),
    "+, another size": lists_big(Size=7),
    "+, no size": lists_big(Size=None),
    "-, another digest": lists_big(Sha256="0" * 64),
    "+, no digest": lists_big(Sha256=""),
    "-, no names": faults.edit(lambda files: [file.pop("Path") for file in files]),
    "-, a file missing on the hub": faults.named("missing.json"),
    "-, a file where a folder is": faults.named("nested"),
    "-, a file below a file": faults.named(f"{BIG}/below"),
    "+, the same twice": faults.edit(lambda files: files.extend(list(files))),
    "-, two digests of one file": faults.edit(
        lambda files: files.extend([files[-1] | {"Sha256": "0" * 64}])
    ),
}


CELL = ("route", "fault", "times", "ending")


def cells(table: list[tuple[str, str, Fault]], routes: tuple[str, ...]) -> Iterator[object]:
    """Each cell as parameters: the route, the fault, "once" or "always", and the ending."""
    for row, name, fault in table:
        for route, endings in zip(routes, row.split(), strict=True):
            for times, ending in zip(("once", "always"), endings, strict=True):
                if ending != ".":
                    yield pytest.param(route, fault, times, ending, id=f"{route}: {name}, {times}")


def let_fail(hub: Hub, route: str, fault: Fault, times: str) -> None:
    put = hub.always if times == "always" else hub.queue
    route = "file" if route == "parts" else route
    put(route, fault, file=BIG if route in ("redirect", "file") else None)


def assert_ends(result: Result, ending: str, client: Client) -> None:
    """It ends as told, says the cause of a failure, and shows neither a traceback nor the token."""
    shown = result.out + result.err
    assert ending in {0: "+?", 1: "-?"}.get(result.code, ""), result
    assert result.code == 0 or re.search(r"(FAILED|ERROR): (.*\w+\(.+\)|仓库 )", shown), result
    assert "Traceback" not in shown, result
    assert client.env["MODELSCOPE_API_TOKEN"] not in shown, result


def assert_download_ends(result: Result, ending: str, client: Client) -> None:
    """As above, with all files when it ends well, and nothing outside the cache folder."""
    assert_ends(result, ending, client)
    assert result.code or tree(snapshot(client.work / "cache")) == FILES
    assert {path.name for path in client.work.iterdir()} <= {"cache"}
    assert {path.name for path in client.work.parent.iterdir()} == {"home", "hub", "site", "work"}


@pytest.mark.usefixtures("model", "token")
@pytest.mark.parametrize(CELL, [*cells(DOWNLOAD_FAULTS, DOWNLOAD_ROUTES)])
def test_fault_in_a_download_ends_truly(
    client: Client, hub: Hub, route: str, fault: Fault, times: str, ending: str
) -> None:
    let_fail(hub, route, fault, times)
    env = SHORTER_WAITS | (PARTS if route == "parts" else {})
    result = download(client, "--cache_dir", "cache", **env)
    assert_download_ends(result, ending, client)


@pytest.mark.usefixtures("model", "token")
@pytest.mark.parametrize("name", LISTS)
def test_odd_list_ends_truly(client: Client, hub: Hub, name: str) -> None:
    hub.always("list", LISTS[name])
    result = download(client, "--cache_dir", "cache")
    assert_download_ends(result, name[0], client)


@pytest.mark.usefixtures("token", "folder")
@pytest.mark.parametrize(CELL, [*cells(UPLOAD_FAULTS, UPLOAD_ROUTES)])
def test_fault_in_an_upload_ends_truly(
    client: Client, hub: Hub, route: str, fault: Fault, times: str, ending: str
) -> None:
    hub.store.add(MODEL)
    let_fail(hub, route, fault, times)
    result = upload(client, **SHORTER_WAITS)
    assert_ends(result, ending, client)
    assert result.code or uploaded(hub.store) == FILES
    assert tree(client.work / "folder") == FILES
