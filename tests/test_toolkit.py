"""`load_model()` and what it returns: the toolkit's calls, their shapes, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import rocketqa_paddle
from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.batching import Batch
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.toolkit import CrossModel, DualModel, load_model
from rocketqa_paddle.training.trainer import Trainer

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
        raw = forward.score_pairs(checkpoints.load(folders[head]), QUERIES, TITLES, PARAS)
        expected = raw if head == "logit" else np.exp(raw) / (1 + np.exp(raw))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert ((scores > 0) & (scores < 1)).all()


def test_scores_iterate_as_python_numbers_and_are_arrays_otherwise(
    dual: DualModel, cross: CrossModel
) -> None:
    """The toolkit's generators gave Python numbers, which programs write into JSON."""
    for model in (dual, cross):
        scores = model.matching(QUERIES, PARAS, TITLES)
        assert [type(score) for score in scores] == [float] * 4
        assert list(scores) == scores.tolist()
        assert json.loads(json.dumps(list(scores))) == scores.tolist()
        assert list(model.matching([], [])) == []
        assert float(scores.max()) == max(scores) == sorted(scores)[-1]
        assert scores.sum() == pytest.approx(sum(scores), rel=1e-5)
        np.testing.assert_array_equal(np.argsort(scores)[::-1], sorted(range(4), key=lambda i: -scores[i]))
        table = scores.reshape(2, 2)  # such as two candidates of two queries
        for row, expected in zip(table, np.asarray(table), strict=True):
            assert isinstance(row, np.ndarray)
            np.testing.assert_array_equal(row, expected)


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
    assert graphs and not any(graphs)
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


GIVEN: dict[str, Callable[[list[str]], Any]] = {
    "tuple": tuple,
    "array": np.array,
    "array of objects": lambda texts: np.array(texts, dtype=object),
    "generator": lambda texts: (text for text in texts),
    "keys": lambda texts: dict.fromkeys(texts).keys(),
}


@pytest.mark.parametrize("given", GIVEN)
def test_every_argument_may_be_any_iterable_of_strings(
    dual: DualModel, cross: CrossModel, given: str
) -> None:
    make = GIVEN[given]
    np.testing.assert_array_equal(dual.encode_query(make(QUERIES)), dual.encode_query(QUERIES))
    np.testing.assert_array_equal(
        dual.encode_para(make(PARAS), make(TITLES)), dual.encode_para(PARAS, TITLES)
    )
    for model in (dual, cross):
        np.testing.assert_array_equal(
            model.matching(query=make(QUERIES), para=make(PARAS), title=make(TITLES)),
            model.matching(QUERIES, PARAS, TITLES),
        )


def test_iterables_of_nothing_give_empty_arrays(dual: DualModel, cross: CrossModel) -> None:
    for nothing in ((), np.array([]), iter([])):
        assert dual.encode_query(nothing).shape == (0, 32)
    for title in (None, [], np.array([]), iter([])):
        assert dual.encode_para([], title).shape == (0, 32)
        assert dual.matching([], [], title).shape == cross.matching([], [], title).shape == (0,)


def test_iterables_of_no_titles_are_no_titles(dual: DualModel, cross: CrossModel) -> None:
    for make in (np.array, iter):
        np.testing.assert_array_equal(dual.encode_para(PARAS, make([])), dual.encode_para(PARAS))
        for model in (dual, cross):
            expected = model.matching(QUERIES, PARAS)
            np.testing.assert_array_equal(model.matching(QUERIES, PARAS, make([])), expected)


def test_texts_are_taken_as_they_are(dual: DualModel, cross: CrossModel) -> None:
    """No list that is given is changed, and none is kept."""
    queries, paras, titles = list(QUERIES), list(PARAS), list(TITLES)
    before = dual.encode_para(paras, titles)
    cross.matching(queries, paras, titles)
    dual.matching(queries, paras, titles)
    assert (queries, paras, titles) == (QUERIES, PARAS, TITLES)
    paras[0] = titles[0] = "chess"
    assert np.abs(dual.encode_para(paras, titles) - before)[0].max() > 1e-3


