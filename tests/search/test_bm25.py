"""BM25: it finds shared words, in titles as in texts, and nothing else."""

from __future__ import annotations

import dataclasses

import toy

from rocketqa_paddle.records import Query
from rocketqa_paddle.search.bm25 import bm25

PASSAGES = toy.collection().passages


def test_bm25_finds_the_obvious_passage():
    queries = {i: Query(i, f"find {toy.PAIRS[int(i)][0]} {toy.PAIRS[int(i)][1]}") for i in ("3", "42")}
    run = bm25(PASSAGES, queries, 5)
    assert {query: hits[0].passage_id for query, hits in run.items()} == {"3": "p3", "42": "p42"}
    assert [hit.rank for hit in run["3"]] == [1, 2, 3, 4, 5]


def test_bm25_reads_titles():
    passages = {i: dataclasses.replace(PASSAGES[i], title="") for i in list(PASSAGES)[:9]}
    passages["p5"] = dataclasses.replace(passages["p5"], title="platypus")
    assert bm25(passages, {"q": Query("q", "platypus")}, 9)["q"][0].passage_id == "p5"


def test_bm25_drops_what_shares_no_word():
    queries = {
        "some": Query("some", "zebra"),
        "none": Query("none", "xylophone"),
        "stop": Query("stop", "the of"),
    }
    run = bm25(PASSAGES, queries, 60)
    animals = {passage_id for passage_id, passage in PASSAGES.items() if "zebra" in passage.text}
    assert {hit.passage_id for hit in run["some"]} == animals
    assert all(hit.score > 0 for hit in run["some"])
    assert run["none"] == run["stop"] == []


def test_no_queries_have_no_hits():
    assert bm25(PASSAGES, {}, 5) == {}
