"""What `test_distributed.py` runs in each of two processes: a command in whose middle rank 1 is killed.

    python lost_rank_worker.py FOLDER

Rank 0 writes the code with which its command ended into `FOLDER/code`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from rocketqa_paddle.commands import cli
from rocketqa_paddle.runtime import distributed


def die_together() -> None:
    """Let rank 0 wait for rank 1, which is dead."""
    distributed.init()
    distributed.barrier()
    if not distributed.is_main():
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


if __name__ == "__main__":
    end = os._exit

    def noted(code: int) -> None:
        Path(sys.argv[1], "code").write_text(str(code))
        end(code)

    os._exit = noted
    cli.COMMANDS["models"] = die_together
    cli.main(["models"])
