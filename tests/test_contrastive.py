"""Cross-batch negatives and GradCache: N ranks and any number of parts take the step of one whole batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import contrastive_worker
import numpy as np
import paddle
import pytest
import reference
import toy

from rocketqa_paddle import contrastive
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.records import Group
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.settings import StageSettings
from rocketqa_paddle.training.trainer import MetricsLog, Trainer

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """Of one process with the whole batch."""
    return contrastive_worker.steps(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    folder = tmp_path_factory.mktemp(f"{request.param}")
    launch = (sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(request.param))
    worker = toy.ROOT / "tests" / "contrastive_worker.py"
    done = toy.run(*launch, "--log_dir", folder / "log", worker, folder, cwd=folder, timeout=120)
    logs = [path.read_text()[-2000:] for path in sorted((folder / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(logs)
    return dict(np.load(folder / "gradients.npz"))


def assert_one_step(given: Arrays, expected: Arrays, parts: int) -> None:
    """The loss, and the gradients of all parameters together, are those of the step in one part."""
    for case in contrastive_worker.CASES:
        names = [name for name in expected if name.startswith(f"{case}/1/")]
        assert len(names) > 30
        pairs = [(given[name.replace("/1/", f"/{parts}/")], expected[name]) for name in names]
        assert names[0].endswith("loss")
        assert float(pairs[0][0]) == pytest.approx(float(pairs[0][1]), rel=1e-5)
        difference = sum(((a - b) ** 2).sum() for a, b in pairs[1:])
        total = sum((b**2).sum() for _, b in pairs[1:])
        assert total > 0.01
        assert np.sqrt(difference / total) < 1e-5, case


@pytest.mark.parametrize("parts", [1, 2])
def test_ranks_take_the_step_of_one_process_with_the_whole_batch(
    ranks: Arrays, whole: Arrays, parts: int
) -> None:
    assert_one_step(ranks, whole, parts)


def test_without_cross_batch_each_process_contrasts_with_its_own(ranks: Arrays, tmp_path: Path) -> None:
    expected = contrastive_worker.step(tmp_path, negatives=2, shares=int(ranks["shares"]))
    del expected["loss"]  # the log has that of rank 0
    difference = sum(((ranks[f"own/{name}"] - array) ** 2).sum() for name, array in expected.items())
    total = sum((array**2).sum() for array in expected.values())
    assert total > 0.01
    assert np.sqrt(difference / total) < 1e-5


def test_parts_take_the_step_of_the_whole_batch(whole: Arrays) -> None:
    assert_one_step(whole, whole, 2)


def groups(negatives: int) -> list[Group]:
    collection = toy.collection()
    split = collection.splits["train"]
    return list(
        Miner(collection.passages, split.qrels, negatives, seed=1).undenoised(split.queries.values(), {})
    )


@pytest.mark.parametrize("negatives", [0, 3])
def test_every_query_is_contrasted_with_the_passages_of_all(tmp_path: Path, negatives: int) -> None:
    retriever, batch = toy.dual(toy.tokenizer(tmp_path)), groups(negatives)[:5]
    loss = contrastive.in_batch(retriever)
    given = loss.loss(*loss.encode(batch))["loss"]

    passages = [group.passages[0] for group in batch]
    passages += [passage for group in batch for passage in group.passages[1:]]
    q = retrieval.encode_queries(retriever, [group.query.text for group in batch])
    p = retrieval.encode_passages(retriever, [x.title for x in passages], [x.text for x in passages])
    assert float(given) == pytest.approx(reference.cross_entropy(q @ p.T, range(5)), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_two_passages_are_compared_on_the_scale_of_scores(tmp_path: Path, temperature: float) -> None:
    """A cosine over the temperature, as a passage's score for a query is: not over its square."""
    network = {"shared": True, "pooling": "mean", "normalize": True, "temperature": temperature}
    retriever, batch = toy.dual(toy.tokenizer(tmp_path), **network), groups(2)[:5]
    loss = contrastive.in_batch(retriever, alpha=1.0)
    given = loss.loss(*loss.encode(batch))["loss"]

    q = retrieval.encode_queries(retriever, [group.query.text for group in batch])
    passages = [passage for group in batch for passage in group.passages]
    p = retrieval.encode_passages(retriever, [x.title for x in passages], [x.text for x in passages])
    p /= np.linalg.norm(p, axis=1, keepdims=True)
    positive = p[::3]
    negative = np.concatenate([p[1::3], p[2::3]])
    scores = positive @ np.concatenate([q, negative]).T / temperature
    assert float(given) == pytest.approx(reference.cross_entropy(scores, range(5)), rel=1e-4)


def test_a_part_is_encoded_with_the_same_dropout_both_times(tmp_path: Path) -> None:
    retriever, seen = toy.dual(toy.tokenizer(tmp_path), dropout=0.3), []
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
        StageSettings(batch_size=6, steps=2, accumulate=3),
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
    drawn = []
    for part in (0, 1):
        trainer._seed_dropout(part)
        drawn.append(plain.encode(same)[0].numpy())
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3  # each part has a dropout of its own


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    retriever = toy.dual(toy.tokenizer(tmp_path))
    settings = {"folder": tmp_path / "last", "log": MetricsLog(tmp_path / "metrics.jsonl")}
    networks, loss = {"retriever": retriever.network}, contrastive.in_batch(retriever)
    with pytest.raises(
        ValueError, match="step: 4 examples a step .*, but there are only 3, .*: lower batch_size"
    ):
        Trainer("step", networks, groups(1)[:3], loss, StageSettings(batch_size=4, steps=1), **settings)
