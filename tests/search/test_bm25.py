"""BM25: it finds shared words, in titles as in texts, and nothing else."""

from __future__ import annotations

import dataclasses
import re

import bm25s
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.data.store import Store, write_store
from rocketqa_paddle.records import Passage, Query
from rocketqa_paddle.runtime.storage import write_json
from rocketqa_paddle.search import bm25 as module
from rocketqa_paddle.search.bm25 import BM25Index, bm25
from rocketqa_paddle.search.index import CONTENTS

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


def test_a_corpus_without_words_has_no_hits():
    assert bm25({"p": Passage("p", "", "the ?")}, {"q": Query("q", "red dog")}, 5) == {"q": []}


def test_equal_scores_come_in_the_order_of_the_rows():
    passages = {id: Passage(id, "", "red dog") for id in "zyxwv"} | {"a": Passage("a", "", "green whale")}
    for k, ids in ((1, "z"), (3, "zyx"), (9, "zyxwv")):
        assert [hit.passage_id for hit in bm25(passages, {"q": Query("q", "dog")}, k)["q"]] == list(ids)


# The index ------------------------------------------------------------------------------------------


@pytest.fixture(params=["toy", "chinese", "no words"])
def corpus(request):
    return {"toy": PASSAGES, "chinese": CHINESE, "no words": {"p": Passage("p", "", "the ?")}}[request.param]


def test_a_saved_index_and_the_function_find_the_same(corpus, tmp_path):
    """Of passages in a dictionary, a generator or a store."""
    write_store(tmp_path, corpus)
    texts = ["red dog", "", "the", "图书馆几点开门", "GUIDO guido 创造", "dog dog blue whale"]
    queries = {text: Query(text, text) for text in texts}
    BM25Index(passage for passage in corpus.values()).save(tmp_path)
    loaded = BM25Index.load(tmp_path)
    assert isinstance(loaded._index.scores["data"], np.memmap)
    assert len(loaded) == len(corpus)
    for k in (1, 5, 100):
        expected = bm25(corpus, queries, k)
        assert expected.hits.shape == (len(queries), min(k, len(corpus)))
        np.testing.assert_array_equal(loaded.search(texts, k), expected.hits)
        assert bm25(Store(tmp_path), queries, k) == expected
    assert loaded.search([], 5).shape == (0, min(5, len(corpus)))


def test_an_index_folder_may_hold_it_and_nothing_else(tmp_path):
    write_json(tmp_path / "meta.json", {"format_version": 3, "metric": "inner_product", "dimension": 4})
    BM25Index(PASSAGES.values()).save(tmp_path)
    CONTENTS.check(tmp_path)
    (tmp_path / "bm25" / "mine.txt").write_text("notes")
    with pytest.raises(ValueError, match="holds bm25/mine.txt, which would be lost"):
        CONTENTS.check(tmp_path)


@pytest.mark.parametrize("name", ["data.csc", "indices.csc", "indptr.csc", "vocab", "params"])
def test_a_damaged_file_is_refused(name, tmp_path):
    BM25Index(PASSAGES.values()).save(tmp_path)
    [path] = (tmp_path / "bm25").glob(f"{name}.index.*")
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="bm25 is damaged .*: build the index again"):
            BM25Index.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        BM25Index.load(tmp_path)


def test_an_index_without_bm25_is_told():
    with pytest.raises(FileNotFoundError, match="build it with `rocketqa index --bm25 true`"):
        BM25Index.load("nowhere")


# Chinese, Japanese, Korean -------------------------------------------------------------------------

CHINESE = {
    "library": Passage("library", "", "市图书馆每天早上九点开门，周一休息。"),
    "museum": Passage("museum", "", "博物馆每天早上十点开门，周二休息。"),
    "river": Passage("river", "", "长江是亚洲最长的河流，全长六千多公里。"),
    "python": Passage("python", "", "Python语言由Guido创造，名字来自一个喜剧团。"),
    "cat": Passage("cat", "猫", "喜欢睡觉"),
}


def plain(text: str) -> list[str]:
    """The words of bm25s, which splits at spaces and marks."""
    return re.findall(r"(?u)\b\w\w+\b", text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("稠密检索", ["稠密", "密检", "检索"]),
        ("猫 和 狗狗", ["猫", "和", "狗狗"]),
        ("python语言 is 好x", ["python", "语言", "is", "好"]),
        ("東京タワーは高い", ["東京", "京タ", "タワ", "ワー", "ーは", "は高", "高い"]),
        ("대한민국 서울", ["대한", "한민", "민국", "서울"]),
        ("人々・𠮷野家。", ["人々", "𠮷野", "野家"]),
        ("see 3d_x, a b", ["see", "3d_x"]),
    ],
)
def test_neighbouring_characters_are_the_words_of_chinese_japanese_and_korean(text, words):
    assert re.findall(module._WORD, text) == words


@pytest.mark.parametrize(
    "query, passage",
    [
        ("图书馆几点开门", "library"),
        ("亚洲最长的河流是哪条", "river"),
        ("guido 创造了什么语言", "python"),
        ("猫", "cat"),
    ],
)
def test_chinese_is_found_where_spaces_find_nothing(query, passage):
    assert bm25(CHINESE, {"q": Query("q", query)}, 3)["q"][0].passage_id == passage
    words = {word for p in CHINESE.values() for word in plain(f"{p.title} {p.text}".lower())}
    assert not words & set(plain(query))


@given(
    st.text(st.characters(max_codepoint=0x10FF) | st.characters(min_codepoint=0x1200, max_codepoint=0x2FFF))
)
def test_other_scripts_have_the_words_that_they_had(text):
    assert re.findall(module._WORD, text) == plain(text)


def test_a_collection_in_english_has_the_scores_of_bm25s_alone():
    queries = {query.id: query for query in toy.collection().splits["train"].queries.values()}
    index = bm25s.BM25()
    texts = [f"{passage.title} {passage.text}" for passage in PASSAGES.values()]
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    words = bm25s.tokenize([query.text for query in queries.values()], stopwords="en", show_progress=False)
    rows, scores = index.retrieve(words, k=60, show_progress=False)
    run, ids = bm25(PASSAGES, queries, 10), list(PASSAGES)
    for query, found, values in zip(queries, rows.tolist(), scores.tolist(), strict=True):
        ordered = sorted((-score, row) for row, score in zip(found, values, strict=True) if score > 0)
        assert [(-hit.score, ids.index(hit.passage_id)) for hit in run[query]] == ordered[:10]
