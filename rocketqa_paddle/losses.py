"""Score tensors in, a scalar loss out: the listwise head that retriever and re-ranker share.

Throughout, `scores` is `[groups, group size]`: a row is a query's passages, the positive in column 0.
Nothing here knows of networks, so any pair of scorers can be trained with it.
"""

import math
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from rocketqa_paddle import settings

Reduction = Literal["mean", "batchmean"]
_EPSILON = 1e-7  # added to probabilities before their logarithm, as in AR2's released code


def listwise_cross_entropy(scores: Tensor) -> Tensor:
    """Negative log-probability of the positive under a softmax over its list, averaged over groups.

    RocketQAv2 (Ren et al., EMNLP 2021), eq. 6; the reference's `joint_encoder.py`.
    """
    _check_lists(scores=scores)
    return -_log_softmax(scores)[:, 0].mean()


def listwise_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    target: Literal["teacher", "student"] = "teacher",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL divergence between the softmax distributions that two scorers give to the same lists.

    Args:
        student: `[groups, group size]`. Gets gradient.
        teacher: the same lists. Gets gradient as well; detach it where it should not.
        target: whose distribution p stands in front of the logarithm of `sum p log(p / q)`.
            `teacher` is the released code's `kldiv_loss(x=student, target=teacher)`; `student`
            is the direction of RocketQAv2's eq. 5.
        reduction: `mean` over all elements, as the released code; `batchmean` sums a list and
            averages over lists, which is the divergence itself (`group size` times as large).
    """
    _check_lists(student=student, teacher=teacher)
    _check_option("target", target, ("teacher", "student"))
    _check_option("reduction", reduction, ("mean", "batchmean"))
    log_student, log_teacher = _log_softmax(student), _log_softmax(teacher)
    log_p, log_q = (log_teacher, log_student) if target == "teacher" else (log_student, log_teacher)
    divergence = log_p.exp() * (log_p - log_q)
    return divergence.mean() if reduction == "mean" else divergence.sum(axis=-1).mean()


def joint_distillation(
    retriever_scores: Tensor,
    reranker_scores: Tensor,
    *,
    target: Literal["reranker", "retriever"] = "reranker",
    reduction: Reduction = "mean",
    mutual: bool = False,
    kl_weight: float = 1.0,
) -> dict[str, Tensor]:
    """RocketQAv2's dynamic listwise distillation: supervise the re-ranker, teach the retriever.

    RocketQAv2 (Ren et al., EMNLP 2021), eq. 5 to 7. The defaults are those of the released code,
    which made the published models; the paper writes the divergence the other way round.

    Args:
        retriever_scores: `[groups, group size]`. Gets gradient from the divergence alone.
        reranker_scores: the same lists. Gets gradient from the cross entropy, and with `mutual`
            from the divergence.
        target: whose softmax is the target of the divergence (`retriever`: the paper's eq. 5).
        reduction: see `listwise_kl`.
        mutual: whether the divergence moves the re-ranker as well.
        kl_weight: factor of the divergence.

    Returns:
        `loss`, and its parts `cross_entropy` and `kl` (before the weight).
    """
    _check_option("target", target, ("reranker", "retriever"))
    teacher = reranker_scores if mutual else reranker_scores.detach()
    cross_entropy = listwise_cross_entropy(reranker_scores)
    direction = "teacher" if target == "reranker" else "student"
    kl = listwise_kl(retriever_scores, teacher, target=direction, reduction=reduction)
    return {"loss": cross_entropy + kl_weight * kl, "cross_entropy": cross_entropy, "kl": kl}


def ar2_retriever(
    retriever_scores: Tensor,
    ranker_scores: Tensor,
    adversarial_weight: float = 0.5,
    temperature: float = 1.0,
    *,
    normalization: Literal["released", "paper"] = "paper",
) -> dict[str, Tensor]:
    """AR2's loss of the retriever: learn from the ranker, and find what the ranker mistakes for the positive.

    AR2 (Zhang et al., ICLR 2022), section 3; `co_training_wiki_train.py` of the released code. The reward of
    a candidate is the log-probability that the ranker prefers the positive to it, which is 0 at best. The
    adversarial term is small where the retriever gives its probability to candidates with a low reward.

    Args:
        retriever_scores: `[groups, group size]`, the positive in column 0. Gets gradient.
        ranker_scores: the same lists, by the cross encoder. Gets no gradient.
        adversarial_weight: of the adversarial term; the distillation has the rest.
        temperature: the ranker's scores are divided by this for the distillation, not for the reward.
        normalization: `paper`: the expected reward of a negative that the retriever draws, so each weighs
            with its probability among the negatives; averaged over groups. `released`: the rewards of all
            passages of a list, the positive included, times the retriever's log-probabilities, summed over
            groups, so that the term grows with them.

    Returns:
        `loss`, and its parts `distillation`, which is the cross entropy of the retriever's softmax under
        the ranker's, averaged over groups, and `adversarial` (both before their weights).
    """
    _check_option("normalization", normalization, ("released", "paper"))
    _check_lists(retriever_scores=retriever_scores, ranker_scores=ranker_scores)
    settings.fraction(adversarial_weight=adversarial_weight)
    settings.positive(temperature=temperature)
    ranker_scores = _single(ranker_scores.detach())
    target = F.softmax(ranker_scores / temperature, axis=-1)
    rewards = F.log_sigmoid(ranker_scores[:, :1] - ranker_scores)
    log_probabilities = _log_softmax(retriever_scores)
    if normalization == "released":
        log_probabilities = (log_probabilities.exp() + _EPSILON).log()
        adversarial = ((rewards.exp() + _EPSILON).log() * log_probabilities).sum()
    else:
        negatives = F.softmax(_single(retriever_scores)[:, 1:], axis=-1)
        adversarial = (rewards[:, 1:] * negatives).sum(axis=-1).mean()
    distillation = -(target * log_probabilities).sum(axis=-1).mean()
    loss = adversarial_weight * adversarial + (1 - adversarial_weight) * distillation
    return {"loss": loss, "distillation": distillation, "adversarial": adversarial}


def in_batch(
    query: Tensor, positive: Tensor, negative: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Cross entropy of every query's own positive among all positives and hard negatives of the batch.

    DPR (Karpukhin et al., EMNLP 2020), eq. 2, and step 1 of RocketQA.

    Args:
        query: `[n, hidden]`. Gets gradient, as do the others.
        positive: `[n, hidden]`; row i answers query i.
        negative: `[m, hidden]`, any number of hard negatives.
        mask: `[n, n + m]`, bool; where it is true, query and passage are not contrasted. Never the query and
            its own positive.
    """
    if query.shape != positive.shape:
        raise ValueError(
            f"query is {list(query.shape)}, positive {list(positive.shape)}: row i of each belong together"
        )
    passages = positive if negative is None else paddle.concat([positive, negative])
    with paddle.amp.auto_cast(enable=False):  # products of hundreds would lose their differences in fp16
        scores = paddle.matmul(_single(query), _single(passages), transpose_y=True)  # [n, n + m]
    if mask is not None:
        scores = paddle.where(mask, paddle.full_like(scores, -math.inf), scores)
    return -paddle.diagonal(_log_softmax(scores)).mean()


def passage_centric(
    query: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Cross entropy of every positive's own query among all queries and hard negatives of the batch.

    PAIR (Ren et al., Findings of ACL 2021), the passage-centric loss L_P: a positive is to be nearer to its
    query than to other passages. The other queries of the batch are negatives, as in the reference
    (research/PAIR_ACL2021/model/src/finetune/dual_encoder.py). The vectors and the mask are those of
    `in_batch`: what is no negative of a query is not contrasted with the query's positive either.

    `positive` and `negative` have been divided by `temperature`, so that their products with a query are
    scores. The product of two passages has been divided twice, which is undone.
    """
    if mask is not None:
        count = len(query)
        mask = paddle.concat([mask[:, :count].T, mask[:, count:]], axis=1)
    return in_batch(positive, query, negative * temperature, mask)


def pair(
    query: Tensor,
    positive: Tensor,
    negative: Tensor,
    alpha: float = 0.1,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """PAIR's pre-training loss: `(1 - alpha) * in_batch + alpha * passage_centric`.

    PAIR (Ren et al., Findings of ACL 2021), the combined loss of its first stage, L_Q and L_P, whose vectors,
    mask and temperature it takes. `alpha` is 0 to 1. One encoder must be shared by queries and passages, so
    that passages can be compared with passages.
    """
    settings.fraction(alpha=alpha)
    query_centric = in_batch(query, positive, negative, mask)
    centred = passage_centric(query, positive, negative, temperature=temperature, mask=mask)
    return (1 - alpha) * query_centric + alpha * centred


def binary_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of two classes, of which the score is the log-odds, averaged over pairs.

    The loss of RocketQA's re-ranker (Qu et al., NAACL 2021): `softmax_with_cross_entropy` over two logits in
    the reference's `cross_encoder_train.py`, whose difference is the score here.

    Args:
        scores: `[pairs]`. Gets gradient.
        labels: `[pairs]`, 1 for relevant and 0 for not.
    """
    if scores.shape != labels.shape:
        raise ValueError(f"scores are {list(scores.shape)}, labels {list(labels.shape)}: one label a score")
    scores = _single(scores)
    return F.binary_cross_entropy_with_logits(scores, labels.astype(scores.dtype))


def _check_lists(**named: Tensor) -> None:
    """Refuse scores that are no lists with a negative, or not of the same lists."""
    (name, first), *others = ((name, list(scores.shape)) for name, scores in named.items())
    if len(first) != 2 or first[1] < 2:
        raise ValueError(
            f"{name} has shape {first}, expected [groups, group size] with the positive in column 0 and at "
            "least one negative"
        )
    for other, shape in others:
        if shape != first:
            raise ValueError(f"{name} is {first}, {other} {shape}: they score the same lists")


def _check_option(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name}={given!r}, expected one of {allowed}")


def _log_softmax(scores: Tensor) -> Tensor:
    """Log-softmax over the last axis, in float32 or better. Paddle's own stops at -64 on a CPU."""
    scores = _single(scores)
    return scores - paddle.logsumexp(scores, axis=-1, keepdim=True)


def _single(x: Tensor) -> Tensor:
    """Return a tensor of half precision in float32, any other as it is."""
    return x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x
