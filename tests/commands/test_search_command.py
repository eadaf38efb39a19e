"""`rocketqa search`: a list for people, a run file for programs, and mistakes."""

from __future__ import annotations

import importlib.util
import re
import shutil

import numpy as np
import paddle
import pytest
import toy
from command_line import COLLECTION, run, words

from rocketqa_paddle import SearchEngine, checkpoints
from rocketqa_paddle.commands.search import _shorten
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Hit
from rocketqa_paddle.search import retrieval


def test_search_in_the_best_folder_of_a_run(best, capsys):
    run("search", "--checkpoint", best, "--k", 3, "red dog", "1969", "null", "{a: b}", "-0.5 apples")
    out = capsys.readouterr().out
    queries = ["red dog", "1969", "null", "{a: b}", "-0.5 apples"]
    assert [block.split("\n")[0] for block in out.strip().split("\n\n")] == queries
    numbers = re.findall(r"^ +(\d+)\. .+ \((-?\d+\.\d\d)\)$", out, flags=re.MULTILINE)
    assert [int(rank) for rank, _ in numbers] == [1, 2, 3] * 5
    scores = np.array([float(score) for _, score in numbers]).reshape(5, 3)
    assert (np.diff(scores) <= 0).all()


def test_search_with_a_file_of_queries(best, data, tmp_path, capsys):
    output = tmp_path / "deep" / "dev.run"
    flags = words(checkpoint=best, queries=data / "dev.query.txt", output=output, k=4, depth=9)
    run("search", *flags)
    assert capsys.readouterr().out == f"10 queries answered in {output}\n"
    found = read_run(output)
    queries, passages = COLLECTION.splits["dev"].queries, COLLECTION.passages
    index = retrieval.CorpusIndex(checkpoints.load(best / "retriever"), passages, progress="")
    reranker = checkpoints.load(best / "reranker")
    expected = retrieval.rerank(reranker, index.search(queries, 9), passages, queries, 9, progress="")
    assert list(found) == list(queries)
    for query, hits in found.items():
        assert [hit.passage_id for hit in hits] == [hit.passage_id for hit in expected[query][:4]]


@pytest.mark.parametrize(("k", "depth"), [(4, 9), (12, 5), (5, 0)])
def test_the_run_of_a_file_is_what_the_search_engine_finds(best, data, tmp_path, k, depth):
    """To the last digit."""
    files = {"queries": data / "dev.query.txt", "output": tmp_path / "dev.run"}
    run("search", *words(checkpoint=best, k=k, depth=depth, **files))
    queries = COLLECTION.splits["dev"].queries
    answers = SearchEngine.open(best).search([query.text for query in queries.values()], k, depth)
    assert read_run(tmp_path / "dev.run") == {
        query_id: [Hit(query_id, r.passage.id, r.rank, r.score) for r in results]
        for query_id, results in zip(queries, answers, strict=True)
    }


def test_search_gives_k_passages_where_k_is_above_the_depth(best, capsys):
    run("search", "--checkpoint", best, "--k", 12, "--depth", 5, "red dog")
    out = capsys.readouterr().out
    assert len(re.findall(r"^ +\d+\. ", out, flags=re.MULTILINE)) == 12


def test_search_to_depth_0_is_by_the_retriever_alone(best, data, tmp_path):
    files = {"queries": data / "dev.query.txt", "k": 9}
    run("search", *words(checkpoint=best, output=tmp_path / "run", depth=0, **files))
    alone = words(checkpoint=best / "retriever", index=best / "index", output=tmp_path / "alone", **files)
    run("search", *alone)
    assert (tmp_path / "run").read_text() == (tmp_path / "alone").read_text()
    run("search", *words(checkpoint=best, output=tmp_path / "run", depth=9, **files))
    assert (tmp_path / "run").read_text() != (tmp_path / "alone").read_text()


# With BM25 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid(best, data, tmp_path_factory):
    """Flags of a retriever and an index with BM25."""
    output = tmp_path_factory.mktemp("hybrid") / "index"
    files = {"passages": data / "para.txt", "titles": data / "para.title.txt"}
    run("index", *words(checkpoint=best / "retriever", output=output, **files), "--bm25")
    return words(checkpoint=best / "retriever", index=output)


