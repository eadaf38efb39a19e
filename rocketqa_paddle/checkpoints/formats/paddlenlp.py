"""PaddleNLP folders: `config.json` or `model_config.json`, `.pdparams` or safetensors, and `vocab.txt`.

Reading and writing need no PaddleNLP; a name such as `ernie-2.0-base-en` needs the extra.
"""

import importlib.util
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import paddle

from rocketqa_paddle.checkpoints.fields import field
from rocketqa_paddle.checkpoints.formats.config import SECTION, config_values, encoder_config, first_file
from rocketqa_paddle.checkpoints.formats.names import PADDLENLP
from rocketqa_paddle.checkpoints.formats.pdparams import read_pdparams
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
_DEPTH = 8  # models inside one another in `model_config.json`: a classifier holds an encoder
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
    values = _flat(read_json(config), config)
    if values.get("model_type", "ernie") == "ernie" and SECTION not in values:
        values["layer_norm_eps"] = ERNIE_EPSILON
    sizes = encoder_config(values, config)
    arrays = read_pdparams(weights) if weights.suffix == ".pdparams" else read_arrays(weights)
    vocabulary = first_file(folder, ("vocab.txt", "spm.model"), "save the tokenizer beside the model")
    settings = folder / "tokenizer_config.json"
    tokenizer = read_json(settings) if settings.is_file() else {}
    lower_case = field(tokenizer, "do_lower_case", bool, settings, default=True)
    arrays = PADDLENLP.to_native(arrays, sizes.num_layers, weights)
    return ModelFiles(folder, values, sizes, arrays, vocabulary, lower_case, longest=512)


def _flat(values: dict[str, Any], source: Path, depth: int = 0) -> dict[str, Any]:
    """Return a config without nesting.

    The older `model_config.json` keeps the sizes in nested `init_args`, and the class in `init_class`.
    """
    if depth > _DEPTH:
        raise ValueError(f"{source}: init_args inside one another more than {_DEPTH} times")
    flat = {}
    for part in field(values, "init_args", list, source, default=[]):
        if isinstance(part, dict):
            flat |= _flat(part, source, depth + 1)
    flat |= {key: value for key, value in values.items() if key != "init_args"}
    classes = [flat.get("init_class"), *field(flat, "architectures", list, source, default=[])]
    kind = next((name for name in classes if isinstance(name, str)), "")
    if "model_type" not in flat and kind.startswith(("Bert", "Ernie")):
        flat["model_type"] = "bert" if kind.startswith("Bert") else "ernie"
    return flat


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


@cache
def _downloads() -> tempfile.TemporaryDirectory:
    """A folder that is deleted when the process ends; until then a vocabulary may be read from it."""
    return tempfile.TemporaryDirectory(prefix="rocketqa-paddlenlp-")


def download(name: str) -> Path:
    """Let PaddleNLP download one of `names`, and save it with its tokenizer as a folder for this process."""
    from paddlenlp.transformers import AutoModel, AutoTokenizer
    from paddlenlp.transformers.semantic_search.modeling import ErnieEncoder

    folder = Path(_downloads().name, name)
    if "cross-encoder" in name:
        labels = 1 if name.startswith(_REINITIALIZED) else 2
        model = ErnieEncoder.from_pretrained(name, num_classes=labels)
    else:
        model = AutoModel.from_pretrained(name)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    return folder
