"""A run as a sequence of stages: which are to be done, what decides each, and what they start from."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import paddle
import yaml

from rocketqa_paddle.checkpoints import initial
from rocketqa_paddle.checkpoints.folder import CHECKPOINT_FILES
from rocketqa_paddle.data import dataset
from rocketqa_paddle.data.dataset import digest_records, digest_split
from rocketqa_paddle.networks.encoders import Checkpoint, describe
from rocketqa_paddle.records import Query, Split
from rocketqa_paddle.runs import plan
from rocketqa_paddle.runs.stages import (
    AGAIN,
    ALL,
    CORPUS,
    RERANK_DEPTH,
    Ledger,
    Selection,
    Stage,
    State,
    Work,
)
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.storage import locked, write_text
from rocketqa_paddle.settings import RunSettings
from rocketqa_paddle.training.trainer import MetricsLog

QuerySets = Mapping[str, tuple[Mapping[str, Query], int]]
"""Queries by the name of their set, and how many passages to retrieve for each."""

# Settings that change how a run is computed, not what comes out; start weights are named by their digest.
_MAY_CHANGE = {
    "retriever.start",
    "reranker.start",
    "retriever.recompute",
    "reranker.recompute",
    "step1.start",
    "teacher_retriever.start",
    "joint.first_query",  # a round is told by the queries it deals out
    "adversarial.first_query",
}


class StagedRun:
    """A run, its folder and its data.

    Args:
        settings: read here for data, start weights and evaluation.

    Raises:
        ValueError: the data do not hold together.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.folder = settings, Path(settings.output)
        self._data = dataset.load(settings.data)
        self.notes = list(self._data.notes)
        """What to tell before the work begins."""
        self.passages, self.train_split = self._data.passages, self._data.train
        self.unlabelled = self._data.unlabelled
        self.log = MetricsLog(self.folder / "metrics.jsonl")
        self.ledger = Ledger(self.folder)
        self._stages: Sequence[Stage] = []
        self._done: set[str] = set()
        self._starts: dict[str, initial.Start] = {}
        self._start_digests: dict[str, str] = {}
        self._corpus_digest = digest_records(self.passages.values())
        self._vocabulary = self.folder / "vocabulary" / self._corpus_digest  # of networks from scratch

    def split(self, name: str) -> Split:
        """Queries and judgements that a dev or test split is measured by."""
        return self._data.evaluated[name]

    def share_data(self, other: StagedRun) -> None:
        """Let go of the data and start weights that were read, for another run's copy of the same data."""
        self._starts.clear()
        self._data, self.passages = other._data, other.passages
        self.train_split, self.unlabelled = other.train_split, other.unlabelled

    @property
    def done(self) -> dict[str, Stage]:
        """The stages that are done, by name, in order."""
        return {stage.name: stage for stage in self._stages if stage.name in self._done}

    def say(self, text: str) -> None:
        """Tell the user, once for all ranks."""
        if distributed.is_main():
            print(text, flush=True)

    def forget_best(self, stage: str) -> None:
        """Called on rank 0 before a stage is done: what its models were the best of is no more."""

    def stage_done(self, stage: Stage) -> None:
        """Called after every stage, also where it was finished before."""

    # Stages -------------------------------------------------------------------------------------

    def run(self, stages: Sequence[Stage], complete: Callable[[], None], selection: Selection = ALL) -> None:
        """Do the stages that are not finished, each once, then `complete`.

        A stage is done again where its settings or inputs have changed, and is said to be.

        Raises:
            ValueError: the selection names a stage that there is not, or skips one that is not finished.
        """
        names = [stage.name for stage in stages]
        selection.check(names)
        trusted, wanted = selection.split(names)
        check_folder(self.folder, self.settings)
        states = self._states(stages, trusted)
        for note in self.notes:
            self.say(note)
        if selection.dry_run:
            self._tell_plan(stages, {name: states[name] for name in (*trusted, *wanted)})
            return
        with claimed(self.folder, self.settings):
            self._stages = stages
            self._done = {name for name, state in states.items() if state.status == "finished"}
            if not self._done.issuperset(wanted):
                self.start_retriever(), self.start_reranker()  # raises now, not after days, if one cannot be
            for stage in stages:
                if stage.name in (*trusted, *wanted):
                    self._do(stage, states[stage.name])
            if wanted[-1] == names[-1]:
                complete()
            else:
                self.say(f"ended after {wanted[-1]}, as asked; leave out --until-stage to go on")

    def _states(self, stages: Sequence[Stage], trusted: Sequence[str]) -> dict[str, State]:
        """What the folder says of the stages; raises if some cannot be trusted, or done."""
        states: dict[str, State] = {}
        for stage in stages:
            before = {name: state.digest for name, state in states.items()}
            trust = stage.name in trusted
            states[stage.name] = self.ledger.trusted(stage) if trust else self.ledger.state(stage, before)
        return states

    def _do(self, stage: Stage, state: State) -> None:
        """Do a stage, or what is missing of it."""
        processes = distributed.world_size()
        if state.status == "finished":
            self.say(f"{stage.name}: finished before")
            if state.processes != processes:
                self.say(
                    f"{stage.name}: it was done by {state.processes} processes, now there are {processes}: a "
                    "step has another number of queries"
                )
        else:
            for change in state.changes.values():
                self.say(f"{stage.name}: {AGAIN[state.status]}: {change}")
            distributed.barrier()  # every rank has read the record
            if distributed.is_main():
                self._clear(stage, state)
            distributed.barrier()
            stage.run()
        self._done.add(stage.name)
        self.stage_done(stage)
        if state.status != "finished":
            if distributed.is_main():
                self.ledger.finish(stage, state, processes)
            distributed.barrier()

    def _clear(self, stage: Stage, state: State) -> None:
        """Rank 0: drop what a stage left that was made with other settings."""
        if state.status in ("changed", "search again"):
            self.log.forget(stage.name, only_measures=state.status == "search again")
        if state.status == "changed":
            shutil.rmtree(self.folder / "last", ignore_errors=True)
        if state.changes.keys() != {RERANK_DEPTH}:
            self.forget_best(stage.name)
        for path in (self.folder / "best").glob("*.tsv"):
            path.unlink()
        (self.folder / "report.md").unlink(missing_ok=True)
        self.ledger.begin(stage, state, distributed.world_size())

    def _tell_plan(self, stages: Sequence[Stage], states: Mapping[str, State]) -> None:
        """Tell what would be done; nothing is written."""
        with tempfile.TemporaryDirectory() as vocabulary:
            self._vocabulary = Path(vocabulary)
            models = {"retriever": self.start_retriever(), "reranker": self.start_reranker()}
            queries = list(self.train_split.queries.values())
            speed = plan.measure(*models.values(), list(self.passages.values()), queries)
        self.say(plan.table(stages, states, speed, models, self.passages.values()))

    def stage(
        self,
        name: str,
        title: str,
        run: Callable[[], None],
        *,
        sections: Sequence[str],
        after: Sequence[str] = (),
        work: Work,
        searches: QuerySets | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> Stage:
        """A stage of this run, with what decides its outcome.

        Args:
            name: names its folder.
            title: what tables call it.
            run: does it.
            sections: settings that it reads, beside data, seed and precision.
            after: the stages whose results it reads.
            work: of its training.
            searches: query sets that its retriever searches for, beside dev and tests; None if it has none.
            also: more that decides its outcome.
        """
        s = self.settings
        evaluated = {n: (self.split(n).queries, s.evaluation.depth) for n in [s.data.dev, *s.data.tests]}
        more = searches or {}
        if clash := evaluated.keys() & more.keys():
            raise ValueError(
                f"a split must not be called {min(clash)!r}, as a query set of {name}: rename it"
            )
        facts: dict[str, Any] = {CORPUS: self._corpus_digest}
        facts |= self._evaluated_digests
        facts |= {"evaluation.depth": s.evaluation.depth, RERANK_DEPTH: s.evaluation.rerank_depth}
        facts |= {f"{n} queries": digest_records(queries.values()) for n, (queries, _) in more.items()}
        facts |= {f"depth of {n}": depth for n, (_, depth) in more.items()}
        pieces = [f"{model}/{file}" for model in work.models for file in CHECKPOINT_FILES]
        if "reranker" in work.models:
            pieces.append("reranked.dev.tsv")
            work += Work(scored=len(self.split(s.data.dev).queries) * s.evaluation.rerank_depth)
        if searches is not None:
            sets = {**evaluated, **more}
            pieces += [f"hits.{n}.tsv" for n in sets]
            work += Work(
                encoded=len(self.passages) + sum(len(queries) for queries, _ in sets.values()),
                hits=sum(len(queries) * depth for queries, depth in sets.values()),
            )
        decisive = self._facts(sections) | dict(also or {})
        return Stage(name, title, run, decisive, after, facts, pieces, work)

    @cached_property
    def _labelled_digest(self) -> str:
        return digest_split(self.train_split)

    @cached_property
    def _evaluated_digests(self) -> dict[str, str]:
        return {f"{name} queries": digest_split(split) for name, split in self._data.evaluated.items()}

    @cached_property
    def unlabelled_facts(self) -> dict[str, str]:
        """For `also` of a stage that trains on unlabelled queries."""
        return {"unlabelled queries": digest_split(self.unlabelled)}

    def _facts(self, sections: Sequence[str]) -> dict[str, Any]:
        settings = self.settings
        facts: dict[str, Any] = {
            "seed": settings.seed,
            "precision": settings.precision,
            "corpus": self._corpus_digest,
            "labelled queries": self._labelled_digest,
        }
        for key, value in _flat(dataclasses.asdict(settings)).items():
            if key not in _MAY_CHANGE and any(key == s or key.startswith(f"{s}.") for s in sections):
                facts[key] = value
        for model in {"retriever", "reranker"} & set(sections):
            facts[f"{model}'s start weights"] = self.start_digest(getattr(settings, model).start)
        return facts

    def start_digest(self, start: str) -> str:
        """Names start weights by what they are."""
        if start in initial.SIZES:
            return f"{start}, vocabulary of {self._corpus_digest}"
        if start not in self._start_digests:
            self._start_digests[start] = initial.digest(self._read_start(start))
        return self._start_digests[start]

    # Networks -----------------------------------------------------------------------------------

    def start_retriever(self, start: str | None = None) -> Checkpoint:
        """The dual encoder before any training, from the run's start weights or others."""
        s = self.settings.retriever
        return initial.start_retriever(
            self._read_start(start or s.start),
            s.query_length,
            s.passage_length,
            for_cn=s.for_cn,
            shared=s.shared,
            pooling=s.pooling,
            normalize=s.normalize,
            temperature=s.temperature,
            dropout=s.dropout,
            use_recompute=s.recompute,
        )

    def check_as_it_is(self, start: str, setting: str) -> None:
        """Refuse a finished retriever that the run's settings would turn into another.

        Raises:
            ValueError: tells what differs.
        """
        theirs = None if start in initial.SIZES else self._read_start(start)
        if not isinstance(theirs, Checkpoint):
            return
        ours = self.start_retriever(start)
        expected, given = ({**describe(c.network), **c.lengths} for c in (ours, theirs))
        differ = [
            f"{key} {given.get(key)}, not {value}"
            for key, value in expected.items()
            if given.get(key) != value
        ]
        if differ:
            raise ValueError(
                f"{setting}: {start} is to serve as it is, but has {'; '.join(differ)}: change the settings "
                "of retriever, or train it further (queries)"
            )

    def start_reranker(self) -> Checkpoint:
        """The cross encoder before any training."""
        s = self.settings.reranker
        return initial.start_reranker(
            self._read_start(s.start),
            s.length,
            for_cn=s.for_cn,
            head=s.head,
            dropout=s.dropout,
            use_recompute=s.recompute,
        )

    def _read_start(self, start: str) -> initial.Start:
        corpus = (f"{passage.title} {passage.text}" for passage in self.passages.values())
        if start not in self._starts:
            with distributed.main_first():
                self._starts[start] = initial.read_start(start, corpus, self._vocabulary)
        paddle.seed(self.settings.seed)
        return self._starts[start]


def check_folder(folder: Path, settings: RunSettings) -> None:
    """Refuse a folder with a run of another system, or with anything else."""
    path = folder / "config.yaml"
    if folder.is_file():
        raise ValueError(f"{folder} is a file: choose another --output")
    if not path.is_file():
        if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise ValueError(f"{folder} holds other files (and no config.yaml): choose another --output")
        return
    try:
        theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from None
    if not isinstance(theirs, dict):
        raise ValueError(f"{path}: expected the settings of a run")
    if differ := theirs.keys() ^ dataclasses.asdict(settings).keys():
        raise ValueError(
            f"{path}: a run of another system, or version, began this folder (it differs in "
            f"{', '.join(sorted(differ))}): choose another --output"
        )


@contextmanager
def claimed(folder: Path, settings: RunSettings) -> Iterator[None]:
    """The folder, for this run alone, with its settings in `config.yaml`.

    What has changed in them, the stages' records tell.

    Raises:
        ValueError: another run is at work in it.
    """
    distributed.barrier()  # every rank has read the old settings
    with ExitStack() as stack:
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock"))
            text = yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False)
            write_text(folder / "config.yaml", text)
        distributed.barrier()
        yield


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
