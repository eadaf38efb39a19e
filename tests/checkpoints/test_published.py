"""The published models: the table, the download against a local server, the cache, hostile archives."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import rocketqa_paddle
from rocketqa_paddle.checkpoints import published as hub

NAME = "v1_marco_de"
CONFIG = b'{"model_type": "dual_encoder"}'
WEIGHTS = random.Random(0).randbytes(700_000)  # more than two blocks, and no smaller when packed
FILES = {"config.json": CONFIG, "params/weights": WEIGHTS}
TABLE = {  # as rocketqa.py of the toolkit states the digests, their first 8 digits
    "v1_marco_de": "d8210e40",
    "v1_marco_ce": "caec5aed",
    "v1_nq_de": "cfeb70f8",
    "v1_nq_ce": "15aac78d",
    "pair_marco_de": "b4080ffa",
    "pair_nq_de": "d770bc37",
    "v2_marco_de": "4ce64ff3",
    "v2_marco_ce": "915ea7ff",
    "v2_nq_de": "8f177aa7",
    "zh_dureader_de": "39811675",
    "zh_dureader_ce": "11caeb17",
    "zh_dureader_de_v2": "889e62b0",
    "zh_dureader_ce_v2": "552675c9",
}


# Archives ---------------------------------------------------------------------------------------

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content)
    return info, content


def pack(*members: Member, mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def model(folder: str = f"{NAME}/", folders: bool = True) -> list[Member]:
    """The members of a good archive."""
    names = [f"{folder}".rstrip("/"), f"{folder}params"] if folders else []
    return [
        *(member(name, kind=tarfile.DIRTYPE) for name in names),
        *(member(folder + name, content) for name, content in FILES.items()),
    ]


def damage(archive: bytes, at: int) -> bytes:
    return archive[:at] + b"\xff" * 60 + archive[at + 60 :]


GOOD = pack(*model())
DAMAGED = damage(GOOD, 400_000)
NUMBERS = pack(*model(), member(f"{NAME}/vocab.txt", b"\n".join(b"%d" % i for i in range(500_000))))


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def contents(folder: Path) -> dict[str, bytes | None]:
    """What is below a folder: bytes of files, None for everything else. No locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
        if path.suffix != ".lock"
    }


# Server -----------------------------------------------------------------------------------------


@dataclass
class Answer:
    """How one request is answered: well, unless told otherwise.

    After `pause` bytes the server calls `wait`, then it hangs up if `cut`, or else sends the rest.
    """

    status: int = 200
    body: bytes | None = None
    ranges: bool = True
    pause: int | None = None
    wait: Callable[[], object] = lambda: None
    cut: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    path: str
    range: str | None
    encoding: str | None
    sent: int = 0


class Server(ThreadingHTTPServer):
    """Serves `files`; `answers` are given one after another, then `otherwise`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: list[Answer] = []
        self.otherwise = Answer()
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.asking = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    @property
    def ranges(self) -> list[str | None]:
        return [request.range for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        request = Request(self.path, self.headers["Range"], self.headers["Accept-Encoding"])
        with self.server.asking:
            self.server.requests.append(request)
            answer = self.server.answers.pop(0) if self.server.answers else self.server.otherwise
        status, headers = answer.status, dict(answer.headers)
        body = self.server.files[self.path] if answer.body is None else answer.body
        if status != 200:
            body = b""
        elif request.range and answer.ranges:
            start = int(request.range.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            first = body[: answer.pause]
            request.sent = self.wfile.write(first)
            answer.wait()
            if not answer.cut:
                request.sent += self.wfile.write(body[len(first) :])
        except ConnectionError:
            pass  # a client that was killed, or does not wait any longer

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The cache folder, which is not there yet. There is room above it for what would leave it."""
    home = tmp_path / "above" / "home"
    monkeypatch.setenv("ROCKETQA_HOME", str(home))
    return home


