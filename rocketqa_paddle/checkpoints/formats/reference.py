"""Checkpoints of the RocketQA toolkit: a JSON file and a folder with one file a variable.

The names are those of the reference's `model/ernie.py`, the binary form Paddle's LoDTensor.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rocketqa_paddle.networks.encoders import CROSS, DUAL, Checkpoint, CrossEncoder, DualEncoder, build
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import check_shapes, load_arrays, named_tensors, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer, write_vocab
from rocketqa_paddle.runtime.storage import read_json, replacing, write_json

EPSILON = 1e-5  # of the reference's layer norms; its configs do not name it
CONFIG, ENCODER, VARIABLES = "config.json", "ernie_config.json", "params"

_MODULES = {  # our module -> the variable's name without prefix, and the endings of its two arrays
    "word_embedding": ("word_embedding", ("", None)),
    "position_embedding": ("pos_embedding", ("", None)),
    "sentence_embedding": ("sent_embedding", ("", None)),
    "task_embedding": ("task_embedding", ("", None)),
    "norm": ("pre_encoder_layer_norm", ("_scale", "_bias")),
    "attention.query": ("multi_head_att_query_fc", (".w_0", ".b_0")),
    "attention.key": ("multi_head_att_key_fc", (".w_0", ".b_0")),
    "attention.value": ("multi_head_att_value_fc", (".w_0", ".b_0")),
    "attention.output": ("multi_head_att_output_fc", (".w_0", ".b_0")),
    "attention_norm": ("post_att_layer_norm", ("_scale", "_bias")),
    "ffn_in": ("ffn_fc_0", (".w_0", ".b_0")),
    "ffn_out": ("ffn_fc_1", (".w_0", ".b_0")),
    "ffn_norm": ("post_ffn_layer_norm", ("_scale", "_bias")),
    "pooler": ("pooled_fc", (".w_0", ".b_0")),
    "output": ("_cls_out", ("_w", "_b")),
}
_PREFIXES = {"query": "query_", "passage": "titlepara_"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_TRAINING = re.compile(
    r"(.+_)?(moment[12]|beta[12]_pow_acc)_\d+|learning_rate_\d+|scheduled_learning_rate|@LR_DECAY_COUNTER@"
    r"|loss_scaling_\d+|num_(good|bad)_steps_\d+"
)
"""What an optimizer of the reference leaves among the variables (`fluid.io.save_persistables`)."""
_OTHER_HEADS = re.compile(
    r"pooled_fc\..*|(qtp_)?_cls_out_[wb]|mask_lm_.*|next_sent_fc\..*|(.*_)?task_embedding"
)
"""Heads that the reference keeps in every checkpoint of ERNIE and that a network here may lack."""


def variable(parameter: str, network: DualEncoder | CrossEncoder) -> str:
    """The reference's name of a parameter of ours, as `parameters.to_arrays` calls it."""
    part, _, rest = parameter.partition(".")
    if isinstance(network, DualEncoder):
        return f"{'titlepara_' if network.shared else _PREFIXES[part]}{_in_encoder(rest)}"
    joint = "qtp_" if network.head == "logit" else ""
    if part == "ernie":
        return f"{joint}{_in_encoder(rest)}"
    return f"{joint if part == 'output' else ''}{_in_encoder(parameter)}"


def _in_encoder(name: str) -> str:
    module, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(module)
    theirs, endings = _MODULES[layer[2] if layer else module]
    return f"{f'encoder_layer_{layer[1]}_' if layer else ''}{theirs}{endings[kind == 'bias']}"


# Reading ----------------------------------------------------------------------------------------


def read(path: str | Path) -> Checkpoint:
    """Read the toolkit's JSON as it is; its paths are relative to its folder.

    Args:
        path: the JSON file.

    Raises:
        FileNotFoundError: a file that the JSON names is not there.
        ValueError: a key is missing or wrong, or a variable is missing, left over or of another shape.
    """
    path = Path(path)
    values = {"for_cn": False, "share_parameter": 0, "joint_training": 0, **read_json(path)}
    # The toolkit tells the kind of a published model by its name: the archive's file may leave it out.
    values.setdefault("model_type", DUAL if "q_max_seq_len" in values else CROSS)
    if values["model_type"] not in (DUAL, CROSS):
        raise ValueError(f"{path}: model_type {values['model_type']!r}, expected {DUAL!r} or {CROSS!r}")
    try:
        folder, encoder, vocabulary = (
            path.parent / _path(values, f"model_{what}_path") for what in ("checkpoint", "conf", "vocab")
        )
        lengths, for_cn, description = _lengths(values), _flag(values, "for_cn"), _description(values)
    except KeyError as error:
        raise ValueError(f"{path}: no {error}, which a {values['model_type']} needs") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for name, there in {
        "conf": encoder.is_file(),
        "vocab": vocabulary.is_file(),
        "checkpoint": folder.is_dir(),
    }.items():
        if not there:
            raise FileNotFoundError(
                f"{path}: model_{name}_path is {values[f'model_{name}_path']!r}, but there is no such "
                f"{'folder' if name == 'checkpoint' else 'file'} in {path.parent.resolve()}"
            )
    network = build(description, _sizes(encoder), dropout=0.0)
    _fill(network, folder)
    network.eval()
    return Checkpoint(network, Tokenizer(vocabulary, for_cn=for_cn), lengths)


