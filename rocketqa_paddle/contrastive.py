"""Losses in which every example of a batch, on whatever rank, is contrasted with all the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from paddle import Tensor

from rocketqa_paddle import losses
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import passage_vectors, query_vectors
from rocketqa_paddle.records import Group

Example = TypeVar("Example")


@dataclass(frozen=True)
class Contrastive(Generic[Example]):
    """A loss of the vectors of a whole batch, which the trainer gathers from its parts and all ranks.

    Args:
        encode: examples → vectors, tensors whose rows are in the examples' order and as many for each.
        loss: these tensors, of all ranks → named scalars.
        cross_batch: whether they are of all ranks; else each rank takes the loss of its own.
    """

    encode: Callable[[Sequence[Example]], Sequence[Tensor]]
    loss: Callable[..., Mapping[str, Tensor]]
    cross_batch: bool = True


def in_batch(retriever: Checkpoint, alpha: float = 0.0, *, cross_batch: bool = True) -> Contrastive[Group]:
    """Every query against the passages of all queries: in-batch and cross-batch negatives.

    RocketQA (Qu et al., NAACL 2021), section 3.1.

    Args:
        retriever: the dual encoder to train.
        alpha: weight of PAIR's passage-centric part; the groups then need negatives.
        cross_batch: contrast with the passages of all processes, not of this one alone.
    """

    def encode(groups: Sequence[Group]) -> Sequence[Tensor]:
        count = len(groups)
        positives = [group.passages[0] for group in groups]
        negatives = [passage for group in groups for passage in group.passages[1:]]
        passages = passage_vectors(retriever, [*positives, *negatives])
        parts = (passages[:count], passages[count:]) if negatives else (passages,)
        return (query_vectors(retriever, groups), *parts)

    def loss(*vectors: Tensor) -> dict[str, Tensor]:
        if not alpha:
            return {"loss": losses.in_batch(*vectors)}
        return {"loss": losses.pair(*vectors, alpha=alpha, temperature=retriever.network.temperature)}

    return Contrastive(encode, loss, cross_batch)
