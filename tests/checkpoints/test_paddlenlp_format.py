"""PaddleNLP folders: read with the oracle's numbers, no code run from a pickle, and written for PaddleNLP.

What PaddleNLP itself computes is compared in `test_paddlenlp.py`, which installs it.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from reference import Sequence2, Sizes
from safetensors.numpy import save_file
from scipy.special import expit
from test_huggingface import (
    MEAN,
    QUERIES,
    TEXTS,
    TITLES,
    Make,
    Model,
    close,
    cross,
    dual,
    making,
    random_model,
    read_json,
    scores,
    small,
    vectors,
    widened,
    write_json,
)

import rocketqa_paddle
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.checkpoints.formats import paddlenlp
from rocketqa_paddle.networks.encoders import Checkpoint, describe

# Models made by hand ----------------------------------------------------------------------------

LAYER = {
    "multi_head_att_query_fc.w_0": "self_attn.q_proj.weight",
    "multi_head_att_query_fc.b_0": "self_attn.q_proj.bias",
    "multi_head_att_key_fc.w_0": "self_attn.k_proj.weight",
    "multi_head_att_key_fc.b_0": "self_attn.k_proj.bias",
    "multi_head_att_value_fc.w_0": "self_attn.v_proj.weight",
    "multi_head_att_value_fc.b_0": "self_attn.v_proj.bias",
    "multi_head_att_output_fc.w_0": "self_attn.out_proj.weight",
    "multi_head_att_output_fc.b_0": "self_attn.out_proj.bias",
    "post_att_layer_norm_scale": "norm1.weight",
    "post_att_layer_norm_bias": "norm1.bias",
    "ffn_fc_0.w_0": "linear1.weight",
    "ffn_fc_0.b_0": "linear1.bias",
    "ffn_fc_1.w_0": "linear2.weight",
    "ffn_fc_1.b_0": "linear2.bias",
    "post_ffn_layer_norm_scale": "norm2.weight",
    "post_ffn_layer_norm_bias": "norm2.bias",
}
OTHERS = {
    "word_embedding": "embeddings.word_embeddings.weight",
    "pos_embedding": "embeddings.position_embeddings.weight",
    "sent_embedding": "embeddings.token_type_embeddings.weight",
    "task_embedding": "embeddings.task_type_embeddings.weight",
    "pre_encoder_layer_norm_scale": "embeddings.layer_norm.weight",
    "pre_encoder_layer_norm_bias": "embeddings.layer_norm.bias",
    "pooled_fc.w_0": "pooler.dense.weight",
    "pooled_fc.b_0": "pooler.dense.bias",
}
CLASSIFIER = {"_cls_out_w": "classifier.weight", "_cls_out_b": "classifier.bias"}


def names(sizes: Sizes, prefix: str = "", head: bool = False) -> dict[str, str]:
    """The oracle's variable -> its name in PaddleNLP; with a classifier, if asked for."""
    found = {ours: f"{prefix}{theirs}" for ours, theirs in OTHERS.items()}
    if not sizes.task_types:
        del found["task_embedding"]
    for i in range(sizes.layers):
        found |= {f"encoder_layer_{i}_{o}": f"{prefix}encoder.layers.{i}.{t}" for o, t in LAYER.items()}
    return found | CLASSIFIER if head else found


def arrays(model: Model, prefix: str = "") -> dict[str, np.ndarray]:
    """Under PaddleNLP's names; Paddle's matrices lie as the oracle's do."""
    table = names(model.sizes, prefix, head=True)
    return {table[name]: array for name, array in model.variables.items()}


@pytest.fixture(scope="module")
def words(vocab: Path) -> list[str]:
    return widened(vocab)


def config_of(model: Model, **changes: Any) -> dict[str, Any]:
    sizes = model.sizes
    return {
        "model_type": "ernie",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.ffn,
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.sentence_types,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.epsilon,
        "use_task_id": bool(sizes.task_types),
        "task_type_vocab_size": sizes.task_types or 3,
        "task_id": 0,
        "pool_act": "tanh",
        "paddlenlp_version": None,
        **changes,
    }