@pytest.fixture
def publish(server, home, monkeypatch):
    """Puts an archive on the server and makes it the model of the name."""

    def publish(archive: bytes) -> hub.Published:
        path = f"/models/{NAME}.tar.gz"
        server.files[path] = archive
        published = dataclasses.replace(hub.MODELS[NAME], md5=md5(archive), url=server.url(path))
        monkeypatch.setitem(hub.MODELS, NAME, published)
        return published

    monkeypatch.setattr(hub, "WAIT_SECONDS", 0.0)
    publish(GOOD)
    return publish


@pytest.fixture
def by_hand(publish, home):
    """Puts an archive into the cache, which has the published digest."""

    def by_hand(archive: bytes) -> Path:
        publish(archive)
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{NAME}.tar.gz").write_bytes(archive)
        return home / f"{NAME}.tar.gz"

    return by_hand


def partial(home: Path, content: bytes | None = None) -> Path:
    """The file of a broken download."""
    path = home / f"{NAME}.tar.gz.part"
    if content is not None:
        home.mkdir(parents=True)
        path.write_bytes(content)
    return path


def fetched() -> dict[str, bytes]:
    """The files of the model once it is fetched."""
    folder = hub.fetch(NAME)
    assert folder == hub.home() / NAME
    assert hub.is_fetched(NAME)
    return {name: content for name, content in contents(folder).items() if content is not None}


# Table ------------------------------------------------------------------------------------------


def test_the_released_models_are_listed_in_order():
    assert list(hub.MODELS) == [published.name for published in hub.MODELS.values()] == list(TABLE)
    assert hub.available_models() == rocketqa_paddle.available_models() == list(TABLE)


def test_the_digests_are_those_of_the_toolkit():
    digests = [published.md5 for published in hub.MODELS.values()]
    assert [digest[:8] for digest in digests] == list(TABLE.values())
    assert len(set(digests)) == 13
    assert all(len(digest) == 32 and set(digest) <= set("0123456789abcdef") for digest in digests)


def test_what_is_said_of_a_model_fits_its_name_and_its_training_script():
    data = {"marco": "MS MARCO", "nq": "Natural Questions", "dureader": "DuReader"}
    for name, published in hub.MODELS.items():
        chinese, dual = name.startswith("zh_"), name.removesuffix("_v2").endswith("_de")
        assert published.url == f"https://rocketqa.bj.bcebos.com/RocketQAModels/{name}.tar.gz"
        assert published.kind == ("dual_encoder" if dual else "cross_encoder")
        assert published.language == ("zh" if chinese else "en")
        assert published.trained_on == data[name.split("_")[1]]
        assert published.system == {"pair": "PAIR", "v2": "RocketQAv2"}.get(name.split("_")[0], "RocketQA")
        if dual:
            assert published.lengths == {"query": 32, "passage": 384 if chinese else 128}
        else:
            assert published.lengths == {"pair": 384 if chinese else 160}


def test_an_unknown_name_is_answered_with_the_names(home):
    with pytest.raises(ValueError, match="no published model 'v3_marco_de', expected one of") as refusal:
        hub.fetch("v3_marco_de")
    assert str(refusal.value).endswith(", ".join(TABLE))
    assert not home.exists()


# Cache ------------------------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_says_or_the_toolkit_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ROCKETQA_HOME", raising=False)
    assert hub.home() == tmp_path / ".rocketqa"
    for given, expected in {"": ".rocketqa", "~/models": "models", str(tmp_path / "other"): "other"}.items():
        monkeypatch.setenv("ROCKETQA_HOME", given)
        assert hub.home() == tmp_path / expected


def test_a_model_is_fetched_once(server, publish, home):
    assert not hub.is_fetched(NAME)
    assert fetched() == FILES
    assert fetched() == FILES
    assert [(request.path, request.range) for request in server.requests] == [
        (f"/models/{NAME}.tar.gz", None)
    ]
    assert {path.name for path in home.iterdir()} == {NAME}


