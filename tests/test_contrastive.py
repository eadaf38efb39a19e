"""Cross-batch negatives: N ranks and any number of chunks take the step of one whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import contrastive_worker
import numpy as np
import pytest
import ranks
import reference
import toy
from contrastive_worker import groups
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle import contrastive
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.records import Content, FalseNegatives, Group, Passage, Query
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
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that four processes filled."""
    folder = tmp_path_factory.mktemp("four")
    ends = ranks.fork(4, lambda: contrastive_worker.write(folder), folder)
    assert [end.code for end in ends] == [0] * 4, "\n".join(end.printed[-3000:] for end in ends)
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def several(request: pytest.FixtureRequest, four_ranks: Path, two_ranks: Path) -> Arrays:
    """The steps of several processes."""
    folder = two_ranks if request.param == 2 else four_ranks
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


@pytest.mark.parametrize("chunks", [1, 3])
def test_ranks_take_the_step_of_one_process_with_the_whole_batch(
    several: Arrays, whole: Arrays, chunks: int
) -> None:
    assert_one_step(several, whole, chunks)


def test_without_cross_batch_each_process_contrasts_with_its_own(several: Arrays, tmp_path: Path) -> None:
    expected = contrastive_worker.step(tmp_path, negatives=2, shares=int(several["shares"]))
    del expected["loss"]  # the log has that of rank 0
    assert_gradients([(several[f"own/{name}"], array) for name, array in expected.items()], "own")


def test_chunks_take_the_step_of_the_whole_batch(whole: Arrays) -> None:
    assert_one_step(whole, whole, 3)


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


def false_negatives(batch: Sequence[Group]) -> np.ndarray:
    """`contrastive.false_negatives`, one passage after the other."""
    passages = [group.passages[0] for group in batch]
    passages += [passage for group in batch for passage in group.passages[1:]]
    mask = np.zeros((len(batch), len(passages)), dtype=bool)
    for row, group in enumerate(batch):
        same = [other for other in batch if other.query.key == group.query.key]
        false = FalseNegatives(
            group.query, [Content.of(p) for g in same for p in (g.passages[0], *g.other_positives)]
        )
        mask[row] = [
            column != row and Content.of(passage) in false for column, passage in enumerate(passages)
        ]
    return mask


QUERY, MORE = Query("q", "who ?"), Query("r", "what ?")
YES, TWIN, OTHER = Passage("a", "", "yes"), Passage("b", "-", "YES "), Passage("c", "", "no")


@pytest.mark.parametrize(
    ("first", "second", "masked"),
    [
        (Group(QUERY, (YES,), (1,)), Group(MORE, (TWIN,), (1,)), [(0, 1), (1, 0)]),
        (
            Group(QUERY, (YES, OTHER), (1, 0)),
            Group(MORE, (OTHER, TWIN), (1, 0)),
            [(0, 3), (1, 2)],
        ),
        (Group(QUERY, (TWIN,), (1,), other_positives=(OTHER,)), Group(MORE, (OTHER,), (1,)), [(0, 1)]),
        (Group(QUERY, (TWIN,), (1,)), Group(replace(QUERY, id="r"), (OTHER,), (1,)), [(0, 1), (1, 0)]),
        (Group(QUERY, (TWIN,), (1,)), Group(MORE, (Passage("q", "x", "Who ?"),), (1,)), [(0, 1)]),
        (Group(QUERY, (TWIN,), (1,)), Group(MORE, (OTHER,), (1,)), []),
        (Group(QUERY, (TWIN, TWIN), (1, 0)), Group(MORE, (OTHER, OTHER), (1, 0)), [(0, 2), (1, 3)]),
    ],
    ids=[
        "one positive for two queries",
        "a positive among another's negatives",
        "another labelled positive",
        "one query twice",
        "the query itself",
        "nothing",
        "a positive that is its own negative",
    ],
)
def test_no_query_is_contrasted_with_what_it_is_known_to_want(
    first: Group, second: Group, masked: list[tuple[int, int]]
) -> None:
    mask = contrastive.false_negatives([first, second]).numpy()
    assert [*zip(*map(list, mask.nonzero()), strict=True)] == masked


texts = st.sampled_from(["a", "A ", "b", "a b", "-", "c"])
passages = st.builds(Passage, st.just("p"), texts | st.just(""), texts)
batches = st.lists(
    st.builds(
        lambda query, positive, negatives, others: Group(
            query, (positive, *negatives), (1, 0, 0), other_positives=others
        ),
        st.builds(Query, st.just("q"), texts),
        passages,
        st.tuples(passages, passages),
        st.lists(passages, max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=5,
)


@given(batches)
def test_the_mask_is_what_the_contents_say(batch: list[Group]) -> None:
    np.testing.assert_array_equal(contrastive.false_negatives(batch).numpy(), false_negatives(batch))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_known_false_negatives_have_no_part_in_the_loss(tokens: Tokenizer, alpha: float) -> None:
    retriever, batch = toy.dual(tokens, shared=True), contrastive_worker.alike(groups(2, 8))
    mask, count = false_negatives(batch), len(batch)
    assert mask.sum() > 20

    def values(**options: bool) -> dict[str, float]:
        loss = contrastive.in_batch(retriever, alpha, **options)
        masked = {"mask": loss.mask(batch)} if loss.mask else {}
        return {name: float(value) for name, value in loss.loss(*loss.encode(batch), **masked).items()}

    passages = [group.passages[0] for group in batch]
    passages += [passage for group in batch for passage in group.passages[1:]]
    q = forward.encode_queries(retriever, [group.query.text for group in batch])
    p = forward.encode_passages(retriever, [x.title for x in passages], [x.text for x in passages])
    centred = np.concatenate([mask[:, :count].T, mask[:, count:]], axis=1)

    def expected(mask: np.ndarray, centred: np.ndarray) -> float:
        sides = (q @ p.T, mask), (p[:count] @ np.concatenate([q, p[count:]]).T, centred)
        query, passage = (reference.cross_entropy(np.where(m, -1e30, s), range(count)) for s, m in sides)
        return (1 - alpha) * query + alpha * passage

    kept = expected(mask & False, centred & False)
    assert values() == {"loss": pytest.approx(expected(mask, centred), rel=1e-5), "masked": mask.sum()}
    assert values(drop_false_negatives=False) == {"loss": pytest.approx(kept, rel=1e-5)}
    assert kept > values()["loss"] + 0.1


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


def test_a_batch_larger_than_the_data_is_refused(tokens: Tokenizer, tmp_path: Path) -> None:
    retriever = toy.dual(tokens)
    settings = {"folder": tmp_path / "last", "log": MetricsLog(tmp_path / "metrics.jsonl")}
    networks, loss = {"retriever": retriever.network}, contrastive.in_batch(retriever)
    with pytest.raises(
        ValueError, match="step: 4 examples a step .*, but there are only 3, .*: lower batch_size"
    ):
        Trainer("step", networks, groups(1, 3), loss, TrainingSettings(batch_size=4, steps=1), **settings)
