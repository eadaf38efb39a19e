"""Checkpoint folders: a network with its tokenizer and lengths, saved whole or not at all.

A folder holds `config.json`, `model.safetensors`, the vocabulary and `README.md` (the model card).
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rocketqa_paddle.checkpoints.fields import field, naming, tokenizer_settings
from rocketqa_paddle.networks.encoders import Checkpoint, Kind, describe, kind_of, restore
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.runtime.folders import Contents, replacing, whole
from rocketqa_paddle.runtime.storage import read_arrays, read_json, save_arrays, write_json, write_text

FORMAT_VERSION = 1
CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
VOCABULARIES = ("vocab.txt", "spm.model")
CHECKPOINT_FILES = (CONFIG, WEIGHTS, CARD)
"""The files that every checkpoint folder has beside the vocabulary."""
CONTENTS = Contents(
    "checkpoint",
    names=(*CHECKPOINT_FILES, *VOCABULARIES),
    markers=(CONFIG,),
    is_ours=lambda values: "format_version" in values,
)


def save(checkpoint: Checkpoint, folder: str | Path, card: str = "") -> None:
    """Write a checkpoint folder; `card` is Markdown for its model card. A crash leaves the old one whole.

    Raises:
        ValueError: the folder holds other files than a checkpoint's.
    """
    with replacing(folder, CONTENTS) as new:
        write(checkpoint, new, card)


def write(checkpoint: Checkpoint, folder: Path, card: str = "") -> None:
    """Write the files of a checkpoint into an empty folder; see `save`."""
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    config = {
        "format_version": FORMAT_VERSION,
        **describe(network),
        "encoder": dataclasses.asdict(network.config),
        "lengths": checkpoint.lengths,
        "tokenizer": {"file": tokenizer.save(folder), **tokenizer.settings},
        "vocabulary": _vocabulary_record(tokenizer),
    }
    write_json(folder / CONFIG, config)
    save_arrays(folder / WEIGHTS, to_arrays(network))
    (folder / CARD).write_text(_card(config, card), encoding="utf-8")


def _vocabulary_record(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what tells half a vocabulary or another one from the one that the model was trained with."""
    return {"tokens": len(tokenizer), "fingerprint": tokenizer.fingerprint.hex()[:16]}


def _listed(record: Mapping[str, Any]) -> str:
    return f"{reprlib.repr(record.get('tokens'))} tokens ({reprlib.repr(record.get('fingerprint'))})"


def _card(config: Mapping[str, Any], text: str) -> str:
    sizes, kind = config["encoder"], config["model_type"].replace("_", " ")
    return (
        f"# {kind.capitalize()}\n\n"
        f"ERNIE encoder: {sizes['num_layers']} layers, {sizes['hidden_size']} hidden units, "
        f"{sizes['vocab_size']} tokens. Lengths: {config['lengths']}.\n\n"
        "Load it with `rocketqa_paddle.load_model(folder)`.\n" + (f"\n{text.strip()}\n" if text else "")
    )


def set_in_card(folder: str | Path, head: str, text: str) -> None:
    """Write the paragraph `head text` to a model card. It replaces a paragraph that begins with `head`."""
    path = whole(folder) / CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else _card(read_config(path.parent), "")
    paragraphs = card.rstrip("\n").split("\n\n")
    kept = [paragraph for paragraph in paragraphs if not paragraph.startswith(head)]
    write_text(path, "\n\n".join([*kept, f"{head} {text}"]) + "\n")


def load(
    folder: str | Path, *, kind: Kind | None = None, dropout: float = 0.0, use_recompute: bool = False
) -> Checkpoint:
    """Read a checkpoint folder that `save` wrote.

    Args:
        folder: the folder.
        kind: `dual_encoder` or `cross_encoder`, if only one of them is allowed.
        dropout: the dropout rate of further training.
        use_recompute: whether further training saves memory; see `Ernie`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint is of the other kind, its format is newer than this version, its parameters
            do not fit its sizes, or its vocabulary is not the one that was saved.
    """
    folder = whole(folder)
    config, source = read_config(folder), folder / CONFIG
    with naming(source):
        found, sizes = kind_of(config), ErnieConfig.from_dict(field(config, "encoder", dict, source))
    if found != (kind or found):
        raise ValueError(f"{folder} is a {found}, expected a {kind}")
    with naming(folder):
        tokenizer = _read_tokenizer(folder, config, source)
        lengths, arrays = field(config, "lengths", dict, source), read_arrays(folder / WEIGHTS)
        network = restore(config, sizes, arrays, folder, dropout=dropout, use_recompute=use_recompute)
        return Checkpoint(network, tokenizer, lengths)


def _read_tokenizer(folder: Path, config: Mapping[str, Any], source: Path) -> Tokenizer:
    """Read the vocabulary of a folder, and compare it with the record of `save` if the folder has one."""
    settings = dict(field(config, "tokenizer", dict, source))
    if (file := settings.pop("file", None)) not in VOCABULARIES:
        raise ValueError(f"{source}: file {reprlib.repr(file)}, expected one of {', '.join(VOCABULARIES)}")
    tokenizer = Tokenizer(folder / file, **tokenizer_settings(settings, source))
    expected = field(config, "vocabulary", dict, source, default={})
    if expected and expected != (found := _vocabulary_record(tokenizer)):
        raise ValueError(
            f"{folder / file}: {_listed(found)}, but the model was saved with {_listed(expected)}. The file "
            f'is damaged or another one: copy it again, or remove "vocabulary" from {CONFIG} if you '
            "changed it on purpose"
        )
    return tokenizer


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint of this project.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is that of another project, or of a newer version.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected a checkpoint folder of `rocketqa train`")
    config = read_json(path)
    if "format_version" not in config:
        raise ValueError(f"{path}: not a checkpoint of this project (no format_version)")
    if (version := config["format_version"]) != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format {reprlib.repr(version)}, this version reads {FORMAT_VERSION}: upgrade"
        )
    return config


def is_whole(folder: str | Path, digest: str) -> bool:
    """Tell whether a checkpoint folder holds the model of a digest.

    This reads all of it: it is for a program that wants to keep a model instead of making it again.
    """
    try:
        return load(folder).digest() == digest
    except (ValueError, OSError):
        return False


def is_checkpoint(folder: str | Path) -> bool:
    """Tell whether a folder is a checkpoint of this project, by its `config.json`."""
    path = whole(folder) / CONFIG
    return path.is_file() and "format_version" in read_json(path)
