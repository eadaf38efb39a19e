"""Real deaths: functions in child processes that are killed before one of their changes to the disk."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def killed_at(change: int, function: Callable[[], Any]) -> bool:
    """Call a function in a child process and kill it before a change, counted from 0.

    A change is a file opened for writing, or a file or folder made, renamed or removed. Return False if the
    function came to its end before; an exception that it raises is an AssertionError here.
    """
    child = os.fork()
    if not child:
        _die_at(change)
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def _die_at(change: int) -> None:
    left = change

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _CHANGES or (event == "open" and _writes(*arguments)):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def _writes(path: Any, mode: Any, flags: int) -> bool:
    return isinstance(path, str | bytes) and not str(path).startswith("/dev") and bool(flags & _WRITES)
