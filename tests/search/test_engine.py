"""`SearchEngine`: what it finds, what it reads for that, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toy

import rocketqa_paddle
from rocketqa_paddle import SearchEngine, checkpoints
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.data.store import OFFSETS, TEXTS
from rocketqa_paddle.records import Passage, Query
from rocketqa_paddle.search import engine, fusion, retrieval
from rocketqa_paddle.search.bm25 import BM25Index, bm25
from rocketqa_paddle.search.folder import IndexFolder
from rocketqa_paddle.search.fusion import fuse
from rocketqa_paddle.search.index import is_whole

PASSAGES = toy.collection().passages
QUERIES = ["where is a red dog", "blue cat", "look for some green whale"]


@pytest.fixture(scope="module")
def opened(best: Path) -> SearchEngine:
    return SearchEngine.open(best)


@pytest.fixture
def copied(best: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(best, tmp_path / "best"))


@pytest.fixture(scope="module")
def found(best: Path) -> retrieval.Run:
    """What the retriever alone finds: all passages, best first, for every query by its number."""
    index = retrieval.CorpusIndex(checkpoints.load(best / "retriever"), PASSAGES, progress="")
    return index.search(named(QUERIES), 60)


@pytest.fixture(scope="module")
def hybrid(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `best` folder with an index that has BM25."""
    folder = Path(shutil.copytree(best, tmp_path_factory.mktemp("hybrid") / "best"))
    retriever = checkpoints.load(folder / "retriever")
    index = retrieval.CorpusIndex.load(folder / "index", retriever, PASSAGES)
    index.save(folder / "index", retriever.digest(), bm25=True)
    return folder


def named(queries: list[str]) -> dict[str, Query]:
    return {str(number): Query(str(number), text) for number, text in enumerate(queries)}


# What it finds ----------------------------------------------------------------------------------


def test_the_package_hands_it_out() -> None:
    assert rocketqa_paddle.SearchEngine is engine.SearchEngine
    with pytest.raises(AttributeError, match="'rocketqa_paddle' has no attribute 'Searcher'"):
        rocketqa_paddle.Searcher  # noqa: B018


@pytest.mark.parametrize(("k", "depth"), [(5, 20), (20, 5), (1, 1), (7, 7), (60, 100), (100, 3)])
def test_the_reranker_orders_what_the_retriever_found(
    best: Path, opened: SearchEngine, found: retrieval.Run, k: int, depth: int
) -> None:
    cut = {name: hits[: max(k, depth)] for name, hits in found.items()}
    reranker = checkpoints.load(best / "reranker")
    expected = retrieval.rerank(reranker, cut, PASSAGES, named(QUERIES), depth, progress="")
    for name, results in enumerate(opened.search(QUERIES, k=k, depth=depth)):
        hits = expected[str(name)][:k]
        assert [(r.rank, r.passage) for r in results] == [(h.rank, PASSAGES[h.passage_id]) for h in hits]
        assert [r.score for r in results] == pytest.approx([h.score for h in hits], abs=1e-5)
        before = {hit.passage_id: hit for hit in found[str(name)]}
        for result in results:
            first = before[result.passage.id]
            assert result.retriever_score == pytest.approx(first.score, abs=1e-5)
            assert result.reranker_score == (result.score if first.rank <= depth else None)


@pytest.mark.parametrize("way", ["depth 0", "no re-ranker", "a retriever and an index"])
def test_the_retrievers_order(best: Path, found: retrieval.Run, opened: SearchEngine, way: str) -> None:
    if way == "depth 0":
        answers = opened.search(QUERIES, k=9, depth=0)
    elif way == "no re-ranker":
        answers = SearchEngine.open(best, reranker=False).search(QUERIES, k=9)
    else:
        answers = SearchEngine.open(best / "retriever", index=str(best / "index")).search(QUERIES, k=9)
    for name, results in enumerate(answers):
        assert [r.passage.id for r in results] == [hit.passage_id for hit in found[str(name)][:9]]
        assert [r.rank for r in results] == list(range(1, 10))
        assert all(r.score == r.retriever_score and r.reranker_score is None for r in results)


