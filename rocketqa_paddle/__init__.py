"""Dense passage retrieval and re-ranking on PaddlePaddle: RocketQA, PAIR, RocketQAv2 and AR2.

Importing this package is cheap and changes nothing: Paddle is imported when a model is loaded, or when
`SearchEngine` or `losses` is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rocketqa_paddle.runtime import device

if TYPE_CHECKING:
    from pathlib import Path

    from rocketqa_paddle.search.engine import SearchEngine
    from rocketqa_paddle.toolkit import CrossModel, DualModel

__version__ = "0.2.0.dev0"
__all__ = ["SearchEngine", "__version__", "available_models", "load_model"]


def available_models() -> list[str]:
    """Return the names of the published models, for `load_model`. `rocketqa models` tells more of them."""
    from rocketqa_paddle.checkpoints import published

    return published.available_models()


def load_model(
    model: str | Path, use_cuda: bool = False, device_id: int = 0, batch_size: int = 1
) -> DualModel | CrossModel:
    """Load a model by name, file or folder. See `rocketqa_paddle.toolkit.load_model`."""
    device.import_paddle()
    from rocketqa_paddle import toolkit

    return toolkit.load_model(model, use_cuda=use_cuda, device_id=device_id, batch_size=batch_size)


def __getattr__(name: str) -> Any:
    """Import what needs Paddle when it is first used (PEP 562)."""
    if name not in ("SearchEngine", "losses"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    device.import_paddle()
    if name == "losses":
        return import_module("rocketqa_paddle.losses")
    return import_module("rocketqa_paddle.search.engine").SearchEngine
