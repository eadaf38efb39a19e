"""The parameters of a network by name: listed, copied out, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn


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
