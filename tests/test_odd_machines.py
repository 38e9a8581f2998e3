"""Machines that are small, full, old or strange: limits, locales, file systems, settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import slow
from tests.support.client import PARTS, ROOT, Client, Result, lay, tree, wait_until
from tests.support.download import BIG, MODEL, snapshot

REPO = "alice/new"
FILES = {"big": BIG, "config.json": b"{}", "tokenizer_config.json": b"{}", "sub/x": b"1"}
UP = FILES | {"big": BIG[::-1]}  # other bytes: the hub has those of the model
SCRIPTS = ["download_model.py", "upload_model.py"]
PLAIN = {
    "download_model.py": "from modelscope import snapshot_download as d;"
    "import os; d(os.environ['MODEL_ID'], cache_dir='plain')",
    "upload_model.py": "from modelscope.hub.api import HubApi;"
    "import os; a = HubApi(); a.login(os.environ['MODELSCOPE_API_TOKEN']);"
    "a.upload_folder(repo_id='alice/plain', folder_path='folder')",
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, drops rights, becomes another")


@pytest.fixture(autouse=True)
def model(store: Store, client: Client) -> None:
    """A model to download, and a folder to upload."""
    store.add(MODEL, FILES)
    store.add(REPO)
    store.add("alice/plain")
    lay(client.work / "folder", UP)
    client.env |= {"MODEL_ID": MODEL, "REPO_ID": REPO, "MODEL_DIR": "folder"}
    client.env |= {"MODELSCOPE_API_TOKEN": store.add_user("alice")}


def ours(script: str) -> list[str]:
    return [sys.executable, str(ROOT / script)]


def arrived(client: Client, store: Store, script: str) -> bool:
    """Tell whether the model is where the script was to bring it."""
    if script == "upload_model.py":
        return tree(store.root / REPO) == UP
    return tree(snapshot(client.work)) == FILES


def assert_quiet(result: Result) -> None:
    assert "Traceback" not in result.out + result.err, result


# --- disks --------------------------------------------------------------------------------------


def on_disk(client: Client, kind: str, *options: object, before: str = "", **env: str) -> Result:
    """Download to a disk of its own, mounted for this process alone; `kept` is what it held."""
    shell = (
        f"mkdir disk && mount -t {kind} none disk && {before or 'true'} && "
        f'"$@"; code=$?; cp -a disk kept; exit $code'
    )
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", *ours("download_model.py")]
    return client.run(*command, "--cache_dir", "disk", *options, **env)


@needs_root
@pytest.mark.parametrize("kind", ["ramfs", "tmpfs -o size=0", "tmpfs"])
def test_disk_that_tells_no_size_is_no_full_one(client: Client, kind: str) -> None:
    result = on_disk(client, kind)
    assert result.code == 0, result
    assert tree(snapshot(client.work / "kept")) == FILES


def pages(files: dict[str, bytes]) -> int:
    return sum(-(-len(content) // 4096) * 4096 for content in files.values())


@needs_root
@pytest.mark.parametrize("parts", [False, True], ids=["in one stream", "in parts"])
def test_disk_that_the_model_just_fits_is_enough(client: Client, parts: bool) -> None:
    size = f"tmpfs -o size={pages(FILES)}"
    result = on_disk(client, size, **(PARTS if parts else {}))
    assert result.code == 0, result
    assert tree(snapshot(client.work / "kept")) == FILES


@needs_root
def test_what_has_come_already_needs_no_room_again(client: Client, store: Store) -> None:
    begun = snapshot(Path("disk")) / "big.incomplete"
    blob = store.models[MODEL].revisions["master"]["big"]
    before = f"mkdir -p {begun.parent} && head -c 2000000 {blob.path} >{begun}"
    result = on_disk(client, f"tmpfs -o size={pages(FILES)}", before=before)
    assert result.code == 0, result
    assert tree(snapshot(client.work / "kept")) == FILES


@needs_root
def test_disk_that_is_too_small_fails_before_the_first_byte(client: Client, hub: Hub) -> None:
    result = on_disk(client, f"tmpfs -o size={pages(FILES) - 5 * 4096}")
    assert result.code == 1
    assert "OSError(28, " in result.out
    assert hub.requests("file") == []


@needs_root
def test_disk_that_fills_up_meanwhile_fails_with_its_cause(client: Client, hub: Hub) -> None:
    hub.queue("file", slow(1_000_000), file="big")
    before = "(sleep 2.5; head -c 2000000 /dev/zero >disk/other) & true"
    result = on_disk(client, f"tmpfs -o size={pages(FILES)}", before=before)
    assert result.code == 1
    assert "big: OSError(28, 'No space left on device')" in result.out
    assert_quiet(result)


@needs_root
def test_disk_without_inodes_fails_with_its_cause(client: Client) -> None:
    result = on_disk(client, "tmpfs -o nr_inodes=6")
    assert result.code == 1
    assert "OSError(28, 'No space left on device')" in result.out
    assert_quiet(result)


@needs_root
def test_disk_that_is_read_only_fails_with_its_path(client: Client) -> None:
    result = on_disk(client, "tmpfs", before="mount -o remount,ro disk")
    assert result.code == 1
    assert "OSError(30, 'Read-only file system')" in result.out
    assert "/disk" in result.err
    assert_quiet(result)


def test_file_beyond_the_limit_of_a_file_fails_with_its_cause(client: Client) -> None:
    result = client.run("prlimit", "--fsize=1000000", *ours("download_model.py"))
    assert result.code == 1
    [line] = [line for line in result.lines if line.startswith("    big: ")]
    assert "OSError(27, 'File too large')" in line
    assert_quiet(result)


@pytest.mark.parametrize("length", [244, 245, 250, 255, 256, 300])
def test_long_name_arrives_or_fails_with_its_cause(
    client: Client, store: Store, length: int
) -> None:
    files = {"x" * length: b"1", "config.json": b"{}"}
    store.add(MODEL, files)
    result = client.run(*ours("download_model.py"))
    if length < 245:  # the SDK adds eleven letters to the name of an unfinished file
        assert result.code == 0
        assert tree(snapshot(client.work)) == files
    else:
        assert result.code == 1
        assert "OSError(36, 'File name too long')" in result.out
    assert_quiet(result)


def test_long_path_arrives(client: Client, store: Store) -> None:
    files = {"/".join(["d" * 200] * 15) + "/x": b"1"}
    store.add(MODEL, files)
    result = client.run(*ours("download_model.py"))
    assert result.code == 0, result
    assert tree(snapshot(client.work)) == files


def test_path_beyond_the_limit_fails_with_its_cause(client: Client, store: Store) -> None:
    store.add(MODEL, {"/".join(["d" * 200] * 25) + "/x": b"1"})
    result = client.run(*ours("download_model.py"))
    assert result.code == 1
    assert "File name too long" in result.out
    assert_quiet(result)


@needs_root
@pytest.mark.parametrize("kind", ["download", "upload"])
def test_home_that_is_read_only_is_no_reason_to_fail_without_a_token(
    client: Client, store: Store, kind: str
) -> None:
    shell = 'mount --bind "$HOME" "$HOME" && mount -o remount,ro,bind "$HOME" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh"]
    env = {"MODELSCOPE_API_TOKEN": None} if kind == "download" else {}
    result = client.run(*command, *ours(f"{kind}_model.py"), **env)
    plain = client.run(*command, sys.executable, "-c", PLAIN[f"{kind}_model.py"], **env)
    assert (result.code == 0) >= (plain.code == 0), result
    assert_quiet(result)


# --- rights and limits --------------------------------------------------------------------------

NO_OVERRIDE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
ANOTHER = ["setpriv", "--reuid=54321", "--clear-groups"]
ANOTHER += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]


@needs_root
def test_stray_folder_that_cannot_be_read_does_not_matter(client: Client) -> None:
    stray = snapshot(client.work) / "lost+found"
    stray.mkdir(parents=True)
    stray.chmod(0)
    result = client.run(*NO_OVERRIDE, *ours("download_model.py"))
    assert result.code == 0, result
    assert tree(snapshot(client.work)) == FILES


@needs_root
@pytest.mark.parametrize("what", ["a folder of the model", "the snapshot", "the cache folder"])
def test_folder_that_cannot_be_written_fails_with_its_path(client: Client, what: str) -> None:
    folder = snapshot(client.work)
    (folder / "sub").mkdir(parents=True)
    paths = {"a folder of the model": folder / "sub", "the snapshot": folder}
    path = paths.get(what, client.work)
    path.chmod(0o555)
    result = client.run(*NO_OVERRIDE, *ours("download_model.py"))
    assert result.code == 1
    assert "PermissionError(13, 'Permission denied')" in result.out
    assert_quiet(result)


@needs_root
@pytest.mark.parametrize("what", ["file", "sub"])
def test_what_cannot_be_read_of_the_uploaded_folder_fails_with_its_path(
    client: Client, what: str
) -> None:
    lay(client.work / "folder", {"file": b"1", "sub/file": b"1"})
    (client.work / "folder" / what).chmod(0)
    result = client.run(*NO_OVERRIDE, *ours("upload_model.py"))
    assert result.code == 1
    assert f"folder/{what}" in result.err
    assert_quiet(result)


@needs_root
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "limit",
    [
        "--nproc=1",
        "--nproc=4",
        "--nproc=8",
        "--nproc=12",
        "--nproc=16",
        "--nproc=40",
        "--nproc=80",
        "--nofile=24",
        "--nofile=64",
        "--as=200000000",
        "--as=300000000",
        "--as=600000000",
        "--stack=200000",
    ],
)
def test_limit_that_the_plain_call_lives_with_is_no_failure(
    client: Client, store: Store, script: str, limit: str
) -> None:
    limited = [*ANOTHER, "prlimit", limit]
    plain = client.run(*limited, sys.executable, "-c", PLAIN[script])
    result = client.run(*limited, *ours(script))
    if plain.code == 0:
        assert result.code == 0, result
    assert (result.code == 0) <= arrived(client, store, script)
    assert_quiet(result)


@needs_root
@pytest.mark.parametrize("limit", ["--nproc=12", "--nproc=20", "--nofile=64"])
def test_large_files_come_with_few_threads_and_descriptors(
    client: Client, store: Store, limit: str
) -> None:
    files = {f"shard-{i}": BIG[i:] for i in range(6)}
    store.add(MODEL, files)
    result = client.run(*ANOTHER, "prlimit", limit, *ours("download_model.py"), **PARTS)
    assert result.code == 0, result
    assert tree(snapshot(client.work)) == files


# --- the interpreter and its streams ------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONDEVMODE": "1"},
        {"PYTHONSAFEPATH": "1"},
        {"PYTHONUNBUFFERED": "1"},
        {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONFAULTHANDLER": "1"},
        {"TQDM_DISABLE": "0"},
        {"TQDM_DISABLE": "1"},
        {"TQDM_MININTERVAL": "0"},
        {"TQDM_POSITION": "-1"},
        {"TQDM_NCOLS": "40"},
        {"TQDM_UNIT_SCALE": "x"},
        {"NO_COLOR": "1", "FORCE_COLOR": "1", "COLUMNS": "0", "LINES": "x", "TERM": ""},
        {"MODELSCOPE_LOG_LEVEL": "10"},
        {"MODELSCOPE_LOG_LEVEL": "50"},
        {"MODELSCOPE_CACHE": ""},
        {"MODELSCOPE_CACHE": "relative"},
        {"MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "0"},
        {"MODELSCOPE_DOWNLOAD_PART_SIZE_MB": "x"},
        {"HOME": None},
        {"HOME": ""},
        {"HOME": "/nonexistent"},
        {"PATH": None},
        {"TZ": "Nowhere/Land"},
        {"CI_TEST": "True"},
    ],
    ids=lambda env: ",".join(f"{name}={value}" for name, value in env.items()),
)
def test_setting_that_the_plain_call_lives_with_is_no_failure(
    client: Client, store: Store, script: str, env: dict[str, str | None]
) -> None:
    if "HOME" in env:
        env = {"MODELSCOPE_HOME": str(client.home / "conf"), **env}
    plain = client.run(sys.executable, "-c", PLAIN[script], **env)
    result = client.run(*ours(script), **env)
    if plain.code == 0:
        assert result.code == 0, result
    assert (result.code == 0) <= arrived(client, store, script)
    assert_quiet(result)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("setting", ["MODELSCOPE_LOG_LEVEL=DEBUG", "TQDM_MININTERVAL=soon"])
def test_setting_that_breaks_the_sdk_fails_with_its_cause(
    client: Client, script: str, setting: str
) -> None:
    name, _, value = setting.partition("=")
    result = client.run(*ours(script), **{name: value})
    assert result.code == 1
    assert "Error(" in result.out + result.err
    assert "Install the SDK: pip install" in result.err
    assert_quiet(result)
    assert client.run(*ours(script), "-h", **{name: value}).code == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_usage_errors_need_no_docstrings(client: Client, script: str) -> None:
    result = client.run(*ours(script), "-h", PYTHONOPTIMIZE="2")
    assert (result.code, result.err) == (0, "")
    assert "--token" in result.out
    result = client.run(*ours(script), "--nonsense", PYTHONOPTIMIZE="2")
    assert result.code == 1
    assert_quiet(result)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("words", "codes"),
    [
        ("-h | true", {0, 1}),
        ("-h >/dev/full", {1}),
        ("-h >&-", {0, 1}),
        ("-h 2>/dev/full", {0}),
        ("--nonsense 2>/dev/full", {1}),
        ("--nonsense 2>&-", {1}),
        ("--nonsense >/dev/full", {1}),
        ("--nonsense 2>&1 | true", {1}),
        ("2>&1 | true", {0, 1}),
        (">/dev/full 2>&1", {1}),
    ],
)
def test_reader_that_is_gone_or_a_full_device_gives_0_or_1_in_silence(
    client: Client, script: str, words: str, codes: set[int]
) -> None:
    arguments, *rest = words.partition(" | ")
    command = f"{{ {' '.join(ours(script))} {arguments}; echo $? >code; }} {''.join(rest)}"
    result = client.run("sh", "-c", command)
    assert int((client.work / "code").read_text()) in codes
    assert_quiet(result)
    assert "Exception ignored" not in result.err


def test_two_gigabytes_that_are_not_there_are_not_counted(client: Client, store: Store) -> None:
    """A sparse file takes no room, its size says otherwise."""
    lay(snapshot(client.work), {"big.incomplete": b""})
    os.truncate(snapshot(client.work) / "big.incomplete", 2 << 30)
    result = client.run(*ours("download_model.py"))
    assert result.code == 0, result
    assert tree(snapshot(client.work)) == FILES


# --- locales ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Locales that are no UTF-8: most machines have none any more."""
    folder = tmp_path_factory.mktemp("locales")
    for name, charset in (("en_US", "ISO-8859-1"), ("zh_CN", "GBK")):
        command = ["localedef", "-i", name, "-f", charset, str(folder / f"{name}.{charset}")]
        subprocess.run(command, check=True, capture_output=True)
    return folder


