"""The factor of the loss that keeps small gradients from vanishing in fp16."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LossScale:
    """Dynamic loss scaling (Micikevicius et al., ICLR 2018, section 3.2), as Paddle's `GradScaler` does it.

    That one fails where it lowers its scale (Paddle 3.3 with NumPy 2.4), and works on a GPU alone.

    Args:
        value: the factor, a power of two, so that it costs no digits.
        steps: how many in a row were finite since it changed.
        patience: how many it takes to double it.
    """

    value: float = 2.0**16
    steps: int = 0
    patience: int = 2000

    def update(self, *, finite: bool) -> None:
        """Halve after a step whose gradient is not finite, double after `patience` finite ones in a row."""
        self.steps = self.steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.steps == self.patience:
            self.value, self.steps = 2 * self.value, 0
