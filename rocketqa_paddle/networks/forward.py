"""Groups in, score tensors with gradient out: what every system trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import paddle
from paddle import Tensor

from rocketqa_paddle.networks.batching import Batch, collate, length_buckets
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.tokenization import Packed
from rocketqa_paddle.records import Group, Passage
from rocketqa_paddle.runtime import device

_ROWS_A_PASS = 16  # fewer rows of like length waste less padding; more fill the machine better


def query_vectors(retriever: Checkpoint, groups: Sequence[Group]) -> Tensor:
    """Vectors `[groups, hidden]`: every group's query, encoded once."""
    packed = retriever.tokenizer.pack_queries(
        [group.query.text for group in groups], retriever.lengths["query"]
    )
    return _forward(retriever, retriever.network.encode_queries, packed)


def passage_vectors(retriever: Checkpoint, passages: Sequence[Passage]) -> Tensor:
    """Vectors `[passages, hidden]`."""
    titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
    packed = retriever.tokenizer.pack_passages(titles, texts, retriever.lengths["passage"])
    return _forward(retriever, retriever.network.encode_passages, packed)


def retriever_scores(retriever: Checkpoint, groups: Sequence[Group]) -> Tensor:
    """Inner products `[groups, group size]`."""
    _check_sizes(groups)
    queries = query_vectors(retriever, groups).unsqueeze(1)  # [groups, 1, hidden]
    passages = passage_vectors(retriever, [passage for group in groups for passage in group.passages])
    return (queries * passages.reshape([len(groups), -1, queries.shape[-1]])).sum(axis=-1)


def reranker_scores(reranker: Checkpoint, groups: Sequence[Group]) -> Tensor:
    """The cross encoder's scores `[groups, group size]`."""
    _check_sizes(groups)
    pairs = [
        (group.query.text, passage.title, passage.text) for group in groups for passage in group.passages
    ]
    queries, titles, texts = zip(*pairs, strict=True)
    packed = reranker.tokenizer.pack_pairs(queries, titles, texts, reranker.lengths["pair"])
    return _forward(reranker, reranker.network, packed).reshape([len(groups), -1])


def _check_sizes(groups: Sequence[Group]) -> None:
    sizes = {len(group.passages) for group in groups}
    if len(sizes) != 1:
        raise ValueError(f"groups of {sorted(sizes)} passages, expected one or more groups of one size")


def _forward(checkpoint: Checkpoint, network: Callable[[Batch], Tensor], packed: Sequence[Packed]) -> Tensor:
    """Run a network over sequences, one row each, in their order.

    On a CPU the rows are sorted into passes of like length: there padding costs as much as text. A
    GPU takes all rows at once.
    """
    pad_id = checkpoint.tokenizer.pad_id
    if device.gpu_id() is not None:
        return network(collate(packed, pad_id))
    passes = list(length_buckets([len(sequence.token_ids) for sequence in packed], _ROWS_A_PASS))
    outputs = paddle.concat([network(collate([packed[i] for i in rows], pad_id)) for rows in passes])
    back = [0] * len(packed)
    for position, row in enumerate(row for rows in passes for row in rows):
        back[row] = position
    return paddle.gather(outputs, paddle.to_tensor(back))
