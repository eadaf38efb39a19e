"""The losses that train a re-ranker alone, on lists or on single pairs."""

from collections.abc import Sequence

import paddle
from paddle import Tensor

from rocketqa_paddle import losses
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import reranker_scores
from rocketqa_paddle.records import Group
from rocketqa_paddle.training.trainer import Loss


def list_loss(reranker: Checkpoint) -> Loss:
    """Make the loss of lists: the cross entropy over the passages of every group."""

    def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
        return {"loss": losses.listwise_cross_entropy(reranker_scores(reranker, batch))}

    return loss


def binary_loss(reranker: Checkpoint) -> Loss:
    """Make the loss of pairs: the binary cross entropy of every passage and its label."""

    def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
        labels = paddle.to_tensor([float(label) for group in batch for label in group.labels])
        return {"loss": losses.binary_cross_entropy(reranker_scores(reranker, batch).flatten(), labels)}

    return loss
