"""Fine-tuning of a loaded model on a training file, as the RocketQA toolkit's `train` does it.

A dual encoder learns from in-batch negatives and one hard negative a query (rocketqa/model/
dual_encoder_train.py); a cross encoder from single pairs with a label, its word embeddings perturbed
(rocketqa/model/cross_encoder_train.py).
"""

from __future__ import annotations

import math
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import Tensor

from rocketqa_paddle import checkpoints, contrastive, losses
from rocketqa_paddle.data import formats
from rocketqa_paddle.networks import forward, parameters
from rocketqa_paddle.networks.encoders import DUAL, Checkpoint, build, describe
from rocketqa_paddle.records import Group
from rocketqa_paddle.runtime.storage import read_json, write_json
from rocketqa_paddle.settings import OptimizerSettings, StageSettings
from rocketqa_paddle.training.trainer import Loss, MetricsLog, Stopped, Trainer

LOG = "log.train"
_ONE_AT_A_TIME = threading.Lock()  # Paddle's random numbers and its backward pass are shared by threads


@dataclass(frozen=True)
class FinetuneSettings:
    """What `models.DualModel.train` and `models.CrossModel.train` take; see there."""

    epoch: int
    batch_size: int
    save_steps: int = 0
    learning_rate: float = 2e-5
    warmup_share: float = 0.0
    dropout: float = 0.1
    adversarial: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in {"epoch": 1, "batch_size": 1, "save_steps": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r}, expected at least {least}, a whole number")
        for name in ("learning_rate", "warmup_share", "dropout", "adversarial"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{name}={value!r}, expected 0 or more")
        if not self.learning_rate:
            raise ValueError("learning_rate=0 trains nothing, expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}, expected 0 or more and less than 1")


def finetune(
    start: Checkpoint,
    train_set: str | Path,
    output: str | Path,
    log_folder: str | Path,
    settings: FinetuneSettings,
) -> Checkpoint:
    """Train a copy of `start` and return it.

    Writes `output/step_N`, a checkpoint folder every `save_steps` steps and at the end, and
    `output/config.json`, which names the last of them as the toolkit's JSON does. A call that was stopped
    goes on when it is made again.

    Raises:
        ValueError: a setting or the file is wrong, or `output` holds another model's config.json.
        trainer.Stopped: on Ctrl-C or SIGTERM, after saving.
    """
    with _ONE_AT_A_TIME:
        return _finetune(start, Path(train_set), Path(output), Path(log_folder), settings)


def _finetune(
    start: Checkpoint, train_set: Path, output: Path, log_folder: Path, settings: FinetuneSettings
) -> Checkpoint:
    _check_free(output, log_folder, start)
    groups = list((formats.read_dual_tsv if start.kind == DUAL else formats.read_cross_tsv)(train_set))
    if not groups:
        raise ValueError(f"{train_set}: the file is empty, expected training examples")
    model, batch_size = _copy(start, settings.dropout), min(settings.batch_size, len(groups))
    if batch_size < settings.batch_size:
        warnings.warn(
            f"batch_size={settings.batch_size}, but {train_set} has {batch_size} lines", stacklevel=4
        )
    steps = math.ceil(settings.epoch * len(groups) / batch_size)
    every = settings.save_steps or math.ceil(steps / 2)

    def save(step: int) -> None:
        if step % every == 0 or step == steps:
            name = f"step_{step}"
            checkpoints.save(model, output / name, f"Fine-tuned on {train_set}, step {step} of {steps}.")
            write_json(output / "config.json", _config(model, name))

    asked = (start.digest(), zlib.crc32(train_set.read_bytes()), settings)
    unfinished = output / f"unfinished-{zlib.crc32(repr(asked).encode()):08x}"  # of this very call
    log_folder.mkdir(parents=True, exist_ok=True)
    optimizer = OptimizerSettings(learning_rate=settings.learning_rate, warmup_share=settings.warmup_share)
    trainer = Trainer(
        "train",
        {"model": model.network},
        groups,
        contrastive.in_batch(model) if model.kind == DUAL else _cross_loss(model, settings.adversarial),
        StageSettings(batch_size=batch_size, steps=steps, optimizer=optimizer),
        folder=unfinished,
        log=MetricsLog(log_folder / LOG, output=str(output)),
        seed=settings.seed,
        after_step=save,
    )
    try:
        trainer.fit()
    except Stopped as stopped:
        raise Stopped(f"{stopped}: saved in {unfinished}; the same call goes on") from None
    for folder in output.glob("unfinished-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return model


def _config(model: Checkpoint, name: str) -> dict[str, str]:
    return {"model_type": model.kind, "model_checkpoint_path": name}


def _check_free(output: Path, log_folder: Path, start: Checkpoint) -> None:
    """Refuse, before anything is trained, to replace what no training of this kind of model has written."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, but checkpoints are to be written there: choose another name")
    if log_folder.exists() and not log_folder.is_dir():
        raise ValueError(f"{log_folder} is a file, but the log is to be written into a folder of this name")
    path = output / "config.json"
    values = read_json(path) if path.is_file() else _config(start, "step_1")
    if values.keys() != _config(start, "").keys() or values["model_type"] != start.kind:
        raise ValueError(f"{path} is another model's, which training would replace: choose another folder")


def _copy(checkpoint: Checkpoint, dropout: float) -> Checkpoint:
    described = describe(checkpoint.network)
    network = build(described, checkpoint.network.config, dropout=dropout)
    parameters.load_arrays(network, parameters.to_arrays(checkpoint.network), "the loaded model")
    return Checkpoint(network, checkpoint.tokenizer, dict(checkpoint.lengths))


def _cross_loss(reranker: Checkpoint, adversarial: float) -> Loss:
    def entropy(groups: Sequence[Group]) -> Tensor:
        labels = paddle.to_tensor([float(group.labels[0]) for group in groups])
        return losses.binary_cross_entropy(forward.reranker_scores(reranker, groups).flatten(), labels)

    def loss(groups: Sequence[Group]) -> dict[str, Tensor]:
        if not adversarial:
            return {"loss": entropy(groups)}
        with perturbed(reranker, lambda: entropy(groups), adversarial):
            return {"loss": entropy(groups)}

    return loss


@contextmanager
def perturbed(reranker: Checkpoint, loss: Callable[[], Tensor], size: float) -> Iterator[None]:
    """Move the word embeddings by `size` in the direction in which the loss grows most, then put them back.

    The direction is the gradient over its norm, taken without dropout. Fast gradient method (Miyato et al.,
    ICLR 2017), as in the reference's `cross_encoder_train.py`.
    """
    network, embedding = reranker.network, reranker.network.ernie.word_embedding.weight
    kept = embedding.numpy()
    try:
        network.eval()
        # Not paddle.grad of the embedding alone: on a CPU, Paddle 3.3.1 leaves the scale out of a layer
        # norm's gradient unless the scale's own gradient is asked for.
        loss().backward()
        with paddle.no_grad():
            gradient = embedding.grad
            norm = (gradient.square().sum() + 1e-8).sqrt()
            embedding.set_value(embedding + size * gradient / norm)
        network.clear_gradients()
        network.train()
        yield
    finally:
        network.train()
        with paddle.no_grad():
            embedding.set_value(kept)
