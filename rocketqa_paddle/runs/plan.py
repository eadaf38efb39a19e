"""What a run would do, and about how long it would take: what the first walk through a system notes down."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from rocketqa_paddle.evaluation import tables
from rocketqa_paddle.evaluation.speed import Speed
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.parameters import named_tensors
from rocketqa_paddle.records import Model, Passage
from rocketqa_paddle.runs.artefacts import Groups, ModelHandle, Stored, StoredRun, TrainedModel, artefacts_in
from rocketqa_paddle.runs.ledger import Ledger
from rocketqa_paddle.runs.selection import Selection
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.settings import TrainingSettings
from rocketqa_paddle.training.optimizer import total_steps

_WITH_GRADIENT = 3  # a backward pass costs two forward passes
_BYTES_A_HIT = 8


@dataclass(frozen=True)
class Work:
    """How much there is to compute, with and without gradient, and to keep."""

    steps: int = 0
    trained_texts: int = 0
    trained_pairs: int = 0
    encoded: int = 0
    scored: int = 0
    hits: int = 0
    retrievers: int = 0
    rerankers: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class PlannedStep:
    """A step: what of it is kept and what is missing, and the work that it takes.

    `reasons` tell why something is made again, and what is then said to be done. `left` is the work that is
    not done yet. `hands_on` tells whether the optimizers wait for the next step.
    """

    name: str
    title: str
    kept: list[Stored] = field(default_factory=list)
    missing: list[Stored] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    left: Work = field(default_factory=Work)
    hands_on: bool = False

    @property
    def status(self) -> str:
        """What the folder says of the step."""
        if not self.missing:
            return "finished"
        if not self.reasons:
            return "begun" if self.kept else "new"
        return "changed" if any(isinstance(made, TrainedModel) for made in self.missing) else "search again"

    @property
    def models(self) -> list[TrainedModel]:
        """The models that the step trains."""
        return [made for made in (*self.kept, *self.missing) if isinstance(made, TrainedModel)]


class Plan:
    """The steps of a run in their order, with what each makes.

    `searches` has what each retriever is searched for, by its name and that of the hits; `trainings` the
    settings of every training, by its step and models; `begun_from` the names of the models from which a
    training begins; `follows` the models whose optimizers go on, by the names of those that follow.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.steps: dict[str, PlannedStep] = {}
        self.searches: dict[str, dict[str, StoredRun]] = {}
        self.trainings: dict[str, TrainingSettings] = {}
        self.begun_from: set[str] = set()
        self.follows: dict[str, TrainedModel] = {}
        self._counted: set[str] = set()
        self._scored: set[tuple[str, str]] = set()  # by the row of a comparison

    def step(self, name: str, title: str = "") -> PlannedStep:
        """A step, which is added at its first mention."""
        return self.steps.setdefault(name, PlannedStep(name, title))

    def kept_models(self) -> list[TrainedModel]:
        """The models that need not be trained."""
        return [made for step in self.steps.values() for made in step.models if made in step.kept]

    @property
    def is_done(self) -> bool:
        """Whether every step is finished."""
        return all(step.status == "finished" for step in self.steps.values())

    def add(self, artefact: Stored, work: Work) -> None:
        """Note an artefact and the work that it takes."""
        if artefact.name in self._counted:
            return
        self._counted.add(artefact.name)
        step = self.step(artefact.step)
        step.work += work
        if self.ledger.keeps(artefact):
            step.kept.append(artefact)
            return
        self.ledger.check_place(artefact)
        step.missing.append(artefact)
        step.left += work
        verb = "done again" if isinstance(artefact, TrainedModel) else "searched and measured again"
        changed = {f"{made.name} changed" for made in step.missing}
        for reason in self.ledger.reasons(artefact):
            if reason in changed:
                continue
            step.reasons.setdefault(reason, "made again" if reason.endswith("is not there") else verb)

    def redo(self, model: TrainedModel, reason: str) -> None:
        """Note that a model that is kept is to be trained again."""
        step = self.step(model.step)
        [kept] = [made for made in step.kept if made.name == model.name]
        step.kept.remove(kept)
        step.missing.append(kept)
        step.reasons[reason] = "done again"
        step.left = step.work
        self.ledger.lose(model)

    def add_model(self, model: TrainedModel, work: Work = Work()) -> None:  # noqa: B008
        """Note a model that a step keeps."""
        self.add(model, work + Work(**{f"{model.kind.value}s": 1}))

    def add_search(self, retriever: ModelHandle, hits: StoredRun, passages: int) -> None:
        """Note what a retriever is searched for. The corpus is encoded once for all."""
        wanted = self.searches.setdefault(retriever.name, {})
        if (known := wanted.setdefault(hits.name, hits)) is not hits:
            assert known.made_of == hits.made_of, f"{hits.name} has two meanings"
            return
        encoded = len(hits.queries) + (passages if len(wanted) == 1 else 0)
        self.add(hits, Work(encoded=encoded, hits=len(hits.queries) * hits.depth))

    def add_training(
        self, trained: Sequence[TrainedModel], groups: Groups, loss: Any, settings: TrainingSettings
    ) -> None:
        """Note a training of some models, and the scores that its groups and its loss need.

        A re-ranker that is bound to the loss scores every group.
        """
        steps, kinds = total_steps(settings, groups.at_most), {model.kind for model in trained}
        examples = steps * settings.batch_size * distributed.world_size()
        judged = any(isinstance(a, ModelHandle) and a.kind is Model.RERANKER for a in artefacts_in(loss))
        row = trained[0].step.rpartition("/")[0]  # what rows of a comparison share counts for each of them
        runs = [a for a in groups.parents if isinstance(a, StoredRun) and a.name not in self._counted]
        scores = {(row, run.name): len(run.queries) * run.depth for run in runs}
        scored = sum(pairs for name, pairs in scores.items() if name not in self._scored)
        self._scored |= scores.keys()
        work = Work(
            steps=steps,
            trained_texts=examples * (1 + groups.size) if Model.RETRIEVER in kinds else 0,
            trained_pairs=examples * groups.size if Model.RERANKER in kinds else 0,
            scored=scored + (examples * groups.size if judged else 0),
            hits=scored,
        )
        for model in trained:
            self.add_model(model, work)
            work = Work()
        self.trainings[f"{trained[0].step} {' and '.join(m.kind.title for m in trained)}"] = settings