def test_a_folder_that_the_toolkit_unpacked_is_used_as_it_is(server, publish, home):
    (home / NAME).mkdir(parents=True)
    (home / NAME / "config.json").write_bytes(b"{}")
    (home / f"{NAME}.tar.gz").write_bytes(b"the toolkit keeps it")
    before = contents(home)
    assert fetched() == {"config.json": b"{}"}
    assert contents(home) == before
    assert not server.requests


def test_a_model_that_is_there_needs_no_lock(publish, home, monkeypatch):
    hub.fetch(NAME)
    monkeypatch.delattr(hub, "locked")  # as in a cache that one can only read
    assert fetched() == FILES


def test_an_archive_put_by_hand_is_used_without_a_request(server, by_hand):
    by_hand(GOOD)
    assert fetched() == FILES
    assert not server.requests


def test_a_damaged_archive_put_by_hand_is_refused_and_kept(server, publish, by_hand, home):
    archive = by_hand(DAMAGED)
    digest = publish(GOOD).md5
    with pytest.raises(ValueError) as refusal:
        hub.fetch(NAME)
    assert str(archive) in str(refusal.value)
    assert digest in str(refusal.value)
    assert contents(home) == {archive.name: DAMAGED}
    assert not server.requests


def test_an_empty_folder_of_the_name_is_filled(publish, home):
    (home / NAME).mkdir(parents=True)
    assert fetched() == FILES


def test_a_folder_that_holds_other_things_is_left_alone(publish, home):
    (home / NAME).mkdir(parents=True)
    (home / NAME / "notes").write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{home / NAME} holds other files"):
        hub.fetch(NAME)
    assert contents(home / NAME) == {"notes": b"mine"}


# Download ---------------------------------------------------------------------------------------


def test_progress_is_shown(publish, capsys):
    hub.fetch(NAME)
    shown = capsys.readouterr().err
    assert f"{NAME}: 100%" in shown
    assert f"{len(GOOD) / 1024:.0f}k/{len(GOOD) / 1024:.0f}k" in shown


@pytest.mark.parametrize("have", [1, 350_000, len(GOOD) - 1])
def test_a_download_goes_on_where_it_stopped(server, publish, home, capsys, have):
    partial(home, GOOD[:have])
    assert fetched() == FILES
    assert [(request.range, request.sent) for request in server.requests] == [
        (f"bytes={have}-", len(GOOD) - have)
    ]
    assert f"{NAME}: {100 * have / len(GOOD):3.0f}%" in capsys.readouterr().err.split("\r")[1]
    assert not partial(home).exists()


@pytest.mark.parametrize("cut", [1, 262_144, len(GOOD) - 1])
def test_after_a_cut_only_the_missing_bytes_are_asked_for(server, publish, cut):
    server.answers = [Answer(pause=cut, cut=True)]
    assert fetched() == FILES
    assert [(request.range, request.sent) for request in server.requests] == [
        (None, cut),
        (f"bytes={cut}-", len(GOOD) - cut),
    ]


def test_a_server_without_ranges_sends_all_of_it_again(server, publish, home):
    partial(home, GOOD[:300_000])
    server.answers = [Answer(ranges=False, pause=500_000, cut=True)]
    server.otherwise = Answer(ranges=False)
    assert fetched() == FILES
    assert server.ranges[0] == "bytes=300000-"
    assert [request.sent for request in server.requests] == [500_000, len(GOOD)]


def test_a_download_that_always_breaks_off_is_given_up_and_goes_on_next_time(server, publish, home):
    parts = (len(GOOD) - 1) // hub.ATTEMPTS
    server.otherwise = Answer(pause=parts, cut=True)
    with pytest.raises(OSError, match="could not be fetched"):
        hub.fetch(NAME)
    assert len(server.requests) == hub.ATTEMPTS
    assert partial(home).name in contents(home)
    have = partial(home).stat().st_size
    assert have == hub.ATTEMPTS * parts
    server.otherwise = Answer()
    assert fetched() == FILES
    assert server.ranges[hub.ATTEMPTS :] == [f"bytes={have}-"]


