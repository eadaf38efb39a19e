"""Workers in several processes, started as users start them."""

from __future__ import annotations

import sys
from pathlib import Path

import toy

TIMEOUT = 120  # seconds; the launcher would wait for a hanging rank for ever


def launch(worker: str, ranks: int, folder: Path) -> Path:
    """Run `tests/WORKER FOLDER` in so many processes, and return the folder."""
    command = (sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks))
    script = toy.ROOT / "tests" / worker
    done = toy.run(*command, "--log_dir", folder / "log", script, folder, cwd=folder, timeout=TIMEOUT)
    logs = [path.read_text()[-3000:] for path in sorted((folder / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(logs)
    return folder
