"""`rocketqa convert`: models in the formats of other makers, which every command reads."""

from __future__ import annotations

import shutil

import numpy as np
import paddle
import pytest
from command_line import run, words

from rocketqa_paddle import checkpoints


def test_convert_tells_the_largest_difference_and_what_to_know(foreign, tmp_path, capsys):
    run("convert", foreign / "native" / "retriever", tmp_path / "out", "--to", "huggingface")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path}/out: dual encoder, written as huggingface"
    assert out[1] == "largest difference on 4 sample texts: 0"
    assert out[2:] == [
        "note: two towers: the folders query and passage are a model each",
        "note: a passage is a pair there: its title, which may be empty, and its text",
    ]
    run("convert", tmp_path / "out", tmp_path / "back")
    assert capsys.readouterr().out.startswith(
        f"{tmp_path}/back: dual encoder, written as native\nlargest diff"
    )
    digests = {
        checkpoints.load(path).digest() for path in (tmp_path / "back", foreign / "native" / "retriever")
    }
    assert len(digests) == 1


def test_convert_fails_where_the_numbers_differ(foreign, fails, tmp_path, monkeypatch):
    from rocketqa_paddle.checkpoints import convert

    read = convert.read

    def damaged(source):
        checkpoint = read(source)
        if "out" in str(source):
            weight = checkpoint.network.output.bias
            weight.set_value(weight + paddle.to_tensor([0.0, 0.5]))
        return checkpoint

    monkeypatch.setattr(convert, "read", damaged)
    message = fails("convert", foreign / "native" / "reranker", tmp_path / "out", "--to", "reference")
    assert "out: read back, the model's outputs would differ by 0.5" in message
    assert not (tmp_path / "out").exists()


def test_convert_leaves_alone_what_it_reads(foreign, fails, tmp_path):
    shutil.copytree(foreign / "reference" / "reranker", tmp_path / "a" / "b")
    before = sorted(path.name for path in (tmp_path / "a").rglob("*"))
    for source in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "config.json"):
        for target in (tmp_path / "a" / "b", tmp_path / "a", tmp_path / "a" / "b" / "new"):
            assert "choose another target" in fails("convert", source, target)
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == before


@pytest.mark.parametrize("to", ["reference", "huggingface", "paddlenlp"])
def test_every_command_takes_models_of_other_makers(foreign, to, data, a_run, tmp_path, capsys):
    files = {"passages": data / "para.txt", "titles": data / "para.title.txt"}
    queries = data / "dev.query.txt"
    for format in ("native", to):
        out, models = tmp_path / format, foreign / format
        run("index", *words(checkpoint=models / "retriever", output=out / "index", **files))
        run(
            "encode", *words(checkpoint=models / "retriever", input=queries, kind="queries", output=out / "q")
        )
        flags = {"checkpoint": models / "retriever", "index": out / "index", "reranker": models / "reranker"}
        run("search", *words(**flags, queries=queries, output=out / "found.run"))
        flags = {"checkpoint": models / "reranker", "run": a_run, "queries": queries, **files}
        run("rerank", *words(**flags, output=out / "reranked.run"))
    for name in ("found.run", "reranked.run"):
        assert (tmp_path / to / name).read_text() == (tmp_path / "native" / name).read_text()
    np.testing.assert_array_equal(np.load(tmp_path / to / "q.npy"), np.load(tmp_path / "native" / "q.npy"))


def test_convert_refuses_what_a_format_cannot_express(fails, best, tmp_path):
    message = fails("convert", best / "retriever", tmp_path / "out", "--to", "reference")
    first, *problems = message.split("\n")
    assert first == "rocketqa: the RocketQA toolkit cannot express this model:"
    assert problems == ["  pooling='mean', expected 'cls'"]
    assert not (tmp_path / "out").exists()


def test_convert_replaces_no_model(foreign, fails, best, tmp_path):
    target = shutil.copytree(best / "retriever", tmp_path / "target")
    message = fails("convert", foreign / "native" / "reranker", target)
    assert f"{target} holds a model already: remove it, or choose another target" in message
    assert checkpoints.load(target).kind == "dual_encoder"
