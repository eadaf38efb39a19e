"""Losses against NumPy, their gradients against finite differences, and which model gets a gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import pytest
import reference

from rocketqa_paddle import losses

TARGETS = ["teacher", "student"]
REDUCTIONS = ["mean", "batchmean"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal(shape)


def tensor(array: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(array, dtype="float64", stop_gradient=False)


def assert_gradients_are_slopes(loss: Callable[..., paddle.Tensor], *arrays: np.ndarray) -> None:
    """Every argument's gradient equals the central difference of the loss."""
    inputs = [tensor(array) for array in arrays]
    loss(*inputs).backward()
    step = 1e-6
    for number, array in enumerate(arrays):
        slopes = np.empty_like(array)
        for at in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[number][at] += sign * step
                ends.append(float(loss(*map(tensor, moved))))
            slopes[at] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(inputs[number].grad.numpy(), slopes, atol=1e-8, err_msg=f"input {number}")


# Listwise cross entropy -------------------------------------------------------------------------


def test_listwise_cross_entropy_takes_column_0_as_the_positive() -> None:
    scores = normal(3, 5)
    expected = reference.cross_entropy(scores, [0, 0, 0])
    assert float(losses.listwise_cross_entropy(tensor(scores))) == pytest.approx(expected, rel=1e-12)


def test_listwise_cross_entropy_gradient() -> None:
    assert_gradients_are_slopes(losses.listwise_cross_entropy, normal(3, 4))


def test_listwise_cross_entropy_of_far_apart_scores() -> None:
    assert float(losses.listwise_cross_entropy(paddle.to_tensor([[-100.0, 100.0]]))) == pytest.approx(200)


def test_far_apart_scores_still_get_the_right_gradient() -> None:
    scores = tensor(np.array([[-1e4, 1e4], [1e4, -1e4]]))
    losses.listwise_cross_entropy(scores).backward()
    np.testing.assert_allclose(scores.grad.numpy(), [[-0.5, 0.5], [0, 0]], atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 3, 4)])
def test_scores_of_another_shape_than_lists_are_refused(shape: tuple[int, ...]) -> None:
    scores = paddle.ones(shape)
    with pytest.raises(ValueError, match="scores has shape .* expected .groups, group size."):
        losses.listwise_cross_entropy(scores)
    with pytest.raises(ValueError, match="student has shape"):
        losses.listwise_kl(scores, scores)


# Listwise divergence ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_listwise_kl_equals_the_oracle(target: str, reduction: str) -> None:
    student, teacher = normal(3, 4, seed=1), normal(3, 4, seed=2)
    total = reference.kl(teacher, student) if target == "teacher" else reference.kl(student, teacher)
    expected = total / (12 if reduction == "mean" else 3)
    given = losses.listwise_kl(tensor(student), tensor(teacher), target=target, reduction=reduction)
    assert float(given) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_listwise_kl_gradient_of_both_inputs(target: str, reduction: str) -> None:
    def loss(student: paddle.Tensor, teacher: paddle.Tensor) -> paddle.Tensor:
        return losses.listwise_kl(student, teacher, target=target, reduction=reduction)

    assert_gradients_are_slopes(loss, normal(2, 3, seed=1), normal(2, 3, seed=2))


def test_the_divergence_of_equal_distributions_is_zero() -> None:
    scores = normal(3, 4)
    assert float(losses.listwise_kl(tensor(scores), tensor(scores + 7))) == pytest.approx(0, abs=1e-12)


def test_different_lists_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student is .*\[2, 3\].*, teacher .*\[2, 4\]"):
        losses.listwise_kl(paddle.ones([2, 3]), paddle.ones([2, 4]))
    with pytest.raises(ValueError, match="they score the same lists"):
        losses.joint_distillation(paddle.ones([2, 3]), paddle.ones([3, 3]))


# Joint distillation -----------------------------------------------------------------------------


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", ["reranker", "retriever"])
def test_joint_distillation_is_cross_entropy_plus_weighted_divergence(
    target: str, reduction: str, kl_weight: float
) -> None:
    retriever, reranker = normal(2, 4, seed=3), normal(2, 4, seed=4)
    parts = losses.joint_distillation(
        tensor(retriever), tensor(reranker), target=target, reduction=reduction, kl_weight=kl_weight
    )
    pair = (reranker, retriever) if target == "reranker" else (retriever, reranker)
    kl = reference.kl(*pair) / (8 if reduction == "mean" else 2)
    cross_entropy = reference.cross_entropy(reranker, [0, 0])
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(
        {"loss": cross_entropy + kl_weight * kl, "cross_entropy": cross_entropy, "kl": kl}, rel=1e-10
    )


