"""What a system calls: its data, and the steps that train, search, score and measure.

A system is a function of a `Run`, which reads as the paper. It is walked through twice. The first walk
computes nothing: every call notes in the plan what it would make, so that mistakes show before any work. The
second walk makes what the run folder does not have yet.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rocketqa_paddle import checkpoints, contrastive
from rocketqa_paddle.data import dataset
from rocketqa_paddle.data.dataset import Deal, QuerySet
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.evaluation.speed import measure_speed
from rocketqa_paddle.evaluation.tables import Values, table
from rocketqa_paddle.mining import miner
from rocketqa_paddle.mining.miner import Policy
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs import folder, plan
from rocketqa_paddle.runs.artefacts import (
    INITIAL,
    Derived,
    Groups,
    InitialModel,
    ModelHandle,
    StoredRun,
    TrainedModel,
)
from rocketqa_paddle.runs.best import Best
from rocketqa_paddle.runs.initials import Initials
from rocketqa_paddle.runs.ledger import Ledger
from rocketqa_paddle.runs.plan import Plan, PlannedStep, Work
from rocketqa_paddle.runs.searches import Searches
from rocketqa_paddle.runs.selection import ALL, Selection
from rocketqa_paddle.runs.trainings import Training, optimizer_state
from rocketqa_paddle.runs.walk import Walk
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import fingerprint, remove, write_text
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import ContrastiveSettings, RunSettings, TrainingSettings
from rocketqa_paddle.training.reranking import list_loss
from rocketqa_paddle.training.trainer import Loss, check_batch

RETRIEVER, RERANKER = Model.RETRIEVER, Model.RERANKER


class _Ended(Exception):
    """The last step that was asked for is done."""


class Run:
    """A run, its folder and its data.

    Args:
        settings: read here for data, networks and evaluation; each step is handed its own.

    Raises:
        ValueError: the data do not hold together, or a measure is unknown.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.folder, depth = settings, Path(settings.output), settings.evaluation.depth
        measures = metrics.parse_measures(settings.evaluation.measures)
        data = dataset.load(settings.data)
        self.corpus, self.labelled, self.unlabelled = data.corpus, data.labelled, data.unlabelled
        self.evaluated, self.dev = data.evaluated, data.evaluated[settings.data.dev]
        if clash := [name for name in self.evaluated if name.startswith("train.")]:
            raise ValueError(
                f"a split must not be called {clash[0]!r}, as a set of training queries: rename it"
            )
        self.tests = [self.evaluated[name] for name in settings.data.tests or [settings.data.dev]]
        deeper = [m for m in measures if (m.params.get("cutoff") or 0) > depth]
        told = f"is measured on {depth} passages a query, for evaluation.depth is {depth}"
        self.notes = [*data.notes, *(f"{measure} {told}" for measure in deeper)]
        self.initials = Initials(settings, self.corpus, self.folder / "vocabulary" / self.corpus.fingerprint)
        self.plan = Plan(Ledger(self.folder))
        self._begin(ALL, dry=True)

    # The two walks ------------------------------------------------------------------------------

    def go(self, system: Callable[[Run], None], selection: Selection = ALL) -> None:
        """Do the steps of a system that are not done yet, or tell what would be done.

        Raises:
            ValueError: a mistake of any step, before any work; a selection that the system does not have.
        """
        folder.check(self.folder, self.settings)
        selection.check(list(self.rehearse(system).steps))
        self.rehearse(system, selection)
        for note in self.notes:
            say(note)
        if selection.dry_run:
            self._tell_plan(selection)
            return
        if not self.plan.is_done:
            self.initial_retriever().value(), self.initial_reranker().value()  # raises if one cannot be made
        with folder.claimed(self.folder, self.settings):
            self.rehearse(system, selection)  # nobody else changes the folder from now on
            distributed.barrier()  # every rank has read its records
            self._begin(selection, dry=False)
            try:
                system(self)
            except _Ended:
                say(f"ended after {selection.until_stage}, as asked; leave out --until-stage to go on")
            else:
                if distributed.is_main():
                    remove(self.folder / "last")

    def rehearse(self, system: Callable[[Run], None], selection: Selection = ALL) -> Plan:
        """Walk through a system without computing anything, and give the plan that comes out."""
        self._begin(selection, dry=True)
        system(self)
        return self.plan

    def _begin(self, selection: Selection, *, dry: bool) -> None:
        """Begin a walk. The second one makes what the first has noted in the plan."""
        self._names = list(self.plan.steps)
        if dry:
            self.plan = Plan(Ledger(self.folder))
        ledger = self.plan.ledger
        parts = (self.settings, self.corpus, self.evaluated, self.initials, ledger, self.plan, selection, dry)
        self.walk = Walk(*parts)
        self.searches, self._dev = Searches(self.walk), {}
        self._enter_row({})

    def _enter_row(self, begins_with: Mapping[Model, ModelHandle], dealt: int = 0) -> None:
        self._begins_with, self._dealt, self._step = begins_with, dealt, ""
        self.retrievers: list[TrainedModel] = []
        self.rerankers: list[TrainedModel] = []
        self.best = Best(self.folder, self.walk.place / "best")
        if not self.walk.dry:
            self.best.discard_others(self.plan.kept_models())
            if distributed.is_main():
                (self.walk.place / "report.md").unlink(missing_ok=True)

    def within(
        self, row: str, settings: RunSettings, begins_with: Mapping[Model, ModelHandle], dealt: int
    ) -> Run:
        """A run in the folder `row` inside of this one, whose steps share what this one has made.

        It takes the models that it begins with for its initial checkpoints. So many of the shuffled training
        queries were dealt to them, and are not dealt again.
        """
        other = copy.copy(self)
        other.settings, other.walk = settings, replace(self.walk, settings=settings, row=row)
        other.searches = self.searches.within(other.walk)
        other._enter_row(begins_with, dealt)
        return other

    def trial(self, system: Callable[[Run], None]) -> Plan:
        """What a system would do from here on, without a trace in the plan of this run."""
        other = copy.copy(self)
        other.plan = Plan(self.walk.ledger)
        other.walk = replace(self.walk, plan=other.plan, dry=True)
        other.searches, other.retrievers, other.rerankers = Searches(other.walk), [], []
        system(other)
        return other.plan

    def _enter(self, step: str, title: str) -> PlannedStep:
        """Come to a step, which ends the one before."""
        step = self.walk.step(step)
        planned = self.plan.step(step)
        planned.title = title
        if self.walk.dry or step == self._step:
            return planned
        if self._step and self._step == self.walk.selection.until_stage:
            raise _Ended
        self._step = step
        if planned.status == "finished":
            say(f"{step}: finished before")
            now = distributed.world_size()
            for before in {self.walk.ledger.record(made)["processes"] for made in planned.kept} - {now}:
                told = "a step has another number of queries"
                say(f"{step}: it was done by {before} processes, now by {now}: {told}")
        for reason, verb in planned.reasons.items():
            say(f"{step}: {verb}: {reason}")
        return planned

    def _tell_plan(self, selection: Selection) -> None:
        """Tell what would be done; nothing is written."""
        with tempfile.TemporaryDirectory() as work:
            self.initials.work = Path(work)
            models = {RETRIEVER: self.initial_retriever().value(), RERANKER: self.initial_reranker().value()}
            passages, queries = self.corpus.passages.values(), self.labelled.queries.values()
            speed = measure_speed(*models.values(), list(passages), list(queries))
        say(plan.table(self.plan, selection, speed, models, passages))

    # Data ---------------------------------------------------------------------------------------

    def deal(self, first: int = 0) -> Deal:
        """The training queries in a random order, to be dealt out to trainings from the place `first` on."""
        return Deal(self.labelled, self.settings.seed, first + self._dealt)

    def initial_retriever(self, init: str | None = None) -> ModelHandle:
        """The dual encoder before any training, from the run's initial checkpoint or from another."""
        return self._begins_with.get(RETRIEVER) or self.initials.retriever(init)

    def initial_reranker(self) -> ModelHandle:
        """The cross encoder before any training."""
        return self._begins_with.get(RERANKER) or self.initials.reranker()

    def derive(self, function: Callable[..., Any], **values: Any) -> Derived:
        """What a function gives for some values; it is called when that is asked for, see `Derived`."""
        return Derived(function, values)

    def mine(
        self,
        policy: Policy,
        queries: QuerySet,
        *,
        negatives: int,
        seed: int = 0,
        at_most: int | None = None,
        calibration: Derived | None = None,
        **values: Any,
    ) -> Groups:
        """Training groups by a policy for negatives: a function of a `Miner`, the queries and values.

        `seed` is added to the run's; `at_most` says how many groups the policy can give, by default one a
        query; the values are handed to the policy, artefacts by their results.

        Raises:
            ValueError: the corpus has too few passages.
        """
        if negatives >= (passages := len(self.corpus)):
            raise ValueError(f"{negatives} negatives a group, but the corpus has only {passages} passages")
        made_of = {"policy": policy, "queries": queries, "corpus": self.corpus, "negatives": negatives}
        made_of |= {"seed": self.settings.seed + seed, "calibration": calibration, "values": values}
        at_most = len(queries) if at_most is None else at_most
        return Groups(miner.mine, made_of, at_most=at_most, size=1 + negatives)

    # Training -----------------------------------------------------------------------------------

    def train_retriever(
        self,
        step: str,
        title: str,
        retriever: ModelHandle,
        groups: Groups,
        settings: TrainingSettings,
        *,
        alpha: float = 0.0,
    ) -> TrainedModel:
        """Train a retriever with in-batch and cross-batch negatives and those of its groups, then measure it.

        Without any groups the retriever is taken as it is. `alpha` is the weight of PAIR's passage-centric
        loss. For the other arguments see `Training`.
        """
        cross_batch = True
        if isinstance(settings, ContrastiveSettings):
            groups = groups.one_per_negative() if settings.one_negative_per_example else groups
            cross_batch = settings.cross_batch
        if groups.at_most:
            check_batch(step, settings, groups.at_most)
        loss = partial(contrastive.in_batch, alpha=alpha, cross_batch=cross_batch)
        trained = self._train_or_adopt(Training(step, title, [retriever], groups, loss, settings))
        self.evaluate_retriever(trained)
        return trained

    def train_reranker(
        self,
        step: str,
        title: str,
        reranker: ModelHandle,
        groups: Groups,
        settings: TrainingSettings,
        *,
        over: TrainedModel,
        loss: Callable[[Checkpoint], Loss] = list_loss,
    ) -> TrainedModel:
        """Train a re-ranker, then measure how it orders what a retriever finds; see `train_retriever`."""
        trained = self._train_or_adopt(Training(step, title, [reranker], groups, loss, settings))
        self.evaluate_reranker(trained, over)
        return trained

    def _train_or_adopt(self, training: Training) -> TrainedModel:
        [model] = training.models
        if training.groups.at_most:
            return self.train(training)[model.kind]
        return self.adopt(training.step, training.title, model)

    def train(self, training: Training) -> dict[Model, TrainedModel]:
        """Train models together, or take what the step has trained before."""
        planned, made_of = self._enter(training.step, training.title), training.made_of(self.settings)
        kinds = [model.kind for model in training.models]
        trained = {kind: self._trained(kind, training.step, training.title, made_of) for kind in kinds}
        if self.walk.dry:
            self.plan.add_training(list(trained.values()), training.groups, training.loss, training.settings)
            self.plan.begun_from |= {model.name for model in training.models}
            planned.hands_on = bool(training.schedule and training.schedule.goes_on)
            if training.schedule and training.schedule.follows:
                self._plan_optimizer(list(trained.values()), training.schedule.follows)
        elif not all(map(self.walk.ledger.keeps, trained.values())):
            for model in trained.values():
                self.walk.ledger.forget(model)
            models, card = training.fit(self.walk, list(trained.values()))
            for kind, checkpoint in zip(kinds, models, strict=True):
                self._save(trained[kind], checkpoint, card)
            training.clean_up(self.walk)
        else:
            if planned.status != "finished":
                say(f"{planned.name}: {' and '.join(kind.title for kind in kinds)} trained before")
            training.clean_up(self.walk)
        return trained

    def _plan_optimizer(self, trained: list[TrainedModel], follows: TrainedModel) -> None:
        """Train again the model that a training follows, if the optimizer that it needs is gone."""
        self.plan.follows |= {model.name: follows for model in trained}
        ledger = self.walk.ledger
        if all(map(ledger.keeps, trained)) or not ledger.keeps(follows):
            return
        if (
            self.walk.selection.trusts(follows.step, self._names)
            or optimizer_state(self.walk, follows).is_file()
        ):
            return
        self.plan.redo(follows, f"{follows.name} has to hand on its optimizer, whose state is gone")
        if follows.name in self.plan.follows:
            self._plan_optimizer([follows], self.plan.follows[follows.name])

    def adopt(self, step: str, title: str, model: ModelHandle) -> TrainedModel:
        """Take a model as it is for the result of a step."""
        if model is self._begins_with.get(model.kind):
            return model
        planned = self._enter(step, title)
        kept = self._trained(model.kind, step, title, {model.kind.value: model})
        if self.walk.dry:
            self.plan.add_model(kept)
        elif not self.walk.ledger.keeps(kept):
            say(f"{planned.name}: the {model.kind.title} is taken as it is")
            self.walk.ledger.forget(kept)
            self._save(kept, model.value(), "The initial checkpoint, not trained.")
        return kept

    def _trained(self, kind: Model, step: str, title: str, made_of: Mapping[str, Any]) -> TrainedModel:
        model = TrainedModel(kind, self.walk.step(step), title, made_of, self._load)
        if self.walk.selection.trusts(model.step, self._names):
            self.walk.ledger.trust(model)
        return model

    def _load(self, model: TrainedModel) -> Checkpoint:
        assert self.walk.ledger.keeps(model), f"{model} is not there"
        s = self.settings.retriever if model.kind is RETRIEVER else self.settings.reranker
        return checkpoints.load(self.folder / model.place, dropout=s.dropout, use_recompute=s.recompute)

    def _save(self, model: TrainedModel, checkpoint: Checkpoint, card: str) -> None:
        if distributed.is_main():
            card = f"Data: {self.settings.data.folder}. {card}"
            checkpoints.save(checkpoint, self.folder / model.place, card)
        self.walk.ledger.keep(model, digest=checkpoint.digest())
        model.hold(checkpoint)

    # Searching and scoring ----------------------------------------------------------------------

    def search(self, retriever: ModelHandle, queries: QuerySet, depth: int) -> StoredRun:
        """What a retriever finds: the `depth` best passages of every query."""
        return self.searches.search(retriever, queries, depth)

    def score(
        self, reranker: TrainedModel, hits: StoredRun, *, first: int | None = None, sample: int | None = None
    ) -> StoredRun:
        """A re-ranker's scores of labelled positives and candidates: the `first`, or a random `sample`."""
        return self.searches.score(reranker, hits, first=first, sample=sample)

    # Measuring ----------------------------------------------------------------------------------

    def measure_initial(self) -> None:
        """Measure the initial checkpoint, if the settings ask for it."""
        if self.settings.evaluation.init:
            self._enter(INITIAL, "initial checkpoint")
            self.evaluate_retriever(self.initial_retriever())

    def evaluate_retriever(self, retriever: ModelHandle) -> None:
        """Search for dev and tests, and measure on dev. The best so far is kept with its index in `best/`."""
        depth, index = self.settings.evaluation.depth, None
        hits = {queries.name: self.search(retriever, queries, depth) for queries in self.evaluated.values()}
        if not self.walk.dry:
            index = self.searches.make(retriever)
            self._measure_on_dev(retriever, hits[self.dev.name])
        if isinstance(retriever, InitialModel):
            return
        if index and all(self.dev_value(retriever) > self.dev_value(other) for other in self.retrievers):
            self._keep_best(retriever, index)
        self.retrievers.append(retriever)
        self._write_dev_table()
        if not self.walk.dry and retriever.name not in self.plan.begun_from:
            retriever.hold(None)  # the memory is free for the next training

    def evaluate_reranker(self, reranker: TrainedModel, over: TrainedModel) -> None:
        """Re-rank what a retriever found for dev, and measure that."""
        run = self.searches.rerank(reranker, self.search(over, self.dev, self.settings.evaluation.depth))
        if self.walk.dry:
            self.plan.add(run, Work(scored=len(run.queries) * run.depth))
        else:
            self._measure_on_dev(reranker, run)
        self.rerankers.append(reranker)
        self._write_dev_table()

    def _measure_on_dev(self, model: ModelHandle, run: StoredRun) -> None:
        """Measure a run on dev once, note it in the ledger, the log and the model's card, and tell it."""
        ledger, names = self.walk.ledger, self.settings.evaluation.measures
        judged = fingerprint([self.dev.fingerprint, " ".join(names)])
        if not ledger.keeps(run) or ledger.record(run).get("judged") != judged:
            means = {name: float(values.mean()) for name, values in self.searches.measured(run).items()}
            told = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            logged = {f"dev/{model.kind.value}/{name}": value for name, value in means.items()}
            self.walk.log.forget(model.step, logged.keys())
            self.walk.log.write(stage=model.step, **logged)
            say(f"{model.step}: {model.kind.title} on dev: {told}")
            if isinstance(model, TrainedModel) and distributed.is_main():
                checkpoints.set_in_card(self.folder / model.place, f"On {self.dev.name}:", f"{told}.")
            ledger.note(run, judged=judged, measures=means)
        self._dev[model.name] = ledger.record(run)["measures"]

    def on_dev(self, model: ModelHandle) -> Values:
        """The means of every measure on dev, of a model that was evaluated, as a table takes them."""
        return {name: metrics.single(mean) for name, mean in self._dev[model.name].items()}

    def dev_value(self, model: ModelHandle) -> float:
        """The measure on dev that chooses."""
        return self._dev[model.name][self.settings.evaluation.measures[0]]

    def _write_dev_table(self) -> None:
        """Write `steps.md`: the measures of every model on dev so far."""
        if self.walk.dry or not distributed.is_main():
            return
        initial = [self.initial_retriever()] if INITIAL in self._names and not self.walk.row else []
        models = [*initial, *self.retrievers, *self.rerankers]
        models.sort(key=lambda model: self._names.index(model.step))
        rows = {f"{model.kind.title}, {model.title}": self.on_dev(model) for model in models}
        title = f"**{self.dev.name}** after every step, {len(self.dev)} queries"
        self.walk.place.mkdir(parents=True, exist_ok=True)
        write_text(self.walk.place / "steps.md", table(title, rows, self.settings.evaluation.measures) + "\n")

    # Finishing ----------------------------------------------------------------------------------

    def choose_best(self, system: str) -> dict[Model, TrainedModel]:
        """Make `best/` whole, from the models that measure best on dev; of equal ones the first."""
        models = {RETRIEVER: self.retrievers, RERANKER: self.rerankers}
        if self.walk.dry:
            return {kind: candidates[0] for kind, candidates in models.items()}
        if self.walk.selection.until_stage in self._names[:-1]:
            raise _Ended
        best = {kind: max(candidates, key=self.dev_value) for kind, candidates in models.items()}
        for kind, model in best.items():
            say(f"best {kind.title} on dev: {model.step}")
            if distributed.any_rank(not self.best.has(model)):
                encode = self.searches.encode_corpus
                index = encode(model, "best: encode the corpus") if kind is RETRIEVER else None
                self._keep_best(model, index, f"{system} ")
        return best

    def _keep_best(self, model: TrainedModel, index: CorpusIndex | None, system: str = "") -> None:
        why = f"{system}step {model.step}, by {self.settings.evaluation.measures[0]} on {self.dev.name}."
        self.best.keep(model, why, index, self.walk.ledger.record(model)["digest"])
