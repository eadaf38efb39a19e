"""Fine-tuning of a loaded model on a training file, as the RocketQA toolkit's `train` does it.

A dual encoder learns from in-batch negatives and one hard negative a query
(rocketqa/model/dual_encoder_train.py). A cross encoder learns from single pairs with a label, and with
perturbed word embeddings (rocketqa/model/cross_encoder_train.py).
"""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import Tensor

from rocketqa_paddle import checkpoints, contrastive
from rocketqa_paddle.checkpoints.formats import onnx
from rocketqa_paddle.data.groups import (
    read_cross,
    read_dual,
    with_other_positives,
    without_false_negatives,
)
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.encoders import DUAL, Checkpoint, build, describe
from rocketqa_paddle.networks.ernie import check_number
from rocketqa_paddle.records import Group
from rocketqa_paddle.runtime import folders, storage
from rocketqa_paddle.settings import (
    OptimizerSettings,
    TrainingSettings,
    at_least,
    below_one,
    fraction,
)
from rocketqa_paddle.training.log import MetricsLog
from rocketqa_paddle.training.reranking import binary_loss
from rocketqa_paddle.training.trainer import CONTENTS, Loss, Stopped, Trainer

LOG = "log.train"
_ONE_AT_A_TIME = threading.Lock()  # Paddle's random numbers and its backward pass are shared by threads


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of `toolkit.DualModel.train` and `toolkit.CrossModel.train`, which describe them."""

    epoch: int
    batch_size: int
    save_steps: int = 0
    learning_rate: float = 2e-5
    warmup_ratio: float = 0.0
    dropout: float = 0.1
    adversarial: float = 0.0
    drop_false_negatives: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in {"epoch": 1, "batch_size": 1, "save_steps": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r}, expected at least {least}, a whole number")
        for name in ("learning_rate", "warmup_ratio", "dropout", "adversarial"):
            value = getattr(self, name)
            check_number(name, value, above=-math.inf, below=math.inf)
        if type(self.seed) is not int or type(self.drop_false_negatives) is not bool:
            given = f"seed={self.seed!r}, drop_false_negatives={self.drop_false_negatives!r}"
            raise ValueError(f"{given}, expected a whole number, and True or False")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate}, expected a number above 0")
        fraction(warmup_ratio=self.warmup_ratio)
        below_one(dropout=self.dropout)
        at_least(0, adversarial=self.adversarial)


def finetune(
    start: Checkpoint,
    train_set: str | Path,
    output: str | Path,
    log_folder: str | Path,
    settings: FinetuneSettings,
) -> Checkpoint:
    """Train a copy of a checkpoint and return it.

    `DualModel.train` and `CrossModel.train` describe the training file. Checkpoint folders `output/step_N`
    are written every `save_steps` steps and at the end, and `output/config.json` names the last of them as
    the toolkit's JSON does. The log is `log_folder/log.train`. A call that was stopped goes on when it is
    made again.

    Raises:
        FileNotFoundError: there is no such training file.
        ValueError: the training file is wrong, `output` holds the config.json of another model or a file that
            would be lost, or another process trains there.
        trainer.Stopped: the user has pressed Ctrl-C or sent SIGTERM; the state is saved.
    """
    output = Path(output)
    onnx.refuse(start, "trained")
    _check_folders(output, Path(log_folder), start)
    with _ONE_AT_A_TIME, storage.locked(output):
        folders.tidy(output)
        return _finetune(start, Path(train_set), output, Path(log_folder), settings)


def _finetune(
    start: Checkpoint, train_set: Path, output: Path, log_folder: Path, settings: FinetuneSettings
) -> Checkpoint:
    groups = list((read_dual if start.kind == DUAL else read_cross)(train_set))
    if settings.drop_false_negatives:
        groups = list(without_false_negatives(train_set, with_other_positives(groups)))
    if not groups:
        lacks = "no line has a negative" if train_set.stat().st_size else "the file is empty"
        raise ValueError(f"{train_set}: {lacks}, expected training examples")
    model, batch_size = _copy(start, settings.dropout), min(settings.batch_size, len(groups))
    if batch_size < settings.batch_size:
        warnings.warn(
            f"batch_size={settings.batch_size}, but {train_set} has {batch_size} lines", stacklevel=5
        )
    steps = math.ceil(settings.epoch * len(groups) / batch_size)
    every = settings.save_steps or math.ceil(steps / 2)
    names = {step: f"step_{step}" for step in (*range(every, steps, every), steps)}
    for name in names.values():
        checkpoints.CONTENTS.check(output / name)
    call = storage.fingerprint((start.digest(), storage.file_fingerprint(train_set), settings))
    unfinished = output / f"unfinished-{call}"
    states = {unfinished, *filter(CONTENTS.holds, output.glob("unfinished-*"))}
    for state in states:
        CONTENTS.check(state)

    def save(step: int) -> None:
        if name := names.get(step):
            checkpoints.save(model, output / name, f"Fine-tuned on {train_set}, step {step} of {steps}.")
            storage.write_json(output / "config.json", _config(model, name))

    log_folder.mkdir(parents=True, exist_ok=True)
    optimizer = OptimizerSettings(learning_rate=settings.learning_rate, warmup_ratio=settings.warmup_ratio)
    trainer = Trainer(
        "train",
        {"model": model.network},
        groups,
        _loss(model, settings),
        TrainingSettings(batch_size=batch_size, steps=steps, optimizer=optimizer),
        folder=unfinished,
        log=MetricsLog(log_folder / LOG, output=str(output)),
        fingerprint=call,
        seed=settings.seed,
        after_step=save,
    )
    try:
        trainer.fit()
    except Stopped as stopped:
        raise Stopped(f"{stopped}: saved in {unfinished}; the same call goes on") from None
    for state in states:
        folders.remove(state, CONTENTS)
    return model


def _config(model: Checkpoint, name: str) -> dict[str, str]:
    return {"model_type": model.kind, "model_checkpoint_path": name}


def _check_folders(output: Path, log_folder: Path, start: Checkpoint) -> None:
    """Refuse to replace what no training of this kind of model has written, before any work is done."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, but checkpoints are to be written there: choose another name")
    if log_folder.exists() and not log_folder.is_dir():
        raise ValueError(f"{log_folder} is a file, but the log is to be written into a folder of this name")
    path = output / "config.json"
    values = storage.read_json(path) if path.is_file() else _config(start, "step_1")
    if values.keys() != _config(start, "").keys() or values["model_type"] != start.kind:
        raise ValueError(f"{path} is another model's, which training would replace: choose another folder")


