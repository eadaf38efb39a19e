"""Groups under any candidates and judgements, by the papers' policies and by another one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from worlds import PASSAGES, REPEATED, SIZE, calibrations, make_hits, make_queries, positives, worlds

from rocketqa_paddle.mining.calibration import Calibration
from rocketqa_paddle.mining.miner import Miner, MiningReport
from rocketqa_paddle.records import Passage


def ids_of(groups) -> list[list[str]]:
    return [[passage.id for passage in group.passages] for group in groups]


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
        "1 undenoised groups; 4 negatives drawn from the whole corpus (too few candidates)"
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
        == "1 denoised groups; 1 queries without a denoised group (too few rejected candidates)"
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
        "5 denoised, 7 undenoised groups; 3 negatives drawn from the whole corpus (too few candidates); "
        "2 queries without a denoised group (too few rejected candidates); "
        "1 queries without a pseudo label (no accepted candidate)"
    )


# The first candidates -----------------------------------------------------------------------------


def test_only_the_first_candidates_are_drawn_from():
    """Those that `skip` leaves out are among the first; what is missing comes from the whole corpus."""
    queries = make_queries(100)
    qrels = {query.id: {"p3": 1} for query in queries}
    run = {query.id: make_hits(query.id, list(PASSAGES)) for query in queries}
    groups = ids_of(Miner(PASSAGES, qrels, 3, 1).undenoised(queries, run, first=6))
    assert {i for _, *others in groups for i in others} == {"p0", "p1", "p2", "p4", "p5"}
    groups = ids_of(Miner(PASSAGES, qrels, 2, 1).undenoised(queries, run, skip=1, first=5))
    assert {i for _, *others in groups for i in others} == {"p1", "p2", "p4"}
    miner = Miner(PASSAGES, qrels, 4, 1)
    list(miner.undenoised(queries[:1], run, first=4))
    assert miner.report.filled == 1


# Content -----------------------------------------------------------------------------------------


def policies(miner, queries, run):
    """The groups of every policy."""
    yield from miner.undenoised(queries, run, easy=1)
    for hardest in (False, True):
        scored = {query_id: hits[:6] for query_id, hits in run.items()}
        yield from miner.denoised(queries, scored, below=0.4, deeper=run, hardest=hardest)
        yield from miner.pseudo(queries, scored, below=0.4, above=0.6, deeper=run, hardest=hardest)


@given(worlds(), st.integers(1, 3), st.integers(0, 99))
def test_no_negative_says_what_a_positive_the_query_or_another_negative_says(world, negatives, seed):
    queries, qrels, run = world
    for group in policies(Miner(REPEATED, qrels, negatives, seed), queries, run):
        first, *others = group.passages
        labelled = [REPEATED[i] for i in positives(qrels, group.query.id)]
        keys = [passage.key for passage in others]
        assert not {first.key, *(passage.key for passage in labelled)} & {*keys}
        assert group.query.key not in {passage.text_key for passage in others}
        assert len({*keys}) == len(keys) == negatives
        assert {*group.other_positives} == {*labelled} - {first}


@given(worlds(), st.integers(1, 3), st.integers(0, 99))
def test_where_no_content_is_there_twice_only_ids_count(world, negatives, seed):
    """The same groups are drawn as in the released code's way."""
    queries, qrels, run = world
    one, other = (
        Miner(PASSAGES, qrels, negatives, seed, drop_false_negatives=drop) for drop in (True, False)
    )
    assert [*policies(one, queries, run)] == [*policies(other, queries, run)]
    assert one.report == other.report


def test_candidates_that_are_no_negatives_are_counted():
    query, other = make_queries(2)
    run = {"q0": make_hits("q0", ["p0", "p1", "p12", "p4", "p5", "p6"])}
    miner = Miner(REPEATED, {"q0": {"p0": 1}}, 2, 1)
    assert miner.without_positives(query, [hit.passage_id for hit in run["q0"]]) == ["p4", "p6"]
    assert str(miner.report) == (
        "no groups; 2 candidates left out (their title and text are those of a positive or of the query); "
        "1 candidates left out (their title and text are those of another candidate)"
    )
    assert miner.without_positives(other, ["p12", "p13"]) == ["p12"]
    released = Miner(REPEATED, {"q0": {"p0": 1}}, 2, 1, drop_false_negatives=False)
    assert released.without_positives(query, ["p0", "p1", "p12", "p4", "p5"]) == ["p1", "p12", "p4", "p5"]
    assert str(released.report) == "no groups"


def test_a_twin_of_the_pseudo_positive_is_no_negative():
    run = {"q0": make_hits("q0", ["p4", "p6", "p5", "p7"], [6.0, -9.0, -9.0, -9.0])}
    [group] = ids_of(Miner(REPEATED, {}, 1, 1).pseudo(make_queries(1), run, below=0.1, above=0.9))
    assert group in (["p4", "p6"], ["p4", "p7"])
    miner = Miner(REPEATED, {}, 2, 1)
    assert [*miner.pseudo(make_queries(1), run, below=0.1, above=0.9)] == []
    assert (miner.report.too_few_negatives, miner.report.repeated, miner.report.false_negatives) == (1, 1, 1)


