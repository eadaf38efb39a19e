"""The stages of a run, and what the run folder remembers of them: `STAGE/stage.json`.

A stage is done again when what decides its outcome has changed, and only then.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rocketqa_paddle.runtime.storage import read_json, write_text

_DIGEST = re.compile(r"[0-9a-f]{16}\b")

RERANK_DEPTH = "evaluation.rerank_depth"
"""The one setting of searches that leaves what retrievers found as it is."""
CORPUS = "corpus"
"""The one input of searches on which a re-ranker's scores hang."""

Facts = Mapping[str, Any]
"""Settings under dotted names, and digests of what was read."""


@dataclass(frozen=True)
class Work:
    """How much a stage is likely to compute and to write."""

    models: Sequence[str] = ()
    """What it trains: `retriever`, `reranker`."""
    steps: int = 0
    """Optimizer steps."""
    trained_texts: int = 0
    """Passages and queries encoded with gradient."""
    trained_pairs: int = 0
    """Pairs scored with gradient."""
    encoded: int = 0
    """Passages and queries encoded without."""
    scored: int = 0
    """Pairs scored without."""
    hits: int = 0
    """Lines of runs that are kept."""
    optimizers: Sequence[str] = ()
    """Models whose optimizer's state is kept until the next stage has gone on from it."""

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Stage:
    """One stretch of a run, with a folder of its own.

    Args:
        name: names its folder.
        title: what tables call it.
        run: does it. Called again after a stop, it goes on from the pieces in the folder.
        decisive: what decides what is trained, beside the stages before.
        after: names of the earlier stages whose results it reads.
        searches: what decides what is retrieved and measured with the trained models.
        pieces: files that it leaves in its folder, beside others.
        work: an estimate.
    """

    name: str
    title: str
    run: Callable[[], None]
    decisive: Facts
    after: Sequence[str] = ()
    searches: Facts = field(default_factory=dict)
    pieces: Sequence[str] = ()
    work: Work = field(default_factory=Work)


@dataclass(frozen=True)
class Selection:
    """Which stages of a run to do."""

    from_stage: str | None = None
    """Begin here; the stages before are taken as they are."""
    until_stage: str | None = None
    """End after this one."""
    dry_run: bool = False
    """Only tell what would be done."""

    def check(self, names: Sequence[str]) -> None:
        """Refuse stages that the run does not have.

        Raises:
            ValueError: names those it has.
        """
        for flag, name in {"--from-stage": self.from_stage, "--until-stage": self.until_stage}.items():
            if name not in (None, *names):
                raise ValueError(f"{flag} {name}: this run's stages are {', '.join(names)}")
        _, wanted = self.split(names)
        if not wanted:
            raise ValueError(f"--from-stage {self.from_stage} comes after --until-stage {self.until_stage}")

    def split(self, names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """The stages that are taken as they are, and those to do."""
        first = names.index(self.from_stage) if self.from_stage else 0
        last = names.index(self.until_stage) if self.until_stage else len(names) - 1
        return names[:first], names[first : last + 1]


ALL = Selection()
"""Every stage."""

Status = Literal["new", "begun", "finished", "changed", "search again"]


AGAIN = {"changed": "done again", "search again": "searched and measured again", "begun": "made again"}
"""What is told of a stage, by its status."""


@dataclass(frozen=True)
class State:
    """What the folder says of a stage, seen from what it would be done with now."""

    status: Status
    decisive: Facts
    """What decides its outcome."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """What is different now: its name, and a sentence on it."""
    processes: int | None = None
    """How many processes did it."""

    @property
    def digest(self) -> str:
        """Names the outcome, for the stages that read it."""
        return digest(self.decisive)


class Ledger:
    """Reads and writes the stages' records.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self, stage: Stage, before: Mapping[str, str]) -> State:
        """Compare a stage with its record. `before`: digests of the stages it comes after.

        Raises:
            ValueError: its folder has files, but no record.
        """
        record, decisive = self._read(stage.name), _decisive(stage, before)
        if not record:
            folder = self.folder / stage.name
            if folder.is_file() or (folder.is_dir() and any(p.name[0] != "." for p in folder.iterdir())):
                raise ValueError(f"{folder} is not a stage's (it has no stage.json): choose another --output")
            return State("new", decisive)
        if changes := _changes(record["decisive"], decisive):
            return State("changed", decisive, changes)
        return self._measured(stage, record)

    def trusted(self, stage: Stage) -> State:
        """Take a stage as it is, whatever has decided it.

        Raises:
            ValueError: it is not trained.
        """
        record = self._read(stage.name)
        if not record.get("trained") or any("/" in piece for piece in self._missing(stage)):
            raise ValueError(f"{self.folder}: stage {stage.name} is not finished: leave out --from-stage")
        return self._measured(stage, record)

    def _measured(self, stage: Stage, record: Mapping[str, Any]) -> State:
        """The state of a stage whose training stands."""
        decisive, processes = record["decisive"], record["processes"]
        if changes := _changes(record["searches"], stage.searches):
            return State("search again", decisive, changes, processes)
        missing = self._missing(stage)
        if record["finished"] and missing:
            gone = {piece: f"{piece} is not there" for piece in missing}
            return State("begun", decisive, gone, processes)
        return State("finished" if record["finished"] else "begun", decisive, processes=processes)

    def _missing(self, stage: Stage) -> list[str]:
        return [piece for piece in stage.pieces if not (self.folder / stage.name / piece).is_file()]

    def begin(self, stage: Stage, state: State, processes: int) -> None:
        """Note what the stage is done with, and clear away what was made with anything else."""
        folder, trained = self.folder / stage.name, False
        if state.status == "changed":
            _remove(folder)
        elif state.status == "search again":
            trained = self._read(stage.name)["trained"]
            patterns = ["reranked.*.tsv"]
            patterns += [] if state.changes.keys() == {RERANK_DEPTH} else ["hits.*.tsv"]
            patterns += ["scored.*.tsv"] if CORPUS in state.changes else []
            for path in (path for pattern in patterns for path in folder.glob(pattern)):
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        self._write(stage, state, trained=trained, finished=False, processes=processes)

    def finish(self, stage: Stage, state: State, processes: int) -> None:
        """Note that the stage is done."""
        self._write(stage, state, trained=True, finished=True, processes=processes)

    def _write(self, stage: Stage, state: State, **progress: int) -> None:
        record = {"decisive": state.decisive, "searches": stage.searches, **progress}
        write_text(self._path(stage.name), json.dumps(record, indent=2) + "\n")

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        return read_json(path) if path.is_file() else {}

    def _path(self, name: str) -> Path:
        return self.folder / name / "stage.json"


def _remove(folder: Path) -> None:
    """Take the folder out of sight in one step, then delete it: a crash leaves no half of it behind."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def digest(facts: Facts) -> str:
    """16 hexadecimal digits that name some facts."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _decisive(stage: Stage, before: Mapping[str, str]) -> dict[str, Any]:
    facts = {**stage.decisive, **{f"stage {name}": before[name] for name in stage.after}}
    return json.loads(json.dumps(facts))  # as it will be read again


def _changes(theirs: Facts, ours: Facts) -> dict[str, str]:
    ours = json.loads(json.dumps(ours))
    return {
        name: _told(name, theirs.get(name), ours.get(name))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    }


def _told(name: str, theirs: Any, ours: Any) -> str:
    if any(isinstance(value, str) and _DIGEST.match(value) for value in (theirs, ours)):
        return f"{name} changed"
    was, now = ("not set" if value is None else value for value in (theirs, ours))
    return f"{name} was {was}, is {now}"