def _copy(checkpoint: Checkpoint, dropout: float) -> Checkpoint:
    """Copy a checkpoint to a new network with dropout; the old one can be used until training ends."""
    network = build(describe(checkpoint.network), checkpoint.network.config, dropout=dropout)
    parameters.load_arrays(network, parameters.to_arrays(checkpoint.network), "the loaded model")
    return Checkpoint(network, checkpoint.tokenizer, dict(checkpoint.lengths))


def _loss(model: Checkpoint, settings: FinetuneSettings) -> Loss:
    if model.kind == DUAL:
        return contrastive.in_batch(model, drop_false_negatives=settings.drop_false_negatives)
    return _cross_loss(model, settings.adversarial)


def _cross_loss(reranker: Checkpoint, adversarial: float) -> Loss:
    """Make the loss of pairs, with word embeddings perturbed by `adversarial`."""
    plain = binary_loss(reranker)

    def loss(groups: Sequence[Group]) -> Mapping[str, Tensor]:
        with perturbed(reranker, lambda: plain(groups)["loss"], adversarial):
            return plain(groups)

    return loss if adversarial else plain


@contextmanager
def perturbed(reranker: Checkpoint, loss: Callable[[], Tensor], size: float) -> Iterator[None]:
    """Move the word embeddings in the direction in which the loss grows most, and put them back at the end.

    This is the fast gradient method (Miyato et al., ICLR 2017), as in the reference's
    `cross_encoder_train.py`. The direction is the gradient over its norm, computed without dropout, and
    `size` is the Euclidean length of the move, over all embeddings together.
    """
    network, embedding = reranker.network, reranker.network.ernie.word_embedding.weight
    kept = embedding.numpy()
    try:
        network.eval()
        # Not paddle.grad of the embedding alone: on a CPU, Paddle 3.3.1 leaves the scale out of a layer
        # norm's gradient unless the scale's own gradient is computed as well.
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