def write(folder: Path, model: Model, prefix: str = "", **config: Any) -> Path:
    """A folder as PaddleNLP writes it."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config_of(model, **config))
    paddle.save(arrays(model, prefix), str(folder / "model_state.pdparams"))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in model.words), encoding="utf-8")
    return folder


def check_vectors(folder: Path, model: Model) -> None:
    """That the folder's retriever gives the oracle's vectors."""
    ours = rocketqa_paddle.load_model(folder, batch_size=4)
    close(ours.encode_query(QUERIES), model.vectors(map(model.one, QUERIES)))
    rows = [model.pair(*row) for row in zip(TITLES, TEXTS, strict=True)]
    close(ours.encode_para(TEXTS, TITLES), model.vectors(rows))


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix, kind, sizes",
    [
        pytest.param("", "ernie", {}, id="ernie"),
        pytest.param("ernie.", "ernie", {"task_types": 3, "sentence_types": 4}, id="ernie-tasks"),
        pytest.param("ernie.", "ernie", {"activation": "relu", "heads": 2, "layers": 3}, id="relu"),
        pytest.param("bert.", "bert", {"epsilon": 1e-3}, id="bert"),
    ],
)
def test_an_encoder_gives_the_oracles_vectors(
    tmp_path: Path, words: list[str], prefix: str, kind: str, sizes: dict
) -> None:
    model = small(random_model(words, **sizes))
    folder = write(tmp_path / "nlp", model, prefix, model_type=kind)
    assert convert.find(folder).format == "paddlenlp"
    assert convert.read(folder).lengths == {"query": 64, "passage": 64}
    check_vectors(folder, model)


def test_ernie_has_the_epsilon_with_which_paddlenlp_computes_it(tmp_path: Path, words: list[str]) -> None:
    """`ErniePretrainedModel` sets 1e-12 whatever its config says; `BertPretrainedModel` reads it."""
    model = small(random_model(words, epsilon=1e-12))
    for kind, epsilon in (("ernie", 1e-12), ("bert", 1e-5)):
        folder = write(tmp_path / kind, model, model_type=kind, layer_norm_eps=1e-5)
        check_vectors(folder, replace(model, sizes=replace(model.sizes, epsilon=epsilon)))


def test_a_task_id_other_than_the_first_is_refused(tmp_path: Path, words: list[str]) -> None:
    """PaddleNLP adds the embedding of `task_id` to every token; a network here has that of 0."""
    folder = write(tmp_path / "nlp", random_model(words, task_types=3), task_id=1)
    with pytest.raises(ValueError, match="task_id"):
        convert.read(folder)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("kind, task_types", [("ernie", 3), ("bert", 0)])
def test_a_cross_encoder_gives_the_oracles_scores(
    tmp_path: Path, words: list[str], kind: str, task_types: int, labels: int
) -> None:
    model = random_model(words, labels, task_types=task_types)
    folder = write(tmp_path / "nlp", model, f"{kind}.", model_type=kind)
    logits = model.logits([model.pair(*row) for row in zip(QUERIES, TITLES, TEXTS, strict=True)])
    expected = logits[:, 0] if labels == 1 else expit(logits[:, 1] - logits[:, 0])
    assert np.ptp(expected) > 0.1
    close(rocketqa_paddle.load_model(folder, batch_size=4).matching(QUERIES, TEXTS, TITLES), expected)


def test_a_classifier_of_three_labels_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = write(tmp_path / "nlp", random_model(words, labels=3), "ernie.")
    with pytest.raises(ValueError, match="nlp: a classifier of 3 labels, expected 1 .* or 2"):
        convert.read(folder)


def test_heads_of_language_models_and_poolers_are_left_out(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words)
    plain, full = write(tmp_path / "plain", model, "ernie."), write(tmp_path / "full", model, "ernie.")
    h, v = model.sizes.hidden, model.sizes.vocab
    more = {
        "ernie.pooler.dense.weight": (h, h),
        "ernie.pooler.dense.bias": (h,),
        "cls.predictions.transform.weight": (h, h),
        "cls.predictions.transform.bias": (h,),
        "cls.predictions.layer_norm.weight": (h,),
        "cls.predictions.layer_norm.bias": (h,),
        "cls.predictions.decoder_weight": (v, h),
        "cls.predictions.decoder_bias": (v,),
        "cls.seq_relationship.weight": (h, 2),
        "cls.seq_relationship.bias": (2,),
    }
    heads = {name: np.ones(shape, np.float32) for name, shape in more.items()}
    paddle.save(arrays(model, "ernie.") | heads, str(full / "model_state.pdparams"))
    assert convert.read(plain).digest() == convert.read(full).digest()


def old_sizes(model: Model) -> dict[str, Any]:
    """What `model_config.json` had: no type, no epsilon, and no size of the inner layer."""
    left_out = ("model_type", "layer_norm_eps", "intermediate_size", "task_id", "paddlenlp_version")
    return {key: value for key, value in config_of(model).items() if key not in left_out}


@pytest.mark.parametrize("task_types", [0, 3])
def test_an_old_config_of_an_encoder_is_read(tmp_path: Path, words: list[str], task_types: int) -> None:
    model = small(random_model(words, ffn=128, task_types=task_types))
    folder = write(tmp_path / "nlp", model)
    (folder / "config.json").unlink()
    write_json(folder / "model_config.json", {**old_sizes(model), "init_class": "ErnieModel"})
    assert convert.find(folder).format == "paddlenlp"
    check_vectors(folder, model)


@pytest.mark.parametrize("family, epsilon", [("Ernie", 1e-12), ("Bert", 1e-3)])
def test_an_old_config_of_a_classifier_keeps_the_encoders_in_its_arguments(
    tmp_path: Path, words: list[str], family: str, epsilon: float
) -> None:
    model = small(random_model(words, labels=2, ffn=128, epsilon=epsilon))
    folder = write(tmp_path / "nlp", model, f"{family.lower()}.")
    (folder / "config.json").unlink()
    encoder = {**old_sizes(model), "layer_norm_eps": 1e-3, "init_class": f"{family}Model"}
    values = {
        "init_args": [encoder, 2, None],
        "num_classes": 2,
        "init_class": f"{family}ForSequenceClassification",
    }
    write_json(folder / "model_config.json", values)
    logits = model.logits([model.pair(*row) for row in zip(QUERIES, TITLES, TEXTS, strict=True)])
    close(scores(convert.read(folder, kind="cross_encoder")), logits[:, 1] - logits[:, 0])


@pytest.mark.parametrize("lower", [None, True, False])
def test_a_folder_tells_whether_to_lower_case(tmp_path: Path, words: list[str], lower: bool | None) -> None:
    model = random_model(words, lower_case=lower is not False)
    folder = write(tmp_path / "nlp", model)
    if lower is not None:
        write_json(folder / "tokenizer_config.json", {"do_lower_case": lower})
    check_vectors(folder, model)


def test_an_encoder_without_its_head_starts_training(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words, labels=2, task_types=3)
    weights = convert.read_encoder(write(tmp_path / "nlp", model, "ernie."))
    assert weights.config.task_types == 3
    assert not [name for name in weights.arrays if name.startswith(("pooler", "output"))]
    np.testing.assert_array_equal(weights.arrays["task_embedding.weight"], model.variables["task_embedding"])
    np.testing.assert_array_equal(
        weights.arrays["layers.1.ffn_in.weight"], model.variables["encoder_layer_1_ffn_fc_0.w_0"]
    )


def test_two_folders_side_by_side_are_two_towers(tmp_path: Path, words: list[str]) -> None:
    query, passage = (random_model(words, seed=seed, task_types=3) for seed in (1, 2))
    write(tmp_path / "both" / "query", query)
    write(tmp_path / "both" / "passage", passage, "ernie.")
    assert convert.find(tmp_path / "both").format == "paddlenlp"
    ours = rocketqa_paddle.load_model(tmp_path / "both", batch_size=4)
    close(ours.encode_query(QUERIES), query.vectors(map(query.one, QUERIES)))
    rows = [passage.pair(*row) for row in zip(TITLES, TEXTS, strict=True)]
    close(ours.encode_para(TEXTS, TITLES), passage.vectors(rows))


def test_arrays_that_do_not_fit_are_all_listed(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words)
    folder = write(tmp_path / "nlp", model, "ernie.")
    held = arrays(model, "ernie.")
    del held["ernie.encoder.layers.1.norm2.bias"]
    held["ernie.encoder.layers.2.norm2.bias"] = np.zeros(32, np.float32)
    held["ernie.encoder.layers.0.linear1.weight"] = np.zeros((48, 32), np.float32)
    held["ernie.embeddings.task_type_embeddings.weight"] = np.zeros((3, 32), np.float32)
    paddle.save(held, str(folder / "model_state.pdparams"))
    with pytest.raises(ValueError) as error:
        convert.read(folder)
    assert str(error.value).splitlines()[1:] == [
        "  missing query.layers.1.ffn_norm.bias [32]",
        "  left over query.encoder.layers.2.norm2.bias [32]",
        "  left over query.task_embedding.weight [3, 32]",
        "  query.layers.0.ffn_in.weight is [48, 32], expected [32, 48]",
    ]


@pytest.mark.parametrize(
    "missing, message",
    [
        ("config.json", "no config.json or model_config.json"),
        ("model_state.pdparams", "no model_state.pdparams or model.safetensors"),
        ("vocab.txt", "no vocab.txt; save the tokenizer beside the model"),
    ],
)
def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, words: list[str], missing: str, message: str
) -> None:
    folder = write(tmp_path / "nlp", random_model(words))
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"nlp: {message}"):
        convert.read(folder)


@pytest.mark.parametrize("kind", ["roberta", "ernie_m", "gpt"])
def test_another_architecture_is_refused(tmp_path: Path, words: list[str], kind: str) -> None:
    folder = write(tmp_path / "nlp", random_model(words), model_type=kind)
    with pytest.raises(ValueError, match=f"config.json: model_type '{kind}', expected 'bert' or 'ernie'"):
        convert.read(folder)


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
def test_a_pdparams_file_is_read_however_it_was_written(
    tmp_path: Path, words: list[str], save: Callable[[State, Path], None]
) -> None:
    model = random_model(words, task_types=3)
    path = tmp_path / "model_state.pdparams"
    save(arrays(model), path)
    read = paddlenlp.read_pdparams(path)
    assert read.keys() == arrays(model).keys()
    for name, array in arrays(model).items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], array, err_msg=name)


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    paddle.save({"x": np.float16([0.1, -3])}, str(tmp_path / "half.pdparams"))
    read = paddlenlp.read_pdparams(tmp_path / "half.pdparams")["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.float16([0.1, -3]))


def test_safetensors_are_as_good_as_pdparams(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words, task_types=3)
    folder = write(tmp_path / "nlp", model, "ernie.")
    (folder / "model_state.pdparams").unlink()
    save_file(arrays(model, "ernie."), folder / "model.safetensors", metadata={"format": "np"})
    assert convert.find(folder).format == "paddlenlp"
    check_vectors(folder, model)


def test_an_old_config_may_lie_beside_safetensors(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words, ffn=128)
    folder = write(tmp_path / "nlp", model)
    for name in ("model_state.pdparams", "config.json"):
        (folder / name).unlink()
    save_file(arrays(model), folder / "model.safetensors")
    write_json(folder / "model_config.json", {**old_sizes(model), "init_class": "ErnieModel"})
    assert convert.find(folder).format == "paddlenlp"
    check_vectors(folder, model)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.uint16),  # how Paddle keeps bfloat16
        np.zeros(3, np.int64),
        np.zeros(3, bool),
        np.zeros(3, np.complex64),
        np.zeros(3, [("a", np.float32)]),
        np.array(["text"]),
        np.array([None, 1], dtype=object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_numbers_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray) -> None:
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
def test_a_pickle_of_another_shape_is_refused(tmp_path: Path, words: list[str], state: object) -> None:
    folder = write(tmp_path / "nlp", random_model(words))
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(state))
    with pytest.raises(ValueError, match="model_state.pdparams: not a whole file of arrays"):
        convert.read(folder)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pdparams_file_that_is_cut_off_is_refused(tmp_path: Path, protocol: int) -> None:
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
def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path, data: bytes) -> None:
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
def test_a_hostile_pickle_is_refused_without_effect(
    tmp_path: Path, words: list[str], asked: str, payload: Callable[[Path], bytes]
) -> None:
    marker = tmp_path / "marker"
    data = payload(marker)
    pickle.loads(data)  # it does harm where it is let
    assert marker.exists()
    marker.unlink()
    folder = write(tmp_path / "nlp", random_model(words))
    (folder / "model_state.pdparams").write_bytes(data)
    for read in (convert.read, convert.read_encoder):
        with pytest.raises(ValueError, match=rf"model_state.pdparams: .*it asks for {asked}"):
            read(folder)
        assert not marker.exists()


def test_a_module_that_a_pickle_names_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "hostile_module.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef f(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "x.pdparams"
    path.write_bytes(b"\x80\x02chostile_module\nf\n)R.")
    with pytest.raises(ValueError, match="it asks for hostile_module.f"):
        paddlenlp.read_pdparams(path)
    assert not marker.exists()


def test_references_to_other_objects_are_refused(tmp_path: Path) -> None:
    """Persistent ids and registered extensions name things that are not in the file."""
    for data in (b"Pname\n.", b"\x80\x02X\x04\x00\x00\x00nameQ.", b"\x80\x02\x82\x01."):
        (tmp_path / "x.pdparams").write_bytes(data)
        with pytest.raises(ValueError, match="x.pdparams: not a whole file of arrays"):
            paddlenlp.read_pdparams(tmp_path / "x.pdparams")


@pytest.mark.parametrize("function", ["numpy._core.numeric _frombuffer", "numpy.core.numeric _frombuffer"])
def test_a_pickle_cannot_change_what_builds_the_arrays(tmp_path: Path, function: str) -> None:
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


# Writing ----------------------------------------------------------------------------------------

TASKS = {"task_types": 3, "sentence_types": 4}
DUAL_KINDS = {
    "ernie": making(dual, {"shared": True}),
    "tasks": making(dual, {"shared": True, "temperature": 2.0}, TASKS),
    "bert": making(dual, {"shared": True, **MEAN}, {"epsilon": 1e-5, "activation": "relu"}, for_cn=True),
    "one-segment": making(dual, {"shared": True, "normalize": True}, one_segment=True),
    "two-towers": making(dual, {"shared": False, "pooling": "mean"}, TASKS, lower_case=False),
}
CROSS_KINDS = {
    "logit": making(cross, {"head": "logit"}, {"epsilon": 1e-5}),
    "logit-ernie": making(cross, {"head": "logit"}, TASKS, lower_case=False),
    "classes": making(cross, {"head": "classes"}, TASKS),
    "pooled-logit": making(cross, {"head": "pooled_logit"}, {"activation": "relu"}, for_cn=True),
}
OTHER_EPSILON = {"tasks-other-epsilon": making(dual, {"shared": True}, {**TASKS, "epsilon": 1e-5})}
"""A model that PaddleNLP computes with another epsilon."""
KINDS = DUAL_KINDS | CROSS_KINDS | OTHER_EPSILON


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_written_is_read_back_whole(tmp_path: Path, words: list[str], make: Make) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "nlp", "paddlenlp")
    again = convert.read(tmp_path / "nlp")
    assert convert.find(tmp_path / "nlp").format == "paddlenlp"
    assert again.digest() == checkpoint.digest()
    assert describe(again.network) == describe(checkpoint.network)
    assert again.network.config == checkpoint.network.config
    assert again.tokenizer.settings == checkpoint.tokenizer.settings
    assert again.tokenizer.vocabulary == checkpoint.tokenizer.vocabulary
    assert again.lengths == checkpoint.lengths
    assert convert.largest_difference(checkpoint, again) == 0


def written(folder: Path, length: int) -> Model:
    """A folder as PaddleNLP reads it: its own settings and arrays, by the names of this test."""
    config, settings = read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")
    ernie = config["model_type"] == "ernie"
    sizes = Sizes(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        sentence_types=config["type_vocab_size"],
        task_types=config["task_type_vocab_size"] if config.get("use_task_id") else 0,
        activation=config["hidden_act"],
        epsilon=1e-12 if ernie else config["layer_norm_eps"],
    )
    family = config["model_type"].capitalize()
    [architecture] = config["architectures"]
    classifier = architecture == f"{family}ForSequenceClassification"
    assert classifier or architecture == f"{family}Model"
    assert settings["tokenizer_class"] == f"{family}Tokenizer"
    assert settings["model_max_length"] == length
    assert config["pool_act"] == "tanh"
    held = {name: t.numpy() for name, t in paddle.load(str(folder / "model_state.pdparams")).items()}
    table = names(sizes, f"{config['model_type']}." if classifier else "", classifier)
    assert held.keys() == set(table.values())
    if classifier:
        assert held["classifier.weight"].shape == (sizes.hidden, config["num_labels"])
    variables = {ours: held[theirs] for ours, theirs in table.items()}
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return Model(sizes, variables, lines, settings["do_lower_case"], length)


def there(checkpoint: Checkpoint, *columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Texts as PaddleNLP is to be given them; see `convert.notes`."""
    rows = zip(*columns, strict=True)
    return [tuple(t.replace(" ", "") for t in row) if checkpoint.tokenizer.for_cn else row for row in rows]


