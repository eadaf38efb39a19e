"""Functions and workers in several processes: forked from this one, or started as users start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import toy
from tqdm import tqdm

from rocketqa_paddle.commands import cli

TIMEOUT = 120  # seconds; the launcher would wait for a hanging rank for ever


def launch_nodes(folder: Path, worker: str, *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """Run `tests/WORKER` as one rank on each of two nodes: launchers at two addresses of this machine.

    They log to `folder/log-0` and `folder/log-1`.
    """
    master = f"127.0.0.2:{free_port()}"

    def start(node: int) -> subprocess.CompletedProcess[str]:
        nodes = ("--master", master, "--nnodes", "2", "--rank", str(node), "--host", f"127.0.0.{2 + node}")
        command = (toy.FLEETRUN, *nodes, "--nproc_per_node", "1", "--log_dir", folder / f"log-{node}")
        return toy.run(*command, toy.ROOT / "tests" / worker, *arguments, cwd=folder, timeout=TIMEOUT)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(start, range(2)))


class End(NamedTuple):
    """How a rank ended: its exit code, less than 0 for a signal, and all that it printed."""

    code: int
    printed: str


def fork(ranks: int, function: Callable[[], Any], folder: Path) -> list[End]:
    """Call a function in so many child processes, each as a rank that a command of `rocketqa` runs in.

    They need no import, so they begin at once. Those that still run when the others have ended, as a hanging
    one does, are killed a while later.
    """
    endpoint = f"127.0.0.1:{free_port()}"
    children = []
    for rank in range(ranks):
        children.append(_begin(rank, ranks, endpoint, function, folder / f"rank-{rank}.txt"))
        time.sleep(0.2 * (rank == 0))  # who finds no rank 0 tries again only seconds later
    codes, deadline = {}, time.monotonic() + TIMEOUT
    while len(codes) < ranks:
        for child in children:
            ended, status = (0, 0) if child in codes else os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + 20)
        if time.monotonic() > deadline or (len(codes) == ranks - 1 and _is_stopped(children, codes)):
            _kill(children, codes)
        time.sleep(0.02)
    return [End(codes[child], (folder / f"rank-{n}.txt").read_text()) for n, child in enumerate(children)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _described(function: Callable[[], Any]) -> Callable[[], None]:
    def command() -> None:
        """Do what a test does."""
        function()

    return command


def _is_stopped(children: list[int], codes: dict[int, int]) -> bool:
    left = next(child for child in children if child not in codes)
    return Path(f"/proc/{left}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _kill(children: list[int], codes: dict[int, int]) -> None:
    for child in children:
        if child not in codes:
            os.kill(child, 9)


def _begin(rank: int, ranks: int, endpoint: str, function: Callable[[], Any], output: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        tqdm.set_lock(threading.RLock())  # the other is shared with the parent, and would die locked
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(file, number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        os.environ |= {
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(ranks),
            "PADDLE_MASTER": endpoint,
            "PADDLE_CURRENT_ENDPOINT": endpoint,
            "PADDLE_TRAINER_ENDPOINTS": ",".join([endpoint] * ranks),
        }
        cli.COMMANDS["models"] = _described(function)
        cli.main(["models"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
