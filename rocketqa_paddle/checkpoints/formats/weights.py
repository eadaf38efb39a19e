"""What Hugging Face and PaddleNLP folders have in common: the keys of a `config.json`, and how their
parameters are called.

Nothing is left at random in silence: an array that is missing, left over or of another shape is an
error when the network takes the weights (`parameters.load_arrays`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rocketqa_paddle.networks.encoders import CROSS, DUAL, Checkpoint, DualEncoder, Head, build, describe
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import load_arrays, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer

OURS = "rocketqa_paddle"  # key of a foreign config.json under which we write what it has no word for
_IDENTITY = np.float32(2.0**-16)
_DUAL = {"model_type": DUAL, "shared": True, "pooling": "cls", "normalize": False, "temperature": 1.0}


@dataclass(frozen=True)
class EncoderWeights:
    """An encoder: sizes, arrays by the names of `ernie.Ernie`, and its vocabulary.

    If the model is a classifier of one or two labels, `head` is what `encoders.CrossEncoder` calls its head,
    and `head_arrays` holds it.
    """

    config: ErnieConfig
    arrays: Mapping[str, np.ndarray]
    vocabulary: Path
    lower_case: bool = True
    head: Head | None = None
    head_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """How a library calls the parameters of `ernie.Ernie` and of a classifier's head.

    `layer` names the modules of a layer and `{i}` its number in `prefix`. With `transposed`, linear
    weights are `[out, in]`, where Paddle's are `[in, out]`.
    """

    norm: str
    prefix: str
    layer: Mapping[str, str]
    transposed: bool

    def _modules(self, layers: int) -> dict[str, str]:
        """Our module's name -> theirs."""
        embeddings = {
            "word_embedding": "word_embeddings",
            "position_embedding": "position_embeddings",
            "sentence_embedding": "token_type_embeddings",
            "task_embedding": "task_type_embeddings",
            "norm": self.norm,
        }
        modules = {ours: f"embeddings.{theirs}" for ours, theirs in embeddings.items()}
        for i in range(layers):
            prefix = self.prefix.format(i=i)
            modules |= {f"layers.{i}.{ours}": f"{prefix}.{theirs}" for ours, theirs in self.layer.items()}
        return modules | {"pooler": "pooler.dense", "output": "classifier"}

    def ours(self, arrays: Mapping[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
        """Arrays under our names. Heads of language models are left out; other strangers keep their names."""
        table = {theirs: ours for ours, theirs in self._modules(layers).items()}
        renamed = {}
        for name, array in arrays.items():
            name = name.removeprefix("bert.").removeprefix("ernie.")
            module, _, kind = name.rpartition(".")
            kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)  # as TensorFlow called them
            if ours := table.get(module):
                renamed[f"{ours}.{kind}"] = self._turned(ours, array)
            elif name.startswith(("embeddings.", "encoder.")) and not name.endswith("_ids"):
                renamed[name] = array
        return renamed

    def theirs(self, arrays: Mapping[str, np.ndarray], layers: int, base: str) -> dict[str, np.ndarray]:
        """Arrays under their names, the encoder's with `base` before them."""
        table, renamed = self._modules(layers), {}
        for name, array in arrays.items():
            module, _, kind = name.rpartition(".")
            prefix = "" if module == "output" else base
            renamed[f"{prefix}{table[module]}.{kind}"] = self._turned(module, array)
        return renamed

    def _turned(self, module: str, array: np.ndarray) -> np.ndarray:
        turn = self.transposed and array.ndim == 2 and "embedding" not in module
        return np.ascontiguousarray(array.T if turn else array, dtype=np.float32)


def encoder_config(values: Mapping[str, Any], source: Path) -> ErnieConfig:
    """Sizes from a `config.json`.

    Raises:
        ValueError: another architecture than BERT or ERNIE, or a size is missing.
    """
    if values.get("model_type", "ernie") not in ("bert", "ernie"):
        raise ValueError(f"{source}: model_type {values['model_type']!r}, expected 'bert' or 'ernie'")
    if (positions := values.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"{source}: position_embedding_type {positions!r}, expected 'absolute'")
    if values.get("use_task_id") and values.get("task_id"):
        raise ValueError(f"{source}: task_id {values['task_id']}, expected 0, the task of retrieval")
    try:
        return ErnieConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            ffn_size=values.get("intermediate_size") or 4 * values["hidden_size"],
            max_positions=values["max_position_embeddings"],
            sent_types=values.get("type_vocab_size", 2),
            task_types=values.get("task_type_vocab_size", 3) if values.get("use_task_id") else 0,
            activation=values.get("hidden_act", "gelu"),
            layer_norm_eps=values.get("layer_norm_eps", 1e-12),
            initializer_range=values.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise ValueError(f"{source}: no {error}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def our_section(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """What `config_values` wrote under our key, or nothing.

    Raises:
        ValueError: it is not whole.
    """
    ours = values.get(OURS, {})
    kinds = {"model_type": str, "lengths": dict, "tokenizer": dict}
    whole = isinstance(ours, dict) and all(isinstance(ours.get(key), kind) for key, kind in kinds.items())
    if whole:
        whole = {"head"} <= ours.keys() if ours["model_type"] == CROSS else _DUAL.keys() <= ours.keys()
    if ours and not whole:
        raise ValueError(f"{source}: the section {OURS} is not whole")
    return ours


def config_values(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """The keys of a `config.json` that both libraries read, and ours; `kind` is `bert` or `ernie`."""
    sizes, cross = checkpoint.network.config, checkpoint.kind == CROSS
    labels = 2 if describe(checkpoint.network).get("head") == "classes" else 1
    values = {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}{'ForSequenceClassification' if cross else 'Model'}"],
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.ffn_size,
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": sizes.sent_types,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.layer_norm_eps,
        "initializer_range": sizes.initializer_range,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": checkpoint.tokenizer.pad_id,
    }
    if sizes.task_types:
        values |= {"use_task_id": True, "task_type_vocab_size": sizes.task_types}
    if cross:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        values |= {"num_labels": labels, "id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
    return values | {
        OURS: {
            **describe(checkpoint.network),
            "lengths": checkpoint.lengths,
            "tokenizer": checkpoint.tokenizer.settings,
        }
    }


def encoder_only(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without a classifier's head."""
    return {name: array for name, array in arrays.items() if not name.startswith(("pooler.", "output."))}


def classifier(arrays: Mapping[str, np.ndarray]) -> tuple[Head | None, dict[str, np.ndarray]]:
    """The head of a classifier of one or two labels, as ours is called, and its arrays."""
    head = {name: array for name, array in arrays.items() if name.startswith(("pooler.", "output."))}
    labels = _labels(arrays)
    if labels not in (1, 2):
        return None, {}
    if labels == 2:
        return "classes", head
    if not _has_identity(head):
        return "pooled_logit", head
    return "logit", {"output.weight": head["output.weight"] * _IDENTITY, "output.bias": head["output.bias"]}


def _labels(arrays: Mapping[str, np.ndarray]) -> int:
    return arrays["output.weight"].shape[1] if "output.weight" in arrays else 0


def assemble(
    arrays: Mapping[str, np.ndarray],
    sizes: ErnieConfig,
    description: Mapping[str, Any] | None,
    tokenizer: Tokenizer,
    lengths: Mapping[str, int],
    source: Path,
) -> Checkpoint:
    """A checkpoint from arrays under our names.

    Args:
        arrays: of one encoder, and of a head if it has one.
        sizes: of the encoder.
        description: what `describe` tells of the network; without one it is a cross encoder
            where the arrays have a classifier, else a dual encoder of one tower that pools `[CLS]`.
        tokenizer: its own.
        lengths: by name, or only `longest` for all.
        source: for errors.
    """
    kind, head = classifier(arrays)
    if (labels := _labels(arrays)) and not kind:
        raise ValueError(f"{source}: a classifier of {labels} labels, expected 1 (a score) or 2 (no, yes)")
    description = dict(description or _DUAL)
    if kind:
        description = {"model_type": CROSS, "head": kind}  # training elsewhere may have made another of it
        arrays = {f"ernie.{name}": array for name, array in encoder_only(arrays).items()} | head
        names = ("pair",)
    else:
        arrays = {f"query.{name}": array for name, array in encoder_only(arrays).items()}
        names = ("query", "passage")
    network = build(description, sizes, dropout=0.0)
    load_arrays(network, arrays, source)
    network.eval()
    return Checkpoint(network, tokenizer, {name: lengths.get(name) or lengths["longest"] for name in names})


def head_arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Encoder and head as one classifier of the other libraries, which always has a tanh pooler.

    A head without pooler gets one that is the identity in float32: 2^-16 of the input is so small that
    tanh leaves it as it is, and the classifier's weights are 2^16 as large. `assemble` undoes it without
    loss. The pooler of a dual encoder is the identity, too; nothing reads it, but those libraries would
    start one at random.
    """
    arrays = to_arrays(checkpoint.network)
    arrays = {name.removeprefix("ernie.").removeprefix("query."): array for name, array in arrays.items()}
    if "pooler.weight" not in arrays:
        size = checkpoint.network.config.hidden_size
        arrays["pooler.weight"] = _IDENTITY * np.eye(size, dtype=np.float32)
        arrays["pooler.bias"] = np.zeros(size, dtype=np.float32)
        if "output.weight" in arrays:
            arrays["output.weight"] = arrays["output.weight"] / _IDENTITY
    return arrays


def _has_identity(head: Mapping[str, np.ndarray]) -> bool:
    weight, bias = head.get("pooler.weight"), head.get("pooler.bias")
    if weight is None or bias is None or bias.any():
        return False
    return np.array_equal(weight, _IDENTITY * np.eye(len(weight), dtype=np.float32))


def towers(checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """A dual encoder of two towers as two of one tower each."""
    network, parts = checkpoint.network, {}
    assert isinstance(network, DualEncoder)
    for name in ("query", "passage"):
        part = build({**describe(network), "shared": True}, network.config)
        load_arrays(part.query, to_arrays(getattr(network, name)), name)
        part.eval()
        length = checkpoint.lengths[name]
        parts[name] = Checkpoint(part, checkpoint.tokenizer, {"query": length, "passage": length})
    return parts


def join_towers(query: Checkpoint, passage: Checkpoint, source: Path) -> Checkpoint:
    """The dual encoder of two towers that `towers` took apart.

    Raises:
        ValueError: the two do not belong together.
    """
    for name, model in {"query": query, "passage": passage}.items():
        if model.kind != DUAL or not model.network.shared:
            raise ValueError(f"{source / name}: expected an encoder of one tower")
    differ = [
        what
        for what, ours, theirs in (
            ("sizes", query.network.config, passage.network.config),
            ("pooling", describe(query.network), describe(passage.network)),
            ("vocabularies", query.tokenizer.vocabulary, passage.tokenizer.vocabulary),
            ("tokenizer settings", query.tokenizer.settings, passage.tokenizer.settings),
        )
        if ours != theirs
    ]
    if differ:
        raise ValueError(f"{source}: query and passage encoder have other {' and '.join(differ)}")
    network = build({**describe(passage.network), "shared": False}, passage.network.config)
    load_arrays(network.query, to_arrays(query.network.query), source)
    load_arrays(network.passage, to_arrays(passage.network.query), source)
    network.eval()
    lengths = {"query": query.lengths["query"], "passage": passage.lengths["passage"]}
    return Checkpoint(network, passage.tokenizer, lengths)
