"""The rules by which parameters move: AdamW in one pass on a CPU, and Paddle's optimizers elsewhere."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor
from paddle.utils import unique_name

from rocketqa_paddle.networks import fused
from rocketqa_paddle.networks.ernie import NAMING

MOMENTS = ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0")
"""Paddle's names for the state of Adam and LAMB, which follow the name of a parameter and `_`."""
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8

Groups = Sequence[Mapping[str, Any]]
"""Parameters that share a factor of the learning rate: Paddle's `params` and `learning_rate`."""


class Rule(Protocol):
    """Moves parameters by their gradients."""

    def step(self, learning_rate: float, factor: float) -> None:
        """Move every parameter that has a gradient, which is multiplied by a factor first."""

    def clear(self) -> None:
        """Forget the gradients."""

    def state(self) -> dict[str, np.ndarray]:
        """The state under Paddle's names; empty before the first step."""

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state."""


class AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019) on a CPU, with the numbers of `paddle.optimizer.AdamW`.

    Parameters named in `decayed` decay. The gradients of those in `embeddings` stay as zeros between steps,
    because a step adds to few of their rows.
    """

    def __init__(
        self, groups: Groups, weight_decay: float, decayed: Collection[str], embeddings: Collection[str]
    ) -> None:
        self._groups, self._weight_decay = groups, weight_decay
        self._decayed, self._embeddings = decayed, embeddings
        self._state: dict[str, np.ndarray] = {}

    def step(self, learning_rate: float, factor: float) -> None:
        """Move every parameter that has a gradient, which is multiplied by a factor first."""
        for group in self._groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, learning_rate * group["learning_rate"], factor)

    def _move(self, parameter: Tensor, rate: float, factor: float) -> None:
        first, second, *powers = self._state_of(parameter)
        left = [1 - power.item() for power in powers]
        decay = self._weight_decay if parameter.name in self._decayed else 0.0
        step, epsilon = rate * left[1] ** 0.5 / left[0], _EPSILON * left[1] ** 0.5
        fused.adamw(parameter, first, second, factor, _BETAS, 1 - rate * decay, step, epsilon)
        for power, beta in zip(powers, _BETAS, strict=True):
            power *= np.float32(beta)  # noqa: PLW2901 (in place)

    def _state_of(self, parameter: Tensor) -> list[np.ndarray]:
        """The moments, and the powers of both betas in the next step."""
        names = [f"{parameter.name}_{name}" for name in MOMENTS]
        if names[0] not in self._state:
            moments = [np.zeros(parameter.shape, np.float32) for _ in _BETAS]
            self._state |= zip(names, [*moments, *np.float32(_BETAS).reshape(2, 1)], strict=True)
        return [self._state[name] for name in names]

    def clear(self) -> None:
        """Forget the gradients."""
        for group in self._groups:
            for parameter in group["params"]:
                if parameter.name in self._embeddings and parameter.grad is not None:
                    fused.zero(parameter.grad)
                else:
                    parameter.clear_gradient(set_to_zero=False)

    def state(self) -> dict[str, np.ndarray]:
        """The state under Paddle's names; empty before the first step."""
        return dict(self._state)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state."""
        self._state = {name: array.copy() for name, array in state.items()}


class PaddleRule:
    """An optimizer of Paddle's."""

    def __init__(self, optimizer: paddle.optimizer.Optimizer, groups: Groups) -> None:
        self._optimizer = optimizer
        self._parameters = [parameter for group in groups for parameter in group["params"]]

    def step(self, learning_rate: float, factor: float) -> None:
        """Move every parameter that has a gradient, which is multiplied by a factor first."""
        if factor != 1:
            with paddle.no_grad():
                for parameter in self._parameters:
                    if parameter.grad is not None:
                        parameter.grad.scale_(factor)
        self._optimizer.set_lr(learning_rate)
        with NAMING, unique_name.guard():  # Paddle numbers Adam's state from 0, whatever ran before
            self._optimizer.step()

    def clear(self) -> None:
        """Forget the gradients."""
        self._optimizer.clear_grad(set_to_zero=False)

    def state(self) -> dict[str, np.ndarray]:
        """The state under Paddle's names; empty before the first step."""
        state = self._optimizer.state_dict()
        return {name: value.numpy() for name, value in state.items() if isinstance(value, Tensor)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state."""
        self._optimizer.set_state_dict({name: paddle.to_tensor(array) for name, array in state.items()})