def test_a_server_that_falls_silent_is_asked_again(server, publish, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.5)
    server.answers = [Answer(pause=300_000, wait=lambda: server.closing.wait(10))]
    assert fetched() == FILES
    assert len(server.requests) > 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(server, publish, status):
    server.answers = [Answer(status), Answer(status)]
    assert fetched() == FILES
    assert server.ranges == [None] * 3


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(server, publish, home, status):
    server.answers = [Answer(status)]
    with pytest.raises(OSError) as failure:
        hub.fetch(NAME)
    assert str(status) in str(failure.value)
    assert f"put it at {home / NAME}.tar.gz," in str(failure.value)
    assert len(server.requests) == 1
    assert contents(home) == {}


def test_what_a_server_says_is_told_in_one_line(server, publish, capsys):
    server.answers = [Answer(503), Answer(404)]
    with pytest.raises(OSError, match="404 Not Found") as failure:
        hub.fetch(NAME)
    assert "\n" not in str(failure.value)
    [retry] = [line for line in capsys.readouterr().err.splitlines() if "trying again" in line]
    assert retry.startswith(f"{NAME}: ")
    assert "503 Service Unavailable" in retry


def test_each_wait_is_twice_as_long_and_the_last_attempt_has_none(server, publish, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(hub, "WAIT_SECONDS", 1.0)
    server.otherwise = Answer(503)
    with pytest.raises(OSError, match="503"):
        hub.fetch(NAME)
    assert waits == [1, 2, 4, 8]
    assert re.findall(r"trying again in (\d+) s", capsys.readouterr().err) == ["1", "2", "4", "8"]
    assert len(server.requests) == 5


def test_redirects_are_followed(server, publish):
    server.files["/elsewhere"] = GOOD
    server.answers = [Answer(302, headers={"Location": "/elsewhere"})]
    assert fetched() == FILES
    assert [request.path for request in server.requests] == [f"/models/{NAME}.tar.gz", "/elsewhere"]


def test_an_archive_that_the_server_calls_an_encoding_stays_as_it_is(server, publish):
    server.answers = [Answer(headers={"Content-Encoding": "gzip"})]
    assert fetched() == FILES
    assert server.requests[0].encoding == "identity"


def test_offline_the_error_says_where_to_put_the_file(server, publish, home, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, but it does not listen
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/{NAME}.tar.gz"
        monkeypatch.setitem(hub.MODELS, NAME, dataclasses.replace(hub.MODELS[NAME], url=url))
        with pytest.raises(OSError) as failure:
            hub.fetch(NAME)
        archive = home / f"{NAME}.tar.gz"
        for part in (NAME, url, "refused", f"put it at {archive},", f"{home / NAME / 'config.json'} "):
            assert part in str(failure.value)
        assert "ROCKETQA_HOME" in str(failure.value)
        assert not hub.is_fetched(NAME)
        archive.write_bytes(GOOD)
        assert fetched() == FILES


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(DAMAGED, id="damaged"),
        pytest.param(GOOD[:500_000], id="truncated"),
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>log in first</html>", id="another-page"),
    ],
)
def test_what_has_another_digest_is_refused_and_removed(server, publish, home, body):
    server.answers = [Answer(body=body)]
    with pytest.raises(ValueError) as refusal:
        hub.fetch(NAME)
    for part in (NAME, hub.MODELS[NAME].url, md5(body), hub.MODELS[NAME].md5):
        assert part in str(refusal.value)
    assert contents(home) == {}
    assert fetched() == FILES
    assert server.ranges == [None, None]


def test_a_part_of_another_file_is_thrown_away(server, publish, home):
    partial(home, bytes(300_000))
    with pytest.raises(ValueError, match="try again"):
        hub.fetch(NAME)
    assert contents(home) == {}
    assert fetched() == FILES
    assert server.ranges == ["bytes=300000-", None]


