"""A run as a sequence of stages: which are to be done, what decides each, and what they start from."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
import yaml

from rocketqa_paddle import dataset, distributed, plan, starting
from rocketqa_paddle.checkpoints import Checkpoint
from rocketqa_paddle.config import RunSettings
from rocketqa_paddle.dataset import digest_records, digest_split
from rocketqa_paddle.records import Query, Split
from rocketqa_paddle.stages import ALL, RERANK_DEPTH, Ledger, Selection, Stage, State, Work
from rocketqa_paddle.storage import write_text
from rocketqa_paddle.trainer import MetricsLog

QuerySets = Mapping[str, tuple[Mapping[str, Query], int]]
"""Queries by the name of their set, and how many passages to retrieve for each."""

# Settings that change how a run is computed, not what comes out; start weights are named by their digest.
_MAY_CHANGE = {
    "retriever.start",
    "reranker.start",
    "retriever.recompute",
    "reranker.recompute",
    "joint.rounds",
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
        for note in self._data.notes:
            self.say(note)
        self.passages, self.train_split = self._data.passages, self._data.train
        self.unlabelled = self._data.unlabelled
        self.log = MetricsLog(self.folder / "metrics.jsonl")
        self.ledger = Ledger(self.folder)
        self.done: dict[str, Stage] = {}
        """The stages done so far, by name, in order."""
        self._starts: dict[str, starting.Start] = {}
        self._corpus_digest = digest_records(self.passages.values())
        self._vocabulary = self.folder / "vocabulary" / self._corpus_digest  # of networks from scratch

    def split(self, name: str) -> Split:
        """Queries and judgements that a dev or test split is measured by."""
        return self._data.evaluated[name]

    def say(self, text: str) -> None:
        """Tell the user, once for all ranks."""
        if distributed.is_main():
            print(text, flush=True)

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
        self._check_folder()
        if selection.dry_run:
            self._tell_plan(stages, self._states(stages, trusted, wanted))
            return
        self._claim_folder()
        self.start_retriever(), self.start_reranker()  # raises now, not after days, if one cannot be
        self._states(stages, trusted, wanted)
        digests: dict[str, str] = {}
        for stage in stages:
            if stage.name in (*trusted, *wanted):
                digests[stage.name] = self._do(stage, self._state(stage, stage.name in trusted, digests))
        if wanted[-1] == names[-1]:
            complete()
        else:
            self.say(f"ended after {wanted[-1]}, as asked; leave out --until-stage to go on")

    def _states(
        self, stages: Sequence[Stage], trusted: Sequence[str], wanted: Sequence[str]
    ) -> dict[str, State]:
        """What the folder says of the stages of a selection; raises if it cannot be done."""
        states: dict[str, State] = {}
        for stage in stages:
            if stage.name in (*trusted, *wanted):
                before = {name: state.digest for name, state in states.items()}
                states[stage.name] = self._state(stage, stage.name in trusted, before)
        return states

    def _state(self, stage: Stage, trusted: bool, before: Mapping[str, str]) -> State:
        return self.ledger.trusted(stage) if trusted else self.ledger.state(stage, before)

    def _do(self, stage: Stage, state: State) -> str:
        """Do a stage, or what is missing of it. Returns its digest."""
        if state.status == "finished":
            self.say(f"{stage.name}: finished before")
        else:
            again = "done" if state.status == "changed" else "searched and measured"
            for change in state.changes.values():
                self.say(f"{stage.name}: {again} again: {change}")
            distributed.barrier()  # every rank has read the record
            if distributed.is_main():
                self._clear(stage, state)
            distributed.barrier()
            stage.run()
        self.done[stage.name] = stage
        self.stage_done(stage)
        if state.status != "finished":
            if distributed.is_main():
                self.ledger.finish(stage, state)
            distributed.barrier()
        return state.digest

    def _clear(self, stage: Stage, state: State) -> None:
        """Rank 0: drop what a stage left that was made with other settings."""
        if state.status in ("changed", "search again"):
            self.log.forget(stage.name, only_measures=state.status == "search again")
        if state.status == "changed":
            shutil.rmtree(self.folder / "last", ignore_errors=True)
        for path in (self.folder / "best").glob("*.tsv"):
            path.unlink()
        (self.folder / "report.md").unlink(missing_ok=True)
        self.ledger.begin(stage, state)

    def _tell_plan(self, stages: Sequence[Stage], states: Mapping[str, State]) -> None:
        """Tell what would be done; nothing is written."""
        with tempfile.TemporaryDirectory() as vocabulary:
            self._vocabulary = Path(vocabulary)
            models = {"retriever": self.start_retriever(), "reranker": self.start_reranker()}
            queries = list(self.train_split.queries.values())
            speed = plan.measure(*models.values(), list(self.passages.values()), queries)
        sizes = {name: plan.parameters(model) for name, model in models.items()}
        self.say(plan.table(stages, states, speed, sizes))

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
        if searches is not None:
            sets = [*evaluated.values(), *searches.values()]
            encoded = len(self.passages) + sum(len(queries) for queries, _ in sets)
            hits = work.hits + sum(len(queries) * depth for queries, depth in sets)
            work = dataclasses.replace(work, encoded=encoded, hits=hits)
        judged = {f"{n} queries": digest_split(self.split(n)) for n in evaluated}
        asked = {f"{n} queries": digest_records(q.values()) for n, (q, _) in (searches or {}).items()}
        depths = {f"depth of {n}": k for n, (_, k) in (searches or {}).items()}
        return Stage(
            name,
            title,
            run,
            self._facts(sections) | dict(also or {}),
            after,
            {
                **judged,
                "evaluation.depth": s.evaluation.depth,
                RERANK_DEPTH: s.evaluation.rerank_depth,
                **asked,
                **depths,
            },
            work,
        )

    @property
    def unlabelled_facts(self) -> dict[str, str]:
        """For `also` of a stage that trains on unlabelled queries."""
        return {"unlabelled queries": digest_split(self.unlabelled)}

    def _facts(self, sections: Sequence[str]) -> dict[str, Any]:
        settings = self.settings
        facts: dict[str, Any] = {
            "seed": settings.seed,
            "precision": settings.precision,
            "corpus": self._corpus_digest,
            "labelled queries": digest_split(self.train_split),
        }
        for key, value in _flat(dataclasses.asdict(settings)).items():
            if key not in _MAY_CHANGE and any(key == s or key.startswith(f"{s}.") for s in sections):
                facts[key] = value
        for model in {"retriever", "reranker"} & set(sections):
            facts[f"{model}'s start weights"] = self._start_digest(getattr(settings, model).start)
        return facts

    def _start_digest(self, start: str) -> str:
        if start in starting.SIZES:
            return f"{start}, vocabulary of {self._corpus_digest}"
        return starting.digest(self._read_start(start))

    def _check_folder(self) -> None:
        """Refuse a folder with a run of another system."""
        path = self.folder / "config.yaml"
        if path.is_file():
            theirs = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            if differ := theirs.keys() ^ dataclasses.asdict(self.settings).keys():
                raise ValueError(
                    f"{path}: a run of another system, or version, began this folder (it differs in "
                    f"{', '.join(sorted(differ))}): choose another --output"
                )

    def _claim_folder(self) -> None:
        """Write the settings to `config.yaml`. What has changed in them, the stages' records tell."""
        distributed.barrier()  # every rank has read the old one
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(dataclasses.asdict(self.settings), sort_keys=False)
            write_text(self.folder / "config.yaml", text)
        distributed.barrier()

    # Networks -----------------------------------------------------------------------------------

    def start_retriever(self) -> Checkpoint:
        """The dual encoder before any training."""
        s = self.settings.retriever
        return starting.start_retriever(
            self._read_start(s.start),
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

    def start_reranker(self) -> Checkpoint:
        """The cross encoder before any training."""
        s = self.settings.reranker
        return starting.start_reranker(
            self._read_start(s.start),
            s.length,
            for_cn=s.for_cn,
            head=s.head,
            dropout=s.dropout,
            use_recompute=s.recompute,
        )

    def _read_start(self, start: str) -> starting.Start:
        corpus = (f"{passage.title} {passage.text}" for passage in self.passages.values())
        if start not in self._starts:
            with distributed.main_first():
                self._starts[start] = starting.read_start(start, corpus, self._vocabulary)
        paddle.seed(self.settings.seed)
        return self._starts[start]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