# Estimates ---------------------------------------------------------------------------------------


def table(
    plan: Plan,
    selection: Selection,
    speed: Speed,
    models: Mapping[Model, Checkpoint],
    passages: Collection[Passage],
) -> str:
    """One row a step: what the folder says of it, its sizes, and estimates of time and disk."""
    sizes = {kind: 4 * _count_parameters(model) for kind, model in models.items()}
    rows = [("step", "", "state", "steps", "trained", "encoded", "scored", "time", "disk")]
    left = Work()
    for step in plan.steps.values():
        wanted, work = selection.wants(step.name), step.work
        left += step.left if wanted else Work()
        numbers = (work.steps, work.trained_texts + work.trained_pairs, work.encoded, work.scored)
        cells = (step.name, step.title, step.status if wanted else "left out", *(f"{n:,}" for n in numbers))
        rows.append((*cells, tables.duration(_seconds(work, speed)), tables.size(_disk(work, sizes))))
    best = sum(sizes.values()) + _index_bytes(models[Model.RETRIEVER], passages)
    rows.append(("best", "the search engine", *[""] * 6, tables.size(best)))
    disk = tables.size(_disk(left, sizes) + best)
    text = (
        f"{tables.align(rows)}\n\nto do: about {tables.duration(_seconds(left, speed))} and {disk}; "
        f"while it runs, at most {tables.size(_passing(plan, sizes))} more, and the index once more"
    )
    wanted = [step for step in plan.steps.values() if selection.wants(step.name)]
    again = [f"{s.name} would be {verb}: {reason}" for s in wanted for reason, verb in s.reasons.items()]
    return "\n".join([text, *again])


def _seconds(work: Work, speed: Speed) -> float:
    """How long some work is likely to take, on all processes together."""
    texts = work.encoded + _WITH_GRADIENT * work.trained_texts
    pairs = work.scored + _WITH_GRADIENT * work.trained_pairs
    return (speed.text * texts + speed.pair * pairs) / distributed.world_size()


def _disk(work: Work, sizes: Mapping[Model, int]) -> int:
    models = work.retrievers * sizes[Model.RETRIEVER] + work.rerankers * sizes[Model.RERANKER]
    return _BYTES_A_HIT * work.hits + models


def _passing(plan: Plan, sizes: Mapping[Model, int]) -> int:
    """Bytes of unfinished work, and of optimizers that wait for the next step.

    Unfinished work holds a step's models and two moments a parameter. It is written anew before the old is
    removed.
    """
    models = [sum(sizes[model.kind] for model in step.models) for step in plan.steps.values()]
    waiting = [
        2 * size if step.hands_on else 0 for size, step in zip(models, plan.steps.values(), strict=True)
    ]
    both = max(before + after for before, after in zip([0, *waiting], [*waiting, 0], strict=True))
    return 2 * 3 * max(models, default=0) + both


def _index_bytes(retriever: Checkpoint, passages: Collection[Passage]) -> int:
    """Bytes of vectors and texts."""
    hidden = retriever.network.config.hidden_size
    return sum(4 * hidden + len(p.id) + len(p.title) + len(p.text) for p in passages)


def _count_parameters(model: Checkpoint) -> int:
    return sum(tensor.size for tensor in named_tensors(model.network).values())