def test_a_partial_file_that_is_whole_is_used(server, publish, home):
    partial(home, GOOD)
    assert fetched() == FILES
    assert [(request.range, request.sent) for request in server.requests] == [(f"bytes={len(GOOD)}-", 0)]


def test_a_partial_file_that_is_too_long_is_thrown_away(server, publish, home):
    partial(home, GOOD + b"x")
    with pytest.raises(ValueError, match="try again"):
        hub.fetch(NAME)
    assert contents(home) == {}
    assert fetched() == FILES


# Processes --------------------------------------------------------------------------------------

FETCH = """
import dataclasses, importlib.util, sys
from rocketqa_paddle.runtime import storage  # but not Paddle, which takes seconds to import

spec = importlib.util.spec_from_file_location("hub", sys.argv[1])
hub = sys.modules["hub"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)
name, url, md5 = sys.argv[2:]
hub.MODELS[name] = dataclasses.replace(hub.MODELS[name], url=url, md5=md5)
print("asks", flush=True)
print(hub.fetch(name))
"""


@pytest.fixture
def start(publish):
    """Starts a process that fetches the model; returns when it is about to."""
    started = []

    def start() -> subprocess.Popen:
        published = hub.MODELS[NAME]
        process = subprocess.Popen(
            [sys.executable, "-c", FETCH, hub.__file__, NAME, published.url, published.md5],
            env=os.environ | {"PYTHONPATH": str(Path(hub.__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "asks\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_processes_that_ask_at_the_same_time_fetch_once(server, start, home):
    both_ask, second_request = threading.Event(), threading.Event()

    def slowly() -> None:
        both_ask.wait(60)
        second_request.wait(1)  # which does not come, if there is a lock

    server.answers = [Answer(pause=300_000, wait=slowly)]
    server.otherwise = Answer(wait=second_request.set)
    processes = [start(), start()]
    both_ask.set()
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert printed == [f"{home / NAME}\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert [(request.range, request.sent) for request in server.requests] == [(None, len(GOOD))]
    assert fetched() == FILES


def test_after_a_kill_in_the_middle_the_download_goes_on(server, start, home):
    server.answers = [Answer(pause=600_000, wait=server.closing.wait)]
    process = start()
    while not (partial(home).is_file() and partial(home).stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial(home).name in contents(home)
    have = partial(home).stat().st_size
    assert fetched() == FILES
    assert [request.range for request in server.requests] == [None, f"bytes={have}-"]
    assert server.requests[1].sent == len(GOOD) - have


def test_what_a_kill_while_unpacking_left_is_swept_away(by_hand, home):
    by_hand(GOOD)
    (home / f".{NAME}.rocketqa-new" / "params").mkdir(parents=True)
    (home / f".{NAME}.rocketqa-new" / "params" / "half").write_bytes(b"half")
    assert fetched() == FILES
    assert {path.name for path in home.iterdir()} == {NAME}


def test_a_full_disk_while_unpacking_leaves_the_archive_and_no_folder(server, publish, home, monkeypatch):
    def full(*_, **__) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "copyfileobj", full)
        with pytest.raises(OSError, match="no space left"):
            hub.fetch(NAME)
    assert not (home / NAME).exists()
    assert (home / f"{NAME}.tar.gz").read_bytes() == GOOD
    assert fetched() == FILES
    assert len(server.requests) == 1


# Archives that are odd --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(pack(*model(f"./{NAME}/")), id="dot"),
        pytest.param(pack(member(".", kind=tarfile.DIRTYPE), *model(f"./{NAME}/")), id="dot-itself"),
        pytest.param(pack(*model(folders=False)), id="files-only"),
        pytest.param(pack(*model("", folders=False)), id="without-the-folder"),
        pytest.param(pack(*model("./", folders=False)), id="without-the-folder-dot"),
        pytest.param(pack(*model(), mode="w:"), id="not-packed"),
    ],
)
def test_an_archive_is_unpacked_into_the_model_s_folder(by_hand, home, archive):
    by_hand(archive)
    assert fetched() == FILES
    assert {path.name for path in home.iterdir()} == {NAME}


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([member(f"{NAME}/params/weights", WEIGHTS)], id="none"),
        pytest.param(model("v1_marco_ce/"), id="another-model"),
        pytest.param(model(f"{NAME}/{NAME}/"), id="deeper"),
        pytest.param([member(f"{NAME}/config.json", kind=tarfile.DIRTYPE)], id="a-folder"),
        pytest.param([], id="nothing-at-all"),
    ],
)
def test_an_archive_without_a_configuration_is_refused(by_hand, home, members):
    archive = by_hand(pack(*members))
    with pytest.raises(ValueError, match=f"{archive} holds no {NAME}/config.json"):
        hub.fetch(NAME)
    assert list(contents(home)) == [archive.name]


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(b"<html>this is no archive</html>", id="a-page"),
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[:500_000], id="truncated"),
        pytest.param(pack(*model(), mode="w:")[:500_000], id="truncated-not-packed"),
        pytest.param(damage(NUMBERS, 40), id="damaged-at-the-start"),
        pytest.param(damage(NUMBERS, len(NUMBERS) // 2), id="damaged-in-the-middle"),
    ],
)
def test_what_is_no_whole_archive_is_refused_though_the_digest_is_right(by_hand, home, archive):
    path = by_hand(archive)
    with pytest.raises(ValueError, match=f"{path}: not a whole archive"):
        hub.fetch(NAME)
    assert not (home / NAME).exists()
    assert not hub.is_fetched(NAME)
    assert path.read_bytes() == archive


