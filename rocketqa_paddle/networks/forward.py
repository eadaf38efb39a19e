"""Forward passes: groups to tensors with gradient, for training; texts to arrays, for everything else."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer
from tqdm import tqdm

from rocketqa_paddle.networks import fused
from rocketqa_paddle.networks.batching import Batch, collate, length_buckets, token_buckets
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.ernie import unchanging
from rocketqa_paddle.networks.tokenization import Packed
from rocketqa_paddle.records import Group, Passage
from rocketqa_paddle.runtime import device, distributed

Texts = Sequence[str]
T, U = TypeVar("T"), TypeVar("U")
_TOKENISED = 16384  # rows tokenised together: many, to sort them by length, but not too many for memory
_TOKENISED_TOKENS = 1 << 20  # the most tokens that they may have; as many again are tokenised ahead
_WORTH_COMPILING = 2000  # rows that gain more by bf16 on a CPU than its compilation takes
_ROWS_A_PASS = 16  # fewer rows of similar length need less padding; more rows use the processor better
_CHUNKS: ContextVar[int] = ContextVar("chunks", default=1)


@contextmanager
def in_chunks(count: int) -> Iterator[None]:
    """Let the four functions below compute their texts in `count` chunks, with the memory of one chunk.

    A chunk has texts of similar length, and equally many; few texts make fewer chunks. The tensors and their
    gradients are those of a single chunk. Every chunk is computed once more in the backward pass, with the
    same dropout, so parameters must not change before that. This is GradCache (Gao et al., RepL4NLP 2021),
    for any loss.
    """
    token = _CHUNKS.set(count)
    try:
        yield
    finally:
        _CHUNKS.reset(token)


def query_vectors(retriever: Checkpoint, groups: Sequence[Group]) -> Tensor:
    """Encode the query of every group once: vectors `[groups, hidden]`, with gradient."""
    queries = [group.query.text for group in groups]
    packed = retriever.tokenizer.pack_queries(queries, retriever.lengths["query"])
    return _forward(retriever, retriever.network.encode_queries, packed)


def passage_vectors(retriever: Checkpoint, passages: Sequence[Passage]) -> Tensor:
    """Encode passages: vectors `[passages, hidden]`, with gradient."""
    packed = retriever.tokenizer.pack_passages(*_titles_and_texts(passages), retriever.lengths["passage"])
    return _forward(retriever, retriever.network.encode_passages, packed)


def retriever_scores(retriever: Checkpoint, groups: Sequence[Group]) -> Tensor:
    """Score every group by inner products: `[groups, group size]`, with gradient.

    Raises:
        ValueError: the groups differ in size.
    """
    _check_sizes(groups)
    queries = query_vectors(retriever, groups).unsqueeze(1)  # [groups, 1, hidden]
    passages = passage_vectors(retriever, [passage for group in groups for passage in group.passages])
    return (queries * passages.reshape([len(groups), -1, queries.shape[-1]])).sum(axis=-1)


def reranker_scores(reranker: Checkpoint, groups: Sequence[Group]) -> Tensor:
    """Score every group by a cross encoder: `[groups, group size]`, with gradient.

    Raises:
        ValueError: the groups differ in size.
    """
    _check_sizes(groups)
    pairs = ((group.query.text, p.title, p.text) for group in groups for p in group.passages)
    queries, titles, texts = zip(*pairs, strict=True)
    packed = reranker.tokenizer.pack_pairs(queries, titles, texts, reranker.lengths["pair"])
    return _forward(reranker, reranker.network, packed).reshape([len(groups), -1])


def _check_sizes(groups: Sequence[Group]) -> None:
    sizes = {len(group.passages) for group in groups}
    if len(sizes) != 1:
        raise ValueError(f"groups of {sorted(sizes)} passages, expected one or more groups of one size")


def _forward(checkpoint: Checkpoint, network: Callable[[Batch], Tensor], packed: Sequence[Packed]) -> Tensor:
    """Run a network over sequences, in chunks, and return a row for each, in their order."""
    compute, count = partial(_compute, checkpoint, network), _CHUNKS.get()
    if count == 1:
        return compute(packed)
    begin = paddle.zeros([1])  # takes the gradient in the place of the parameters
    begin.stop_gradient = all(parameter.stop_gradient for parameter in checkpoint.network.parameters())
    size = math.ceil(len(packed) / count)
    return _by_length(packed, size, lambda chunks: _Chunks.apply(begin, compute, chunks))


def _compute(checkpoint: Checkpoint, network: Callable[[Batch], Tensor], packed: Sequence[Packed]) -> Tensor:
    """Run a network over sequences and return a row for each, in their order.

    Where padding costs as much time as text, the sequences are sorted into passes of similar length. A GPU
    and the fused encoder take all of them in one pass.
    """
    pad_id = checkpoint.tokenizer.pad_id
    if device.gpu_id() is not None or fused.computes(checkpoint.network.parameters()[0]):
        return network(collate(packed, pad_id))

    def run(passes: Sequence[Sequence[Packed]]) -> Tensor:
        return paddle.concat([network(collate(sequences, pad_id)) for sequences in passes])

    return _by_length(packed, _ROWS_A_PASS, run)


def _by_length(packed: Sequence[Packed], size: int, run: Callable[[list[list[Packed]]], Tensor]) -> Tensor:
    """Run something over buckets of `size` sequences of similar length, and put its rows in order."""
    buckets = list(length_buckets([len(sequence.token_ids) for sequence in packed], size))
    rows = run([[packed[i] for i in bucket] for bucket in buckets])
    return paddle.gather(rows, paddle.to_tensor(np.argsort(np.concatenate(buckets))))


class _Chunks(PyLayer):
    """Computes chunks without a graph, and each of them with one once the gradient of its rows is known.

    The state of the random numbers before every chunk is kept, so that the dropout is the same both times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        begin: Tensor,
        compute: Callable[[Sequence[Packed]], Tensor],
        chunks: Sequence[Sequence[Packed]],
    ) -> Tensor:
        ctx.compute, ctx.chunks, ctx.precision, ctx.random = compute, chunks, device.precision(), []
        outputs = []
        for chunk in chunks:
            ctx.random.append(paddle.get_rng_state())
            outputs.append(compute(chunk))
        return paddle.concat(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        after, parts = paddle.get_rng_state(), gradient.split([len(chunk) for chunk in ctx.chunks])
        for chunk, before, part in zip(ctx.chunks, ctx.random, parts, strict=True):
            paddle.set_rng_state(before)
            with paddle.enable_grad(), device.arithmetic(ctx.precision):
                rows = ctx.compute(chunk)
            paddle.autograd.backward([rows], [part])
        paddle.set_rng_state(after)
        return paddle.zeros([1])


def encode_queries(
    checkpoint: Checkpoint, queries: Texts, *, batch_size: int = 64, progress: str = ""
) -> np.ndarray:
    """Encode queries: vectors `[queries, hidden]`, float32. `progress` is the title of a progress bar."""
    encode, pack = checkpoint.network.encode_queries, checkpoint.tokenizer.pack_queries
    return _infer(checkpoint, encode, pack, "query", [queries], batch_size, progress)


def encode_passages(
    checkpoint: Checkpoint, titles: Texts, texts: Texts, *, batch_size: int = 64, progress: str = ""
) -> np.ndarray:
    """Encode passages: vectors `[passages, hidden]`, float32. `progress` is the title of a progress bar."""
    encode, pack = checkpoint.network.encode_passages, checkpoint.tokenizer.pack_passages
    return _infer(checkpoint, encode, pack, "passage", [titles, texts], batch_size, progress)


def score_pairs(
    checkpoint: Checkpoint,
    queries: Texts,
    titles: Texts,
    texts: Texts,
    *,
    batch_size: int = 64,
    progress: str = "",
) -> np.ndarray:
    """Score pairs by a cross encoder: logits `[pairs]`, float32. `progress` is the title of a bar."""
    pack, columns = checkpoint.tokenizer.pack_pairs, [queries, titles, texts]
    return _infer(checkpoint, checkpoint.network, pack, "pair", columns, batch_size, progress)


def encode_parts(
    checkpoint: Checkpoint,
    parts: Iterable[Sequence[Passage]],
    count: int,
    *,
    batch_size: int = 64,
    progress: str = "",
) -> Iterator[np.ndarray]:
    """Encode a corpus in parts: yield `[part, hidden]`, float32.

    There are `count` passages in all. The next part is read and tokenised while one is computed.
    """
    encode, pack = checkpoint.network.encode_passages, checkpoint.tokenizer.pack_passages
    columns = map(_titles_and_texts, parts)
    return _infer_parts(checkpoint, encode, pack, "passage", columns, count, batch_size, progress)


def _titles_and_texts(passages: Sequence[Passage]) -> list[list[str]]:
    return [[passage.title for passage in passages], [passage.text for passage in passages]]


def score_parts(
    checkpoint: Checkpoint,
    parts: Iterable[Sequence[Texts]],
    count: int,
    *,
    batch_size: int = 64,
    progress: str = "",
) -> Iterator[np.ndarray]:
    """Score pairs in parts, each a list of queries, of titles and of texts: yield `[part, 1]`, float32.

    There are `count` pairs in all.
    """
    pack = checkpoint.tokenizer.pack_pairs
    return _infer_parts(checkpoint, checkpoint.network, pack, "pair", parts, count, batch_size, progress)


@contextmanager
def computing(
    checkpoint: Checkpoint, kind: str, max_tokens: int
) -> Iterator[Callable[[Sequence[Packed]], np.ndarray]]:
    """Give a function of packed texts of one kind, without gradient, for many calls from this thread.

    The weights must not change in this block. In bf16 on a CPU the network is compiled first.

    Args:
        checkpoint: a model.
        kind: `query` or `passage`, of which the function gives vectors `[rows, hidden]`, or `pair`: logits
            `[rows]`; float32.
        max_tokens: that are computed at once, with their padding.
    """
    network, names = checkpoint.network, {"query": "encode_queries", "passage": "encode_passages"}
    forward = getattr(network, names[kind]) if kind in names else network
    with _evaluating(network), unchanging({}), _computing(network, forward, _WORTH_COMPILING) as compute:
        yield lambda packed: _outputs(compute, checkpoint, packed, max_tokens)


def _infer(
    checkpoint: Checkpoint,
    forward: Callable[[Batch], Tensor],
    pack: Callable[..., list[Packed]],
    input_name: str,
    columns: Sequence[Texts],
    batch_size: int,
    progress: str,
) -> np.ndarray:
    """Run `forward` without gradient over the rows of columns of texts."""
    count, length = len(columns[-1]), checkpoint.lengths[input_name]
    size = min(_TOKENISED, max(1, _TOKENISED_TOKENS // length))
    parts = ([column[start : start + size] for column in columns] for start in range(0, count, size))
    results = [*_infer_parts(checkpoint, forward, pack, input_name, parts, count, batch_size, progress)]
    if not results:
        return np.zeros((0, checkpoint.network.config.hidden_size), np.float32)
    return np.concatenate(results)


def _infer_parts(
    checkpoint: Checkpoint,
    forward: Callable[[Batch], Tensor],
    pack: Callable[..., list[Packed]],
    input_name: str,
    parts: Iterable[Sequence[Texts]],
    count: int,
    batch_size: int,
    progress: str,
) -> Iterator[np.ndarray]:
    """Run `forward` without gradient over parts of columns of texts, in buckets of similar length.

    A bucket has room for the tokens of `batch_size` rows of the greatest length, so for more short rows.
    Every output passes here, so this is where NaN and infinity are refused.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1")
    network, length = checkpoint.network, checkpoint.lengths[input_name]
    bar = tqdm(total=count, desc=progress, unit=" rows", disable=not (progress and distributed.is_main()))
    with bar, _evaluating(network), _computing(network, forward, count) as compute:
        for packed in _ahead(lambda columns: pack(*columns, length), parts, alone=count <= _TOKENISED):
            yield _outputs(compute, checkpoint, packed, batch_size * length, bar.update)


def _outputs(
    compute: Callable[[Batch], np.ndarray],
    checkpoint: Checkpoint,
    packed: Sequence[Packed],
    max_tokens: int,
    done: Callable[[int], object] = lambda rows: None,
) -> np.ndarray:
    """Compute packed texts in buckets of similar length; `done` is told how many are finished."""
    results, lengths = None, [len(sequence.token_ids) for sequence in packed]
    for rows in token_buckets(lengths, max_tokens):
        with paddle.no_grad():
            output = compute(collate([packed[i] for i in rows], checkpoint.tokenizer.pad_id))
        _check_finite(output, checkpoint)
        if results is None:
            results = np.empty((len(packed), *output.shape[1:]), dtype=np.float32)
        results[rows] = output
        done(len(rows))
    return results


@contextmanager
def _evaluating(network: nn.Layer) -> Iterator[None]:
    """Leave out dropout, and go back to what was before."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


@contextmanager
def _computing(
    network: nn.Layer, forward: Callable[[Batch], Tensor], count: int
) -> Iterator[Callable[[Batch], np.ndarray]]:
    """Give a function that computes batches, in bf16 if that is asked for and worth a compilation."""
    if device.bf16_on_cpu() and count >= _WORTH_COMPILING:
        from rocketqa_paddle.networks.inference import in_bf16

        with in_bf16(network, forward) as compute:
            yield compute
    else:
        yield lambda batch: forward(batch).astype("float32").numpy()


def _ahead(function: Callable[[T], U], values: Iterable[T], *, alone: bool) -> Iterator[U]:
    """Yield what a function gives for every value, computed in a thread while the caller is at work.

    A caller that is `alone` with one value needs no thread.
    """
    if alone:
        yield from map(function, values)
        return
    values, end = iter(values), object()

    def following() -> U | object:
        value = next(values, end)
        return end if value is end else function(value)

    with ThreadPoolExecutor(max_workers=1) as thread:
        future = thread.submit(following)
        while (result := future.result()) is not end:
            future = thread.submit(following)
            yield result


def _check_finite(output: np.ndarray, checkpoint: Checkpoint) -> None:
    if not np.isfinite(output).all():
        named = f"the {checkpoint.kind} with the vocabulary {checkpoint.tokenizer.path}"
        remedy = (
            "its weights are broken: use another checkpoint, or train it again with a lower learning rate"
        )
        raise ValueError(f"{named} computes NaN or infinity; {remedy}")


def text_list(name: str, values: Iterable[str]) -> list[str]:
    """Return an argument that holds texts as a list.

    Raises:
        ValueError: it is a single string, or not an iterable of strings; `name` is what the caller calls it.
    """
    if isinstance(values, str):
        raise ValueError(f"{name} is one string, expected a list of strings: write [{values[:30]!r}]")
    if not isinstance(values, Iterable) or isinstance(values, bytes | Mapping | set | frozenset):
        raise ValueError(f"{name} is {type(values).__name__}, expected a list of strings")
    values = list(values)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{name}[{i}] is {type(value).__name__}, expected a string")
    return values
