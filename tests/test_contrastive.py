"""Cross-batch negatives and GradCache: N ranks and any number of chunks take the step of one whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import contrastive_worker
import numpy as np
import paddle
import pytest
import ranks
import reference
import toy
from contrastive_worker import groups

from rocketqa_paddle import contrastive
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.records import Group, Passage
from rocketqa_paddle.settings import TrainingSettings
from rocketqa_paddle.training.log import MetricsLog
from rocketqa_paddle.training.trainer import Trainer

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy.tokenizer(tmp_path_factory.mktemp("contrastive-vocabulary"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """The steps of one process with the whole batch."""
    return contrastive_worker.steps(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Path]]:
    """The folder that four processes fill, while others do their work."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(ranks.launch, "contrastive_worker.py", 4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module", params=[2, 4])
def several(request: pytest.FixtureRequest, four_ranks: Future[Path], two_ranks: Path) -> Arrays:
    """The steps of several processes."""
    folder = two_ranks if request.param == 2 else four_ranks.result()
    arrays = dict(np.load(folder / "gradients.npz"))
    assert arrays["shares"] == request.param
    return arrays


def assert_one_step(given: Arrays, expected: Arrays, chunks: int) -> None:
    """The loss, and the gradients of all parameters together, are those of the step in one chunk."""
    for case in contrastive_worker.CASES:
        names = [name for name in expected if name.startswith(f"{case}/1/")]
        assert len(names) > 30
        pairs = [(given[name.replace("/1/", f"/{chunks}/")], expected[name]) for name in names]
        assert names[0].endswith("loss")
        assert float(pairs[0][0]) == pytest.approx(float(pairs[0][1]), rel=1e-5)
        assert_gradients(pairs[1:], case)


def assert_gradients(pairs: Sequence[tuple[np.ndarray, np.ndarray]], case: str) -> None:
    difference = sum(((a - b) ** 2).sum() for a, b in pairs)
    total = sum((b**2).sum() for _, b in pairs)
    assert total > 0.01
    assert np.sqrt(difference / total) < 1e-5, case


@pytest.mark.parametrize("chunks", [1, 2])
def test_ranks_take_the_step_of_one_process_with_the_whole_batch(
    several: Arrays, whole: Arrays, chunks: int
) -> None:
    assert_one_step(several, whole, chunks)


def test_without_cross_batch_each_process_contrasts_with_its_own(several: Arrays, tmp_path: Path) -> None:
    expected = contrastive_worker.step(tmp_path, negatives=2, shares=int(several["shares"]))
    del expected["loss"]  # the log has that of rank 0
    assert_gradients([(several[f"own/{name}"], array) for name, array in expected.items()], "own")


def test_chunks_take_the_step_of_the_whole_batch(whole: Arrays) -> None:
    assert_one_step(whole, whole, 2)


def test_constants_have_a_part_in_the_loss(tokens: Tokenizer) -> None:
    """The loss is that of NumPy; equal steps would say nothing about constants without a part in it."""
    retriever, batch = toy.dual(tokens), groups(2, 5)
    contrast = contrastive_worker.margin_mse(retriever)
    given = contrast.loss(*contrast.encode(batch), *contrast.constants(batch))["loss"]

    passages = [group.passages[0] for group in batch]
    passages += [passage for group in batch for passage in group.passages[1:]]
    scores = product(retriever, batch, passages)
    teacher = np.array([int(passage.id[1:]) % 7 for passage in passages])
    margins = np.diag(scores)[:, None] - scores - (teacher[:5, None] - teacher)
    assert float(given) == pytest.approx((margins**2).mean(), rel=1e-5)


def product(retriever: Checkpoint, batch: Sequence[Group], passages: Sequence[Passage]) -> np.ndarray:
    """Inner products of the batch's queries and some passages, `[batch, passages]`."""
    q = forward.encode_queries(retriever, [group.query.text for group in batch])
    p = forward.encode_passages(retriever, [x.title for x in passages], [x.text for x in passages])
    return q @ p.T


@pytest.mark.parametrize("negatives", [0, 3])
def test_every_query_is_contrasted_with_the_passages_of_all(tokens: Tokenizer, negatives: int) -> None:
    retriever, batch = toy.dual(tokens), groups(negatives, 5)
    loss = contrastive.in_batch(retriever)
    given = loss.loss(*loss.encode(batch))["loss"]

    passages = [group.passages[0] for group in batch]
    passages += [passage for group in batch for passage in group.passages[1:]]
    expected = reference.cross_entropy(product(retriever, batch, passages), range(5))
    assert float(given) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_two_passages_are_compared_on_the_scale_of_scores(tokens: Tokenizer, temperature: float) -> None:
    """A cosine over the temperature, as a passage's score for a query is: not over its square."""
    network = {"shared": True, "pooling": "mean", "normalize": True, "temperature": temperature}
    retriever, batch = toy.dual(tokens, **network), groups(2, 5)
    loss = contrastive.in_batch(retriever, alpha=1.0)
    given = loss.loss(*loss.encode(batch))["loss"]

    q = forward.encode_queries(retriever, [group.query.text for group in batch])
    passages = [passage for group in batch for passage in group.passages]
    p = forward.encode_passages(retriever, [x.title for x in passages], [x.text for x in passages])
    p /= np.linalg.norm(p, axis=1, keepdims=True)
    positive = p[::3]
    negative = np.concatenate([p[1::3], p[2::3]])
    scores = positive @ np.concatenate([q, negative]).T / temperature
    assert float(given) == pytest.approx(reference.cross_entropy(scores, range(5)), rel=1e-4)


def test_a_chunk_is_encoded_with_the_same_dropout_both_times(tokens: Tokenizer, tmp_path: Path) -> None:
    retriever, seen = toy.dual(tokens, dropout=0.3), []
    plain = contrastive.in_batch(retriever)

    def encode(batch: list[Group]) -> list[paddle.Tensor]:
        vectors = plain.encode(batch)
        seen.append([vector.numpy() for vector in vectors])
        return vectors

    trainer = Trainer(
        "step",
        {"retriever": retriever.network},
        groups(1),
        contrastive.Contrastive(encode, plain.loss),
        TrainingSettings(batch_size=6, steps=2, chunks=3),
        folder=tmp_path / "last",
        log=MetricsLog(tmp_path / "metrics.jsonl"),
    )
    trainer.fit()
    assert len(seen) == 2 * 2 * 3
    for step in (seen[:6], seen[6:]):
        for first, again in zip(step[:3], step[3:], strict=True):
            for one, other in zip(first, again, strict=True):
                np.testing.assert_array_equal(one, other)
    same = trainer._batch(0)[:2]
    retriever.network.train()
    drawn = [trainer._encode(chunk, same)[0].numpy() for chunk in (0, 1)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3  # each chunk has a dropout of its own


def test_a_batch_larger_than_the_data_is_refused(tokens: Tokenizer, tmp_path: Path) -> None:
    retriever = toy.dual(tokens)
    settings = {"folder": tmp_path / "last", "log": MetricsLog(tmp_path / "metrics.jsonl")}
    networks, loss = {"retriever": retriever.network}, contrastive.in_batch(retriever)
    with pytest.raises(
        ValueError, match="step: 4 examples a step .*, but there are only 3, .*: lower batch_size"
    ):
        Trainer("step", networks, groups(1, 3), loss, TrainingSettings(batch_size=4, steps=1), **settings)