# Hostile archives -------------------------------------------------------------------------------

EVIL = b"evil"
HOSTILE = {
    "parent": member("../evil", EVIL),
    "parents-parent": member("../../evil", EVIL),
    "parent-after-dot": member("./../evil", EVIL),
    "parent-after-the-name": member(f"{NAME}/../evil", EVIL),
    "parent-deep-inside": member(f"{NAME}/params/../../../evil", EVIL),
    "parent-in-a-long-name": member(f"{NAME}/{'long/' * 40}{'../' * 42}evil", EVIL),
    "parent-folder": member("../evil", kind=tarfile.DIRTYPE),
    "parent-itself": member("..", kind=tarfile.DIRTYPE),
    "symlink-outside": member(f"{NAME}/evil", kind=tarfile.SYMTYPE, target="../.."),
    "symlink-to-the-folder-above": member(f"{NAME}/evil", kind=tarfile.SYMTYPE, target=".."),
    "symlink-absolute": member(f"{NAME}/evil", kind=tarfile.SYMTYPE, target="/etc/passwd"),
    "hardlink-outside": member(f"{NAME}/evil", kind=tarfile.LNKTYPE, target="/etc/passwd"),
    "hardlink-to-the-folder-above": member(f"{NAME}/evil", kind=tarfile.LNKTYPE, target="../evil"),
    "character-device": member(f"{NAME}/evil", kind=tarfile.CHRTYPE),
    "block-device": member(f"{NAME}/evil", kind=tarfile.BLKTYPE),
    "pipe": member(f"{NAME}/evil", kind=tarfile.FIFOTYPE),
    "unknown-type": member(f"{NAME}/evil", EVIL, kind=b"9"),
}
ODD = {
    "parent-that-stays-inside": member(f"{NAME}/params/../evil", EVIL),
    "parent-with-backslashes": member("..\\evil", EVIL),
    "parent-after-the-name-with-backslashes": member(f"{NAME}\\..\\..\\evil", EVIL),
    "absolute": member("OUTSIDE/evil", EVIL),
    "absolute-twice": member("/OUTSIDE/evil", EVIL),
    "absolute-with-backslashes": member("\\evil", EVIL),
    "absolute-folder": member("OUTSIDE/evil", kind=tarfile.DIRTYPE),
    "symlink-inside": member(f"{NAME}/evil", kind=tarfile.SYMTYPE, target="config.json"),
    "hardlink-inside": member(f"{NAME}/evil", kind=tarfile.LNKTYPE, target=f"{NAME}/config.json"),
    "file-of-the-model-s-name": member(NAME, EVIL),
}


