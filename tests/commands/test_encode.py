"""`rocketqa encode`: vectors in a NumPy file, with their ids beside them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from command_line import COLLECTION, run, words

from rocketqa_paddle import checkpoints
from rocketqa_paddle.networks import forward


def test_encode_passages(best, data, tmp_path, capsys):
    flags = words(
        checkpoint=best / "retriever",
        input=data / "para.txt",
        titles=data / "para.title.txt",
        output=tmp_path / "new" / "vectors",
        batch_size=7,
    )
    run("encode", *flags)
    assert capsys.readouterr().out == f"60 vectors of 16 dimensions in {tmp_path}/new/vectors.npy\n"
    vectors = np.load(tmp_path / "new" / "vectors.npy")
    assert (tmp_path / "new" / "vectors.ids.txt").read_text().split("\n") == [*COLLECTION.passages, ""]
    columns = zip(*((p.title, p.text) for p in COLLECTION.passages.values()), strict=True)
    expected = forward.encode_passages(checkpoints.load(best / "retriever"), *columns)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("output", ["vectors", "vectors.npy"])
def test_encode_queries(best, data, tmp_path, capsys, output):
    queries = COLLECTION.splits["dev"].queries
    run(
        "encode",
        *words(checkpoint=best / "retriever", input=data / "dev.query.txt", output=tmp_path / output),
        *words(kind="queries"),
    )
    assert capsys.readouterr().out.startswith("10 vectors of 16 dimensions")
    expected = forward.encode_queries(
        checkpoints.load(best / "retriever"), [query.text for query in queries.values()]
    )
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-5)
    assert (tmp_path / "vectors.ids.txt").read_text().split() == list(queries)
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.npy", "vectors.ids.txt"}


def test_texts_that_the_model_cuts_are_told(best, tmp_path, capsys):
    (tmp_path / "long.txt").write_text(f"1\tred\n2\t{'red ' * 30}\n")
    flags = words(checkpoint=best / "retriever", input=tmp_path / "long.txt", output=tmp_path / "vectors")
    told = "50 % of 2 {} are longer than the {} length, {} tokens, and are cut; {} tokens would keep 95 % of "
    run("encode", *flags)
    assert capsys.readouterr().out.startswith(told.format("passages", "passage", 20, 33))
    run("encode", *flags, "--kind", "queries")
    assert capsys.readouterr().out.startswith(told.format("queries", "query", 12, 32))


@pytest.mark.parametrize("value", [0, -2])
def test_a_batch_size_that_makes_no_sense(fails, best, data, tmp_path, value):
    flags = words(
        checkpoint=best / "retriever", input=data / "para.txt", output=tmp_path / "x", batch_size=value
    )
    assert "batch_size" in fails("encode", *flags)


def test_a_gpu_that_is_not_there(fails, best, data, tmp_path):
    flags = words(
        checkpoint=best / "retriever", input=data / "para.txt", output=tmp_path / "x", use_cuda="true"
    )

    if paddle.is_compiled_with_cuda():
        pytest.skip("this Paddle is built for GPUs")
    assert "this Paddle is built for CPU" in fails("encode", *flags)
