"""PaddleNLP folders: `config.json` or `model_config.json`, `.pdparams` or safetensors, and `vocab.txt`.

Reading and writing need no PaddleNLP; a name such as `ernie-2.0-base-en` needs the extra.
"""

import importlib.util
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import paddle

from rocketqa_paddle.checkpoints.formats.config import SECTION, config_values, encoder_config, first_file
from rocketqa_paddle.checkpoints.formats.names import PADDLENLP
from rocketqa_paddle.checkpoints.formats.reference import EPSILON as REFERENCE_EPSILON
from rocketqa_paddle.checkpoints.formats.towers import join_towers
from rocketqa_paddle.checkpoints.formats.weights import ModelFiles, with_pooler
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint, describe, restore
from rocketqa_paddle.networks.parameters import to_arrays
from rocketqa_paddle.networks.vocabulary import write_vocab
from rocketqa_paddle.runtime.storage import read_arrays, read_json, write_json

CONFIGS = ("config.json", "model_config.json")
WEIGHTS = ("model_state.pdparams", "model.safetensors")
WRITTEN = ("config.json", "model_state.pdparams", "vocab.txt", "tokenizer_config.json")
"""The names that `write` gives."""
_REINITIALIZED = ("rocketqav2", "ernie-search")  # names of models that PaddleNLP runs with the epsilon 1e-5
ERNIE_EPSILON = 1e-12
"""The epsilon with which PaddleNLP computes ERNIE, whatever the config says. It reads that of BERT."""


def read(folder: Path) -> ModelFiles:
    """Read a `bert` or `ernie` folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is another architecture, or its arrays are not whole.
    """
    needed = "a PaddleNLP model needs one"
    config, weights = first_file(folder, CONFIGS, needed), first_file(folder, WEIGHTS, needed)
    values = _flat(read_json(config))
    if values.get("model_type", "ernie") == "ernie" and SECTION not in values:
        values["layer_norm_eps"] = ERNIE_EPSILON
    sizes = encoder_config(values, config)
    arrays = read_pdparams(weights) if weights.suffix == ".pdparams" else read_arrays(weights)
    vocabulary = first_file(folder, ("vocab.txt", "spm.model"), "save the tokenizer beside the model")
    settings = folder / "tokenizer_config.json"
    lower_case = not settings.is_file() or bool(read_json(settings).get("do_lower_case", True))
    arrays = PADDLENLP.to_native(arrays, sizes.num_layers)
    return ModelFiles(folder, values, sizes, arrays, vocabulary, lower_case, longest=512)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return a config without nesting.

    The older `model_config.json` keeps the sizes in nested `init_args`, and the class in `init_class`.
    """
    flat = {}
    for part in values.get("init_args") or []:
        if isinstance(part, dict):
            flat |= _flat(part)
    flat |= {key: value for key, value in values.items() if key != "init_args"}
    kind = str(flat.get("init_class") or (flat.get("architectures") or [""])[0])
    if "model_type" not in flat and kind.startswith(("Bert", "Ernie")):
        flat["model_type"] = "bert" if kind.startswith("Bert") else "ernie"
    return flat


def read_pdparams(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a `.pdparams` file. It is a pickle, from which nothing but arrays is ever built.

    Raises:
        ValueError: the file asks for anything else, is cut off, or holds other than floating-point numbers.
    """
    try:
        with open(path, "rb") as file:
            state = _ArraysOnly(file).load()
        state.pop("StructuredToParameterName@@", None)
        arrays = {name: value[1] if isinstance(value, tuple) else value for name, value in state.items()}
        kinds = {array.dtype.kind for array in arrays.values()}
        "".join(arrays)  # raises an error if a name is not a text
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise ValueError(f"{path}: not a whole file of arrays, as paddle.save writes it ({error})") from None
    if kinds - {"f"}:
        raise ValueError(f"{path}: holds other numbers than float16, float32 or float64 (bfloat16?)")
    return {name: array.astype(np.float32) for name, array in arrays.items()}


