"""What a system calls: its data, and the steps that train, search, score and measure.

A system is a function of a `Run`, which reads as the paper. It is walked through twice. The first walk
computes nothing: every call notes in the plan what it would make, so that mistakes show before any work. The
second walk makes what the run folder does not have yet.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rocketqa_paddle import checkpoints, contrastive
from rocketqa_paddle.data.dataset import Deal, QuerySet
from rocketqa_paddle.evaluation.speed import measure_speed
from rocketqa_paddle.mining import miner
from rocketqa_paddle.mining.miner import Policy
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.truncation import truncations
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs import folder, plan
from rocketqa_paddle.runs.artefacts import INITIAL, Derived, Groups, ModelHandle, TrainedModel
from rocketqa_paddle.runs.measured import Measured
from rocketqa_paddle.runs.plan import Plan, PlannedStep, Work
from rocketqa_paddle.runs.searches import Searches
from rocketqa_paddle.runs.selection import ALL, Selection
from rocketqa_paddle.runs.trainings import Training, optimizer_state
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.folders import remove
from rocketqa_paddle.search import vectors
from rocketqa_paddle.settings import ContrastiveSettings, RunSettings, TrainingSettings
from rocketqa_paddle.training import trainer
from rocketqa_paddle.training.reranking import list_loss
from rocketqa_paddle.training.trainer import Loss, check_batch

RETRIEVER, RERANKER = Model.RETRIEVER, Model.RERANKER


class _Ended(Exception):
    """The last step that was asked for is done."""


class Run(Searches):
    """A run, its folder and its data. Every step is handed settings of its own.

    Raises:
        ValueError: the data do not hold together, a measure is unknown, or the folder holds something else.
    """

    def __init__(self, settings: RunSettings, dry_run: bool = False) -> None:
        folder.check(Path(settings.output), settings)
        distributed.barrier()  # every rank has looked before one writes
        super().__init__(settings, dry_run)

    # The two walks ------------------------------------------------------------------------------

    def go(self, system: Callable[[Run], None], selection: Selection = ALL) -> None:
        """Do the steps of a system that are not done yet, or tell what would be done.

        Raises:
            ValueError: a mistake of any step, before any work; a selection that the system does not have.
        """
        selection = selection.among(list(self.rehearse(system).steps))
        self.rehearse(system, selection)
        for note in self.notes:
            say(note)
        if selection.dry_run:
            self._tell_plan()
            return
        if not self.plan.is_done:
            self._read_initials()  # raises if one cannot be made
        with folder.claimed(self.folder, self.settings):
            self.rehearse(system, selection)  # nobody else changes the folder from now on
            distributed.barrier()  # every rank has read its records
            self.begin(selection, dry=False)
            try:
                system(self)
            except _Ended:
                say(f"ended after {selection.until_stage}, as asked; leave out --until-stage to go on")
            else:
                self.ledger.drop_others()
                if distributed.is_main():
                    remove(self.folder / "last", trainer.CONTENTS)
                    remove(self.folder / folder.VECTORS, vectors.CONTENTS)

    def rehearse(self, system: Callable[[Run], None], selection: Selection = ALL) -> Plan:
        """Walk through a system without computing anything, and give the plan that comes out."""
        self.begin(selection, dry=True)
        system(self)
        return self.plan

    def begin(self, selection: Selection, *, dry: bool) -> None:
        """Begin a walk."""
        super().begin(selection, dry=dry)
        self._enter_row({}, 0)

    def within(
        self, row: str, settings: RunSettings, begins_with: Mapping[Model, ModelHandle], dealt: int
    ) -> Run:
        """A run in the folder `row` inside of this one, whose steps share what this one has made.

        It takes the models that it begins with for its initial checkpoints. So many of the shuffled training
        queries were dealt to them, and are not dealt again.
        """
        other = copy.copy(self)
        other.row, other.settings = row, settings
        other._enter_row(begins_with, dealt)
        return other

    def _enter_row(self, begins_with: Mapping[Model, ModelHandle], dealt: int) -> None:
        self._begins_with, self._dealt, self._step = begins_with, dealt, ""
        self.open_log()
        self.measured = Measured(self)
        if not self.dry:
            self.measured.best.discard_others([*self.plan.kept_models(), self.initial_retriever()])
            if distributed.is_main():
                (self.place / "report.md").unlink(missing_ok=True)

    def _enter(self, step: str, title: str) -> PlannedStep:
        """Come to a step, which ends the one before."""
        step = self.step(step)
        planned = self.plan.step(step)
        planned.title = title
        if self.dry or step == self._step:
            return planned
        if self._step and self._step == self.selection.until_stage:
            raise _Ended
        self._step = step
        if planned.status == "finished":
            say(f"{step}: finished before")
            now = distributed.world_size()
            for before in {self.ledger.record(made)["processes"] for made in planned.kept} - {now}:
                told = "a step has another number of queries"
                say(f"{step}: it was done by {before} processes, now by {now}: {told}")
        for reason, verb in planned.reasons.items():
            say(f"{step}: {verb}: {reason}")
        return planned

    def _tell_plan(self) -> None:
        """Tell what would be done; nothing is written."""
        with tempfile.TemporaryDirectory() as work:
            self.initials.work = Path(work)
            models = self._read_initials()
            speed = measure_speed(*models.values(), self.corpus.rows, list(self.labelled.queries.values()))
        say(plan.table(self.plan, self.selection, speed, models, self.corpus.rows))

    def _read_initials(self) -> dict[Model, Checkpoint]:
        """The models before any training; tell how many texts they cut."""
        models = {RETRIEVER: self.initial_retriever().value(), RERANKER: self.initial_reranker().value()}
        sets = [queries for queries in (self.labelled, self.unlabelled, *self.evaluated.values()) if queries]
        texts = {query.text: query for queries in sets for query in queries.queries.values()}
        for model in models.values():
            for sentence in truncations(model, list(texts), self.corpus.rows):
                say(sentence)
        return models

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
        made_of |= {"drop_false_negatives": self.settings.drop_false_negatives}
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
        options = {"alpha": alpha, "cross_batch": cross_batch}
        options |= {"drop_false_negatives": self.settings.drop_false_negatives}
        loss = partial(contrastive.in_batch, **options)
        trained = self.train(Training(step, title, [retriever], groups, loss, settings))[RETRIEVER]
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
        trained = self.train(Training(step, title, [reranker], groups, loss, settings))[RERANKER]
        self.evaluate_reranker(trained, over)
        return trained

    def train(self, training: Training) -> dict[Model, TrainedModel]:
        """Train models together, or take what was trained before; without groups, take them as they are."""
        if not training.groups.at_most:
            return {model.kind: self._adopt(training, model) for model in training.models}
        planned, made_of = self._enter(training.step, training.title), training.made_of(self.settings)
        trained = [self._trained(training, model.kind, made_of) for model in training.models]
        if self.dry:
            self.plan.add_training(trained, training.groups, training.loss, training.settings)
            self.plan.begun_from |= {model.name for model in training.models}
            if schedule := training.schedule:
                planned.hands_on = schedule.goes_on
                self._plan_optimizer(trained, schedule.follows)
        elif not all(map(self.ledger.keeps, trained)):
            for model in trained:
                self.ledger.forget(model)
            models, card = training.fit(self, trained)
            for model, checkpoint in zip(trained, models, strict=True):
                self._save(model, checkpoint, card)
        elif planned.status != "finished":
            say(f"{planned.name}: {' and '.join(model.kind.title for model in trained)} trained before")
        if not self.dry:
            training.clean_up(self)
        return {model.kind: model for model in trained}

    def _plan_optimizer(self, trained: list[TrainedModel], follows: TrainedModel | None) -> None:
        """Train again the model that a training follows, if the optimizer that it needs is gone."""
        if not follows:
            return
        self.plan.follows |= {model.name: follows for model in trained}
        if all(map(self.ledger.keeps, trained)) or not self.ledger.keeps(follows):
            return
        if not self.selection.trusts(follows.step) and not optimizer_state(self, follows).is_file():
            self.plan.redo(follows, f"{follows.name} has to hand on its optimizer, whose state is gone")
            self._plan_optimizer([follows], self.plan.follows.get(follows.name))

    def _adopt(self, training: Training, model: ModelHandle) -> TrainedModel:
        """Take a model as it is for the result of a step."""
        if model is self._begins_with.get(model.kind):
            return model
        planned = self._enter(training.step, training.title)
        kept = self._trained(training, model.kind, {model.kind.value: model})
        if self.dry:
            self.plan.add_model(kept)
        elif not self.ledger.keeps(kept):
            say(f"{planned.name}: the {model.kind.title} is taken as it is")
            self.ledger.forget(kept)
            self._save(kept, model.value(), "The initial checkpoint, not trained.")
        return kept

    def _trained(self, training: Training, kind: Model, made_of: Mapping[str, Any]) -> TrainedModel:
        model = TrainedModel(kind, self.step(training.step), training.title, made_of, self._load)
        if self.selection.trusts(model.step):
            self.ledger.trust(model)
        return model

    def _load(self, model: TrainedModel) -> Checkpoint:
        assert self.ledger.keeps(model), f"{model} is not there"
        s = self.settings.retriever if model.kind is RETRIEVER else self.settings.reranker
        place, trained = self.folder / model.place, self.ledger.record(model).get("digest")
        checkpoint = checkpoints.load(place, dropout=s.dropout, use_recompute=s.recompute)
        if trained and checkpoint.digest() != trained:
            raise ValueError(
                f"{place}: not the model that this step made: remove the folder, and the step is done again"
            )
        return checkpoint

    def _save(self, model: TrainedModel, checkpoint: Checkpoint, card: str) -> None:
        if distributed.is_main():
            card = f"Data: {self.settings.data.folder}. {card}"
            checkpoints.save(checkpoint, self.folder / model.place, card)
        self.ledger.keep(model, digest=checkpoint.digest())
        model.hold(checkpoint)

    # Measuring ----------------------------------------------------------------------------------

    def measure_initial(self) -> None:
        """Measure the initial checkpoint, if the settings ask for it."""
        if self.settings.evaluation.init:
            self._enter(INITIAL, "initial checkpoint")
            self.evaluate_retriever(self.initial_retriever())

    def evaluate_retriever(self, retriever: ModelHandle) -> None:
        """Search for dev and tests, and measure on dev. The best so far is kept with its index in `best/`."""
        depth = self.settings.evaluation.depth
        hits = {queries.name: self.search(retriever, queries, depth) for queries in self.evaluated.values()}
        index = None if self.dry else self.make(retriever)
        self.measured.add(retriever, hits[self.dev.name], index)
        if not self.dry and retriever.name not in self.plan.begun_from:
            retriever.hold(None)  # the memory is free for the next training

    def evaluate_reranker(self, reranker: TrainedModel, over: TrainedModel) -> None:
        """Re-rank what a retriever found for dev, and measure that."""
        run = self.rerank(reranker, self.search(over, self.dev, self.settings.evaluation.depth))
        if self.dry:
            self.plan.add(run, Work(scored=len(run.queries) * run.depth))
        self.measured.add(reranker, run)

    def choose_best(self, system: str) -> dict[Model, ModelHandle]:
        """Make `best/` whole, from the models that measure best on dev; see `Measured.choose`."""
        if not self.dry and self.selection.until_stage in self.selection.names[:-1]:
            raise _Ended
        return self.measured.choose(system)