def test_a_query_is_not_its_own_pseudo_positive():
    run = {"q0": make_hits("q0", ["p12", "p4", "p6"], [9.0, 4.0, -9.0])}
    made = {"below": 0.1, "above": 0.9}
    [group] = Miner(REPEATED, {}, 1, 1).pseudo(make_queries(1), run, **made)
    assert [passage.id for passage in group.passages] == ["p4", "p6"]
    [released] = Miner(REPEATED, {}, 1, 1, drop_false_negatives=False).pseudo(make_queries(1), run, **made)
    assert [passage.id for passage in released.passages] == ["p12", "p6"]


def test_a_corpus_of_too_few_contents_is_refused():
    passages = {f"p{i}": Passage(f"p{i}", "", f"text {i % 3}") for i in range(30)}
    miner = Miner(passages, {"q0": {"p0": 1}}, 2, 1)
    [query] = make_queries(1)
    assert {passages[i].text for i in miner.fill_up(query, [])} == {"text 1", "text 2"}
    with pytest.raises(
        ValueError, match="query q0: 3 negatives wanted, but of 30 passages 1 are positives, and"
    ):
        Miner(passages, {"q0": {"p0": 1}}, 3, 1).fill_up(query, [])


# A policy of one's own ----------------------------------------------------------------------------


def ambiguous(miner, queries, *, candidates, scored=None, width=1.0):
    """SimANS (Zhou et al., EMNLP 2022): negatives whose score is near that of the positive."""
    for query in queries:
        positive = miner.positive(query)
        scores = {hit.passage_id: hit.score for hit in candidates[query.id]}
        pool = miner.without_positives(query, scores)
        keys = {i: miner.random.random() ** np.exp(width * (scores[i] - scores[positive]) ** 2) for i in pool}
        nearest = sorted(pool, key=keys.get, reverse=True)[: miner.negatives]
        negatives = miner.fill_up(query, nearest)
        yield miner.group(query, positive, negatives, "random", scored and scored[query.id])


def test_a_policy_is_built_of_the_parts_of_a_miner():
    queries = make_queries(60)
    qrels = {query.id: {"p5": 1, "p6": 1, "p7": 0} for query in queries}
    run = {query.id: make_hits(query.id, list(PASSAGES)) for query in queries}
    miner = Miner(PASSAGES, qrels, 2, 1)
    groups = list(ambiguous(miner, queries, candidates=run))
    check_groups(groups, qrels, 2, "random")
    assert miner.report.groups == {"random": 60}
    drawn = np.array([[int(i[1:]) for i in ids] for ids in ids_of(groups)])
    assert set(drawn[:, 0]) == {5, 6}
    assert np.median(np.abs(drawn[:, 1:] - drawn[:, :1])) <= 2  # of 13 others, the nearest ranks
    assert all(group.scores is None for group in groups)
    again = list(ambiguous(Miner(PASSAGES, qrels, 2, 1), queries, candidates=run))
    assert again == groups


def test_a_policy_can_fill_up_and_give_teacher_scores():
    [query] = make_queries(1)
    miner = Miner(PASSAGES, {"q0": {"p0": 1}}, 4, 1)
    scored = {"q0": {passage_id: float(i) for i, passage_id in enumerate(PASSAGES)}}
    candidates = {"q0": make_hits("q0", ["p0", "p2"])}
    [group] = ambiguous(miner, [query], candidates=candidates, scored=scored)
    check_groups([group], miner.qrels, 4, "random")
    assert "p2" in ids_of([group])[0]
    assert group.scores == tuple(float(passage.id[1:]) for passage in group.passages)


def test_a_passage_without_teacher_score_is_an_error():
    miner = Miner(PASSAGES, {"q0": {"p0": 1}}, 1, 1)
    with pytest.raises(ValueError, match="query q0: the teacher has not scored passage p3"):
        miner.group(make_queries(1)[0], "p0", ["p3"], "random", {"p0": 1.0})
    assert miner.report.groups == {}


def test_a_query_without_labelled_positive_is_an_error():
    miner = Miner(PASSAGES, {"q0": {"p0": 0}}, 1, 1)
    for query in make_queries(2):
        with pytest.raises(ValueError, match=f"query {query.id} has no labelled positive"):
            miner.positive(query)


def test_parts_keep_order_and_leave_their_input_alone():
    miner = Miner(PASSAGES, {"q0": {"p0": 1, "p4": 2, "p5": 0}}, 5, 1)
    [query] = make_queries(1)
    assert miner.without_positives(query, ["p5", "p4", "p1", "p0"]) == ["p5", "p1"]
    drawn = ["p5", "p1"]
    filled = miner.fill_up(query, drawn)
    assert drawn == ["p5", "p1"] == filled[:2]
    assert len({*filled}) == 5
    assert not {"p0", "p4"} & {*filled}
    assert miner.fill_up(query, filled) == filled
