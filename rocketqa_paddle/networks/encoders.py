"""The networks: a dual encoder that retrieves, a cross encoder that re-ranks, and how they read text."""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from rocketqa_paddle.networks.batching import Batch
from rocketqa_paddle.networks.ernie import (
    Ernie,
    ErnieConfig,
    blank_weights,
    check_number,
    initialise,
    parameter_shapes,
    weights,
)
from rocketqa_paddle.networks.parameters import (
    Arrays,
    check_layers,
    fingerprint_parts,
    fit,
    load_arrays,
    shapes_of,
    to_arrays,
)
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.runtime import storage

Pooling = Literal["cls", "mean"]
Head = Literal["logit", "classes", "pooled_logit"]
Kind = Literal["dual_encoder", "cross_encoder"]
DUAL: Kind = "dual_encoder"
CROSS: Kind = "cross_encoder"
TEMPERATURES = (1e-6, 1e6)
"""Between these every quotient of a vector and a temperature is a finite number of float32."""
_LEAST_SHARE = 0.75  # of the rows of an encoder's word embedding that a vocabulary must have tokens for
LEAST_LENGTHS = {"query": 3, "passage": 4, "pair": 5}
"""The fewest tokens that leave room for one token of each text beside the special ones."""


class DualEncoder(nn.Layer):
    """Encodes queries and passages as vectors, whose inner product is their score.

    Args:
        config: the sizes of a tower.
        shared: use one tower for both sides (PAIR) instead of one each (RocketQA).
        pooling: `cls` takes the state of `[CLS]` as it is, `mean` the mean over all tokens.
        normalize: scale vectors to unit length, so that scores are cosines.
        temperature: the scores are divided by it. Passage vectors are divided by it when they are encoded,
            so that every inner product is a score.
        dropout: the dropout rate in training.
        use_recompute: see `Ernie`.
    """

    def __init__(
        self,
        config: ErnieConfig,
        *,
        shared: bool = False,
        pooling: Pooling = "cls",
        normalize: bool = False,
        temperature: float = 1.0,
        dropout: float = 0.0,
        use_recompute: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling={reprlib.repr(pooling)}, expected 'cls' or 'mean'")
        for name, switch in (("shared", shared), ("normalize", normalize)):
            if not isinstance(switch, bool):
                raise ValueError(f"{name}={reprlib.repr(switch)}, expected true or false")
        check_number("temperature", temperature, above=TEMPERATURES[0], below=TEMPERATURES[1])
        self.config, self.pooling, self.normalize, self.temperature = config, pooling, normalize, temperature
        self.query = Ernie(config, dropout, use_recompute)
        self.passage = self.query if shared else Ernie(config, dropout, use_recompute)

    @property
    def shared(self) -> bool:
        """Whether both sides have one tower."""
        return self.query is self.passage

    def encode_queries(self, batch: Batch) -> Tensor:
        """Return vectors `[rows, hidden]`."""
        return self._pool(self._states(self.query, batch), batch)

    def encode_passages(self, batch: Batch) -> Tensor:
        """Return vectors `[rows, hidden]`, divided by the temperature."""
        return self._pool(self._states(self.passage, batch), batch) / self.temperature

    def _states(self, tower: Ernie, batch: Batch) -> Tensor:
        return tower(*batch, first_only=self.pooling == "cls")

    def _pool(self, states: Tensor, batch: Batch) -> Tensor:
        """Make vectors `[rows, hidden]` of states `[rows, length, hidden]`."""
        if self.pooling == "cls":
            vectors = states[:, 0]
        elif batch.mask is None:
            vectors = states.mean(axis=1)
        else:
            mask = batch.mask.astype(states.dtype).unsqueeze(1)  # [rows, 1, length]
            vectors = paddle.bmm(mask, states).squeeze(1) / mask.sum(axis=-1)
        if vectors.dtype in (paddle.float16, paddle.bfloat16):  # under mixed precision
            vectors = vectors.astype("float32")
        return F.normalize(vectors) if self.normalize else vectors


class CrossEncoder(nn.Layer):
    """Reads query and passage together and gives every pair one score.

    Args:
        config: the sizes of the encoder.
        head: `logit` is dropout and one linear unit on the state of `[CLS]` (RocketQAv2's joint model);
            `classes` is a tanh pooler and two classes (RocketQA v1), whose score is the log-odds;
            `pooled_logit` is a tanh pooler and one unit (the usual cross encoder of Hugging Face).
        dropout: the dropout rate in training, also before the head.
        use_recompute: see `Ernie`.
    """

    def __init__(
        self, config: ErnieConfig, *, head: Head = "logit", dropout: float = 0.1, use_recompute: bool = False
    ) -> None:
        super().__init__()
        if head not in ("logit", "classes", "pooled_logit"):
            expected = "expected 'logit', 'classes' or 'pooled_logit'"
            raise ValueError(f"head={reprlib.repr(head)}, {expected}")
        self.config, self.head = config, head
        self.ernie = Ernie(config, dropout, use_recompute)
        size = config.hidden_size
        self.pooler = None if head == "logit" else nn.Linear(size, size, **weights())
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.output = nn.Linear(size, 2 if head == "classes" else 1, **weights())
        for layer in (self.pooler, self.output):
            initialise(layer, config.initializer_range)

    def logits(self, batch: Batch) -> Tensor:
        """Return `[rows, 2]` for the head `classes` (the second is relevance), `[rows, 1]` for the others."""
        state = self.ernie(*batch, first_only=True)[:, 0]  # [rows, hidden]
        if self.pooler is not None:
            state = F.tanh(self.pooler(state))
        with paddle.amp.auto_cast(enable=False):  # half-precision scores would often be equal
            return self.output(self.dropout(state.astype(self.output.weight.dtype)))

    def forward(self, batch: Batch) -> Tensor:
        """Return scores `[rows]`. A sigmoid makes them probabilities of relevance under any head."""
        logits = self.logits(batch)
        return logits[:, 1] - logits[:, 0] if self.head == "classes" else logits[:, 0]


DUAL_SETTINGS = ("shared", "pooling", "normalize", "temperature")
SETTINGS = {DUAL: DUAL_SETTINGS, CROSS: ("head",)}
"""What describes a network of each kind beside the sizes of its encoder."""


def describe(network: DualEncoder | CrossEncoder) -> dict[str, Any]:
    """Return the settings that make the network, beside the sizes of its encoder."""
    if isinstance(network, CrossEncoder):
        return {"model_type": CROSS, "head": network.head}
    return {"model_type": DUAL, **{name: getattr(network, name) for name in DUAL_SETTINGS}}


def shapes(description: Mapping[str, Any], sizes: ErnieConfig) -> dict[str, list[int]]:
    """Return the shapes of all parameters that the network of `build` would have, by name, without making it.

    Raises:
        ValueError: the description is of no kind that there is.
    """
    encoder = parameter_shapes(sizes)
    if kind_of(description) == DUAL:
        sides = ("query",) if description.get("shared") else ("query", "passage")
        return {f"{side}.{name}": shape for side in sides for name, shape in encoder.items()}
    head, size = description.get("head"), sizes.hidden_size
    pooler = {} if head == "logit" else {"pooler.weight": [size, size], "pooler.bias": [size]}
    units = 2 if head == "classes" else 1
    output = {"output.weight": [size, units], "output.bias": [units]}
    return {f"ernie.{name}": shape for name, shape in encoder.items()} | pooler | output


def check_shapes(
    given: Mapping[str, list[int]], description: Mapping[str, Any], sizes: ErnieConfig, source: str | Path
) -> None:
    """Compare the shapes of the arrays in `source` with those of the network that is described.

    Raises:
        ValueError: an array is missing, left over or of another shape, or the description is wrong.
    """
    check_layers(sizes.num_layers, given, source)
    fit(shapes(description, sizes), given, source)


def build(description: Mapping[str, Any], sizes: ErnieConfig, **training: Any) -> DualEncoder | CrossEncoder:
    """Make the network that `describe` described, with weights of zero, which are to be filled in.

    `training` may give `dropout` and `use_recompute`.

    Raises:
        ValueError: a setting is missing or has a value that is not allowed.
    """
    kind, settings = description.get("model_type"), SETTINGS[kind_of(description)]
    if missing := [name for name in settings if name not in description]:
        raise ValueError(f"no {' and no '.join(missing)}, which a {kind} needs")
    given = {name: description[name] for name in settings}
    with blank_weights():
        return (CrossEncoder if kind == CROSS else DualEncoder)(sizes, **given, **training)


def kind_of(description: Mapping[str, Any]) -> Kind:
    """Return the kind of network that is described, or refuse a description of another one."""
    if (kind := description.get("model_type")) not in (DUAL, CROSS):
        raise ValueError(f"model_type {reprlib.repr(kind)}, expected {DUAL!r} or {CROSS!r}")
    return kind


def restore(
    description: Mapping[str, Any], sizes: ErnieConfig, arrays: Arrays, source: str | Path, **training: Any
) -> DualEncoder | CrossEncoder:
    """Make the network that `describe` described, filled with the arrays of `source`; see `build`.

    The arrays are compared with what such a network has before it is made, so that a description with wrong
    sizes costs neither memory nor time.
    """
    check_shapes(shapes_of(arrays), description, sizes, source)
    network = build(description, sizes, **training)
    load_arrays(network, arrays, source)
    network.eval()
    return network


@dataclass
class Checkpoint:
    """A network with its tokenizer and the lengths of its inputs.

    The lengths are the largest numbers of tokens, special ones included: `{"query": …, "passage": …}` for a
    dual encoder and `{"pair": …}` for a cross encoder.

    Raises:
        ValueError: the lengths are those of the other kind, are no whole numbers, leave no room for text or
            exceed the encoder's positions, or the vocabulary is larger than the encoder's, or much smaller.
    """

    network: DualEncoder | CrossEncoder
    tokenizer: Tokenizer
    lengths: dict[str, int]

    def __post_init__(self) -> None:
        names, sizes = {"pair"} if self.kind == CROSS else {"query", "passage"}, self.network.config
        if set(self.lengths) != names:
            raise ValueError(f"lengths {reprlib.repr(self.lengths)}, expected {sorted(names)}")
        tokens, rows, path = len(self.tokenizer), sizes.vocab_size, self.tokenizer.path
        if not _LEAST_SHARE * rows <= tokens <= rows:  # an encoder may be padded to a round size
            remedy = "give the vocabulary that belongs to the model"
            raise ValueError(f"{path}: {tokens} tokens, but the encoder has {rows}: {remedy}")
        for name, length in self.lengths.items():
            if type(length) is not int or length < LEAST_LENGTHS[name]:
                expected = f"expected a whole number from {LEAST_LENGTHS[name]} on"
                raise ValueError(f"{name} length {reprlib.repr(length)}, {expected}")
            if length > (most := sizes.max_positions):
                raise ValueError(f"{name} length {length}, but the encoder has only {most} positions")

    @property
    def kind(self) -> Kind:
        """`dual_encoder` or `cross_encoder`."""
        return CROSS if isinstance(self.network, CrossEncoder) else DUAL

    def digest(self) -> str:
        """Return 16 hexadecimal digits that name the model, whatever format it was read from.

        They depend on the parameters and on all settings that decide how a text becomes a vector or a score.
        """
        settings = json.dumps([describe(self.network), self.lengths, self.tokenizer.settings], sort_keys=True)
        parts = fingerprint_parts(to_arrays(self.network))
        return storage.fingerprint([settings, self.tokenizer.fingerprint, *parts])
