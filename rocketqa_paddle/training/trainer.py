"""The one training loop: mixed precision, chunks, ranks, curves, stop and resume.

The examples, the learning rate and the dropout of a step depend on the seed and on the number of the step
alone. So a training that goes on from `last/` takes exactly the steps that it would have taken, and there is
no random state to save.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, TypedDict

import paddle
from paddle import Tensor, nn
from tqdm import tqdm

from rocketqa_paddle.contrastive import Contrastive, Example
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.forward import in_chunks
from rocketqa_paddle.runtime import device, distributed, folders, storage
from rocketqa_paddle.runtime.typed import typed
from rocketqa_paddle.settings import TrainingSettings
from rocketqa_paddle.training.log import MetricsLog
from rocketqa_paddle.training.optimizer import LossScale, Optimizer, learning_rate, total_steps
from rocketqa_paddle.training.order import BatchSampler, seed_of, shuffled

Loss = Callable[[Sequence[Example]], Mapping[str, Tensor]]
STATE, PARAMETERS, OPTIMIZER = "state.json", "parameters.safetensors", "optimizer.safetensors"
CONTENTS = folders.Contents(
    "state of a training",
    names=(STATE, PARAMETERS, OPTIMIZER),
    markers=(STATE,),
    is_ours=lambda state: {"name", "fingerprint", "step"} <= state.keys(),
)
_LOG_SECONDS = 10.0


class State(TypedDict):
    """What is saved beside the arrays: whose they are, and after which step."""

    name: str
    fingerprint: str
    step: int
    total_steps: int
    examples: int
    processes: int


class Stopped(RuntimeError):
    """Raised when the user stops a training. Its state is saved."""


@dataclass(frozen=True)
class Leg:
    """One of several trainings that share a schedule and an optimizer."""

    first: int
    """Steps that the earlier legs have taken."""
    total: int
    """Steps of all legs together."""
    before: Path | None = None
    """File with the optimizer's state after the leg before; None for a new optimizer."""
    after: Path | None = None
    """File for the optimizer's state after this leg; None if no leg follows."""


