"""What `test_distributed.py` computes once in one process and once in each of two, and compares.

    python distributed_worker.py FOLDER

Every rank writes FOLDER/rank-R.json and FOLDER/rank-R.npz; for `test_contrastive.py`, rank 0 writes
FOLDER/gradients.npz as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rocketqa_paddle.runtime.device import import_paddle, tune_cpu

tune_cpu()
import_paddle()

import contrastive_worker  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402
import toy  # noqa: E402

from rocketqa_paddle import losses  # noqa: E402
from rocketqa_paddle.mining.miner import Miner  # noqa: E402
from rocketqa_paddle.networks.forward import reranker_scores, retriever_scores  # noqa: E402
from rocketqa_paddle.records import Group  # noqa: E402
from rocketqa_paddle.runtime import distributed  # noqa: E402
from rocketqa_paddle.search import retrieval  # noqa: E402
from rocketqa_paddle.search.retrieval import CorpusIndex  # noqa: E402
from rocketqa_paddle.settings import OptimizerSettings, TrainingSettings  # noqa: E402
from rocketqa_paddle.training.log import MetricsLog  # noqa: E402
from rocketqa_paddle.training.order import Sampler, shuffled  # noqa: E402
from rocketqa_paddle.training.trainer import Trainer  # noqa: E402

GLOBAL_BATCH, STEPS = 6, 8


def work(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Compute all that is compared: plain values, and arrays."""
    distributed.init()
    tokens = toy.tokenizer(folder / f"vocabulary-{distributed.rank()}")
    found = {
        "rank": [distributed.rank(), distributed.world_size(), distributed.is_main()],
        "shards": [distributed.gather(list(distributed.shard(range(count)))) for count in range(8)],
        "gathered": distributed.gather({"rank": distributed.rank(), "text": "π" * 1000 * distributed.rank()}),
        **searches(tokens, folder),
    }
    arrays, found["batches"] = train_jointly(tokens, folder)
    return found, {**gradients(), **arrays}


def searches(tokens, folder: Path) -> dict:
    """Runs as plain values. The small corpus has fewer passages than there are ranks, and so do queries."""
    paddle.seed(7)
    retriever, reranker = toy.dual(tokens, pooling="mean"), toy.cross(tokens, dropout=0.0)
    collection = toy.collection()
    queries, passages = collection.splits["dev"].queries, collection.passages
    index = CorpusIndex(retriever, passages, progress="")
    index.save(folder / "index", "0123")
    index.save(folder / "own", retriever.digest())
    run = index.search(queries, 10)
    small = CorpusIndex(retriever, {"p7": passages["p7"]}, progress="")
    small.save(folder / "small", "0123")
    one = {"dev3": queries["dev3"]}
    runs = {
        "search": run,
        "loaded search": CorpusIndex.load(folder / "own", retriever, passages).search(queries, 10),
        "rerank": retrieval.rerank(reranker, run, passages, queries, 6, batch_size=4, progress=""),
        "small search": small.search(queries, 10),
        "small rerank": retrieval.rerank(reranker, small.search(one, 3), passages, one, 3, progress=""),
    }
    return {
        name: {query: [(hit.passage_id, hit.rank, hit.score) for hit in hits] for query, hits in run.items()}
        for name, run in runs.items()
    }


def gradients() -> dict[str, np.ndarray]:
    """Average over ranks, of which only the last has a gradient for the second parameter."""
    first, second = paddle.create_parameter([2, 3], "float32"), paddle.create_parameter([4], "float32")
    first.grad = paddle.full([2, 3], 1.0 + 2 * distributed.rank())
    if distributed.rank() == distributed.world_size() - 1:
        second.grad = paddle.arange(4, dtype="float32") * distributed.world_size()
    distributed.average_gradients([first, second])
    return {"gradient.first": first.grad.numpy(), "gradient.second": second.grad.numpy()}


def twice(examples: Sequence[Group], batch_size: int, seed: Sequence) -> Sampler:
    """A batch sampler of a test's own: every batch comes twice in a row."""
    sampler = shuffled(examples, batch_size, seed)
    return lambda step: sampler(step // 2)


def train_jointly(tokens, folder: Path) -> tuple[dict[str, np.ndarray], list[list[str]]]:
    """Parameters before and after some steps of the joint loss, and the queries of this rank in each step.

    Every rank but 0 starts from other parameters. There are as many chunks as ranks.
    """
    paddle.seed(1 + distributed.rank())
    retriever, reranker = toy.dual(tokens, pooling="mean"), toy.cross(tokens, dropout=0.0)
    collection = toy.collection()
    split = collection.splits["train"]
    miner = Miner(collection.passages, split.qrels, 3, seed=1)
    groups = list(miner.undenoised(split.queries.values(), {}))

    batches = []

    def loss(batch: Sequence[Group]) -> dict[str, paddle.Tensor]:
        batches.append([group.query.id for group in batch])
        scores = retriever_scores(retriever, batch), reranker_scores(reranker, batch)
        return losses.joint_distillation(*scores, reduction="batchmean")

    trainer = Trainer(
        "joint",
        {"retriever": retriever.network, "reranker": reranker.network},
        groups,
        loss,
        TrainingSettings(
            batch_size=GLOBAL_BATCH // distributed.world_size(),
            steps=STEPS,
            chunks=distributed.world_size(),
            optimizer=OptimizerSettings(learning_rate=1e-3, warmup_ratio=0.2),
        ),
        folder=folder / "last",
        log=MetricsLog(folder / "metrics.jsonl"),
        rates={"retriever": 0.5},
        save_minutes=0.0,
        batches=twice,
    )
    parameters = trainer.optimizer.parameters
    before = {f"before.{name}": p.numpy() for name, p in parameters.items()}
    trainer.fit()
    return before | {f"after.{name}": p.numpy() for name, p in parameters.items()}, batches


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found, arrays = work(out)
    stem = out / f"rank-{distributed.rank()}"
    np.savez(stem.with_suffix(".npz"), **arrays)
    stem.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")
    contrastive_worker.write(out)
