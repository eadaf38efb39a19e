"""What a run folder remembers of every step, in `STEP/step.json`: its artefacts and what each was made of."""

from pathlib import Path
from typing import Any, TypedDict

from rocketqa_paddle import checkpoints
from rocketqa_paddle.data.candidates import queries_file
from rocketqa_paddle.data.runs import HITS
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import EXPORT, Stored, StoredRun, TrainedModel, changes
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.folders import remove
from rocketqa_paddle.runtime.storage import write_json
from rocketqa_paddle.runtime.typed import read_typed

RECORD = "step.json"


class Made(TypedDict):
    """What every artefact is known by: the values that it was made of, and by how many processes."""

    made_of: dict[str, Any]
    processes: int


class Record(Made, total=False):
    """What is known of an artefact."""

    digest: str
    """The digest of a model."""
    content: str
    """The fingerprint of the file of a run."""
    judged: str
    """Stands for the judgements and measures of `measures`."""
    measures: dict[str, float]
    """The means on dev."""
    collapse: dict[str, str]
    """What is wrong with the model of a run, and what it was compared with; see `collapse.CollapseCheck`."""


class Ledger:
    """The records of a run folder, read once and kept in memory by every rank; rank 0 writes them.

    An artefact counts as kept if its record says that it was made of the same values and its files are there.
    While it is made, its record is empty: a crash leaves none that speaks of other files, and no file that
    is not known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._steps: dict[str, dict[str, Any | None]] = {}
        self._there: dict[str, bool] = {}
        self._wanted: set[str] = set()

    def record(self, artefact: Stored) -> dict[str, Any]:
        """The record of an artefact, empty if there is none.

        Raises:
            ValueError: the step's folder has files but no records, so it is not ours, or damaged records.
        """
        return self._step(artefact.step).get(artefact.piece) or {}

    def keeps(self, artefact: Stored) -> bool:
        """Whether the artefact lies in the folder, made of the same values."""
        return bool(self.record(artefact)) and not self.reasons(artefact)

    def reasons(self, artefact: Stored) -> list[str]:
        """Tell why an artefact that was made before is to be made again."""
        record = self.record(artefact)
        if record and not self._is_there(artefact):
            return [f"{artefact.name} is not there"]
        return changes(record["made_of"], artefact.made_of) if record else []

    def lose(self, artefact: Stored) -> None:
        """Take an artefact for one that is not there."""
        self._there[artefact.name] = False

    def trust(self, artefact: Stored) -> None:
        """Take an artefact as it is, whatever it was made of.

        Raises:
            ValueError: it is not there.
        """
        record = self.record(artefact)
        if not record or not self._is_there(artefact):
            raise ValueError(f"{self.folder}: step {artefact.step} is not finished: leave out --from-stage")
        artefact.made_of = record["made_of"]

    def check_place(self, artefact: Stored) -> None:
        """Refuse to make an artefact where something lies that we did not write.

        Raises:
            ValueError: names what would be lost.
        """
        path = self.folder / artefact.place
        if isinstance(artefact, TrainedModel):
            checkpoints.CONTENTS.check(path)
        elif path.is_dir():
            raise ValueError(f"{path} is a folder, but a file is to be written there: move it away")

    def forget(self, artefact: Stored) -> None:
        """Empty the record of an artefact, then drop its files: it is about to be made."""
        self._step(artefact.step)[artefact.piece] = None
        self._write(artefact.step)  # also the first time, so that the folder is known to be ours
        self._there[artefact.name] = False
        if distributed.is_main():
            path = self.folder / artefact.place
            if isinstance(artefact, TrainedModel):
                remove(path, checkpoints.CONTENTS)
            else:
                _unlink(path)
        distributed.barrier()

    def keep(self, artefact: Stored, **facts: Any) -> None:
        """Note that an artefact's files are written, how many processes made it, and more about it."""
        made = {"made_of": artefact.made_of, "processes": distributed.world_size()}
        self._step(artefact.step)[artefact.piece] = {**made, **facts}
        self._there[artefact.name] = True
        self._write(artefact.step)

    def want(self, run: StoredRun) -> None:
        """Note that a walk has named a run, so that `drop_others` spares it."""
        self._wanted.add(run.name)

    def drop_others(self) -> None:
        """Remove the runs in the folders of these steps that no walk has named.

        A retriever that was the best one before has left them, or settings that have changed.
        """
        models = {kind.value for kind in Model}
        for step, pieces in self._steps.items():
            others = [p for p in pieces if p not in models and f"{step}/{p}" not in self._wanted]
            for piece in others:
                if distributed.is_main():  # the file first: without its record, nobody would know it
                    _unlink(self.folder / step / f"{piece}{HITS}")
                del pieces[piece]
            if others:
                self._write(step)

    def note(self, artefact: Stored, **facts: Any) -> None:
        """Add something that was found out about an artefact, such as measures, to its record."""
        self._step(artefact.step)[artefact.piece].update(facts)
        self._write(artefact.step)

    def _is_there(self, artefact: Stored) -> bool:
        if artefact.name not in self._there:
            self._there[artefact.name] = all((self.folder / file).is_file() for file in artefact.files)
        return self._there[artefact.name]

    def _step(self, step: str) -> dict[str, Any]:
        if step not in self._steps:
            folder, path = self.folder / step, self.folder / step / RECORD
            has_files = folder.is_dir() and any(file.name[0] != "." for file in folder.iterdir())
            if not path.is_file() and (has_files or folder.is_file()):
                raise ValueError(f"{folder} is not a step's (it has no {RECORD}): choose another --output")
            remedy = f"remove {folder}, and the step is done again"
            self._steps[step] = read_typed(path, dict[str, Record | None], remedy) if path.is_file() else {}
        return self._steps[step]

    def _write(self, step: str) -> None:
        if distributed.is_main():
            (self.folder / step).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / step / RECORD, self._steps[step])
        distributed.barrier()


def _unlink(run: Path) -> None:
    """Remove the files of a run and its copy for people."""
    for path in (run, queries_file(run), run.with_name(run.name.removesuffix(HITS) + EXPORT)):
        path.unlink(missing_ok=True)
