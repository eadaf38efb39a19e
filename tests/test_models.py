"""`load_model()` and what it returns: the toolkit's calls, their shapes, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest

import rocketqa_paddle
from rocketqa_paddle import checkpoints, retrieval
from rocketqa_paddle.batching import Batch
from rocketqa_paddle.checkpoints import Checkpoint
from rocketqa_paddle.encoders import CrossEncoder, DualEncoder
from rocketqa_paddle.ernie import ErnieConfig
from rocketqa_paddle.models import CrossModel, DualModel, load_model
from rocketqa_paddle.tokenization import Tokenizer

QUERIES = ["what is the moon", "paris", "tides follow its pull and honey is made by bees", ""]
PARAS = ["bees", "capital of france .", "the moon pulls", "castling protects the king " * 3]
TITLES = ["honey", "", "moon", "chess"]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ErnieConfig, tokenizer: Tokenizer
) -> dict[str, str]:
    """A checkpoint folder of every kind, with weights of ordinary size."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    paddle.seed(3)
    for name, network, lengths in (
        ("dual", DualEncoder(tiny_config), {"query": 12, "passage": 24}),
        ("other", DualEncoder(tiny_config, shared=True), {"query": 12, "passage": 24}),
        ("logit", CrossEncoder(tiny_config, head="logit"), {"pair": 30}),
        ("classes", CrossEncoder(tiny_config, head="classes"), {"pair": 30}),
    ):
        for parameter in network.parameters():
            parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
        checkpoints.save(Checkpoint(network, tokenizer, lengths), folder / name)
        found[name] = str(folder / name)
    return found


@pytest.fixture
def dual(folders: dict[str, str]) -> DualModel:
    return load_model(folders["dual"])


@pytest.fixture
def cross(folders: dict[str, str]) -> CrossModel:
    return load_model(folders["logit"])


# What they return -------------------------------------------------------------------------------


def test_the_package_hands_out_both_kinds(folders: dict[str, str]) -> None:
    assert isinstance(rocketqa_paddle.load_model(folders["dual"]), DualModel)
    assert isinstance(rocketqa_paddle.load_model(folders["classes"], batch_size=2), CrossModel)


def test_a_dual_model_gives_float32_vectors_and_inner_products(dual: DualModel) -> None:
    queries, passages = dual.encode_query(QUERIES), dual.encode_para(PARAS, TITLES)
    assert queries.shape == passages.shape == (4, 32)
    assert queries.dtype == passages.dtype == np.float32
    scores = dual.matching(QUERIES, PARAS, TITLES)
    assert scores.shape == (4,) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.einsum("ij,ij->i", queries, passages), rtol=1e-5)
    assert len(list(dual.encode_query(QUERIES))) == 4


def test_a_cross_model_gives_logits_or_probabilities(folders: dict[str, str]) -> None:
    for head in ("logit", "classes"):
        model = load_model(folders[head])
        scores = model.matching(QUERIES, PARAS, TITLES)
        assert scores.shape == (4,) and scores.dtype == np.float32
        raw = retrieval.score_pairs(checkpoints.load(folders[head]), QUERIES, TITLES, PARAS)
        expected = raw if head == "logit" else np.exp(raw) / (1 + np.exp(raw))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert ((scores > 0) & (scores < 1)).all()


def test_a_certain_no_is_a_probability_of_zero_without_a_warning(
    tmp_path: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer
) -> None:
    network = CrossEncoder(tiny_config, head="classes")
    network.output.bias.set_value(np.array([100, -100], np.float32))
    checkpoints.save(Checkpoint(network, tokenizer, {"pair": 30}), tmp_path / "no")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(str(tmp_path / "no")).matching(["a"], ["b"]) == pytest.approx([0])


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_the_batch_size_changes_nothing(folders: dict[str, str], batch_size: int) -> None:
    for name in ("dual", "logit", "classes"):
        single, batched = (load_model(folders[name], batch_size=size) for size in (1, batch_size))
        np.testing.assert_allclose(
            batched.matching(QUERIES, PARAS, TITLES),
            single.matching(QUERIES, PARAS, TITLES),
            rtol=1e-4,
            atol=1e-4,
        )


