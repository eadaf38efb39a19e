"""The keys of a model's JSON that Hugging Face, PaddleNLP and the reference share."""

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rocketqa_paddle.checkpoints.fields import tokenizer_settings
from rocketqa_paddle.networks.encoders import CROSS, SETTINGS, Checkpoint, describe
from rocketqa_paddle.networks.ernie import ErnieConfig

SECTION = "rocketqa_paddle"
"""The key under which we write the settings for which the other libraries have no key."""
PLAIN = {"pooling": "cls", "normalize": False, "temperature": 1.0}
"""The settings of a dual encoder whose vectors are the states of `[CLS]`, as all of the reference's are."""
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "sent_types",
    "hidden_act": "activation",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
"""The fields of `ErnieConfig` by their keys."""
_DEFAULTS = {
    **{"type_vocab_size": 2, "task_type_vocab_size": 3, "hidden_act": "gelu"},
    **{"layer_norm_eps": 1e-12, "initializer_range": 0.02},
}


def read_sizes(values: Mapping[str, Any], source: Path) -> ErnieConfig:
    """Return the sizes of an encoder in the content of the JSON file `source`.

    Raises:
        ValueError: a size is missing or wrong.
    """
    try:
        sizes = {field: values[key] for key, field in _SIZES.items()}
        sizes["ffn_size"] = values.get("intermediate_size") or 4 * values["hidden_size"]
        sizes["task_types"] = values["task_type_vocab_size"] if values.get("use_task_id") else 0
        return ErnieConfig(**sizes)
    except KeyError as error:
        raise ValueError(f"{source}: no {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None


def encoder_config(values: Mapping[str, Any], source: Path) -> ErnieConfig:
    """Return the sizes in the `config.json` of Hugging Face or PaddleNLP.

    Raises:
        ValueError: it is another architecture than BERT or ERNIE, or a size is missing or wrong.
    """
    if values.get("model_type", "ernie") not in ("bert", "ernie"):
        given = reprlib.repr(values["model_type"])
        raise ValueError(f"{source}: model_type {given}, expected 'bert' or 'ernie'")
    if (positions := values.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"{source}: position_embedding_type {reprlib.repr(positions)}, expected 'absolute'")
    if values.get("use_task_id") and values.get("task_id"):
        given = reprlib.repr(values["task_id"])
        raise ValueError(f"{source}: task_id {given}, expected 0, the task of retrieval")
    return read_sizes({**_DEFAULTS, **values}, source)


def size_values(sizes: ErnieConfig) -> dict[str, Any]:
    """Return the sizes of an encoder under their keys, with the dropout rates of BERT and ERNIE."""
    tasks = {"use_task_id": True, "task_type_vocab_size": sizes.task_types} if sizes.task_types else {}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return {key: getattr(sizes, field) for key, field in _SIZES.items()} | tasks | dropout


def native_section(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return the section that `config_values` wrote, or nothing if the model comes from elsewhere.

    Raises:
        ValueError: the section is not whole.
    """
    if not (section := values.get(SECTION)):
        return {}
    types = {"model_type": str, "lengths": dict, "tokenizer": dict}
    whole = isinstance(section, dict) and all(isinstance(section.get(k), t) for k, t in types.items())
    if not whole or not section.keys() >= {*SETTINGS.get(section["model_type"], ("a kind that there is",))}:
        raise ValueError(f"{source}: the section {SECTION} is not whole")
    return section | {"tokenizer": tokenizer_settings(section["tokenizer"], source)}


def config_values(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """Return the keys that both libraries read, and our section; `kind` is `bert` or `ernie`."""
    network, tokenizer, cross = checkpoint.network, checkpoint.tokenizer, checkpoint.kind == CROSS
    section = {**describe(network), "lengths": checkpoint.lengths, "tokenizer": tokenizer.settings}
    labels = range((2 if network.head == "classes" else 1) if cross else 0)
    classifier = {
        "num_labels": len(labels),
        "id2label": {str(i): f"LABEL_{i}" for i in labels},
        "label2id": {f"LABEL_{i}": i for i in labels},
    }
    return {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}{'ForSequenceClassification' if cross else 'Model'}"],
        **size_values(network.config),
        "intermediate_size": network.config.ffn_size,
        "pad_token_id": tokenizer.pad_id,
        **(classifier if cross else {}),
        SECTION: section,
    }


def first_file(folder: Path, names: Iterable[str], remedy: str) -> Path:
    """Return the first of some files that a folder has; a `FileNotFoundError` gives the remedy."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: no {' or '.join(names)}; {remedy}")
