"""Real deaths: functions in child processes that are killed before one of their changes to the disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def killed_at(change: int, function: Callable[[], Any]) -> bool:
    """Call a function in a child process and kill it before a change, counted from 0.

    A change is a file opened for writing, or a file or folder made, renamed or removed. Return False if the
    function came to its end before; an exception that it raises is an AssertionError here.
    """
    return _died(_begin(function, lambda: _die_at(change)))


def killed_after(seconds: float, function: Callable[[], Any]) -> bool:
    """Call a function in a child process and kill it after a while; see `killed_at`."""
    child = _begin(function, lambda: None)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.waitid(
        os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return _died(child)


def changes(function: Callable[[], Any]) -> int:
    """Call a function in a child process and count its changes to the disk."""
    read, write = os.pipe()
    counted: list[None] = []

    def tell() -> None:
        function()
        os.write(write, str(len(counted)).encode())

    child = _begin(tell, lambda: _at_changes(lambda: counted.append(None)))
    assert not _died(child)
    os.close(write)
    with open(read, "rb") as file:
        return int(file.read())


def _begin(function: Callable[[], Any], prepare: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        try:
            tqdm.set_lock(threading.RLock())  # the other is shared with the parent, and would die locked
            prepare()
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def _died(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def _die_at(change: int) -> None:
    left = iter(range(change))
    _at_changes(lambda: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL))


def _at_changes(act: Callable[[], object]) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and _writes(*arguments)):
            act()

    sys.addaudithook(hook)


def _writes(path: Any, mode: Any, flags: int) -> bool:
    return isinstance(path, str | bytes) and not str(path).startswith("/dev") and bool(flags & _WRITES)
