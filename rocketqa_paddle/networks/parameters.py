"""The parameters of a network by name: copied out, checked and filled in."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn

Arrays = Mapping[str, np.ndarray]


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
        ValueError: lists every array that is missing, left over or of another shape. Nothing is filled then.
    """
    expected, given = ({name: list(a.shape) for name, a in named.items()} for named in (tensors, arrays))
    common = sorted(expected.keys() & given)
    problems = [
        *(f"missing {name} {expected[name]}" for name in sorted(expected.keys() - given)),
        *(f"left over {name} {given[name]}" for name in sorted(given.keys() - expected)),
        *(f"{n} is {given[n]}, expected {expected[n]}" for n in common if given[n] != expected[n]),
    ]
    if problems:
        raise ValueError(f"{source}: the parameters do not fit the network:\n  " + "\n  ".join(problems))
    with paddle.no_grad():
        for name, array in arrays.items():
            tensors[name].set_value(array)


def fingerprint_parts(arrays: Arrays) -> Iterator[str | np.ndarray]:
    """Yield what a fingerprint of parameters consists of: each name with its shape, then the numbers."""
    for name, array in sorted(arrays.items()):
        yield f"{name} {list(array.shape)}"
        yield array
