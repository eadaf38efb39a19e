"""Models on disk: found, read and written."""

from rocketqa_paddle.checkpoints.folder import (
    CARD,
    CHECKPOINT_FILES,
    CONFIG,
    is_checkpoint,
    load,
    read_config,
    save,
    set_in_card,
    write,
)

__all__ = [
    "CARD",
    "CHECKPOINT_FILES",
    "CONFIG",
    "is_checkpoint",
    "load",
    "read_config",
    "save",
    "set_in_card",
    "write",
]