@pytest.mark.parametrize("make", DUAL_KINDS.values(), ids=DUAL_KINDS)
def test_the_arrays_of_a_dual_encoder_give_our_vectors_as_paddlenlp_computes_them(
    tmp_path: Path, words: list[str], make: Make
) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "nlp", "paddlenlp")
    network = checkpoint.network
    for side, expected in vectors(checkpoint).items():
        folder = tmp_path / "nlp" if network.shared else tmp_path / "nlp" / side
        model = written(folder, 33 if network.shared else checkpoint.lengths[side])
        rows: list[Sequence2]
        if side == "query":
            rows = [model.one(*row) for row in there(checkpoint, QUERIES)]
        else:
            pack = model.one if checkpoint.tokenizer.one_segment else model.pair
            rows = [pack(*row) for row in there(checkpoint, TITLES, TEXTS)]
        close(model.vectors(rows, network.pooling, network.normalize), expected)


@pytest.mark.parametrize("make", CROSS_KINDS.values(), ids=CROSS_KINDS)
def test_the_arrays_of_a_cross_encoder_give_our_scores_as_paddlenlp_computes_them(
    tmp_path: Path, words: list[str], make: Make
) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "nlp", "paddlenlp")
    model = written(tmp_path / "nlp", 33)
    logits = model.logits([model.pair(*row) for row in there(checkpoint, QUERIES, TITLES, TEXTS)])
    two = checkpoint.network.head == "classes"
    assert logits.shape[1] == (2 if two else 1)
    close(logits[:, 1] - logits[:, 0] if two else logits[:, 0], scores(checkpoint))


