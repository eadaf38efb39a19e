"""The queue: what is computed together, in which order, and what becomes of jobs that fail or are dropped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import pytest

from rocketqa_paddle.serve.batching import Batcher
from rocketqa_paddle.serve.metrics import Metrics

BUDGET = 10


class Doubling:
    """Doubles numbers, each of which costs itself, and keeps the batches. It waits for `gate` before each."""

    budget = BUDGET

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Semaphore(0)
        self.began = threading.Semaphore(0)

    def cost(self, row: int) -> int:
        return row

    def compute(self, rows: list[int]) -> list[int]:
        self.began.release()
        assert self.gate.acquire(timeout=20)
        self.batches.append(rows)
        if 13 in rows:
            raise ValueError("13")
        return [2 * row for row in rows]

    def go(self, batches: int = 1000) -> None:
        self.gate.release(batches)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def batcher(metrics: Metrics) -> Iterator[Batcher]:
    made = Batcher(metrics)
    yield made
    made.close()


def occupied(batcher: Batcher, operation: Doubling) -> None:
    """Let the thread compute something, so that what is queued next waits."""
    batcher.submit(operation, [1])
    assert operation.began.acquire(timeout=20)


def test_jobs_that_wait_are_computed_together_within_the_budget(batcher: Batcher) -> None:
    double = Doubling()
    occupied(batcher, double)
    jobs = [batcher.submit(double, rows) for rows in ([2, 3], [4], [5], [1])]
    double.go()
    assert [job.result(20).results for job in jobs] == [[4, 6], [8], [10], [2]]
    # 5 does not fit, and 1, which would, does not pass it
    assert double.batches == [[1], [2, 3, 4], [5, 1]]


def test_a_job_larger_than_a_batch_is_split_and_lets_others_in_between(batcher: Batcher) -> None:
    double = Doubling()
    occupied(batcher, double)
    large, small = batcher.submit(double, [4] * 6), batcher.submit(double, [7])
    double.go()
    assert large.result(20).results == [8] * 6
    assert small.result(20).results == [14]
    assert double.batches == [[1], [4, 4], [7], [4, 4], [4, 4]]


def test_a_row_beyond_the_budget_is_a_batch_of_its_own(batcher: Batcher) -> None:
    double = Doubling()
    double.go()
    assert batcher.submit(double, [3 * BUDGET, 1]).result(20).results == [6 * BUDGET, 2]
    assert double.batches == [[3 * BUDGET], [1]]


def test_operations_do_not_share_a_batch(batcher: Batcher) -> None:
    first, second = Doubling(), Doubling()
    occupied(batcher, first)
    jobs = [batcher.submit(operation, [1]) for operation in (first, second, first)]
    first.go()
    second.go()
    assert [job.result(20).results for job in jobs] == [[2]] * 3
    assert (first.batches, second.batches) == ([[1], [1, 1]], [[1]])


def test_an_error_is_that_of_every_job_in_the_batch_and_of_no_other(batcher: Batcher) -> None:
    double = Doubling()
    occupied(batcher, double)
    wrong, beside, after = (batcher.submit(double, rows) for rows in ([13], [20], [8]))
    double.go()
    with pytest.raises(ValueError, match="13"):
        wrong.result(20)
    assert beside.result(20).results == [40]
    assert after.result(20).results == [16]
    assert batcher.is_alive()


def test_a_cancelled_job_is_dropped(batcher: Batcher) -> None:
    double = Doubling()
    occupied(batcher, double)
    unwanted, wanted = batcher.submit(double, [2]), batcher.submit(double, [3])
    assert unwanted.cancel()
    double.go()
    assert wanted.result(20).results == [6]
    with pytest.raises(CancelledError):
        unwanted.result(20)
    assert double.batches == [[1], [3]]


def test_the_size_of_the_queue_goes_back_when_its_last_job_is_cancelled(
    batcher: Batcher, metrics: Metrics
) -> None:
    double = Doubling()
    occupied(batcher, double)
    assert batcher.submit(double, [2]).cancel()
    assert b"te_queue_size 1.0" in metrics.exposition()
    double.go()
    batcher.close()
    assert b"te_queue_size 0.0" in metrics.exposition()


def test_a_job_cancelled_between_two_of_its_batches_is_dropped(batcher: Batcher) -> None:
    double = Doubling()
    large = batcher.submit(double, [6, 6, 6])
    assert double.began.acquire(timeout=20)
    assert large.cancel()
    double.go()
    assert batcher.submit(double, [1]).result(20).results == [2]
    assert double.batches == [[6], [1]]


def test_closing_computes_what_waits_and_takes_no_more(metrics: Metrics) -> None:
    batcher, double = Batcher(metrics), Doubling()
    jobs = [batcher.submit(double, [row]) for row in (9, 8, 7)]
    double.go()
    batcher.close()
    assert [job.result(0).results for job in jobs] == [[18], [16], [14]]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(double, [1])


def test_a_context_that_fails_is_the_error_of_every_job(metrics: Metrics) -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        assert queued.wait(20)
        raise ValueError("no such device")
        yield

    queued = threading.Event()
    batcher = Batcher(metrics, broken)
    jobs = [batcher.submit(Doubling(), [1]) for _ in range(2)]
    queued.set()
    for job in jobs:
        with pytest.raises(ValueError, match="no such device"):
            job.result(20)
    batcher.close()
    assert not batcher.is_alive()


def test_no_rows_take_no_batch(batcher: Batcher) -> None:
    assert batcher.submit(Doubling(), []).result(0).results == []
