"""The losses of `train` against NumPy, and the perturbed word embeddings of a cross encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference
from finetuning import (
    ONE_STEP,
    Arrays,
    arrays_of,
    assert_same,
    log,
    random_checkpoint,
    rows,
    train,
)
from paddle import Tensor

from rocketqa_paddle.data.groups import read_cross
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder
from rocketqa_paddle.records import Group
from rocketqa_paddle.toolkit import CrossModel, load_model
from rocketqa_paddle.training import finetune

EMBEDDING = "ernie.word_embedding.weight"
EXACT = {**ONE_STEP, "dropout": 0.0}


@pytest.fixture(scope="module")
def groups(folders):
    return list(read_cross(folders["cross.tsv"]))


# The loss -----------------------------------------------------------------------------------------


class Oracle:
    """NumPy's version of a checkpoint's network, from texts to the loss."""

    def __init__(self, checkpoint: Checkpoint, arrays: Arrays | None = None) -> None:
        self.arrays = arrays or arrays_of(checkpoint.network)
        self.lengths, self.vocabulary = checkpoint.lengths, checkpoint.tokenizer.vocabulary
        self.sizes = reference.Sizes(len(self.vocabulary), 16, 2, 2, 32, 64, 2)

    def ids(self, text: str) -> list[int]:
        return [self.vocabulary[piece] for piece in reference.word_pieces(text, self.vocabulary)]

    def state(self, tower: str, *segments: list[int]) -> np.ndarray:
        """The state of [CLS], for one segment or two."""
        sequence, types = [self.vocabulary["[CLS]"]], [0]
        for number, segment in enumerate(segments):
            sequence += [*segment, self.vocabulary["[SEP]"]]
            types += [number] * (len(segment) + 1)
        variables = {
            name: self.arrays[f"{tower}.{reference.package_name(name)}"]
            for name in reference.shapes(self.sizes)
        }
        return reference.ernie(variables, self.sizes, (sequence, types))[0]

    def query(self, text: str) -> np.ndarray:
        return self.state("query", self.ids(text)[: self.lengths["query"] - 2])

    def passage(self, title: str, text: str) -> np.ndarray:
        length = self.lengths["passage"] - 3
        return self.state("passage", *reference.truncate(self.ids(title), self.ids(text), length))

    def dual_loss(self, lines: Sequence[Sequence[str]]) -> float:
        queries = np.stack([self.query(line[0]) for line in lines])
        passages = [self.passage(*line[1:3]) for line in lines] + [self.passage(*line[3:5]) for line in lines]
        return reference.cross_entropy(queries @ np.stack(passages).T, range(len(lines)))

    def cross_loss(self, lines: Sequence[Sequence[str]]) -> float:
        head = {
            "pooled_fc.w_0": self.arrays["pooler.weight"],
            "pooled_fc.b_0": self.arrays["pooler.bias"],
            "_cls_out_w": self.arrays["output.weight"],
            "_cls_out_b": self.arrays["output.bias"],
        }
        logits = []
        for query, title, text, _ in lines:
            texts, length = self.ids(title) + self.ids(text), self.lengths["pair"] - 3
            pair = reference.truncate(self.ids(query), texts, length)
            logits.append(reference.classes_logits(head, self.state("ernie", *pair)))
        return reference.cross_entropy(np.stack(logits), [int(line[3]) for line in lines])


def test_the_first_loss_of_a_dual_encoder_is_cross_entropy_over_positives_and_negatives(folders, tmp_path):
    model = load_model(folders["dual"])
    expected = Oracle(model.checkpoint).dual_loss(rows("dual"))
    train(model, folders["dual.tsv"], tmp_path / "out", **EXACT, drop_false_negatives=False)
    [row] = log(tmp_path / "out")
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert expected > 1  # so that it says something


def test_the_first_loss_of_a_cross_encoder_is_cross_entropy_of_two_classes(folders, tmp_path):
    model = load_model(folders["cross"])
    expected = Oracle(model.checkpoint).cross_loss(rows("cross"))
    train(model, folders["cross.tsv"], tmp_path / "o", adversarial=0.0, **EXACT)
    [row] = log(tmp_path / "o")
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert expected > 0.3


def test_the_first_loss_with_perturbation_is_that_of_the_perturbed_network(folders, groups, tmp_path):
    model = load_model(folders["cross"])
    arrays = arrays_of(model.checkpoint.network)
    arrays[EMBEDDING] += 2.0 * unit(gradients(model.checkpoint, groups)[EMBEDDING])
    moved = Oracle(model.checkpoint, arrays).cross_loss(rows("cross"))
    plain = Oracle(model.checkpoint).cross_loss(rows("cross"))
    assert moved > plain + 0.1  # uphill
    train(model, folders["cross.tsv"], tmp_path / "o", adversarial=2.0, **EXACT)
    [row] = log(tmp_path / "o")
    assert row["loss"] == pytest.approx(moved, rel=1e-4)


def test_a_single_logit_learns_from_pairs(tokens, folders, tmp_path):
    """The joint re-ranker has one unit; its sigmoid takes the place of the softmax."""
    model = CrossModel(random_checkpoint("cross", tokens, head="logit"))
    odds = model.matching(*([line[i] for line in rows("cross")] for i in (0, 2, 1)))
    labels = np.array([int(line[3]) for line in rows("cross")])
    expected = np.log1p(np.exp(np.where(labels == 1, -odds, odds))).mean()
    train(model, folders["cross.tsv"], tmp_path / "o", adversarial=0.0, **EXACT)
    assert log(tmp_path / "o")[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert load_model(tmp_path / "o").checkpoint.network.head == "logit"


# The perturbation ---------------------------------------------------------------------------------


def plain_loss(checkpoint: Checkpoint, groups: Sequence[Group]) -> Tensor:
    return finetune._cross_loss(checkpoint, 0.0)(groups)["loss"]


def twin(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights in another network, without dropout."""
    network = CrossEncoder(checkpoint.network.config, head=checkpoint.network.head, dropout=0.0)
    parameters.load_arrays(network, arrays_of(checkpoint.network), "twin")
    return Checkpoint(network, checkpoint.tokenizer, checkpoint.lengths)


