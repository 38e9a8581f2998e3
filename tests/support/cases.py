"""What can go wrong, as a list of cases, and the judgement on how a client came through.

`tests/test_faults.py` runs our scripts on it; `tests/fault_table.py` the SDK's own CLI beside them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub import Hub, Store
from tests.hub.faults import (
    answers,
    corrupt,
    edit,
    first,
    long,
    named,
    page,
    reads,
    redirect,
    refuse,
    short,
    slow,
    stall,
    status,
    truncate,
)
from tests.hub.server import Fault
from tests.support.client import PARTS, Client, Result, lay, tree

MODEL = "alice/model"
BIG = "model-00002-of-00002.safetensors"
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer_config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 1000,
    BIG: bytes(reversed(range(256))) * 10_000,
    "nested/vocab.txt": b"a\nb\n",
}
LIMIT = 180  # seconds after which a run counts as hung; none comes near it, on any machine

SUCCEEDED, FAILED = "succeeded", "failed with a cause"
NO_CAUSE, FALSE_SUCCESS, HANG = "**failed without a cause**", "**false success**", "**hang**"
OUTSIDE, SECRET, TRACEBACK = "**damage**", "**secret shown**", "**traceback**"

# What `tests.support.client` leaves as it is: the rate below which a connection counts as dead,
# and the SDK's waits in an upload.
FAST = {
    "MODELSCOPE_DOWNLOAD_LOW_SPEED_WINDOW_SECONDS": "2",
    "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "2",
    "MODELSCOPE_UPLOAD_BLOB_MAX_ATTEMPTS": "2",
    "MODELSCOPE_UPLOAD_BLOB_READ_TIMEOUT_SECONDS": "2",
    "MODELSCOPE_UPLOAD_COMMIT_MAX_ATTEMPTS": "2",
    "MODELSCOPE_UPLOAD_RECOVERY_MAX_DELAY_SECONDS": "1",
    "MODELSCOPE_UPLOAD_RECOVERY_SINGLE_FILE_DELAY_SECONDS": "1",
}


class Scene:
    """One run's world: a hub, a machine, the folder that is filled or sent, what it should hold."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, case: Case) -> None:
        self.case, self.stack = case, stack
        self.store = Store(folder / "hub")
        self.hub = stack.enter_context(Hub(self.store))
        self.foreign: Hub | None = None  # a host that the token is not for, where a case has one
        self.client = Client(folder, self.hub)
        self.token = self.store.add_user("alice")
        self.client.env |= {"MODELSCOPE_API_TOKEN": self.token, **FAST}
        self.cache, self.source = self.client.work / "cache", self.client.work / "source"
        self.snapshot = self.cache / "models" / MODEL.replace("/", "--") / "snapshots" / "master"
        self.heal = stack.enter_context(contextlib.ExitStack())
        self.expected = [FILES]
        self.store.add(MODEL, {} if case.upload else FILES)
        if case.upload:
            lay(self.source, FILES)

    def result(self) -> dict[str, bytes]:
        """What stands where it was to go."""
        if not self.case.upload:
            return {k: v for k, v in tree(self.snapshot).items() if not k.startswith("stale")}
        blobs = self.store.models[MODEL].revisions["master"]
        return {n: b.path.read_bytes() for n, b in blobs.items() if b.sha256 in self.store.blobs}

    def moved(self) -> int:
        return self.hub.received() if self.case.upload else self.hub.sent()

    def acceptable(self) -> list[dict[str, bytes]]:
        """What a success may leave: what was to go, or what the sent folder holds by now."""
        if not (self.case.upload and self.expected):
            return self.expected
        kept = {n: c for n, c in tree(self.source).items() if not n.startswith(".ms_upload")}
        return [*self.expected, kept]

    def files(self, *without: Path) -> dict[str, bytes]:
        """The files of this world, but for some folders, and their bytes."""
        files = {}
        for path in self.client.work.parent.rglob("*"):
            if path.is_symlink() or any(base in path.parents for base in without):
                continue
            with contextlib.suppress(FileNotFoundError):  # another run may rename one meanwhile
                if path.is_file() and path.stat().st_size < 10**7:
                    files[str(path)] = path.read_bytes()
        return files

    def elsewhere(self) -> dict[str, bytes]:
        """All that stands where nothing should change."""
        return self.files(self.cache, self.client.home, self.store.root)

    def find_token(self, result: Result) -> list[str]:
        """Where the token was shown: a line, a file, a request to a host it is not for."""
        lines = {"output": result.out, "error output": result.err}.items()
        found = [f"{n}: {line}" for n, text in lines for line in text.splitlines()]
        logins = self.client.home / ".modelscope" / "credentials"  # where it may stand
        files = self.files(logins, self.store.root)
        found += [f"file {n}: {files[n]!r}" for n in files if self.token.encode() in files[n]]
        requests = [request for request in self.hub.log if request.host == "storage"]
        for request in requests + (self.foreign.log if self.foreign else []):
            found.append(f"request: {request.method} {request.path} {request.headers.items()}")
        return [place for place in found if self.token in place]

    def run(self, who: str) -> Result:
        try:
            return self.client.run(*self.command(who), timeout=LIMIT, **self.case.env)
        except subprocess.TimeoutExpired:
            return Result(-1, "", "", LIMIT)

    def command(self, who: str) -> list[str]:
        there = str(self.source if self.case.upload else self.cache)
        if who == "ours" and self.case.upload:
            return ["upload_model.py", "--repo-id", MODEL, "--model-dir", there]
        if who == "ours":
            return ["download_model.py", "--model_name", MODEL, "--cache_dir", there]
        login = "modelscope login --token $MODELSCOPE_API_TOKEN && " if self.case.login else ""
        move = (
            f"upload {MODEL} {there}"
            if self.case.upload
            else f"download {MODEL} --cache_dir {there}"
        )
        return ["sh", "-c", f"{login}modelscope {move}"]


