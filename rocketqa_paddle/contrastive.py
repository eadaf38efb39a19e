"""Losses that contrast every example of a batch with all the others, whichever rank has them.

`Contrastive` says what such a loss is made of, `in_batch` is the loss of RocketQA and PAIR, `false_negatives`
tells which passages of a batch are no negatives of which query, and `backward` computes the gradient over all
ranks with the memory of one chunk (GradCache).
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import paddle
from paddle import Tensor

from rocketqa_paddle import losses
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import passage_vectors, query_vectors
from rocketqa_paddle.records import Group
from rocketqa_paddle.runtime import distributed

Example = TypeVar("Example")
Vectors = Sequence[Tensor]
Encode = Callable[[int, Sequence[Example]], Vectors]


@dataclass(frozen=True)
class Contrastive(Generic[Example]):
    """A loss of the vectors of a whole batch.

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


class _Content(NamedTuple):
    """What a group says, as digests, which are short and equal on all ranks."""

    query: bytes
    positives: list[bytes]
    passages: list[tuple[bytes, bytes]]
    """Title and text, and the text alone."""


def _content(group: Group) -> _Content:
    positives = [_digest(passage.key) for passage in (group.passages[0], *group.other_positives)]
    passages = [(_digest(passage.key), _digest(passage.text_key)) for passage in group.passages]
    return _Content(_digest(group.query.key), positives, passages)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def backward(
    contrast: Contrastive[Example],
    chunks: Sequence[Sequence[Example]],
    encode: Encode,
    scaled: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Compute the gradient of the loss over the batches of all ranks, with the memory of one chunk.

    GradCache (Gao et al., RepL4NLP 2021): encode the chunks without a graph, compute the gradient of the loss
    with respect to the vectors, then encode every chunk again and carry the gradient on to the parameters.

    The `chunks` are this rank's batch in parts of equal size. `encode` turns the number of a chunk and the
    chunk into vectors; it must return the same ones both times, so it must seed the dropout. `scaled`
    multiplies a loss by the loss scale in fp16. The named scalars of the loss are returned.
    """
    batch = [example for chunk in chunks for example in chunk]
    constants = contrast.constants(batch)
    if contrast.mask:
        contrast = replace(contrast, loss=partial(contrast.loss, mask=contrast.mask(batch)))
    if len(chunks) == 1:
        return _backward_to_vectors(contrast, encode(0, chunks[0]), constants, scaled)
    vectors = _encode_without_graph(chunks, encode)
    values = _backward_to_vectors(contrast, vectors, constants, scaled)
    gradients = [tensor.grad.split(len(chunks)) for tensor in vectors]
    for number, chunk in enumerate(chunks):
        again = encode(number, chunk)
        paddle.autograd.backward(list(again), [gradient[number] for gradient in gradients])
    return values


def _encode_without_graph(chunks: Sequence[Sequence[Example]], encode: Encode) -> Vectors:
    with paddle.no_grad():
        encoded = [encode(number, chunk) for number, chunk in enumerate(chunks)]
    vectors = [paddle.concat(tensors) for tensors in zip(*encoded, strict=True)]
    for tensor in vectors:
        tensor.stop_gradient = False
    return vectors


def _backward_to_vectors(
    contrast: Contrastive, vectors: Vectors, constants: Vectors, scaled: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Compute the loss of the vectors of all ranks on every rank, and its gradient for this rank's vectors.

    The gradients of the ranks add up to that of the whole loss. The optimizer takes their mean instead of
    their sum, hence the factor.
    """
    factor = 1
    if contrast.cross_batch:
        vectors, constants = ([*map(distributed.gather_rows, part)] for part in (vectors, constants))
        factor = distributed.world_size()
    values = contrast.loss(*vectors, *constants)
    scaled(values["loss"] * factor).backward()
    return {name: float(value) for name, value in values.items()}
