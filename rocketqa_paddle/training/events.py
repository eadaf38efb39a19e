"""Event files: the numbers of a run's log, for TensorBoard or VisualDL to draw while the run is at work."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rocketqa_paddle.runtime.folders import Contents, remove
from rocketqa_paddle.runtime.storage import write_json

Viewer = Literal["tensorboard", "visualdl"]
MARKER = "events.json"
CONTENTS = Contents(
    "folder of event files",
    names=(MARKER, "events.out.tfevents.*", "vdlrecords.*"),
    markers=(MARKER,),
    is_ours=lambda values: {"viewer", "written_from"} <= values.keys(),
)
_NO_CURVES = ("time", "stage", "step")


class Scalar(NamedTuple):
    """A point of a curve."""

    tag: str
    value: float
    step: int
    time: float


class Scalars:
    """The points that lines of a log stand for, in their order.

    Values of a training have the tag `STAGE/NAME` and its own steps. Measures on dev have the tag that they
    have in the log, `dev/MODEL/MEASURE`, and the optimizer steps of all trainings before them.
    """

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def of(self, line: Mapping[str, Any]) -> Iterator[Scalar]:
        """The points of the next line; what is not a number, or not finite, gives none."""
        if step := line.get("step"):
            self._taken[line["stage"]] = step
        for name, value in line.items():
            if name in _NO_CURVES or not isinstance(value, int | float):
                continue
            if step is None:
                yield Scalar(name, value, sum(self._taken.values()), line["time"])
            else:
                yield Scalar(f"{line['stage']}/{name}", value, step, line["time"])


class EventFiles:
    """A folder with one event file, which is made anew of the whole log whenever lines of that were removed.

    So a training that goes on after a stop has one curve, and the log stays the only source. A folder with
    anything that we did not write is refused.
    """

    def __init__(self, folder: Path, viewer: Viewer) -> None:
        self.folder, self.viewer = folder, viewer
        self._writer: _TensorBoard | _VisualDL | None = None

    def rewrite(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the file anew.

        Raises:
            ValueError: the folder holds something that we did not write.
        """
        if self._writer:
            self._writer.close()
        remove(self.folder, CONTENTS)
        self.folder.mkdir(parents=True)
        write_json(self.folder / MARKER, {"viewer": self.viewer, "written_from": "metrics.jsonl"})
        self._scalars, self._writer = Scalars(), _WRITERS[self.viewer](self.folder)
        self._writer.write(scalar for line in lines for scalar in self._scalars.of(line))

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line that the log has got, to files that were begun. It is on the disk at once."""
        assert self._writer, "not begun"
        self._writer.write(self._scalars.of(line))


class _TensorBoard:
    """Writes an event file in this thread; tensorboardX's `SummaryWriter` has a thread, and renames tags."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._file = EventsWriter(str(folder / "events"))

    def write(self, scalars: Iterable[Scalar]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        for tag, value, step, time in scalars:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            self._file.write_event(Event(wall_time=time, step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _VisualDL:
    """Writes a log of VisualDL, which shows one file a folder."""

    def __init__(self, folder: Path) -> None:
        from visualdl import LogWriter

        self._log = LogWriter(str(folder), file_name="vdlrecords.log")

    def write(self, scalars: Iterable[Scalar]) -> None:
        for tag, value, step, time in scalars:
            self._log.add_scalar(tag, value, step, walltime=round(1000 * time))
        self._log.flush()

    def close(self) -> None:
        self._log.close()


_WRITERS: dict[Viewer, type[_TensorBoard] | type[_VisualDL]] = {
    "tensorboard": _TensorBoard,
    "visualdl": _VisualDL,
}