@dataclass
class Case:
    """A fault: how it is set up, and what an honest client makes of it."""

    name: str
    set_up: Callable[[Scene], object]
    wanted: tuple[str, ...] = (FAILED,)
    warning: str = ""  # what ours prints besides
    upload: bool = False
    login: bool = False  # the CLI logs in by a command of its own
    hostile: bool = False  # the hub is hostile on purpose: ours alone
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    verdict: str
    result: Result
    evidence: list[str] = field(default_factory=list)  # where the token was shown


@contextlib.contextmanager
def scene_of(case: Case) -> Iterator[Scene]:
    """A fresh world with the fault in place."""
    with tempfile.TemporaryDirectory(prefix="fault-") as folder, contextlib.ExitStack() as stack:
        scene = Scene(Path(folder), stack, case)
        case.set_up(scene)
        try:
            yield scene
        finally:
            scene.heal.close()


def judge(scene: Scene, who: str) -> Outcome:
    """Run one side and say what its exit code was worth."""
    before = scene.elsewhere() if scene.case.hostile else {}
    result = scene.run(who)
    said = result.out + result.err
    if evidence := scene.find_token(result):
        verdict = SECRET
    elif scene.case.hostile and scene.elsewhere() != before:
        verdict = OUTSIDE
    elif result.seconds >= LIMIT:
        verdict = HANG
    elif "Traceback" in said:
        verdict = TRACEBACK
    elif result.code:
        verdict = FAILED if "error" in said.lower() else NO_CAUSE
    else:
        verdict = SUCCEEDED if scene.result() in scene.acceptable() else FALSE_SUCCESS
    return Outcome(verdict, result, evidence)


# --- what can be set up -------------------------------------------------------------------------


def on(route: str, *faults: Fault, file: str | None = None) -> Callable[[Scene], object]:
    """The next requests of a route meet these faults."""
    return lambda scene: scene.hub.queue(route, *faults, file=file)


def always(route: str, fault: Fault, file: str | None = None) -> Callable[[Scene], object]:
    return lambda scene: scene.hub.always(route, fault, file)


def no_hub(scene: Scene) -> None:
    """Nobody listens at the address."""
    right = scene.client.env["MODELSCOPE_ENDPOINT"]
    scene.client.env["MODELSCOPE_ENDPOINT"] = "http://127.0.0.1:9"
    scene.heal.callback(scene.client.env.update, MODELSCOPE_ENDPOINT=right)


