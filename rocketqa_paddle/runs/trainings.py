"""A training of one or more models: what decides it, and how it is done."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.runs.artefacts import Groups, ModelHandle, TrainedModel, resolved
from rocketqa_paddle.runs.walk import Walk
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.settings import RunSettings, TrainingSettings
from rocketqa_paddle.training.order import BatchSampler, shuffled
from rocketqa_paddle.training.trainer import Leg, Loss, Trainer


@dataclass(frozen=True)
class Schedule:
    """The place of a training in a longer one, which shares its learning rates and its optimizer.

    `first` optimizer steps of `total` were taken before. The optimizer of the model that it follows goes on,
    and is kept for another training if that goes on.
    """

    first: int
    total: int
    follows: TrainedModel | None = None
    goes_on: bool = False


@dataclass(frozen=True)
class Training:
    """Models that are trained together.

    `step` names the folder, and `title` is what tables call the step. Of the settings, fields of subclasses
    of `TrainingSettings` are not looked at.
    """

    step: str
    title: str
    models: Sequence[ModelHandle]
    """The models to begin with."""
    groups: Groups
    loss: Callable[..., Loss]
    """The checkpoints in the order of `models` → what the trainer minimises. What `functools.partial` binds
    to it decides the result as well; a re-ranker there scores every group."""
    settings: TrainingSettings
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rate by model."""
    schedule: Schedule | None = None
    batches: BatchSampler = shuffled
    """Which groups meet in a batch."""

    def made_of(self, settings: RunSettings) -> dict[str, Any]:
        """Everything that decides the result."""
        values = {model.kind.value: model for model in self.models}
        values |= {field.name: getattr(self.settings, field.name) for field in fields(TrainingSettings)}
        values |= {"groups": self.groups, "loss": self.loss, "rates": self.rates, "batches": self.batches}
        values |= {"schedule": self.schedule or {}, "seed": settings.seed, "precision": settings.precision}
        return values

    def fit(self, walk: Walk, trained: Sequence[TrainedModel]) -> tuple[list[Checkpoint], str]:
        """Build the groups and train; give the checkpoints, and a sentence for their cards.

        Raises:
            ValueError: there are no groups.
        """
        step, (examples, notes) = trained[0].step, self.groups.value()
        for note in notes:
            say(f"{step}: {note}")
        if not examples:
            raise ValueError(f"{step}: no training data ({'; '.join(notes)}): see `rocketqa mine --report`")
        checkpoints = {model.kind.value: model.take() for model in self.models}
        trainer = Trainer(
            f"{self.step} {' and '.join(checkpoints)}",
            {kind: checkpoint.network for kind, checkpoint in checkpoints.items()},
            examples,
            resolved(self.loss)(*checkpoints.values()),
            self.settings,
            folder=walk.folder / "last",
            log=walk.log,
            row=walk.row,
            fingerprint=" ".join(model.fingerprint for model in trained),
            rates=self.rates,
            precision=walk.settings.precision,
            seed=walk.settings.seed,
            save_minutes=walk.settings.save_minutes,
            leg=self._leg(walk, trained[0]) if self.schedule else None,
            batches=resolved(self.batches),
        )
        trainer.fit()
        sources = Counter(group.source for group in examples).most_common()
        told = ", ".join(f"{count} {source}" for source, count in sources)
        return list(checkpoints.values()), f"Trained in step {step} on {len(examples)} groups ({told})."

    def _leg(self, walk: Walk, model: TrainedModel) -> Leg:
        s = self.schedule
        before = optimizer_state(walk, s.follows) if s.follows else None
        if before and not before.is_file():
            say(f"{model.step}: no state of the {model.kind.title}'s optimizer is kept: it begins anew")
            before = None
        return Leg(s.first, s.total, before, optimizer_state(walk, model) if s.goes_on else None)

    def clean_up(self, walk: Walk) -> None:
        """Remove the optimizer's state from which this training went on."""
        if self.schedule and self.schedule.follows and distributed.is_main():
            optimizer_state(walk, self.schedule.follows).unlink(missing_ok=True)


def optimizer_state(walk: Walk, model: TrainedModel) -> Path:
    """Where the optimizer of a model waits for the training that follows."""
    return walk.folder / f"{model.place}.optimizer.safetensors"
