"""PaddleNLP folders: old configs, files of parameters, from which no code is run, and models by name.

What PaddleNLP itself computes is compared in `test_paddlenlp.py`, which installs it.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import paddle
import pytest
from foreign import (
    NLP,
    TASKS,
    Model,
    check_retriever,
    close,
    config_of,
    dual,
    random_model,
    read_json,
    scores,
    write,
    write_json,
)
from numpy._core.multiarray import _reconstruct
from safetensors.numpy import save_file

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.checkpoints.formats import paddlenlp

# Reading: configs -------------------------------------------------------------------------------


def test_ernie_has_the_epsilon_with_which_paddlenlp_computes_it(tmp_path, words):
    """`ErniePretrainedModel` sets 1e-12 whatever its config says; `BertPretrainedModel` reads it."""
    model = random_model(words)
    for kind, epsilon in (("ernie", 1e-12), ("bert", 1e-5)):
        folder = write(tmp_path / kind, model, NLP, model_type=kind, layer_norm_eps=1e-5)
        check_retriever(folder, replace(model, sizes=replace(model.sizes, epsilon=epsilon)))


def old_config(model: Model, **changes: Any) -> dict[str, Any]:
    """What `model_config.json` had: no type, no epsilon, and no size of the inner layer."""
    left_out = ("model_type", "layer_norm_eps", "intermediate_size", "task_id", "paddlenlp_version")
    return {key: value for key, value in config_of(model, NLP).items() if key not in left_out} | changes


@pytest.mark.parametrize("safetensors", [False, True])
@pytest.mark.parametrize("task_types", [0, 3])
def test_an_old_config_of_an_encoder_is_read(tmp_path, words, task_types, safetensors):
    model = random_model(words, ffn=128, task_types=task_types)
    folder = write(tmp_path / "nlp", model, NLP)
    (folder / "config.json").unlink()
    write_json(folder / "model_config.json", old_config(model, init_class="ErnieModel"))
    if safetensors:
        (folder / "model_state.pdparams").unlink()
        save_file(NLP.arrays(model), folder / "model.safetensors")
    assert convert.find(folder).format == "paddlenlp"
    check_retriever(folder, model)


@pytest.mark.parametrize("family, epsilon", [("Ernie", 1e-12), ("Bert", 1e-3)])
def test_an_old_config_of_a_classifier_keeps_the_encoders_in_its_arguments(tmp_path, words, family, epsilon):
    model = random_model(words, labels=2, ffn=128, epsilon=epsilon)
    folder = write(tmp_path / "nlp", model, NLP, f"{family.lower()}.")
    (folder / "config.json").unlink()
    encoder = old_config(model, layer_norm_eps=1e-3, init_class=f"{family}Model")
    kind = f"{family}ForSequenceClassification"
    values = {"init_args": [encoder, 2, None], "num_classes": 2, "init_class": kind}
    write_json(folder / "model_config.json", values)
    close(scores(convert.read(folder, kind="cross_encoder")), model.scores())


@pytest.mark.parametrize(
    "missing, message",
    [
        ("config.json", "no config.json or model_config.json"),
        ("model_state.pdparams", "no model_state.pdparams or model.safetensors"),
        ("vocab.txt", "no vocab.txt or spm.model; save the tokenizer beside the model"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path, words, missing, message):
    folder = write(tmp_path / "nlp", random_model(words), NLP)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"nlp: {message}"):
        convert.read(folder)


def test_another_activation_of_the_pooler_is_refused(tmp_path, words):
    folder = write(tmp_path / "nlp", random_model(words, labels=1), NLP, "ernie.", pool_act="relu")
    with pytest.raises(ValueError, match="nlp: pool_act 'relu', expected 'tanh' before a classifier"):
        convert.read(folder)


@pytest.mark.parametrize(
    "sizes, kind",
    [
        ({"epsilon": 1e-12}, "ernie"),
        ({"epsilon": 1e-5}, "bert"),
        ({"epsilon": 1e-5, **TASKS}, "ernie"),
        ({"epsilon": 1e-12, **TASKS}, "ernie"),
    ],
)
def test_a_model_is_written_as_what_paddlenlp_computes_with_its_epsilon(tmp_path, words, sizes, kind):
    convert.write(dual(tmp_path, words, {"shared": True}, sizes), tmp_path / "nlp", "paddlenlp")
    config, settings = (read_json(tmp_path / "nlp" / f) for f in ("config.json", "tokenizer_config.json"))
    assert config["model_type"] == kind and config["pool_act"] == "tanh"
    assert settings["tokenizer_class"] == f"{kind.capitalize()}Tokenizer"


# Reading: files of parameters -------------------------------------------------------------------

State = dict[str, np.ndarray]


def paddle_saved(protocol: int, tensors: bool = True) -> Callable[[State, Path], None]:
    def save(state: State, path: Path) -> None:
        held = {name: paddle.to_tensor(array) for name, array in state.items()} if tensors else state
        paddle.save(held, str(path), protocol=protocol)

    return save


def pickled(protocol: int, change: Callable[[State], Any] = dict) -> Callable[[State, Path], None]:
    return lambda state, path: path.write_bytes(pickle.dumps(change(state), protocol)) and None


def named(state: State) -> dict[str, Any]:
    """As Paddle 2.0 and 2.1 saved a layer's state: with the name of every parameter in the program."""
    program = {name: f"linear_{i}.w_0" for i, name in enumerate(state)}
    return {name: (program[name], array) for name, array in state.items()} | {
        "StructuredToParameterName@@": program
    }


