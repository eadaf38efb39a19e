"""What a report suggests from any scores, against the definition, and what it prints."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import logit

from rocketqa_paddle.mining.calibration import Calibration
from rocketqa_paddle.mining.thresholds import LOST_POSITIVES, WRONG_POSITIVES, ScoreReport
from rocketqa_paddle.records import Hit

GRID = np.arange(1, 100) / 100
AS_THEY_ARE = Calibration()
chances = st.floats(0.0005, 0.9995) | st.integers(1, 19).map(lambda n: n / 20)
queries = st.lists(st.tuples(st.lists(chances, max_size=2), st.lists(chances, max_size=4)), max_size=12)


def world(sides):
    """A scored run and judgements, for the chances of every query's positives and of its other candidates."""
    run, qrels = {}, {}
    for number, (good, others) in enumerate(sides):
        query_id = f"q{number}"
        scores = [*good, *others]
        run[query_id] = [
            Hit(query_id, f"p{i}", i + 1, float(logit(chance))) for i, chance in enumerate(scores)
        ]
        qrels[query_id] = {f"p{i}": 1 for i in range(len(good))} | {"p9": 0}
    return run, qrels


def sides_of(run, qrels):
    """Probabilities of positives and others; of every query's best, and whether that is labelled."""
    positives, others, best, labelled = [], [], [], []
    for query_id, hits in run.items():
        judged = [(AS_THEY_ARE.probability(h.score), qrels[query_id].get(h.passage_id, 0) > 0) for h in hits]
        positives += [chance for chance, good in judged if good]
        others += [chance for chance, good in judged if not good]
        if any(good for _, good in judged):
            chance, unlabelled = max((chance, not good) for chance, good in judged)
            best.append(chance)
            labelled.append(not unlabelled)
    return tuple(map(np.array, (positives, others, best, labelled)))


def parts(below, positives, others) -> bool:
    """Whether a lower threshold is one."""
    return (positives < below).mean() <= LOST_POSITIVES and (others < below).any()


def accepts(above, best, labelled) -> bool:
    """Whether an upper threshold is one where labels are complete."""
    return (best > above).any() and labelled[best > above].mean() >= 1 - WRONG_POSITIVES


@given(queries)
def test_a_suggestion_keeps_its_promises_and_there_is_none_only_if_no_pair_will_do(sides):
    run, qrels = world(sides)
    positives, others, best, labelled = sides_of(run, qrels)
    assume(len(positives) and len(others))
    found = ScoreReport(run, qrels, AS_THEY_ARE).suggest()
    upper = [t for t in GRID if accepts(t, best, labelled)]
    if not found:
        assert not any(t < max(upper, default=0) for t in GRID if parts(t, positives, others))
        return
    below, above = found.negative_below, found.positive_above
    assert 0 < below < above < 1
    assert parts(below, positives, others)
    assert (best > above).any()
    if allowed := [t for t in upper if t > below]:
        assert above == allowed[0]


@given(
    st.lists(st.floats(0.6, 0.99), min_size=1, max_size=30),
    st.lists(st.lists(st.floats(0.01, 0.4), min_size=1, max_size=4), min_size=1, max_size=30),
)
def test_separable_scores_give_a_pair(good, others):
    """Scores that a threshold separates always give a pair that separates them."""
    run, qrels = world([([chance], rest) for chance, rest in zip(good, others, strict=False)])
    found = ScoreReport(run, qrels, AS_THEY_ARE).suggest()
    assert found
    positives, _, best, labelled = sides_of(run, qrels)
    assert (positives < found.negative_below).mean() <= LOST_POSITIVES
    assert accepts(found.positive_above, best, labelled)