def lists_big(**fields: object) -> Fault:
    """The list says something else of the big file; a field that is `...` is left out."""

    def change(files: list[dict]) -> None:
        for file in (file for file in files if file["Path"] == BIG):
            file.update(fields)
            for name in [name for name, value in fields.items() if value is ...]:
                del file[name]

    return edit(change)


def lists_again(**fields: object) -> Fault:
    """The list has the big file a second time, with other fields."""
    return edit(lambda files: files.extend([f | fields for f in files if f["Path"] == BIG]))


def another_host(scene: Scene) -> str:
    """The address of a second hub, under a name that makes it another host to a client."""
    scene.foreign = scene.foreign or scene.stack.enter_context(Hub(scene.store))
    return scene.foreign.url.replace("127.0.0.1", "localhost")


def big_file_at(url: str) -> str:
    return f"{url}/api/v1/models/{MODEL}/repo?Revision=master&FilePath={BIG}"


def elsewhere(scene: Scene) -> None:
    """The hub's storage is another host, which has the file; it is not to have the token."""
    scene.hub.queue("file", redirect(big_file_at(another_host(scene))), file=BIG)


def fishing(route: str) -> Callable[[Scene], object]:
    """A route answers with another host's address, always."""
    return lambda scene: scene.hub.always(route, redirect(f"{another_host(scene)}/api/v1/login"))


def circle(scene: Scene) -> None:
    scene.hub.always("file", redirect(big_file_at(scene.hub.url)), BIG)


def in_the_way(place: str, *, folder: bool) -> Callable[[Scene], None]:
    """A file, or a folder that isn't empty, stands where something else is to go."""

    def set_up(scene: Scene) -> None:
        path = scene.cache / place
        lay(path, {"mine": b"mine"}) if folder else lay(path.parent, {path.name: b"mine"})
        scene.heal.callback(subprocess.run, ["rm", "-r", str(path)], check=True)

    return set_up


def disk(size: str, *, filler: int = 0, read_only: bool = False) -> Callable[[Scene], None]:
    """The cache folder is a real file system of its own; `filler` bytes are taken meanwhile."""

    def set_up(scene: Scene) -> None:
        scene.cache.mkdir()
        where = str(scene.cache)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], check=True)
        scene.stack.callback(subprocess.run, ["umount", "-l", where], check=True)
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", where], check=True)
        if filler:
            taken = scene.cache / "stale"
            scene.hub.queue("file", first(lambda: taken.write_bytes(bytes(filler))), file=BIG)
            scene.heal.callback(lambda: taken.unlink())
        larger = ["mount", "-o", "remount,rw,size=50m", where]
        scene.heal.callback(subprocess.run, larger, check=True)

    return set_up


def moving(scene: Scene) -> None:
    """The branch gets another commit after the list, before the big file is asked for."""
    newer = FILES | {BIG: b"newer" * 100_000}
    scene.expected.append(newer)
    scene.hub.queue("redirect", first(lambda: scene.store.add(MODEL, newer)), file=BIG)


def stale(scene: Scene) -> None:
    """The folder holds another revision's files, all from the future."""
    lay(scene.snapshot, {name: content[::-1] for name, content in FILES.items()} | {"stale": b"1"})
    for path in scene.snapshot.rglob("*"):
        os.utime(path, (4e9, 4e9))


def beside(count: int) -> Callable[[Scene], object]:
    """Other runs work on the same folder at the same time."""

    def set_up(scene: Scene) -> None:
        scene.hub.rate = 1_000_000
        command = scene.command("ours")
        runs = [scene.client.start(*command) for _ in range(count - 1)]
        for run in runs:
            scene.stack.callback(run.wait)
            scene.stack.callback(run.communicate)

    return set_up


# --- the list: downloads ------------------------------------------------------------------------

OUT = ["../out", "/tmp/fault-out", "nested/../../../../out", "..", "C:\\out", "..\\out"]
NO_FILES = {"Code": 200, "Success": True, "Data": {"Files": []}}
NULL = {"Code": 200, "Success": True, "Data": None}
SUCCESS = {"wanted": (SUCCEEDED,)}
EITHER = {"wanted": (SUCCEEDED, FAILED)}