def test_loading_takes_paths_and_strings_of_folders_and_files(folders: dict[str, str]) -> None:
    for name, folder in folders.items():
        expected = load_model(folder).matching(QUERIES, PARAS, TITLES)
        for source in (Path(folder), Path(folder) / "config.json", f"{folder}/config.json"):
            for load in (load_model, rocketqa_paddle.load_model):
                scores = load(model=source, use_cuda=False, device_id=0, batch_size=1).matching(
                    QUERIES, PARAS, TITLES
                )
                np.testing.assert_array_equal(scores, expected, err_msg=f"{name} {source}")


def test_loading_and_using_a_model_leaves_the_process_as_it_was(
    tmp_path: Path,
    tiny_config: ErnieConfig,
    tokenizer: Tokenizer,
    folders: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[object] = []  # what an earlier load has set to the same value would not show otherwise
    monkeypatch.setattr(os, "putenv", lambda *variable: written.append(variable))
    sizes = dataclasses.replace(tiny_config, ffn_size=4 * tiny_config.hidden_size)
    toolkit = Checkpoint(DualEncoder(sizes), tokenizer, {"query": 12, "passage": 24})
    convert.write(toolkit, tmp_path / "toolkit", "reference")
    sources = [*folders.values(), str(tmp_path / "toolkit")]

    def state() -> tuple[Any, ...]:
        return (
            paddle.get_device(),
            list(warnings.filters),
            dict(os.environ),
            Path.cwd(),
            paddle.get_default_dtype(),
            paddle.is_grad_enabled(),
            paddle.in_dynamic_mode(),
            np.random.get_state()[1].tolist(),
            threading.active_count(),
            list(written),
        )

    before = state()
    assert not written
    for source in sources:
        model = load_model(source)
        assert state() == before
        model.matching(QUERIES, PARAS, TITLES)
        assert state() == before
    for wrong in (str(tmp_path / "no"), str(tmp_path)):
        with pytest.raises(FileNotFoundError):
            load_model(wrong)
        assert state() == before


def test_loading_draws_no_random_numbers(folders: dict[str, str]) -> None:
    """Those are the process's: a training in another thread takes its dropout from them."""
    paddle.seed(5)
    expected = paddle.rand([8]).numpy()
    for name, folder in folders.items():
        paddle.seed(5)
        load_model(folder).matching(QUERIES, PARAS)
        np.testing.assert_array_equal(paddle.rand([8]).numpy(), expected, err_msg=name)


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
        (lambda d, c: d.matching(["a"], ["b"], title=["c", "d"]), "2 title for 1 para"),
        (lambda d, c: d.matching(["a", "b"], iter(["c"])), "1 para for 2 query"),
        (lambda d, c: d.matching([], ["c"]), "1 para for 0 query"),
        (lambda d, c: c.matching(["a"], []), "0 para for 1 query"),
        (lambda d, c: c.matching([], [], title=["c"]), "1 title for 0 para"),
        (lambda d, c: d.encode_para([], title=["c"]), "1 title for 0 para"),
        (lambda d, c: d.matching("a", ["b"]), "query is one string"),
        (lambda d, c: d.matching(["a"], "b"), "para is one string"),
        (lambda d, c: c.matching(["a"], ["b"], "c"), "title is one string"),
        (lambda d, c: d.encode_query(np.str_("moon")), "query is one string"),
        (lambda d, c: d.encode_query([["moon"]]), r"query\[0\] is list, expected a string"),
        (lambda d, c: d.encode_para(["moon", float("nan")]), r"para\[1\] is float, expected a string"),
        (lambda d, c: c.matching(["a"], ["b"], [None]), r"title\[0\] is NoneType, expected a string"),
        (lambda d, c: d.encode_query(np.array([1, 2])), r"query\[0\] is int64, expected a string"),
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


@pytest.mark.parametrize("inside", ["", "best"])
def test_a_run_folder_holds_several_models(best: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to(best)
    with pytest.raises(FileNotFoundError, match="several models: give .*best/retriever or .*best/reranker$"):
        load_model(tmp_path / "run" / inside)


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


CALLS = [  # queries, passages and titles; no two are batched alike
    (QUERIES[:1], PARAS[:1], TITLES[:1]),
    (QUERIES, PARAS, TITLES),
    (QUERIES[::-1], PARAS, None),
    (QUERIES * 2, PARAS[::-1] * 2, TITLES * 2),
    (QUERIES[1:3], PARAS[2:], []),
    ([], [], []),
]


def outputs(model: DualModel | CrossModel, call: tuple[Any, ...]) -> list[bytes]:
    """Everything that a model gives for some texts, to the bit."""
    queries, paras, titles = call
    arrays = [model.matching(queries, paras, titles)]
    if isinstance(model, DualModel):
        arrays += [model.encode_query(queries), model.encode_para(paras, titles)]
    return [array.tobytes() for array in arrays]


def alone(model: DualModel | CrossModel) -> list[list[bytes]]:
    """Its outputs for every call of `CALLS`, with nothing beside it."""
    return [outputs(model, call) for call in CALLS]


@pytest.mark.parametrize("names", [["dual"], ["classes"], ["dual", "classes"], ["dual", "dual", "logit"]])
def test_answers_in_threads_are_those_given_alone_to_the_bit(
    folders: dict[str, str], names: list[str]
) -> None:
    """One model object in several threads, several objects, of one checkpoint and of different kinds."""
    expected = {name: alone(load_model(folders[name], batch_size=3)) for name in names}
    models = [(name, load_model(folders[name], batch_size=3)) for name in names]
    jobs = [job for _ in range(6) for job in itertools.product(models, range(len(CALLS)))]
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=together.wait) as pool:
        results = pool.map(lambda job: outputs(job[0][1], CALLS[job[1]]), jobs)
        for ((name, _), call), result in zip(jobs, results, strict=True):
            assert result == expected[name][call], (name, call)


def test_models_loaded_in_threads_are_those_loaded_alone(folders: dict[str, str]) -> None:
    expected = {name: alone(load_model(folder)) for name, folder in folders.items()}
    names = [*folders] * 3
    with ThreadPoolExecutor(4) as pool:
        for name, result in zip(names, pool.map(lambda n: alone(load_model(folders[n])), names), strict=True):
            assert result == expected[name], name


TRAINING = {
    "dual": [(QUERIES[i], TITLES[i], PARAS[i], "", PARAS[i - 1], "0") for i in range(3)],
    "classes": [(QUERIES[i], TITLES[i], PARAS[i], str(i % 2)) for i in range(3)],
}


@pytest.mark.parametrize("kind", TRAINING)
def test_answers_while_another_thread_trains_are_those_given_alone(
    kind: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other models, a model of the same checkpoint, and the very model that is trained can be used."""
    file = tmp_path / "train.tsv"
    file.write_text("".join("\t".join(row) + "\n" for row in TRAINING[kind]), encoding="utf-8")

    def train(model: DualModel | CrossModel, output: str) -> DualModel | CrossModel:
        folders = {"save_model_path": tmp_path / output, "log_folder": tmp_path / f"{output}-log"}
        model.train(file, 8, batch_size=2, learning_rate=1e-2, **folders)
        return model

    names = ["dual", "logit", "classes", kind]
    expected = [alone(load_model(folders[name], batch_size=3)) for name in names]
    result = train(load_model(folders[kind], batch_size=3), "alone")
    models = [load_model(folders[name], batch_size=3) for name in names]

    begun, go_on, take = threading.Event(), threading.Event(), Trainer._take_step

    def waiting(trainer: Trainer) -> dict[str, float]:
        """Within training until the answers before and beside the rest of its steps are there."""
        if trainer.step == 4:
            begun.set()
            assert go_on.wait(60)
        return take(trainer)

    monkeypatch.setattr(Trainer, "_take_step", waiting)
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, models[-1], "beside")
        assert begun.wait(60)
        assert [alone(model) for model in models] == expected
        go_on.set()
        while not training.done():
            assert [alone(model) for model in models[:-1]] == expected[:-1]
        training.result()
    assert models[-1].checkpoint.digest() == result.checkpoint.digest()
    assert alone(models[-1]) == alone(result) != expected[-1]
    assert [alone(model) for model in models[:-1]] == expected[:-1]


def test_products_are_of_one_model_even_if_training_ends_meanwhile(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, after = load_model(folders["dual"]), checkpoints.load(folders["other"])
    before, encode = model.matching(QUERIES, PARAS), forward.encode_queries

    def encode_and_end(*arguments: Any, **settings: Any) -> np.ndarray:
        vectors = encode(*arguments, **settings)
        model.checkpoint = after  # as `train` in another thread does at its end
        return vectors

    monkeypatch.setattr(forward, "encode_queries", encode_and_end)
    np.testing.assert_array_equal(model.matching(QUERIES, PARAS), before)