LATIN, GBK = "en_US.ISO-8859-1", "zh_CN.GBK"


def in_locale(locales: Path, name: str) -> dict[str, str]:
    return {"LOCPATH": str(locales), "LC_ALL": name}


@pytest.mark.parametrize(
    ("locale", "name"),
    [
        (LATIN, "模型.json".encode()),
        (LATIN, "é.json".encode("latin-1")),
        (LATIN, "é.json".encode()),
        (GBK, "模型.json".encode("gbk")),
        (GBK, b"model.json"),
    ],
)
def test_upload_under_an_old_locale_is_a_success_twice(
    client: Client, store: Store, hub: Hub, locales: Path, locale: str, name: bytes
) -> None:
    Path(os.fsdecode(bytes(client.work / "folder") + b"/" + name)).write_bytes(b"odd")
    env = in_locale(locales, locale)
    first = client.run(*ours("upload_model.py"), **env)
    assert first.code == 0, first
    moved = hub.received()
    second = client.run(*ours("upload_model.py"), **env)
    assert second.code == 0, second
    assert hub.received() == moved
    assert len(store.models[REPO].messages) == 1
    down = client.run(*ours("download_model.py"), MODEL_ID=REPO, **env)
    assert down.code == 0, down
    names = os.listdir(bytes(snapshot(client.work, REPO)))
    assert name in names


