"""The calibration against the equations of its optimum, and the checks of what it gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit
from worlds import PASSAGES, REPEATED, SIZE, calibrations, make_hits, make_queries, positives, worlds

from rocketqa_paddle.mining import calibration as calibration_module
from rocketqa_paddle.mining.calibration import (
    Calibration,
    calibrate,
    check_scores,
    describe_scores,
    without_false_negatives,
)


def gradient(fitted: Calibration, positives, negatives) -> np.ndarray:
    """The gradient of Platt's loss with both sides of one weight. It is zero at the optimum."""
    scores = np.concatenate([positives, negatives])
    high, low = (len(positives) + 1) / (len(positives) + 2), 1 / (len(negatives) + 2)
    targets = np.array([high] * len(positives) + [low] * len(negatives))
    weights = np.array([1 / len(positives)] * len(positives) + [1 / len(negatives)] * len(negatives))
    error = weights * (expit(fitted.slope * scores + fitted.offset) - targets)
    return np.array([(error * (scores - scores.mean())).sum() / scores.std(), error.sum()])


def test_calibration_separates():
    generator = np.random.default_rng(1)
    positives, negatives = generator.normal(105, 1, 50), generator.normal(100, 1, 400)
    fitted = Calibration.fit(positives, negatives)
    chances = [[fitted.probability(score) for score in side] for side in (positives, negatives)]
    assert np.median(chances[0]) > 0.9
    assert np.median(chances[1]) < 0.1
    assert fitted.probability(90) < fitted.probability(100) < fitted.probability(110)
    assert np.abs(gradient(fitted, positives, negatives)).max() < 1e-4


def test_separable_scores_have_a_finite_answer():
    fitted = Calibration.fit([2.0, 3.0], [-1.0, -2.0])
    assert 0.5 < fitted.probability(3.0) < 1
    assert np.abs(gradient(fitted, [2.0, 3.0], [-1.0, -2.0])).max() < 1e-4


def test_scores_that_say_nothing_give_even_chances():
    """However many candidates there are for a positive."""
    fitted = Calibration.fit([1.0] * 10, [1.0] * 30)
    assert fitted.probability(1.0) == pytest.approx((11 / 12 + 1 / 32) / 2, abs=1e-4)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=30),
    st.lists(st.floats(-5, 5), min_size=1, max_size=30),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.sampled_from([0.0, -5.0, 30.0]),
)
def test_calibration_is_the_optimum(positives, negatives, scale, shift):
    """Whatever the unit and the zero of the scores: a model trained on lists may choose any."""
    positives, negatives = (scale * (np.array(side) + shift) for side in (positives, negatives))
    assume(np.concatenate([positives, negatives]).std() > 0.1 * scale)
    fitted = Calibration.fit(positives, negatives)
    assert np.abs(gradient(fitted, positives, negatives)).max() < 1e-3


@pytest.mark.parametrize(("positives", "negatives"), [([], [1.0]), ([1.0], []), ([], [])])
def test_calibration_needs_both_sides(positives, negatives):
    message = f"both sides: {len(positives)} positives, {len(negatives)} negatives"
    with pytest.raises(ValueError, match=message):
        Calibration.fit(positives, negatives)


@given(worlds())
def test_calibration_of_a_run(world):
    """Passages judged 0 are on the side of those that nobody judged."""
    _, qrels, run = world
    sides: dict[bool, list[float]] = {True: [], False: []}
    for query_id, hits in run.items():
        for hit in hits:
            sides[hit.passage_id in positives(qrels, query_id)].append(hit.score)
    if sides[True] and sides[False]:
        assert calibrate(run, qrels, 1) == Calibration.fit(sides[True], sides[False])
    else:
        with pytest.raises(ValueError, match=f"{len(sides[True])} positives, {len(sides[False])} negatives"):
            calibrate(run, qrels, 1)


def test_what_says_the_same_as_a_positive_or_the_query_is_on_neither_side():
    """In ArguAna, the re-ranker's best candidate of a query is the query itself."""
    [query] = make_queries(1)
    ids, qrels = ["p12", "p2", "p3", "p4", "p5", "p6"], {"q0": {"p2": 1, "p5": 1}}
    run = {"q0": make_hits("q0", ids, [9.0, 4.0, 4.0, 3.0, 3.0, -5.0])}
    kept = without_false_negatives(run, {"q0": query}, qrels, REPEATED)
    assert [hit.passage_id for hit in kept["q0"]] == ["p2", "p5", "p6"]
    assert calibrate(kept, qrels, 1) == Calibration.fit([4.0, 3.0], [-5.0])


def test_calibration_of_a_long_run(monkeypatch):
    """A sample is enough, and the seed decides which."""
    monkeypatch.setattr(calibration_module, "_CALIBRATION_SCORES", 20)
    generator = np.random.default_rng(1)
    run = {
        f"q{i}": make_hits(f"q{i}", list(PASSAGES), generator.normal(size=SIZE).tolist()) for i in range(20)
    }
    qrels = {query_id: dict.fromkeys(list(PASSAGES)[:7], 1) for query_id in run}
    fits = [calibrate(run, qrels, seed) for seed in (1, 1, 2)]
    assert fits[0] == fits[1] != fits[2]


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=SIZE), calibrations)
def test_scores_are_described_by_their_range(scores, calibration):
    text = describe_scores({"q0": make_hits("q0", list(PASSAGES)[: len(scores)], scores)}, calibration)
    low, high = (calibration.probability(score) for score in (min(scores), max(scores)))
    assert f"probabilities of {len(scores)} candidates are {low:.3f} to {high:.3f}, half of them" in text
    assert "rocketqa mine --report" in text


def test_no_scores_to_describe():
    assert describe_scores({"q0": []}, Calibration()) == "There are no candidates: retrieve more."


# Checks -------------------------------------------------------------------------------------------

JUDGED = {"q0": {"p0": 1, "p1": 1, "p9": 0}}
SCORED = {"q0": make_hits("q0", ["p0", "p1", "p2", "p9"], [3.0, 0.0, -3.0, -6.0])}


def test_a_reranker_that_tells_negatives_passes():
    text = check_scores(SCORED, JUDGED, Calibration(), 0.6)
    assert text == "the re-ranker rejects 1 of 2 labelled positives"
    assert check_scores(SCORED, {}, Calibration(), 0.6) == "the re-ranker rejects 0 of 0 labelled positives"


@pytest.mark.parametrize(
    ("below", "offset", "problem"),
    [
        (0.001, 0.0, "no candidate has a probability below 0.001, so none is a negative"),
        (0.99, 0.0, "all 2 labelled positives have a probability below 0.99 and would count as negatives"),
        (0.5, 7.0, "no candidate has a probability below 0.5"),
    ],
)
def test_a_reranker_that_cannot_tell_negatives_is_refused(below, offset, problem):
    with pytest.raises(ValueError, match=f"{problem}.*rocketqa mine --report"):
        check_scores(SCORED, JUDGED, Calibration(offset=offset), below)
