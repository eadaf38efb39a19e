"""`rocketqa rerank`: a run in the re-ranker's order."""

from __future__ import annotations

import re

import pytest
from command_line import COLLECTION, run, words

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.search import retrieval


def test_rerank(best, data, a_run, tmp_path, capsys):
    flags = words(
        checkpoint=best / "reranker",
        run=a_run,
        queries=data / "dev.query.txt",
        passages=data / "para.txt",
        titles=data / "para.title.txt",
        output=tmp_path / "reranked.run",
        depth=6,
    )
    run("rerank", *flags)
    assert capsys.readouterr().out == f"10 queries re-ranked in {tmp_path}/reranked.run\n"
    queries, passages = COLLECTION.splits["dev"].queries, COLLECTION.passages
    expected = retrieval.rerank(
        checkpoints.load(best / "reranker"), read_run(a_run), passages, queries, 6, progress=""
    )
    found = read_run(tmp_path / "reranked.run")
    for query, hits in found.items():
        scored = expected[query][:6]  # what is below has no score
        assert [hit.passage_id for hit in hits] == [hit.passage_id for hit in scored]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in scored], abs=1e-4)


def test_pairs_that_the_model_cuts_are_told(best, tmp_path, capsys):
    (tmp_path / "queries.txt").write_text("q\twhere is a red dog\n")
    (tmp_path / "para.txt").write_text(f"a\tred\nb\t{'red ' * 30}\nunfound\t{'red ' * 30}\n")
    (tmp_path / "a.run").write_text("q\ta\t1\t2.0\nq\tb\t2\t1.0\n")
    files = {"queries": tmp_path / "queries.txt", "passages": tmp_path / "para.txt"}
    output = {"run": tmp_path / "a.run", "output": tmp_path / "b.run"}
    run("rerank", *words(checkpoint=best / "reranker", **files, **output))
    told = "50 % of 2 pairs are longer than the pair length, 28 tokens, and are cut; 38 tokens would keep"
    assert capsys.readouterr().out.startswith(told)


@pytest.fixture
def refused(fails, best, data, tmp_path, monkeypatch):
    """The message of a rerank that must be refused before any model is read."""

    def refuse(*_, **__):
        raise AssertionError("the model was read before the mistake was told")

    monkeypatch.setattr(convert, "read", refuse)
    files = {"queries": data / "dev.query.txt", "passages": data / "para.txt", "output": tmp_path / "x"}
    return lambda **changed: fails("rerank", *words(checkpoint=best / "reranker", **files | changed))


def test_two_queries_of_one_id(refused, data, a_run, tmp_path):
    lines = (data / "dev.query.txt").read_text()
    (tmp_path / "twice.txt").write_text(lines + "dev0\tanother text\n")
    message = refused(run=a_run, queries=tmp_path / "twice.txt")
    assert "twice.txt:11: query id 'dev0' is already on line 1" in message


def test_an_id_that_the_new_run_cannot_hold(refused, tmp_path):
    (tmp_path / "x.run").write_text("dev0\ta passage\t1\t0.5\n")
    message = refused(run=tmp_path / "x.run", format="trec")
    assert "passage id 'a passage' is not one word" in message


def test_rerank_with_ids_that_are_not_there(fails, best, data, a_run, tmp_path):
    (tmp_path / "few.txt").write_text("p1\tfirst\n")
    common = {"checkpoint": best / "reranker", "run": a_run, "output": tmp_path / "x"}
    message = fails("rerank", *words(**common, queries=data / "dev.query.txt", passages=tmp_path / "few.txt"))
    assert re.search(r"dev\.run: \d+ ids are not in .*few\.txt, for example 'p", message)
    message = fails("rerank", *words(**common, queries=tmp_path / "few.txt", passages=data / "para.txt"))
    assert "10 ids are not in" in message
