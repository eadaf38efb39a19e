"""What `test_contrastive.py` computes in one, two and four processes and compares: gradients of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import toy
from paddle import Tensor

from rocketqa_paddle import contrastive
from rocketqa_paddle.contrastive import Contrastive
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.records import Group, Passage
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.settings import TrainingSettings
from rocketqa_paddle.training.log import MetricsLog
from rocketqa_paddle.training.trainer import Trainer

GLOBAL_BATCH = 8
CASES = {
    "positives": {"negatives": 0},
    "hard negatives": {"negatives": 2},
    "one tower, passage-centric": {"negatives": 2, "alpha": 0.1},
    "teacher's margins": {"negatives": 2, "teacher": True},
    "passages of the same content": {"negatives": 2, "alpha": 0.4, "repeated": True},
}
"""What a step contrasts."""


def groups(negatives: int, count: int = 40) -> list[Group]:
    """Groups of the toy's training queries with teacher scores, which tell the passages' numbers."""
    collection = toy.collection()
    split = collection.splits["train"]
    miner = Miner(collection.passages, split.qrels, negatives, seed=1)
    scores = {passage_id: float(int(passage_id[1:]) % 7) for passage_id in collection.passages}
    return [
        miner.group(query, miner.positive(query), miner.fill_up(query, []), "random", scores)
        for query in [*split.queries.values()][:count]
    ]


def alike(made: Sequence[Group]) -> list[Group]:
    """Groups of which any eight have queries, positives and negatives that say the same, under other ids."""
    queries, few = [group.query for group in made[:6]], [group.passages[0] for group in made[:5]]
    alike = []
    for row, group in enumerate(made):
        positive = replace(few[row % 5], id=f"twin{row}", text=few[row % 5].text.upper())
        asked = Passage(f"asked{row}", "a title", queries[(row + 1) % 6].text)
        passages, others = (positive, group.passages[1], asked), (few[(row + 1) % 5],) * (row % 2)
        query = replace(queries[row % 6], id=f"again{row}")
        alike.append(replace(group, query=query, passages=passages, other_positives=others))
    return alike


def margin_mse(retriever: Checkpoint) -> Contrastive[Group]:
    """Margin-MSE (Hofstätter et al., 2020) over all passages of the batch, each with its teacher score."""

    def teacher(batch: Sequence[Group]) -> tuple[Tensor]:
        return (paddle.to_tensor([group.scores for group in batch]),)

    def loss(query: Tensor, positive: Tensor, negative: Tensor, given: Tensor) -> dict[str, Tensor]:
        scores = query @ paddle.concat([positive, negative]).T
        judged = paddle.concat([given[:, 0], given[:, 1:].flatten()])
        margins = paddle.diag(scores).unsqueeze(1) - scores
        return {"loss": F.mse_loss(margins, given[:, :1] - judged)}

    return Contrastive(contrastive.in_batch(retriever).encode, loss, constants=teacher)


def step(
    folder: Path,
    negatives: int,
    alpha: float = 0.0,
    teacher: bool = False,
    repeated: bool = False,
    chunks: int = 1,
    cross_batch: bool = True,
    shares: int = 1,
) -> dict[str, np.ndarray]:
    """Loss and averaged gradients of the first step, by parameter.

    With `shares`, the loss is the mean over equal shares of the batch, each contrasted with itself.
    """
    paddle.seed(3)
    retriever = toy.dual(toy.tokenizer(folder), pooling="mean", shared=alpha > 0)
    contrast = contrastive.in_batch(retriever, alpha, cross_batch=cross_batch)
    if teacher:
        contrast = margin_mse(retriever)
    trainer = Trainer(
        "step",
        {"retriever": retriever.network},
        alike(groups(negatives)) if repeated else groups(negatives),
        contrast if shares == 1 else of_shares(contrast, shares),
        TrainingSettings(batch_size=GLOBAL_BATCH // distributed.world_size(), steps=1, chunks=chunks),
        folder=folder / "last",
        log=MetricsLog(folder / "metrics.jsonl"),
    )
    values = trainer._backward(trainer._batch(0))
    parameters = trainer.optimizer.parameters
    distributed.average_gradients(parameters.values())
    gradients = {name: p.grad.numpy() for name, p in parameters.items() if p.grad is not None}
    return {"loss": np.array(values["loss"]), **gradients}


def of_shares(contrast: Contrastive[Group], shares: int) -> Contrastive[Group]:
    """The mean of a loss over shares of the batch."""

    def mask(batch: Sequence[Group]) -> Tensor:
        size = len(batch) // shares
        return paddle.concat(
            [contrast.mask(batch[first : first + size]) for first in range(0, len(batch), size)]
        )

    def mean(*vectors: Tensor, mask: Tensor) -> dict[str, Tensor]:
        parts = zip(*(tensor.split(shares) for tensor in (*vectors, mask)), strict=True)
        losses = [contrast.loss(*share, mask=masked)["loss"] for *share, masked in parts]
        return {"loss": sum(losses) / shares}

    return Contrastive(contrast.encode, mean, mask=mask)


def steps(folder: Path) -> dict[str, np.ndarray]:
    """Every case, in one chunk and in three."""
    return {
        f"{case}/{chunks}/{name}": array
        for case, settings in CASES.items()
        for chunks in (1, 3)
        for name, array in step(folder, chunks=chunks, **settings).items()
    }


def write(folder: Path) -> None:
    """Compute every case in this process, one of many, and let rank 0 write `gradients.npz`."""
    distributed.init()
    own = folder / f"rank-{distributed.rank()}"
    arrays = steps(own)
    alone = step(own, negatives=2, cross_batch=False)
    arrays |= {f"own/{name}": array for name, array in alone.items()}
    if distributed.is_main():
        np.savez(folder / "gradients.npz", shares=np.array(distributed.world_size()), **arrays)