@pytest.mark.parametrize("fusion", [{"fuse": "rrf"}, {"fuse": "weighted", "weight": 0.3}])
def test_a_fused_run_is_what_the_search_engine_finds(best, data, hybrid, tmp_path, fusion):
    files = {"queries": data / "dev.query.txt", "output": tmp_path / "dev.run"}
    run("search", *hybrid, *words(k=9, **files, **fusion))
    queries = COLLECTION.splits["dev"].queries
    answers = SearchEngine.open(hybrid[1], hybrid[3]).search([q.text for q in queries.values()], 9, **fusion)
    assert read_run(tmp_path / "dev.run") == {
        query_id: [Hit(query_id, r.passage.id, r.rank, r.score) for r in results]
        for query_id, results in zip(queries, answers, strict=True)
    }


def test_tune_tells_the_weight_that_measures_best(data, hybrid, tmp_path, capsys):
    judged = {"queries": data / "dev.query.txt", "qrels": data / "qrels.dev.tsv"}
    run("tune", *hybrid, *words(**judged))
    *_, told = (out := capsys.readouterr().out).splitlines()
    means = dict(re.findall(r"^\| weight (\d\.\d) +\| \**(\d\.\d{3})", out, flags=re.MULTILINE))
    assert list(means) == [f"{n / 10}" for n in range(11)]
    best = max(means, key=lambda weight: float(means[weight]))
    assert told == f"best: --fuse weighted --weight {best}"
    output = tmp_path / "run"
    run(
        "search",
        *hybrid,
        *words(queries=judged["queries"], output=output, k=10, fuse="weighted", weight=best),
    )
    measured = metrics.evaluate(COLLECTION.splits["dev"].qrels, read_run(output), ["RR@10"])
    assert measured["RR@10"] == pytest.approx(float(means[best]), abs=6e-4)


@pytest.fixture(scope="module")
def hybrid_milvus(best, data, tmp_path_factory):
    """Flags of a retriever and an index with BM25 in Milvus."""
    pytest.importorskip("pymilvus", reason="needs the extra milvus")
    pytest.importorskip("milvus_lite", reason="needs the extra milvus")
    there = {"uri": tmp_path_factory.mktemp("milvus") / "some.db", "collection": "toy"}
    files = {"passages": data / "para.txt", "titles": data / "para.title.txt"}
    run("index", *words(checkpoint=best / "retriever", engine="milvus", **there, **files), "--bm25")
    return words(checkpoint=best / "retriever", **there)


def test_milvus_fuses_and_tunes_as_a_folder_does(data, hybrid, hybrid_milvus, tmp_path, capsys):
    judged = {"queries": data / "dev.query.txt", "qrels": data / "qrels.dev.tsv"}
    told, runs = [], []
    for number, flags in enumerate((hybrid, hybrid_milvus)):
        capsys.readouterr()
        run("tune", *flags, *words(**judged))
        told.append(capsys.readouterr().out)
        output = tmp_path / str(number)
        run("search", *flags, *words(queries=judged["queries"], output=output, k=9, fuse="rrf"))
        runs.append(read_run(output))
    assert told[0] == told[1]
    assert runs[0] == runs[1]