def file_cases() -> list[Case]:
    """One file goes wrong, once or always, in one stream or in parts."""
    once = {
        "reset before the answer": refuse,
        "reset in the middle": truncate(200_000),
        "body cut short": short(1000),
        "body longer than it says": long(1000, announced=False),
        "body longer than listed": long(1000, announced=True),
        "wrong bytes, right length": corrupt,
        "a sign-in page": page(),
        "429, Retry-After": status(429, Retry_After="1"),
        "500": status(500),
        "502": status(502),
        "stall before the headers": stall(),
        "stall in the body": stall(200_000),
        "a byte a second": slow(1),
    }
    for_good = {"403": status(403), "404": status(404), **once}
    cases = [Case("file: 500, twice", on("file", *[status(500)] * 2, file=BIG), **SUCCESS)]
    for way, env in {"file": {}, "file in parts": PARTS}.items():
        # An answer that is longer than it says has the right bytes, and then some. Each try of a
        # part that stalls brings some of it, so enough of them bring it all.
        wanted = {"body longer than it says": SUCCESS}
        wanted |= {"stall in the body": EITHER} if env else {}
        cases += [
            Case(f"{way}: {name}, once", on("file", fault, file=BIG), **SUCCESS, env=env)
            for name, fault in once.items()
        ]
        cases += [
            Case(
                f"{way}: {name}, always",
                always("file", fault, BIG),
                **wanted.get(name, {}),
                env=env,
            )
            for name, fault in for_good.items()
        ]
    return cases


def list_cases() -> list[Case]:
    """The file list, or the login, goes wrong."""
    lists = {
        "empty": answers(NO_FILES),
        "null": answers(NULL),
        "HTML": page(),
        "truncated JSON": reads(b'{"Code": 200, "Data": {"Files": [{"Path": "con'),
        "a huge size": lists_big(Size=10**18),
        "a wrong size": lists_big(Size=7),
        "a wrong digest": lists_big(Sha256="0" * 64),
        "a name twice, two digests": lists_again(Sha256="0" * 64),
        "a file where a folder is needed": edit(
            lambda files: files.extend([{**files[0], "Path": f"{BIG}/below"}])
        ),
        "a file missing on the hub": edit(
            lambda files: files.extend([{**files[0], "Path": "gone.json"}])
        ),
    }
    cases = [Case(f"list: {name}", always("list", fault)) for name, fault in lists.items()]
    fine = {"no size": lists_big(Size=...), "no digest": lists_big(Sha256=...)}
    fine["a name twice, the same"] = lists_again()
    cases += [Case(f"list: {name}", always("list", f), **SUCCESS) for name, f in fine.items()]
    for route, codes in {"list": (403, 404, 500), "login": (404, 500)}.items():
        login = {"login": route == "login"}
        cases += [Case(f"{route}: {c}, always", always(route, status(c)), **login) for c in codes]
    reads_only = always("login", status(403))
    cases.append(
        Case("login: 403 for a token that may only read", reads_only, **SUCCESS, login=True)
    )
    passing = {
        "429, Retry-After": status(429, Retry_After="1"),
        "502": status(502),
        "reset": refuse,
    }
    cases += [Case(f"list: {n}, once", on("list", f), **SUCCESS) for n, f in passing.items()]
    # The SDK tries a login once.
    cases += [Case(f"login: {n}, once", on("login", f), login=True) for n, f in passing.items()]
    cases.append(Case("list: stall, once", on("list", stall()), **SUCCESS))
    cases.append(Case("list: stall, always", always("list", stall())))
    cases.append(Case("login: stall, always", always("login", stall()), login=True))
    return [*cases, Case("hub: connection refused", no_hub)]


def hostile_cases() -> list[Case]:
    cases = [Case(f"list: the name {n!r}", on("list", named(n)), hostile=True) for n in OUT]
    cases += [
        Case(f"{route}: redirect to another host, always", fishing(route), hostile=True)
        for route in ("login", "list", "file")
    ]
    return [
        *cases,
        Case("file: redirect to the storage's host", elsewhere, **SUCCESS, hostile=True),
    ]


