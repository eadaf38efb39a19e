"""What a Hugging Face or PaddleNLP folder holds: an encoder, perhaps with a classifier's head.

No parameter is left random without notice: when a network is filled, an array that is missing, left over or
of another shape is an error (`parameters.load_arrays`).
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rocketqa_paddle.checkpoints.formats.config import PLAIN, native_section
from rocketqa_paddle.networks.encoders import CROSS, DUAL, Checkpoint, Head, restore
from rocketqa_paddle.networks.ernie import ErnieConfig, parameter_shapes
from rocketqa_paddle.networks.parameters import Arrays, fit, shapes_of, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer

_IDENTITY = np.float32(2.0**-16)
_HEAD = ("pooler.", "output.")


class EncoderWeights(NamedTuple):
    """An encoder whose vocabulary is still a file."""

    config: ErnieConfig
    arrays: Arrays  # those of the encoder, under the names of `ernie.Ernie`
    vocabulary: Path
    lower_case: bool = True
    head: Head | None = None  # the head, if the model is a classifier of one or two labels
    head_arrays: Arrays = {}


class ModelFiles(NamedTuple):
    """What the folder `path` holds."""

    path: Path
    values: dict[str, Any]  # its config
    sizes: ErnieConfig
    arrays: Arrays  # those of one encoder, and of a head if there is one, under native names
    vocabulary: Path
    lower_case: bool
    longest: int  # the largest number of tokens
    pooling: Mapping[str, Any] = {}  # `pooling` and `normalize`, as sentence-transformers states them

    def encoder(self) -> EncoderWeights:
        """Return the encoder without pooling, and the head of a classifier apart from it.

        Raises:
            ValueError: an array of the encoder does not fit the sizes.
        """
        weights = self._parts()
        fit(parameter_shapes(self.sizes), shapes_of(weights.arrays), self.path)
        return weights

    def _parts(self) -> EncoderWeights:
        encoder = {name: array for name, array in self.arrays.items() if not name.startswith(_HEAD)}
        head, head_arrays = _classifier(self.arrays)
        return EncoderWeights(self.sizes, encoder, self.vocabulary, self.lower_case, head, head_arrays)

    def checkpoint(self) -> Checkpoint:
        """Return the model: a cross encoder if there is a classifier, else a dual encoder of one tower.

        The dual encoder pools as sentence-transformers or our own section in the config says, else `[CLS]`.

        Raises:
            ValueError: the classifier has more than two labels or no tanh pooler, or an array does not fit.
        """
        _, encoder, *_, head, head_arrays = self._parts()
        self._check_classifier(head)
        section = native_section(self.values, self.path)
        description = section or {"model_type": DUAL, "shared": True, **PLAIN, **self.pooling}
        if head:  # the section may be out of date, because training in another library can change the head
            description = {"model_type": CROSS, "head": head}
        part, sides = ("ernie", ["pair"]) if head else ("query", ["query", "passage"])
        arrays = {f"{part}.{name}": array for name, array in encoder.items()} | head_arrays
        network = restore(description, self.sizes, arrays, self.path, dropout=0.0)
        defaults = {"lower_case": self.lower_case, "one_segment": bool(self.pooling)}
        tokenizer = Tokenizer(self.vocabulary, **section.get("tokenizer", defaults))
        longest, lengths = min(self.longest, self.sizes.max_positions), section.get("lengths", {})
        return Checkpoint(network, tokenizer, {side: lengths.get(side, longest) for side in sides})

    def _check_classifier(self, head: Head | None) -> None:
        if (labels := _labels(self.arrays)) and not head:
            expected = "expected 1 (a score) or 2 (no, yes)"
            raise ValueError(f"{self.path}: a classifier of {labels} labels, {expected}")
        if labels and (activation := self.values.get("pool_act", "tanh")) != "tanh":
            given = reprlib.repr(activation)
            raise ValueError(f"{self.path}: pool_act {given}, expected 'tanh' before a classifier")


def _classifier(arrays: Arrays) -> tuple[Head | None, Arrays]:
    """Return the head of a classifier of one or two labels and its arrays; None if there is none."""
    head = {name: array for name, array in arrays.items() if name.startswith(_HEAD)}
    labels = _labels(arrays)
    if labels not in (1, 2):
        return None, {}
    if labels == 2:
        return "classes", head
    if not _has_identity_pooler(head):
        return "pooled_logit", head
    output = {name: array for name, array in head.items() if not name.startswith("pooler.")}
    return "logit", output | {"output.weight": head["output.weight"] * _IDENTITY}


def _labels(arrays: Arrays) -> int:
    weight = arrays.get("output.weight")
    return weight.shape[1] if weight is not None and weight.ndim == 2 else 0


def _has_identity_pooler(head: Arrays) -> bool:
    weight, bias = head.get("pooler.weight"), head.get("pooler.bias")
    if weight is None or bias is None or bias.any() or weight.shape != (len(head["output.weight"]),) * 2:
        return False
    return np.array_equal(weight, _IDENTITY * np.eye(len(weight), dtype=np.float32))


def with_pooler(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the arrays of encoder and head, with the tanh pooler that the other libraries always have.

    A head without pooler gets one that is the identity in float32: it multiplies by 2^-16, which makes its
    input so small that tanh does not change it, and the classifier's weights are multiplied by 2^16.
    `ModelFiles` undoes this without loss. A dual encoder also gets the identity. No one reads it, but the
    other libraries would make a random one.
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
