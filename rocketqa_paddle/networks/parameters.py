"""The parameters of a network by name: copied out, checked and filled in."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, list[int]]
_NAMED = 5  # parameters of one problem that a message names; it counts the others


def named_tensors(network: nn.Layer) -> dict[str, Tensor]:
    """Return every parameter once, by its name: a tower that both sides share is `query.*` only."""
    named, seen = {}, set()
    for name, tensor in network.state_dict().items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def to_arrays(network: nn.Layer) -> dict[str, np.ndarray]:
    """Return a copy of every parameter by its name, as it is saved."""
    return {name: tensor.numpy() for name, tensor in named_tensors(network).items()}


def load_arrays(network: nn.Layer, arrays: Arrays, source: str | Path) -> None:
    """Fill a network's parameters by name; see `load_arrays_into`."""
    load_arrays_into(named_tensors(network), arrays, source)


def load_arrays_into(tensors: Mapping[str, Tensor], arrays: Arrays, source: str | Path) -> None:
    """Fill tensors by name with arrays that come from `source`.

    Raises:
        ValueError: an array is missing, left over or of another shape. Nothing is filled then.
    """
    fit(shapes_of(tensors), shapes_of(arrays), source)
    with paddle.no_grad():
        for name, array in arrays.items():
            tensors[name].set_value(array)


def shapes_of(arrays: Mapping[str, Tensor | np.ndarray]) -> dict[str, list[int]]:
    """Return the shape of every array or tensor by its name."""
    return {name: list(array.shape) for name, array in arrays.items()}


def fit(expected: Shapes, given: Shapes, source: str | Path) -> None:
    """Compare the shapes of the arrays in `source` with those that a network expects.

    Raises:
        ValueError: arrays are missing, left over or of another shape. The message names the first of each.
    """
    common = sorted(expected.keys() & given)
    problems = [
        *_first([f"missing {name} {expected[name]}" for name in sorted(expected.keys() - given)], "missing"),
        *_first(
            [f"left over {name[:80]} {given[name]}" for name in sorted(given.keys() - expected)], "left over"
        ),
        *_first(
            [f"{n} is {given[n]}, expected {expected[n]}" for n in common if given[n] != expected[n]],
            "of another shape",
        ),
    ]
    if problems:
        raise ValueError(f"{source}: the parameters do not fit the network:\n  " + "\n  ".join(problems))


def _first(problems: list[str], kind: str) -> list[str]:
    more = [f"and {len(problems) - _NAMED} more {kind}"] if len(problems) > _NAMED else []
    return [*problems[:_NAMED], *more]


def check_layers(layers: int, arrays: Collection[str], source: str | Path) -> None:
    """Refuse a number of layers for which `source` has too few arrays, before anything counts up to it."""
    if layers > len(arrays):
        raise ValueError(f"{source}: the parameters do not fit: {layers} layers, but {len(arrays)} arrays")


def fingerprint_parts(arrays: Arrays) -> Iterator[str | np.ndarray]:
    """Yield what a fingerprint of parameters consists of: each name with its shape, then the numbers."""
    for name, array in sorted(arrays.items()):
        yield f"{name} {list(array.shape)}"
        yield array
