"""The arrays in a `.pdparams` file, which is a pickle, as `paddle.save` writes it.

The pickle calls nothing of NumPy. What it asks for is noted, and made into arrays here, so that an array has
as many bytes as the file holds for it, and no other memory is ever asked for.
"""

import math
import os
import pickle
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rocketqa_paddle.runtime.storage import as_float32


def read_pdparams(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a `.pdparams` file as float32.

    Raises:
        ValueError: the file asks for anything but arrays, is cut off, or holds other than floating-point
            numbers.
    """
    try:
        with open(path, "rb") as file:
            state = _ArraysOnly(_Whole(file)).load()
        state.pop("StructuredToParameterName@@", None)
        found = {name: value[1] if isinstance(value, tuple) else value for name, value in state.items()}
        "".join(found)  # raises an error if a name is not a text
        return {name: as_float32(array.numbers()) for name, array in found.items()}
    except Exception as error:  # a hostile or broken pickle can raise anything
        problem = f"not a whole file of arrays of float16, bfloat16, float32 or float64 ({str(error)[:200]})"
        raise ValueError(f"{path}: {problem}") from None


class _Whole:
    """A file that refuses to read more than it has, before memory is set aside for it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise EOFError(f"{size} bytes announced, but {self._left} left")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Type:
    """A `numpy.dtype` as the pickle describes it: the code, and the byte order in the state."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def dtype(self) -> np.dtype:
        if self.code not in ("f2", "f4", "f8", "u2"):  # Paddle keeps bfloat16 as u2
            raise ValueError(f"numbers of the type {reprlib.repr(self.code)}")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """A `numpy.ndarray` as the pickle describes it: its shape, its type and its bytes."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.type, self.fortran, self.data = state

    def numbers(self) -> np.ndarray:
        array = np.frombuffer(_bytes(self.data), self.type.dtype())
        if (
            any(type(size) is not int or size < 0 for size in self.shape)
            or math.prod(self.shape) != array.size
        ):
            raise ValueError(f"{array.size} numbers for the shape {reprlib.repr(self.shape)}")
        return array.reshape(self.shape, order="F" if self.fortran else "C")


def _bytes(data: object) -> bytes:
    if type(data) is not bytes:
        raise ValueError(f"an array of {type(data).__name__}, expected bytes")
    return data


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(data: object, kind: _Type, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", data))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Turn a text into bytes, which pickles of protocol 2 hold as Latin-1."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {reprlib.repr(encoding)}")
    return text.encode("latin-1")


def _pair(items: tuple = ()) -> tuple:
    """Return what `paddle.save` keeps of a parameter: its name and its array."""
    if type(items) is not tuple or len(items) > 2:
        raise ValueError("a tuple of something else than a name and an array")
    return items


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _reconstruct,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{(module, "tuple"): _pair for module in ("builtins", "__builtin__")},
}
"""What a pickle may name, and what it gets."""


class _ArraysOnly(pickle._Unpickler):
    """Admits only what builds an array.

    This is the unpickler in Python: that in C sets memory aside for numbers in the file (sizes, places in its
    memo) before it looks whether the file has as much.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module[:80]}.{name[:80]}")
        found = _ADMITTED[module, name]
        return lambda *arguments: found(*arguments)  # a pickle could set attributes of a shared function

    def load_bytearray8(self) -> None:
        """Read the bytes of an array of protocol 5, without a buffer of the announced size."""
        self.load_binbytes8()

    def load_setitems(self) -> None:
        """Fill a dictionary. Only texts are keys: a deep tuple would exhaust the stack when it is hashed."""
        items = self.pop_mark()
        if any(type(key) is not str for key in items[::2]):
            raise pickle.UnpicklingError("a name is not a text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self) -> None:
        self.metastack.append(self.stack[:-2])  # as if there were a mark before key and value
        self.stack = self.stack[-2:]
        self.load_setitems()

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("a set")  # whose members are hashed, too

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems
    dispatch[pickle.FROZENSET[0]] = dispatch[pickle.ADDITEMS[0]] = _refuse
