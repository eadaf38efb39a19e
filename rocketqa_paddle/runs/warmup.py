"""The first retriever and the first re-ranker of a run, which every system trains before it does its own.

Qu et al., NAACL 2021 (RocketQA), steps 1 and 2; RocketQAv2 and PAIR begin alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import paddle
from paddle import Tensor

from rocketqa_paddle import contrastive, losses
from rocketqa_paddle.data import formats
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import reranker_scores
from rocketqa_paddle.records import Group, Query, Run
from rocketqa_paddle.runs.pipeline import Pipeline
from rocketqa_paddle.runs.stages import Work
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.settings import ContrastiveSettings, RerankerWarmupSettings, StageSettings
from rocketqa_paddle.training.trainer import Loss, total_steps

Queries = Mapping[str, Query]
_BM25_DEPTH = 100  # as the released data of NQ, which are DPR's


def train_retriever(
    run: Pipeline,
    stage: str,
    retriever: Checkpoint,
    queries: Queries,
    settings: StageSettings,
    negatives: int = 0,
    source: Literal["random", "bm25"] = "random",
    *,
    cross_batch: bool = True,
    single_negatives: bool = False,
) -> Checkpoint:
    """Labelled positives against all passages of the batch, on every process, and a few negatives more.

    Args:
        run: whose data.
        stage: gets the checkpoint.
        retriever: to train.
        queries: labelled; none leaves the retriever as it is.
        settings: of the training.
        negatives: beside those in the batch, a query.
        source: where they come from, the whole corpus or what BM25 finds.
        cross_batch: see `contrastive.in_batch`.
        single_negatives: make an example of every negative.
    """

    def groups() -> list[Group]:
        candidates, easy = (_bm25(run, stage, queries), 0) if source == "bm25" else ({}, negatives)
        miner = Miner(run.passages, run.train_split.qrels, negatives, run.settings.seed)
        return mined(run, stage, miner, miner.undenoised(queries.values(), candidates, easy=easy))

    if not queries:
        return run.as_it_is(stage, "retriever", retriever)
    options = {"cross_batch": cross_batch, "single_negatives": single_negatives}
    return contrast(run, stage, retriever, groups, settings, **options)


def contrast(
    run: Pipeline,
    stage: str,
    retriever: Checkpoint,
    groups: Callable[[], list[Group]],
    settings: StageSettings,
    *,
    cross_batch: bool = True,
    single_negatives: bool = False,
    alpha: float = 0.0,
) -> Checkpoint:
    """Train a retriever with in-batch negatives and those of its groups; see `train_retriever`."""

    def examples() -> list[Group]:
        built = groups()
        return [single for group in built for single in group.singles()] if single_negatives else built

    loss = contrastive.in_batch(retriever, alpha, cross_batch=cross_batch)
    return run.trained(stage, {"retriever": retriever}, examples, loss, settings)["retriever"]


def _bm25(run: Pipeline, stage: str, queries: Queries) -> Run:
    path = run.folder / stage / "bm25.tsv"
    if distributed.any_rank(not path.is_file()):  # one answer for all, or some would wait for ever
        run.write_run(path, retrieval.bm25(run.passages, queries, _BM25_DEPTH))
    return formats.read_run(path)


def train_reranker(
    run: Pipeline,
    stage: str,
    queries: Queries,
    candidates: Run,
    settings: RerankerWarmupSettings,
    loss: Literal["binary", "list"],
) -> Checkpoint:
    """Labelled positives against candidates of the first retriever.

    Args:
        run: whose start weights and data.
        stage: gets the checkpoint.
        queries: labelled; none leaves the re-ranker as it is.
        candidates: what the first retriever found for them.
        settings: of the training, and how many negatives a query has.
        loss: cross entropy of every pair, or of every list.
    """
    reranker = run.start_reranker()

    def groups() -> list[Group]:
        miner = Miner(run.passages, run.train_split.qrels, settings.negatives, run.settings.seed)
        easy = settings.easy_negatives
        return mined(run, stage, miner, miner.undenoised(queries.values(), candidates, easy=easy))

    if not queries:
        return run.as_it_is(stage, "reranker", reranker)
    head = list_loss(reranker) if loss == "list" else binary_loss(reranker)
    return run.trained(stage, {"reranker": reranker}, groups, head, settings)["reranker"]


def list_loss(reranker: Checkpoint) -> Loss:
    """Cross entropy of every list."""

    def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
        return {"loss": losses.listwise_cross_entropy(reranker_scores(reranker, batch))}

    return loss


def binary_loss(reranker: Checkpoint) -> Loss:
    """Cross entropy of every pair."""

    def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
        labels = paddle.to_tensor([float(label) for group in batch for label in group.labels])
        return {"loss": losses.binary_cross_entropy(reranker_scores(reranker, batch).flatten(), labels)}

    return loss


def mined(run: Pipeline, stage: str, miner: Miner, groups: Iterable[Group]) -> list[Group]:
    """All groups; tells how many there are, and what could not be built."""
    built = list(groups)
    run.say(f"{stage}: {miner.report}")
    return built


def training_work(model: str, settings: StageSettings, queries: int, negatives: int, scored: int = 0) -> Work:
    """Of training a `retriever` or a `reranker` on groups of one positive and so many negatives.

    `scored` pairs go through a re-ranker before.
    """
    if isinstance(settings, ContrastiveSettings) and settings.single_negatives:
        queries, negatives = queries * negatives, 1
    steps = total_steps(settings, queries) if queries else 0
    groups = steps * settings.batch_size * distributed.world_size()
    texts = groups * (2 + negatives) if model == "retriever" else 0
    pairs = groups * (1 + negatives) if model == "reranker" else 0
    return Work((model,), steps, trained_texts=texts, trained_pairs=pairs, scored=scored, hits=scored)