def disk_cases() -> list[Case]:
    snapshots = f"models/{MODEL.replace('/', '--')}/snapshots"
    return [
        Case("disk: too small from the start", disk("500k")),
        Case("disk: full half way", disk("4m", filler=2_000_000)),
        Case("disk: read-only", disk("10m", read_only=True)),
        Case("disk: a file in the way of the folder", in_the_way(snapshots, folder=False)),
        Case(
            "disk: a folder in the way of a file",
            in_the_way(f"{snapshots}/master/{BIG}", folder=True),
        ),
        Case("folder: another revision's files, dated 2096", stale, **SUCCESS),
        Case("hub: the revision moves meanwhile", moving),
        Case("file: redirects in a circle", circle),
        Case("two runs at once", beside(2), **SUCCESS),
        Case("four runs at once", beside(4), **SUCCESS),
    ]


def rule(**rules: object) -> Callable[[Scene], None]:
    """The hub follows another record of the real one, until the next run."""

    def set_up(scene: Scene) -> None:
        usual = dict(vars(scene.hub.rules))
        vars(scene.hub.rules).update(rules)
        scene.heal.callback(vars(scene.hub.rules).update, usual)

    return set_up


def expire(scene: Scene) -> None:
    """The signed address of the big file is too old when it is asked."""
    scene.hub.queue("file", first(scene.hub.expire), file=BIG)


def recorded_cases() -> list[Case]:
    """What others have recorded of the real hub."""
    unreadable = {"Code": 10990101004, "Success": False, "Message": "获取模型目录树失败"}
    return [
        Case("list: unreadable as 404, once", on("list", status(404, "no tree")), **SUCCESS),
        Case("list: unreadable as 200, once", on("list", answers(unreadable)), **SUCCESS),
        Case("list: unreadable as 200, always", always("list", answers(unreadable))),
        Case("list: no digest of small files", rule(no_digest="small"), **SUCCESS),
        Case("file: its signed address has expired", expire, **SUCCESS),
        Case("file in parts: its signed address has expired", expire, **SUCCESS, env=PARTS),
        Case("file: signed addresses are good for nothing", rule(lifetime=0)),
        Case("file in parts: ranges are answered 200", rule(partial=False), **SUCCESS, env=PARTS),
    ]


def recorded_uploads() -> list[Case]:
    """The same, of writing."""
    patient = {"MODELSCOPE_REPO_TREE_LIST_TIMEOUT_SECONDS": "60"}
    busy = status(429, "commit lock busy")
    return [
        Case("list: three requests behind the commit", rule(lag=3), **SUCCESS, env=patient),
        Case("list: four seconds behind the commit", rule(lag_seconds=4), **SUCCESS, env=patient),
        Case("commit: lock busy, once", on("commit", busy), **SUCCESS),
        Case("commit: limit reached", rule(commits=0)),
        Case("commit: a path is refused", rule(refused=".*vocab.*")),
    ]


# --- the list: uploads --------------------------------------------------------------------------


def lose_blobs(scene: Scene) -> None:
    """The storage takes a blob and loses it; the commit that names it is accepted all the same."""

    def commit_and_lose(answer: Callable) -> object:
        response = answer()
        lost = scene.store.models[MODEL].revisions["master"].get(BIG)
        if lost:
            scene.store.blobs.pop(lost.sha256, None)
        return response

    scene.hub.always("commit", commit_and_lose)


def changes(action: Callable[[Path], object], route: str = "batch") -> Callable[[Scene], None]:
    """The big file changes while the folder goes up."""

    def set_up(scene: Scene) -> None:
        path = scene.source / BIG
        scene.hub.queue(route, first(lambda: action(path)))

        def restore() -> None:
            path.write_bytes(FILES[BIG])

        scene.heal.callback(restore)

    return set_up


def holds(make: Callable[[Path], object], *, whole: bool = False) -> Callable[[Scene], None]:
    """The folder holds something that is no file; nothing but a failure is right unless `whole`."""

    def set_up(scene: Scene) -> None:
        path = scene.source / "odd"
        make(path)
        scene.heal.callback(path.unlink)
        if not whole:
            scene.expected = []
            scene.heal.callback(lambda: scene.expected.append(FILES))

    return set_up


