"""Checkpoint folders: a network with its tokenizer and lengths, saved whole or not at all.

A folder holds `config.json`, `model.safetensors`, the vocabulary and `README.md` (the model card).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle
from paddle import nn
from safetensors.numpy import save_file

from rocketqa_paddle.encoders import CrossEncoder, DualEncoder
from rocketqa_paddle.ernie import ErnieConfig, blank_weights
from rocketqa_paddle.storage import read_arrays, read_json, replacing, whole, write_json, write_text
from rocketqa_paddle.tokenization import Tokenizer

FORMAT_VERSION = 1
Kind = Literal["dual_encoder", "cross_encoder"]
DUAL: Kind = "dual_encoder"
CROSS: Kind = "cross_encoder"


@dataclass
class Checkpoint:
    """A network that knows how to read text.

    `lengths` is `{"query": …, "passage": …}` for a dual encoder and `{"pair": …}` for a cross
    encoder, in tokens with the special ones.
    """

    network: DualEncoder | CrossEncoder
    tokenizer: Tokenizer
    lengths: dict[str, int]

    def __post_init__(self) -> None:
        names = {"pair"} if self.kind == CROSS else {"query", "passage"}
        if set(self.lengths) != names:
            raise ValueError(f"lengths {self.lengths}, expected {sorted(names)}")
        tokens, known = len(self.tokenizer), self.network.config.vocab_size
        if tokens > known:
            raise ValueError(f"{self.tokenizer.path}: {tokens} tokens, but the encoder has {known}")
        positions = self.network.config.max_positions
        for name, length in self.lengths.items():
            if length > positions:
                raise ValueError(f"{name} length {length}, but the encoder has only {positions} positions")

    @property
    def kind(self) -> Kind:
        """`dual_encoder` or `cross_encoder`."""
        return CROSS if isinstance(self.network, CrossEncoder) else DUAL

    def digest(self) -> str:
        """16 hexadecimal digits that name the model, whatever format it came in.

        Of the parameters, and of all that decides how a text becomes a vector or a score.
        """
        reads = [describe(self.network), self.lengths, self.tokenizer.settings]
        state = hashlib.sha256(json.dumps(reads, sort_keys=True).encode() + self.tokenizer.fingerprint)
        for name, array in sorted(to_arrays(self.network).items()):
            state.update(f"{name} {list(array.shape)}".encode())
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()[:16]


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


def describe(network: DualEncoder | CrossEncoder) -> dict[str, Any]:
    """What makes the network, beside the sizes of its encoder."""
    if isinstance(network, CrossEncoder):
        return {"model_type": CROSS, "head": network.head}
    names = ("shared", "pooling", "normalize", "temperature")
    return {"model_type": DUAL, **{name: getattr(network, name) for name in names}}


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


def named_tensors(network: nn.Layer) -> dict[str, paddle.Tensor]:
    """Every parameter by name, once each: a shared tower's are `query.*` alone."""
    named, seen = {}, set()
    for name, tensor in network.state_dict().items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def to_arrays(network: nn.Layer) -> dict[str, np.ndarray]:
    """A copy of `named_tensors` in NumPy, as it is saved."""
    return {name: tensor.numpy() for name, tensor in named_tensors(network).items()}


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


def build(config: Mapping[str, Any], sizes: ErnieConfig, **training: Any) -> DualEncoder | CrossEncoder:
    """A network whose weights are to be read, from what `describe` tells and the sizes of its encoder."""
    with blank_weights():
        return _build(config, sizes, **training)


def _build(config: Mapping[str, Any], sizes: ErnieConfig, **training: Any) -> DualEncoder | CrossEncoder:
    if config["model_type"] == CROSS:
        return CrossEncoder(sizes, head=config["head"], **training)
    if config["model_type"] == DUAL:
        names = ("shared", "pooling", "normalize", "temperature")
        return DualEncoder(sizes, **{name: config[name] for name in names}, **training)
    raise ValueError(f"model_type {config['model_type']!r}, expected {DUAL!r} or {CROSS!r}")


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


def load_arrays(network: nn.Layer, arrays: Mapping[str, np.ndarray], source: str | Path) -> None:
    """Fill a network's parameters by name.

    Raises:
        ValueError: lists every name that is missing, left over or of another shape.
    """
    load_arrays_into(named_tensors(network), arrays, source)


def load_arrays_into(
    tensors: Mapping[str, paddle.Tensor], arrays: Mapping[str, np.ndarray], source: str | Path
) -> None:
    """Fill tensors by name; see `load_arrays`."""
    check_shapes(_shapes(tensors), _shapes(arrays), source)
    with paddle.no_grad():
        for name, array in arrays.items():
            tensors[name].set_value(array)


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], source: str | Path
) -> None:
    """Raise a `ValueError` that lists every name that is missing, left over or of another shape."""
    problems = [
        *(f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - given.keys())),
        *(f"left over {name} {list(given[name])}" for name in sorted(given.keys() - expected.keys())),
        *(
            f"{name} is {list(given[name])}, expected {list(expected[name])}"
            for name in sorted(expected.keys() & given.keys())
            if expected[name] != given[name]
        ),
    ]
    if problems:
        raise ValueError(f"{source}: the parameters do not fit the network:\n  " + "\n  ".join(problems))
