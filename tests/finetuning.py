"""Training files, random checkpoints, and calls of `train` that end in a moment."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import toy
from paddle import nn
from paddle.base import unique_name

from rocketqa_paddle import checkpoints
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.toolkit import CrossModel, DualModel, load_model
from rocketqa_paddle.training.trainer import Stopped, Trainer

Model = DualModel | CrossModel
Arrays = Mapping[str, np.ndarray]
KINDS = ["dual", "cross"]
QUERIES = [f"where is the {colour} {animal} ?" for colour, animal in toy.PAIRS]
TEXTS = [f"the {colour} {animal} {toy.PLACES[i % 5]} ." for i, (colour, animal) in enumerate(toy.PAIRS)]
TITLES = [animal if i % 2 else "" for i, (_, animal) in enumerate(toy.PAIRS)]
ONE_STEP = {"epoch": 1, "batch_size": 10}
"""Settings that take all 10 examples in a single step."""


def rows(kind: str, count: int = 10) -> list[tuple[str, ...]]:
    """Lines of a training file. Every fourth text is too long for the toy's lengths."""
    texts = [" ".join([text] * (3 if i % 4 == 3 else 1)) for i, text in enumerate(TEXTS)]
    if kind == "dual":
        places = [(i, (i + 7) % 60) for i in range(count)]
        return [(QUERIES[i], TITLES[i], texts[i], TITLES[j], texts[j], "0") for i, j in places]
    places = [(i, i if i % 3 else (i + 7) % 60) for i in range(count)]
    return [(QUERIES[i], TITLES[j], texts[j], str(int(i == j))) for i, j in places]


def write(path: Path, lines: Sequence[Sequence[str]]) -> Path:
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def random_checkpoint(kind: str, tokens: Tokenizer, seed: int = 3, **network: Any) -> Checkpoint:
    """A checkpoint with weights of ordinary size everywhere, in biases and layer norms as well."""
    paddle.seed(seed)
    options = {"head": "classes", "dropout": 0.0} if kind == "cross" else {}
    made = (toy.dual if kind == "dual" else toy.cross)(tokens, **(options | network))
    for parameter in made.network.parameters():
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    return made


def write_starts(folder: Path, tokens: Tokenizer) -> dict[str, Path]:
    """Write a checkpoint and a training file of either kind: `dual`, `dual.tsv`, and so on."""
    for kind in KINDS:
        checkpoints.save(random_checkpoint(kind, tokens), folder / kind)
        write(folder / f"{kind}.tsv", rows(kind))
    return {path.name: path for path in folder.iterdir()}


def train(model: Model, train_set: str | Path, output: Path, **settings: Any) -> Model:
    """Take 5 steps on 10 examples, fast enough that they show. The log is beside the output."""
    defaults = {"epoch": 2, "batch_size": 4, "learning_rate": 1e-3, "log_folder": f"{output}-log"}
    model.train(train_set, save_model_path=output, **(defaults | settings))
    return model


def at_step(patch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Let something happen at the beginning of a step of training, counted from 1."""
    take = Trainer._take_step

    def taking(self: Trainer) -> dict[str, float]:
        if self.step == step - 1:
            action()
        return take(self)

    patch.setattr(Trainer, "_take_step", taking)


def interrupted(
    model: Model, train_set: str | Path, output: Path, step: int, number: int = signal.SIGINT, **settings: Any
) -> None:
    """Train, and stop by a signal that comes within a step."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped, match=f"step {step} of"):
            train(model, train_set, output, **settings)


def log(output: Path) -> list[dict[str, Any]]:
    lines = Path(f"{output}-log", "log.train").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answers(model: Model) -> np.ndarray:
    return model.matching(QUERIES[:8], TEXTS[:8], TITLES[:8])


def arrays_of(network: nn.Layer) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in parameters.to_arrays(network).items()}


def assert_same(given: Arrays, expected: Arrays) -> None:
    assert given.keys() == expected.keys()
    for name in given:
        np.testing.assert_array_equal(given[name], expected[name], err_msg=name)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def steps(output: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in output.glob("step_*"))


def train_in_threads(starts: Path, output: Path) -> dict[str, Any]:
    """Train alone, then three models at a time, then beside a thread that loads models; give the results."""

    def digest(place: str, kind: str) -> str:
        model = load_model(starts / kind)
        train(model, starts / f"{kind}.tsv", output / place, save_steps=100)
        return model.checkpoint.digest()

    def load_on() -> None:
        while not done.is_set():
            load_model(starts / "dual")

    found: dict[str, Any] = {"alone": [digest(f"alone-{kind}", kind) for kind in KINDS]}
    names, done = unique_name.generator, threading.Event()
    with ThreadPoolExecutor(3) as pool:
        found["together"] = list(pool.map(digest, map(str, range(4)), KINDS * 2))
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load_on)
        found["beside loading"] = [digest(f"beside-{number}", kind) for number, kind in enumerate(KINDS)]
        done.set()
        loading.result()
    return {**found, "names": unique_name.generator is names}


if __name__ == "__main__":
    print(json.dumps(train_in_threads(Path(sys.argv[1]), Path(sys.argv[2]))))
