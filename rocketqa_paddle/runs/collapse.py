"""Trainings that spoiled their model: found on dev, before anything is built on it."""

import random

import numpy as np

from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import ModelHandle, StoredRun, TrainedModel
from rocketqa_paddle.runs.searches import Searches
from rocketqa_paddle.runs.walk import FEWEST_DEV
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import fingerprint
from rocketqa_paddle.search.retrieval import to_hits

_SPREAD = 1e-5  # of the largest score, where float32 has seven digits
_LOST = 0.1  # of the measure
_ORDERED = 1000  # queries whose passages are put in a random order; a small set is taken several times
_REMEDIES = {
    Model.RETRIEVER: "Try a lower learning_rate, more warm-up (warmup_ratio), more steps, pooling mean, "
    "normalize with a temperature near 0.05, or easier negatives.",
    Model.RERANKER: "Try a lower learning_rate, more warm-up (warmup_ratio), more steps, or easy_negatives.",
}
_GO_ON = (
    "The run ends here, because no step after it can be trusted; the same command with "
    "--stop_on_collapse false goes on with the model as it is"
)


class CollapseCheck:
    """Compares what the models of a walk found for dev with chance, and with the models that they come from.

    A model has collapsed if its scores do not tell passages apart, if it measures far below a model that it
    was trained from, or if it measures no better than a random order. The last two take a paired t-test.
    """

    def __init__(self, walk: Searches) -> None:
        self.walk, self._measure = walk, walk.settings.evaluation.measures[0]
        self._runs: dict[str, StoredRun] = {}  # by the name and fingerprint of the model

    def check(self, model: ModelHandle, run: StoredRun) -> None:
        """Tell of a model that has collapsed, and end the run; also if the model was made before.

        Raises:
            ValueError: the model has collapsed, unless the settings say to go on.
        """
        self._runs[str(model)] = run
        trained = isinstance(model, TrainedModel) and "seed" in model.made_of  # not taken as it was
        if not trained or not (problem := self._noted(model, run)):
            return
        told = f"{model.step}: the {model.kind.title} has collapsed: {problem}. {_REMEDIES[model.kind]}"
        if self.walk.settings.stop_on_collapse:
            raise ValueError(f"{told} {_GO_ON}")
        say(told)

    def _noted(self, model: TrainedModel, run: StoredRun) -> str:
        """What is wrong with a model; nothing if it is sound. The record of its run keeps the answer."""
        ledger, begun_from = self.walk.ledger, self._begun_from(model, run)
        compared = fingerprint([self.walk.dev.fingerprint, self._measure, *map(str, begun_from.values())])
        noted = ledger.record(run).get("collapse", {})
        if noted.get("compared") != compared or "problem" not in noted:
            noted = {"compared": compared, "problem": self._problem(model, run, begun_from)}
            ledger.note(run, collapse=noted)
        return noted["problem"]

    def _begun_from(self, model: ModelHandle, run: StoredRun) -> dict[str, StoredRun]:
        """The runs of the models that a model comes from, by step; of re-rankers, only over the same hits."""
        found: dict[str, StoredRun] = {}
        while before := [m for m in model.parents if isinstance(m, ModelHandle) and m.kind is model.kind]:
            model = before[0]
            known = self._runs.get(str(model))
            if known and known.made_of.get("hits") == run.made_of.get("hits"):
                found[model.step] = known
        return found

    def _problem(self, model: TrainedModel, run: StoredRun, begun_from: dict[str, StoredRun]) -> str:
        if _is_flat(run):
            return "it gives all passages of a query the same score"
        measured = {step: self._values(known) for step, known in begun_from.items()}
        values = self._values(run)
        if measured:
            step, before = max(measured.items(), key=lambda item: item[1].mean())
            fell = metrics.compare(values, before)
            if fell.difference < -_LOST * before.mean() and fell.significant:
                was, now = f"{before.mean():.3f} ({step})", f"{values.mean():.3f}"
                return f"{self._measure} on dev fell from {was} to {now} (p = {fell.p_value:.2g})"
        if len(values) < FEWEST_DEV:
            return ""
        chance = self._by_chance(model, run)
        better = metrics.compare(values, chance)
        if better.difference > 0 and better.significant:
            return ""
        than = f"no better than a random order, {chance.mean():.3f} (p = {better.p_value:.2g})"
        return f"{self._measure} on dev is {values.mean():.3f}, {than}"

    def _values(self, run: StoredRun) -> np.ndarray:
        """The measure that chooses: `[queries]`."""
        return self.walk.measure(run)[self._measure]

    def _by_chance(self, model: ModelHandle, run: StoredRun) -> np.ndarray:
        """What random passages measure, or for a re-ranker a random order of the same hits: `[queries]`."""
        draw, corpus = random.Random(0), self.walk.corpus.ids
        orders = []
        for _ in range(1 + _ORDERED // len(run.queries)):
            order = {}
            for query_id, hits in run.value().items():
                ids = [hit.passage_id for hit in hits]
                first, rest = ids[: run.depth], ids[run.depth :]
                first = draw.sample(corpus if model.kind is Model.RETRIEVER else first, len(first))
                order[query_id] = to_hits(
                    query_id, zip([*first, *rest], range(0, -len(ids), -1), strict=True)
                )
            orders.append(metrics.evaluate_queries(run.queries.qrels, order, [self._measure])[self._measure])
        return np.mean(orders, axis=0)


def _is_flat(run: StoredRun) -> bool:
    """Whether the scores of most queries are all the same."""
    scores = [[hit.score for hit in hits[: run.depth]] for hits in run.value().values()]
    flat = [max(s) - min(s) <= _SPREAD * max(map(abs, s)) for s in scores if len(s) > 1]
    return sum(flat) > len(flat) / 2