def gradients(checkpoint: Checkpoint, groups: Sequence[Group]) -> Arrays:
    """The gradients of the plain loss without dropout, computed in a network of their own."""
    other = twin(checkpoint)
    plain_loss(other, groups).backward()
    return {name: p.grad.numpy().copy() for name, p in other.network.named_parameters()}


def unit(gradient: np.ndarray) -> np.ndarray:
    gradient = gradient.astype(np.float64)
    return gradient / np.sqrt((gradient**2).sum() + 1e-8)


def is_training(checkpoint: Checkpoint) -> set[bool]:
    return {layer.training for layer in checkpoint.network.sublayers(include_self=True)}


@pytest.fixture
def reranker(tokens):
    """A cross encoder in training, with dropout."""
    checkpoint = random_checkpoint("cross", tokens, dropout=0.4)
    checkpoint.network.train()
    return checkpoint


@pytest.mark.parametrize("size", [0.01, 0.5])
def test_the_word_embeddings_move_along_the_gradient_and_back(reranker, groups, size):
    before, gradient = arrays_of(reranker.network), gradients(reranker, groups)[EMBEDDING]
    with finetune.perturbed(reranker, lambda: plain_loss(reranker, groups), size):
        during = arrays_of(reranker.network)
        for name, parameter in reranker.network.named_parameters():  # the first pass leaves no gradient
            assert parameter.grad is None or not parameter.grad.numpy().any(), name
    moved, start = during.pop(EMBEDDING), before[EMBEDDING]
    np.testing.assert_allclose(moved, start + size * unit(gradient), rtol=0, atol=1e-6 * size + 1e-7)
    assert np.linalg.norm(moved - start) == pytest.approx(size, rel=1e-3)
    unseen = ~gradient.any(axis=1)
    assert 0 < unseen.sum() < len(unseen)
    np.testing.assert_array_equal(moved[unseen], start[unseen])
    assert_same(during, {name: array for name, array in before.items() if name in during})
    assert_same(arrays_of(reranker.network), before)
    assert not reranker.network.ernie.word_embedding.weight.stop_gradient


def test_the_first_pass_is_without_dropout_and_the_second_with_it(reranker, groups):
    modes = []

    def loss() -> Tensor:
        modes.append(is_training(reranker))
        return plain_loss(reranker, groups)

    with finetune.perturbed(reranker, loss, 0.01):
        assert is_training(reranker) == {True}
        drawn = [float(plain_loss(reranker, groups)) for _ in range(2)]
        assert drawn[0] != drawn[1]
    assert modes == [{False}]
    assert is_training(reranker) == {True}


@pytest.mark.parametrize("where", ["first pass", "second pass"])
def test_an_error_puts_everything_back(reranker, groups, where):
    before = arrays_of(reranker.network)

    def loss() -> Tensor:
        if where == "first pass":
            raise MemoryError(where)
        return plain_loss(reranker, groups)

    with pytest.raises(MemoryError, match=where), finetune.perturbed(reranker, loss, 0.5):
        raise MemoryError(where)
    assert_same(arrays_of(reranker.network), before)
    assert is_training(reranker) == {True}


def test_the_gradient_is_taken_at_the_moved_embeddings(tokens, groups):
    checkpoint, size = random_checkpoint("cross", tokens), 0.5
    plain, by_hand = gradients(checkpoint, groups), twin(checkpoint)
    embedding = by_hand.network.ernie.word_embedding.weight
    embedding.set_value((embedding.numpy() + size * unit(plain[EMBEDDING])).astype(np.float32))
    expected = gradients(by_hand, groups)

    loss = finetune._cross_loss(checkpoint, size)(groups)["loss"]
    assert float(loss) == pytest.approx(float(plain_loss(by_hand, groups)), rel=1e-5)
    loss.backward()
    for name, parameter in checkpoint.network.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    difference = max(np.abs(expected[name] - plain[name]).max() for name in plain)
    assert difference > 0.01  # a gradient at the place before would have been seen


def test_a_gradient_of_zero_moves_nothing(reranker, groups):
    before = arrays_of(reranker.network)
    with finetune.perturbed(reranker, lambda: 0.0 * plain_loss(reranker, groups), 0.5):
        assert_same(arrays_of(reranker.network), before)


def test_the_perturbation_is_a_setting_of_the_cross_encoder_alone(folders, tmp_path, monkeypatch):
    sizes, perturbed = [], finetune.perturbed

    def recording(reranker: Checkpoint, loss: Callable[[], Tensor], size: float) -> Any:
        sizes.append(size)
        return perturbed(reranker, loss, size)

    monkeypatch.setattr(finetune, "perturbed", recording)
    results, two_steps = {}, {"epoch": 1, "batch_size": 5}
    for name, settings in {"default": {}, "none": {"adversarial": 0}, "far": {"adversarial": 0.3}}.items():
        sizes.clear()
        model = load_model(folders["cross"])
        train(model, folders["cross.tsv"], tmp_path / name, **two_steps, **settings)
        results[name] = model.checkpoint.digest()
        assert sizes == {"default": [0.01] * 2, "none": [], "far": [0.3] * 2}[name]
    assert len(set(results.values())) == 3
    sizes.clear()
    train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "dual", **two_steps)
    assert not sizes