def make_socket(path: Path) -> None:
    code = f"import os, socket; os.chdir({str(path.parent)!r}); socket.socket(1).bind('odd')"
    subprocess.run([sys.executable, "-c", code], check=True)


def many(scene: Scene) -> None:
    files = {f"part-{number % 25}/{number}.txt": str(number).encode() for number in range(5000)}
    lay(scene.source, files)
    scene.expected = [FILES | files]


def odd_names(scene: Scene) -> None:
    names = [f"a{chr(code)}b" for code in range(1, 128) if chr(code) not in "/\\\0"]
    names += ["模型.bin", "\U0001f600.txt", "-x", "~", "..a", " lead", "trail ", "x" * 250]
    files = dict.fromkeys(names, b"odd")
    lay(scene.source, files)
    scene.expected = [FILES | files]


# Routes that ours asks before and after an upload: it goes on without an answer.
PROBES = {"revisions": SUCCESS, "list": SUCCESS | {"warning": "上传结果未核对"}}
STAYS = SUCCESS | {"warning": "不会上传"}


def upload_cases() -> list[Case]:
    """The same on every step of an upload, and the folder itself."""
    refused = answers({"Success": False, "Message": "rejected"})
    cases = []
    for route in ("revisions", "batch", "blob", "commit", "list"):
        passing = {
            "reset": refuse,
            "429, Retry-After": status(429, Retry_After="1"),
            "502": status(502),
        }
        for name, fault in passing.items():
            cases.append(Case(f"{route}: {name}, once", on(route, fault), **SUCCESS))
        for name, fault in {"403": status(403), "500": status(500), "HTML": page()}.items():
            outcome = PROBES.get(route, {})
            cases.append(Case(f"{route}: {name}, always", always(route, fault), **outcome))
        cases.append(Case(f"{route}: stall, once", on(route, stall()), **SUCCESS))
    cases += [
        Case("login: 404, always", always("login", status(404)), login=True),
        Case("login: 500, always", always("login", status(500)), login=True),
        Case("commit: Success false, once", on("commit", refused), **SUCCESS),
        Case("commit: Success false, always", always("commit", refused)),
        Case("commit: answered, not done", always("commit", answers(NO_FILES))),
        Case("blob: answered, not stored", always("blob", answers(NO_FILES))),
        # What the hub lists can be checked; that its storage lost a blob shows at a download only.
        Case("blob: lost after the commit", lose_blobs, (FALSE_SUCCESS,)),
        Case(
            "folder: a file changes meanwhile",
            changes(lambda p: p.write_bytes(FILES[BIG][::-1])),
            **EITHER,
        ),
        Case(
            "folder: a file grows meanwhile",
            changes(lambda p: p.write_bytes(FILES[BIG] * 2)),
            **EITHER,
        ),
        Case("folder: a file vanishes meanwhile", changes(lambda p: p.unlink()), **EITHER),
        Case(
            "folder: a file changes after its blob",
            changes(lambda p: p.write_bytes(b"x"), "commit"),
            **EITHER,
        ),
        Case("folder: a file that cannot be read", holds(lambda p: p.symlink_to("/proc/self/mem"))),
        Case("folder: a link loop", holds(lambda p: p.symlink_to("odd"))),
        Case("folder: a link to a missing file", holds(lambda p: p.symlink_to("gone"))),
        Case("folder: a link to a folder", holds(lambda p: p.symlink_to("nested"))),
        Case("folder: a named pipe", holds(os.mkfifo, whole=True), **STAYS),
        Case("folder: a socket", holds(make_socket, whole=True), **STAYS),
        Case("folder: 5,000 small files in 25 folders", many, **SUCCESS),
        Case("folder: every odd character in names", odd_names, **SUCCESS),
        Case("hub: connection refused", no_hub),
        Case("commit: redirect to another host, always", fishing("commit"), hostile=True),
    ]
    cases += recorded_uploads()
    for case in cases:
        case.upload = True
    return cases


DOWNLOADS = [*file_cases(), *list_cases(), *recorded_cases(), *hostile_cases(), *disk_cases()]
UPLOADS = upload_cases()
