"""RocketQA: cross-batch negatives, denoised hard negatives, data augmentation.

Qu et al., NAACL 2021. Four steps: a first retriever M_D0; a re-ranker M_C on its candidates; a retriever M_D1
on hard negatives of M_D0 that M_C has denoised; a retriever M_D2 on those and on unlabelled queries for which
M_D1 has searched and M_C has judged.
"""

from collections.abc import Iterable
from typing import Any

from rocketqa_paddle.data.dataset import Corpus, QuerySet
from rocketqa_paddle.mining.calibration import (
    Calibration,
    calibrate,
    check_scores,
    describe_scores,
    without_false_negatives,
)
from rocketqa_paddle.mining.miner import Miner, Policy
from rocketqa_paddle.records import Group, Query
from rocketqa_paddle.records import Run as Hits
from rocketqa_paddle.runs.artefacts import Groups, StoredRun, TrainedModel
from rocketqa_paddle.runs.report import report_steps
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.search.bm25 import bm25
from rocketqa_paddle.systems.rocketqa import settings
from rocketqa_paddle.training.reranking import binary_loss, list_loss

_BM25_DEPTH = 100  # as the released data of NQ, which are DPR's


def train(run: Run, s: settings.RocketQASettings) -> None:
    """Train the four steps of the paper; without unlabelled queries, three."""
    run.measure_initial()
    m_d0 = train_first_retriever(run, "step1", "step 1 (M_D0)", s.step1)
    found = run.search(m_d0, run.labelled, s.denoising.depth)
    m_c = train_first_reranker(run, "step2", "step 2 (M_C)", found, s.step2, over=m_d0)
    judge = Judge(run, m_c, found, s.denoising, lists=s.step2.loss == "list")

    hard = judge.denoised(found)
    data = hard if s.step3.denoise else undenoised(run, found, s.denoising)
    begin: dict[str, Any] = {"init": run.initial_retriever(), "step1": m_d0}
    m_d1 = run.train_retriever("step3", "step 3 (M_D1)", begin[s.step3.init], data, s.step3)

    if run.unlabelled:
        found, begin["step3"] = run.search(m_d1, run.unlabelled, s.denoising.depth), m_d1
        data = hard + judge.pseudo_labelled(found)
        run.train_retriever("step4", "step 4 (M_D2)", begin[s.step4.init], data, s.step4)
    report_steps(run, "RocketQA", first=m_d0, reranker=m_c)


def train_first_retriever(
    run: Run, step: str, title: str, s: settings.FirstRetrieverSettings
) -> TrainedModel:
    """Train on labelled positives with cross-batch negatives, and a few of the corpus or of BM25."""
    queries, candidates, easy = run.deal().take("queries", s.queries), {}, s.negatives
    if s.init and not queries:
        run.initials.check_as_it_is(s.init, f"{step}.init")
    if s.candidates == "bm25":
        candidates, easy = run.derive(_bm25, queries=queries, corpus=run.corpus), 0
    groups = run.mine(Miner.undenoised, queries, negatives=s.negatives, candidates=candidates, easy=easy)
    return run.train_retriever(step, title, run.initial_retriever(s.init), groups, s)


def _bm25(queries: QuerySet, corpus: Corpus) -> Hits:
    return bm25(corpus.passages, queries.queries, _BM25_DEPTH)


def train_first_reranker(
    run: Run, step: str, title: str, found: StoredRun, s: settings.FirstRerankerSettings, over: TrainedModel
) -> TrainedModel:
    """Train on labelled positives and what the first retriever finds."""
    queries, easy = run.deal().take("queries", s.queries), s.easy_negatives
    groups = run.mine(Miner.undenoised, queries, negatives=s.negatives, candidates=found, easy=easy)
    loss = list_loss if s.loss == "list" else binary_loss
    return run.train_reranker(step, title, run.initial_reranker(), groups, s, over=over, loss=loss)


def undenoised(run: Run, found: StoredRun, s: settings.DenoisingSettings) -> Groups:
    """Hard negatives as they are, to compare."""
    values = {"candidates": found, "first": s.scored}
    return run.mine(Miner.undenoised, found.queries, negatives=s.negatives, **values)


class Judge:
    """A re-ranker that makes training data of what a retriever finds.

    Where it was trained on `lists`, its scores of what was `found` for labelled queries tell how scores
    become probabilities.
    """

    def __init__(
        self,
        run: Run,
        reranker: TrainedModel,
        found: StoredRun,
        s: settings.DenoisingSettings,
        *,
        lists: bool,
    ) -> None:
        self.run, self.reranker, self.s = run, reranker, s
        values = {"lists": lists, "below": s.negative_below, "seed": run.settings.seed}
        values |= {"corpus": run.corpus, "drop_false_negatives": run.settings.drop_false_negatives}
        scores = run.score(reranker, found, first=s.scored)
        self.calibration = run.derive(_calibrated, scores=scores, labelled=found.queries, **values)

    def denoised(self, found: StoredRun, policy: Policy = Miner.denoised, **more: Any) -> Groups:
        """Labelled positives, and negatives among the candidates that the re-ranker rejects (section 3.2)."""
        s, scored = self.s, self.run.score(self.reranker, found, first=self.s.scored)
        values = {"below": s.negative_below, "hardest": s.choose == "hardest", **more}
        values |= {"scored": scored, "deeper": found, "calibration": self.calibration}
        return self.run.mine(policy, found.queries, negatives=s.negatives, **values)

    def pseudo_labelled(self, found: StoredRun) -> Groups:
        """Groups whose positive the re-ranker chose (section 3.3); no negative is a labelled positive."""
        return self.denoised(found, _pseudo, name=found.queries.name, above=self.s.positive_above)


def _calibrated(
    scores: Hits,
    labelled: QuerySet,
    corpus: Corpus,
    lists: bool,
    below: float,
    seed: int,
    drop_false_negatives: bool,
) -> Calibration:
    """Calibrate scores where the re-ranker was trained on lists, and check what comes out.

    Raises:
        ValueError: the re-ranker cannot tell positives from negatives.
    """
    if drop_false_negatives:
        scores = without_false_negatives(scores, labelled.queries, labelled.qrels, corpus.passages)
    fitted = calibrate(scores, labelled.qrels, seed) if lists else Calibration()
    if fitted.slope <= 0:
        raise ValueError(
            "the re-ranker scores other candidates above labelled positives: "
            "train it longer, at a higher learning rate, or begin with a trained one"
        )
    say(check_scores(scores, labelled.qrels, fitted, below))
    return fitted


def _pseudo(
    miner: Miner, queries: Iterable[Query], *, name: str, scored: Hits, above: float, **options: Any
) -> list[Group]:
    groups = list(miner.pseudo(queries, scored, above=above, **options))
    if not groups:
        raise ValueError(
            f"no query of {name} has a candidate with a probability above {above} and enough "
            f"negatives. {describe_scores(scored, miner.calibration)}"
        )
    return groups