def joint_gradients(**settings: object) -> tuple[np.ndarray, np.ndarray]:
    retriever, reranker = tensor(normal(2, 4, seed=3)), tensor(normal(2, 4, seed=4))
    losses.joint_distillation(retriever, reranker, **settings)["loss"].backward()
    return retriever.grad.numpy(), reranker.grad.numpy()


def test_by_default_the_divergence_moves_the_retriever_and_the_cross_entropy_the_reranker() -> None:
    to_retriever, to_reranker = joint_gradients()
    retriever, reranker = tensor(normal(2, 4, seed=3)), tensor(normal(2, 4, seed=4))
    losses.listwise_kl(retriever, reranker.detach()).backward()
    losses.listwise_cross_entropy(reranker).backward()
    np.testing.assert_allclose(to_retriever, retriever.grad.numpy())
    np.testing.assert_allclose(to_reranker, reranker.grad.numpy())
    assert np.abs(to_retriever).max() > 1e-3


def test_the_weight_scales_the_retrievers_gradient_alone() -> None:
    once, thrice = joint_gradients(), joint_gradients(kl_weight=3.0)
    np.testing.assert_allclose(thrice[0], 3 * once[0])
    np.testing.assert_allclose(thrice[1], once[1])


def test_mutual_moves_both_models_by_the_divergence() -> None:
    alone, mutual = joint_gradients(), joint_gradients(mutual=True)
    np.testing.assert_allclose(mutual[0], alone[0])
    assert np.abs(mutual[1] - alone[1]).max() > 1e-3


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", ["reranker", "retriever"])
def test_joint_distillation_gradient(target: str, reduction: str) -> None:
    def loss(retriever: paddle.Tensor, reranker: paddle.Tensor) -> paddle.Tensor:
        return losses.joint_distillation(
            retriever, reranker, target=target, reduction=reduction, mutual=True, kl_weight=0.7
        )["loss"]

    assert_gradients_are_slopes(loss, normal(2, 3, seed=5), normal(2, 3, seed=6))


# In-batch negatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", [0, 1, 5])
def test_in_batch_equals_the_oracle(negatives: int) -> None:
    query, positive, negative = normal(3, 6, seed=7), normal(3, 6, seed=8), normal(negatives, 6, seed=9)
    expected = reference.cross_entropy(query @ np.concatenate([positive, negative]).T, [0, 1, 2])
    given = losses.in_batch(tensor(query), tensor(positive), tensor(negative) if negatives else None)
    assert float(given) == pytest.approx(expected, rel=1e-10)


def test_in_batch_gradient_of_queries_positives_and_negatives() -> None:
    assert_gradients_are_slopes(
        losses.in_batch, normal(2, 3, seed=7), normal(2, 3, seed=8), normal(3, 3, seed=9)
    )


def test_in_batch_refuses_unpaired_rows() -> None:
    with pytest.raises(ValueError, match=r"query is .*\[2, 3\].*, positive .*\[4, 3\]"):
        losses.in_batch(paddle.ones([2, 3]), paddle.ones([4, 3]))


MASK = np.zeros((3, 5), dtype=bool)
MASK[0, [1, 4]] = MASK[2, [0, 1, 3, 4]] = True


def cross_entropy_of_the_rest(scores: np.ndarray, mask: np.ndarray) -> float:
    """The cross entropy of the diagonal, of rows from which the masked scores have been removed."""
    rows = range(len(scores))
    kept = [
        np.concatenate([scores[i, i : i + 1], np.delete(scores[i], [i, *mask[i].nonzero()[0]])]) for i in rows
    ]
    return float(np.mean([reference.cross_entropy(row[None], [0]) for row in kept]))


def test_what_is_masked_has_no_part_in_the_loss() -> None:
    query, positive, negative = normal(3, 6, seed=7), normal(3, 6, seed=8), normal(2, 6, seed=9)
    given = losses.in_batch(*map(tensor, (query, positive, negative)), paddle.to_tensor(MASK))
    scores = query @ np.concatenate([positive, negative]).T
    assert float(given) == pytest.approx(cross_entropy_of_the_rest(scores, MASK), rel=1e-10)
    assert float(given) < losses.in_batch(*map(tensor, (query, positive, negative))) - 0.1


