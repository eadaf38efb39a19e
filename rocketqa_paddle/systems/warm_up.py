"""The warm-up with which systems of rounds begin: each model is trained alone."""

from rocketqa_paddle.data.dataset import Deal
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.runs.artefacts import ModelHandle, TrainedModel
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.settings import WarmedUpSettings

WARM_UP = "warm-up"


def warm_up(
    run: Run, s: WarmedUpSettings, retriever: ModelHandle, deal: Deal, depth: int
) -> tuple[TrainedModel, TrainedModel]:
    """Train the retriever with in-batch negatives, then the re-ranker on lists of what it finds.

    The deal gives the queries of both; a model that gets none is taken as it is. `depth` candidates are
    retrieved a query.
    """
    queries = deal.take("train.retriever", s.warmup_retriever.queries)
    groups = run.mine(Miner.undenoised, queries, negatives=0, candidates={})
    retriever = run.train_retriever(WARM_UP, "warmed up", retriever, groups, s.warmup_retriever)

    queries, lists = deal.take("train.reranker", s.warmup_reranker.queries), s.warmup_reranker
    candidates = run.search(retriever, queries, depth) if queries else {}
    values = {"candidates": candidates, "easy": lists.easy_negatives}
    groups = run.mine(Miner.undenoised, queries, negatives=lists.negatives, **values)
    initial = run.initial_reranker()
    reranker = run.train_reranker(WARM_UP, "warmed up", initial, groups, lists, over=retriever)
    return retriever, reranker


def round_names(count: int) -> list[str]:
    """The names of the rounds' steps."""
    return [f"round-{number:03d}" for number in range(1, count + 1)]
