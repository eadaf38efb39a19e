"""What the stages of all systems are made of, each finished piece a file.

A step first looks for its file and computes only what is not there, so a run that was stopped goes
on where it was. All ranks compute; rank 0 writes.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints.folder import CARD
from rocketqa_paddle.data import formats
from rocketqa_paddle.evaluation import metrics, tables
from rocketqa_paddle.evaluation.tables import Row
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.records import Group, Query, Run
from rocketqa_paddle.runs.stages import Stage, Work
from rocketqa_paddle.runs.staging import QuerySets, StagedRun
from rocketqa_paddle.runtime import device, distributed
from rocketqa_paddle.runtime.storage import read_json, replacing, sync, write_json, write_text
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.index import TEXTS, VectorIndex
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import RunSettings, StageSettings
from rocketqa_paddle.training.trainer import Leg, Loss, Trainer

START = "start"
"""Name of the stage that measures the start weights."""


@dataclass(frozen=True)
class Line:
    """A line of the final table: what a stage's retriever finds, or how its re-ranker orders that."""

    title: str
    stage: str
    over: str | None = None
    """For a re-ranker, the stage whose retriever gives the candidates."""


class Pipeline(StagedRun):
    """A run of stages that retrieve, train, re-rank and measure.

    Args:
        settings: of the run.

    Raises:
        ValueError: the data do not hold together, or a measure is unknown. Before any long work.
    """

    warmed_up: Mapping[str, Mapping[str, Any]] = {}
    """Settings, by section, that take the start weights for warmed-up models."""

    @staticmethod
    def own_training(settings: RunSettings) -> Sequence[str]:
        """Dotted paths of the settings of what is trained after the warm-up, one an occurrence."""
        raise NotImplementedError

    def __init__(self, settings: RunSettings) -> None:
        measures = metrics.parse_measures(settings.evaluation.measures)
        super().__init__(settings)
        depth = settings.evaluation.depth
        self.notes += [
            f"{measure} is measured on {depth} passages a query, for evaluation.depth is {depth}"
            for measure in measures
            if (measure.params.get("cutoff") or 0) > depth
        ]

    @property
    def starts(self) -> list[str]:
        """What retrievers start from, as the settings name it."""
        return [self.settings.retriever.start]

    @property
    def measure(self) -> str:
        """The measure that chooses."""
        return self.settings.evaluation.measures[0]

    # Queries ------------------------------------------------------------------------------------

    def draw_queries(self, first: int, count: int | None) -> dict[str, Query]:
        """Training queries `first` to `first + count` of an endless shuffled round; None: all of them."""
        ids = sorted(self.train_split.queries)
        random.Random(self.settings.seed).shuffle(ids)
        count = len(ids) if count is None else min(count, len(ids))
        return {i: self.train_split.queries[i] for i in (ids[(first + n) % len(ids)] for n in range(count))}

    # Retrieval and re-ranking -------------------------------------------------------------------

    def search(
        self, stage: str, retriever: Checkpoint, more: QuerySets | None = None, *, keep_best: bool = True
    ) -> None:
        """Encode the corpus once; search it for dev and test, and for `more` query sets.

        Every set becomes `STAGE/hits.NAME.tsv`; dev's measures go to the log. With `keep_best`, `best/` gets
        the retriever and its index if no trained stage before did as well on dev.
        """
        settings = self.settings
        names = [settings.data.dev, *settings.data.tests]
        wanted = {name: (self.split(name).queries, settings.evaluation.depth) for name in names}
        wanted |= more or {}
        paths = {name: self.hits_path(stage, name) for name in wanted}
        if not all(path.is_file() for path in paths.values()):
            index = self._encode_corpus(retriever, f"{stage}: encode the corpus")
            runs = {name: index.search(queries, k) for name, (queries, k) in wanted.items()}
            if keep_best:
                self._keep_best(stage, retriever, index, runs[settings.data.dev])
            for name, run in runs.items():
                self.write_run(paths[name], run)
        self._log_dev(stage, "retriever", paths[settings.data.dev])

    def start_stage(self) -> list[Stage]:
        """A stage that measures the start weights, if the settings ask for it."""
        if not self.settings.evaluation.start:
            return []

        def measure() -> None:
            self.search(START, self.start_retriever(), keep_best=False)

        return [self.stage(START, "start weights", measure, sections=["retriever"], work=Work(), searches={})]

    def start_line(self) -> list[Line]:
        """The same as a line of the final table."""
        return [Line("start weights", START)] if START in self.done else []

    def _encode_corpus(self, retriever: Checkpoint, progress: str) -> CorpusIndex:
        """Encode the corpus, unless start weights are this model and have an index of it beside them."""
        batch_size = self.settings.encode_batch
        for start in self.starts:
            beside = Path(start).parent / "index"
            try:
                found = CorpusIndex.load(beside, retriever, self.passages, batch_size=batch_size)
            except (OSError, ValueError):
                found = None
            if not distributed.any_rank(found is None):
                self.say(f"{progress}: as it is in {beside}")
                return found
        with device.arithmetic(self.settings.precision):
            return CorpusIndex(retriever, self.passages, batch_size=batch_size, progress=progress)

    def _keep_best(self, stage: str, retriever: Checkpoint, index: CorpusIndex, dev: Run) -> None:
        """Put the retriever and its index into `best/` if it does better on dev than every stage before."""
        before = [
            self.dev_value(self._dev_hits(name)) for name in self.trained_stages("retriever") if name != stage
        ]
        if all(self.dev_value(dev) > value for value in before):
            self._save_best(stage, retriever, index)

    def _save_best(self, stage: str, retriever: Checkpoint, index: CorpusIndex) -> None:
        """Retriever and index take the places of the old ones one after the other, when both are written."""
        folder, card = self.folder / "best", self._card(self._best_card(stage))
        with ExitStack() as stack:
            if distributed.is_main():
                new = stack.enter_context(replacing(folder / "retriever", marker=checkpoints.CONFIG))
                checkpoints.write(retriever, new, card)
                sync(new)  # the long part, so that the two renames follow each other at once
            index.save(folder / "index", retriever.digest())
        self._note_best("retriever", stage)

    def _best_card(self, stage: str) -> str:
        return f"Stage {stage}, chosen by {self.measure} on {self.settings.data.dev}."

    def _note_best(self, model: str, stage: str) -> None:
        """Write down in `best/stages.json` which stage a model there is of."""
        if distributed.is_main():
            path = self.folder / "best" / "stages.json"
            write_json(path, (read_json(path) if path.is_file() else {}) | {model: stage})
        distributed.barrier()

    def forget_best(self, stage: str) -> None:
        """Take a stage's models out of `best/`."""
        path = self.folder / "best" / "stages.json"
        for model, best in (read_json(path) if path.is_file() else {}).items():
            if best == stage:
                for name in {"retriever": ["retriever", "index"], "reranker": ["reranker"]}[model]:
                    shutil.rmtree(self.folder / "best" / name, ignore_errors=True)

    def trained_stages(self, model: str) -> list[str]:
        """The stages done so far that trained a model of this name."""
        return [name for name in self.done if (self.folder / name / model).is_dir()]

    def title(self, stage: str) -> str:
        """What tables call a stage that is done."""
        return self.done[stage].title

    def _dev_hits(self, stage: str) -> Path:
        return self.hits_path(stage, self.settings.data.dev)

    def dev_value(self, run: Run | Path) -> float:
        """The measure that chooses, of a run on dev or of its file."""
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
        self.rerank(path, reranker, self.hits(candidates, dev), queries, depth, f"{stage}: re-rank dev")
        self._log_dev(stage, "reranker", path)

    def _log_dev(self, stage: str, model: str, path: Path) -> None:
        """Log the dev measures of a stage's run, once, tell them, and put them into the model's card."""
        names = self.settings.evaluation.measures
        keys, folder = {f"dev/{model}/{name}" for name in names}, self.folder / stage / model
        logged = any(row["stage"] == stage and keys <= row.keys() for row in self.log.read())
        if logged and ((folder / CARD).is_file() or not folder.is_dir()):
            return
        values = metrics.evaluate(self.split(self.settings.data.dev).qrels, formats.read_run(path), names)
        measured = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        if distributed.is_main() and folder.is_dir():
            checkpoints.set_in_card(folder, f"On {self.settings.data.dev}:", f"{measured}.")
        if not logged:
            self.log.write(stage=stage, **{f"dev/{model}/{name}": value for name, value in values.items()})
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
        leg: Leg | None = None,
    ) -> dict[str, Checkpoint]:
        """Train models together, or load them if the stage is done.

        Args:
            stage: names the folder that gets a checkpoint a model.
            models: by name; trained in place.
            groups: makes the training data, when they are needed.
            loss: see `Trainer`.
            settings: of the stretch.
            rates: factors of the learning rate by model.
            leg: see `Trainer`.
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
            leg=leg,
        )
        trainer.fit()
        sources = Counter(group.source for group in trainer.examples)
        data = ", ".join(f"{count} {source}" for source, count in sources.most_common())
        for name, model in models.items():
            self.save(
                model, paths[name], f"Trained in stage {stage} on {len(trainer.examples)} groups ({data})."
            )
        return dict(models)

    def as_it_is(self, stage: str, name: str, model: Checkpoint) -> Checkpoint:
        """Take the start weights for the result of a stage."""
        self.say(f"{stage}: the {name} starts as it is")
        self.save(model, self.folder / stage / name, "Start weights, not trained.")
        return model

    def check_negatives(self, *counts: int) -> None:
        """Refuse groups that are larger than the corpus."""
        if max(counts) >= len(self.passages):
            raise ValueError(
                f"{max(counts)} negatives a group, but the corpus has only {len(self.passages)} passages"
            )

    def trained_model(self, stage: str, name: str) -> Checkpoint:
        """The retriever or re-ranker of an earlier stage."""
        return self.load(self.folder / stage / name, name)

    def load(self, path: Path, name: str) -> Checkpoint:
        """A checkpoint as this run trains it."""
        s = self.settings.retriever if name == "retriever" else self.settings.reranker
        return checkpoints.load(path, dropout=s.dropout, use_recompute=s.recompute)

    def save(self, model: Checkpoint, path: Path, card: str) -> None:
        """Write a checkpoint on rank 0 while the others wait."""
        if distributed.is_main():
            checkpoints.save(model, path, self._card(card))
        distributed.barrier()

    def _card(self, text: str) -> str:
        return f"Data: {self.settings.data.folder}. {text}"

    # Results ------------------------------------------------------------------------------------

    def best_stages(self) -> dict[str, str]:
        """The stages of the models in `best/`: `retriever` and `reranker`."""
        return read_json(self.folder / "best" / "stages.json")

    def best_stage(self, model: str) -> str:
        """The stage whose model measures best on dev; of equal ones the first."""
        stages = self.trained_stages(model)
        best = max(stages, key=lambda stage: self.dev_value(self.dev_runs(stage)[model]))
        self.say(f"best {model} on dev: {best}")
        return best

    def complete_best(self, system: str) -> dict[str, str]:
        """Make `best/` whole: retriever, index, re-ranker. Returns each model's best stage on dev."""
        folder = self.folder / "best"
        best = {model: self.best_stage(model) for model in ("retriever", "reranker")}
        retriever = self.trained_model(best["retriever"], "retriever")
        if distributed.any_rank(not self._is_kept(retriever)):
            index = self._encode_corpus(retriever, "best: encode the corpus")
            self._save_best(best["retriever"], retriever, index)
        self._note_best("retriever", best["retriever"])
        reranker = self.trained_model(best["reranker"], "reranker")
        self.save(reranker, folder / "reranker", f"{system}. {self._best_card(best['reranker'])}")
        self._note_best("reranker", best["reranker"])
        if distributed.is_main():
            shutil.rmtree(self.folder / "last", ignore_errors=True)
        return best

    def _is_kept(self, retriever: Checkpoint) -> bool:
        """Whether `best/` has this retriever and its index of this corpus."""
        folder = self.folder / "best"
        try:
            index = VectorIndex.load(folder / "index", retriever.digest())
            same = checkpoints.load(folder / "retriever").digest() == retriever.digest()
        except (OSError, ValueError):
            return False
        return same and index.ids == list(self.passages) and (folder / "index" / TEXTS).is_file()

    def report(
        self, lines: Sequence[Line], pairs: Sequence[tuple[str, str]], notes: Sequence[str] = ()
    ) -> None:
        """Measure some models on the tests; write `report.md` and `curves.png`, and print the tables.

        Args:
            lines: the rows of a table.
            pairs: titles of rows to compare, the better one first as it is hoped.
            notes: sentences under every table.
        """
        tests = self.settings.data.tests or [self.settings.data.dev]
        text = "\n\n".join(self._report_split(name, lines, pairs, notes) for name in tests)
        if distributed.is_main():
            write_text(self.folder / "report.md", text + "\n")
            try:
                rows = [row for row in self.log.read() if row["stage"].split()[0] in self.done]
                tables.plot_curves(rows, self.folder / "curves.png")
            except ImportError:
                self.say("curves.png is left out: it needs matplotlib (pip install matplotlib)")
        self.say(f"\n{text}\n")

    def _report_split(
        self, name: str, lines: Sequence[Line], pairs: Sequence[tuple[str, str]], notes: Sequence[str]
    ) -> str:
        split, s = self.split(name), self.settings.evaluation
        rows = {line.title: Row(line.title, self._result(line, name)) for line in lines}
        if s.bm25:
            rows = {"BM25": Row("BM25", retrieval.bm25(self.passages, split.queries, s.depth)), **rows}
        title = f"**{name}**: {len(split.queries)} queries over {len(self.passages)} passages"
        table = tables.table(title, list(rows.values()), split.qrels, s.measures)
        compared = [tables.significance(rows[a], rows[b], split.qrels, self.measure) for a, b in pairs]
        return "\n\n".join([table, *notes, *compared])

    def reranked_path(self, stage: str, over: str, name: str) -> Path:
        """Where a stage's order of another's hits is kept, for the final table."""
        return self.folder / "best" / f"{stage}.over.{over}.{name}.tsv"

    def _result(self, line: Line, name: str) -> Run:
        if line.over is None:
            return self.hits(line.stage, name)
        path = self.reranked_path(line.stage, line.over, name)
        if path.is_file():
            return formats.read_run(path)
        reranker = self.trained_model(line.stage, "reranker")
        hits, depth = self.hits(line.over, name), self.settings.evaluation.rerank_depth
        progress = f"{line.stage}: re-rank {name}"
        return self.rerank(path, reranker, hits, self.split(name).queries, depth, progress)

    def stage_done(self, stage: Stage) -> None:
        """Log what is not logged yet, and write `stages.md`: dev measures of every model so far."""
        for model, path in self.dev_runs(stage.name).items():
            self._log_dev(stage.name, model, path)
        rows = [
            Row(f"{model.replace('rer', 're-r')}, {done.title}", formats.read_run(path))
            for name, done in self.done.items()
            for model, path in self.dev_runs(name).items()
        ]
        dev = self.settings.data.dev
        if rows and distributed.is_main():
            title = f"**{dev}** after every stage, {len(self.split(dev).queries)} queries"
            text = tables.table(title, rows, self.split(dev).qrels, self.settings.evaluation.measures)
            write_text(self.folder / "stages.md", text + "\n")

    def dev_runs(self, stage: str) -> dict[str, Path]:
        """The runs on dev that a stage left, by model."""
        paths = {"retriever": self._dev_hits(stage), "reranker": self.folder / stage / "reranked.dev.tsv"}
        return {model: path for model, path in paths.items() if path.is_file()}
