"""Models on disk: found, read and written."""

from rocketqa_paddle.checkpoints.folder import (
    CHECKPOINT_FILES,
    CONFIG,
    CONTENTS,
    is_checkpoint,
    is_whole,
    load,
    save,
    set_in_card,
    write,
)

__all__ = [
    "CHECKPOINT_FILES",
    "CONFIG",
    "CONTENTS",
    "is_checkpoint",
    "is_whole",
    "load",
    "save",
    "set_in_card",
    "write",
]
