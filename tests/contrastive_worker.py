"""What `test_contrastive.py` runs in one, two and four processes, and compares: gradients of one step.

    python contrastive_worker.py FOLDER

Rank 0 writes FOLDER/gradients.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rocketqa_paddle.runtime.device import import_paddle, tune_cpu

tune_cpu()
import_paddle()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import toy  # noqa: E402

from rocketqa_paddle import contrastive  # noqa: E402
from rocketqa_paddle.contrastive import Contrastive  # noqa: E402
from rocketqa_paddle.mining.miner import Miner  # noqa: E402
from rocketqa_paddle.runtime import distributed  # noqa: E402
from rocketqa_paddle.settings import StageSettings  # noqa: E402
from rocketqa_paddle.training.trainer import MetricsLog, Trainer  # noqa: E402

GLOBAL_BATCH = 8
CASES = {
    "positives": {"negatives": 0},
    "hard negatives": {"negatives": 2},
    "one tower, passage-centric": {"negatives": 2, "alpha": 0.1},
}
"""What a step contrasts."""


def step(
    folder: Path,
    negatives: int,
    alpha: float = 0.0,
    accumulate: int = 1,
    cross_batch: bool = True,
    shares: int = 1,
) -> dict[str, np.ndarray]:
    """Loss and averaged gradients of the first step, by parameter.

    With `shares`, the loss is the mean over equal shares of the batch, each contrasted with itself.
    """
    paddle.seed(3)
    retriever = toy.dual(toy.tokenizer(folder), pooling="mean", shared=alpha > 0)
    collection = toy.collection()
    split = collection.splits["train"]
    miner = Miner(collection.passages, split.qrels, negatives, seed=1)
    contrast = contrastive.in_batch(retriever, alpha, cross_batch=cross_batch)
    trainer = Trainer(
        "step",
        {"retriever": retriever.network},
        list(miner.undenoised(split.queries.values(), {})),
        contrast if shares == 1 else Contrastive(contrast.encode, of_shares(contrast.loss, shares)),
        StageSettings(batch_size=GLOBAL_BATCH // distributed.world_size(), steps=1, accumulate=accumulate),
        folder=folder / "last",
        log=MetricsLog(folder / "metrics.jsonl"),
    )
    values = trainer._backward_contrastive(trainer._batch(0))
    distributed.average_gradients(trainer.parameters.values())
    gradients = {name: p.grad.numpy() for name, p in trainer.parameters.items() if p.grad is not None}
    return {"loss": np.array(values["loss"]), **gradients}


def of_shares(loss, shares: int):
    """The mean of a loss over shares of its vectors."""

    def mean(*vectors):
        parts = [loss(*share)["loss"] for share in zip(*(v.split(shares) for v in vectors), strict=True)]
        return {"loss": sum(parts) / shares}

    return mean


def steps(folder: Path) -> dict[str, np.ndarray]:
    """Every case, in one part and in parts."""
    distributed.init()
    own = folder / f"rank-{distributed.rank()}"
    return {
        f"{case}/{accumulate}/{name}": array
        for case, settings in CASES.items()
        for accumulate in (1, 2)
        for name, array in step(own, accumulate=accumulate, **settings).items()
    }


if __name__ == "__main__":
    arrays = steps(Path(sys.argv[1]))
    own = step(Path(sys.argv[1]) / f"rank-{distributed.rank()}", negatives=2, cross_batch=False)
    arrays |= {f"own/{name}": array for name, array in own.items()}
    arrays["shares"] = np.array(distributed.world_size())
    if distributed.is_main():
        np.savez(Path(sys.argv[1]) / "gradients.npz", **arrays)
