"""The disk: files and folders that are written whole or not at all, locks, and fingerprints of content."""

from __future__ import annotations

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

# Files -------------------------------------------------------------------------------------------


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A name to write a file under; the file takes the place of `path` when the block ends without an error.

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
    """Write an object whole or not at all, with line breaks for human readers."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a safetensors file whole or not at all."""
    with atomic(path) as new:
        save_file(arrays, new)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is not JSON, or not an object; names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return values


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, as float32.

    Raises:
        ValueError: the file is cut off, or holds a type that NumPy does not know (bfloat16).
    """
    try:
        return {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file of float32 or float16 ({error})") from None


# Folders -----------------------------------------------------------------------------------------


@contextmanager
def replacing(folder: str | Path, marker: str) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `folder` when the block ends without an error.

    A crash at any moment leaves the old folder, which `whole` finds.

    Args:
        folder: where to write.
        marker: name of a file that every folder of this kind has. A folder without it is not ours.

    Raises:
        ValueError: a file, or a folder with other things in it, stands in the way. Nothing is touched.
    """
    folder = Path(folder).resolve()
    if folder.is_file():
        raise ValueError(f"{folder} is a file, but a folder is to be written there: choose another name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise ValueError(
            f"{folder} holds other files (and no {marker}), which would be lost: choose another name"
        )
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
    """Wait until all of a folder is on the disk; quick where it is already."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def whole(folder: str | Path) -> Path:
    """Where to read a folder that `replacing` writes: the old one if a crash came between its renames."""
    folder = Path(folder).resolve()
    old = _beside(folder, "old")
    return old if old.is_dir() and not folder.exists() else folder


def remove(folder: Path) -> None:
    """Take a folder out of sight in one step, then delete it, so that a crash leaves no half of it behind."""
    hidden = _beside(folder, "removed")
    shutil.rmtree(hidden, ignore_errors=True)
    if folder.exists():
        folder.rename(hidden)
        shutil.rmtree(hidden)


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Locks -------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file. The system releases it when the process ends, however it ends.

    Args:
        path: the lock file.
        wait: until the process that holds it lets go.

    Raises:
        ValueError: another process holds it, and we are not to wait.
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


# Fingerprints ------------------------------------------------------------------------------------


def fingerprint(parts: Iterable[Any]) -> str:
    """16 hexadecimal digits that name some values in their order.

    Args:
        parts: bytes, texts and NumPy arrays count by their content, anything else by its `repr`.
    """
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(np.ascontiguousarray(part).data)
        else:
            state.update(
                part if isinstance(part, bytes) else (part if isinstance(part, str) else repr(part)).encode()
            )
    return state.hexdigest()[:16]


def file_fingerprint(path: str | Path) -> str:
    """The fingerprint of a file's content."""
    with open(path, "rb") as file:
        return fingerprint(iter(lambda: file.read(_BLOCK), b""))