def test_name_in_gbk_reaches_the_hub_as_it_is_read_here(
    client: Client, store: Store, locales: Path
) -> None:
    name = bytes(client.work / "folder") + b"/" + "模型.json".encode("gbk")
    Path(os.fsdecode(name)).write_bytes(b"odd")
    result = client.run(*ours("upload_model.py"), **in_locale(locales, GBK))
    assert result.code == 0, result
    assert "模型.json" in store.models[REPO].revisions["master"]


@pytest.mark.parametrize("locale", [LATIN, GBK])
@pytest.mark.parametrize("missing", [False, True])
def test_messages_survive_an_old_locale(
    client: Client, locales: Path, locale: str, missing: bool
) -> None:
    env = in_locale(locales, locale)
    words = ["sh", "-c", f"{' '.join(ours('upload_model.py'))} >out 2>err"]
    result = client.run(*words, MODEL_DIR="nowhere" if missing else "folder", **env)
    assert result.code == int(missing)
    assert b"Traceback" not in (client.work / "err").read_bytes()


@pytest.mark.parametrize("locale", [LATIN, GBK])
def test_chinese_name_comes_down_under_an_old_locale_or_fails_with_its_cause(
    client: Client, store: Store, locales: Path, locale: str
) -> None:
    store.add(MODEL, {"模型.json": b"1", "config.json": b"{}"})
    env = in_locale(locales, locale) | {"PYTHONIOENCODING": "utf-8"}
    plain = client.run(sys.executable, "-c", PLAIN["download_model.py"], **env)
    result = client.run(*ours("download_model.py"), **env)
    assert_quiet(result)
    assert (result.code == 0) >= (plain.code == 0), result
    if locale == GBK:
        assert result.code == 0, result
        assert "模型.json".encode("gbk") in os.listdir(bytes(snapshot(client.work)))


