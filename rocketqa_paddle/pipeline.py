"""A run and its folder: the steps that all systems share, each finished piece a file.

A step first looks for its file and computes only what is not there, so a run that was stopped goes
on where it was. All ranks compute; rank 0 writes.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
import yaml

from rocketqa_paddle import checkpoints, device, distributed, formats, metrics, retrieval, starting
from rocketqa_paddle.checkpoints import Checkpoint
from rocketqa_paddle.config import RunSettings, StageSettings
from rocketqa_paddle.records import Collection, Group, Hit, Query, Run, Split
from rocketqa_paddle.retrieval import CorpusIndex
from rocketqa_paddle.storage import write_text
from rocketqa_paddle.trainer import Loss, MetricsLog, Trainer

# Settings that change how a run is computed, not what comes out.
_MAY_CHANGE = {"output", "encode_batch", "save_minutes", "use_cuda", "evaluation.bm25"}


class Pipeline:
    """The shared part of a run.

    Args:
        settings: read here for data, networks and evaluation.

    Raises:
        ValueError: the data do not hold together, or a measure is unknown. Before any long work.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.folder = settings, Path(settings.output)
        metrics.parse_measures(settings.evaluation.measures)
        self.collection, self._evaluated = load_collection(settings)
        self.passages, self.train_split = (
            self.collection.passages,
            self.collection.splits[settings.data.train],
        )
        claim_folder(settings)
        self.log = MetricsLog(self.folder / "metrics.jsonl")

    @property
    def measure(self) -> str:
        """The measure that chooses."""
        return self.settings.evaluation.measures[0]

    def split(self, name: str) -> Split:
        """Queries and judgements that a dev or test split is measured by."""
        return self._evaluated[name]

    def say(self, text: str) -> None:
        """Tell the user, once for all ranks."""
        if distributed.is_main():
            print(text, flush=True)

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
        paddle.seed(self.settings.seed)
        with distributed.main_first():
            return starting.read_start(start, corpus, self.folder / "vocabulary")

    # Queries ------------------------------------------------------------------------------------

    def draw_queries(self, first: int, count: int | None) -> dict[str, Query]:
        """Training queries `first` to `first + count` of an endless shuffled round; None: all of them."""
        ids = sorted(self.train_split.queries)
        random.Random(self.settings.seed).shuffle(ids)
        count = len(ids) if count is None else min(count, len(ids))
        return {i: self.train_split.queries[i] for i in (ids[(first + n) % len(ids)] for n in range(count))}

    # Retrieval and re-ranking -------------------------------------------------------------------

    def search(
        self,
        stage: str,
        retriever: Checkpoint,
        more: Mapping[str, Mapping[str, Query]],
        depth: int,
        *,
        keep_best: bool = True,
    ) -> None:
        """Encode the corpus once; search it for dev and test, and for `more` query sets to `depth`.

        Every set becomes `STAGE/hits.NAME.tsv`; dev's measures go to the log. With `keep_best`, `best/` gets
        the retriever and its index if no trained stage before did as well on dev.
        """
        settings = self.settings
        names = [settings.data.dev, *settings.data.tests]
        wanted = {name: (self.split(name).queries, settings.evaluation.depth) for name in names}
        wanted |= {name: (queries, depth) for name, queries in more.items()}
        paths = {name: self.hits_path(stage, name) for name in wanted}
        if not all(path.is_file() for path in paths.values()):
            with device.arithmetic(settings.precision):
                index = CorpusIndex(
                    retriever,
                    self.passages,
                    batch_size=settings.encode_batch,
                    progress=f"{stage}: encode the corpus",
                )
            runs = {name: index.search(queries, k) for name, (queries, k) in wanted.items()}
            if keep_best:
                self._keep_best(stage, retriever, index, runs[settings.data.dev])
            for name, run in runs.items():
                self.write_run(paths[name], run)
        self._log_dev(stage, "retriever", self.hits(stage, settings.data.dev))

    def _keep_best(self, stage: str, retriever: Checkpoint, index: CorpusIndex, dev: Run) -> None:
        """Put the retriever and its index into `best/` if it does better on dev than every stage before."""
        name = self.settings.data.dev
        trained = [path.parent / f"hits.{name}.tsv" for path in self.folder.glob("*/retriever")]
        before = [self._dev_value(path) for path in trained if path.is_file()]
        if all(self._dev_value(dev) > value for value in before):
            folder = self.folder / "best"
            self.save(retriever, folder / "retriever", f"Stage {stage}, chosen by {self.measure} on {name}.")
            index.save(folder / "index", retriever.digest())

    def _dev_value(self, run: Run | Path) -> float:
        run = formats.read_run(run) if isinstance(run, Path) else run
        return metrics.evaluate(self.split(self.settings.data.dev).qrels, run, [self.measure])[self.measure]

    def hits_path(self, stage: str, name: str) -> Path:
        """Where `hits` are kept."""
        return self.folder / stage / f"hits.{name}.tsv"

    def hits(self, stage: str, name: str) -> Run:
        """What a stage's retriever found for a query set."""
        return formats.read_run(self.hits_path(stage, name))

    def rerank(
        self,
        path: Path,
        reranker: Checkpoint,
        run: Run,
        queries: Mapping[str, Query],
        depth: int,
        progress: str,
    ) -> Run:
        """The first `depth` hits of a run in the re-ranker's order, kept in `path`."""
        if not path.is_file():
            with device.arithmetic(self.settings.precision):
                reranked = retrieval.rerank(
                    reranker,
                    run,
                    self.passages,
                    queries,
                    depth,
                    batch_size=self.settings.encode_batch,
                    progress=progress,
                )
            self.write_run(path, reranked)
        return formats.read_run(path)

    def rerank_dev(self, stage: str, reranker: Checkpoint, candidates: str) -> None:
        """Re-rank what the stage `candidates` found for the dev queries, and log the measures."""
        dev, depth = self.settings.data.dev, self.settings.evaluation.rerank_depth
        path, queries = self.folder / stage / "reranked.dev.tsv", self.split(dev).queries
        run = self.rerank(path, reranker, self.hits(candidates, dev), queries, depth, f"{stage}: re-rank dev")
        self._log_dev(stage, "reranker", run)

    def _log_dev(self, stage: str, model: str, run: Run) -> None:
        """Log and tell a stage's dev measures, once."""
        values = metrics.evaluate(
            self.split(self.settings.data.dev).qrels, run, self.settings.evaluation.measures
        )
        row = {f"dev/{model}/{name}": value for name, value in values.items()}
        if not any(old["stage"] == stage and row.keys() <= old.keys() for old in self.log.read()):
            self.log.write(stage=stage, **row)
            measured = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            self.say(f"{stage}: {model} on dev: {measured}")

    def write_run(self, path: Path, run: Run) -> None:
        """Write a run on rank 0 while the others wait."""
        if distributed.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            formats.write_run_tsv(path, run)
        distributed.barrier()

    # Training -----------------------------------------------------------------------------------

    def trained(
        self,
        stage: str,
        models: Mapping[str, Checkpoint],
        groups: Callable[[], Sequence[Group]],
        loss: Loss,
        settings: StageSettings,
        *,
        rates: Mapping[str, float] | None = None,
    ) -> dict[str, Checkpoint]:
        """Train models together, or load them if the stage is done.

        Args:
            stage: names the folder that gets a checkpoint a model.
            models: by name; trained in place.
            groups: makes the training data, when they are needed.
            loss: see `Trainer`.
            settings: of the stretch.
            rates: factors of the learning rate by model.
        """
        paths = {name: self.folder / stage / name for name in models}
        if all(checkpoints.is_checkpoint(path) for path in paths.values()):
            self.say(f"{stage}: {' and '.join(models)} trained before, loaded")
            return {name: self.load(path, name) for name, path in paths.items()}
        trainer = Trainer(
            f"{stage} {' and '.join(models)}",
            {name: model.network for name, model in models.items()},
            groups(),
            loss,
            settings,
            folder=self.folder / "last",
            log=self.log,
            rates=rates,
            precision=self.settings.precision,
            seed=self.settings.seed,
            save_minutes=self.settings.save_minutes,
        )
        trainer.fit()
        for name, model in models.items():
            self.save(model, paths[name], f"Trained in stage {stage} on {len(trainer.examples)} groups.")
        return dict(models)

    def load(self, path: Path, name: str) -> Checkpoint:
        """A checkpoint as this run trains it."""
        s = self.settings.retriever if name == "retriever" else self.settings.reranker
        return checkpoints.load(path, dropout=s.dropout, use_recompute=s.recompute)

    def save(self, model: Checkpoint, path: Path, card: str) -> None:
        """Write a checkpoint on rank 0 while the others wait."""
        if distributed.is_main():
            checkpoints.save(model, path, f"Data: {self.settings.data.folder}. {card}")
        distributed.barrier()

    def best_stage(self, stages: Sequence[str], path: Callable[[str], Path]) -> str:
        """The stage whose dev run, at `path(stage)`, measures best; of equal ones the first."""
        return max(stages, key=lambda stage: self._dev_value(path(stage)))


