"""The order of examples: passes, batches without repetition, and what decides them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.training.order import seed_of, shuffled


def batches(count: int, batch_size: int, steps: int, *seed: object) -> list[list[int]]:
    sampler = shuffled(range(count), batch_size, seed)
    return [sampler(step) for step in range(steps)]


def passes(stream: list[int], count: int) -> list[list[int]]:
    return [stream[start : start + count] for start in range(0, len(stream) - count + 1, count)]


@given(count=st.integers(1, 25), batch_size=st.integers(1, 9), seed=st.integers(0, 3))
def test_each_pass_covers_every_example_once(count, batch_size, seed):
    drawn = batches(count, batch_size, 30, seed)
    whole = passes(sum(drawn, []), count)
    assert all(sorted(one) == list(range(count)) for one in whole)
    if count > 8 and len(whole) > 1:
        assert whole[0] != whole[1]
    sampler = shuffled(range(count), batch_size, (seed,))
    assert sampler(29) == drawn[29]  # a function of the step alone, not of those before
    assert sampler(0) == drawn[0]


@pytest.mark.parametrize("batch_size", [4, 7, 16, 29, 30])
def test_no_batch_has_an_example_twice_and_every_pass_has_all(batch_size):
    drawn = batches(30, batch_size, 60)
    assert all(len(set(batch)) == batch_size for batch in drawn)
    assert all(sorted(one) == list(range(30)) for one in passes(sum(drawn, []), 30))
    sampler = shuffled(range(30), batch_size, ())
    assert [sampler(step) for step in (59, 1, 7)] == [drawn[59], drawn[1], drawn[7]]  # in any order


def test_every_part_of_the_seed_shuffles_in_its_own_way():
    orders = [batches(30, 4, 3, *seed) for seed in ((1, "a"), (2, "a"), (1, "b"), (1, "a"))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_seed_is_the_same_in_every_process():
    assert seed_of(1, "step", 0) == 1282092944
    assert len({seed_of(1, "step", number) for number in range(100)}) == 100
