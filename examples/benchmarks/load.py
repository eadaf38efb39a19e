"""The service under load: many clients against one at a time, memory over time, and what happens to a crowd.

    python examples/benchmarks/load.py --checkpoint runs/pydocs/best --data data/pydocs [--seconds 60]

One client and 32 take turns for some seconds each, with the same kinds of requests: queries to encode,
searches, and eight passages to encode or to re-rank. Each kind is sent alone first, then all of them in
random order. Requests a second, the 50th and 99th percentile of their time, statuses and the anonymous
memory of the service are printed. At the end 300 clients crowd a service that lets 64 wait, and one client
tries again after them. Flags of `rocketqa serve` may follow `--`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np

MIX = {"query": 12, "search": 6, "passages": 1, "rerank": 1}
"""How many requests of each kind there are, of 20."""
TURN = 10.0  # seconds of one turn
SEVERAL = 8  # texts of a request for several


def main() -> None:
    """Start the service, load it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each side")
    parser.add_argument("flags", nargs="*")
    settings = parser.parse_args()
    requests = made_requests(settings.data, MIX)
    with served(settings.checkpoint, *settings.flags) as (process, port):
        asyncio.run(warm(port, requests))
        for kind in MIX:
            alone = made_requests(settings.data, {kind: 1})
            one, many = (asyncio.run(turn(port, alone, n, TURN / 2)).rate for n in (1, settings.clients))
            print(f"{kind}: {one:.1f} and {many:.1f} requests/s, {many / one:.2f} times", flush=True)
        sides: dict[int, list[Turn]] = {1: [], settings.clients: []}
        print(f"memory {anonymous(process.pid):.0f} MB")
        for number in range(max(1, round(settings.seconds / TURN))):
            for clients, turns in sides.items():
                turns.append(asyncio.run(turn(port, requests, clients, TURN)))
            ratio = sides[settings.clients][-1].rate / sides[1][-1].rate
            print(f"turn {number + 1}: {ratio:.2f}, memory {anonymous(process.pid):.0f} MB", flush=True)
        for clients, turns in sides.items():
            report(f"{clients} client{'s' * (clients > 1)}", turns)
        rates = [np.mean([one.rate for one in turns]) for turns in sides.values()]
        print(f"{settings.clients} clients against one: {rates[1] / rates[0]:.2f} times the requests")
    with served(settings.checkpoint, *settings.flags, "--max_concurrent_requests", "64") as (_, port):
        crowd = asyncio.run(turn(port, requests, 300, TURN))
        print(f"300 clients where 64 may wait: {dict(crowd.statuses)}")
        after = asyncio.run(turn(port, requests, 1, 1.0))
        print(f"one client after them: {dict(after.statuses)}")


@contextmanager
def served(checkpoint: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start `rocketqa serve`, and stop it at the end."""
    command = [sys.executable, "-m", "rocketqa_paddle", "serve", "--checkpoint", checkpoint, "--port", "0"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    told = process.stdout.readline()
    print(told, end="")
    try:
        yield process, int(re.search(r":(\d+)$", told)[1])
    finally:
        process.terminate()
        process.wait()


def made_requests(data: Path, mix: dict[str, int]) -> list[bytes]:
    """Requests of a collection in random order, as HTTP; `mix` tells how many of each kind."""
    rng = random.Random(0)
    queries = [line.split("\t")[1] for line in (data / "test.query.txt").read_text().splitlines()]
    texts = [line.split("\t")[1] for line in (data / "para.txt").read_text().splitlines()]
    kinds = rng.sample(list(mix), counts=mix.values(), k=sum(mix.values()))

    def made(kind: str) -> bytes:
        query, several = rng.choice(queries), rng.sample(texts, SEVERAL)
        path, body = {
            "query": ("/embed", {"inputs": query, "prompt_name": "query"}),
            "passages": ("/embed", {"inputs": several, "prompt_name": "document"}),
            "search": ("/search", {"queries": [query], "k": 5, "depth": 0}),
            "rerank": ("/rerank", {"query": query, "texts": several}),
        }[kind]
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
        return f"{head}{len(content)}\r\n\r\n".encode() + content

    return [made(kind) for _ in range(200) for kind in kinds]


class Turn:
    """What some clients saw in some seconds."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.seconds = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


async def turn(port: int, requests: list[bytes], clients: int, seconds: float) -> Turn:
    """Send requests from several clients, each of which sends the next one when it has an answer."""
    seen, waiting, begun = Turn(), cycle(requests), time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < begun + seconds:
            sent = time.perf_counter()
            writer.write(next(waiting))
            seen.statuses[await answer(reader)] += 1
            seen.latencies.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    seen.seconds = time.perf_counter() - begun
    return seen


async def answer(reader: asyncio.StreamReader) -> int:
    """Read an answer and return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
    return int(head[9:12])


async def warm(port: int, requests: list[bytes]) -> None:
    """Send some requests that do not count."""
    await turn(port, requests, 8, 3.0)


def report(name: str, turns: list[Turn]) -> None:
    """Print the figures of one side."""
    latencies = np.concatenate([one.latencies for one in turns])
    statuses = sum((one.statuses for one in turns), Counter())
    p50, p99 = (f"{1000 * value:.0f} ms" for value in np.percentile(latencies, [50, 99]))
    rate = len(latencies) / sum(one.seconds for one in turns)
    print(f"{name}: {rate:.1f} requests/s, p50 {p50}, p99 {p99}, statuses {dict(statuses)}")


def anonymous(pid: int) -> float:
    """The anonymous memory of a process in MB."""
    rows = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return next(int(row[1]) for row in rows if row[0] == "RssAnon:") / 1000


if __name__ == "__main__":
    main()
