"""Steps in chunks: the loss and the gradients of the plain step, for every loss, with the same dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import nets
import numpy as np
import paddle
import pytest
import toy
from contrastive_worker import groups
from paddle import Tensor, nn

from rocketqa_paddle import contrastive
from rocketqa_paddle.networks import forward, fused
from rocketqa_paddle.networks.batching import Batch
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import in_chunks
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.records import Group
from rocketqa_paddle.runtime import device
from rocketqa_paddle.systems.ar2.run import against
from rocketqa_paddle.systems.rocketqav2.run import distillation
from rocketqa_paddle.training.reranking import binary_loss, list_loss
from rocketqa_paddle.training.trainer import Loss, Stopped

LOSSES: dict[str, Callable[[Checkpoint, Checkpoint], Loss]] = {
    "in-batch": lambda retriever, reranker: contrastive.in_batch(retriever),
    "passage-centric": lambda retriever, reranker: contrastive.in_batch(retriever, alpha=0.4),
    "lists": lambda retriever, reranker: list_loss(reranker),
    "pairs": lambda retriever, reranker: binary_loss(reranker),
    "RocketQAv2": partial(distillation, mutual=True),
    "AR2": against,
}
Step = tuple[dict[str, float], dict[str, np.ndarray], float]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy.tokenizer(tmp_path_factory.mktemp("chunks-vocabulary"))


@pytest.fixture(params=["fused", "plain"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by either kind of operations."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "_COMPILER", False)


@pytest.fixture(scope="module")
def batch() -> list[Group]:
    """3 groups of 4 passages, whose lengths differ, in no order of length."""

    def longer(group: Group, row: int) -> Group:
        texts = [" ".join([p.text] * (1 + (2 * row + i) % 3)) for i, p in enumerate(group.passages)]
        made = [replace(p, text=text) for p, text in zip(group.passages, texts, strict=True)]
        return replace(group, passages=tuple(made))

    return [longer(group, row) for row, group in enumerate(groups(3, 3))]


def models(tokens: Tokenizer, **network: float) -> tuple[Checkpoint, Checkpoint]:
    paddle.seed(5)
    retriever = toy.dual(tokens, shared=True, pooling="mean", **network)
    return retriever, toy.cross(tokens, **{"dropout": 0.0, **network})


def step(checkpoints: Sequence[Checkpoint], loss: Loss, batch: Sequence[Group], chunks: int) -> Step:
    """The scalars, the gradients by parameter, and the random number that comes next."""
    networks = nn.LayerDict({checkpoint.kind: checkpoint.network for checkpoint in checkpoints})
    networks.train()
    paddle.seed(7)
    with in_chunks(chunks):
        values = loss(batch)
    values["loss"].backward()
    drawn = paddle.rand([1]).item()
    gradients = {name: p.grad.numpy() for name, p in networks.named_parameters() if p.grad is not None}
    for checkpoint in checkpoints:
        checkpoint.network.clear_gradients(set_to_zero=False)
    return {name: float(value) for name, value in values.items()}, gradients, drawn


def assert_same(given: Step, expected: Step) -> None:
    assert given[0] == {name: pytest.approx(value, rel=1e-6, abs=1e-6) for name, value in expected[0].items()}
    assert given[1].keys() == expected[1].keys()
    difference = sum(((given[1][name] - array) ** 2).sum() for name, array in expected[1].items())
    norm = sum((array**2).sum() for array in expected[1].values())
    assert norm > 1e-4
    assert np.sqrt(difference / norm) < 1e-5
    assert given[2] == expected[2]


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_have_the_loss_and_the_gradients_of_the_plain_step(
    encoder: None, tokens: Tokenizer, batch: list[Group], name: str
) -> None:
    made = models(tokens)
    plain = step(made, loss := LOSSES[name](*made), batch, 1)
    for chunks in (2, 3, 5, 40):
        assert_same(step(made, loss, batch, chunks), plain)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_dropout_is_the_same_both_times(
    encoder: None,
    tokens: Tokenizer,
    batch: list[Group],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    recompute: bool,
) -> None:
    """The gradients are those of the same chunks whose graphs stay in memory."""
    made = models(tokens, dropout=0.3, use_recompute=recompute)
    given = step(made, loss := LOSSES[name](*made), batch, 3)
    whole = step(made, loss, batch, 1)
    monkeypatch.setattr(
        forward._Chunks, "apply", lambda begin, compute, chunks: paddle.concat([compute(c) for c in chunks])
    )
    assert_same(given, step(made, loss, batch, 3))
    assert abs(given[0]["loss"] - whole[0]["loss"]) > 1e-4  # dropout is on


def test_each_chunk_is_computed_once_without_a_graph_and_once_with_one(
    encoder: None, tokens: Tokenizer, batch: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chunk is empty, sequences of like length meet, and the precision is the same both times."""
    monkeypatch.setattr(device, "has_bf16", lambda: True)
    reranker, seen = models(tokens)[1], []
    compute = reranker.network.logits

    def watched(batch: Batch) -> Tensor:
        seen.append((paddle.is_grad_enabled(), *batch.token_ids.shape, device.precision()))
        return compute(batch)

    monkeypatch.setattr(reranker.network, "logits", watched)
    for chunks, sizes in ((2, [6] * 2), (5, [3] * 4), (7, [2] * 6), (40, [1] * 12)):
        seen.clear()
        with device.arithmetic("bf16"), in_chunks(chunks):
            loss = list_loss(reranker)(batch)["loss"]
        loss.backward()
        graphs, rows, lengths, precisions = zip(*seen, strict=True)
        assert graphs == (False,) * len(sizes) + (True,) * len(sizes)
        assert [*rows] == 2 * sizes
        assert lengths[: len(sizes)] == lengths[len(sizes) :]
        assert [*lengths[: len(sizes)]] == sorted(lengths[: len(sizes)], reverse=True)
        assert set(precisions) == {"bf16"}


def test_what_is_frozen_gets_no_gradient(encoder: None, tokens: Tokenizer, batch: list[Group]) -> None:
    """A whole model has no graph then; of two towers, the other one has its gradient."""
    retriever, reranker = toy.dual(tokens), models(tokens)[1]
    for parameter in (*reranker.network.parameters(), *retriever.network.query.parameters()):
        parameter.stop_gradient = True
    with in_chunks(3):
        assert forward.reranker_scores(reranker, batch).stop_gradient
    plain, chunked = (step([retriever], contrastive.in_batch(retriever), batch, chunks) for chunks in (1, 3))
    assert_same(chunked, plain)
    assert all(".passage." in name for name in chunked[1])


def test_a_training_in_chunks_goes_on_to_the_bit(tokens: Tokenizer, tmp_path: Path) -> None:
    def train(folder: str, made: Checkpoint, wrap: Callable[[Loss], Loss] = lambda loss: loss) -> None:
        options = {"data": groups(2), "size": {"chunks": 3, "steps": 4, "batch_size": 2}}
        networks = {"reranker": made.network}
        nets.make_trainer(tmp_path / folder, networks, wrap(list_loss(made)), **options).fit()

    train("whole", whole := models(tokens, dropout=0.3)[1])
    stopped = models(tokens, dropout=0.3)[1]
    with pytest.raises(Stopped):
        train("stopped", stopped, partial(nets.stopping, at=2))
    train("stopped", resumed := toy.cross(tokens, dropout=0.3))
    arrays = [nets.arrays({"reranker": made.network}) for made in (resumed, whole, stopped)]
    nets.assert_same(arrays[0], arrays[1])
    assert any(not np.array_equal(arrays[1][name], array) for name, array in arrays[2].items())
