"""Groups under any candidates and judgements, and the calibration against the optimum's equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit

from rocketqa_paddle.mining import miner as miner_module
from rocketqa_paddle.mining.miner import Calibration, Miner, MiningReport, calibrate, describe_scores
from rocketqa_paddle.records import Hit, Passage, Query

SIZE = 14
PASSAGES = {f"p{i}": Passage(f"p{i}", "", f"text {i}") for i in range(SIZE)}
IDS = st.sampled_from(list(PASSAGES))


def make_hits(query_id: str, ids, scores=None) -> list[Hit]:
    scores = scores or [-float(rank) for rank in range(len(ids))]
    return [Hit(query_id, i, rank, s) for rank, (i, s) in enumerate(zip(ids, scores, strict=True), 1)]


def make_queries(count: int) -> list[Query]:
    return [Query(f"q{i}", f"question {i}") for i in range(count)]


def ids_of(groups) -> list[list[str]]:
    return [[passage.id for passage in group.passages] for group in groups]


@st.composite
def worlds(draw):
    """Queries, their judgements (one positive at least, maybe passages judged 0) and scored candidates."""
    queries = make_queries(draw(st.integers(1, 4)))
    qrels, run = {}, {}
    for query in queries:
        qrels[query.id] = dict.fromkeys(draw(st.sets(IDS, max_size=3)), 0)
        qrels[query.id] |= {i: draw(st.integers(1, 3)) for i in draw(st.sets(IDS, min_size=1, max_size=3))}
        ids = draw(st.lists(IDS, unique=True, max_size=SIZE))
        scores = draw(st.lists(st.floats(-9, 9), min_size=len(ids), max_size=len(ids)))
        run[query.id] = make_hits(query.id, ids, sorted(scores, reverse=True))
    return queries, qrels, run


def positives(qrels, query_id: str) -> set[str]:
    return {i for i, relevance in qrels.get(query_id, {}).items() if relevance > 0}


def check_groups(groups, qrels, negatives: int, source: str) -> None:
    """What holds for groups of every kind."""
    for group in groups:
        first, *others = [passage.id for passage in group.passages]
        assert group.labels == (1, *[0] * negatives)
        assert len(others) == negatives
        assert len({first, *others}) == 1 + negatives
        assert not positives(qrels, group.query.id) & set(others)
        assert all(PASSAGES[passage.id] is passage for passage in group.passages)
        assert group.source == source
        if source != "pseudo":
            assert first in positives(qrels, group.query.id)


# Undenoised ---------------------------------------------------------------------------------------


@given(worlds(), st.integers(0, 8), st.integers(0, 6), st.integers(0, 99), st.data())
def test_undenoised_groups(world, negatives, skip, seed, data):
    queries, qrels, run = world
    easy = data.draw(st.integers(0, negatives))
    miner = Miner(PASSAGES, qrels, negatives, seed)
    groups = list(miner.undenoised(queries, run, skip=skip, easy=easy))
    check_groups(groups, qrels, negatives, "random")
    assert [group.query for group in groups] == queries
    assert miner.report.groups == {"random": len(queries)}
    short = 0
    for group in groups:
        left = [hit.passage_id for hit in run[group.query.id][skip:]]
        pool = set(left) - positives(qrels, group.query.id)
        hard = [passage.id for passage in group.passages[1:] if passage.id in pool]
        assert len(hard) >= min(negatives - easy, len(pool))
        short += max(0, negatives - easy - len(pool))
    assert miner.report.filled == short


@given(worlds(), st.integers(1, 6), st.integers(0, 99))
def test_the_same_seed_gives_the_same_groups(world, negatives, seed):
    queries, qrels, run = world

    def mine():
        miner = Miner(PASSAGES, qrels, negatives, seed)
        labelled = [*miner.undenoised(queries, run), *miner.denoised(queries, run, below=0.5)]
        return [*labelled, *miner.pseudo(queries, run, below=0.2, above=0.8)]

    assert mine() == mine()


def test_another_seed_gives_other_groups():
    queries = make_queries(5)
    qrels = {query.id: {"p0": 1} for query in queries}
    run = {query.id: make_hits(query.id, list(PASSAGES)) for query in queries}
    seeds = [ids_of(Miner(PASSAGES, qrels, 4, seed).undenoised(queries, run)) for seed in range(3)]
    assert seeds[0] != seeds[1] != seeds[2] != seeds[0]


def test_every_candidate_and_every_positive_gets_its_turn():
    queries = make_queries(300)
    qrels = {query.id: {"p0": 1, "p1": 2} for query in queries}
    run = {query.id: make_hits(query.id, ["p0", "p1", "p2", "p3", "p4", "p5"]) for query in queries}
    drawn = np.array(ids_of(Miner(PASSAGES, qrels, 2, 1).undenoised(queries, run)))
    for ids, names in ((drawn[:, 0], ["p0", "p1"]), (drawn[:, 1:], ["p2", "p3", "p4", "p5"])):
        found, counts = np.unique(ids, return_counts=True)
        assert found.tolist() == names
        assert counts.min() > 0.7 * counts.mean()


def test_skip_leaves_out_the_best_candidates():
    queries = make_queries(100)
    qrels = {query.id: {"p3": 1} for query in queries}
    run = {query.id: make_hits(query.id, list(PASSAGES)) for query in queries}
    groups = ids_of(Miner(PASSAGES, qrels, 3, 1).undenoised(queries, run, skip=5))
    assert {i for _, *others in groups for i in others} == {f"p{i}" for i in range(5, SIZE)}


def test_too_few_candidates_are_filled_up_and_counted():
    qrels = {"q0": {"p0": 1}}
    miner = Miner(PASSAGES, qrels, 6, 1)
    [group] = ids_of(miner.undenoised(make_queries(1), {"q0": make_hits("q0", ["p0", "p1", "p2"])}))
    assert {"p1", "p2"} < set(group)
    assert miner.report.filled == 4
    assert str(miner.report) == (
        "1 random groups; 4 negatives drawn from the whole corpus (too few candidates)"
    )


def test_easy_negatives_come_from_the_whole_corpus_and_are_not_counted_as_missing():
    queries = make_queries(100)
    qrels = {query.id: {"p0": 1} for query in queries}
    run = {query.id: make_hits(query.id, ["p1", "p2", "p3", "p4"]) for query in queries}
    miner = Miner(PASSAGES, qrels, 4, 1)
    groups = ids_of(miner.undenoised(queries, run, easy=3))
    assert {i for _, *others in groups for i in others} == set(PASSAGES) - {"p0"}
    assert miner.report.filled == 0
    with pytest.raises(ValueError, match="5 easy negatives, but only 4"):
        list(miner.undenoised(queries, run, easy=5))


def test_negatives_that_need_the_whole_corpus():
    qrels = {"q0": {"p0": 1}}
    [group] = ids_of(Miner(PASSAGES, qrels, SIZE - 1, 1).undenoised(make_queries(1), {}))
    assert sorted(group) == sorted(PASSAGES)


def test_more_negatives_than_the_corpus_has():
    with pytest.raises(ValueError, match="14 negatives a group, but the corpus has only 14 passages"):
        Miner(PASSAGES, {}, SIZE, 1)
    qrels = {"q0": {f"p{i}": 1 for i in range(5)}}
    miner = Miner(PASSAGES, qrels, 10, 1)
    with pytest.raises(ValueError, match="query q0: 10 negatives wanted.* of 14 passages.*5 are positives"):
        list(miner.undenoised(make_queries(1), {}))


# Denoised and pseudo ------------------------------------------------------------------------------

calibrations = st.builds(Calibration, st.floats(0.1, 3), st.floats(-3, 3))


@given(worlds(), st.integers(1, 4), st.floats(0.05, 0.95), calibrations)
def test_denoised_groups_honour_the_threshold(world, negatives, below, calibration):
    queries, qrels, run = world
    miner = Miner(PASSAGES, qrels, negatives, 1, calibration)
    groups = list(miner.denoised(queries, run, below=below))
    check_groups(groups, qrels, negatives, "denoised")
    enough = []
    for query in queries:
        logit = {hit.passage_id: calibration.slope * hit.score + calibration.offset for hit in run[query.id]}
        rejected = {i for i, value in logit.items() if expit(value) < below} - positives(qrels, query.id)
        for group in groups:
            if group.query == query:
                assert {passage.id for passage in group.passages[1:]} <= rejected
        if len(rejected) >= negatives:
            enough.append(query)
    assert [group.query for group in groups] == enough
    assert miner.report.too_few_negatives == len(queries) - len(enough)
    assert miner.report.groups.get("denoised", 0) == len(enough)


def test_a_calibration_set_later_counts():
    qrels = {"q0": {"p0": 1}}
    run = {"q0": make_hits("q0", ["p0", "p1", "p2"], [103.0, 102.0, 101.0])}
    miner = Miner(PASSAGES, qrels, 2, 1)
    assert list(miner.denoised(make_queries(1), run, below=0.5)) == []  # as they are, all are above 0.5
    miner.calibration = Calibration(1.0, -102.5)
    assert sorted(ids_of(miner.denoised(make_queries(1), run, below=0.5))[0][1:]) == ["p1", "p2"]
    assert (
        str(miner.report)
        == "1 denoised groups; 1 queries left out (the re-ranker rejects too few candidates)"
    )


@given(worlds(), st.integers(1, 4), st.floats(0.05, 0.45), st.floats(0.5, 0.95), calibrations)
def test_pseudo_groups(world, negatives, below, above, calibration):
    queries, labels, run = world
    qrels = {query_id: judged for query_id, judged in labels.items() if query_id == "q0"}  # q0 has labels
    miner = Miner(PASSAGES, qrels, negatives, 1, calibration)
    groups = list(miner.pseudo(queries, run, below=below, above=above))
    check_groups(groups, qrels, negatives, "pseudo")
    for group in groups:
        chance = {hit.passage_id: calibration.probability(hit.score) for hit in run[group.query.id]}
        first, *others = [chance[passage.id] for passage in group.passages]
        assert first == max(chance.values()) > above
        assert max(others) < below
    left_out = miner.report.too_few_negatives + miner.report.no_positive
    assert len(groups) + left_out == len(queries)
    accepted = [q for q in queries if any(calibration.probability(h.score) > above for h in run[q.id])]
    assert miner.report.no_positive == len(queries) - len(accepted)


def check_deeper(groups, miner, queries, scored, run, below) -> None:
    """Rejected candidates first, then deeper ones without a score; a query that lacks both is counted."""
    taken, enough = 0, []
    for query in queries:
        hits = scored.get(query.id, [])
        rejected = {hit.passage_id for hit in hits if miner.calibration.probability(hit.score) < below}
        deep = {hit.passage_id for hit in run[query.id]} - {hit.passage_id for hit in hits}
        rejected, deep = (side - positives(miner.qrels, query.id) for side in (rejected, deep))
        if len(rejected | deep) >= miner.negatives:
            enough.append(query)
        for group in groups:
            if group.query == query:
                others = {passage.id for passage in group.passages[1:]}
                assert others <= rejected | deep
                assert len(others & rejected) == min(miner.negatives, len(rejected))
                taken += len(others & deep)
    assert miner.report.deeper == taken
    assert [group.query for group in groups] == enough
    assert miner.report.too_few_negatives == len(queries) - len(enough)


@given(worlds(), st.integers(1, 4), st.floats(0.05, 0.95), st.integers(0, 9), calibrations)
def test_deeper_ranks_make_up_denoised_groups(world, negatives, below, depth, calibration):
    queries, qrels, run = world
    scored = {query_id: hits[:depth] for query_id, hits in run.items() if depth}
    miner = Miner(PASSAGES, qrels, negatives, 1, calibration)
    groups = list(miner.denoised(queries, scored, below=below, deeper=run))
    check_groups(groups, qrels, negatives, "denoised")
    check_deeper(groups, miner, queries, scored, run, below)


@given(worlds(), st.integers(1, 4), st.floats(0.05, 0.45), st.floats(0.5, 0.95), st.integers(0, 9))
def test_deeper_ranks_make_up_pseudo_groups(world, negatives, below, above, depth):
    """Only for queries with a positive, which comes from the scored ones."""
    queries, _, run = world
    scored = {query_id: hits[:depth] for query_id, hits in run.items()}
    miner = Miner(PASSAGES, {}, negatives, 1)
    groups = list(miner.pseudo(queries, scored, below=below, above=above, deeper=run))
    check_groups(groups, {}, negatives, "pseudo")
    accepted = [query for query in queries if scored[query.id] and expit(scored[query.id][0].score) > above]
    assert miner.report.no_positive == len(queries) - len(accepted)
    check_deeper(groups, miner, accepted, scored, run, below)
    assert all(
        expit(hit.score) > above
        for group in groups
        for hit in scored[group.query.id]
        if hit.passage_id == group.passages[0].id
    )


def test_report_names_negatives_from_deeper_ranks():
    run = {"q0": make_hits("q0", ["p0", "p1", "p2", "p3"], [9.0, -9.0, 9.0, 9.0])}
    miner = Miner(PASSAGES, {"q0": {"p0": 1}}, 2, 1)
    [group] = ids_of(miner.denoised(make_queries(1), {"q0": run["q0"][:3]}, below=0.5, deeper=run))
    assert group == ["p0", "p1", "p3"]
    assert str(miner.report) == (
        "1 denoised groups; 1 negatives from deeper ranks (the re-ranker rejects too few candidates)"
    )


def test_the_best_candidate_is_the_pseudo_positive_whatever_its_rank():
    run = {"q0": make_hits("q0", ["p4", "p5", "p6", "p7"], [-5.0, 2.9, 6.0, -4.0])}
    [group] = ids_of(Miner(PASSAGES, {}, 2, 1).pseudo(make_queries(1), run, below=0.1, above=0.9))
    assert group[0] == "p6"
    assert sorted(group[1:]) == ["p4", "p7"]


def test_a_query_without_candidates_is_counted():
    miner = Miner(PASSAGES, {"q0": {"p0": 1}}, 2, 1)
    assert list(miner.denoised(make_queries(1), {}, below=0.5)) == []
    assert list(miner.pseudo(make_queries(1), {}, below=0.1, above=0.9)) == []
    assert (miner.report.too_few_negatives, miner.report.no_positive) == (1, 1)


def test_report_text():
    assert str(MiningReport()) == "no groups"
    report = MiningReport({"random": 7, "denoised": 5}, filled=3, too_few_negatives=2, no_positive=1)
    assert str(report) == (
        "5 denoised, 7 random groups; 3 negatives drawn from the whole corpus (too few candidates); "
        "2 queries left out (the re-ranker rejects too few candidates); "
        "1 queries left out (the re-ranker accepts no candidate)"
    )


# Calibration --------------------------------------------------------------------------------------


def gradient(fitted: Calibration, positives, negatives) -> np.ndarray:
    """Of Platt's loss, both sides of one weight; zero at the optimum. The slope's is in units of spread."""
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


def test_calibration_of_a_long_run(monkeypatch):
    """A sample will do, and the seed decides which."""
    monkeypatch.setattr(miner_module, "_CALIBRATION_SCORES", 20)
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
