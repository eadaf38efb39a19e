"""Foreign weights, given ERNIE's names here: Hugging Face folders and PaddleNLP models.

Every reader returns an `EncoderWeights`: sizes, arrays under the names of `ernie.Ernie`, and the
vocabulary. Nothing is left at random in silence: an array that is missing, or has another shape,
is an error when the network takes the weights (`checkpoints.load_arrays`).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocketqa_paddle.ernie import ErnieConfig
from rocketqa_paddle.storage import read_arrays, read_json


@dataclass(frozen=True)
class EncoderWeights:
    """An encoder without head: sizes, arrays by the names of `ernie.Ernie`, and its vocabulary."""

    config: ErnieConfig
    arrays: Mapping[str, np.ndarray]
    vocabulary: Path
    lower_case: bool = True


_EMBEDDINGS = {
    "word_embeddings": "word_embedding",
    "position_embeddings": "position_embedding",
    "token_type_embeddings": "sentence_embedding",
    "task_type_embeddings": "task_embedding",
}
_HUGGINGFACE_LAYER = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "output.LayerNorm": "ffn_norm",
}
_PADDLENLP_LAYER = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.output",
    "norm1": "attention_norm",
    "linear1": "ffn_in",
    "linear2": "ffn_out",
    "norm2": "ffn_norm",
}


def _name_table(layers: int, norm: str, prefix: str, layer: Mapping[str, str]) -> dict[str, str]:
    """Foreign module name -> ours, for a network of so many layers."""
    table = {f"embeddings.{theirs}": ours for theirs, ours in _EMBEDDINGS.items()}
    table[f"embeddings.{norm}"] = "norm"
    for i in range(layers):
        table |= {f"{prefix}.{i}.{theirs}": f"layers.{i}.{ours}" for theirs, ours in layer.items()}
    return table


def _rename(
    arrays: Mapping[str, np.ndarray], table: Mapping[str, str], transpose: bool
) -> dict[str, np.ndarray]:
    """Arrays under our names; what the table does not name (poolers, language-model heads) is left out."""
    renamed = {}
    for name, array in arrays.items():
        module, _, kind = name.removeprefix("bert.").removeprefix("ernie.").rpartition(".")
        ours, kind = table.get(module), {"gamma": "weight", "beta": "bias"}.get(kind, kind)
        if ours is None:
            continue
        if transpose and array.ndim == 2 and "embedding" not in ours:
            array = array.T  # torch keeps [out, in], Paddle [in, out]
        renamed[f"{ours}.{kind}"] = np.ascontiguousarray(array, dtype=np.float32)
    return renamed


def _encoder_config(values: Mapping[str, Any]) -> ErnieConfig:
    """Sizes from a `config.json` of Hugging Face or PaddleNLP, whose keys agree."""
    return ErnieConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        ffn_size=values.get("intermediate_size", 4 * values["hidden_size"]),
        max_positions=values["max_position_embeddings"],
        sent_types=values.get("type_vocab_size", 2),
        task_types=values.get("task_type_vocab_size", 3) if values.get("use_task_id") else 0,
        activation=values.get("hidden_act", "gelu"),
        layer_norm_eps=values.get("layer_norm_eps", 1e-12),
        initializer_range=values.get("initializer_range", 0.02),
    )


def read_huggingface(folder: str | Path) -> EncoderWeights:
    """A Hugging Face `bert` or `ernie` folder: `config.json`, `model.safetensors`, a vocabulary.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: another architecture.
    """
    folder = Path(folder)
    vocabulary = folder / ("spm.model" if (folder / "spm.model").is_file() else "vocab.txt")
    for path in (folder / "config.json", folder / "model.safetensors", vocabulary):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not there; needed: config.json, model.safetensors, and vocab.txt or spm.model"
            )
    values = read_json(folder / "config.json")
    if values.get("model_type") not in ("bert", "ernie"):
        raise ValueError(f"{folder}: model_type {values.get('model_type')!r}, expected 'bert' or 'ernie'")
    if (positions := values.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"{folder}: position_embedding_type {positions!r}, expected 'absolute'")
    try:
        config = _encoder_config(values)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'}: no {error}") from None
    table = _name_table(config.num_layers, "LayerNorm", "encoder.layer", _HUGGINGFACE_LAYER)
    tokenizer = folder / "tokenizer_config.json"
    settings = read_json(tokenizer) if tokenizer.is_file() else {}
    return EncoderWeights(
        config,
        _rename(read_arrays(folder / "model.safetensors"), table, transpose=True),
        vocabulary,
        lower_case=settings.get("do_lower_case", True),
    )


def read_paddlenlp(name: str) -> EncoderWeights:
    """A PaddleNLP ERNIE or BERT by name (`ernie-2.0-base-en`) or folder; needs the extra `paddlenlp`.

    Raises:
        ValueError: the name is neither a folder nor a size, and PaddleNLP is not installed.
    """
    if importlib.util.find_spec("paddlenlp") is None:
        raise ValueError(
            f"start={name!r} is no folder and no size (tiny, mini); to use it as a PaddleNLP name, "
            "install the extra: pip install 'rocketqa_paddle[paddlenlp]'"
        )
    from paddlenlp.transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    # The epsilon that PaddleNLP computes with is the layer's; the one in its ERNIE configs is not read.
    eps = model.embeddings.layer_norm._epsilon
    config = _encoder_config({**model.config.to_dict(), "layer_norm_eps": eps})
    table = _name_table(config.num_layers, "layer_norm", "encoder.layers", _PADDLENLP_LAYER)
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    folder = Path(tempfile.mkdtemp(prefix="rocketqa-paddlenlp-"))
    tokenizer.save_pretrained(str(folder))
    return EncoderWeights(
        config,
        _rename(arrays, table, transpose=False),
        folder / "vocab.txt",
        getattr(tokenizer, "do_lower_case", True),
    )


def installed_folder(reference: str) -> Path:
    """The folder that `package:NAME/FOLDER` means, found without importing the package.

    Raises:
        FileNotFoundError: the package is not installed, or has no such folder.
    """
    name, _, inside = reference.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    roots: Iterable[str] = (spec.submodule_search_locations if spec else None) or []
    for root in roots:
        if (folder := Path(root) / inside).is_dir():
            return folder
    raise FileNotFoundError(
        f"{reference}: the package {name} is not installed or has no folder {inside!r}; "
        f"pip install {name.replace('_', '-')}"
    )
