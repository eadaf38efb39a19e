"""Losses that contrast every example of a batch with all the others, whichever rank has them.

`Contrastive` is such a loss, `in_batch` that of RocketQA and PAIR, and `false_negatives` tells which passages
of a batch are no negatives of which query.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import paddle
from paddle import Tensor

from rocketqa_paddle import losses
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import passage_vectors, query_vectors
from rocketqa_paddle.records import Content, Group, digest
from rocketqa_paddle.runtime import distributed

Example = TypeVar("Example")
Vectors = Sequence[Tensor]


@dataclass(frozen=True)
class Contrastive(Generic[Example]):
    """A loss of the vectors of a whole batch: the examples of this rank → named scalars.

    The mean over ranks of the gradients of `loss` is the gradient of the loss of the whole batch.

    Args:
        encode: examples → tensors of vectors, with gradient. The rows of each tensor are in the order of the
            examples, and every example has the same number of rows.
        loss: the tensors of `encode`, then those of `constants` → named scalars; `loss` is minimised.
        cross_batch: whether `loss` is given the rows of all ranks, not only of its own.
        constants: examples → tensors without gradient that the loss needs beside the vectors, such as the
            scores of a teacher (`Group.scores`). Their rows are as those of `encode`.
        mask: examples of this rank → which contrasts of the whole batch `loss` is to leave out. It is handed
            to `loss` as the keyword `mask`.
    """

    encode: Callable[[Sequence[Example]], Vectors]
    loss: Callable[..., Mapping[str, Tensor]]
    cross_batch: bool = True
    constants: Callable[[Sequence[Example]], Vectors] = lambda examples: ()
    mask: Callable[[Sequence[Example]], Tensor] | None = None

    def __call__(self, batch: Sequence[Example]) -> Mapping[str, Tensor]:
        """Compute the loss. Every rank gives as many examples. Half precision ends with the vectors."""
        vectors = self.encode(batch)
        with paddle.amp.auto_cast(enable=False):
            constants = self.constants(batch)
            masked = {"mask": self.mask(batch)} if self.mask else {}
            if self.cross_batch:
                vectors, constants = ([*map(distributed.gather_rows, part)] for part in (vectors, constants))
            return self.loss(*vectors, *constants, **masked)


def in_batch(
    retriever: Checkpoint,
    alpha: float = 0.0,
    *,
    cross_batch: bool = True,
    drop_false_negatives: bool = True,
) -> Contrastive[Group]:
    """Contrast every query with the passages of all queries: in-batch and cross-batch negatives.

    RocketQA (Qu et al., NAACL 2021), section 3.1. `alpha` is the weight of PAIR's passage-centric loss; if it
    is above 0, the groups need negatives. `cross_batch` contrasts with the passages of all ranks.
    `drop_false_negatives` leaves out the contrasts that `false_negatives` names, and the scalar `masked` says
    how many. The released code contrasts a query with whatever is in the batch.
    """

    def encode(groups: Sequence[Group]) -> Vectors:
        count = len(groups)
        positives = [group.passages[0] for group in groups]
        negatives = [passage for group in groups for passage in group.passages[1:]]
        passages = passage_vectors(retriever, [*positives, *negatives])
        parts = (passages[:count], passages[count:]) if negatives else (passages,)
        return (query_vectors(retriever, groups), *parts)

    def loss(
        query: Tensor, positive: Tensor, negative: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        masked = {} if mask is None else {"masked": mask.sum()}
        if not alpha:
            return {"loss": losses.in_batch(query, positive, negative, mask), **masked}
        temperature = retriever.network.temperature
        pair = losses.pair(query, positive, negative, alpha, temperature=temperature, mask=mask)
        return {"loss": pair, **masked}

    mask = partial(false_negatives, cross_batch=cross_batch) if drop_false_negatives else None
    return Contrastive(encode, loss, cross_batch, mask=mask)


def false_negatives(groups: Sequence[Group], *, cross_batch: bool = True) -> Tensor:
    """Tell which passages of the batch are known to be no negatives of which query: bool `[n, n + m]`.

    By their content, as in `records.FalseNegatives`, those are the query's positives, in whichever group of
    the batch they stand, and the query itself. The rows are the queries and the columns the passages of all
    ranks, or without `cross_batch` of this one, in the order of `in_batch`: the positives, then the
    negatives. The own positive of a query is no false negative.
    """
    contents = [_content(group) for group in groups]
    if cross_batch:
        contents = [content for rank in distributed.gather(contents) for content in rank]
    columns = [content.passages[0] for content in contents]
    columns += [passage for content in contents for passage in content.passages[1:]]
    wholes, texts, positives = defaultdict(list), defaultdict(list), defaultdict(set)
    for column, (whole, text) in enumerate(columns):
        wholes[whole].append(column)
        texts[text].append(column)
    for content in contents:
        positives[content.query].update(content.positives)
    mask = np.zeros((len(contents), len(columns)), dtype=bool)
    for row, content in enumerate(contents):
        for key in {content.query} | positives[content.query]:
            mask[row, wholes[key]] = True
        mask[row, texts[content.query]] = True
        mask[row, row] = False
    return paddle.to_tensor(mask)


class _GroupContent(NamedTuple):
    """What a group says, as digests, which are short and equal on all ranks."""

    query: int
    positives: list[int]
    passages: list[Content]


def _content(group: Group) -> _GroupContent:
    positives = [Content.of(passage).whole for passage in (group.passages[0], *group.other_positives)]
    return _GroupContent(
        digest(group.query.key), positives, [Content.of(passage) for passage in group.passages]
    )
