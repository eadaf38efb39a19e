"""A connection to Milvus: a file of milvus-lite or a server, errors that say what to do, and requests."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pymilvus import MilvusClient  # which takes half a second

Item = TypeVar("Item")

BATCH = 128
"""Passages of a request: with texts of the greatest length, and their words, below the 64 MB of a server."""


def connect(uri: str) -> MilvusClient:
    """Connect to a server, or open a file.

    Raises:
        ValueError: it is neither, or another process has the file.
        ImportError: pymilvus or milvus-lite is not installed.
        OSError: no server answers.
    """
    if not uri.endswith(".db") and not re.match(r"(https?|tcp)://", uri):
        raise ValueError(f"{shown(uri)}: expected a file NAME.db, or a server such as http://localhost:19530")
    try:
        import pymilvus

        if is_file(uri):
            import milvus_lite.server_manager  # noqa: F401
    except ImportError as error:
        needed = "Milvus needs pymilvus, and milvus-lite for a file: pip install 'rocketqa_paddle[milvus]'"
        raise ImportError(f"{needed} ({error})") from None
    for logger in ("pymilvus", "pymilvus.milvus_client", "grpc._server"):  # what they log is raised as well
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    logging.getLogger("milvus_lite").setLevel(logging.ERROR)
    with speaking(shown(uri)), _opening(uri):
        return pymilvus.MilvusClient(uri)


@contextmanager
def _opening(uri: str) -> Iterator[None]:
    """Say why milvus-lite cannot open a file, which it logs and does not raise."""
    if not is_file(uri):
        yield
        return
    path = Path(uri)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "collections").is_dir()):
        raise ValueError(f"{uri} is something else, or of milvus-lite before 3: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    logger, heard = logging.getLogger("milvus_lite.server_manager"), _Heard()
    logger.addHandler(heard)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    except Exception:
        if any("holds the lock" in told for told in heard.told):
            raise ValueError(
                f"{uri}: another process has this file of Milvus, and only one can: wait for it, or start a "
                f"server for several, `milvus-lite server --data-dir {uri} --host 127.0.0.1`, and give its "
                "address, http://127.0.0.1:19530"
            ) from None
        raise OSError(f"{uri}: milvus-lite cannot open it ({'; '.join(heard.told)[:200]})") from None
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagates


class _Heard(logging.Handler):
    """Keeps the errors of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep an error."""
        self.told += [str(record.exc_info[1])] if record.exc_info else []


@contextmanager
def speaking(place: str) -> Iterator[None]:
    """Raise the errors of Milvus as `OSError` with the place."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        remedy = "see that the server runs, and open the collection again if it was replaced"
        raise OSError(f"{place}: Milvus answers: {error.message[:300]}; {remedy}") from None


def is_file(uri: str) -> bool:
    """Tell whether an address is a file of milvus-lite."""
    return "://" not in uri


def shown(uri: str) -> str:
    """Return an address without the password in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


# Requests ------------------------------------------------------------------------------------------


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield lists that are short enough for a request."""
    items = iter(items)
    while batch := list(islice(items, BATCH)):
        yield batch


def one_of(keys: Sequence[str] | Sequence[int]) -> str:
    """Return the expression for entities of some primary keys."""
    return f"id in {json.dumps(keys, ensure_ascii=False)}"
