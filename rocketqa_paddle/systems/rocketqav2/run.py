"""RocketQAv2: retriever and re-ranker trained jointly by dynamic listwise distillation.

Ren et al., EMNLP 2021. Warm up each model; then, in rounds: retrieve with the current retriever, build hybrid
groups, take joint steps, evaluate on dev, save; the best models on dev are the result.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from paddle import Tensor

from rocketqa_paddle import losses
from rocketqa_paddle.data.dataset import QuerySet
from rocketqa_paddle.data.groups import read_groups, with_other_positives, without_false_negatives
from rocketqa_paddle.mining import calibration
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import reranker_scores, retriever_scores
from rocketqa_paddle.records import Group, Model, Query
from rocketqa_paddle.records import Run as Hits
from rocketqa_paddle.runs.artefacts import Groups, TrainedModel
from rocketqa_paddle.runs.report import report_rounds
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runs.trainings import Training
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import file_fingerprint
from rocketqa_paddle.systems.rocketqav2.settings import GroupSettings, RocketQAv2Settings
from rocketqa_paddle.systems.warm_up import round_names, warm_up
from rocketqa_paddle.training.trainer import Loss


def train(run: Run, s: RocketQAv2Settings) -> None:
    """Warm up both models, then train them jointly, round by round."""
    run.measure_initial()
    deal, joint = run.deal(s.joint.first_query), s.joint
    retriever, reranker = warm_up(run, s, run.initial_retriever(), deal, joint.groups.depth)
    warmed_up = retriever
    loss = partial(distillation, **vars(joint.distillation))
    for number, name in enumerate(rounds := round_names(joint.rounds)):
        queries = deal.take(f"train.{name}", joint.queries)
        groups = hybrid_groups(run, number, queries, retriever, reranker, joint.groups)
        rates = {Model.RETRIEVER.value: joint.retriever_rate}
        trained = run.train(Training(name, name, [retriever, reranker], groups, loss, joint, rates))
        retriever, reranker = trained[Model.RETRIEVER], trained[Model.RERANKER]
        run.evaluate_retriever(retriever)
        run.evaluate_reranker(reranker, over=warmed_up)
    report_rounds(run, "RocketQAv2", rounds)


def distillation(retriever: Checkpoint, reranker: Checkpoint, **options: Any) -> Loss:
    """Dynamic listwise distillation; `options` are those of `losses.joint_distillation`."""

    def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
        scores = retriever_scores(retriever, batch), reranker_scores(reranker, batch)
        return losses.joint_distillation(*scores, **options)

    return loss


# Hybrid data, section 3.3 --------------------------------------------------------------------------


def hybrid_groups(
    run: Run,
    number: int,
    queries: QuerySet,
    retriever: TrainedModel,
    reranker: TrainedModel,
    s: GroupSettings,
) -> Groups:
    """Undenoised, denoised and pseudo-labelled groups, as the settings ask, or the lists of a file."""
    if s.file:
        size, list_size = s.negatives + 1, s.file_list_size or s.negatives + 1
        made_of = {"file": s.file, "content": file_fingerprint(s.file), "list_size": list_size, "size": size}
        made_of |= {"drop_false_negatives": run.settings.drop_false_negatives}
        return Groups(_read, made_of, at_most=_count(**made_of), size=size)
    found, at_most = run.search(retriever, queries, s.depth), len(queries) * len({*s.sources} - {"pseudo"})
    values: dict[str, Any] = {"candidates": found, "skip": s.skip, "below": s.negative_below}
    if {"denoised", "pseudo"} & {*s.sources}:
        values["scored"] = run.score(reranker, found, sample=s.scored)
    if "pseudo" in s.sources:
        more, at_most = run.search(retriever, run.unlabelled, s.depth), at_most + len(run.unlabelled)
        values |= {"unlabelled": run.unlabelled, "accepted": run.score(reranker, more, sample=s.scored)}
        values["above"] = s.positive_above
    policy = partial(hybrid, labelled=queries, sources=s.sources, fit_seed=run.settings.seed)
    return run.mine(policy, queries, negatives=s.negatives, seed=number, at_most=at_most, **values)


def hybrid(
    miner: Miner,
    queries: Iterable[Query],
    *,
    labelled: QuerySet,
    sources: Sequence[str],
    fit_seed: int,
    candidates: Hits,
    skip: int,
    below: float,
    scored: Hits | None = None,
    unlabelled: QuerySet | None = None,
    accepted: Hits | None = None,
    above: float = 1.0,
) -> Iterator[Group]:
    """The union of groups from several sources, with one re-ranker calibrated on the labelled queries."""
    queries = list(queries)
    if scored is not None:
        judged = scored
        if miner.drop_false_negatives:
            texts = labelled.queries, labelled.qrels, miner.passages
            judged = calibration.without_false_negatives(scored, *texts)
        miner.calibration = calibration.calibrate(judged, labelled.qrels, fit_seed)
    trusted = miner.calibration.slope > 0
    if not trusted:
        say("the re-ranker scores other candidates above labelled positives: nothing is denoised")
    if "random" in sources or not trusted:
        yield from miner.undenoised(queries, candidates, skip=skip)
    if "denoised" in sources and trusted:
        yield from miner.denoised(queries, scored, below=below)
    if "pseudo" in sources and trusted:
        others = miner.for_queries_of(unlabelled)
        yield from others.pseudo(unlabelled.queries.values(), accepted, below=below, above=above)


@cache
def _count(file: str, content: str, list_size: int, size: int, drop_false_negatives: bool) -> int:
    """Read a file of lists before any training, and count those of `size` passages or more.

    Raises:
        ValueError: some line is wrong, or all lists are shorter.
    """
    lengths = [len(group.passages) for group in _lists(file, list_size, drop_false_negatives)]
    if long := sum(length >= size for length in lengths):
        return long
    longest = f"the longest has {max(lengths)}; lower joint.groups.negatives" if lengths else "it has none"
    raise ValueError(f"{file}: expected lists of {size} passages, a positive and negatives, but {longest}")


def _lists(file: str, list_size: int, drop_false_negatives: bool) -> Iterator[Group]:
    groups = read_groups(file, list_size)
    if not drop_false_negatives:
        return groups
    return without_false_negatives(file, with_other_positives(list(groups)))


def _read(
    file: str, content: str, list_size: int, size: int, drop_false_negatives: bool
) -> tuple[list[Group], list[str]]:
    """The lists of a file, cut to `size` passages."""
    groups, short = [], 0
    for group in _lists(file, list_size, drop_false_negatives):
        if len(group.passages) < size:
            short += 1
        else:
            groups.append(replace(group, passages=group.passages[:size], labels=group.labels[:size]))
    return groups, [f"{file}: {len(groups)} lists of {size} passages; {short} shorter ones left out"]
