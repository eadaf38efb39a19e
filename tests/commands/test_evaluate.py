"""`rocketqa evaluate`: measures of a run, and its comparison with another."""

from __future__ import annotations

import re

import pytest
from command_line import COLLECTION, run, words

from rocketqa_paddle.data.runs import read_run, write_run
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.search import retrieval


def test_evaluate(data, a_run, tmp_path, capsys):
    qrels = data / "qrels.dev.tsv"
    run("evaluate", "--qrels", qrels, "--run", a_run)
    values = metrics.evaluate(
        COLLECTION.splits["dev"].qrels, read_run(a_run), ["RR@10", "Success@5", "Success@50"]
    )
    out = capsys.readouterr().out
    assert out.startswith(f"10 queries of {qrels}\n\n| system ")
    assert [float(cell) for cell in re.findall(r"\*\*(\d\.\d+)\*\*", out)] == pytest.approx(
        list(values.values()), abs=6e-4
    )
    assert "t-test" not in out

    perfect = tmp_path / "perfect.trec"
    write_run(
        perfect,
        {
            q: retrieval.to_hits(q, iter([(p, 1.0) for p in judged]))
            for q, judged in COLLECTION.splits["dev"].qrels.items()
        },
        "trec",
    )
    second = tmp_path / "second.run"  # the judged passages behind one that is not: worse by a known amount
    write_run(
        second,
        {
            q: retrieval.to_hits(
                q,
                iter(
                    [
                        (next(p for p in COLLECTION.passages if p not in judged), 2.0),
                        *((p, 1.0) for p in judged),
                    ]
                ),
            )
            for q, judged in COLLECTION.splits["dev"].qrels.items()
        },
    )
    run(
        "evaluate", "--qrels", qrels, "--run", perfect, "--baseline", second, "--measures", "[nDCG@10, RR@10]"
    )
    out = capsys.readouterr().out
    rows = [line.split("|") for line in out.split("\n") if line.startswith("|")]
    assert [cell.strip() for cell in rows[0][1:-1]] == ["system", "nDCG@10", "RR@10 (MRR@10)"]
    assert [row[1].strip() for row in rows[2:]] == [str(second), str(perfect)]
    assert [cell.strip() for cell in rows[3][2:-1]] == ["**1.000**", "**1.000**"]
    assert f"{perfect} against {second}: nDCG@10 +0." in out
    assert "paired t-test over 10 queries" in out


def test_the_score_decides_the_order(tmp_path, capsys):
    """As for trec_eval, whose judgements may have comments, too."""
    (tmp_path / "x.qrels").write_text("# judged by hand\n1 0 a 1.0\n2 0 a 1\n")
    (tmp_path / "x.run").write_text("1 Q0 b 1 0.2 x\n1 Q0 a 2 0.9 x\n2 Q0 a 0 2 x\n2 Q0 b 1 1 x\n")
    with pytest.warns(UserWarning, match="the scores of 1 of 2 queries give another order than the ranks"):
        run("evaluate", "--qrels", tmp_path / "x.qrels", "--run", tmp_path / "x.run", "--measures", "[RR@10]")
    assert "| **1.000** " in capsys.readouterr().out


@pytest.mark.parametrize("measure", ["MRR10", "RBP@10", "ERR@10.5"])
def test_an_unknown_measure(fails, data, a_run, measure):
    flags = words(qrels=data / "qrels.dev.tsv", run=a_run, measures=f"[{measure}]")
    assert measure in fails("evaluate", *flags)


def test_no_measure_at_all(fails, data, a_run):
    flags = words(qrels=data / "qrels.dev.tsv", run=a_run, baseline=a_run, measures="[]")
    assert "measure" in fails("evaluate", *flags)


def test_a_run_that_does_not_belong_to_the_judgements(fails, data, tmp_path):
    """All ids unknown: 0.000 in every column would look like a result."""
    (tmp_path / "other.run").write_text("x1\tp1\t1\t0.5\n")
    flags = words(qrels=data / "qrels.dev.tsv", run=tmp_path / "other.run")
    assert "other.run" in fails("evaluate", *flags)