class Call:
    """Pickled, it asks the reader to call something."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def as_tensors_are(state: State) -> dict[str, Any]:
    """What Paddle makes of a tensor among other things: a call of `tuple` on its name and array."""
    return {name: Call(tuple, (name, array)) for name, array in state.items()}


def from_old_numpy(protocol: int) -> Callable[[State, Path], None]:
    """NumPy 1 called its modules `numpy.core.…`; NumPy 2 does not write such a file."""

    def save(state: State, path: Path) -> None:
        file = io.BytesIO()
        pickler = pickle._Pickler(file, protocol)
        pickler.framer.start_framing = lambda: None  # whose lengths would be wrong
        pickler.dump(state)
        new, old = {2: (b"cnumpy._core.", b"cnumpy.core."), 5: (b"\x13numpy._core.", b"\x12numpy.core.")}[
            protocol
        ]
        assert new in file.getvalue()
        path.write_bytes(file.getvalue().replace(new, old))

    return save


WRITERS = {
    **{f"paddle-{protocol}": paddle_saved(protocol) for protocol in (2, 3, 4)},
    "paddle-arrays": paddle_saved(4, tensors=False),
    **{f"pickle-{protocol}": pickled(protocol) for protocol in (2, 3, 4, 5)},
    **{f"named-{protocol}": pickled(protocol, named) for protocol in (2, 4)},
    **{f"tensors-{protocol}": pickled(protocol, as_tensors_are) for protocol in (2, 4)},
    **{f"numpy-1-{protocol}": from_old_numpy(protocol) for protocol in (2, 5)},
    "fortran-order": pickled(4, lambda state: {n: np.asfortranarray(a) for n, a in state.items()}),
    "fortran-order-5": pickled(5, lambda state: {n: np.asfortranarray(a) for n, a in state.items()}),
    "double": pickled(4, lambda state: {n: a.astype(np.float64) for n, a in state.items()}),
    "big-endian": pickled(4, lambda state: {n: a.astype(">f4") for n, a in state.items()}),
}


@pytest.mark.parametrize("save", WRITERS.values(), ids=WRITERS)
def test_a_pdparams_file_is_read_however_it_was_written(tmp_path, words, save):
    model = random_model(words, task_types=3)
    path = tmp_path / "model_state.pdparams"
    save(NLP.arrays(model), path)
    read = paddlenlp.read_pdparams(path)
    assert read.keys() == NLP.arrays(model).keys()
    for name, array in NLP.arrays(model).items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], array, err_msg=name)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"init_args": 3}, "config.json: init_args is 3, expected a list"),
        ({"architectures": "BertModel"}, "config.json: architectures is 'BertModel', expected a list"),
        ({"num_hidden_layers": 10**7}, "model_state.pdparams: .* 10000000 layers, but [0-9]+ arrays"),
        ({"vocab_size": 2**31 - 1}, r"word_embedding.weight is \[.*\], expected \[2147483647, 32\]"),
        ({"hidden_size": 10**10}, "config.json: hidden_size=10000000000, expected a whole number"),
    ],
)
def test_a_wrong_value_in_a_config_is_named(tmp_path, words, changes, problem):
    folder = write(tmp_path / "nlp", random_model(words), NLP, **changes)
    for read in (convert.read, convert.read_encoder):
        with pytest.raises(ValueError, match=problem):
            read(folder)


def test_a_config_inside_itself_again_and_again_is_refused(tmp_path, words):
    folder = write(tmp_path / "nlp", random_model(words), NLP)
    text = '{"init_args": [' * 300 + "{}" + "]}" * 300
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json: init_args inside one another more than 8 times"):
        paddlenlp.read(folder)


def test_a_wrong_tokenizer_setting_is_named(tmp_path, words):
    folder = write(tmp_path / "nlp", random_model(words), NLP)
    write_json(folder / "tokenizer_config.json", {"do_lower_case": "no"})
    with pytest.raises(ValueError, match="tokenizer_config.json: do_lower_case is 'no', expected true or"):
        convert.read(folder)


def test_safetensors_are_as_good_as_pdparams(tmp_path, words):
    model = random_model(words, task_types=3)
    folder = write(tmp_path / "nlp", model, NLP, "ernie.")
    (folder / "model_state.pdparams").unlink()
    save_file(NLP.arrays(model, "ernie."), folder / "model.safetensors", metadata={"format": "np"})
    assert convert.find(folder).format == "paddlenlp"
    check_retriever(folder, model)


def test_bfloat16_is_read(tmp_path):
    """Paddle keeps it as 16 bits without a sign: the upper half of float32."""
    array = np.array([1.0, -2.5, 3.0e38, 0.0, 2.0**-126], np.float32)
    kept = (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
    path = tmp_path / "model_state.pdparams"
    for state in (
        {"x": (array.view(np.uint32) >> 16).astype(np.uint16)},
        {"x": paddle.to_tensor(kept).astype("bfloat16")},
    ):
        paddle.save(state, str(path))
        np.testing.assert_array_equal(paddlenlp.read_pdparams(path)["x"], kept)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.int64),
        np.zeros(3, bool),
        np.zeros(3, np.complex64),
        np.zeros(3, [("a", np.float32)]),
        np.array(["text"]),
        np.array([None, 1], dtype=object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_numbers_of_another_kind_are_refused(tmp_path, array):
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps({"fine": np.zeros(2, np.float32), "x": array}))
    with pytest.raises(ValueError, match="model_state.pdparams: .*float16, float32 or float64"):
        paddlenlp.read_pdparams(path)


@pytest.mark.parametrize(
    "state",
    [
        None,
        3,
        [np.zeros(2, np.float32)],
        {"x": "text"},
        {"x": {"y": np.zeros(2, np.float32)}},
        {"x": ("x",)},
        {"x": ("x", "y")},
        {7: np.zeros(2, np.float32)},
    ],
    ids=str,
)
def test_a_pickle_of_another_shape_is_refused(tmp_path, words, state):
    folder = write(tmp_path / "nlp", random_model(words), NLP)
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(state))
    with pytest.raises(ValueError, match="model_state.pdparams: not a whole file of arrays"):
        convert.read(folder)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pdparams_file_that_is_cut_off_is_refused(tmp_path, protocol):
    path = tmp_path / "model_state.pdparams"
    state = {f"x{i}": np.arange(300, dtype=np.float32) for i in range(3)}
    paddle.save(state, str(path), protocol=protocol)
    data = path.read_bytes()
    paddlenlp.read_pdparams(path)
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="model_state.pdparams: not a whole file of arrays"):
            paddlenlp.read_pdparams(path)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\x1f\x8b\x08 gzip", b"PK\x03\x04 zip", b"\x80\x04\x8d" + b"\xff" * 8]
)
def test_a_file_that_is_no_pickle_is_refused(tmp_path, data):
    (tmp_path / "x.pdparams").write_bytes(data)
    with pytest.raises(ValueError, match="x.pdparams: not a whole file of arrays"):
        paddlenlp.read_pdparams(tmp_path / "x.pdparams")


# Reading: hostile pickles -----------------------------------------------------------------------


def text(value: str) -> bytes:
    """Opcode of a short string."""
    data = value.encode()
    return b"\x8c" + struct.pack("B", len(data)) + data


def array_opcodes() -> bytes:
    """What builds an array, without the pickle's start and end."""
    return pickle.dumps(np.zeros(1, np.float32), 2)[2:-1]


