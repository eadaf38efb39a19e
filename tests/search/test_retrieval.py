"""Corpus → vectors → hits: order, agreement with plain NumPy, and parts that join up to the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.data.candidates import Candidates, as_hits
from rocketqa_paddle.data.store import FILES, PassageTexts
from rocketqa_paddle.networks import forward
from rocketqa_paddle.records import Hit, Passage
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.index import VectorIndex

COLLECTION = toy.collection()
PASSAGES = COLLECTION.passages


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return toy.tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module", params=["cls", "mean"])
def retriever(request, tokens):
    return toy.dual(tokens, pooling=request.param, dropout=0.2)


@pytest.fixture(scope="module")
def reranker(tokens):
    return toy.cross(tokens, dropout=0.2)


# Search -------------------------------------------------------------------------------------------


def brute_force(retriever, queries, k):
    vectors = forward.encode_queries(retriever, [query.text for query in queries.values()])
    columns = zip(*((p.title, p.text) for p in PASSAGES.values()), strict=True)
    scores = vectors @ forward.encode_passages(retriever, *columns).T
    ids = list(PASSAGES)
    return {
        query: [(ids[row], line[row]) for row in np.argsort(-line, kind="stable")[:k]]
        for query, line in zip(queries, scores, strict=True)
    }


@pytest.mark.parametrize("k", [1, 10, 60, 100])
def test_search_equals_brute_force(retriever, k):
    queries = COLLECTION.splits["dev"].queries
    run = retrieval.CorpusIndex(retriever, PASSAGES, progress="").search(queries, k)
    expected = brute_force(retriever, queries, k)
    assert list(run) == list(queries)
    for query_id, hits in run.items():
        assert [hit.passage_id for hit in hits] == [passage_id for passage_id, _ in expected[query_id]]
        assert [hit.rank for hit in hits] == list(range(1, min(k, 60) + 1))
        assert {hit.query_id for hit in hits} == {query_id}
        np.testing.assert_allclose(
            [hit.score for hit in hits], [s for _, s in expected[query_id]], rtol=1e-4, atol=1e-4
        )


def test_more_queries_than_are_searched_together(retriever, monkeypatch):
    queries = COLLECTION.splits["train"].queries
    index = retrieval.CorpusIndex(retriever, PASSAGES, progress="")
    whole = index.search(queries, 5)
    monkeypatch.setattr(retrieval, "_QUERY_BLOCK", 7)
    assert list(index.search(queries, 5)) == list(queries)
    for query_id, hits in index.search(queries, 5).items():
        assert [hit.passage_id for hit in hits] == [hit.passage_id for hit in whole[query_id]]


def test_an_empty_corpus_is_refused(retriever):
    with pytest.raises(ValueError, match="the corpus is empty"):
        retrieval.CorpusIndex(retriever, {})


def test_a_saved_index_is_the_same_again(retriever, tmp_path):
    queries = COLLECTION.splits["dev"].queries
    index = retrieval.CorpusIndex(retriever, PASSAGES, progress="")
    index.save(tmp_path / "index", retriever.digest())
    index.search(queries, 20)  # the index of the search is the one that is saved again
    index.save(tmp_path / "searched", retriever.digest())
    again = retrieval.CorpusIndex.load(tmp_path / "index", retriever, PASSAGES)
    assert again.search(queries, 20) == index.search(queries, 20)
    again.save(tmp_path / "copy", retriever.digest())
    names = sorted(path.name for path in (tmp_path / "index").iterdir())
    assert names == sorted(["vectors.npy", "meta.json", *FILES])
    for name in names:
        for other in ("copy", "searched"):
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "index" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("model", ValueError, "made by model"),
        ("text", ValueError, "the index of another corpus"),
        ("order", ValueError, "the index of another corpus"),
        ("fewer", ValueError, "the index of another corpus"),
        ("texts", FileNotFoundError, "passages.jsonl"),
        ("nothing", FileNotFoundError, "meta.json"),
    ],
)
def test_an_index_of_something_else_is_refused(retriever, tokens, tmp_path, change, error, message):
    retrieval.CorpusIndex(retriever, PASSAGES, progress="").save(tmp_path / "index", retriever.digest())
    passages = dict(PASSAGES)
    if change == "model":
        retriever = toy.dual(tokens, pooling="mean", normalize=True)
    elif change == "text":
        passages["p3"] = dataclasses.replace(passages["p3"], text="something else")
    elif change == "order":
        passages = dict(reversed(passages.items()))
    elif change == "fewer":
        del passages["p3"]
    elif change == "texts":
        (tmp_path / "index" / "passages.jsonl").unlink()
    folder = tmp_path / ("nowhere" if change == "nothing" else "index")
    with pytest.raises(error, match=message):
        retrieval.CorpusIndex.load(folder, retriever, passages)


def test_a_saved_index_opens(retriever, tmp_path):
    passages = {**PASSAGES, "odd": Passage("odd", 'tab\t"', "line\nend \u2028 π")}
    index = retrieval.CorpusIndex(retriever, passages, progress="")
    index.save(tmp_path / "index", "0123")
    opened = VectorIndex.load(tmp_path / "index", "0123")
    assert opened.ids == list(passages)
    assert list(PassageTexts(tmp_path / "index", opened.ids)) == list(passages.values())
    queries = COLLECTION.splits["dev"].queries
    vectors = forward.encode_queries(retriever, [query.text for query in queries.values()])
    hits = as_hits(*opened.search(vectors, 9))
    assert Candidates(list(queries), opened.ids, hits) == index.search(queries, 9)
    with pytest.raises(ValueError, match="made by model 0123, but the checkpoint is 4567"):
        VectorIndex.load(tmp_path / "index", "4567")


def test_saving_takes_the_place_of_an_older_index(retriever, tmp_path):
    for count in (60, 10):
        passages = dict(list(PASSAGES.items())[:count])
        retrieval.CorpusIndex(retriever, passages, progress="").save(tmp_path / "index", "m")
    assert len(VectorIndex.load(tmp_path / "index")) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


# Parts that join up -------------------------------------------------------------------------------

scores = st.integers(-3, 3).map(np.float32)  # few values, so that there are many ties


@given(
    table=st.lists(st.lists(scores, min_size=9, max_size=9), min_size=1, max_size=4),
    owner=st.lists(st.integers(0, 2), min_size=9, max_size=9),
    k=st.integers(1, 12),
)
def test_merged_parts_equal_the_whole(table, owner, k):
    """A passage lives in one part, which finds its own best. Of equal scores, the first row is the best."""

    def best_of(rows):
        ranked = [sorted(rows, key=lambda row: -line[row])[:k] for line in table]
        found = [[line[row] for row in best] for line, best in zip(table, ranked, strict=True)]
        return as_hits(np.array(found, np.float32), np.array(ranked, np.int64))

    parts = [best_of([row for row in range(9) if owner[row] == part]) for part in range(3)]
    np.testing.assert_array_equal(retrieval.merge(parts, k), best_of(range(9)))


# Re-ranking ---------------------------------------------------------------------------------------


def test_rerank_orders_the_first_hits_by_the_cross_encoder(retriever, reranker):
    queries = COLLECTION.splits["dev"].queries
    run = retrieval.CorpusIndex(retriever, PASSAGES, progress="").search(queries, 20)
    reranked = retrieval.rerank(reranker, run, PASSAGES, queries, 12, batch_size=5, progress="")
    assert list(reranked) == list(queries)
    moved = 0
    for query_id, all_hits in reranked.items():
        hits, before = all_hits[:12], [hit.passage_id for hit in run[query_id][:12]]
        assert {hit.passage_id for hit in hits} == set(before)
        assert [hit.passage_id for hit in all_hits[12:]] == [hit.passage_id for hit in run[query_id][12:]]
        assert [hit.rank for hit in all_hits] == list(range(1, 21))
        assert [hit.score for hit in all_hits] == sorted((hit.score for hit in all_hits), reverse=True)
        for hit in hits:
            passage = PASSAGES[hit.passage_id]
            alone = forward.score_pairs(reranker, [queries[query_id].text], [passage.title], [passage.text])
            assert hit.score == pytest.approx(float(alone[0]), abs=1e-5)
        moved += [hit.passage_id for hit in hits] != before
    assert moved == len(queries)


def test_rerank_where_a_query_has_few_hits_or_none(reranker):
    queries = COLLECTION.splits["dev"].queries
    run = {"dev0": [Hit("dev0", "p4", 1, 0.0)], "dev1": [], "dev2": [Hit("dev2", "p5", 1, 0.0)]}
    reranked = retrieval.rerank(reranker, run, PASSAGES, queries, 50, progress="")
    assert {id: [hit.passage_id for hit in hits] for id, hits in reranked.items()} == {
        "dev0": ["p4"],
        "dev1": [],
        "dev2": ["p5"],
    }
    assert retrieval.rerank(reranker, {}, PASSAGES, queries, 5, progress="") == {}