@pytest.mark.parametrize(
    "sizes, kind",
    [
        ({"epsilon": 1e-12}, "ernie"),
        ({"epsilon": 1e-5}, "bert"),
        ({"epsilon": 1e-5, "task_types": 3}, "ernie"),
        ({"epsilon": 1e-12, "task_types": 3}, "ernie"),
    ],
)
def test_a_model_is_written_as_what_paddlenlp_computes_with_its_epsilon(
    tmp_path: Path, words: list[str], sizes: dict, kind: str
) -> None:
    convert.write(making(dual, {"shared": True}, sizes)(tmp_path, words), tmp_path / "nlp", "paddlenlp")
    assert read_json(tmp_path / "nlp" / "config.json")["model_type"] == kind


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("ernie", ["queries are cut there at 33 tokens, not at 24", "a passage is a pair there"]),
        (
            "tasks",
            ["queries are cut", "not divided by the temperature 2.0", "a passage is a pair there"],
        ),
        (
            "bert",
            ["queries are cut", "a passage is a pair", "pool yourself there: mean, then unit", "(for_cn)"],
        ),
        ("one-segment", ["queries are cut", "pool yourself there: cls, then unit length"]),
        ("two-towers", ["the folders query and passage", "a passage is", "pool yourself there: mean"]),
        ("logit", ["it has no pooler"]),
        ("classes", []),
        ("pooled-logit", ["(for_cn)"]),
        (
            "tasks-other-epsilon",
            ["queries", "a passage is", "PaddleNLP computes ERNIE with epsilon 1e-12: its numbers"],
        ),
    ],
)
def test_notes_for_paddlenlp_tell_what_is_different_there(
    tmp_path: Path, words: list[str], kind: str, expected: list[str]
) -> None:
    found = convert.notes(KINDS[kind](tmp_path / "own", words), "paddlenlp")
    assert len(found) == len(expected), found
    for note, part in zip(found, expected, strict=True):
        assert part in note


