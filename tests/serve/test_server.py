"""The command `rocketqa serve` as a process: its start, its end, and clients that behave badly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import command_line
import httpx
import pytest
import uvicorn

from rocketqa_paddle.serve import server
from rocketqa_paddle.serve.app import make_app
from rocketqa_paddle.serve.service import Service

TEXTS = ["where is a red dog"] * 100


def start(*words: object) -> tuple[subprocess.Popen[str], str]:
    """Start the command, and return it with the address that it prints."""
    command = [sys.executable, "-m", "rocketqa_paddle", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = process.stdout.readline()
    assert " at http://" in line, process.communicate(timeout=20)
    return process, line.rsplit(" at ", 1)[1].strip()


@pytest.fixture(scope="module")
def address(best: Path) -> Iterator[str]:
    process, address = start("--checkpoint", best)
    yield address
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_garbage_and_clients_that_hang_up_harm_nobody(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    body = b'{"inputs": "a"}'
    head = b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    pieces = [
        b"\x00\xff" * 500,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        head % 1000,
        head % len(body) + body,
    ]
    for piece in pieces:
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(piece)
    assert httpx.post(f"{address}/embed", json={"inputs": "a"}).status_code == 200
    assert httpx.get(f"{address}/health").status_code == 200


def test_a_body_is_read_from_a_client_that_offers_http2(address: str) -> None:
    offered = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQ"}
    assert httpx.post(f"{address}/embed", json={"inputs": "a"}, headers=offered).status_code == 200


def test_headers_are_bounded(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection, pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"a" * 100_000)


def test_a_connection_without_a_whole_request_is_closed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.2)
    with server.bind("127.0.0.1", 0) as bound:
        config = uvicorn.Config(make_app(service), http=server._Connection, log_level="warning")
        listening = threading.Event()
        serving = server._Server(config, ready=listening.set)
        thread = threading.Thread(target=serving.run, args=([bound],))
        thread.start()
        assert listening.wait(20)
        try:
            for beginning in (b"", b"GET /he", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /he"):
                with socket.create_connection(bound.getsockname(), timeout=20) as connection:
                    connection.sendall(beginning)
                    while connection.recv(1000):
                        pass
        finally:
            serving.should_exit = True
            thread.join()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_the_system_ends_connections_whose_clients_do_not_read() -> None:
    with server.bind("127.0.0.1", 0) as bound:
        assert bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_a_stop_while_models_get_warm_ends_the_thread_that_computes(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Service) -> None:
        raise KeyboardInterrupt

    closed: list[Service] = []
    monkeypatch.setattr(Service, "warm_up", stop)
    monkeypatch.setattr(Service, "close", lambda self: closed.append(self))
    assert fails("serve", *command_line.words(checkpoint=best, port=0)) == 130
    monkeypatch.undo()
    (service,) = closed
    service.close()


def test_clients_at_once_get_their_own_answers(address: str) -> None:
    words = ["red dog", "blue cat", "green whale", "white horse"]

    with httpx.Client(base_url=address) as client:

        def embed(place: int) -> list[list[float]]:
            return client.post("/embed", json={"inputs": [words[place % 4]] * (place + 1)}).json()

        alone = [embed(place) for place in range(4)]
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(embed, range(32)))
    for place, answer in enumerate(answers):
        assert len(answer) == place + 1
        for vector in answer:
            assert vector == pytest.approx(alone[place % 4][0], abs=1e-5)


def test_sigterm_lets_requests_finish(best: Path, tmp_path: Path) -> None:
    process, address = start("--checkpoint", best, "--max_batch_tokens", 8)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx.post, f"{address}/embed", json={"inputs": TEXTS * 5}, timeout=60)
        while b"te_embed_count 0" in httpx.get(f"{address}/metrics").content:
            pass
        process.send_signal(signal.SIGTERM)
        assert len(answer.result(60).json()) == len(TEXTS) * 5
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopped" in output
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_what_cannot_be_served_is_told_before_a_model_is_read(best: Path, capsys, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = {"checkpoint": best, "port": taken.getsockname()[1]}
        assert fails("serve", *command_line.words(**flags)) == 2
        assert "choose others with --host, --port" in capsys.readouterr().err
    for flags, told in (
        ({"checkpoint": tmp_path}, "no"),
        ({"checkpoint": best, "port": 99_999}, "port 99999"),
        ({"checkpoint": best, "api_key_file": tmp_path / "none"}, "none"),
        ({"checkpoint": best, "max_concurrent_requests": 0}, "at least 1"),
        ({"checkpoint": best / "reranker", "reranker": best / "reranker"}, "two re-rankers"),
    ):
        assert fails("serve", *command_line.words(**{"port": 0} | flags)) == 2
        assert told in capsys.readouterr().err


def fails(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        command_line.run(*words)
    return ended.value.code


def test_a_service_for_everybody_without_a_key_is_told(best: Path) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "rocketqa_paddle", "serve", "--checkpoint", str(best), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--host", "0.0.0.0"],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert "http://0.0.0.0:" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "whoever reaches 0.0.0.0 can use this service: see --api_key_file" in errors
    assert process.returncode == 0
