"""Checkpoint folders: a network with its tokenizer and lengths, saved whole or not at all.

A folder holds `config.json`, `model.safetensors`, the vocabulary and `README.md` (the model card).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from safetensors.numpy import save_file

from rocketqa_paddle import convert
from rocketqa_paddle.encoders import CrossEncoder, DualEncoder
from rocketqa_paddle.ernie import ErnieConfig
from rocketqa_paddle.storage import read_arrays, read_json, replacing, whole, write_json
from rocketqa_paddle.tokenization import Tokenizer, train_vocab

FORMAT_VERSION = 1
SIZES = {
    "tiny": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "ffn_size": 256},
    "mini": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "ffn_size": 1024},
}
"""Networks from scratch, with a vocabulary trained on the corpus."""


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
        names = {"pair"} if isinstance(self.network, CrossEncoder) else {"query", "passage"}
        if set(self.lengths) != names:
            raise ValueError(f"lengths {self.lengths}, expected {sorted(names)}")
        positions = self.network.config.max_positions
        for name, length in self.lengths.items():
            if length > positions:
                raise ValueError(f"{name} length {length}, but the encoder has only {positions} positions")


Start = convert.EncoderWeights | Checkpoint
"""What training can start from: an encoder without head, or a whole checkpoint."""


# Saving -----------------------------------------------------------------------------------------


def save(checkpoint: Checkpoint, folder: str | Path, card: str = "") -> None:
    """Write a checkpoint folder. A crash leaves the old one whole.

    Args:
        checkpoint: what to save.
        folder: replaced if it exists.
        card: Markdown on data, system and measures, for the model card.
    """
    network, tokenizer = checkpoint.network, checkpoint.tokenizer
    with replacing(folder, marker="config.json") as new:
        vocabulary = tokenizer.save(new)
        config = {
            "format_version": FORMAT_VERSION,
            **_describe(network),
            "encoder": dataclasses.asdict(network.config),
            "lengths": checkpoint.lengths,
            "tokenizer": {"file": vocabulary, "lower_case": tokenizer.lower_case, "for_cn": tokenizer.for_cn},
        }
        write_json(new / "config.json", config)
        save_file(to_arrays(network), new / "model.safetensors")
        (new / "README.md").write_text(_card(config, card), encoding="utf-8")


def _describe(network: DualEncoder | CrossEncoder) -> dict[str, Any]:
    if isinstance(network, CrossEncoder):
        return {"model_type": "cross_encoder", "head": network.head}
    names = ("shared", "pooling", "normalize", "temperature")
    return {"model_type": "dual_encoder", **{name: getattr(network, name) for name in names}}


def _card(config: Mapping[str, Any], text: str) -> str:
    sizes, kind = config["encoder"], config["model_type"].replace("_", " ")
    return (
        f"# {kind.capitalize()}\n\n"
        f"ERNIE encoder: {sizes['num_layers']} layers, {sizes['hidden_size']} hidden units, "
        f"{sizes['vocab_size']} tokens. Lengths: {config['lengths']}.\n\n"
        "Load it with `rocketqa_paddle.load_model(folder)`.\n" + (f"\n{text.strip()}\n" if text else "")
    )


def to_arrays(network: nn.Layer) -> dict[str, np.ndarray]:
    """Every parameter by name, once each: a shared tower is saved as `query.*` alone."""
    arrays, seen = {}, set()
    for name, tensor in network.state_dict().items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            arrays[name] = tensor.numpy()
    return arrays


# Loading ----------------------------------------------------------------------------------------


def load(
    folder: str | Path, *, kind: str | None = None, dropout: float = 0.0, use_recompute: bool = False
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
        network = _build(config, dropout=dropout, use_recompute=use_recompute)
        settings, lengths = dict(config["tokenizer"]), dict(config["lengths"])
        vocabulary = folder / Path(settings.pop("file")).name
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: not whole ({type(error).__name__}: {error})") from None
    load_arrays(network, read_arrays(folder / "model.safetensors"), folder)
    network.eval()
    return Checkpoint(network, Tokenizer(vocabulary, **settings), lengths)


def _build(config: Mapping[str, Any], **training: Any) -> DualEncoder | CrossEncoder:
    sizes = ErnieConfig.from_dict(config["encoder"])
    if config["model_type"] == "cross_encoder":
        return CrossEncoder(sizes, head=config["head"], **training)
    if config["model_type"] == "dual_encoder":
        names = ("shared", "pooling", "normalize", "temperature")
        return DualEncoder(sizes, **{name: config[name] for name in names}, **training)
    raise ValueError(f"model_type {config['model_type']!r}, expected 'dual_encoder' or 'cross_encoder'")


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint of this project."""
    path = folder / "config.json"
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
    path = whole(folder) / "config.json"
    return path.is_file() and "format_version" in read_json(path)