def test_parts_may_lie_anywhere(copied: Path, opened: SearchEngine, tmp_path: Path) -> None:
    for name in ("index", "reranker"):
        (copied / name).rename(tmp_path / name)
    moved = SearchEngine.open(copied, index=tmp_path / "index", reranker=str(tmp_path / "reranker"))
    alone = SearchEngine.open(copied / "retriever", tmp_path / "index", tmp_path / "reranker")
    assert moved.search(QUERIES) == alone.search(QUERIES) == opened.search(QUERIES)
    without = SearchEngine.open(copied, index=tmp_path / "index").search(QUERIES)
    assert without == opened.search(QUERIES, depth=0)


def test_queries_are_answered_in_their_order(opened: SearchEngine) -> None:
    expected = {query: [r.passage for r in opened.search([query])[0]] for query in QUERIES}
    for queries in (QUERIES, QUERIES[::-1], QUERIES[:1] * 2, tuple(QUERIES), []):
        answers = opened.search(queries)
        assert [[r.passage for r in results] for results in answers] == [expected[q] for q in queries]


def test_threads_get_the_answers_given_alone(opened: SearchEngine) -> None:
    expected = {query: opened.search([query]) for query in QUERIES}
    with ThreadPoolExecutor(3) as pool:
        jobs = QUERIES * 10
        for query, answer in zip(jobs, pool.map(lambda q: opened.search([q]), jobs), strict=True):
            assert answer == expected[query]


# With BM25 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "weight"), [("rrf", None), ("weighted", 0.3), ("weighted", 1.0)])
@pytest.mark.parametrize(("k", "depth"), [(5, 0), (5, 20), (9, 4), (100, 3)])
def test_a_search_fuses_the_retriever_with_bm25(
    hybrid: Path, found: retrieval.Run, method: str, weight: float | None, k: int, depth: int
) -> None:
    lexical = bm25(PASSAGES, named(QUERIES), 60)
    fused = Candidates(lexical.queries, list(PASSAGES), fuse(found.hits, lexical.hits, method, weight))
    expected = fused.first(max(k, depth))
    if depth:
        reranker = checkpoints.load(hybrid / "reranker")
        expected = retrieval.rerank(reranker, expected, PASSAGES, named(QUERIES), depth, progress="")
    answers = SearchEngine.open(hybrid).search(QUERIES, k, depth, fuse=method, weight=weight)
    for name, results in zip(expected, answers, strict=True):
        hits = expected[name][:k]
        assert [(r.rank, r.passage.id) for r in results] == [(hit.rank, hit.passage_id) for hit in hits]
        assert [r.score for r in results] == pytest.approx([hit.score for hit in hits], abs=1e-5)
        inner = {hit.passage_id: hit.score for hit in found[name]}
        before = {hit.passage_id: hit.rank for hit in fused[name]}
        for result in results:
            assert result.retriever_score == pytest.approx(inner[result.passage.id], abs=1e-5)
            assert (result.reranker_score is not None) == (before[result.passage.id] <= depth)


