"""One variable's file of the RocketQA toolkit: any is read, what is broken or hostile is refused."""

from __future__ import annotations

import struct
import time
import tracemalloc
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from lod import described, framed, lod_tensor, varint

from rocketqa_paddle.checkpoints.formats.variable import read_variable, write_variable


def floats(shapes: st.SearchStrategy[tuple[int, ...]], *dtypes: str) -> st.SearchStrategy[np.ndarray]:
    numbers = {"allow_nan": False, "allow_infinity": False}
    return st.sampled_from(dtypes).flatmap(
        lambda dtype: arrays_of.arrays(
            dtype, shapes, elements=st.floats(width={"float16": 16}.get(dtype, 32), **numbers)
        )
    )


SHAPES = arrays_of.array_shapes(max_dims=4, max_side=200).filter(lambda shape: np.prod(shape) < 5000)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("variable") / "some_fc.w_0"


@given(
    array=floats(SHAPES, "float16", "float32", "float64"),
    levels=st.lists(st.binary(max_size=40), max_size=3),
    packed=st.booleans(),
)
def test_any_variable_is_read(file, array, levels, packed):
    file.write_bytes(lod_tensor(array, levels, packed))
    found = read_variable(file)
    assert found.dtype == np.float32 and found.shape == array.shape
    np.testing.assert_array_equal(found, array.astype(np.float32))


@given(array=floats(SHAPES, "float32"), transposed=st.booleans())
def test_any_variable_is_written_as_the_toolkit_does(file, array, transposed):
    array = array.T if transposed else array
    write_variable(file, array)
    assert file.read_bytes() == lod_tensor(np.ascontiguousarray(array))
    found = paddle.load(str(file)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(read_variable(file), array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (130,), (3, 5), (300, 2), (2, 3, 4)], ids=str)
def test_what_paddle_writes_is_read(file, dtype, shape):
    array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    paddle.save(paddle.to_tensor(array), str(file), use_binary_format=True)
    assert file.read_bytes() == lod_tensor(array)  # and so the writer of these tests is right
    np.testing.assert_array_equal(read_variable(file), array.astype(np.float32))


def test_special_numbers_come_back(file):
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4028235e38], np.float32)
    write_variable(file, array)
    assert read_variable(file).tobytes() == array.tobytes()


def refused(file: Path) -> AbstractContextManager:
    return pytest.raises(ValueError, match=rf"{file.name}: not a whole LoDTensor")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("levels", [(), (b"\0" * 16, b"\1" * 8)], ids=["", "levels"])
def test_a_file_cut_off_anywhere_is_refused(file, levels, packed):
    whole = lod_tensor(np.arange(6, dtype=np.float32).reshape(2, 3), levels, packed)
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with refused(file):
            read_variable(file)
    file.write_bytes(whole + b"\0")
    with refused(file):
        read_variable(file)
    file.write_bytes(whole)
    assert read_variable(file).shape == (2, 3)


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "uint8"])
def test_variables_that_are_no_floating_point_numbers_are_refused(file, dtype):
    paddle.save(paddle.ones([2, 3]).astype(dtype), str(file), use_binary_format=True)
    assert file.read_bytes() == lod_tensor(np.ones((2, 3), dtype))
    with refused(file):
        read_variable(file)


HEAD = struct.pack("<IQ", 0, 0)
BROKEN = {
    "a later version": struct.pack("<IQIi", 1, 0, 0, 4) + b"\x08\x05\x10\x01" + b"\0" * 4,
    "a later version of the tensor": struct.pack("<IQIi", 0, 0, 1, 4) + b"\x08\x05\x10\x01" + b"\0" * 4,
    "a negative description": struct.pack("<IQIi", 0, 0, 0, -4) + b"\x08\x05\x10\x01" + b"\0" * 4,
    "a huge description": HEAD + struct.pack("<Ii", 0, 2**31 - 1) + b"\x08\x05",
    "no end of levels": struct.pack("<IQ", 0, 2**64 - 1) + b"\0" * 4000,
    "a huge level": struct.pack("<IQQ", 0, 1, 2**64 - 1) + b"\0" * 40,
    "no data type": framed(b"\x10\x01", b"\0" * 4),
    "an unknown data type": framed(described(77, [1]), b"\0" * 4),
    "a huge shape": framed(described(5, [2**40, 2**40]), b"\0" * 40),
    "a large shape": framed(described(5, [2**31]), b"\0" * 40),
    "a negative shape": framed(described(5, [2**64 - 1]), b"\0" * 4),
    "two negative sizes": framed(described(5, [2**64 - 1, 2**64 - 1]), b"\0" * 4),
    "nothing of huge size": framed(described(5, [0, 2**64 - 1]), b""),
    "a hundred dimensions": framed(described(5, [1] * 100), b"\0" * 4),
    "an unknown field": framed(described(5, [1]) + b"\x18\x01", b"\0" * 4),
    "a size that does not end": framed(b"\x08\x05\x10\x81", b"\0" * 4),
    "a packed shape longer than itself": framed(b"\x08\x05\x12\x7f\x01", b"\0" * 4),
    "text": b"a passage\twith a tab\n" * 20,
    "an array of NumPy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }\n",
    "zeros": b"\0" * 4096,
    "ones": b"\xff" * 4096,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_takes_no_memory(file, name):
    file.write_bytes(BROKEN[name])
    tracemalloc.start()
    try:
        with refused(file):
            read_variable(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "description",
    [b"\x08" + b"\xff" * 280_000, b"\x08\x05" + (b"\x10" + varint(2**63 - 1)) * 26_000],
    ids=["one number without end", "sizes without end"],
)
def test_a_long_broken_description_takes_no_time(file, description):
    file.write_bytes(framed(description, b""))
    start = time.process_time()
    with refused(file):
        read_variable(file)
    assert time.process_time() - start < 0.3


@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_with_the_files_name(file, content):
    for data in (content, HEAD + content, HEAD + struct.pack("<Ii", 0, len(content)) + content):
        file.write_bytes(data)
        try:
            assert read_variable(file).nbytes <= 2 * len(data)
        except ValueError as error:
            assert str(error).startswith(f"{file}: ")


@given(index=st.integers(0, 200), byte=st.integers(0, 255), size=st.integers(1, 200), packed=st.booleans())
def test_a_damaged_byte_is_refused_or_changes_numbers(file, index, byte, size, packed):
    data = bytearray(lod_tensor(np.ones((2, size), np.float32), [b"\0" * 8], packed))
    data[index % len(data)] = byte
    file.write_bytes(data)
    try:
        assert read_variable(file).nbytes <= 2 * len(data)
    except ValueError as error:
        assert str(error).startswith(f"{file}: ")