def load_arrays(network: nn.Layer, arrays: Mapping[str, np.ndarray], source: str | Path) -> None:
    """Fill a network's parameters by name.

    Raises:
        ValueError: lists every name that is missing, left over or of another shape.
    """
    tensors = network.state_dict()
    load_arrays_into({name: tensors[name] for name in to_arrays(network)}, arrays, source)


def load_arrays_into(
    tensors: Mapping[str, paddle.Tensor], arrays: Mapping[str, np.ndarray], source: str | Path
) -> None:
    """Fill tensors by name; see `load_arrays`."""
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    given = {name: tuple(array.shape) for name, array in arrays.items()}
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
    with paddle.no_grad():
        for name, array in arrays.items():
            tensors[name].set_value(array)


def digest(folder: str | Path) -> str:
    """16 hexadecimal digits that name a checkpoint's parameters."""
    with open(whole(folder) / "model.safetensors", "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()[:16]
            if hasattr(hashlib, "file_digest")
            else _sha256(file)
        )


def _sha256(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    state = hashlib.sha256()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()[:16]


# Starting ---------------------------------------------------------------------------------------


def read_start(start: str, corpus: Iterable[str], work: str | Path) -> Start:
    """Find the start weights that a setting names.

    Args:
        start: see `config.RetrieverSettings.start`.
        corpus: texts to train a vocabulary on, read for a size from scratch only.
        work: folder where that vocabulary is written.

    Returns:
        A whole checkpoint of this project, or an encoder without head; from scratch, one without arrays.
    """
    folder = convert.installed_folder(start) if start.startswith("package:") else Path(start)
    if is_checkpoint(folder):
        return load(folder)
    if start in SIZES:
        return _from_scratch(start, corpus, Path(work))
    return convert.read_huggingface(folder) if folder.is_dir() else convert.read_paddlenlp(start)


def _from_scratch(size: str, corpus: Iterable[str], work: Path) -> convert.EncoderWeights:
    path = work / "vocab.txt"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        train_vocab(corpus, path)
    config = ErnieConfig(vocab_size=len(Tokenizer(path)), max_positions=512, sent_types=2, **SIZES[size])
    return convert.EncoderWeights(config, {}, path)


def start_retriever(
    weights: Start, query_length: int, passage_length: int, *, for_cn: bool = False, **network: Any
) -> Checkpoint:
    """A dual encoder whose towers start from `weights`; `network` is passed to `DualEncoder`."""
    config, tokenizer = _parts(weights, for_cn)
    encoder = DualEncoder(config, **network)
    _fill(encoder, weights, {"query": encoder.query, "passage": encoder.passage})
    return Checkpoint(encoder, tokenizer, {"query": query_length, "passage": passage_length})


def start_reranker(weights: Start, length: int, *, for_cn: bool = False, **network: Any) -> Checkpoint:
    """A cross encoder that starts from `weights`, its head at random unless they are a cross encoder's."""
    config, tokenizer = _parts(weights, for_cn)
    encoder = CrossEncoder(config, **network)
    _fill(encoder, weights, {"ernie": encoder.ernie})
    return Checkpoint(encoder, tokenizer, {"pair": length})


def _parts(weights: Start, for_cn: bool) -> tuple[ErnieConfig, Tokenizer]:
    if isinstance(weights, Checkpoint):
        return weights.network.config, weights.tokenizer
    tokenizer = Tokenizer(weights.vocabulary, lower_case=weights.lower_case, for_cn=for_cn)
    if len(tokenizer) > weights.config.vocab_size:
        raise ValueError(
            f"{weights.vocabulary}: {len(tokenizer)} tokens, but the encoder has {weights.config.vocab_size}"
        )
    return weights.config, tokenizer


def _fill(network: DualEncoder | CrossEncoder, weights: Start, towers: Mapping[str, nn.Layer]) -> None:
    if isinstance(weights, convert.EncoderWeights):
        for tower in towers.values():
            if weights.arrays:
                load_arrays(tower, weights.arrays, weights.vocabulary.parent)
        return
    theirs = weights.network
    if type(theirs) is not type(network):
        raise ValueError(
            f"start is a {type(theirs).__name__}, expected a {type(network).__name__}: give a checkpoint "
            "of the same kind, or an encoder without head"
        )
    if isinstance(network, CrossEncoder):
        load_arrays(network, to_arrays(theirs), "start")
        return
    if network.shared and not theirs.shared:
        raise ValueError("start has two towers, but shared=true asks for one: set shared=false")
    for name, tower in towers.items():
        load_arrays(tower, to_arrays(getattr(theirs, name)), "start")
