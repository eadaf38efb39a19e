"""Folders that are written whole or not at all; JSON and safetensors files whose errors name the file."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


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


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object, whole or not at all, so that people can read it, too."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, as float32.

    Raises:
        ValueError: the file is cut off, or holds a type that NumPy does not know (bfloat16).
    """
    try:
        return {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file of float32 or float16 ({error})") from None


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a safetensors file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    save_file(arrays, new)
    _fsync(new)
    new.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file. The system lets go of it when the process ends, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path.parent}: another run is at work here: wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        yield