def saved_objects(path: Path, value: object) -> Path:
    """An `.npy` file of objects, which `numpy.load` unpickles."""
    np.save(path, np.array([value], dtype=object), allow_pickle=True)
    return path


def in_state(value: object) -> bytes:
    return pickle.dumps({"x": np.zeros(2, np.float32), "y": value})


HOSTILE: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "os.system": ("posix.system", lambda m: in_state(Call(os.system, f"touch {m}"))),
    "at the top": ("posix.system", lambda m: pickle.dumps(Call(os.system, f"touch {m}"))),
    "as a name": ("posix.system", lambda m: pickle.dumps({Call(os.system, f"touch {m}"): 1})),
    "beside a name": ("posix.system", lambda m: in_state(("y", Call(os.system, f"touch {m}")))),
    "under the dropped key": (
        "posix.system",
        lambda m: pickle.dumps({"StructuredToParameterName@@": Call(os.system, f"touch {m}")}),
    ),
    "among objects": (
        "posix.system",
        lambda m: in_state(np.array([1.0, Call(os.system, f"touch {m}")], dtype=object)),
    ),
    "subprocess": ("subprocess.call", lambda m: in_state(Call(subprocess.call, ["touch", str(m)]))),
    "eval": ("builtins.eval", lambda m: in_state(Call(eval, f"open({str(m)!r}, 'w').close()"))),
    "exec": ("builtins.exec", lambda m: in_state(Call(exec, f"open({str(m)!r}, 'w').close()"))),
    "open": ("_?io.open", lambda m: in_state(Call(open, str(m), "w"))),
    "methodcaller": ("operator.methodcaller", lambda m: in_state(Call(methodcaller("touch"), m))),
    "numpy.load": (
        "numpy.load",
        lambda m: in_state(
            Call(np.load, str(saved_objects(m.with_suffix(".npy"), Call(m.touch))), None, True)
        ),
    ),
    "getattr": (
        "__builtin__.getattr",
        lambda m: (
            b"\x80\x02c__builtin__\ngetattr\n(cnumpy\nndarray\nVtofile\ntR"
            + array_opcodes()
            + f"V{m}\n".encode()
            + b"\x86R."
        ),
    ),
    "a dotted name": (
        "numpy.ndarray.tofile",
        lambda m: (
            b"\x80\x04"
            + text("numpy")
            + text("ndarray.tofile")
            + b"\x93"
            + array_opcodes()
            + text(str(m))
            + b"\x86R."
        ),
    ),
    "the opcode INST": ("posix.system", lambda m: f"(S'touch {m}'\niposix\nsystem\n.".encode()),
    "the opcode OBJ": ("posix.system", lambda m: f"(cposix\nsystem\nS'touch {m}'\no.".encode()),
}