# By name ----------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
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
        name: small(random_model(words, count, seed=seed, task_types=3 * ("zh" in name)))
        for seed, (name, count) in enumerate(labels.items())
    }

    def download(name: str) -> Path:
        folder = tmp_path / "shop" / name
        return folder if folder.is_dir() else write(folder, models[name], "ernie." if labels[name] else "")

    monkeypatch.setattr(paddlenlp, "names", lambda: frozenset(models))
    monkeypatch.setattr(paddlenlp, "download", download)
    return models


@pytest.mark.parametrize("side", ["query", "para"])
def test_the_name_of_either_tower_gives_both(shop: dict[str, Model], side: str) -> None:
    name = f"rocketqa-zh-base-{side}-encoder"
    assert convert.find(name).format is None
    ours = rocketqa_paddle.load_model(name, batch_size=4)
    query, passage = (shop[f"rocketqa-zh-base-{part}-encoder"] for part in ("query", "para"))
    close(ours.encode_query(QUERIES), query.vectors(map(query.one, QUERIES)))
    rows = [passage.pair(*row) for row in zip(TITLES, TEXTS, strict=True)]
    close(ours.encode_para(TEXTS, TITLES), passage.vectors(rows))


def test_a_name_of_a_reranker_gives_its_head(shop: dict[str, Model]) -> None:
    """PaddleNLP's Taskflow calls `matching` for RocketQA, `matching_v2`, without pooler, for RocketQAv2."""
    model = shop["rocketqa-base-cross-encoder"]
    checkpoint = convert.read("rocketqa-base-cross-encoder", kind="cross_encoder")
    assert checkpoint.network.head == "classes"
    logits = model.logits([model.pair(*row) for row in zip(QUERIES, TITLES, TEXTS, strict=True)])
    close(scores(checkpoint), logits[:, 1] - logits[:, 0])
    assert convert.read("rocketqav2-en-marco-cross-encoder").network.head == "logit"