def claim_folder(settings: RunSettings) -> None:
    """Write the settings to the run folder's `config.yaml`, or see that they are those it was begun with.

    Raises:
        ValueError: the folder holds a run with other settings; names each.
    """
    path = Path(settings.output) / "config.yaml"
    ours = _flat(dataclasses.asdict(settings))
    if path.is_file():
        theirs = _flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        changed = sorted(
            key
            for key in ours.keys() | theirs.keys()
            if ours.get(key) != theirs.get(key) and key not in _MAY_CHANGE
        )
        if changed:
            raise ValueError(
                f"{path}: this run was begun with other settings ("
                + ", ".join(f"{key}: {theirs.get(key)}, now {ours.get(key)}" for key in changed)
                + "): go on with those, or choose another --output"
            )
    distributed.barrier()  # every rank has read it
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False))
    distributed.barrier()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def load_collection(settings: RunSettings) -> tuple[Collection, dict[str, Split]]:
    """Read the corpus and the splits that the settings name.

    Returns:
        The collection, and apart from it the dev and test splits, cut down to the queries asked for.

    Raises:
        ValueError: a split that trains or measures has no judgements.
    """
    data = settings.data
    judged = [data.train, data.dev, *data.tests]
    splits = dict.fromkeys([*judged, *([data.unlabelled] if data.unlabelled else [])])
    collection = formats.read_collection(data.folder, list(splits))
    for name in judged:
        if not collection.splits[name].qrels:
            raise ValueError(
                f"{data.folder}: split {name!r} has no judgements (qrels.{name}.tsv), but it needs them"
            )
    limits = {**dict.fromkeys(data.tests, data.max_test_queries), data.dev: data.max_dev_queries}
    return collection, {name: _sample(collection.splits[name], limit) for name, limit in limits.items()}


def _sample(split: Split, count: int | None) -> Split:
    """A split cut down to `count` queries, the same ones every time."""
    if count is None or count >= len(split.queries):
        return split
    kept = random.Random(0).sample(sorted(split.queries), count)
    return Split({i: split.queries[i] for i in kept}, {i: split.qrels[i] for i in kept})


def with_positives(run: Run, split: Split, queries: Mapping[str, Query]) -> dict[str, list[Hit]]:
    """A run whose hits contain every labelled positive, appended where the retriever missed it."""
    complete = {}
    for query_id in queries:
        hits = list(run.get(query_id, []))
        found = {hit.passage_id for hit in hits}
        missed = [
            i for i, relevance in split.qrels.get(query_id, {}).items() if relevance > 0 and i not in found
        ]
        complete[query_id] = hits + [
            Hit(query_id, i, len(hits) + n, float("-inf")) for n, i in enumerate(missed, 1)
        ]
    return complete