@pytest.mark.parametrize("asked, payload", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_refused_without_effect(tmp_path, words, asked, payload):
    marker = tmp_path / "marker"
    data = payload(marker)
    pickle.loads(data)  # it does harm where it is let
    assert marker.exists()
    marker.unlink()
    folder = write(tmp_path / "nlp", random_model(words), NLP)
    (folder / "model_state.pdparams").write_bytes(data)
    for read in (convert.read, convert.read_encoder):
        with pytest.raises(ValueError, match=rf"model_state.pdparams: .*it asks for {asked}"):
            read(folder)
        assert not marker.exists()


def test_a_module_that_a_pickle_names_is_not_imported(tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    (tmp_path / "hostile_module.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef f(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "x.pdparams"
    path.write_bytes(b"\x80\x02chostile_module\nf\n)R.")
    with pytest.raises(ValueError, match="it asks for hostile_module.f"):
        paddlenlp.read_pdparams(path)
    assert not marker.exists()


def test_references_to_other_objects_are_refused(tmp_path):
    """Persistent ids and registered extensions name things that are not in the file."""
    for data in (b"Pname\n.", b"\x80\x02X\x04\x00\x00\x00nameQ.", b"\x80\x02\x82\x01."):
        (tmp_path / "x.pdparams").write_bytes(data)
        with pytest.raises(ValueError, match="x.pdparams: not a whole file of arrays"):
            paddlenlp.read_pdparams(tmp_path / "x.pdparams")


HUGE = 2**40
ASKS_FOR_MEMORY = {
    "bytes": b"\x8e" + struct.pack("<Q", HUGE),
    "a text": b"\x8d" + struct.pack("<Q", HUGE),
    "an array of bytes": b"\x96" + struct.pack("<Q", HUGE),
    "a frame": b"\x95" + struct.pack("<Q", HUGE),
    "a number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a place in the memo": b"Nr" + struct.pack("<I", 2**31),
    "a shape": pickle.dumps({"x": np.zeros(1, np.float32)}, 2).replace(b"K\x01\x85", b"J\0\0\0\x7f\x85"),
    "a shape without numbers": pickle.dumps({"x": Call(_reconstruct, np.ndarray, (HUGE,), b"f")}, 4),
    "a type": pickle.dumps({"x": Call(np.dtype, f"V{2**31 - 1}")}, 4),
    "a tuple": pickle.dumps({"x": Call(tuple, "x" * 60)}, 4),
    "an encoding": pickle.dumps({"x": Call(codecs.encode, "x" * 60, "utf-32")}, 4),
}


@pytest.mark.parametrize("data", ASKS_FOR_MEMORY.values(), ids=ASKS_FOR_MEMORY)
def test_a_small_file_cannot_ask_for_much_memory(tmp_path, data):
    path = tmp_path / "x.pdparams"
    path.write_bytes(data if data.startswith(b"\x80") else b"\x80\x04" + data + b".")
    assert path.stat().st_size < 300
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="x.pdparams: not a whole file of arrays"):
            paddlenlp.read_pdparams(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_tuples_inside_one_another_as_a_name_do_not_exhaust_the_stack(tmp_path):
    (tmp_path / "x.pdparams").write_bytes(b"\x80\x04}N" + b"\x85" * 300_000 + b"Ns.")
    with pytest.raises(ValueError, match="x.pdparams: not a whole file of arrays"):
        paddlenlp.read_pdparams(tmp_path / "x.pdparams")


@pytest.mark.parametrize("function", ["numpy._core.numeric _frombuffer", "numpy.core.numeric _frombuffer"])
def test_a_pickle_cannot_change_what_builds_the_arrays(tmp_path, function):
    """BUILD sets attributes of what it is given: it must not be a function of NumPy, which all use."""
    from numpy._core.numeric import _frombuffer

    module, name = function.split()
    state = pickle.dumps((None, {"__defaults__": ("changed",)}), 2)[2:-1]
    try:
        before = _frombuffer.__defaults__
        data = b"\x80\x04" + text(module) + text(name) + b"\x93" + state + b"b."
        (tmp_path / "x.pdparams").write_bytes(data)
        with pytest.raises(ValueError, match="x.pdparams: not a whole file of arrays"):
            paddlenlp.read_pdparams(tmp_path / "x.pdparams")
        assert _frombuffer.__defaults__ == before
    finally:
        _frombuffer.__defaults__ = before


# By name ----------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path, words, monkeypatch):
    """Random models in place of those that PaddleNLP would fetch."""
    labels = {
        "rocketqa-zh-base-query-encoder": 0,
        "rocketqa-zh-base-para-encoder": 0,
        "rocketqav2-en-marco-query-encoder": 0,
        "rocketqav2-en-marco-para-encoder": 0,
        "rocketqav2-en-marco-cross-encoder": 1,
        "rocketqa-base-cross-encoder": 2,
        "ernie-2.0-base-en": 0,
    }
    models = {
        name: random_model(words, count, seed=seed, task_types=3 * ("zh" in name))
        for seed, (name, count) in enumerate(labels.items())
    }

    def download(name: str) -> Path:
        folder = tmp_path / "shop" / name
        return (
            folder if folder.is_dir() else write(folder, models[name], NLP, "ernie." if labels[name] else "")
        )

    monkeypatch.setattr(paddlenlp, "names", lambda: frozenset(models))
    monkeypatch.setattr(paddlenlp, "download", download)
    return models


@pytest.mark.parametrize("side", ["query", "para"])
def test_the_name_of_either_tower_gives_both(shop, side):
    name = f"rocketqa-zh-base-{side}-encoder"
    assert convert.find(name).format is None
    check_retriever(name, *(shop[f"rocketqa-zh-base-{part}-encoder"] for part in ("query", "para")))


def test_a_name_of_a_reranker_gives_its_head(shop):
    """PaddleNLP's Taskflow calls `matching` for RocketQA, `matching_v2`, without pooler, for RocketQAv2."""
    checkpoint = convert.read("rocketqa-base-cross-encoder", kind="cross_encoder")
    assert checkpoint.network.head == "classes"
    close(scores(checkpoint), shop["rocketqa-base-cross-encoder"].scores())
    assert convert.read("rocketqav2-en-marco-cross-encoder").network.head == "logit"


def test_rocketqav2_has_the_epsilon_with_which_paddlenlp_runs_it(shop):
    """`reinitialize=True`, "compatible to rocketv2 initialization": 1e-5, as in the toolkit."""
    name = "rocketqav2-en-marco-cross-encoder"
    model = replace(shop[name], sizes=replace(shop[name].sizes, epsilon=1e-5))
    close(scores(convert.read(name)), model.scores(pooler=False))
    assert convert.read("rocketqav2-en-marco-query-encoder").network.config.layer_norm_eps == 1e-5


def test_any_other_name_is_an_encoder(shop):
    model = shop["ernie-2.0-base-en"]
    assert check_retriever("ernie-2.0-base-en", model).network.shared
    weights = convert.read_encoder("ernie-2.0-base-en")
    np.testing.assert_array_equal(weights.arrays["norm.bias"], model.variables["pre_encoder_layer_norm_bias"])


def test_a_folder_goes_before_a_name(shop, tmp_path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ernie-2.0-base-en", random_model(words), NLP)
    assert convert.find("ernie-2.0-base-en").format == "paddlenlp"


def test_a_download_is_deleted_when_the_process_ends(tmp_path, monkeypatch):
    """Until then the vocabulary is read from it. `TemporaryDirectory` deletes its folder by itself then."""

    class Saved:
        @classmethod
        def from_pretrained(cls, name: str) -> Saved:
            return cls()

        def save_pretrained(self, folder: Path) -> None:
            Path(folder).mkdir(exist_ok=True)

    library = ModuleType("paddlenlp.transformers")
    library.AutoModel = library.AutoTokenizer = Saved
    heads = ModuleType("paddlenlp.transformers.semantic_search.modeling")
    heads.ErnieEncoder = Saved
    for name in ("paddlenlp", "paddlenlp.transformers.semantic_search"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in (library, heads):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paddlenlp._downloads.cache_clear()
    folder = paddlenlp.download("ernie-2.0-base-en")
    assert folder == paddlenlp.download("ernie-2.0-base-en") and folder.is_relative_to(tmp_path)
    paddlenlp._downloads().cleanup()
    paddlenlp._downloads.cache_clear()
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_there_are_no_names(monkeypatch):
    monkeypatch.setattr(paddlenlp.importlib.util, "find_spec", lambda name: None)
    assert paddlenlp.names() == frozenset()
    with pytest.raises(FileNotFoundError, match=re.escape("pip install 'rocketqa_paddle[paddlenlp]'")):
        convert.read("ernie-2.0-base-en")
