"""`rocketqa export`: models for ONNX Runtime, which compute the same numbers and nothing else."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import toy
from command_line import run

from rocketqa_paddle import load_model
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.checkpoints.formats import onnx
from rocketqa_paddle.networks import forward
from rocketqa_paddle.runtime import device

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("paddle2onnx")


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return toy.write_best(tmp_path_factory.mktemp("best") / "best")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return toy.write(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def exported(best, tmp_path_factory):
    """Both models, exported with and without int8."""
    folder = tmp_path_factory.mktemp("exported")
    for kind in ("retriever", "reranker"):
        for int8 in (False, True):
            model = convert.read(f"{best}/{kind}")
            convert.write(model, folder / f"{kind}{'-int8' * int8}", "onnx", int8=int8)
    return folder


def outputs(model) -> list[np.ndarray]:
    passages = [passage.text for passage in toy.collection().passages.values()]
    queries = [query.text for query in toy.collection().splits["dev"].queries.values()]
    if hasattr(model, "encode_query"):
        return [model.encode_query(queries), model.encode_para(passages)]
    return [np.asarray(model.matching(queries, passages[: len(queries)]))]


@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_an_exported_model_gives_the_same_numbers(best, exported, kind):
    original, model = load_model(f"{best}/{kind}", batch_size=8), load_model(exported / kind, batch_size=8)
    rough = load_model(exported / f"{kind}-int8", batch_size=8)
    for given, found, rounded in zip(*map(outputs, (original, model, rough)), strict=True):
        np.testing.assert_allclose(found, given, atol=1e-5)
        assert 0 < np.abs(rounded - given).max() < 0.2 * np.abs(given).max()
    digests = {m.checkpoint.digest() for m in (original, model, rough)}
    assert len(digests) == 3
    assert not list((exported / kind).rglob("model.safetensors"))


def test_onnx_runtime_alone_computes_what_the_graph_tells(exported):
    session = onnxruntime.InferenceSession(exported / "reranker" / "onnx" / "model.onnx")
    assert {given.name for given in session.get_inputs()} == {*onnx.INPUTS}
    assert [given.name for given in session.get_outputs()] == ["logits"]
    model = load_model(exported / "reranker")
    (packed,) = model.checkpoint.tokenizer.pack_pairs(["red dog"], [""], ["the red dog"], 20)
    rows = np.array([packed.token_ids]), np.array([packed.type_ids]), np.ones((1, len(packed.token_ids)), int)
    (logits,) = session.run(None, dict(zip(onnx.INPUTS, rows, strict=True)))
    (score,) = forward.score_pairs(model.checkpoint, ["red dog"], [""], ["the red dog"])
    found = logits[0, 1] - logits[0, 0] if logits.shape[1] == 2 else logits[0, 0]
    assert found == pytest.approx(score, abs=1e-4)


def test_the_command_tells_what_int8_costs(best, files, tmp_path, capsys):
    dev = [
        "--queries",
        files / "dev.query.txt",
        "--passages",
        files / "para.txt",
        "--qrels",
        files / "qrels.dev.tsv",
    ]
    run("export", best / "retriever", tmp_path / "int8", "--int8", *dev, "--titles", files / "para.title.txt")
    out = capsys.readouterr().out
    assert "written for ONNX Runtime, in int8" in out
    cost = re.search(r"RR@10 on 10 queries: (0\.\d+), the original (0\.\d+)", out)
    assert cost
    run(
        "index",
        "--checkpoint",
        tmp_path / "int8",
        "--passages",
        files / "para.txt",
        "--output",
        tmp_path / "ix",
    )
    assert "60 passages indexed" in capsys.readouterr().out


def test_an_exported_model_is_neither_trained_nor_converted(exported, fails, tmp_path):
    message = fails("convert", exported / "retriever", tmp_path / "out")
    assert "an exported model cannot be converted: give the model that it was exported from" in message
    with pytest.raises(ValueError, match="an exported model cannot be trained"), warnings.catch_warnings():
        load_model(exported / "retriever").train(tmp_path / "train.tsv", 1, tmp_path / "out")
    with pytest.raises(ValueError, match="an exported model cannot be trained"):
        convert.read_encoder(exported / "reranker")


@pytest.mark.skipif(not device.has_bf16(), reason="this processor has no instructions for bf16")
def test_bf16_is_refused_for_an_exported_model(exported, monkeypatch):
    monkeypatch.setattr(forward, "_WORTH_COMPILING", 1)
    model = load_model(exported / "retriever")
    with device.arithmetic("bf16"), pytest.raises(ValueError, match="leave out precision=bf16"):
        model.encode_query(["red dog"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--queries", "q"], "--passages, --qrels is missing as well"),
        (["--to", "tflite"], "to"),
    ],
)
def test_mistakes_are_told(best, fails, tmp_path, flags, message):
    assert message in fails("export", best / "retriever", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_damaged_graph_is_named(exported, tmp_path):
    folder = tmp_path / "damaged"
    (folder / "onnx").mkdir(parents=True)
    for file in (exported / "reranker").iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / onnx.GRAPH).write_bytes((exported / "reranker" / onnx.GRAPH).read_bytes()[:1000])
    with pytest.raises(ValueError, match=re.escape(f"{folder}/onnx/model.onnx: damaged")):
        load_model(folder)
