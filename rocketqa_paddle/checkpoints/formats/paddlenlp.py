"""PaddleNLP folders: `config.json` or `model_config.json`, `.pdparams` or safetensors, and `vocab.txt`.

Reading and writing need no PaddleNLP; a name such as `ernie-2.0-base-en` needs the extra.
"""

from __future__ import annotations

import importlib.util
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import paddle

from rocketqa_paddle.checkpoints.formats.reference import EPSILON as REFERENCE_EPSILON
from rocketqa_paddle.checkpoints.formats.weights import (
    OURS,
    EncoderWeights,
    Names,
    assemble,
    classifier,
    config_values,
    encoder_config,
    encoder_only,
    head_arrays,
    join_towers,
    our_section,
)
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint, build, describe
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import load_arrays, named_tensors, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer, write_vocab
from rocketqa_paddle.runtime.storage import read_arrays, read_json, replacing, write_json

CONFIGS = ("config.json", "model_config.json")
WEIGHTS = ("model_state.pdparams", "model.safetensors")
NAMES = Names(
    norm="layer_norm",
    prefix="encoder.layers.{i}",
    layer={
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "attention_norm": "norm1",
        "ffn_in": "linear1",
        "ffn_out": "linear2",
        "ffn_norm": "norm2",
    },
    transposed=False,
)
_REINITIALIZED = ("rocketqav2", "ernie-search")
ERNIE_EPSILON = 1e-12  # PaddleNLP computes ERNIE with it whatever the config says; BERT's it reads


# Reading ----------------------------------------------------------------------------------------


def read(folder: str | Path) -> Checkpoint:
    """A `bert` or `ernie` folder: a cross encoder if it has a classifier of one or two labels, else a dual
    encoder of one tower whose vector is the state of `[CLS]`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: another architecture, or a parameter is missing, left over or of another shape.
    """
    folder = Path(folder)
    values, sizes, arrays = _parts(folder)
    if "output.weight" in arrays and values.get("pool_act", "tanh") != "tanh":
        raise ValueError(f"{folder}: pool_act {values['pool_act']!r}, expected 'tanh' before a classifier")
    ours = our_section(values, folder)
    tokenizer = Tokenizer(_vocabulary(folder), **ours.get("tokenizer", {"lower_case": _lower_case(folder)}))
    lengths = ours.get("lengths", {"longest": min(512, sizes.max_positions)})
    return assemble(arrays, sizes, ours or None, tokenizer, lengths, folder)


def read_encoder(folder: str | Path) -> EncoderWeights:
    """The encoder of such a folder, without head."""
    folder = Path(folder)
    _, sizes, arrays = _parts(folder)
    texts = _vocabulary(folder), _lower_case(folder)
    return EncoderWeights(sizes, encoder_only(arrays), *texts, *classifier(arrays))


def _parts(folder: Path) -> tuple[dict[str, Any], ErnieConfig, dict[str, np.ndarray]]:
    config, weights = _first(folder, CONFIGS), _first(folder, WEIGHTS)
    values = _flat(read_json(config))
    if values.get("model_type", "ernie") == "ernie" and OURS not in values:
        values["layer_norm_eps"] = ERNIE_EPSILON
    sizes = encoder_config(values, config)
    raw = read_pdparams(weights) if weights.suffix == ".pdparams" else read_arrays(weights)
    return values, sizes, NAMES.ours(raw, sizes.num_layers)


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: no {' or '.join(names)}, which a PaddleNLP model needs")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The older `model_config.json` keeps the sizes in nested `init_args` and the class in `init_class`."""
    flat = {}
    for part in values.get("init_args") or []:
        if isinstance(part, dict):
            flat |= _flat(part)
    flat |= {key: value for key, value in values.items() if key != "init_args"}
    kind = str(flat.get("init_class") or (flat.get("architectures") or [""])[0])
    if "model_type" not in flat and kind.startswith(("Bert", "Ernie")):
        flat["model_type"] = "bert" if kind.startswith("Bert") else "ernie"
    return flat