def test_passages_that_bm25_alone_found_have_the_retrievers_score(
    hybrid: Path, found: retrieval.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each side finds one passage, and with the weight 1 the one of BM25 comes first."""
    monkeypatch.setattr(fusion, "POOL", 1)
    engine = SearchEngine.open(hybrid)
    lexical = bm25(PASSAGES, named(QUERIES), 1)
    answers = engine.search(QUERIES, 1, 0, fuse="weighted", weight=1.0)
    for name, [result] in zip(lexical, answers, strict=True):
        assert result.passage.id == lexical[name][0].passage_id
        inner = {hit.passage_id: hit.score for hit in found[name]}
        assert result.retriever_score == pytest.approx(inner[result.passage.id], abs=1e-5)
    assert any(lexical[name][0].passage_id != found[name][0].passage_id for name in lexical)


def test_an_index_with_bm25_is_searched_without_it_as_any_other(hybrid: Path, opened: SearchEngine) -> None:
    assert SearchEngine.open(hybrid).search(QUERIES) == opened.search(QUERIES)
    assert SearchEngine.open(hybrid).search([], fuse="rrf") == []


def test_without_the_package_an_index_with_bm25_is_searched_by_the_retriever_alone(
    hybrid: Path, opened: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    alone = SearchEngine.open(hybrid)
    assert alone.search(QUERIES) == opened.search(QUERIES)
    with pytest.raises(ValueError, match="a fusion with BM25 needs the package bm25s: pip install bm25s"):
        alone.search(QUERIES, fuse="rrf")
    with pytest.raises(ValueError, match="a change of an index with BM25 needs the package bm25s"):
        IndexFolder(hybrid / "index").delete(["p1"])


def test_a_fusion_without_bm25_or_with_that_of_another_index_is_refused(
    opened: SearchEngine, hybrid: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no bm25/: build it with `rocketqa index --bm25 true`"):
        opened.search(QUERIES, fuse="rrf")
    with pytest.raises(ValueError, match="weight=2, expected a number from 0"):
        opened.search(QUERIES, fuse="weighted", weight=2)
    shutil.copytree(hybrid, tmp_path / "best")
    BM25Index(list(PASSAGES.values())[:9]).save(tmp_path / "best" / "index")
    with pytest.raises(ValueError, match="bm25/ has 9 passages, the index 60: .* build the index again"):
        SearchEngine.open(tmp_path / "best")


# What it reads ----------------------------------------------------------------------------------


def test_models_are_read_once(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, sources = convert.read, []
    monkeypatch.setattr(convert, "read", lambda source, **how: sources.append(source) or read(source, **how))
    opened = SearchEngine.open(best)
    for _ in range(2):
        opened.search(QUERIES)
    assert sources == [best / "retriever", best / "reranker"]


def test_a_query_reads_the_texts_that_it_found_and_no_more(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, read = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *call: read.append(pread(*call)) or read[-1])
    opened = SearchEngine.open(best)
    assert read == []
    for k, depth in ((3, 0), (2, 4), (60, 0)):
        read.clear()
        [results] = opened.search(["red dog"], k, depth)
        assert len(read) == max(k, depth)
        assert {r.passage.id for r in results} <= {json.loads(line)[0] for line in read}
        whole = (best / "index" / TEXTS).stat().st_size
        assert sum(map(len, read)) < whole / 5 or (k == 60 and sum(map(len, read)) == whole)


def test_an_index_without_offsets_is_searched_alike(copied: Path, opened: SearchEngine) -> None:
    (copied / "index" / OFFSETS).unlink()
    assert SearchEngine.open(copied).search(QUERIES) == opened.search(QUERIES)


def test_an_engine_at_work_keeps_its_index_when_a_new_one_takes_its_place(
    copied: Path, opened: SearchEngine
) -> None:
    working = SearchEngine.open(copied)
    retriever = checkpoints.load(copied / "retriever")
    passages = {f"new{i}": Passage(f"new{i}", "", f"new {i}") for i in range(60)}
    retrieval.CorpusIndex(retriever, passages, progress="").save(copied / "index", retriever.digest())
    assert working.search(QUERIES) == opened.search(QUERIES)
    assert SearchEngine.open(copied).search(["new"])[0][0].passage.id.startswith("new")


def test_a_few_queries_show_no_progress(opened: SearchEngine, capfd: pytest.CaptureFixture[str]) -> None:
    opened.search(QUERIES)
    assert capfd.readouterr() == ("", "")
    opened.search(QUERIES, progress="re-rank")
    assert "re-rank: 100%" in capfd.readouterr().err


# What it refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"queries": ["a"], "k": 0}, "k=0, expected at least 1"),
        ({"queries": ["a"], "k": -3}, "k=-3, expected at least 1"),
        ({"queries": ["a"], "depth": -1}, "depth=-1, expected at least 0"),
        ({"queries": ["a", ""]}, "an empty query: give some words"),
        ({"queries": [" \t"]}, "an empty query: give some words"),
        ({"queries": "red dog"}, r"queries is one string, expected a list of strings: write \['red dog'\]"),
        ({"queries": ["a", None]}, r"queries\[1\] is NoneType, expected a string"),
        ({"queries": {"a": 1}}, "queries is dict, expected a list of strings"),
    ],
)
def test_wrong_requests_are_refused(opened: SearchEngine, request_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened.search(**request_)


def test_a_retriever_without_an_index_is_refused(best: Path) -> None:
    with pytest.raises(ValueError, match="no retriever/ and index/ inside: name the index with index=FOLDER"):
        SearchEngine.open(best / "retriever")


def test_a_run_folder_is_searched_by_its_best(best: Path, tmp_path: Path, opened: SearchEngine) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to(best)
    assert SearchEngine.open(tmp_path / "run").search(QUERIES) == opened.search(QUERIES)


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone': no such file or folder"):
        SearchEngine.open(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no model there"):
        SearchEngine.open(tmp_path)


def test_damage_to_an_index_is_noticed_by_who_wants_to_keep_it(copied: Path) -> None:
    folder = copied / "index"
    assert is_whole(folder)
    for name in ("meta.json", "vectors.npy", "ids.txt", TEXTS):
        content = (folder / name).read_bytes()
        for damaged in (content[:-3], content.replace(b"dog", b"cat") if name == TEXTS else b""):
            (folder / name).write_bytes(damaged)
            assert not is_whole(folder)
        (folder / name).write_bytes(content)
    assert is_whole(folder)


def test_damage_to_a_model_is_noticed_by_who_wants_to_keep_it(copied: Path) -> None:
    for model in ("retriever", "reranker"):
        folder = copied / model
        digest = checkpoints.load(folder).digest()
        assert checkpoints.is_whole(folder, digest)
        assert not checkpoints.is_whole(folder, "another")
        for name in ("config.json", "model.safetensors", "vocab.txt"):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])
            assert not checkpoints.is_whole(folder, digest)
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("gone", ["retriever/config.json", "index/meta.json", f"index/{TEXTS}"])
def test_a_missing_file_is_named(copied: Path, gone: str) -> None:
    (copied / gone).unlink()
    with pytest.raises(FileNotFoundError, match=Path(gone).name):
        SearchEngine.open(copied)


def test_the_index_of_another_model_is_refused(copied: Path) -> None:
    meta = json.loads((copied / "index" / "meta.json").read_text())
    (copied / "index" / "meta.json").write_text(json.dumps({**meta, "model": "other"}))
    with pytest.raises(ValueError, match="made by model other, but the checkpoint is .* build it again"):
        SearchEngine.open(copied)


def test_models_of_the_wrong_kind_are_refused(best: Path) -> None:
    with pytest.raises(ValueError, match="retriever is a dual_encoder, expected a cross_encoder"):
        SearchEngine.open(best, reranker=best / "retriever")
    with pytest.raises(ValueError, match="reranker is a cross_encoder, expected a dual_encoder"):
        SearchEngine.open(best / "reranker", index=best / "index")


def test_texts_of_another_index_are_refused(copied: Path) -> None:
    path = copied / "index" / TEXTS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ValueError, match="60 ids, but offsets of 60 .*build the index again"):
        SearchEngine.open(copied)
    (copied / "index" / OFFSETS).unlink()
    with pytest.raises(ValueError, match="60 ids, but offsets of 59 .*build the index again"):
        SearchEngine.open(copied)
    path.write_bytes(b"".join(reversed(lines)))
    with pytest.raises(ValueError, match="has the id .*build the index again"):
        SearchEngine.open(copied).search(QUERIES)