def test_the_batch_size_is_the_number_of_rows_computed_together(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = load_model(folders["dual"], batch_size=3), []
    encode = model.checkpoint.network.encode_queries
    monkeypatch.setattr(
        model.checkpoint.network,
        "encode_queries",
        lambda batch: rows.append(len(batch.token_ids)) or encode(batch),
    )
    model.encode_query(QUERIES)
    assert rows == [3, 1]


def test_inference_drops_nothing_out_keeps_no_gradient_and_leaves_training_mode_on(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graphs = DualModel(checkpoints.load(folders["dual"], dropout=0.5)), []
    network = model.checkpoint.network
    encode = network.encode_queries

    def keep(batch: Batch) -> paddle.Tensor:
        vectors = encode(batch)
        graphs.append(not vectors.stop_gradient)
        return vectors

    monkeypatch.setattr(network, "encode_queries", keep)
    network.train()
    np.testing.assert_array_equal(model.encode_query(QUERIES), model.encode_query(QUERIES))
    assert not any(graphs) and len(graphs) == 8
    assert network.training and network.query.training


def test_no_texts_give_empty_arrays(dual: DualModel, cross: CrossModel) -> None:
    assert dual.encode_query([]).shape == dual.encode_para([]).shape == (0, 32)
    assert dual.matching([], []).shape == cross.matching([], []).shape == (0,)
    for array in (dual.encode_query([]), dual.matching([], []), cross.matching([], [])):
        assert array.dtype == np.float32


@pytest.mark.parametrize("title", [None, [], (), ["", "", "", ""]], ids=repr)
def test_no_title_is_an_empty_title(dual: DualModel, cross: CrossModel, title: object) -> None:
    np.testing.assert_array_equal(dual.encode_para(PARAS, title), dual.encode_para(PARAS))
    np.testing.assert_array_equal(dual.matching(QUERIES, PARAS, title), dual.matching(QUERIES, PARAS))
    np.testing.assert_array_equal(cross.matching(QUERIES, PARAS, title), cross.matching(QUERIES, PARAS))


def test_titles_count(dual: DualModel, cross: CrossModel) -> None:
    assert np.abs(dual.encode_para(PARAS, TITLES)[0] - dual.encode_para(PARAS)[0]).max() > 1e-3
    with_titles, without = cross.matching(QUERIES, PARAS, title=TITLES), cross.matching(QUERIES, PARAS)
    assert np.abs(with_titles - without)[0] > 1e-4
    np.testing.assert_allclose(with_titles[1], without[1], rtol=1e-5)


def test_any_sequence_of_strings_will_do(dual: DualModel) -> None:
    expected = dual.encode_para(PARAS, TITLES)
    np.testing.assert_array_equal(dual.encode_para(tuple(PARAS), np.array(TITLES)), expected)
    np.testing.assert_array_equal(dual.encode_para(iter(PARAS), iter(TITLES)), expected)


# What they refuse -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, problem",
    [
        (lambda d, c: d.encode_query("moon"), r"query is one string, expected a list .* write \['moon'\]"),
        (lambda d, c: d.encode_para("moon"), "para is one string"),
        (lambda d, c: d.encode_para(["moon"], title="moon"), "title is one string"),
        (lambda d, c: c.matching("a", ["b"]), "query is one string"),
        (lambda d, c: d.encode_query(["moon", None]), r"query\[1\] is NoneType, expected a string"),
        (lambda d, c: d.encode_para(["moon"], title=[3]), r"title\[0\] is int, expected a string"),
        (lambda d, c: c.matching(["a"], [b"b"]), r"para\[0\] is bytes, expected a string"),
        (lambda d, c: d.matching(["a", "b"], ["c"]), "1 para for 2 query"),
        (lambda d, c: c.matching(["a"], ["b", "c"]), "2 para for 1 query"),
        (lambda d, c: d.encode_para(["a", "b"], title=["c"]), "1 title for 2 para"),
        (lambda d, c: c.matching(["a"], ["b"], title=["c", "d"]), "2 title for 1 para"),
    ],
)
def test_wrong_texts_are_refused(
    dual: DualModel, cross: CrossModel, call: Callable[[DualModel, CrossModel], object], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        call(dual, cross)


def test_half_of_a_surrogate_pair_is_dropped_like_any_control_character(dual: DualModel) -> None:
    np.testing.assert_array_equal(dual.encode_query(["moon \ud83d"]), dual.encode_query(["moon "]))


def test_a_batch_of_no_rows_is_refused(folders: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="batch_size=0, expected at least 1"):
        load_model(folders["dual"], batch_size=0)


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="this Paddle is built for a GPU")
def test_a_gpu_on_a_cpu_build_is_refused_with_the_remedy(folders: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="built for CPU: install paddlepaddle-gpu"):
        load_model(folders["dual"], use_cuda=True)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model there. Expected a folder with config.json"):
        load_model(str(tmp_path))


# Several at once --------------------------------------------------------------------------------


def test_models_in_one_process_do_not_disturb_one_another(folders: dict[str, str]) -> None:
    alone = {name: load_model(folder).matching(QUERIES, PARAS, TITLES) for name, folder in folders.items()}
    models = {name: load_model(folder) for name, folder in folders.items()}
    assert len({tuple(scores) for scores in alone.values()}) == len(alone)
    for _ in range(2):
        for name, model in models.items():
            np.testing.assert_array_equal(model.matching(QUERIES, PARAS, TITLES), alone[name])


def test_models_in_threads_give_the_same_as_alone(folders: dict[str, str]) -> None:
    models = {name: load_model(folder, batch_size=2) for name, folder in folders.items()}
    alone = {name: model.matching(QUERIES, PARAS, TITLES) for name, model in models.items()}
    jobs = [name for _ in range(10) for name in models]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda name: models[name].matching(QUERIES, PARAS, TITLES), jobs)
        for name, scores in zip(jobs, results, strict=True):
            np.testing.assert_allclose(scores, alone[name], rtol=1e-6, err_msg=name)