# --- scratch files ------------------------------------------------------------------------------


def traits(folder: Path) -> dict[str, tuple]:
    stats = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    return {str(p): (s.st_mode, s.st_size, s.st_mtime_ns, s.st_ino) for p, s in stats.items()}


@pytest.mark.parametrize("variable", ["TMPDIR", "MODELSCOPE_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("end", ["success", "second run", "SIGTERM", "SIGKILL"])
def test_scratch_or_cache_folder_inside_the_uploaded_one_leaves_it_as_it_was(
    client: Client, store: Store, hub: Hub, variable: str, end: str
) -> None:
    folder = client.work / "folder"
    (folder / "scratch").mkdir()
    env = {variable: str(folder / "scratch")}
    before = traits(folder)
    if end.startswith("SIG"):
        hub.rate = 1_000_000
        with client.start(*ours("upload_model.py"), **env) as process:
            wait_until(lambda: hub.received() > 500_000)
            process.kill() if end == "SIGKILL" else process.terminate()
    for _ in range({"success": 1, "second run": 2}.get(end, 0)):
        assert client.run(*ours("upload_model.py"), **env).code == 0
        assert tree(store.root / REPO) == UP
    assert traits(folder) == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_sigterm_leaves_nothing_in_the_scratch_folder(
    client: Client, hub: Hub, script: str
) -> None:
    scratch = client.work / "scratch"
    scratch.mkdir()
    hub.rate = 1_000_000
    with client.start(*ours(script), TMPDIR=str(scratch)) as process:
        wait_until(lambda: hub.received() + hub.sent() > 500_000)
        process.terminate()
    assert process.returncode == 143
    assert os.listdir(scratch) == []


@needs_root
@pytest.mark.parametrize("script", SCRIPTS)
def test_machine_without_a_scratch_folder_is_enough(
    client: Client, store: Store, script: str
) -> None:
    """As a container with a read-only root: nothing but the model's folder can be written."""
    shell = 'mount --bind .. .. && cd "$PWD" && mount -o remount,ro,bind / && ! touch /x && "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", *ours(script)]
    result = client.run(*command, TMPDIR="/proc")
    assert result.code == 0, result
    assert arrived(client, store, script)
