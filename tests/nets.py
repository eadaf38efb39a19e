"""Small networks, and a trainer of them that takes its steps in a moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from rocketqa_paddle.settings import OptimizerSettings, TrainingSettings
from rocketqa_paddle.training.log import MetricsLog
from rocketqa_paddle.training.trainer import Trainer

HIDDEN = 6
Nets = Mapping[str, nn.Layer]
Example = tuple[list[int], float]
Loss = Callable[[Sequence[Example]], dict[str, Tensor]]


class Net(nn.Layer):
    """Embedding, layer norm, dropout and linear: one of each that the optimizer treats in its own way."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(HIDDEN, 1)

    def forward(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        states = self.embedding(paddle.to_tensor(np.array(tokens)))
        return self.output(self.dropout(self.norm(states).mean(axis=1)))[:, 0]


def make_nets(dropout: float = 0.0, names: Sequence[str] = ("one", "two")) -> dict[str, Net]:
    paddle.seed(3)
    return {name: Net(dropout) for name in names}


def examples(count: int = 30) -> list[Example]:
    generator = np.random.default_rng(5)
    return [(generator.integers(0, 20, 4).tolist(), float(generator.normal())) for _ in range(count)]


def squared(nets: Nets) -> Loss:
    """Mean square error of the nets' sum, and half of it as a second value to log."""

    def loss(batch: Sequence[Example]) -> dict[str, Tensor]:
        tokens, targets = zip(*batch, strict=True)
        scores = paddle.stack([net(list(tokens)) for net in nets.values()])
        error = F.mse_loss(scores.sum(axis=0), paddle.to_tensor(np.array(targets, dtype=np.float32)))
        return {"loss": error, "half": error / 2}

    return loss


def make_trainer(
    folder: Path, nets: Nets, loss: Any = None, data: Any = None, *, name: str = "training", **options: Any
) -> Trainer:
    """Nine steps of four examples. `optimizer` and `size` change fields of the settings."""
    optimizer = OptimizerSettings(**{"learning_rate": 1e-2, **options.pop("optimizer", {})})
    size = {"batch_size": 4, "steps": 9, **options.pop("size", {})}
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        name,
        nets,
        examples() if data is None else data,
        loss or squared(nets),
        TrainingSettings(optimizer=optimizer, **size),
        folder=folder / "last",
        log=MetricsLog(folder / "metrics.jsonl"),
        **options,
    )


def at_call(loss: Loss, number: int, action: Callable[[], object]) -> Loss:
    """The loss, with something that happens in its call `number` (counted from 1)."""
    calls = []

    def acting(batch: Sequence[Example]) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == number:
            action()
        return loss(batch)

    return acting


def stopping(loss: Loss, at: int, number: int = signal.SIGTERM) -> Loss:
    """The loss, with a request to stop in its call `at`."""
    return at_call(loss, at, lambda: os.kill(os.getpid(), number))


def failing(loss: Loss, at: int) -> Loss:
    """The loss, with an error in its call `at`, as if the process were killed there."""

    def fail() -> None:
        raise MemoryError

    return at_call(loss, at, fail)


def arrays(nets: Nets) -> dict[str, np.ndarray]:
    return {
        f"{name}.{key}": parameter.numpy().copy()
        for name, net in nets.items()
        for key, parameter in net.named_parameters()
    }


def assert_same(
    given: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], **tolerance: float
) -> None:
    """Equal to the bit unless there is a tolerance."""
    assert given.keys() == expected.keys()
    for name in given:
        if tolerance:
            np.testing.assert_allclose(given[name], expected[name], err_msg=name, **tolerance)
        else:
            assert np.array_equal(given[name], expected[name]), name