def test_without_the_package_an_update_in_milvus_is_refused_before_any_work(
    data, hybrid_milvus, fails, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bm25s" else find(name))
    monkeypatch.setattr(retrieval.forward, "encode_parts", None)
    flags = ["--engine", "milvus", *hybrid_milvus, *words(passages=data / "para.txt"), "--update"]
    assert "an update of an index with BM25 needs the package bm25s" in fails("index", *flags)


def test_a_fusion_that_cannot_be(fails, best, data, hybrid, tmp_path):
    wrong = "search", *hybrid, "red dog"
    assert "weight=0.3 goes with fuse='weighted' alone" in fails(*wrong, "--weight", 0.3)
    assert "needs the weight of BM25, from 0 to 1" in fails(*wrong, "--fuse", "weighted")
    assert "weight=1.5, expected a number from 0" in fails(*wrong, "--fuse", "weighted", "--weight", 1.5)
    told = fails("search", "--checkpoint", best, "--fuse", "rrf", "red dog")
    assert "the index has no bm25/: build it with `rocketqa index --bm25 true`" in told
    (tmp_path / "qrels.tsv").write_text("another\tp1\n")
    flags = words(queries=data / "dev.query.txt", qrels=tmp_path / "qrels.tsv")
    assert "judges none of the queries of" in fails("tune", *hybrid, *flags)


# Other mistakes ------------------------------------------------------------------------------------


def test_long_passages_are_cut_at_a_word(tmp_path):
    assert _shorten("word " * 100).endswith("word…")
    assert len(_shorten("word " * 100)) <= 160
    assert _shorten("short") == "short"
    assert len(_shorten("x" * 500)) <= 160


def test_the_index_of_another_model(fails, best, tmp_path):

    paddle.seed(54321)  # other weights than those any run began with
    tokens = toy.tokenizer(tmp_path / "vocabulary")
    checkpoints.save(toy.dual(tokens), tmp_path / "other")
    message = fails("search", "--checkpoint", tmp_path / "other", "--index", best / "index", "red dog")
    assert "made by model" in message
    assert "search with the checkpoint that built the index" in message


def test_a_broken_index(fails, best, tmp_path):
    broken = tmp_path / "best"
    shutil.copytree(best, broken)
    (broken / "index" / "ids.txt").write_text("p1\n")
    assert "build the index again" in fails("search", "--checkpoint", broken, "red dog")
    (broken / "index" / "index.faiss").write_bytes(b"junk")
    assert "index" in fails("search", "--checkpoint", broken, "red dog")
    (broken / "index" / "meta.json").write_text("{")
    assert "meta.json" in fails("search", "--checkpoint", broken, "red dog")
    shutil.rmtree(broken / "index")
    assert "meta.json: not there" in fails("search", "--checkpoint", broken, "red dog")


@pytest.mark.parametrize("query", ["", "  ", "\t"])
def test_an_empty_query(fails, best, query):
    assert "an empty query" in fails("search", "--checkpoint", best, "red dog", query)


def test_words_and_a_file_or_neither(fails, best, data, tmp_path):
    file = words(queries=data / "dev.query.txt", output=tmp_path / "run")
    message = "search needs either queries as words or --queries FILE"
    assert message in fails("search", "--checkpoint", best, "red dog", *file)
    assert message in fails("search", "--checkpoint", best)
    assert "--queries needs --output" in fails("search", "--checkpoint", best, *file[:2])


def test_search_without_an_index(fails, best):
    message = fails("search", "--checkpoint", best / "retriever", "red dog")
    assert "name the index with" in message
    assert "--index" in message


@pytest.mark.parametrize(("flag", "value"), [("k", 0), ("k", -1), ("depth", -1), ("depth", -3)])
def test_a_number_of_passages_that_makes_no_sense(fails, best, flag, value):
    assert flag in fails("search", "--checkpoint", best, f"--{flag}", value, "red dog")


def test_a_run_on_standard_output_is_nothing_but_a_run(best, data, capfd):
    """It can be piped into another command: what people are told goes to standard error."""
    run("search", *words(checkpoint=best, queries=data / "dev.query.txt", output="/dev/stdout", k=2))
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 20
    assert all(len(line.split("\t")) == 4 for line in out.splitlines())
    assert "10 queries answered in /dev/stdout" in err


def test_a_device_where_a_folder_or_two_files_are_written(best, data, fails):
    given = {"checkpoint": best / "retriever", "output": "/dev/stdout"}
    message = "/dev/stdout: a device or a pipe, expected the name of"
    assert f"{message} two files" in fails("encode", *words(input=data / "para.txt", **given))
    assert f"{message} a folder" in fails("index", *words(passages=data / "para.txt", **given))
    assert f"{message} a folder" in fails("convert", best / "retriever", "/dev/stdout")