def test_rocketqav2_has_the_epsilon_with_which_paddlenlp_runs_it(shop: dict[str, Model]) -> None:
    """`reinitialize=True`, "compatible to rocketv2 initialization": 1e-5, as in the toolkit."""
    name = "rocketqav2-en-marco-cross-encoder"
    model = replace(shop[name], sizes=replace(shop[name].sizes, epsilon=1e-5))
    rows = [model.pair(*row) for row in zip(QUERIES, TITLES, TEXTS, strict=True)]
    checkpoint = convert.read(name)
    close(scores(checkpoint), model.logits(rows, pooler=False)[:, 0])
    assert convert.read("rocketqav2-en-marco-query-encoder").network.config.layer_norm_eps == 1e-5


def test_any_other_name_is_an_encoder(shop: dict[str, Model]) -> None:
    model = shop["ernie-2.0-base-en"]
    checkpoint = convert.read("ernie-2.0-base-en", kind="dual_encoder")
    assert checkpoint.network.shared
    close(vectors(checkpoint)["query"], model.vectors(map(model.one, QUERIES)))
    weights = convert.read_encoder("ernie-2.0-base-en")
    np.testing.assert_array_equal(weights.arrays["norm.bias"], model.variables["pre_encoder_layer_norm_bias"])


def test_a_folder_goes_before_a_name(
    shop: dict[str, Model], tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ernie-2.0-base-en", random_model(words))
    assert convert.find("ernie-2.0-base-en").format == "paddlenlp"


def test_without_the_extra_there_are_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddlenlp.importlib.util, "find_spec", lambda name: None)
    assert paddlenlp.names() == frozenset()
    with pytest.raises(FileNotFoundError, match=re.escape("pip install 'rocketqa_paddle[paddlenlp]'")):
        convert.read("ernie-2.0-base-en")