def orders(tmp_path: Path, odd: Member) -> Iterator[bytes]:
    """A good archive with an odd member in front, and one with it at the end."""
    info, content = odd
    odd = member(info.name.replace("OUTSIDE", str(tmp_path / "outside")), content, info.type, info.linkname)
    for members in ([odd, *model(folders=False)], [*model(folders=False), odd]):
        yield pack(*members)


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_member_is_refused_and_nothing_is_written(tmp_path, by_hand, home, hostile):
    for archive in orders(tmp_path, hostile):
        path = by_hand(archive)
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=f"{path}: .*; nothing was unpacked") as refusal:
            hub.fetch(NAME)
        assert ("evil'" in str(refusal.value)) or "'..'" in str(refusal.value)
        assert contents(tmp_path) == before
        assert not hub.is_fetched(NAME)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_member_is_unpacked_inside_or_refused(tmp_path, by_hand, home, odd):
    """The data filter of `tarfile` makes a path relative, and allows links that stay inside."""
    (tmp_path / "outside").mkdir()
    for archive in orders(tmp_path, odd):
        path = by_hand(archive)
        try:
            assert fetched().items() >= FILES.items()
        except ValueError as error:
            assert str(error).startswith(f"{path}: not a whole archive")  # a link before its target
        above = {name for name in contents(tmp_path) if not name.startswith(("above/home/", "outside"))}
        assert above == {"above", "above/home"}
        assert contents(tmp_path / "outside") == {}
        assert {p.name for p in home.iterdir()} <= {f".{NAME}.lock", f".{NAME}.new", NAME, path.name}
        shutil.rmtree(home)


@pytest.mark.parametrize("target", ["OUTSIDE", "../../outside"])
def test_a_file_behind_a_symlink_of_the_archive_is_not_written(tmp_path, by_hand, home, target):
    outside = tmp_path / "outside"
    outside.mkdir()
    target = target.replace("OUTSIDE", str(outside))
    link = member(f"{NAME}/out", kind=tarfile.SYMTYPE, target=target)
    by_hand(pack(*model(), link, member(f"{NAME}/out/evil", EVIL)))
    with pytest.raises(
        ValueError, match="'out' (is a link to an absolute|would link to).*nothing was unpacked"
    ):
        hub.fetch(NAME)
    assert contents(outside) == {}
    assert not hub.is_fetched(NAME)


def test_a_symlink_that_leaves_the_folder_through_another_is_refused(tmp_path, by_hand, home):
    """Each link alone stays inside as long as the other is not there."""
    links = [
        member(f"{NAME}/a/b/up", kind=tarfile.SYMTYPE, target="../.."),
        member(f"{NAME}/out", kind=tarfile.SYMTYPE, target="a/b/up/.."),
    ]
    by_hand(pack(*model(), *links, member(f"{NAME}/out/evil", EVIL)))
    with pytest.raises(ValueError, match="nothing was unpacked"):
        hub.fetch(NAME)
    assert not (home / NAME).exists()
    assert not [path for path in tmp_path.rglob("*") if path.name == "evil"]


def test_a_hostile_archive_is_refused_when_it_is_downloaded(server, publish, home):
    publish(pack(*model(), member("../evil", EVIL)))
    for _ in range(2):
        with pytest.raises(ValueError, match="nothing was unpacked"):
            hub.fetch(NAME)
    assert list(contents(home.parent)) == ["home", f"home/{NAME}.tar.gz"]
    assert len(server.requests) == 1


def test_a_python_without_the_data_filter_is_told_what_to_do(by_hand, monkeypatch):
    by_hand(GOOD)
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(RuntimeError, match="cannot unpack archives safely: use at least 3.10.12 or 3.11.4"):
        hub.fetch(NAME)
    assert not hub.is_fetched(NAME)