def test_labels_decide_the_pair():
    """Below 0.5 no positive is lost; above 0.7, where the best others are, every best one is labelled."""
    run, qrels = world([([0.5], [0.7])] * 10 + [([0.9], [0.1])] * 10)
    report = ScoreReport(run, qrels, AS_THEY_ARE)
    found = report.suggest()
    assert found.negative_below == pytest.approx(0.5, abs=0.011)
    assert found.positive_above == pytest.approx(0.7, abs=0.011)
    text = str(report)
    assert f"--negative_below {found.negative_below:.2f} --positive_above {found.positive_above:.2f}" in text
    assert "50.0 % of the other candidates" in text
    assert "50.0 % of the queries have a candidate above" in text
    assert "for 100.0 % of these the best is a labelled positive" in text


@pytest.mark.parametrize(("lost", "low"), [(2, 0.5), (3, 0.15)])
def test_few_positives_may_be_lost(lost, low):
    """Two of a hundred may lie under the threshold, three not: it moves below them."""
    sides = [([0.15], [0.05])] * lost + [([0.65], [0.05])] * (70 - lost) + [([0.85], [])] * 30
    found = ScoreReport(*world([*sides, *[([], [0.75])] * 20]), AS_THEY_ARE).suggest()
    assert found.negative_below == pytest.approx(low, abs=0.011)


def test_labels_too_few_for_the_share():
    """Half of the best are unlabelled wherever one looks: still a pair, with the fewest unlabelled above."""
    sides = [([0.3], [0.05]), ([0.9], [0.05]), ([0.3], [0.95]), ([0.4], [0.6]), ([0.4], [0.7])]
    run, qrels = world(sides)
    *_, best, labelled = sides_of(run, qrels)
    found = ScoreReport(run, qrels, AS_THEY_ARE).suggest()
    shares = {t: labelled[best > t].mean() for t in GRID if (best > t).any()}
    assert max(shares.values()) < 1 - WRONG_POSITIVES
    assert shares[found.positive_above] == max(shares.values())


@pytest.mark.parametrize("chance", [0.005, 0.5, 0.995])
def test_scores_that_are_all_alike(chance):
    run, qrels = world([([chance], [chance, chance])] * 5)
    report = ScoreReport(run, qrels, AS_THEY_ARE)
    assert report.suggest() is None
    assert "No pair of thresholds parts the two sides: train the re-ranker longer" in str(report)


@pytest.mark.parametrize(("offset", "row"), [(0.0, "0.8 to 0.9"), (3.0, "0.9 to 1.0"), (-3.0, "0.2 to 0.3")])
def test_the_report_is_of_calibrated_probabilities(offset, row):
    text = str(ScoreReport(*world([([0.85], [0.1])] * 5), Calibration(offset=offset)))
    assert re.search(rf"^\| {row} +\| #{{30}} 100.0 % \|", text, flags=re.MULTILINE)


@given(queries)
def test_the_histogram_adds_up(sides):
    """Ten rows a side; what rounding takes is at most 0.05 a row."""
    run, qrels = world(sides)
    positives, others, *_ = sides_of(run, qrels)
    assume(len(positives) and len(others))
    text = str(ScoreReport(run, qrels, AS_THEY_ARE))
    assert f"{len(positives)} labelled positives" in text
    rows = [row.split("|")[2:4] for row in text.split("\n") if re.match(r"\| \d\.\d to", row)]
    shares = np.array([[float(re.search(r"([\d.]+) %", cell)[1]) for cell in row] for row in rows])
    assert shares.shape == (10, 2)
    assert shares.sum(axis=0) == pytest.approx(100, abs=0.5)
    bars = np.array([[cell.count("#") for cell in row] for row in rows])
    assert np.abs(bars - shares * 0.3).max() < 0.6


@pytest.mark.parametrize(
    ("sides", "counts"),
    [
        ([], "0 labelled positives and 0 other"),
        ([([], [0.5, 0.4])], "0 labelled positives and 2 other"),
        ([([0.5], [])], "1 labelled positives and 0 other"),
    ],
)
def test_a_report_needs_both_sides(sides, counts):
    with pytest.raises(ValueError, match=f"{counts} candidates are scored, a report needs both"):
        ScoreReport(*world(sides), AS_THEY_ARE)
