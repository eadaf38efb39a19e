"""The log of a run: a file of losses and measures, one JSON object a line, and event files that mirror it."""

import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypedDict

from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.storage import write_text
from rocketqa_paddle.runtime.typed import parse_typed, typed
from rocketqa_paddle.training.events import EventFiles

Line = dict[str, Any]
LOG = "metrics.jsonl"


class _Always(TypedDict):
    time: float
    stage: str


class _Line(_Always, total=False):
    step: int
    loss: float | None


class MetricsLog:
    """Writes and reads `metrics.jsonl`. Only rank 0 writes, so losses are those of its part of the batch.

    Every line gets the values of `always`, such as those that identify a training.
    """

    def __init__(self, path: str | Path, **always: Any) -> None:
        self.path, self.always = Path(path), always
        self._events: EventFiles | None = None

    def mirror(self, events: EventFiles) -> None:
        """Keep event files that say what the log says: the lines that it has, and those that will come.

        Raises:
            ValueError: a line is none of ours, or the folder of the event files holds anything else.
        """
        if distributed.is_main():
            self._events = events
            events.rewrite(self.read())

    def write(self, **values: Any) -> None:
        """Add a line with the time and some values. NaN and infinity are written as null."""
        if not distributed.is_main():
            return
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(self.read())
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = {"time": round(time.time(), 1), **self.always, **finite}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._events:
            self._events.add(line)

    def read(self) -> list[Line]:
        """Read all lines; a last one that a crash cut off is left out.

        Raises:
            ValueError: a line is none of ours; names it.
        """
        if not self.path.is_file():
            return []
        *lines, last = self.path.read_bytes().split(b"\n")
        if last.endswith(b"}"):  # whole: an editor left out the line end
            lines.append(last)
        return [self._parsed(number, line) for number, line in enumerate(lines, 1)]

    def _parsed(self, number: int, line: bytes) -> Line:
        place = f"{self.path}:{number}"
        try:
            parsed = parse_typed(line.decode("utf-8", errors="replace"), _Line, place)
            measures = {name: value for name, value in parsed.items() if name.startswith("dev/")}
            typed(measures, dict[str, float | None], place)
            if not parsed["stage"].strip() or ("loss" in parsed and "step" not in parsed):
                raise ValueError(f"{place}: a line without its stage or step")
        except ValueError as error:
            raise ValueError(f"{error}: remove this line") from None
        return parsed

    def rewind(self, name: str, step: int) -> None:
        """Remove what the training `name` logged after `step`: those steps will be taken again."""
        training = {"stage": name, **self.always}.items()
        self._drop(lambda line: training <= line.items() and line.get("step", 0) > step)

    def forget(self, name: str, keys: Collection[str]) -> None:
        """Remove the lines of `name` that have one of these keys: their values will be measured again."""
        self._drop(lambda line: line["stage"] == name and not line.keys().isdisjoint(keys))

    def _drop(self, unwanted: Callable[[Line], bool]) -> None:
        if not distributed.is_main() or not self.path.is_file():
            return
        lines = self.read()
        kept = [line for line in lines if not unwanted(line)]
        if len(kept) < len(lines):
            self._rewrite(kept)

    def _rewrite(self, lines: Sequence[Line]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        if self._events:
            self._events.rewrite(lines)
