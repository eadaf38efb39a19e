"""What both sides of `duel.py` do when they are ready: run a round for every line that they read."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def answer(versions: str, run: Callable[[], dict[str, Any]]) -> None:
    """Tell the versions, then the seconds and the result of every round, a JSON object a line."""
    print(json.dumps({"versions": versions}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        told = run()
        print(json.dumps({"seconds": time.perf_counter() - begun, **told}), flush=True)
