"""The one training loop: mixed precision, accumulation, ranks, curves, stop and resume.

Which examples a step sees, its learning rate and its dropout are functions of (seed, step) alone.
So a run that goes on from `last/` takes the very steps it would have taken, and there is no random
state to save.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Generic

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.utils import unique_name
from safetensors.numpy import save_file
from tqdm import tqdm

from rocketqa_paddle.contrastive import Contrastive, Example
from rocketqa_paddle.networks.ernie import NAMING
from rocketqa_paddle.runtime import device, distributed
from rocketqa_paddle.runtime.storage import (
    read_arrays,
    read_json,
    replacing,
    whole,
    write_arrays,
    write_json,
    write_text,
)
from rocketqa_paddle.settings import OptimizerSettings, StageSettings
from rocketqa_paddle.training.loss_scale import LossScale

Loss = Callable[[Sequence[Example]], Mapping[str, Tensor]] | Contrastive[Example]
_MOMENTS = (
    "moment1_0",
    "moment2_0",
    "beta1_pow_acc_0",
    "beta2_pow_acc_0",
)  # Paddle's names of Adam's and LAMB's state
_SCALE = ("loss_scale.value", "loss_scale.steps")
_LOG_SECONDS = 10.0


class Stopped(RuntimeError):
    """The user asked the run to stop; its state is saved."""


@dataclass(frozen=True)
class Leg:
    """One of several stretches of training that share a schedule and an optimizer, each a `Trainer`.

    Args:
        first: steps that the legs before have taken.
        total: steps of all legs.
        before: file with the optimizer's state after the leg before; None for a new optimizer.
        after: file that gets the state after this one, if any is to.
    """

    first: int
    total: int
    before: Path | None = None
    after: Path | None = None


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line. Only rank 0 writes, so losses are those of its share.

    Args:
        path: the file, which is added to.
        always: stands in every line, and tells the lines of one training from those of another.
    """

    def __init__(self, path: str | Path, **always: Any) -> None:
        self.path, self.always = Path(path), always

    def write(self, **values: Any) -> None:
        """Add a line with the time and these values; a number that is none becomes null."""
        if not distributed.is_main():
            return
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(self.read())
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **self.always, **finite}) + "\n")

    def _rewrite(self, rows: Sequence[dict[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def read(self) -> list[dict[str, Any]]:
        """All lines so far, without a last one that a crash cut off."""
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else []
        try:
            return [json.loads(line) for line in lines[:-1]]
        except ValueError as error:
            raise ValueError(f"{self.path}: a line is not JSON ({error}): remove it") from None

    def rewind(self, stage: str, step: int) -> None:
        """Forget what `stage` logged after `step`: those steps will be taken again."""
        if distributed.is_main() and self.path.is_file():
            ours = {"stage": stage, **self.always}.items()
            self._rewrite(
                [row for row in self.read() if not ours <= row.items() or row.get("step", 0) <= step]
            )

    def forget(self, stage: str, *, only_measures: bool) -> None:
        """Rank 0: drop what was logged of a stage of the run, in which several trainings may lie."""
        rows = self.read()
        kept = [
            row
            for row in rows
            if not (row["stage"] == stage or row["stage"].startswith(f"{stage} "))
            or (only_measures and "step" in row)
        ]
        if len(kept) < len(rows):
            self._rewrite(kept)


class Trainer(Generic[Example]):
    """Trains some networks together, for one stage of a run.

    Args:
        stage: its name, in the log and in `last/`.
        networks: what to train, by name.
        examples: the training examples; every step takes the next `batch_size` of them a rank, in
            an order shuffled anew each pass.
        loss: examples of one rank → named scalars, of which `loss` is minimised; or a `Contrastive` loss.
        settings: batch size, steps and optimizer.
        folder: the run's `last/`, where unfinished work is saved.
        log: the run's curves.
        rates: factor of the learning rate by network's name, 1 where absent.
        precision: `fp32`, `bf16` or `fp16` (with loss scaling).
        seed: of order and dropout.
        save_minutes: how often to save.
        leg: where this stretch stands in a longer training; by default it is one of its own.
        after_step: called with the number of steps taken, after each of them.
    """

    def __init__(
        self,
        stage: str,
        networks: Mapping[str, nn.Layer],
        examples: Sequence[Example],
        loss: Loss,
        settings: StageSettings,
        *,
        folder: str | Path,
        log: MetricsLog,
        rates: Mapping[str, float] | None = None,
        precision: str = "fp32",
        seed: int = 1,
        save_minutes: float = 10.0,
        leg: Leg | None = None,
        after_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        if not examples:
            raise ValueError(f"{stage}: no training examples")
        self.stage, self.networks, self.examples, self.loss, self.settings = (
            stage,
            networks,
            examples,
            loss,
            settings,
        )
        self.folder, self.log, self.precision, self.seed = Path(folder), log, precision, seed
        self.save_seconds, self.after_step = 60 * save_minutes, after_step
        global_batch = settings.batch_size * distributed.world_size()
        if isinstance(loss, Contrastive) and global_batch > len(examples):
            raise ValueError(
                f"{stage}: {global_batch} examples a step (batch_size {settings.batch_size} on "
                f"{distributed.world_size()} processes), but there are only {len(examples)}, and none may be "
                "its own negative: lower batch_size"
            )
        self.total_steps = total_steps(settings, len(examples))
        self.leg = leg or Leg(0, self.total_steps)
        self.step, self._epoch = 0, -1
        self._permutation: np.ndarray | None = None
        self.parameters = dict(_named_parameters(networks))
        distributed.broadcast_parameters(self.parameters.values())
        self.optimizer = make_optimizer(networks, settings.optimizer, rates or {})
        self.scale = LossScale() if precision == "fp16" else None

    def fit(self) -> None:
        """Take the remaining steps. A line of the log holds means over the steps since the line before.

        Raises:
            FloatingPointError: the loss is not a number; nothing saved before is touched.
            Stopped: on Ctrl-C or SIGTERM, after saving.
        """
        self._resume()
        for network in self.networks.values():
            network.train()
        saved = logged = time.monotonic()
        window: list[dict[str, float]] = []  # what the steps since the last line of the log gave
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            desc=self.stage,
            unit=" steps",
            disable=not distributed.is_main(),
        )
        with bar, _stop_requests() as stop:
            while self.step < self.total_steps:
                window.append(self._take_step())
                self.after_step(self.step)
                bar.update()
                now = time.monotonic()
                if now - logged > _LOG_SECONDS or self.step in (1, self.total_steps):
                    logged = now
                    means = {name: fmean(values[name] for values in window) for name in window[0]}
                    window.clear()
                    self.log.write(stage=self.stage, step=self.step, **means)
                    bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
                stopping = distributed.any_rank(stop.is_set())
                if stopping or now - saved > self.save_seconds:
                    saved = now
                    self.save()
                if stopping:
                    raise Stopped(f"{self.stage}, step {self.step} of {self.total_steps}")
        for network in self.networks.values():
            network.eval()
        if self.leg.after and distributed.is_main():
            write_arrays(self.leg.after, self._optimizer_arrays())

    def _take_step(self) -> dict[str, float]:
        """One optimizer step; returns what to log."""
        rate = learning_rate(self.leg.first + self.step, self.leg.total, self.settings.optimizer)
        contrast = isinstance(self.loss, Contrastive)
        values = (self._backward_contrastive if contrast else self._backward)(self._batch(self.step))
        self.step += 1
        self._check_finite("loss", values["loss"])
        distributed.average_gradients(self.parameters.values())
        norm = self._clip_gradients()
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.set_lr(rate)
            with NAMING, unique_name.guard():  # Paddle numbers Adam's state from 0, whatever ran before
                self.optimizer.step()
        if self.scale and (finite or self.scale.value > 1):
            self.scale.update(finite=finite)  # a step too large for fp16 is left out
        else:
            self._check_finite("gradient", norm)
        self.optimizer.clear_grad(set_to_zero=False)
        scale = {"loss_scale": self.scale.value} if self.scale else {}
        return {**values, "learning_rate": rate, "gradient_norm": norm, **scale}

    def _clip_gradients(self) -> float:
        """Take the loss scale out of the gradients and clip them; returns the norm that they had."""
        parameters = list(self.parameters.values())
        if self.scale:
            with paddle.no_grad():
                for gradient in (parameter.grad for parameter in parameters):
                    if gradient is not None:
                        gradient.scale_(1 / self.scale.value)
        return float(nn.utils.clip_grad_norm_(parameters, self.settings.optimizer.clip_norm))

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{self.stage}, step {self.step}: the {what} is {value}; lower the learning rate"
                + (" or set precision=bf16" if self.precision == "fp16" else "")
                + f". The last saved state is in {self.folder}"
            )

    def _backward(self, batch: list[Example]) -> dict[str, float]:
        """Accumulate the gradient of the batch's mean loss, part by part."""
        self._seed_dropout(0)
        parts, values = self._parts(batch), {}
        for part in parts:
            with device.arithmetic(self.precision):
                losses = self.loss(part)
            self._scaled(losses["loss"] / len(parts)).backward()
            for name, value in losses.items():
                values[name] = values.get(name, 0.0) + float(value) / len(parts)
        return values

    def _parts(self, batch: list[Example]) -> list[list[Example]]:
        size = len(batch) // self.settings.accumulate
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _backward_contrastive(self, batch: list[Example]) -> dict[str, float]:
        """The gradient of the loss of all ranks' batches, with the memory of one part of ours.

        GradCache (Gao et al., RepL4NLP 2021): encode the parts without a graph, take the gradient of the
        loss with respect to the vectors, then encode the parts again and go on from there. A part's dropout
        is the same both times.
        """
        parts = self._parts(batch)
        if len(parts) == 1:
            return self._contrast(self._encode(0, batch))
        with paddle.no_grad():
            encoded = [self._encode(number, part) for number, part in enumerate(parts)]
        vectors = [paddle.concat(tensors) for tensors in zip(*encoded, strict=True)]
        for tensor in vectors:
            tensor.stop_gradient = False
        values = self._contrast(vectors)
        gradients = [tensor.grad.split(len(parts)) for tensor in vectors]
        for number, part in enumerate(parts):
            again = self._encode(number, part)
            paddle.autograd.backward(list(again), [gradient[number] for gradient in gradients])
        return values

    def _encode(self, number: int, part: Sequence[Example]) -> Sequence[Tensor]:
        self._seed_dropout(number)
        with device.arithmetic(self.precision):
            return self.loss.encode(part)

    def _contrast(self, vectors: Sequence[Tensor]) -> dict[str, float]:
        """Backward through the loss of all ranks' vectors, which each computes whole, or of its own.

        Of all ranks', each keeps the gradient of its own rows. Their sum is wanted, and `average_gradients`
        will take the mean: hence the factor.
        """
        if self.loss.cross_batch:
            losses, factor = self.loss.loss(*map(distributed.gather_rows, vectors)), distributed.world_size()
        else:
            losses, factor = self.loss.loss(*vectors), 1
        self._scaled(losses["loss"] * factor).backward()
        return {name: float(value) for name, value in losses.items()}

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale.value if self.scale else loss

    def _seed_dropout(self, part: int) -> None:
        paddle.seed(_hash(self.seed, self.stage, self.step, distributed.rank(), part))

    def _batch(self, step: int) -> list[Example]:
        """This rank's examples of a step: its share of the next rows of an endless shuffled stream."""
        ranks, size, count = distributed.world_size(), self.settings.batch_size, len(self.examples)
        first = (step * ranks + distributed.rank()) * size
        return [self.examples[self._order(row // count)[row % count]] for row in range(first, first + size)]

    def _order(self, epoch: int) -> np.ndarray:
        """The order of a pass: shuffled anew, and such that no batch has an example twice."""
        if epoch < self._epoch:
            self._epoch, self._permutation = -1, None
        while self._epoch < epoch:
            self._epoch += 1
            self._permutation = self._shuffled(self._epoch, before=self._permutation)
        return self._permutation

    def _shuffled(self, epoch: int, before: np.ndarray | None) -> np.ndarray:
        count, batch = len(self.examples), self.settings.batch_size * distributed.world_size()
        order = np.random.default_rng(_hash(self.seed, self.stage, epoch)).permutation(count)
        begun = epoch * count % batch  # the pass before has begun the batch that this one completes
        if before is not None and begun and batch <= count:
            rest, taken = batch - begun, before[-begun:]
            twice = np.flatnonzero(np.isin(order[:rest], taken))
            later = rest + np.flatnonzero(~np.isin(order[rest:], taken))[: len(twice)]
            order[twice], order[later] = order[later], order[twice]
        return order

    # Stop and resume --------------------------------------------------------------------------

    def save(self) -> None:
        """Write `last/`: parameters, optimizer and where the stage is. Rank 0 only."""
        if not distributed.is_main():
            return
        with replacing(self.folder, marker="state.json") as new:
            save_file(
                {name: p.numpy() for name, p in self.parameters.items()}, new / "parameters.safetensors"
            )
            save_file(self._optimizer_arrays(), new / "optimizer.safetensors")
            state = {
                "stage": self.stage,
                "step": self.step,
                "total_steps": self.total_steps,
                "examples": len(self.examples),
                "processes": distributed.world_size(),
            }
            write_json(new / "state.json", state)

    def _resume(self) -> None:
        """Go on from `last/` if it holds this stage."""
        folder = whole(self.folder)
        path = folder / "state.json"
        state = read_json(path) if path.is_file() else {}
        if state.get("stage") != self.stage:
            if self.leg.before:
                with _remedy(f"remove {self.leg.before}, and the optimizer begins anew"):
                    self._load_optimizer(self.leg.before)
            self.log.rewind(self.stage, 0)
            return
        now = {
            "total_steps": self.total_steps,
            "examples": len(self.examples),
            "processes": distributed.world_size(),
        }
        for name, ours in now.items():
            if state[name] != ours:
                raise ValueError(
                    f"{path}: {name} was {state[name]}, is now {ours}: go on with the settings and number of "
                    f"processes the run began with, or remove {folder} to begin the stage anew"
                )
        with _remedy(f"remove {folder}, and the stage begins anew"):
            arrays = read_arrays(folder / "parameters.safetensors")
            parameters.load_arrays_into(self.parameters, arrays, path)
            self._load_optimizer(folder / "optimizer.safetensors")
        self.step = state["step"]
        self.log.rewind(self.stage, self.step)

    def _moments(self) -> dict[str, str]:
        """Paddle's names of Adam's state, by ours: Paddle's change with every process."""
        return {
            f"{name}.{moment}": f"{parameter.name}_{moment}"
            for name, parameter in self.parameters.items()
            for moment in _MOMENTS
        }

    def _load_optimizer(self, path: Path) -> None:
        """Read what `_optimizer_arrays` gave; no moments at all if no step had been finite yet."""
        arrays = read_arrays(path)
        begun = not self.scale or arrays.keys() - {*_SCALE}
        moments = self._moments() if begun else {}
        if missing := {*moments, *(_SCALE if self.scale else ())} - arrays.keys():
            raise ValueError(f"{path}: not the state of this optimizer, {min(missing)} is missing")
        if moments:
            self.optimizer.set_state_dict(
                {theirs: paddle.to_tensor(arrays[ours]) for ours, theirs in moments.items()}
            )
        if self.scale:
            value, steps = (arrays[name].item() for name in _SCALE)
            self.scale.value, self.scale.steps = value, int(steps)

    def _optimizer_arrays(self) -> dict[str, np.ndarray]:
        """Adam's state under our parameter names, and the loss scale."""
        state = self.optimizer.state_dict()
        arrays = {ours: state[theirs].numpy() for ours, theirs in self._moments().items() if state}
        if self.scale:
            values = (self.scale.value, self.scale.steps)
            arrays |= {name: np.float32(value).reshape(1) for name, value in zip(_SCALE, values, strict=True)}
        return arrays


def total_steps(settings: StageSettings, examples: int) -> int:
    """Optimizer steps of a stretch of training on so many examples."""
    batch = settings.batch_size * distributed.world_size()
    return settings.steps or math.ceil(settings.epochs * examples / batch)


def learning_rate(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """The rate of a step (from 0): linear growth, then linear decay to 0 or constant."""
    warmup = round(settings.warmup_share * total_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.decay == "constant":
        return settings.learning_rate
    return settings.learning_rate * (total_steps - step) / max(1, total_steps - warmup)


def make_optimizer(
    networks: Mapping[str, nn.Layer], settings: OptimizerSettings, rates: Mapping[str, float]
) -> paddle.optimizer.Optimizer:
    """AdamW or LAMB over all networks, a factor of the rate for each; no decay on biases and layer norms."""
    decayed = {
        weight.name
        for network in networks.values()
        for layer in network.sublayers(include_self=True)
        if isinstance(layer, nn.Linear | nn.Embedding)
        for weight in [layer.weight]
    }
    groups = [
        {"params": network.parameters(), "learning_rate": rates.get(name, 1.0)}
        for name, network in networks.items()
    ]
    if settings.algorithm == "lamb":
        return paddle.optimizer.Lamb(
            learning_rate=settings.learning_rate,
            parameters=groups,
            lamb_weight_decay=settings.weight_decay,
            exclude_from_weight_decay_fn=lambda parameter: parameter.name not in decayed,
        )
    return paddle.optimizer.AdamW(
        learning_rate=settings.learning_rate,
        parameters=groups,
        weight_decay=settings.weight_decay,
        apply_decay_param_fun=decayed.__contains__,
    )


def _named_parameters(networks: Mapping[str, nn.Layer]) -> Iterator[tuple[str, Tensor]]:
    for network_name, network in networks.items():
        for name, parameter in network.named_parameters():
            yield f"{network_name}.{name}", parameter


def _hash(*parts: Any) -> int:
    """A 31-bit seed from anything printable, the same in every process and on every day."""
    return zlib.crc32(repr(parts).encode()) & 0x7FFFFFFF


@contextmanager
def _remedy(text: str) -> Iterator[None]:
    """Errors of a saved state say what to do about it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}: {text}") from None


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a step in progress is finished first."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
