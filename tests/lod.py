"""Files of variables as `paddle.fluid` saved them (LoDTensors), written by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

CODES = {"float16": 4, "float32": 5, "float64": 6, "int64": 3, "int32": 2, "bool": 0, "uint8": 20}
"""Paddle's numbers of data types (`VarType.Type` in `framework.proto`)."""


def varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def described(data_type: int, shape: Sequence[int], packed: bool = False) -> bytes:
    sizes = [varint(size) for size in shape]
    if packed:
        return b"\x08" + varint(data_type) + b"\x12" + varint(len(b"".join(sizes))) + b"".join(sizes)
    return b"\x08" + varint(data_type) + b"".join(b"\x10" + size for size in sizes)


def framed(description: bytes, data: bytes, levels: Sequence[bytes] = ()) -> bytes:
    lod = b"".join(struct.pack("<Q", len(level)) + level for level in levels)
    head = struct.pack("<IQ", 0, len(levels)) + lod + struct.pack("<Ii", 0, len(description))
    return head + description + data


def lod_tensor(array: np.ndarray, levels: Sequence[bytes] = (), packed: bool = False) -> bytes:
    """A variable's file, as the toolkit saves it."""
    return framed(described(CODES[array.dtype.name], array.shape, packed), array.tobytes(), levels)
