"""Initial checkpoints: what training begins with, read as a setting names it and put into new networks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import fingerprint_parts, load_arrays, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.networks.vocabulary import train_vocab
from rocketqa_paddle.runtime import storage

SIZES = {
    "tiny": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "ffn_size": 256},
    "mini": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "ffn_size": 1024},
}
"""Sizes of networks with random weights, whose vocabulary is trained on the corpus."""

Initial = EncoderWeights | Checkpoint
"""What training can begin with: an encoder, perhaps with a classifier's head, or a whole checkpoint."""


def read(init: str, corpus: Iterable[str], work: str | Path) -> Initial:
    """Read the initial checkpoint that a setting names; see `settings.RetrieverSettings.init`.

    If it names one of `SIZES`, a vocabulary is trained on the texts of `corpus` and written to the folder
    `work`. The encoder has no arrays then: its weights are drawn when a network is made of it.

    Raises:
        FileNotFoundError: there is no such model; the message says what can be given.
    """
    if init in SIZES and not Path(init).is_dir():
        return _from_scratch(init, corpus, Path(work))
    try:
        return convert.read_encoder(init) or convert.read(init)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"init: {error}; or a size from scratch: {', '.join(SIZES)}") from None


def _from_scratch(size: str, corpus: Iterable[str], work: Path) -> EncoderWeights:
    path = work / "vocab.txt"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        train_vocab(corpus, path)
    config = ErnieConfig(vocab_size=len(Tokenizer(path)), max_positions=512, sent_types=2, **SIZES[size])
    return EncoderWeights(config, {}, path)


def fingerprint(weights: Initial) -> str:
    """Return 16 hexadecimal digits that name the parameters, the sizes and the vocabulary."""
    if isinstance(weights, Checkpoint):
        return weights.digest()
    sizes = repr((weights.config, weights.lower_case, weights.head))
    arrays = fingerprint_parts({**weights.arrays, **weights.head_arrays})
    return storage.fingerprint([sizes, weights.vocabulary.read_bytes(), *arrays])


def retriever(
    weights: Initial, query_length: int, passage_length: int, *, for_cn: bool = False, **network: Any
) -> Checkpoint:
    """Make a dual encoder whose towers begin with `weights`; `network` is passed to `DualEncoder`.

    Raises:
        ValueError: `weights` is a cross encoder, or has two towers where `network` asks for one.
    """
    config, tokenizer = _config_and_tokenizer(weights, for_cn)
    encoder = DualEncoder(config, **network)
    if isinstance(weights, Checkpoint):
        _check_kind(weights.network, encoder)
        if encoder.shared and not weights.network.shared:
            raise ValueError("init has two towers, but shared=true asks for one: set shared=false")
        load_arrays(encoder.query, to_arrays(weights.network.query), "init")
        load_arrays(encoder.passage, to_arrays(weights.network.passage), "init")
    elif weights.arrays:
        for tower in (encoder.query, encoder.passage):
            load_arrays(tower, weights.arrays, weights.vocabulary.parent)
    return Checkpoint(encoder, tokenizer, {"query": query_length, "passage": passage_length})


def reranker(weights: Initial, length: int, *, for_cn: bool = False, **network: Any) -> Checkpoint:
    """Make a cross encoder that begins with `weights`; `network` is passed to `CrossEncoder`.

    Its head is random unless `weights` has one.

    Raises:
        ValueError: `weights` is a dual encoder, or has another head than `network` asks for.
    """
    config, tokenizer = _config_and_tokenizer(weights, for_cn)
    encoder = CrossEncoder(config, **network)
    _check_head(weights, encoder)
    if isinstance(weights, Checkpoint):
        _check_kind(weights.network, encoder)
        load_arrays(encoder, to_arrays(weights.network), "init")
    elif weights.head:
        ernie = {f"ernie.{name}": array for name, array in weights.arrays.items()}
        load_arrays(encoder, ernie | weights.head_arrays, weights.vocabulary.parent)
    elif weights.arrays:
        load_arrays(encoder.ernie, weights.arrays, weights.vocabulary.parent)
    return Checkpoint(encoder, tokenizer, {"pair": length})


def _config_and_tokenizer(weights: Initial, for_cn: bool) -> tuple[ErnieConfig, Tokenizer]:
    if isinstance(weights, Checkpoint):
        return weights.network.config, weights.tokenizer
    return weights.config, Tokenizer(weights.vocabulary, lower_case=weights.lower_case, for_cn=for_cn)


def _check_kind(source: DualEncoder | CrossEncoder, target: DualEncoder | CrossEncoder) -> None:
    given, expected = type(source).__name__, type(target).__name__
    if given != expected:
        remedy = "give a checkpoint of the same kind, or an encoder without head"
        raise ValueError(f"init is a {given}, expected a {expected}: {remedy}")


def _check_head(weights: Initial, encoder: CrossEncoder) -> None:
    given = weights.head if isinstance(weights, EncoderWeights) else getattr(weights.network, "head", None)
    if given not in (None, encoder.head):
        problem = f"init has the head {given!r}, but {encoder.head!r} is asked for"
        raise ValueError(f"{problem}: set head to {given}")
