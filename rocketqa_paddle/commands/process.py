"""The process of a command: its terminal, and requests to stop."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_REQUESTS = (signal.SIGINT, signal.SIGTERM)


def readable_streams() -> None:
    """Let output replace the characters that the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def flushed() -> Iterator[None]:
    """Write out what was printed, so that an error in that is raised here and not when Python ends."""
    try:
        yield
    finally:
        if sys.stdout:
            sys.stdout.flush()


def abandon_output() -> None:
    """Write to nowhere from now on: whoever read the output has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            os.dup2(nowhere, stream.fileno())


@contextmanager
def stop_at_once(message: str) -> Iterator[None]:
    """End the process with a message on Ctrl-C or SIGTERM: an import does not survive an exception."""

    def stop(*_: Any) -> None:
        os.write(2, f"{message}\n".encode())
        os._exit(130)

    with _handling(stop):
        yield


@contextmanager
def stop_requests() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM, too. A training takes both over for as long as it lasts."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with _handling(stop):
        yield


@contextmanager
def _handling(handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _REQUESTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not Python's