def test_what_is_masked_has_no_part_in_the_gradient() -> None:
    """Queries 0 and 2 do not move by passages that they are not contrasted with, nor these by them."""

    def masked(*vectors: paddle.Tensor) -> paddle.Tensor:
        return losses.pair(*vectors, alpha=0.4, mask=paddle.to_tensor(MASK))

    vectors = normal(3, 3, seed=7), normal(3, 3, seed=8), normal(2, 3, seed=9)
    assert_gradients_are_slopes(masked, *vectors)
    only = np.ones((1, 2), dtype=bool)
    only[0, 0] = False
    tensors = [tensor(array) for array in (vectors[0][:1], vectors[1][:1], vectors[2][:1])]
    losses.in_batch(*tensors, paddle.to_tensor(only)).backward()
    assert not any(each.grad.numpy().any() for each in tensors)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_mask_of_nothing_changes_no_bit(dtype: str) -> None:
    arrays = [normal(3, 6, seed=7), normal(3, 6, seed=8), normal(2, 6, seed=9)]
    results = []
    for mask in (None, paddle.zeros([3, 5], dtype="bool")):
        vectors = [paddle.to_tensor(array, dtype=dtype, stop_gradient=False) for array in arrays]
        loss = losses.pair(*vectors, alpha=0.3, mask=mask)
        loss.backward()
        results.append([loss.numpy(), *(vector.grad.numpy() for vector in vectors)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


# PAIR -------------------------------------------------------------------------------------------


def passage_centric_by_hand(query: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    scores = positive @ np.concatenate([query, negative]).T  # column i: the query of positive i
    return reference.cross_entropy(scores, range(len(query)))


@pytest.mark.parametrize("negatives", [1, 3, 5])
def test_passage_centric_equals_the_oracle(negatives: int) -> None:
    query, positive, negative = normal(3, 6, seed=7), normal(3, 6, seed=8), normal(negatives, 6, seed=9)
    given = losses.passage_centric(tensor(query), tensor(positive), tensor(negative))
    assert float(given) == pytest.approx(passage_centric_by_hand(query, positive, negative), rel=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6, 1.0])
def test_pair_weighs_the_two_sides(alpha: float) -> None:
    query, positive, negative = normal(3, 6, seed=7), normal(3, 6, seed=8), normal(3, 6, seed=9)
    query_centric = reference.cross_entropy(query @ np.concatenate([positive, negative]).T, [0, 1, 2])
    passage_centric = passage_centric_by_hand(query, positive, negative)
    given = losses.pair(tensor(query), tensor(positive), tensor(negative), alpha=alpha)
    assert float(given) == pytest.approx((1 - alpha) * query_centric + alpha * passage_centric, rel=1e-10)


def test_pair_does_not_contrast_a_positive_with_queries_that_it_answers_and_what_is_masked_for_its_own() -> (
    None
):
    query, positive, negative = normal(3, 6, seed=7), normal(3, 6, seed=8), normal(2, 6, seed=9)
    given = losses.passage_centric(*map(tensor, (query, positive, negative)), mask=paddle.to_tensor(MASK))
    scores = positive @ np.concatenate([query, negative]).T
    mask = np.zeros_like(MASK)
    mask[1, 0] = mask[0, 2] = mask[1, 2] = True  # positive 1 answers queries 0 and 2, positive 0 query 2
    mask[0, 4] = mask[2, 3] = mask[2, 4] = True
    assert float(given) == pytest.approx(cross_entropy_of_the_rest(scores, mask), rel=1e-10)


def test_a_tenth_of_pair_is_passage_centric_by_default() -> None:
    vectors = [tensor(normal(3, 6, seed=seed)) for seed in (7, 8, 9)]
    assert float(losses.pair(*vectors)) == float(losses.pair(*vectors, alpha=0.1))


@pytest.mark.parametrize("loss", [losses.passage_centric, losses.pair], ids=lambda loss: loss.__name__)
def test_pair_gradient_of_queries_positives_and_negatives(loss: Callable[..., paddle.Tensor]) -> None:
    assert_gradients_are_slopes(loss, normal(2, 3, seed=7), normal(2, 3, seed=8), normal(3, 3, seed=9))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_pair_refuses_an_alpha_outside_0_to_1(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha={alpha}, expected 0 to 1"):
        losses.pair(*(paddle.ones([2, 3]) for _ in range(3)), alpha=alpha)


# Binary cross entropy ---------------------------------------------------------------------------


def test_binary_cross_entropy_is_that_of_two_logits_whose_difference_is_the_score() -> None:
    logits, labels = normal(6, 2, seed=3), np.array([0.0, 1, 1, 0, 1, 0])
    expected = reference.cross_entropy(logits, labels.astype(int))
    given = losses.binary_cross_entropy(tensor(logits[:, 1] - logits[:, 0]), paddle.to_tensor(labels))
    assert float(given) == pytest.approx(expected, rel=1e-10)


def test_binary_cross_entropy_gradient() -> None:
    labels = paddle.to_tensor([0.0, 1.0, 1.0])
    assert_gradients_are_slopes(lambda s: losses.binary_cross_entropy(s, labels), normal(3, seed=4))


def test_binary_cross_entropy_refuses_another_number_of_labels() -> None:
    with pytest.raises(ValueError, match=r"scores are \[3\], labels \[2\]: one label a score"):
        losses.binary_cross_entropy(paddle.ones([3]), paddle.ones([2]))


# AR2 --------------------------------------------------------------------------------------------

NORMALIZATIONS = ["released", "paper"]
# Scores of a retriever and of a ranker for two groups; in the second group the ranker is mistaken.
FOUND, JUDGED = normal(2, 4, seed=5), np.array([[3.0, 1.0, -2.0, 0.5], [-1.0, 2.0, 0.0, -3.0]])


def softmax(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def ar2_released(found: np.ndarray, judged: np.ndarray, temperature: float) -> tuple[float, float]:
    """Line for line what `co_training_wiki_train.py` computes, in NumPy."""
    eps = 1e-7
    retriever, ranker = softmax(found), softmax(judged / temperature)
    both = np.stack([np.repeat(judged[:, :1], judged.shape[1], axis=1), judged], axis=-1)
    reward = np.log(softmax(both.reshape(-1, 2)).reshape(both.shape)[:, :, 0] + eps)
    normal_loss = (-ranker * np.log(retriever + eps)).sum() / len(found)
    return normal_loss, (reward * np.log(retriever + eps)).sum()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_ar2_equals_the_released_code(weight: float, temperature: float) -> None:
    found = losses.ar2_retriever(tensor(FOUND), tensor(JUDGED), weight, temperature, normalization="released")
    distillation, adversarial = ar2_released(FOUND, JUDGED, temperature)
    assert float(found["distillation"]) == pytest.approx(distillation, rel=1e-9)
    assert float(found["adversarial"]) == pytest.approx(adversarial, rel=1e-9)
    expected = weight * adversarial + (1 - weight) * distillation
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-9)


def test_ar2_as_the_paper_writes_it() -> None:
    found = losses.ar2_retriever(tensor(FOUND), tensor(JUDGED))
    probability = softmax(FOUND[:, 1:])
    reward = -np.log1p(np.exp(JUDGED[:, 1:] - JUDGED[:, :1]))
    assert float(found["adversarial"]) == pytest.approx((probability * reward).sum() / 2, rel=1e-9)
    distillation = -(softmax(JUDGED) * np.log(softmax(FOUND))).sum() / 2
    assert float(found["distillation"]) == pytest.approx(distillation, rel=1e-9)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_ar2_gradient_of_the_retriever_alone(normalization: str) -> None:
    assert_gradients_are_slopes(
        lambda found: losses.ar2_retriever(found, tensor(JUDGED), normalization=normalization)["loss"], FOUND
    )
    found, judged = tensor(FOUND), tensor(JUDGED)
    losses.ar2_retriever(found, judged, normalization=normalization)["loss"].backward()
    assert judged.grad is None


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_adversarial_term_draws_the_retriever_to_what_deceives_the_ranker(normalization: str) -> None:
    """A step along the gradient raises the score of the negative that the ranker scores highest."""
    found, judged = tensor(np.zeros((1, 4))), tensor(np.array([[0.0, 5.0, -5.0, -6.0]]))
    losses.ar2_retriever(found, judged, adversarial_weight=1.0, normalization=normalization)[
        "loss"
    ].backward()
    step = -found.grad.numpy()[0]
    assert step.argmax() == 1
    assert step[1] > 0 > step[2]


def test_the_released_term_grows_with_the_batch_and_the_papers_does_not() -> None:
    terms = {}
    for name in NORMALIZATIONS:
        terms[name] = [
            float(losses.ar2_retriever(tensor(f), tensor(j), normalization=name)["adversarial"])
            for f, j in [(FOUND, JUDGED), (np.tile(FOUND, (3, 1)), np.tile(JUDGED, (3, 1)))]
        ]
    assert terms["released"][1] == pytest.approx(3 * terms["released"][0], rel=1e-9)
    assert terms["paper"][1] == pytest.approx(terms["paper"][0], rel=1e-9)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_ar2_of_far_apart_scores_is_finite(normalization: str) -> None:
    found = paddle.to_tensor([[-300.0, 300.0, 0.0]], stop_gradient=False)
    judged = paddle.to_tensor([[-400.0, 400.0, 0.0]])
    loss = losses.ar2_retriever(found, judged, normalization=normalization)["loss"]
    loss.backward()
    assert np.isfinite(float(loss)) and np.isfinite(found.grad.numpy()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization": "sum"}, "normalization='sum'"),
        ({"adversarial_weight": 1.5}, "adversarial_weight=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_ar2_refuses_wrong_settings(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.ar2_retriever(tensor(FOUND), tensor(JUDGED), **change)


def test_ar2_refuses_other_lists_and_lists_without_negatives() -> None:
    with pytest.raises(ValueError, match=r"\[2, 4\].*\[2, 3\]"):
        losses.ar2_retriever(tensor(FOUND), tensor(JUDGED[:, :3]))
    with pytest.raises(ValueError, match="at least one negative"):
        losses.ar2_retriever(tensor(FOUND[:, :1]), tensor(JUDGED[:, :1]))
