"""What training starts from: weights that a setting names, put into the networks of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddle import nn

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import load_arrays, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer, train_vocab

SIZES = {
    "tiny": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "ffn_size": 256},
    "mini": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "ffn_size": 1024},
}
"""Networks from scratch, with a vocabulary trained on the corpus."""

Start = EncoderWeights | Checkpoint
"""What training can start from: an encoder without head, or a whole checkpoint."""


def read_start(start: str, corpus: Iterable[str], work: str | Path) -> Start:
    """Find the start weights that a setting names.

    Args:
        start: see `config.RetrieverSettings.start`.
        corpus: texts to train a vocabulary on, read for a size from scratch only.
        work: folder where that vocabulary is written.

    Returns:
        A whole checkpoint, or an encoder without head; from scratch, one without arrays.

    Raises:
        FileNotFoundError: nothing there; says what can be given.
    """
    if start in SIZES and not Path(start).is_dir():
        return _from_scratch(start, corpus, Path(work))
    try:
        return convert.read_encoder(start) or convert.read(start)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"start: {error}; or a size from scratch: {', '.join(SIZES)}") from None


def _from_scratch(size: str, corpus: Iterable[str], work: Path) -> EncoderWeights:
    path = work / "vocab.txt"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        train_vocab(corpus, path)
    config = ErnieConfig(vocab_size=len(Tokenizer(path)), max_positions=512, sent_types=2, **SIZES[size])
    return EncoderWeights(config, {}, path)


def digest(start: Start) -> str:
    """16 hexadecimal digits that name start weights: parameters, sizes and vocabulary."""
    if isinstance(start, Checkpoint):
        return start.digest()
    state = hashlib.sha256(repr((start.config, start.lower_case, start.head)).encode())
    state.update(start.vocabulary.read_bytes())
    for name, array in sorted({**start.arrays, **start.head_arrays}.items()):
        state.update(f"{name} {list(array.shape)}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:16]


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
    given = weights.head if isinstance(weights, EncoderWeights) else getattr(weights.network, "head", None)
    if given not in (None, encoder.head):
        raise ValueError(
            f"start has the head {given!r}, but {encoder.head!r} is asked for: set head to {given}"
        )
    if isinstance(weights, EncoderWeights) and weights.head:
        ernie = {f"ernie.{name}": array for name, array in weights.arrays.items()}
        load_arrays(encoder, ernie | weights.head_arrays, weights.vocabulary.parent)
    else:
        _fill(encoder, weights, {"ernie": encoder.ernie})
    return Checkpoint(encoder, tokenizer, {"pair": length})


def _parts(weights: Start, for_cn: bool) -> tuple[ErnieConfig, Tokenizer]:
    if isinstance(weights, Checkpoint):
        return weights.network.config, weights.tokenizer
    return weights.config, Tokenizer(weights.vocabulary, lower_case=weights.lower_case, for_cn=for_cn)


def _fill(network: DualEncoder | CrossEncoder, weights: Start, towers: Mapping[str, nn.Layer]) -> None:
    if isinstance(weights, EncoderWeights):
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
