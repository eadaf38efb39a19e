"""The weight of BM25 beside a retriever, chosen by what it measures on judged queries."""

from collections.abc import Mapping

import numpy as np

from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Qrels
from rocketqa_paddle.search import fusion

MEASURE = "RR@10"
WEIGHTS = tuple(n / 10 for n in range(11))


def measure_weights(dense: Candidates, lexical: Candidates, qrels: Qrels) -> dict[float, np.ndarray]:
    """Measure `fusion.weighted` with each of `WEIGHTS`.

    `dense` and `lexical` are what a retriever and BM25 find for the same queries. Return RR@10 of every query
    of these that has judgements, float64 `[queries]`, by weight.
    """
    judged = {id: qrels[id] for id in dense if id in qrels}
    measured = {}
    for weight in WEIGHTS:
        hits = fusion.weighted(dense.hits, lexical.hits, weight)[:, :10]
        run = Candidates(dense.queries, dense.passages, hits)
        measured[weight] = metrics.evaluate_queries(judged, run, [MEASURE])[MEASURE]
    return measured


def best_weight(measured: Mapping[float, np.ndarray]) -> float:
    """Return the weight of the highest mean; of equal ones the least."""
    return max(sorted(measured), key=lambda weight: measured[weight].mean())
