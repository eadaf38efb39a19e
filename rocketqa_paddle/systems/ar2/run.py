"""AR2: a retriever that seeks what the ranker mistakes for the positive, and a ranker that learns from it.

Zhang et al., ICLR 2022. Warm up each model, the retriever optionally on the inverse cloze task first; then,
in rounds: train the ranker on candidates of the current retriever, train the retriever against the ranker,
encode the corpus again and retrieve the next candidates.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import paddle
from paddle import Tensor

from rocketqa_paddle import losses
from rocketqa_paddle.data.cloze import inverse_cloze
from rocketqa_paddle.data.dataset import Corpus, QuerySet
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import reranker_scores, retriever_scores
from rocketqa_paddle.records import Group, Model, Passage
from rocketqa_paddle.runs.artefacts import Groups, TrainedModel
from rocketqa_paddle.runs.report import report_rounds
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runs.trainings import Schedule, Training
from rocketqa_paddle.settings import TrainingSettings
from rocketqa_paddle.systems.ar2.settings import AR2Settings, ICTSettings
from rocketqa_paddle.systems.warm_up import round_names, warm_up
from rocketqa_paddle.training.optimizer import total_steps
from rocketqa_paddle.training.reranking import list_loss
from rocketqa_paddle.training.trainer import Loss

ICT = "ict"


def train(run: Run, s: AR2Settings) -> None:
    """Pre-train if asked to, warm up both models, then train them against each other, round by round."""
    run.measure_initial()
    retriever, adversarial = run.initial_retriever(), s.adversarial
    if s.ict.passages != 0:
        retriever = run.train_retriever(ICT, "inverse cloze task", retriever, ict_groups(run, s.ict), s.ict)
    deal, negatives = run.deal(adversarial.first_query), adversarial.groups.negatives
    depth = adversarial.groups.depth
    retriever, reranker = warm_up(run, s, retriever, deal, depth)

    warmed_up, rounds = retriever, round_names(adversarial.rounds)
    queries = [deal.take(f"train.{name}", adversarial.queries) for name in rounds]
    for number, name in enumerate(rounds):
        found = run.search(retriever, queries[number], depth)
        mine = partial(run.mine, Miner.undenoised, queries[number], negatives=negatives, candidates=found)

        groups, settings = mine(seed=2 * number), adversarial.reranker
        schedule = _schedule(number, queries, settings, reranker)
        ranking = Training(name, name, [reranker], groups, list_loss, settings, schedule=schedule)
        reranker = run.train(ranking)[Model.RERANKER]

        groups, settings = mine(seed=2 * number + 1), adversarial.retriever
        schedule = _schedule(number, queries, settings, retriever)
        loss = partial(against, judge=reranker, **vars(adversarial.loss))
        retrieval = Training(name, name, [retriever], groups, loss, settings, schedule=schedule)
        retriever = run.train(retrieval)[Model.RETRIEVER]
        run.evaluate_retriever(retriever)
        run.evaluate_reranker(reranker, over=warmed_up)
    report_rounds(run, "AR2", rounds)


def against(retriever: Checkpoint, judge: Checkpoint, **options: Any) -> Loss:
    """The retriever's loss; `options` are those of `losses.ar2_retriever`."""

    def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
        with paddle.no_grad():
            judged = reranker_scores(judge, batch)
        return losses.ar2_retriever(retriever_scores(retriever, batch), judged, **options)

    return loss


def _schedule(
    number: int, queries: Sequence[QuerySet], settings: TrainingSettings, model: TrainedModel
) -> Schedule:
    """A round's share of one schedule and one optimizer through all rounds."""
    steps = [total_steps(settings, len(each)) for each in queries]
    follows, goes_on = (model if number else None), number + 1 < len(queries)
    return Schedule(sum(steps[:number]), sum(steps), follows, goes_on)


def ict_groups(run: Run, s: ICTSettings) -> Groups:
    """Sentences as queries, and the passages that they were taken from."""
    count = len(run.corpus) if s.passages is None else min(s.passages, len(run.corpus))
    made_of = {"corpus": run.corpus, "passages": s.passages, "keep": s.keep, "seed": run.settings.seed}
    made_of |= {"drop_false_negatives": run.settings.drop_false_negatives}
    return Groups(_ict, made_of, at_most=count, size=1)


def _ict(
    corpus: Corpus, passages: int | None, keep: float, seed: int, drop_false_negatives: bool
) -> tuple[list[Group], list[str]]:
    chosen: Sequence[Passage] = corpus.rows
    if passages is not None and passages < len(chosen):
        chosen = random.Random(seed).sample(chosen, passages)
    distinct = _distinct(chosen) if drop_false_negatives else chosen
    groups = list(inverse_cloze(distinct, keep=keep, seed=seed))
    if not groups:
        raise ValueError(f"{ICT}: none of {len(chosen)} passages has two sentences: set ict.passages=0")
    note = f"{len(groups)} groups; {len(distinct) - len(groups)} passages left out (a single sentence)"
    repeated = len(chosen) - len(distinct)
    return groups, [note + f"; {repeated} left out (they say what another one says)" * bool(repeated)]


def _distinct(passages: Sequence[Passage]) -> list[Passage]:
    """Leave out passages that repeat an earlier one, whose sentences they answer as well as it does."""
    first = {}
    for passage in passages:
        first.setdefault(hash(passage.key), passage)  # a hash takes less memory than the text
    return list(first.values())
