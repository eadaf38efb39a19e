"""Checkpoint folders: a network with its tokenizer and lengths, saved whole or not at all.

A folder holds `config.json`, `model.safetensors`, the vocabulary and `README.md` (the model card).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from rocketqa_paddle.networks.encoders import (
    Checkpoint,
    Kind,
    build,
    describe,
)
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import load_arrays, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.runtime.storage import read_arrays, read_json, replacing, whole, write_json, write_text

FORMAT_VERSION = 1
CARD, CONFIG = "README.md", "config.json"
CHECKPOINT_FILES = (CONFIG, "model.safetensors", CARD)
"""What every checkpoint folder has, beside the vocabulary."""


# Saving -----------------------------------------------------------------------------------------


def save(checkpoint: Checkpoint, folder: str | Path, card: str = "") -> None:
    """Write a checkpoint folder. A crash leaves the old one whole.

    Args:
        checkpoint: what to save.
        folder: replaced if it exists.
        card: Markdown on data, system and measures, for the model card.
    """
    with replacing(folder, marker=CONFIG) as new:
        write(checkpoint, new, card)


def write(checkpoint: Checkpoint, folder: Path, card: str = "") -> None:
    """Fill an existing folder with a checkpoint; see `save`."""
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    vocabulary = tokenizer.save(folder)
    config = {
        "format_version": FORMAT_VERSION,
        **describe(network),
        "encoder": dataclasses.asdict(network.config),
        "lengths": checkpoint.lengths,
        "tokenizer": {"file": vocabulary, **tokenizer.settings},
    }
    write_json(folder / CONFIG, config)
    save_file(to_arrays(network), folder / "model.safetensors")
    (folder / CARD).write_text(_card(config, card), encoding="utf-8")


def _card(config: Mapping[str, Any], text: str) -> str:
    sizes, kind = config["encoder"], config["model_type"].replace("_", " ")
    return (
        f"# {kind.capitalize()}\n\n"
        f"ERNIE encoder: {sizes['num_layers']} layers, {sizes['hidden_size']} hidden units, "
        f"{sizes['vocab_size']} tokens. Lengths: {config['lengths']}.\n\n"
        "Load it with `rocketqa_paddle.load_model(folder)`.\n" + (f"\n{text.strip()}\n" if text else "")
    )


def set_in_card(folder: str | Path, head: str, text: str) -> None:
    """Write the paragraph `head text` into a model card, in place of an older one of that head."""
    path = whole(folder) / CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else _card(read_config(path.parent), "")
    paragraphs = card.rstrip("\n").split("\n\n")
    kept = [paragraph for paragraph in paragraphs if not paragraph.startswith(head)]
    write_text(path, "\n\n".join([*kept, f"{head} {text}"]) + "\n")


# Loading ----------------------------------------------------------------------------------------


def load(
    folder: str | Path, *, kind: Kind | None = None, dropout: float = 0.0, use_recompute: bool = False
) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: what `save` wrote.
        kind: `dual_encoder` or `cross_encoder`, where only one of them will do.
        dropout: for further training.
        use_recompute: for further training; see `Ernie`.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: another kind, a format of the future, or parameters that do not fit the sizes.
    """
    folder = whole(folder)
    config = read_config(folder)
    if kind not in (None, config.get("model_type")):
        raise ValueError(f"{folder} is a {config.get('model_type')}, expected a {kind}")
    try:
        sizes = ErnieConfig.from_dict(config["encoder"])
        network = build(config, sizes, dropout=dropout, use_recompute=use_recompute)
        settings, lengths = dict(config["tokenizer"]), dict(config["lengths"])
        vocabulary = folder / Path(settings.pop("file")).name
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: not whole ({type(error).__name__}: {error})") from None
    load_arrays(network, read_arrays(folder / "model.safetensors"), folder)
    network.eval()
    return Checkpoint(network, Tokenizer(vocabulary, **settings), lengths)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint of this project."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; expected a checkpoint folder, as `rocketqa train` saves it"
        )
    config = read_json(path)
    if "format_version" not in config:
        raise ValueError(f"{path}: not a checkpoint of this project (no format_version)")
    if config["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format {config['format_version']!r}, this version reads {FORMAT_VERSION}: upgrade"
        )
    return config


def is_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` says that it is a checkpoint of this project."""
    path = whole(folder) / CONFIG
    return path.is_file() and "format_version" in read_json(path)
