"""The disk: files and folders that are written whole or not at all, locks, and fingerprints of content."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

_BLOCK = 1 << 20  # bytes of a file that are read at once


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a name to write under; the file replaces `path` when the block ends without an error.

    The name is always the same, so what a crash leaves behind is overwritten by the next writer.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.new")
    try:
        yield new
        _fsync(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as new:
        new.write_text(text, encoding="utf-8")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object whole or not at all, with line breaks for people."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a safetensors file whole or not at all."""
    with atomic(path) as new:
        save_file(arrays, new)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: it is not JSON, or not an object; the message names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return values


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, as float32.

    Raises:
        ValueError: the file is cut off, or holds a type that NumPy does not know (bfloat16).
    """
    try:
        return {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file of float32 or float16 ({error})") from None


@contextmanager
def replacing(folder: str | Path, marker: str) -> Iterator[Path]:
    """Give a new folder to fill; it replaces `folder` when the block ends without an error.

    A crash at any moment leaves the old folder, which `whole` finds.

    Raises:
        ValueError: `folder` is a file, or holds other files and not the file `marker`, which every folder of
            this kind has. Nothing is touched.
    """
    folder = Path(folder).resolve()
    if folder.is_file():
        raise ValueError(f"{folder} is a file, but a folder is to be written there: choose another name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        problem = f"{folder} holds other files (and no {marker}), which would be lost"
        raise ValueError(f"{problem}: choose another name")
    new, old = _beside(folder, "new"), _beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    sync(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(folder: Path) -> None:
    """Wait until all of a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def whole(folder: str | Path) -> Path:
    """Return where to read what `replacing` writes: the old folder if a crash came between its renames."""
    folder = Path(folder).resolve()
    old = _beside(folder, "old")
    return old if old.is_dir() and not folder.exists() else folder


def remove(folder: str | Path) -> None:
    """Delete a folder, or the old one that `whole` finds in its place.

    Each is renamed before it is deleted, so that a crash leaves no half of it behind.
    """
    folder = Path(folder).resolve()
    hidden = _beside(folder, "removed")
    for place in (_beside(folder, "old"), folder):
        shutil.rmtree(hidden, ignore_errors=True)
        if place.exists():
            place.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file. The system releases it when the process ends, however it ends.

    Raises:
        ValueError: another process holds it, and `wait` is not set.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise ValueError(f"{path.parent}: another run is at work here: wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def fingerprint(parts: Iterable[Any]) -> str:
    """Return 16 hexadecimal digits that name some values in their order.

    Bytes, texts and NumPy arrays count by their content, anything else by its `repr`. There is nothing
    between them, so a text in two parts has the fingerprint of the whole.
    """
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part).data
        elif not isinstance(part, bytes):
            part = (part if isinstance(part, str) else repr(part)).encode()
        state.update(part)
    return state.hexdigest()[:16]


def file_fingerprint(path: str | Path) -> str:
    """Return the fingerprint of a file's content."""
    with open(path, "rb") as file:
        return fingerprint(iter(lambda: file.read(_BLOCK), b""))
