"""Padding to tensors, and rows to buckets of like length."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.networks.batching import collate, length_buckets, token_buckets
from rocketqa_paddle.networks.tokenization import Packed

packed = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1)), min_size=1, max_size=9).map(
        lambda pairs: Packed([i for i, _ in pairs], [t for _, t in pairs])
    ),
    min_size=1,
    max_size=6,
)


@given(packed)
def test_collate_pads_every_row_to_the_longest(sequences):
    batch = collate(sequences, pad_id=77)
    longest = max(len(sequence.token_ids) for sequence in sequences)
    assert batch.token_ids.shape == batch.type_ids.shape == [len(sequences), longest]
    assert batch.token_ids.dtype == batch.type_ids.dtype
    assert str(batch.token_ids.dtype).endswith("int64")
    for row, sequence in enumerate(sequences):
        size = len(sequence.token_ids)
        padding = longest - size
        assert batch.token_ids[row].tolist() == sequence.token_ids + [77] * padding
        assert batch.type_ids[row].tolist() == sequence.type_ids + [0] * padding
        if batch.mask is not None:
            assert batch.mask[row].tolist() == [True] * size + [False] * padding
    assert (batch.mask is None) == all(len(s.token_ids) == longest for s in sequences)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_buckets_hold_every_row_once_the_longest_first(lengths, max_rows):
    buckets = [rows.tolist() for rows in length_buckets(lengths, max_rows)]
    assert sorted(row for rows in buckets for row in rows) == list(range(len(lengths)))
    longest_first = [lengths[row] for rows in buckets for row in rows]
    assert longest_first == sorted(lengths, reverse=True)
    assert all(len(rows) == max_rows for rows in buckets[:-1])


def test_buckets_of_nothing_are_none():
    assert list(length_buckets([], 4)) == []


@pytest.mark.parametrize("max_tokens", [1, 8, 24, 1000])
def test_buckets_of_tokens_hold_every_row_once_and_no_more_than_asked_for(max_tokens):
    lengths = [3, 9, 5, 9, 2, 2, 1, 7]
    buckets = [rows.tolist() for rows in token_buckets(lengths, max_tokens)]
    assert sorted(row for rows in buckets for row in rows) == list(range(8))
    assert [lengths[row] for rows in buckets for row in rows] == sorted(lengths, reverse=True)
    for rows in buckets:
        assert len(rows) == 1 or len(rows) * lengths[rows[0]] <= max_tokens
    assert list(token_buckets([], 4)) == []


def test_buckets_are_row_numbers_of_numpy():
    (rows,) = length_buckets([3, 9, 5], 4)
    assert isinstance(rows, np.ndarray)
    assert rows.tolist() == [1, 2, 0]


@pytest.mark.parametrize("max_rows", [0, -1])
def test_buckets_of_no_rows_are_refused(max_rows):
    with pytest.raises((AssertionError, ValueError)):
        list(islice(length_buckets([3, 9, 5], max_rows), 9))
