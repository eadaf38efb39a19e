"""The optimizer, AdamW or LAMB: its schedule, gradient clipping, the loss scale of fp16 and its state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn

from rocketqa_paddle.networks import fused
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.storage import read_arrays
from rocketqa_paddle.settings import OptimizerSettings, TrainingSettings
from rocketqa_paddle.training.rules import MOMENTS, AdamW, PaddleRule, Rule

_SCALE = ("loss_scale.value", "loss_scale.steps")


@dataclass
class LossScale:
    """Dynamic loss scaling (Micikevicius et al., ICLR 2018, section 3.2), with the rules of `GradScaler`.

    Paddle's own `GradScaler` fails when it lowers its scale (Paddle 3.3 with NumPy 2.4), and it needs a GPU.
    """

    value: float = 2.0**16
    """The factor of the loss. It is a power of two, so it costs no precision."""
    steps: int = 0
    """Steps in a row that have been finite since the factor changed."""
    patience: int = 2000
    """Finite steps in a row that double the factor."""

    def update(self, *, finite: bool) -> None:
        """Halve after a step whose gradient is not finite, double after `patience` finite ones in a row."""
        self.steps = self.steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.steps == self.patience:
            self.value, self.steps = 2 * self.value, 0


class Optimizer:
    """The optimizer of all networks that train together.

    `rates` are factors of the learning rate by the network's name, 1 for a network that is not named. Only
    fp16 needs a loss scale.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Layer],
        settings: OptimizerSettings,
        rates: Mapping[str, float],
        scale: LossScale | None = None,
    ) -> None:
        self.parameters = {
            f"{network}.{name}": parameter
            for network, layer in networks.items()
            for name, parameter in layer.named_parameters()
        }
        self.settings, self.scale = settings, scale
        self._rule = _make(networks, settings, rates)

    def scaled(self, loss: Tensor) -> Tensor:
        """Multiply a loss by the loss scale, before its backward pass."""
        return loss * self.scale.value if self.scale else loss

    def step(self, learning_rate: float) -> float:
        """Average the gradients over ranks, clip them, update the parameters and clear the gradients.

        Return the norm of the gradients before clipping. If it is not finite, no parameter has changed, and
        FloatingPointError is raised unless there is a loss scale left to lower.
        """
        distributed.average_gradients(self.parameters.values())
        unscaled = 1 / self.scale.value if self.scale else 1.0
        norm, most = unscaled * self._norm(), self.settings.max_grad_norm
        if math.isfinite(norm):
            self._rule.step(learning_rate, unscaled * (most / (norm + 1e-6) if most < norm else 1.0))
        if self.scale and (math.isfinite(norm) or self.scale.value > 1):
            self.scale.update(finite=math.isfinite(norm))
        elif not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm}")
        self._rule.clear()
        return norm

    def _norm(self) -> float:
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if fused.computes(gradients[0]):
            return fused.norm(gradients)
        with paddle.no_grad():
            return float(paddle.stack([gradient.norm() for gradient in gradients]).norm())

    # State --------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return the moments, named after the parameters, and the loss scale."""
        state = self._rule.state()
        arrays = {name: state[paddles] for name, paddles in self._moments().items() if state}
        if self.scale:
            values = (self.scale.value, self.scale.steps)
            arrays |= {name: np.float32(value).reshape(1) for name, value in zip(_SCALE, values, strict=True)}
        return arrays

    def load(self, path: Path) -> None:
        """Load what `state` returned; raise ValueError if the file is damaged or another optimizer's."""
        arrays = read_arrays(path)
        begun = not self.scale or arrays.keys() - {*_SCALE}  # otherwise no step was finite before
        moments = self._moments() if begun else {}
        if missing := {*moments, *(_SCALE if self.scale else ())} - arrays.keys():
            raise ValueError(f"{path}: not the state of this optimizer, {min(missing)} is missing")
        if moments:
            self._rule.load({paddles: arrays[name] for name, paddles in moments.items()})
        if self.scale:
            value, steps = (arrays[name].item() for name in _SCALE)
            self.scale.value, self.scale.steps = value, int(steps)

    def _moments(self) -> dict[str, str]:
        """Return Paddle's names of the moments, which differ between processes, by names that do not."""
        return {
            f"{name}.{moment}": f"{parameter.name}_{moment}"
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }


def total_steps(settings: TrainingSettings, examples: int) -> int:
    """Return the number of optimizer steps of a training on so many examples."""
    batch = settings.batch_size * distributed.world_size()
    return settings.steps or math.ceil(settings.epochs * examples / batch)


def learning_rate(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Return the rate of a step, from 0: it grows linearly, then decays linearly towards 0 or stays."""
    warm_up = round(settings.warmup_ratio * total_steps)
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    if settings.decay == "constant":
        return settings.learning_rate
    return settings.learning_rate * (total_steps - step) / max(1, total_steps - warm_up)


def _make(networks: Mapping[str, nn.Layer], settings: OptimizerSettings, rates: Mapping[str, float]) -> Rule:
    """Make the rule of the steps, without weight decay on biases and layer norms."""
    layers = [layer for network in networks.values() for layer in network.sublayers(include_self=True)]
    decayed = {layer.weight.name for layer in layers if isinstance(layer, nn.Linear | nn.Embedding)}
    groups = [
        {"params": network.parameters(), "learning_rate": rates.get(name, 1.0)}
        for name, network in networks.items()
    ]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.algorithm == "lamb":
        stays = {"exclude_from_weight_decay_fn": lambda parameter: parameter.name not in decayed}
        return PaddleRule(paddle.optimizer.Lamb(rate, decay, parameters=groups, **stays), groups)
    if all(fused.computes(parameter) for group in groups for parameter in group["params"]):
        embeddings = {layer.weight.name for layer in layers if isinstance(layer, nn.Embedding)}
        return AdamW(groups, decay, decayed, embeddings)
    decays = {"weight_decay": decay, "apply_decay_param_fun": decayed.__contains__}
    return PaddleRule(paddle.optimizer.AdamW(rate, parameters=groups, **decays), groups)
