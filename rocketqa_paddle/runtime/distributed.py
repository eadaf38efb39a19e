"""All that concerns ranks. Every function does the obvious thing when there is one process."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.autograd import PyLayer

from rocketqa_paddle.runtime import meeting
from rocketqa_paddle.runtime.meeting import LostRank

T = TypeVar("T")
_BUCKET = 64 << 20  # bytes of gradient that one all-reduce carries
_TRANSPORT = re.compile(r"gloo|nccl|tcp_utils|tcp_store", re.IGNORECASE)  # as their errors name themselves


def init(use_cuda: bool = False, timeout_minutes: float = 30.0) -> None:
    """Join the other processes that `fleetrun` started, if it did: by NCCL on GPUs, by gloo on CPUs.

    One group is all that data parallelism needs. `fleet.init` would make one for every kind of parallelism,
    which now and then fails under gloo from four processes on. From now on, every function here that ranks
    call together raises `LostRank` where one has ended or lets the others wait longer than `timeout_minutes`.
    """
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1 and not dist.is_initialized():
        if not use_cuda:
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        dist.init_parallel_env()
        meeting.begin(rank(), world_size(), timeout_minutes, gather)


def told_of_lost_ranks(error: RuntimeError) -> str | None:
    """A sentence on which rank is lost, if an error comes from that; else None."""
    if not isinstance(error, LostRank):
        if world_size() == 1 or not _TRANSPORT.search(str(error)):
            return None
        try:
            meeting.wait_for_all()  # the transport does not say who
        except LostRank as lost:
            error = lost
        else:
            return None
    return f"{error}, so rank {rank()} ends as well"


def rank() -> int:
    """Return the number of this process, which is 0 for the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_gpu() -> int:
    """Return the number of the GPU that the launcher gave this process."""
    return int(os.environ.get("FLAGS_selected_gpus", "0").split(",")[0])  # noqa: SIM112


def is_main() -> bool:
    """Tell whether this process is rank 0."""
    return rank() == 0


def say(text: str) -> None:
    """Tell the user something, once for all ranks."""
    if is_main():
        print(text, flush=True)


def barrier() -> None:
    """Wait for every rank."""
    meeting.wait_for_all()


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return this rank's contiguous part; parts differ by one item at most and join up in rank order."""
    bounds = np.linspace(0, len(items), world_size() + 1).astype(int)
    return items[bounds[rank()] : bounds[rank() + 1]]


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order. A value may be anything that can be pickled."""
    if world_size() == 1:
        return [value]
    meeting.wait_for_all()
    values: list[Any] = []
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order: `[ranks * rows, ...]`, with gradient.

    Every rank gives as many rows, and all must compute the same loss of all rows. The gradient of this rank's
    rows is the sum of what all ranks have for them, so the mean over ranks of the gradients of parameters is
    that of the loss.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows)


class _GatherRows(PyLayer):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        meeting.wait_for_all()
        parts: list[Tensor] = []
        dist.all_gather(parts, rows.contiguous())
        return paddle.concat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.split(world_size())[rank()] * world_size()


def any_rank(flag: bool) -> bool:
    """Tell whether the flag of any rank is true."""
    if world_size() == 1:
        return flag
    meeting.wait_for_all()
    answer = paddle.to_tensor([int(flag)])
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer)


def average_gradients(parameters: Iterable[paddle.Tensor]) -> None:
    """Replace every gradient by its mean over ranks, once a step, after all backward passes.

    A parameter without gradient on this rank counts as zero, because another rank may have one.
    """
    if world_size() == 1:
        return
    meeting.wait_for_all()
    bucket, size = [], 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.grad.size * parameter.grad.element_size()
        if size >= _BUCKET:
            _average(bucket)
            bucket, size = [], 0
    if bucket:
        _average(bucket)


def _average(gradients: list[Tensor]) -> None:
    with paddle.no_grad():
        flat = paddle.concat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world_size()
        for gradient, part in zip(gradients, flat.split([g.size for g in gradients]), strict=True):
            paddle.assign(part.reshape(gradient.shape), gradient)


def broadcast_parameters(parameters: Iterable[Tensor]) -> None:
    """Give every rank the parameters of rank 0."""
    if world_size() > 1:
        meeting.wait_for_all()
        for parameter in parameters:
            dist.broadcast(parameter, src=0)


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 run the block before the others do, so that they find the files it made."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()