def _path(values: Mapping[str, Any], key: str) -> str:
    if not isinstance(values[key], str):
        raise ValueError(f"{key} {values[key]!r}, expected a path")
    return values[key]


def _count(values: Mapping[str, Any], key: str, least: int = 1) -> int:
    if type(values[key]) is not int or values[key] < least:
        raise ValueError(f"{key} {values[key]!r}, expected a number from {least} on")
    return values[key]


def _flag(values: Mapping[str, Any], key: str) -> bool:
    if values[key] not in (True, False):  # 0 and 1 are equal to these
        raise ValueError(f"{key} {values[key]!r}, expected true, false, 0 or 1")
    return bool(values[key])


def _lengths(values: Mapping[str, Any]) -> dict[str, int]:
    if values["model_type"] == CROSS:
        return {"pair": _count(values, "max_seq_len", 3)}
    return {"query": _count(values, "q_max_seq_len", 3), "passage": _count(values, "p_max_seq_len", 3)}


def _description(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["model_type"] == CROSS:
        return {"model_type": CROSS, "head": "logit" if _flag(values, "joint_training") else "classes"}
    return {
        "model_type": DUAL,
        "shared": _flag(values, "share_parameter"),
        "pooling": "cls",
        "normalize": False,
        "temperature": 1.0,
    }


def _sizes(path: Path) -> ErnieConfig:
    values = read_json(path)
    try:
        return ErnieConfig(
            vocab_size=_count(values, "vocab_size"),
            hidden_size=_count(values, "hidden_size"),
            num_layers=_count(values, "num_hidden_layers"),
            num_heads=_count(values, "num_attention_heads"),
            ffn_size=4 * _count(values, "hidden_size"),
            max_positions=_count(values, "max_position_embeddings"),
            sent_types=_count(
                values, "sent_type_vocab_size" if values.get("sent_type_vocab_size") else "type_vocab_size"
            ),
            task_types=_count(values, "task_type_vocab_size") if values.get("use_task_id") else 0,
            activation=str(values["hidden_act"]),
            layer_norm_eps=EPSILON,
            initializer_range=values.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise ValueError(f"{path}: no {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _fill(network: DualEncoder | CrossEncoder, folder: Path) -> None:
    parameters = named_tensors(network)
    files = {file.name: file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")}
    names = {name: variable(name, network) for name in parameters}
    known = _known(network)
    arrays = {name: read_variable(files[name]) for name in sorted(files.keys() & set(names.values()))}
    strangers = {
        name: _shape(file)
        for name, file in files.items()
        if not (name in arrays or name in known or _TRAINING.fullmatch(name) or _OTHER_HEADS.fullmatch(name))
    }
    check_shapes(
        {names[name]: tuple(tensor.shape) for name, tensor in parameters.items()},
        strangers | {name: array.shape for name, array in arrays.items()},
        folder,
    )
    load_arrays(network, {name: arrays[theirs] for name, theirs in names.items()}, folder)


def _shape(file: Path) -> tuple[int, ...]:
    """Of a file that should not be there, and may be anything."""
    try:
        return read_variable(file).shape
    except ValueError:
        return ()


def _known(network: DualEncoder | CrossEncoder) -> set[str]:
    """Variables of all networks of these sizes: joint training saves three of them in one folder."""
    encoder = network.ernie if isinstance(network, CrossEncoder) else network.query
    names = [_in_encoder(name) for name in named_tensors(encoder)]
    return {f"{prefix}{name}" for name in names for prefix in ("", "query_", "titlepara_", "qtp_")}


# Writing ----------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write `config.json`, `ernie_config.json`, `vocab.txt` and `params/`, as the toolkit reads them.

    Raises:
        ValueError: names everything of the model that the reference cannot compute.
    """
    if problems := list(_not_expressible(checkpoint)):
        raise ValueError("the RocketQA toolkit cannot express this model:\n  " + "\n  ".join(problems))
    network = checkpoint.network
    with replacing(folder, marker=CONFIG) as new:
        write_json(new / CONFIG, _config(checkpoint))
        write_json(new / ENCODER, _encoder_config(network.config))
        write_vocab(new / "vocab.txt", checkpoint.tokenizer.vocabulary)
        (new / VARIABLES).mkdir()
        for name, array in to_arrays(network).items():
            write_variable(new / VARIABLES / variable(name, network), array)


def _not_expressible(checkpoint: Checkpoint) -> Iterator[str]:
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    sizes = network.config
    if sizes.ffn_size != 4 * sizes.hidden_size:
        yield f"ffn_size={sizes.ffn_size}, expected four times hidden_size={sizes.hidden_size}"
    if sizes.layer_norm_eps != EPSILON:
        yield f"layer_norm_eps={sizes.layer_norm_eps}, expected {EPSILON}"
    if not tokenizer.lower_case:
        yield "lower_case=False, expected True"
    if tokenizer.path.suffix == ".model":
        yield "a SentencePiece model, expected word pieces"
    if isinstance(network, CrossEncoder):
        if network.head == "pooled_logit":
            yield "head='pooled_logit', expected 'logit' or 'classes'"
        return
    for name, expected in {"pooling": "cls", "normalize": False, "temperature": 1.0}.items():
        if (given := getattr(network, name)) != expected:
            yield f"{name}={given!r}, expected {expected!r}"
    if tokenizer.one_segment:
        yield "one_segment=True (title and text as one text), expected False"


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    network, lengths = checkpoint.network, checkpoint.lengths
    if isinstance(network, CrossEncoder):
        own = {
            "max_seq_len": lengths["pair"],
            "share_parameter": 0,
            "joint_training": int(network.head == "logit"),
        }
    else:
        own = {
            "q_max_seq_len": lengths["query"],
            "p_max_seq_len": lengths["passage"],
            "share_parameter": int(network.shared),
        }
    paths = {"model_conf_path": ENCODER, "model_vocab_path": "vocab.txt", "model_checkpoint_path": VARIABLES}
    return {"model_type": checkpoint.kind, **own, **paths, "for_cn": checkpoint.tokenizer.for_cn}


def _encoder_config(sizes: ErnieConfig) -> dict[str, Any]:
    values = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": sizes.activation,
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.hidden_size,
        "initializer_range": sizes.initializer_range,
        "max_position_embeddings": sizes.max_positions,
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "type_vocab_size": sizes.sent_types,
        "vocab_size": sizes.vocab_size,
    }
    return values | (
        {"use_task_id": True, "task_type_vocab_size": sizes.task_types} if sizes.task_types else {}
    )


# One variable -----------------------------------------------------------------------------------

# Version (4 bytes), number of LoD levels (8), each level (8 bytes of size, then its bytes); version (4), size
# of the description (4), the description (a protobuf of data type and shape), the numbers.
_TYPES = {4: np.dtype("<f2"), 5: np.dtype("<f4"), 6: np.dtype("<f8")}


def read_variable(path: Path) -> np.ndarray:
    """The array of one variable's file, float32.

    Raises:
        ValueError: the file is cut off, or is no LoDTensor of floating-point numbers.
    """
    data = path.read_bytes()
    try:
        version, levels = struct.unpack_from("<IQ", data)
        offset = 12
        for _ in range(levels):
            (size,) = struct.unpack_from("<Q", data, offset)
            offset += 8 + size
        tensor_version, size = struct.unpack_from("<Ii", data, offset)
        offset += 8
        data_type, shape = _read_description(data[offset : offset + size])
        if len(shape) > 32:
            raise ValueError
        array = np.frombuffer(data, _TYPES[data_type], math.prod(shape), offset + size).reshape(shape)
        if version or tensor_version or len(data) != offset + size + array.nbytes:
            raise ValueError
    except (ValueError, KeyError, IndexError, struct.error, OverflowError):
        raise ValueError(
            f"{path}: not a whole LoDTensor of float16, float32 or float64, as the reference saves a variable"
        ) from None
    return array.astype(np.float32)


def write_variable(path: Path, array: np.ndarray) -> None:
    """Write one variable's file in float32."""
    array = np.ascontiguousarray(array, dtype="<f4")
    description = b"\x08\x05" + b"".join(b"\x10" + _varint(size) for size in array.shape)
    path.write_bytes(struct.pack("<IQIi", 0, 0, 0, len(description)) + description + array.tobytes())


def _read_description(data: bytes) -> tuple[int, list[int]]:
    """Data type and shape: field 1, a number; field 2, numbers one by one or packed."""
    data_type, shape, offset = 0, [], 0
    while offset < len(data):
        tag, offset = _read_varint(data, offset)
        value, offset = _read_varint(data, offset)
        if tag == 0x08:
            data_type = value
        elif tag == 0x10:
            shape.append(value)
        elif tag == 0x12:
            end = offset + value
            while offset < end:
                size, offset = _read_varint(data, offset)
                shape.append(size)
        else:
            raise ValueError
    return data_type, shape


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while data[offset] & 0x80:
        if shift > 63:
            raise ValueError
        value |= (data[offset] & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
    return value | data[offset] << shift, offset + 1


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
