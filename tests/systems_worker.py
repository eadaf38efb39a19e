"""What `test_four_processes.py` runs in each of four processes: one command of `rocketqa` after another.

    python systems_worker.py FILE ...

A FILE holds settings; its name says what reads them: `train-ar2.yaml`, `compare.yaml`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rocketqa_paddle.commands import cli

if __name__ == "__main__":
    for file in sys.argv[1:]:
        cli.main([*Path(file).stem.split("-"), "--config", file])
