"""Files that are written whole or not at all, locks, and fingerprints of content."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import filelock
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

_BLOCK = 1 << 20  # bytes of a file that are read at once


def hidden(path: Path, kind: str) -> Path:
    """Return the place of something that serves a file or folder, beside it, such as its lock.

    No user calls a file so. What has such a name was made by this package, and a crash may have left it.
    """
    return path.with_name(f".{path.name}.rocketqa-{kind}")


class NotWritten(OSError):
    """A file or folder could not be written. The message names it and says why, and what to do."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Say which file could not be written, because the errors of full disks seldom do.

    Raises:
        NotWritten: instead of any other `OSError`.
    """
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        remedy = "write elsewhere, or make room if the disk is full, and give the same command again"
        raise NotWritten(f"{path}: could not be written ({error.strerror or error}): {remedy}") from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a name to write under; the file replaces `path` when the block ends without an error.

    The name is always the same, so what a crash leaves behind is overwritten by the next writer. Another
    process that writes the same file at this moment is waited for.

    Raises:
        NotWritten: nothing of the new file is left then.
    """
    path = Path(os.path.realpath(path))  # which does not fail on links in a circle, as Path.resolve does
    new = hidden(path, "new")
    with writing(path), locked(path, wait=True):
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("it is write-protected")
        try:
            yield new
            fsync(new)
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
        save_arrays(new, arrays)


def save_arrays(path: Path, arrays: dict[str, np.ndarray], **metadata: str) -> None:
    """Write a safetensors file. Unlike the library's own `save_file`, this obeys the umask."""
    path.write_bytes(save(arrays, metadata or None))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file. NumPy's own `save` is silent when the disk is full and the array small."""
    header = np.lib.format.header_data_from_array_1_0(array := np.ascontiguousarray(array))
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)


@contextmanager
def array_writer(
    path: Path, shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[Callable[[np.ndarray], object]]:
    """Write a `.npy` file in parts: give a function that takes the next rows."""
    header = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(np.dtype(dtype))}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows, dtype=dtype).data)


def map_array(path: Path) -> np.ndarray:
    """Map a `.npy` file for reading.

    Raises:
        ValueError: it is not whole, or no such file.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # whose items are quicker
    except (ValueError, EOFError, SyntaxError, TokenError, TypeError) as error:
        raise ValueError(f"{path}: not an array ({str(error)[:100]})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: it is not JSON, or not an object; the message names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: too many objects or lists inside one another") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return values


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, as float32.

    Raises:
        ValueError: it is a folder or cut off, or holds numbers of a type that is not read (8 bits, complex).
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected a safetensors file")
    try:
        with safe_open(path, framework="numpy") as file, open(path, "rb") as raw:  # which checks the header
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
            return {
                name: as_float32(_bfloat16(raw, 8 + size, header[name]))
                if header[name]["dtype"] == "BF16"
                else as_float32(file.get_tensor(name))
                for name in file.keys()  # noqa: SIM118
            }
    except (SafetensorError, AttributeError, TypeError, KeyError, ValueError) as error:
        problem = "not a whole safetensors file of float32, float16 or bfloat16"
        raise ValueError(f"{path}: {problem} ({str(error)[:200]})") from None


def _bfloat16(file: BinaryIO, start: int, tensor: dict[str, Any]) -> np.ndarray:
    """Return the bits of a tensor of bfloat16, a type that NumPy lacks."""
    first, end = tensor["data_offsets"]
    file.seek(start + first)
    return np.frombuffer(file.read(end - first), dtype="<u2").reshape(tensor["shape"])


def as_float32(array: np.ndarray) -> np.ndarray:
    """Return numbers as float32. Those of 16 bits without sign are bfloat16, as Paddle keeps it.

    Raises:
        TypeError: they are complex.
    """
    if array.dtype.kind not in "fiub":
        raise TypeError(f"numbers of the type {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # bfloat16 is the upper half of float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing a file or folder, by a lock file beside it.

    The system releases the lock when the process ends, however it ends. The same thread may lock it again.

    Raises:
        ValueError: another process holds the lock, and `wait` is not set.
    """
    path = Path(os.path.realpath(path))
    file = hidden(path, "lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file, is_singleton=True)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise ValueError(f"{path}: another process is at work here: wait for it, or stop it") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            file.unlink(missing_ok=True)
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
