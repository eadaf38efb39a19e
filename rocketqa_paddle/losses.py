"""Score tensors in, a scalar loss out: the listwise head that retriever and re-ranker share.

Throughout, `scores` is `[groups, group size]`: a row is a query's passages, the positive in column 0.
Nothing here knows of networks, so any pair of scorers can be trained with it.
"""

from __future__ import annotations

from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor

Direction = Literal["reranker", "retriever"]
Reduction = Literal["mean", "batchmean"]


def listwise_cross_entropy(scores: Tensor) -> Tensor:
    """Negative log-probability of the positive under a softmax over its list, averaged over groups.

    RocketQAv2 (Ren et al., EMNLP 2021), eq. 6; `softmax_with_cross_entropy` in the reference's
    `joint_encoder.py`.

    Args:
        scores: `[groups, group size]`, the positive in column 0. Gets gradient.
    """
    _check_scores(scores, "scores")
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
        teacher: the same shape. Gets gradient too; detach it where it should not.
        target: whose distribution p stands in front of the logarithm of `sum p log(p / q)`.
            `teacher` is the released code's `kldiv_loss(x=student, target=teacher)`; `student`
            is the direction of RocketQAv2's eq. 5.
        reduction: `mean` over all elements, as the released code; `batchmean` sums a list and
            averages over lists, which is the divergence itself (`group size` times as large).
    """
    _check_scores(student, "student")
    _check_option("target", target, ("teacher", "student"))
    _check_option("reduction", reduction, ("mean", "batchmean"))
    if teacher.shape != student.shape:
        raise ValueError(
            f"student is {list(student.shape)}, teacher {list(teacher.shape)}: they score the same lists"
        )
    log_student, log_teacher = _log_softmax(student), _log_softmax(teacher)
    log_p, log_q = (log_teacher, log_student) if target == "teacher" else (log_student, log_teacher)
    divergence = log_p.exp() * (log_p - log_q)
    return divergence.mean() if reduction == "mean" else divergence.sum(axis=-1).mean()


def joint_distillation(
    retriever_scores: Tensor,
    reranker_scores: Tensor,
    *,
    target: Direction = "reranker",
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
            from the divergence as well.
        target: whose softmax is the target of the divergence (`retriever`: the paper's eq. 5).
        reduction: see `listwise_kl`.
        mutual: let the divergence move the re-ranker, too.
        kl_weight: factor of the divergence.

    Returns:
        `loss`, and its parts `cross_entropy` and `kl` (before the weight).
    """
    _check_option("target", target, ("reranker", "retriever"))
    teacher = reranker_scores if mutual else reranker_scores.detach()
    cross_entropy = listwise_cross_entropy(reranker_scores)
    kl = listwise_kl(
        retriever_scores,
        teacher,
        target="teacher" if target == "reranker" else "student",
        reduction=reduction,
    )
    return {"loss": cross_entropy + kl_weight * kl, "cross_entropy": cross_entropy, "kl": kl}


def in_batch(query: Tensor, positive: Tensor, negative: Tensor | None = None) -> Tensor:
    """Cross entropy of every query's own positive among all passages of the batch.

    DPR (Karpukhin et al., EMNLP 2020), eq. 2, and step 1 of RocketQA; with `negative`, every
    query sees every hard negative too.

    Args:
        query: `[n, hidden]`. Gets gradient, as do the others.
        positive: `[n, hidden]`; row i answers query i.
        negative: `[m, hidden]`, any number of hard negatives.
    """
    if query.shape != positive.shape:
        raise ValueError(
            f"query is {list(query.shape)}, positive {list(positive.shape)}: row i of each belong together"
        )
    passages = positive if negative is None else paddle.concat([positive, negative])
    with paddle.amp.auto_cast(enable=False):  # products of hundreds would lose their differences in fp16
        scores = paddle.matmul(_single(query), _single(passages), transpose_y=True)  # [n, n + m]
    return -paddle.diagonal(_log_softmax(scores)).mean()


def passage_centric(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Cross entropy of every positive's own query among all queries and hard negatives of the batch.

    PAIR (Ren et al., Findings of ACL 2021), the passage-centric loss L_P: a positive is to be nearer to its
    query than to other passages. As in the reference (research/PAIR_ACL2021/model/src/finetune/
    dual_encoder.py), the other queries of the batch are negatives, too.

    Args:
        query: `[n, hidden]`. Gets gradient, as do the others.
        positive: `[n, hidden]`; row i answers query i.
        negative: `[m, hidden]`, any number of hard negatives.
    """
    return in_batch(positive, query, negative)


def pair(query: Tensor, positive: Tensor, negative: Tensor, alpha: float = 0.1) -> Tensor:
    """PAIR's pre-training loss: `(1 - alpha) * in_batch + alpha * passage_centric`.

    PAIR (Ren et al., Findings of ACL 2021), the combined loss of its first stage, L_Q and L_P weighted by
    alpha. The encoder is shared by queries and passages, so that passages can be compared with passages.

    Args:
        query: `[n, hidden]`. Gets gradient, as do the others.
        positive: `[n, hidden]`; row i answers query i.
        negative: `[m, hidden]`, any number of hard negatives.
        alpha: weight of the passage-centric part, 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}, expected 0 to 1")
    query_centric = in_batch(query, positive, negative)
    return (1 - alpha) * query_centric + alpha * passage_centric(query, positive, negative)


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


def _check_scores(scores: Tensor, name: str) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"{name} has shape {list(scores.shape)}, expected [groups, group size] with the positive in "
            "column 0 and at least one negative"
        )


def _check_option(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name}={given!r}, expected one of {allowed}")


def _log_softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32 or better. Paddle's own stops at -64 on a CPU."""
    scores = _single(scores)
    return scores - paddle.logsumexp(scores, axis=-1, keepdim=True)


def _single(x: Tensor) -> Tensor:
    """In float32, if it was in half precision."""
    return x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x
