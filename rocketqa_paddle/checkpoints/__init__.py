"""Models on disk: found, read and written."""

from rocketqa_paddle.checkpoints.folder import (
    CHECKPOINT_FILES,
    CONFIG,
    is_checkpoint,
    load,
    save,
    set_in_card,
)

__all__ = ["CHECKPOINT_FILES", "CONFIG", "is_checkpoint", "load", "save", "set_in_card"]
