"""The files that a command writes: checked before any work, and kept from other processes until it ends."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rocketqa_paddle.data.tables import is_stream
from rocketqa_paddle.runtime.storage import locked, writing


@contextmanager
def claimed(outputs: Iterable[str], inputs: Iterable[str]) -> Iterator[None]:
    """Hold the files that a command writes, until it has ended.

    Raises:
        ValueError: a file is one that the command reads, or lies in a folder that it reads; it is a folder or
            write-protected; or another process is about to write it.
        NotWritten: no file can be written there.
    """
    inputs = list(inputs)
    with ExitStack() as stack:
        for output in outputs:
            with writing(output):
                if not is_stream(output):
                    _check(output, inputs)
                    stack.enter_context(locked(output))
        yield


def _check(output: str, inputs: Iterable[str]) -> None:
    place = Path(os.path.realpath(output))
    if not Path(output).name or place.is_dir():
        raise ValueError(f"{output or repr(output)}: a folder, expected the name of a file to write")
    if place.is_symlink():
        raise ValueError(f"{output}: a link that leads to itself: choose another --output")
    if place.exists() and not os.access(place, os.W_OK):
        raise ValueError(f"{output} is write-protected: choose another --output")
    for given in inputs:
        read = Path(os.path.realpath(given))
        same = read.exists() and place.exists() and read.samefile(place)
        if same or (read.is_dir() and read in place.parents):
            where = "is" if same else "lies in"
            raise ValueError(f"{output} {where} {given}, which this command reads: choose another --output")