def _vocabulary(folder: Path) -> Path:
    for name in ("vocab.txt", "spm.model"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: no vocab.txt; save the tokenizer beside the model")


def _lower_case(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return bool(read_json(path).get("do_lower_case", True)) if path.is_file() else True


def read_pdparams(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.pdparams` file, which is a pickle; nothing but arrays is ever built from it.

    Raises:
        ValueError: the file asks for anything else, is cut off, or holds no floating-point numbers.
    """
    try:
        with open(path, "rb") as file:
            state = _ArraysOnly(file).load()
        state.pop("StructuredToParameterName@@", None)
        arrays = {name: value[1] if isinstance(value, tuple) else value for name, value in state.items()}
        kinds = {array.dtype.kind for array in arrays.values()}
        "".join(arrays)  # names, all of them
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise ValueError(f"{path}: not a whole file of arrays, as paddle.save writes it ({error})") from None
    if kinds - {"f"}:
        raise ValueError(f"{path}: holds other numbers than float16, float32 or float64 (bfloat16?)")
    return {name: array.astype(np.float32) for name, array in arrays.items()}


class _ArraysOnly(pickle.Unpickler):
    """Admits what NumPy needs to build an array, by name, and nothing else."""

    _ADMITTED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
            ("builtins", "tuple"),
            ("__builtin__", "tuple"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        found = super().find_class(module, name)
        if isinstance(found, FunctionType):  # whose attributes a pickle could set, for all who use it
            return lambda *arguments: found(*arguments)
        return found


# Writing ----------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write a folder of one encoder that PaddleNLP's `from_pretrained` loads.

    PaddleNLP computes ERNIE with an epsilon of 1e-12, whatever the config says. A model with another one
    is therefore written as `bert`, which is the same network without task types and keeps its epsilon.
    """
    sizes = checkpoint.network.config
    kind = "ernie" if sizes.task_types or sizes.layer_norm_eps == ERNIE_EPSILON else "bert"
    base = f"{kind}." if checkpoint.kind == CROSS else ""
    with replacing(folder, marker="config.json") as new:
        write_json(new / "config.json", config_values(checkpoint, kind) | {"pool_act": "tanh"})
        arrays = NAMES.theirs(head_arrays(checkpoint), sizes.num_layers, base)
        paddle.save(arrays, str(new / "model_state.pdparams"))
        write_vocab(new / "vocab.txt", checkpoint.tokenizer.vocabulary)
        settings = {
            "do_lower_case": checkpoint.tokenizer.lower_case,
            "tokenizer_class": f"{kind.capitalize()}Tokenizer",
            "model_max_length": max(checkpoint.lengths.values()),
        }
        write_json(new / "tokenizer_config.json", settings)


# By name ----------------------------------------------------------------------------------------


def read_named(name: str) -> Checkpoint:
    """A model that PaddleNLP knows by name; it downloads it. Needs the extra `paddlenlp`.

    `rocketqa-…-query-encoder` and `rocketqa-…-para-encoder` are two towers of one retriever: either name
    gives both. A `…-cross-encoder` is a re-ranker, anything else an encoder.
    """
    if name.endswith(("-query-encoder", "-para-encoder")):
        stem = name.removesuffix("-query-encoder").removesuffix("-para-encoder")
        parts = (read(download(f"{stem}-{side}-encoder")) for side in ("query", "para"))
        checkpoint = join_towers(*parts, Path(stem))
    else:
        checkpoint = read(download(name))
    return _as_run(name, checkpoint) if name.startswith(_REINITIALIZED) else checkpoint


def _as_run(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """RocketQAv2 and ERNIE-Search have the epsilon 1e-5, and RocketQAv2 scores the raw `[CLS]`.

    PaddleNLP leaves both to its caller (`reinitialize=True`, `matching_v2`).
    """
    described = describe(checkpoint.network)
    if checkpoint.kind == CROSS and name.startswith("rocketqav2"):
        described["head"] = "logit"
    sizes = replace(checkpoint.network.config, layer_norm_eps=REFERENCE_EPSILON)
    network = build(described, sizes, dropout=0.0)
    arrays, wanted = to_arrays(checkpoint.network), named_tensors(network)
    load_arrays(network, {key: array for key, array in arrays.items() if key in wanted}, name)
    network.eval()
    return Checkpoint(network, checkpoint.tokenizer, checkpoint.lengths)


def names() -> frozenset[str]:
    """The names of ERNIE and BERT models that PaddleNLP lists; none without the extra."""
    if importlib.util.find_spec("paddlenlp") is None:
        return frozenset()
    from paddlenlp.transformers.bert.configuration import BERT_PRETRAINED_INIT_CONFIGURATION
    from paddlenlp.transformers.ernie.configuration import ERNIE_PRETRAINED_INIT_CONFIGURATION

    return frozenset(ERNIE_PRETRAINED_INIT_CONFIGURATION) | frozenset(BERT_PRETRAINED_INIT_CONFIGURATION)


def download(name: str) -> Path:
    """Let PaddleNLP fetch one of `names`, and save it with its tokenizer as a folder."""
    from paddlenlp.transformers import AutoModel, AutoTokenizer
    from paddlenlp.transformers.semantic_search.modeling import ErnieEncoder

    folder = tempfile.mkdtemp(prefix="rocketqa-paddlenlp-")
    if "cross-encoder" in name:
        labels = 1 if name.startswith(_REINITIALIZED) else 2
        model = ErnieEncoder.from_pretrained(name, num_classes=labels)
    else:
        model = AutoModel.from_pretrained(name)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    return Path(folder)
