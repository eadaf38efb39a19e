"""Dynamic batching: one queue of rows that wait, and one thread that computes them in batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from rocketqa_paddle.serve.metrics import Metrics

Row, Output = TypeVar("Row", contravariant=True), TypeVar("Output", covariant=True)


class Operation(Protocol[Row, Output]):
    """Something that is computed for many rows at once. Rows of equal operations share a batch."""

    budget: int
    """The cost of a batch, which a single row may exceed."""

    def cost(self, row: Row) -> int:
        """What a row costs, such as its tokens."""
        ...

    def compute(self, rows: list[Row]) -> Sequence[Output]:
        """Return a result for every row."""
        ...


@dataclass(frozen=True)
class Computed(Generic[Output]):
    """The results of a job, and what it took."""

    results: list[Output]
    waited: float
    """Seconds until the first batch with a row of the job began."""
    computed: float
    """Seconds of all batches with rows of the job."""


@dataclass(eq=False)
class _Job:
    """Some rows that one request waits for."""

    operation: Operation[Any, Any]
    rows: Sequence[Any]
    future: Future[Computed[Any]] = field(default_factory=Future)
    queued: float = field(default_factory=time.perf_counter)
    taken: int = 0
    waited: float = 0.0
    computed: float = 0.0
    results: list[Any] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it, and nothing has gone wrong."""
        return not self.future.done()


class _Batch:
    """Rows that are computed together."""

    def __init__(self, operation: Operation[Any, Any]) -> None:
        self._operation, self._parts, self._is_full = operation, [], False
        self.size, self.cost = 0, 0

    def take(self, job: _Job) -> bool:
        """Take as many rows of a job as fit; return whether there were any."""
        if self._is_full or job.operation != self._operation:
            return False
        start = job.taken
        while job.taken < len(job.rows):
            cost = self._operation.cost(job.rows[job.taken])
            if self.size and self.cost + cost > self._operation.budget:
                self._is_full = True  # also for the shorter rows of those who came later
                break
            job.taken, self.size, self.cost = job.taken + 1, self.size + 1, self.cost + cost
        if job.taken > start:
            self._parts.append((job, job.rows[start : job.taken]))
        return job.taken > start

    def compute(self) -> None:
        """Compute the rows, and end the jobs that have all their results."""
        began = time.perf_counter()
        try:
            results = self._operation.compute([row for _, rows in self._parts for row in rows])
        except BaseException as error:  # the requests tell of it, and the thread goes on
            for job, _ in self._parts:
                _settle(job.future, error=error)
            return
        took, start = time.perf_counter() - began, 0
        for job, rows in self._parts:
            job.waited = job.waited or began - job.queued
            job.computed += took
            job.results += list(results[start : start + len(rows)])
            start += len(rows)
            if len(job.results) == len(job.rows):
                _settle(job.future, Computed(job.results, job.waited, job.computed))


class Closed(RuntimeError):
    """Nothing is computed any more."""


class Batcher:
    """Computes jobs in the order in which they come, with as many others as fit into a batch.

    A job that is larger than a batch takes part in several, and lets the others in between: after each it
    stands at the end of the queue. A job whose future is cancelled is dropped.

    Args:
        metrics: what is told of the queue and of the batches.
        around: makes the context in which the thread computes, such as the device. What it raises is raised
            for all jobs.
    """

    def __init__(
        self, metrics: Metrics, around: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        self._metrics, self._around = metrics, around
        self._jobs: deque[_Job] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="rocketqa batches", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[Row, Output], rows: Sequence[Row]) -> Future[Computed[Output]]:
        """Queue some rows. What the operation raises for a batch is raised for all jobs that have part in it.

        Raises:
            Closed: the batcher was closed, or its context failed.
        """
        job = _Job(operation, rows)
        if not rows:
            job.future.set_result(Computed([], 0.0, 0.0))
            return job.future
        with self._changed:
            if self._closed:
                raise Closed("the queue is closed")
            self._jobs.append(job)
            self._metrics.queue_size.set(len(self._jobs))
            self._changed.notify()
        return job.future

    def is_alive(self) -> bool:
        """Whether jobs are being computed."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Compute what is in the queue, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            with self._around():
                while batch := self._next_batch():
                    batch.compute()
        except BaseException as error:  # of the context: nothing can be computed
            with self._changed:
                self._closed = True
                for job in self._jobs:
                    _settle(job.future, error=error)

    def _next_batch(self) -> _Batch | None:
        """Wait for jobs, and take the rows of a batch; None once the batcher is closed and empty."""
        with self._changed:
            while True:
                self._drop_unwanted()
                if self._jobs:
                    return self._take()
                if self._closed:
                    return None
                self._changed.wait()

    def _drop_unwanted(self) -> None:
        self._jobs = deque(job for job in self._jobs if job.is_wanted)
        self._metrics.queue_size.set(len(self._jobs))

    def _take(self) -> _Batch:
        """Take rows of the first job's operation from the queue until a batch is full."""
        batch, waiting, begun = _Batch(self._jobs[0].operation), [], []
        for job in self._jobs:
            took = batch.take(job)
            if job.taken < len(job.rows):
                (begun if took else waiting).append(job)
        self._jobs = deque([*waiting, *begun])
        self._metrics.batch(batch.size, batch.cost, waiting=len(self._jobs))
        return batch


def _settle(
    future: Future[Computed[Any]], result: Computed[Any] | None = None, error: BaseException | None = None
) -> None:
    """End a future, unless it was cancelled in the meantime."""
    try:
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)
    except InvalidStateError:
        pass
