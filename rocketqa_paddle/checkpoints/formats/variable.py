"""A variable's file, as `paddle.fluid` saves it: Paddle's LoDTensor."""

import math
import struct
from pathlib import Path

import numpy as np

# The file: version (4 bytes), number of LoD levels (8), each level (8 bytes of size, then its bytes), version
# of the tensor (4), size of the description (4), the description (a protobuf of type and shape), the numbers.
_TYPES = {4: np.dtype("<f2"), 5: np.dtype("<f4"), 6: np.dtype("<f8")}


def read_variable(path: Path) -> np.ndarray:
    """Read the array of one variable as float32.

    Raises:
        ValueError: the file is cut off, or is not a LoDTensor of floating-point numbers.
    """
    try:
        return _parse(path.read_bytes()).astype(np.float32)
    except (ValueError, KeyError, IndexError, struct.error, OverflowError):
        kinds = "float16, float32 or float64"
        raise ValueError(f"{path}: not a whole LoDTensor of {kinds}, as the reference saves it") from None


def _parse(data: bytes) -> np.ndarray:
    version, levels = struct.unpack_from("<IQ", data)
    offset = 12
    for _ in range(levels):
        (size,) = struct.unpack_from("<Q", data, offset)
        offset += 8 + size
    tensor_version, size = struct.unpack_from("<Ii", data, offset)
    offset += 8
    data_type, shape = _read_description(data[offset : offset + size])
    if len(shape) > 32:
        raise ValueError("more dimensions than NumPy has")
    array = np.frombuffer(data, _TYPES[data_type], math.prod(shape), offset + size).reshape(shape)
    if version or tensor_version or len(data) != offset + size + array.nbytes:
        raise ValueError("another version, or bytes left over")
    return array


def write_variable(path: Path, array: np.ndarray) -> None:
    """Write one variable as float32."""
    array = np.ascontiguousarray(array, dtype="<f4")
    description = b"\x08\x05" + b"".join(b"\x10" + _varint(size) for size in array.shape)
    path.write_bytes(struct.pack("<IQIi", 0, 0, 0, len(description)) + description + array.tobytes())


def _read_description(data: bytes) -> tuple[int, list[int]]:
    """Read the data type (field 1) and the shape (field 2, whose numbers stand one by one or packed)."""
    data_type, shape, offset = 0, [], 0
    while offset < len(data):
        tag, offset = _read_varint(data, offset)
        value, offset = _read_varint(data, offset)
        if tag == 0x08:
            data_type = value
        elif tag == 0x10:
            shape.append(value)
        elif tag == 0x12:
            end = offset + value
            while offset < end:
                size, offset = _read_varint(data, offset)
                shape.append(size)
        else:
            raise ValueError("an unknown field")
    return data_type, shape


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while data[offset] & 0x80:
        if shift > 63:
            raise ValueError("a number without end")
        value |= (data[offset] & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
    return value | data[offset] << shift, offset + 1


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
