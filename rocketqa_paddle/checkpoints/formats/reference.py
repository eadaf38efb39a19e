"""Checkpoints of the RocketQA toolkit: a JSON file, and a folder with one file for every variable.

The variables have the names of the reference's `model/ernie.py`; `formats/variable.py` reads and writes them.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rocketqa_paddle.checkpoints.fields import naming
from rocketqa_paddle.checkpoints.formats.config import PLAIN, read_sizes, size_values
from rocketqa_paddle.checkpoints.formats.variable import read_variable, write_variable
from rocketqa_paddle.networks.encoders import (
    CROSS,
    DUAL,
    Checkpoint,
    CrossEncoder,
    DualEncoder,
    build,
    describe,
    shapes,
)
from rocketqa_paddle.networks.ernie import ErnieConfig, parameter_shapes
from rocketqa_paddle.networks.parameters import (
    Arrays,
    check_layers,
    fit,
    load_arrays,
    shapes_of,
    to_arrays,
)
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.networks.vocabulary import write_vocab
from rocketqa_paddle.runtime.storage import read_json, write_json

EPSILON = 1e-5
"""The epsilon of the reference's layer norms, which its configs do not state."""
CONFIG, ENCODER, VOCABULARY, VARIABLES = "config.json", "ernie_config.json", "vocab.txt", "params"
PATHS = ("model_conf_path", "model_vocab_path", "model_checkpoint_path")
"""The keys of the JSON that name files: the encoder's sizes, the vocabulary, and the folder of variables."""