@dataclass(eq=False, repr=False)
class Trainer(Generic[Example]):
    """Trains some networks together.

    It is a ValueError if there are no examples, or fewer than a contrastive batch needs.
    """

    name: str
    """Name of the training, on which random choices depend."""
    networks: Mapping[str, nn.Layer]
    examples: Sequence[Example]
    """Every rank takes `batch_size` of them in a step."""
    loss: Loss
    """Examples of one rank → named scalars, of which `loss` is minimised. A `Contrastive` loss is one."""
    settings: TrainingSettings
    _: KW_ONLY
    folder: Path
    """Where the state of unfinished work is saved (`last/` in a run)."""
    log: MetricsLog
    fingerprint: str = ""
    """Stands for everything that decides the result. Any other saved state is not used but removed."""
    rates: Mapping[str, float] | None = None
    """Factors of the learning rate by the network's name; 1 for a network that is not named."""
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16` (with loss scaling)."""
    seed: int = 1
    """Decides the order of the examples and the dropout."""
    row: str = ""
    """Stands before the name in the log, on the bar and in the saved state."""
    save_minutes: float = 10.0
    leg: Leg | None = None
    """The place of this training in a longer one, if it is part of one."""
    batches: BatchSampler = shuffled
    """Decides which examples meet in a batch."""
    after_step: Callable[[int], None] = lambda step: None
    """Is called after every step with the number of steps taken."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError(f"{self.name}: no training examples")
        if isinstance(self.loss, Contrastive):
            check_batch(self.name, self.settings, len(self.examples))
        self.stage, self.step = f"{self.row}/{self.name}" if self.row else self.name, 0
        self.total_steps = total_steps(self.settings, len(self.examples))
        self.leg = self.leg or Leg(0, self.total_steps)
        batch_size = self.settings.batch_size * distributed.world_size()
        self._sampler = self.batches(self.examples, batch_size, (self.seed, self.name))
        scale = LossScale() if self.precision == "fp16" else None
        self.optimizer = Optimizer(self.networks, self.settings.optimizer, self.rates or {}, scale)
        distributed.broadcast_parameters(self.optimizer.parameters.values())

    def fit(self) -> None:
        """Take the remaining steps. A line of the log has the means over the steps since the line before.

        Raises:
            FloatingPointError: the loss or the gradient is not finite. The last saved state stays as it is.
            Stopped: the user has pressed Ctrl-C or sent SIGTERM; the state is saved.
            ValueError: the saved state is damaged, or does not fit the data.
        """
        self._resume()
        for network in self.networks.values():
            network.train()
        saved, silent = time.monotonic(), not distributed.is_main()
        bar = tqdm(total=self.total_steps, initial=self.step, desc=self.stage, unit=" steps", disable=silent)
        curves = _Curves(self.log, self.stage, self.total_steps, bar)
        with bar, _stop_requests() as stop:
            while self.step < self.total_steps:
                values = self._take_step()
                self.after_step(self.step)
                bar.update()
                curves.add(self.step, values)
                stopping = distributed.any_rank(stop.is_set())
                if stopping or time.monotonic() - saved > 60 * self.save_minutes:
                    saved = time.monotonic()
                    self.save()
                if stopping:
                    raise Stopped(f"{self.stage}, step {self.step} of {self.total_steps}")
        for network in self.networks.values():
            network.eval()
        if self.leg.after and distributed.is_main():
            storage.write_arrays(self.leg.after, self.optimizer.state())

    def _take_step(self) -> dict[str, float]:
        """Take one optimizer step and return what to log."""
        rate = learning_rate(self.leg.first + self.step, self.leg.total, self.settings.optimizer)
        values = self._backward(self._batch(self.step))
        self.step += 1
        try:
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(f"the loss is {values['loss']}")
            norm = self.optimizer.step(rate)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{self.stage}, step {self.step}: {error}; lower the learning rate"
                + (" or set precision=bf16" if self.precision == "fp16" else "")
                + f". The last saved state is in {self.folder}"
            ) from None
        scale = {"loss_scale": self.optimizer.scale.value} if self.optimizer.scale else {}
        return {**values, "learning_rate": rate, "gradient_norm": norm, **scale}

    def _batch(self, step: int) -> list[Example]:
        """Return this rank's part of the batch of a step."""
        rows, size = self._sampler(step), self.settings.batch_size
        assert len(rows) == size * distributed.world_size(), (len(rows), size, distributed.world_size())
        first = distributed.rank() * size
        return [self.examples[row] for row in rows[first : first + size]]

    def _backward(self, batch: Sequence[Example]) -> dict[str, float]:
        """Compute the gradient of the loss of the batch, and return the named scalars."""
        paddle.seed(seed_of(self.seed, self.name, self.step, distributed.rank(), 0))
        with device.arithmetic(self.precision), in_chunks(self.settings.chunks):
            values = self.loss(batch)
        self.optimizer.scaled(values["loss"]).backward()
        return {name: float(value) for name, value in values.items()}

    # Stop and resume --------------------------------------------------------------------------

    def save(self) -> None:
        """Save the parameters, the optimizer's state and the step in the state folder. Only rank 0 writes."""
        if not distributed.is_main():
            return
        with folders.replacing(self.folder, CONTENTS) as new:
            arrays = {name: p.numpy() for name, p in self.optimizer.parameters.items()}
            storage.save_arrays(new / PARAMETERS, arrays)
            storage.save_arrays(new / OPTIMIZER, self.optimizer.state())
            made_of = {"name": self.stage, "fingerprint": self.fingerprint}
            storage.write_json(new / STATE, {**made_of, "step": self.step, **self._size()})

    def _size(self) -> dict[str, int]:
        sizes = {"total_steps": self.total_steps, "examples": len(self.examples)}
        return {**sizes, "processes": distributed.world_size()}

    def _resume(self) -> None:
        """Go on from the saved state if it belongs to this training; remove any other."""
        folder = folders.whole(self.folder)
        with _remedy(_anew(folder)):
            state = self._saved(folder / STATE)
        distributed.barrier()  # every rank has read the state before rank 0 may remove it
        if state:
            self._load(folder, state)
        else:
            if (folder / STATE).is_file() and distributed.is_main():
                folders.remove(self.folder, CONTENTS)
            if self.leg.before:
                with _remedy(f"remove {self.leg.before}, and the optimizer begins anew"):
                    self.optimizer.load(self.leg.before)
        self.log.rewind(self.stage, self.step)

    def _saved(self, path: Path) -> dict[str, Any] | None:
        """The saved state, if it is of this training and of as many processes: others take other batches."""
        state: dict[str, Any] = storage.read_json(path) if path.is_file() else {}
        if (state.get("name"), state.get("fingerprint")) != (self.stage, self.fingerprint):
            return None
        typed(state, State, str(path))
        before, now = state["processes"], distributed.world_size()
        if before == now:
            return state
        given = f"{state['step']} of its steps were taken by {before} processes and now there are {now}"
        distributed.say(f"{self.stage}: {given}: this training begins anew")
        return None

    def _load(self, folder: Path, state: Mapping[str, Any]) -> None:
        for name, now in self._size().items():
            if state[name] != now:
                raise ValueError(
                    f"{folder / STATE}: {name} was {state[name]}, is now {now}: go on with the settings "
                    f"the run began with, or remove {folder} to begin this training anew"
                )
        with _remedy(_anew(folder)):
            if not 0 <= state["step"] <= self.total_steps:
                raise ValueError(f"{folder / STATE}: step {state['step']}, expected 0 to {self.total_steps}")
            arrays = storage.read_arrays(folder / PARAMETERS)
            parameters.load_arrays_into(self.optimizer.parameters, arrays, folder)
            self.optimizer.load(folder / OPTIMIZER)
        self.step = state["step"]


class _Curves:
    """Logs the means of the values of steps every few seconds."""

    def __init__(self, log: MetricsLog, name: str, total_steps: int, bar: tqdm) -> None:
        self.log, self.name, self.total_steps, self.bar = log, name, total_steps, bar
        self._window: list[dict[str, float]] = []
        self._logged = time.monotonic()

    def add(self, step: int, values: dict[str, float]) -> None:
        self._window.append(values)
        now = time.monotonic()
        if now - self._logged <= _LOG_SECONDS and step not in (1, self.total_steps):
            return
        means = {name: fmean(values[name] for values in self._window) for name in values}
        self._logged, self._window = now, []
        self.log.write(stage=self.name, step=step, **means)
        self.bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)


def check_batch(name: str, settings: TrainingSettings, examples: int) -> None:
    """Raise ValueError if the contrastive batch of all ranks would need an example twice."""
    batch = settings.batch_size * distributed.world_size()
    if batch > examples:
        raise ValueError(
            f"{name}: {batch} examples a step (batch_size {settings.batch_size} on "
            f"{distributed.world_size()} processes), but there are only {examples}, and none may be "
            "its own negative: lower batch_size"
        )


def _anew(folder: Path) -> str:
    return f"remove {folder}, and this training begins anew"


@contextmanager
def _remedy(text: str) -> Iterator[None]:
    """Add to an error about a saved state what the user can do about it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}: {text}") from None


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM set an event, so that the current step is finished before the training stops."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