class _ArraysOnly(pickle.Unpickler):
    """Admits only what NumPy needs to build an array."""

    _ADMITTED = {
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
        *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
        *(("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")),
        *(("builtins", "tuple"), ("__builtin__", "tuple")),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        found = super().find_class(module, name)
        if isinstance(found, FunctionType):
            return lambda *arguments: found(*arguments)  # a pickle could set attributes of a shared function
        return found


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write one encoder into an empty folder, for PaddleNLP's `from_pretrained` to load.

    PaddleNLP computes ERNIE with an epsilon of 1e-12, whatever the config says. A model with another epsilon
    is therefore written as `bert`, which is the same network without task types and keeps its epsilon.
    """
    sizes, tokenizer = checkpoint.network.config, checkpoint.tokenizer
    kind = "ernie" if sizes.task_types or sizes.layer_norm_eps == ERNIE_EPSILON else "bert"
    base = f"{kind}." if checkpoint.kind == CROSS else ""
    arrays = PADDLENLP.to_foreign(with_pooler(checkpoint), sizes.num_layers, base)
    settings = {
        "do_lower_case": tokenizer.lower_case,
        "tokenizer_class": f"{kind.capitalize()}Tokenizer",
        "model_max_length": max(checkpoint.lengths.values()),
    }
    write_json(folder / "config.json", config_values(checkpoint, kind) | {"pool_act": "tanh"})
    paddle.save(arrays, str(folder / "model_state.pdparams"))
    write_vocab(folder / "vocab.txt", tokenizer.vocabulary)
    write_json(folder / "tokenizer_config.json", settings)


def read_named(name: str) -> Checkpoint:
    """Read a model that PaddleNLP knows by name and downloads. This needs the extra `paddlenlp`.

    `rocketqa-…-query-encoder` and `rocketqa-…-para-encoder` are the two towers of one retriever, and either
    name gives both. A `…-cross-encoder` is a re-ranker, anything else an encoder.
    """
    if name.endswith(("-query-encoder", "-para-encoder")):
        stem = name.removesuffix("-query-encoder").removesuffix("-para-encoder")
        parts = (read(download(f"{stem}-{side}-encoder")).checkpoint() for side in ("query", "para"))
        checkpoint = join_towers(*parts, Path(stem))
    else:
        checkpoint = read(download(name)).checkpoint()
    return _reinitialized(name, checkpoint) if name.startswith(_REINITIALIZED) else checkpoint


def _reinitialized(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """Return RocketQAv2 or ERNIE-Search as their callers in PaddleNLP run them.

    Both have the epsilon 1e-5 (`reinitialize=True`), and RocketQAv2 scores the state of `[CLS]` without
    pooler (`matching_v2`).
    """
    described, arrays = describe(checkpoint.network), to_arrays(checkpoint.network)
    if checkpoint.kind == CROSS and name.startswith("rocketqav2"):
        described["head"] = "logit"
        arrays = {key: array for key, array in arrays.items() if not key.startswith("pooler.")}
    sizes = replace(checkpoint.network.config, layer_norm_eps=REFERENCE_EPSILON)
    network = restore(described, sizes, arrays, name, dropout=0.0)
    return Checkpoint(network, checkpoint.tokenizer, checkpoint.lengths)


def names() -> frozenset[str]:
    """Return the names of the ERNIE and BERT models that PaddleNLP lists; none without the extra."""
    if importlib.util.find_spec("paddlenlp") is None:
        return frozenset()
    from paddlenlp.transformers.bert.configuration import BERT_PRETRAINED_INIT_CONFIGURATION
    from paddlenlp.transformers.ernie.configuration import ERNIE_PRETRAINED_INIT_CONFIGURATION

    return frozenset(ERNIE_PRETRAINED_INIT_CONFIGURATION) | frozenset(BERT_PRETRAINED_INIT_CONFIGURATION)


def download(name: str) -> Path:
    """Let PaddleNLP download one of `names`, and save it with its tokenizer as a folder."""
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