_EMBEDDING, _LINEAR, _NORM = ("", None), (".w_0", ".b_0"), ("_scale", "_bias")
_MODULES = {  # native module -> the variable's name without prefix, and the endings of weight and bias
    "word_embedding": ("word_embedding", _EMBEDDING),
    "position_embedding": ("pos_embedding", _EMBEDDING),
    "sentence_embedding": ("sent_embedding", _EMBEDDING),
    "task_embedding": ("task_embedding", _EMBEDDING),
    "norm": ("pre_encoder_layer_norm", _NORM),
    **{
        f"attention.{name}": (f"multi_head_att_{name}_fc", _LINEAR)
        for name in ("query", "key", "value", "output")
    },
    "attention_norm": ("post_att_layer_norm", _NORM),
    "ffn_in": ("ffn_fc_0", _LINEAR),
    "ffn_out": ("ffn_fc_1", _LINEAR),
    "ffn_norm": ("post_ffn_layer_norm", _NORM),
    "pooler": ("pooled_fc", _LINEAR),
    "output": ("_cls_out", ("_w", "_b")),
}
WRITTEN = (
    *(CONFIG, ENCODER, VOCABULARY),
    *(f"{VARIABLES}/*{name}{ending}" for name, endings in _MODULES.values() for ending in endings if ending),
    *(f"{VARIABLES}/*{name}" for name, endings in _MODULES.values() if endings == _EMBEDDING),
)
"""The names that `write` gives."""
_LENGTHS = {DUAL: {"query": "q_max_seq_len", "passage": "p_max_seq_len"}, CROSS: {"pair": "max_seq_len"}}
"""The keys of the lengths in the JSON."""
_COMPARED = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "max_positions",
    "sent_types",
    "activation",
)
_LONGEST = 1000  # characters of a path in the JSON
_PREFIXES = {"query": "query_", "passage": "titlepara_"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_LEFT_OUT = re.compile(
    r"(.+_)?(moment[12]|beta[12]_pow_acc)_\d+|learning_rate_\d+|scheduled_learning_rate|@LR_DECAY_COUNTER@"
    r"|loss_scaling_\d+|num_(good|bad)_steps_\d+"
    r"|pooled_fc\..*|(qtp_)?_cls_out_[wb]|mask_lm_.*|next_sent_fc\..*|(.*_)?task_embedding"
)
"""Variables of an optimizer, which `fluid.io.save_persistables` saves with those of the model, and heads that
the reference keeps in every checkpoint of ERNIE, and that a network here may not have."""


def variable(parameter: str, network: DualEncoder | CrossEncoder) -> str:
    """Return the reference's name of a parameter, which is given as `parameters.to_arrays` names it."""
    return _variable(parameter, describe(network))


def _variable(parameter: str, description: Mapping[str, Any]) -> str:
    part, _, rest = parameter.partition(".")
    if description["model_type"] == DUAL:
        return f"{'titlepara_' if description['shared'] else _PREFIXES[part]}{_in_encoder(rest)}"
    joint = "qtp_" if description["head"] == "logit" else ""
    if part == "ernie":
        return f"{joint}{_in_encoder(rest)}"
    return f"{joint if part == 'output' else ''}{_in_encoder(parameter)}"


def _in_encoder(parameter: str) -> str:
    module, _, kind = parameter.rpartition(".")
    layer = _LAYER.fullmatch(module)
    name, endings = _MODULES[layer[2] if layer else module]
    return f"{f'encoder_layer_{layer[1]}_' if layer else ''}{name}{endings[kind == 'bias']}"


def read(path: str | Path) -> Checkpoint:
    """Read a model of the toolkit by its JSON file, in which paths are relative to its folder.

    Raises:
        FileNotFoundError: a file that the JSON names is missing.
        ValueError: a key is missing or wrong, or a variable is missing, left over or of another shape.
    """
    path = Path(path)
    values = {"for_cn": False, "share_parameter": 0, "joint_training": 0, **read_json(path)}
    # A published archive may leave the kind out, because the toolkit knows it by the model's name.
    kind = values.setdefault("model_type", DUAL if "q_max_seq_len" in values else CROSS)
    if kind not in (DUAL, CROSS):
        raise ValueError(f"{path}: model_type {reprlib.repr(kind)}, expected {DUAL!r} or {CROSS!r}")
    try:
        encoder, vocabulary, variables = (_file(path, key, values[key]) for key in PATHS)
        lengths = {name: _length(values, key) for name, key in _LENGTHS[kind].items()}
        for_cn, description = _flag(values, "for_cn"), _description(values)
    except KeyError as error:
        raise ValueError(f"{path}: no {error}, which a {kind} needs") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    sizes = _sizes(encoder)
    arrays = _read_variables(variables, description, sizes)
    network = build(description, sizes, dropout=0.0)
    load_arrays(network, arrays, variables)
    network.eval()
    return Checkpoint(network, Tokenizer(vocabulary, for_cn=for_cn), lengths)


def with_settings_of(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of this project with the lengths of the toolkit's JSON that names its folder.

    Raises:
        ValueError: the JSON contradicts the checkpoint, or a length does not fit it. The message says how.
        FileNotFoundError: the JSON names another file that is missing.
    """
    values, kind = read_json(path), checkpoint.kind
    with naming(path):
        lengths = {name: _length(values, key) for name, key in _LENGTHS[kind].items() if key in values}
        if problems := list(_contradictions(path, values, checkpoint)):
            raise ValueError("this contradicts the checkpoint that it names:\n  " + "\n  ".join(problems))
        return replace(checkpoint, lengths=checkpoint.lengths | lengths)


def _contradictions(path: Path, values: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[str]:
    described = describe(checkpoint.network)
    has = {
        "model_type": checkpoint.kind,
        "for_cn": checkpoint.tokenizer.for_cn,
        "share_parameter": described.get("shared", False),
        "joint_training": described.get("head") == "logit",
    }
    for key, value in has.items():
        if key in values and values[key] != value:  # 0 and 1 are equal to false and true
            yield f"{key} is {reprlib.repr(values[key])}, there it is {value!r}"
    if "model_vocab_path" in values:
        vocabulary = _file(path, "model_vocab_path", values["model_vocab_path"])
        tokenizer = Tokenizer(vocabulary, **checkpoint.tokenizer.settings)
        if tokenizer.fingerprint != checkpoint.tokenizer.fingerprint:
            yield f"model_vocab_path: {vocabulary} has other tokens than {checkpoint.tokenizer.path}"
    if "model_conf_path" in values:
        given, sizes = (
            _sizes(_file(path, "model_conf_path", values["model_conf_path"])),
            checkpoint.network.config,
        )
        for name in _COMPARED:
            if (size := getattr(given, name)) != (there := getattr(sizes, name)):
                yield f"model_conf_path: {name} is {size!r}, there it is {there!r}"


def is_path(name: Any) -> bool:
    """Tell whether a value of the JSON can be a path at all."""
    return isinstance(name, str) and len(name) <= _LONGEST


def _file(path: Path, key: str, name: Any) -> Path:
    """Return the file or the folder that a key of the JSON names."""
    if not is_path(name):
        raise ValueError(f"{key} {reprlib.repr(name)}, expected a path")
    file, folder = path.parent / name, key == "model_checkpoint_path"
    if not (file.is_dir() if folder else file.is_file()):
        raise FileNotFoundError(
            f"{path}: {key} is {name!r}, but there is no such {'folder' if folder else 'file'} in "
            f"{path.parent.resolve()}"
        )
    return file


def _length(values: Mapping[str, Any], key: str) -> int:
    if type(values[key]) is not int or values[key] < 3:
        raise ValueError(f"{key} {reprlib.repr(values[key])}, expected a number from 3 on")
    return values[key]


def _flag(values: Mapping[str, Any], key: str) -> bool:
    if values[key] not in (True, False):  # 0 and 1 are equal to these
        raise ValueError(f"{key} {reprlib.repr(values[key])}, expected true, false, 0 or 1")
    return bool(values[key])


def _description(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["model_type"] == CROSS:
        return {"model_type": CROSS, "head": "logit" if _flag(values, "joint_training") else "classes"}
    return {"model_type": DUAL, "shared": _flag(values, "share_parameter"), **PLAIN}


def _sizes(path: Path) -> ErnieConfig:
    values = {"initializer_range": 0.02, **read_json(path)}
    values |= {"layer_norm_eps": EPSILON, "intermediate_size": None}  # the reference reads neither
    if types := values.get("sent_type_vocab_size"):
        values["type_vocab_size"] = types
    return read_sizes(values, path)


def _read_variables(folder: Path, description: Mapping[str, Any], sizes: ErnieConfig) -> Arrays:
    """Read the arrays of a network from a folder, by the network's names, after their shapes are checked.

    Raises:
        ValueError: a variable is missing, left over or of another shape, or a file is damaged.
    """
    files = {file.name: file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")}
    check_layers(sizes.num_layers, files, folder)
    native = shapes(description, sizes)
    names = {_variable(name, description): name for name in native}
    arrays = {name: read_variable(files[name]) for name in sorted(files.keys() & names)}
    unknown = files.keys() - names - _joint_variables(sizes)
    left_over = {name: _content(files[name]) for name in unknown if not _LEFT_OUT.fullmatch(name)}
    expected = {name: native[parameter] for name, parameter in names.items()}
    fit(expected, shapes_of(arrays | left_over), folder)
    return {names[name]: array for name, array in arrays.items()}


def _content(file: Path) -> np.ndarray:
    """Return a variable that is left over, or a number if the file is something else."""
    try:
        return read_variable(file)
    except ValueError:
        return np.zeros(())


def _joint_variables(sizes: ErnieConfig) -> set[str]:
    """Return the variables of all networks of these sizes: joint training saves three in one folder."""
    names = [_in_encoder(name) for name in parameter_shapes(sizes)]
    return {f"{prefix}{name}" for name in names for prefix in ("", "query_", "titlepara_", "qtp_")}


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `config.json`, `ernie_config.json`, `vocab.txt` and `params/` into an empty folder.

    Raises:
        ValueError: the reference cannot compute this model. The message lists all reasons.
    """
    if problems := list(_not_expressible(checkpoint)):
        raise ValueError("the RocketQA toolkit cannot express this model:\n  " + "\n  ".join(problems))
    network = checkpoint.network
    write_json(folder / CONFIG, _config(checkpoint))
    sizes = size_values(network.config)
    del sizes["layer_norm_eps"]  # the toolkit always computes with `EPSILON`
    write_json(folder / ENCODER, sizes)
    write_vocab(folder / VOCABULARY, checkpoint.tokenizer.vocabulary)
    (folder / VARIABLES).mkdir()
    for name, array in to_arrays(network).items():
        write_variable(folder / VARIABLES / variable(name, network), array)


def _not_expressible(checkpoint: Checkpoint) -> Iterator[str]:
    network, tokenizer, sizes = checkpoint.network, checkpoint.tokenizer, checkpoint.network.config
    if sizes.ffn_size != 4 * sizes.hidden_size:
        yield f"ffn_size={sizes.ffn_size}, expected four times hidden_size={sizes.hidden_size}"
    if sizes.layer_norm_eps != EPSILON:
        yield f"layer_norm_eps={sizes.layer_norm_eps}, expected {EPSILON}"
    if not tokenizer.lower_case:
        yield "lower_case=False, expected True"
    if tokenizer.path.suffix == ".model":
        yield "a SentencePiece model, expected word pieces"
    if checkpoint.kind == CROSS and network.head == "pooled_logit":
        yield "head='pooled_logit', expected 'logit' or 'classes'"
    for name, expected in PLAIN.items() if checkpoint.kind == DUAL else ():
        if (given := getattr(network, name)) != expected:
            yield f"{name}={given!r}, expected {expected!r}"
    if checkpoint.kind == DUAL and tokenizer.one_segment:
        yield "one_segment=True (title and text as one text), expected False"


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    network, kind = checkpoint.network, checkpoint.kind
    cross = kind == CROSS
    return {
        "model_type": kind,
        **{key: checkpoint.lengths[name] for name, key in _LENGTHS[kind].items()},
        "share_parameter": 0 if cross else int(network.shared),
        **({"joint_training": int(network.head == "logit")} if cross else {}),
        **dict(zip(PATHS, (ENCODER, VOCABULARY, VARIABLES), strict=True)),
        "for_cn": checkpoint.tokenizer.for_cn,
    }
