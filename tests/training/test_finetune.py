"""`train` of both models: its loss against the oracle, steps, folders, stop and go on, what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import reference
import toy
from paddle import Tensor, nn
from paddle.base import unique_name

from rocketqa_paddle import checkpoints, losses
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.data import formats
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder, describe
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.records import Group
from rocketqa_paddle.settings import OptimizerSettings, StageSettings
from rocketqa_paddle.toolkit import CrossModel, DualModel, load_model
from rocketqa_paddle.training import finetune
from rocketqa_paddle.training import trainer as trainer_module
from rocketqa_paddle.training.trainer import MetricsLog, Stopped, Trainer

Model = DualModel | CrossModel
Arrays = dict[str, np.ndarray]
KINDS = ["dual", "cross"]
QUERIES = [f"where is the {colour} {animal} ?" for colour, animal in toy.PAIRS]
TEXTS = [f"the {colour} {animal} {toy.PLACES[i % 5]} ." for i, (colour, animal) in enumerate(toy.PAIRS)]
TITLES = [animal if i % 2 else "" for i, (_, animal) in enumerate(toy.PAIRS)]


def rows(kind: str, count: int = 10) -> list[tuple[str, ...]]:
    """Lines of a training file; every fourth text is too long for the toy's lengths."""
    texts = [" ".join([text] * (3 if i % 4 == 3 else 1)) for i, text in enumerate(TEXTS)]
    if kind == "dual":
        places = [(i, (i + 7) % 60) for i in range(count)]
        return [(QUERIES[i], TITLES[i], texts[i], TITLES[j], texts[j], "0") for i, j in places]
    places = [(i, i if i % 3 else (i + 7) % 60) for i in range(count)]
    return [(QUERIES[i], TITLES[j], texts[j], str(int(i == j))) for i, j in places]


def write(path: Path, lines: Sequence[Sequence[str]]) -> Path:
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy.tokenizer(tmp_path_factory.mktemp("finetune-vocabulary"))


def random_checkpoint(kind: str, tokens: Tokenizer, seed: int = 3, **network: Any) -> Checkpoint:
    """With weights of ordinary size everywhere, biases and layer norms too."""
    paddle.seed(seed)
    options = {"head": "classes", "dropout": 0.0} if kind == "cross" else {}
    made = (toy.dual if kind == "dual" else toy.cross)(tokens, **(options | network))
    for parameter in made.network.parameters():
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    return made


@pytest.fixture(scope="module")
def folders(tokens: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A start checkpoint and a training file of either kind: `dual`, `dual.tsv`, and so on."""
    folder = tmp_path_factory.mktemp("finetune")
    for kind in KINDS:
        checkpoints.save(random_checkpoint(kind, tokens), folder / kind)
        write(folder / f"{kind}.tsv", rows(kind))
    return {path.name: path for path in folder.iterdir()}


def train(model: Model, train_set: str | Path, output: Path, **settings: Any) -> Model:
    """5 steps on 10 examples, fast enough that they show; the log is beside the output."""
    defaults = {"epoch": 2, "batch_size": 4, "learning_rate": 1e-3, "log_folder": f"{output}-log"}
    model.train(train_set, save_model_path=output, **(defaults | settings))
    return model


def log(output: Path) -> list[dict[str, Any]]:
    lines = Path(f"{output}-log", "log.train").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answers(model: Model) -> np.ndarray:
    return model.matching(QUERIES[:8], TEXTS[:8], TITLES[:8])


def arrays_of(network: nn.Layer) -> Arrays:
    return {name: array.copy() for name, array in parameters.to_arrays(network).items()}


def assert_same(ours: Arrays, theirs: Arrays) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def steps(output: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in output.glob("step_*"))


def at_step(
    monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object], cls: type[Trainer] = Trainer
) -> None:
    """Let something happen within a step of training (counted from 1)."""
    take = cls._take_step

    def taking(self: Trainer) -> dict[str, float]:
        if self.step == step - 1:
            action()
        return take(self)

    monkeypatch.setattr(cls, "_take_step", taking)


def every_step(monkeypatch: pytest.MonkeyPatch) -> list[Arrays]:
    """The parameters before the first step and after each; and every step is logged."""
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)
    take, seen = Trainer._take_step, []

    def taking(self: Trainer) -> dict[str, float]:
        if not seen:
            seen.append(arrays_of(self.networks["model"]))
        values = take(self)
        seen.append(arrays_of(self.networks["model"]))
        return values

    monkeypatch.setattr(Trainer, "_take_step", taking)
    return seen


def interrupted(
    model: Model, train_set: str | Path, output: Path, step: int, number: int = signal.SIGINT, **settings: Any
) -> None:
    """Train, and stop by a signal that comes within a step."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped, match=f"step {step} of"):
            train(model, train_set, output, **settings)


# The loss -----------------------------------------------------------------------------------------


class Oracle:
    """NumPy's version of a checkpoint's network, from texts to the loss."""

    def __init__(self, checkpoint: Checkpoint, arrays: Arrays | None = None) -> None:
        self.arrays = arrays or arrays_of(checkpoint.network)
        self.lengths, self.vocabulary = checkpoint.lengths, checkpoint.tokenizer.vocabulary
        self.sizes = reference.Sizes(len(self.vocabulary), 16, 2, 2, 32, 64, 2)

    def ids(self, text: str) -> list[int]:
        return [self.vocabulary[piece] for piece in reference.word_pieces(text, self.vocabulary)]

    def state(self, tower: str, *segments: list[int]) -> np.ndarray:
        """Of [CLS], for one segment or two."""
        sequence, types = [self.vocabulary["[CLS]"]], [0]
        for number, segment in enumerate(segments):
            sequence += [*segment, self.vocabulary["[SEP]"]]
            types += [number] * (len(segment) + 1)
        variables = {
            name: self.arrays[f"{tower}.{reference.package_name(name)}"]
            for name in reference.shapes(self.sizes)
        }
        return reference.ernie(variables, self.sizes, (sequence, types))[0]

    def query(self, text: str) -> np.ndarray:
        return self.state("query", self.ids(text)[: self.lengths["query"] - 2])

    def passage(self, title: str, text: str) -> np.ndarray:
        return self.state(
            "passage", *reference.truncate(self.ids(title), self.ids(text), self.lengths["passage"] - 3)
        )

    def dual_loss(self, lines: Sequence[Sequence[str]]) -> float:
        queries = np.stack([self.query(line[0]) for line in lines])
        passages = [self.passage(*line[1:3]) for line in lines] + [self.passage(*line[3:5]) for line in lines]
        return reference.cross_entropy(queries @ np.stack(passages).T, range(len(lines)))

    def cross_loss(self, lines: Sequence[Sequence[str]]) -> float:
        head = {
            "pooled_fc.w_0": self.arrays["pooler.weight"],
            "pooled_fc.b_0": self.arrays["pooler.bias"],
            "_cls_out_w": self.arrays["output.weight"],
            "_cls_out_b": self.arrays["output.bias"],
        }
        logits = []
        for query, title, text, _ in lines:
            pair = reference.truncate(
                self.ids(query), self.ids(title) + self.ids(text), self.lengths["pair"] - 3
            )
            logits.append(reference.classes_logits(head, self.state("ernie", *pair)))
        return reference.cross_entropy(np.stack(logits), [int(line[3]) for line in lines])


def test_the_first_loss_of_a_dual_encoder_is_cross_entropy_over_all_positives_and_negatives(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(folders["dual"])
    expected = Oracle(model.checkpoint).dual_loss(rows("dual"))
    train(model, folders["dual.tsv"], tmp_path / "out", epoch=1, batch_size=10, dropout=0.0)
    [row] = log(tmp_path / "out")
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert expected > 1  # so that it says something


def test_the_first_loss_of_a_cross_encoder_is_cross_entropy_of_two_classes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(folders["cross"])
    expected = Oracle(model.checkpoint).cross_loss(rows("cross"))
    train(model, folders["cross.tsv"], tmp_path / "o", epoch=1, batch_size=10, dropout=0.0, adversarial=0.0)
    [row] = log(tmp_path / "o")
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert expected > 0.3


def test_the_first_loss_with_perturbation_is_that_of_the_perturbed_network(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(folders["cross"])
    arrays = arrays_of(model.checkpoint.network)
    gradient = gradients(model.checkpoint, cross_groups(folders))["ernie.word_embedding.weight"]
    arrays["ernie.word_embedding.weight"] += 2.0 * unit(gradient)
    moved = Oracle(model.checkpoint, arrays).cross_loss(rows("cross"))
    plain = Oracle(model.checkpoint).cross_loss(rows("cross"))
    assert moved > plain + 0.1  # uphill
    train(model, folders["cross.tsv"], tmp_path / "o", epoch=1, batch_size=10, dropout=0.0, adversarial=2.0)
    [row] = log(tmp_path / "o")
    assert row["loss"] == pytest.approx(moved, rel=1e-4)


def test_a_single_logit_learns_from_pairs_too(
    tokens: Tokenizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The joint re-ranker has one unit; its sigmoid takes the place of the softmax."""
    model = CrossModel(random_checkpoint("cross", tokens, head="logit"))
    odds = model.matching(*([line[i] for line in rows("cross")] for i in (0, 2, 1)))
    labels = np.array([int(line[3]) for line in rows("cross")])
    expected = np.log1p(np.exp(np.where(labels == 1, -odds, odds))).mean()
    train(model, folders["cross.tsv"], tmp_path / "o", epoch=1, batch_size=10, dropout=0.0, adversarial=0.0)
    assert log(tmp_path / "o")[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert load_model(tmp_path / "o").checkpoint.network.head == "logit"


# The perturbation ---------------------------------------------------------------------------------


def cross_groups(folders: dict[str, Path]) -> list[Group]:
    return list(formats.read_cross_tsv(folders["cross.tsv"]))


def plain_loss(checkpoint: Checkpoint, groups: Sequence[Group]) -> Tensor:
    return finetune._cross_loss(checkpoint, 0.0)(groups)["loss"]


def twin(checkpoint: Checkpoint, dropout: float = 0.0) -> Checkpoint:
    """The same weights in another network."""
    network = CrossEncoder(checkpoint.network.config, head=checkpoint.network.head, dropout=dropout)
    parameters.load_arrays(network, arrays_of(checkpoint.network), "twin")
    return Checkpoint(network, checkpoint.tokenizer, checkpoint.lengths)


def gradients(checkpoint: Checkpoint, groups: Sequence[Group]) -> Arrays:
    """Of the plain loss without dropout, by parameter, computed in a network of its own."""
    other = twin(checkpoint)
    plain_loss(other, groups).backward()
    return {name: p.grad.numpy().copy() for name, p in other.network.named_parameters()}


def unit(gradient: np.ndarray) -> np.ndarray:
    gradient = gradient.astype(np.float64)
    return gradient / np.sqrt((gradient**2).sum() + 1e-8)


def embedding_of(checkpoint: Checkpoint) -> Tensor:
    return checkpoint.network.ernie.word_embedding.weight


@pytest.mark.parametrize("size", [0.01, 0.5])
def test_the_word_embeddings_move_along_the_gradient_and_back(
    tokens: Tokenizer, folders: dict[str, Path], size: float
) -> None:
    checkpoint, groups = random_checkpoint("cross", tokens, dropout=0.4), cross_groups(folders)
    embedding = embedding_of(checkpoint)
    before = arrays_of(checkpoint.network)
    gradient = gradients(checkpoint, groups)["ernie.word_embedding.weight"]
    checkpoint.network.train()
    with finetune.perturbed(checkpoint, lambda: plain_loss(checkpoint, groups), size):
        during = arrays_of(checkpoint.network)
    moved = during.pop("ernie.word_embedding.weight")
    start = before["ernie.word_embedding.weight"]
    np.testing.assert_allclose(moved, start + size * unit(gradient), rtol=0, atol=1e-6 * size + 1e-7)
    assert np.linalg.norm(moved - start) == pytest.approx(size, rel=1e-3)
    unseen = ~gradient.any(axis=1)
    assert 0 < unseen.sum() < len(unseen)
    np.testing.assert_array_equal(moved[unseen], start[unseen])
    assert_same(during, {name: array for name, array in before.items() if name in during})
    assert_same(arrays_of(checkpoint.network), before)
    assert not embedding.stop_gradient


def test_the_first_pass_is_without_dropout_and_the_second_with_it(
    tokens: Tokenizer, folders: dict[str, Path]
) -> None:
    checkpoint, groups, modes = random_checkpoint("cross", tokens, dropout=0.4), cross_groups(folders), []
    network = checkpoint.network

    def loss() -> Tensor:
        modes.append((network.training, network.ernie.layers[0].attention.training))
        return plain_loss(checkpoint, groups)

    network.train()
    with finetune.perturbed(checkpoint, loss, 0.01):
        assert network.training and network.ernie.layers[0].attention.training
        drawn = [float(plain_loss(checkpoint, groups)) for _ in range(2)]
        assert drawn[0] != drawn[1]
    assert modes == [(False, False)]
    assert network.training and network.ernie.layers[0].attention.training


@pytest.mark.parametrize("where", ["first pass", "second pass"])
def test_an_error_puts_everything_back(tokens: Tokenizer, folders: dict[str, Path], where: str) -> None:
    checkpoint, groups = random_checkpoint("cross", tokens, dropout=0.4), cross_groups(folders)
    before = arrays_of(checkpoint.network)
    checkpoint.network.train()

    def loss() -> Tensor:
        if where == "first pass":
            raise MemoryError(where)
        return plain_loss(checkpoint, groups)

    with pytest.raises(MemoryError, match=where), finetune.perturbed(checkpoint, loss, 0.5):
        raise MemoryError(where)
    assert_same(arrays_of(checkpoint.network), before)
    assert checkpoint.network.training
    assert checkpoint.network.ernie.layers[0].attention.training


def test_the_first_pass_leaves_no_gradient(tokens: Tokenizer, folders: dict[str, Path]) -> None:
    checkpoint, groups = random_checkpoint("cross", tokens), cross_groups(folders)
    with finetune.perturbed(checkpoint, lambda: plain_loss(checkpoint, groups), 0.01):
        for name, parameter in checkpoint.network.named_parameters():
            assert parameter.grad is None or not parameter.grad.numpy().any(), name


def test_the_gradient_is_taken_at_the_moved_embeddings(tokens: Tokenizer, folders: dict[str, Path]) -> None:
    checkpoint, groups, size = random_checkpoint("cross", tokens), cross_groups(folders), 0.5
    plain = gradients(checkpoint, groups)
    by_hand = twin(checkpoint)
    embedding = embedding_of(by_hand)
    moved = embedding.numpy() + size * unit(plain["ernie.word_embedding.weight"])
    embedding.set_value(moved.astype(np.float32))
    expected = gradients(by_hand, groups)

    loss = finetune._cross_loss(checkpoint, size)(groups)["loss"]
    assert float(loss) == pytest.approx(float(plain_loss(by_hand, groups)), rel=1e-5)
    loss.backward()
    for name, parameter in checkpoint.network.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    difference = max(np.abs(expected[name] - plain[name]).max() for name in plain)
    assert difference > 0.01  # a gradient at the unmoved place would have been seen


def test_a_gradient_of_zero_moves_nothing(tokens: Tokenizer, folders: dict[str, Path]) -> None:
    checkpoint, groups = random_checkpoint("cross", tokens), cross_groups(folders)
    before = arrays_of(checkpoint.network)
    with finetune.perturbed(checkpoint, lambda: 0.0 * plain_loss(checkpoint, groups), 0.5):
        assert_same(arrays_of(checkpoint.network), before)


def test_the_perturbation_is_a_setting_of_the_cross_encoder_alone(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, perturbed = [], finetune.perturbed

    def recording(reranker: Checkpoint, loss: Callable[[], Tensor], size: float) -> Any:
        sizes.append(size)
        return perturbed(reranker, loss, size)

    monkeypatch.setattr(finetune, "perturbed", recording)
    results = {}
    for name, settings in {"default": {}, "none": {"adversarial": 0}, "far": {"adversarial": 0.3}}.items():
        sizes.clear()
        model = train(load_model(folders["cross"]), folders["cross.tsv"], tmp_path / name, **settings)
        results[name] = model.checkpoint.digest()
        assert sizes == {"default": [0.01] * 5, "none": [], "far": [0.3] * 5}[name]
    assert len(set(results.values())) == 3
    sizes.clear()
    train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "dual")
    assert not sizes


# Steps, rates and folders -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "count, epoch, batch_size, save_steps, total, saved",
    [
        (10, 1, 4, 0, 3, [2, 3]),
        (8, 2, 4, 0, 4, [2, 4]),
        (10, 2, 4, 2, 5, [2, 4, 5]),
        (10, 3, 5, 3, 6, [3, 6]),
        (10, 2, 4, 1, 5, [1, 2, 3, 4, 5]),
        (10, 2, 4, 100, 5, [5]),
        (3, 1, 16, 0, 1, [1]),
    ],
)
def test_steps_and_saves(
    kind: str,
    count: int,
    epoch: int,
    batch_size: int,
    save_steps: int,
    total: int,
    saved: list[int],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    file, output = write(tmp_path / "train.tsv", rows(kind, count)), tmp_path / "out"
    settings = {"epoch": epoch, "batch_size": batch_size, "save_steps": save_steps}
    train(load_model(folders[kind]), file, output, **settings)
    assert log(output)[-1]["step"] == total
    assert steps(output) == saved
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["config.json", *(f"step_{step}" for step in saved)]
    )
    assert json.loads((output / "config.json").read_text()) == {
        "model_type": f"{kind}_encoder",
        "model_checkpoint_path": f"step_{total}",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_the_parameters_of_its_step(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, model = every_step(monkeypatch), load_model(folders[kind])
    train(model, folders[f"{kind}.tsv"], tmp_path / "out", save_steps=2)
    assert len(seen) == 6
    for step in (2, 4, 5):
        saved = load_model(tmp_path / "out" / f"step_{step}")
        assert_same(arrays_of(saved.checkpoint.network), seen[step])
    assert_same(arrays_of(model.checkpoint.network), seen[5])
    assert any((seen[4][name] != seen[5][name]).any() for name in seen[5])


def test_the_config_names_the_last_folder_at_any_time(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what was saved can be used while training goes on."""
    output, named = tmp_path / "out", []
    for step in (3, 5):
        at_step(monkeypatch, step, lambda: named.append(load_model(output).checkpoint.digest()))
    train(load_model(folders["dual"]), folders["dual.tsv"], output, save_steps=2)
    assert named == [load_model(output / f"step_{step}").checkpoint.digest() for step in (2, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_the_toolkits(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2e-5 and a linear decay from the first step on; saves half-way and at the end; a folder `log`."""
    every_step(monkeypatch)
    monkeypatch.chdir(tmp_path)
    model = load_model(str(folders[kind]), batch_size=4)
    model.train(str(folders[f"{kind}.tsv"]), 2, "out")
    rows = [json.loads(line) for line in Path("log", "log.train").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]  # 10 examples twice, 4 a step: that of load_model
    assert [row["learning_rate"] for row in rows] == pytest.approx([2e-5 * n / 5 for n in (5, 4, 3, 2, 1)])
    assert steps(Path("out")) == [3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


def test_a_warm_up_can_be_had(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_step(monkeypatch)
    train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "o", warmup_share=0.4)
    rates = [row["learning_rate"] for row in log(tmp_path / "o")]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])


def test_train_takes_what_the_toolkits_takes() -> None:
    for model, extra in ((DualModel, set()), (CrossModel, {"adversarial"})):
        parameters = inspect.signature(model.train).parameters
        assert list(parameters)[:4] == ["self", "train_set", "epoch", "save_model_path"]
        ours = {name: parameter.default for name, parameter in parameters.items()}
        assert ours.keys() >= {"save_steps", "learning_rate", "batch_size", "log_folder"} | extra
        assert (ours["save_steps"], ours["learning_rate"], ours["warmup_share"]) == (0, 2e-5, 0)
        assert ours.get("adversarial", 0.01) == 0.01


def test_the_log_is_a_file_of_json_lines(folders: dict[str, Path], tmp_path: Path) -> None:
    train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "out", log_folder=tmp_path / "a" / "b")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["log.train"]
    first, last = map(json.loads, (tmp_path / "a" / "b" / "log.train").read_text().splitlines())
    assert (first["step"], last["step"]) == (1, 5)
    for row in (first, last):
        assert row.keys() >= {"time", "loss", "learning_rate", "gradient_norm"}
        assert np.isfinite(row["loss"]) and row["gradient_norm"] > 0


def test_the_log_of_an_earlier_model_stays(folders: dict[str, Path], tmp_path: Path) -> None:
    """All models of a program log to one folder unless told otherwise."""
    for kind in KINDS:
        train(load_model(folders[kind]), folders[f"{kind}.tsv"], tmp_path / kind, log_folder=tmp_path / "log")
    lines = (tmp_path / "log" / "log.train").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 5, 1, 5]


# What comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_train_saves_load_model_loads(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model, output = load_model(folders[kind]), tmp_path / "out"
    before = answers(model)
    train(model, folders[f"{kind}.tsv"], output)
    after = answers(model)
    assert np.abs(after - before).max() > 1e-3
    for path in (output, output / "config.json", output / "step_5", output / "step_5" / "config.json"):
        for source in (path, str(path)):
            loaded = load_model(source)
            assert type(loaded) is type(model)
            np.testing.assert_array_equal(answers(loaded), after)
    assert np.abs(answers(load_model(output / "step_3")) - after).max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_can_be_moved_and_trained_on(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    train(load_model(folders[kind]), folders[f"{kind}.tsv"], tmp_path / "out")
    expected = load_model(tmp_path / "out").checkpoint.digest()
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    model = load_model(tmp_path / "elsewhere")
    assert model.checkpoint.digest() == expected
    train(model, folders[f"{kind}.tsv"], tmp_path / "more")
    assert load_model(tmp_path / "more").checkpoint.digest() == model.checkpoint.digest() != expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_and_other_models_of_it_stay_as_they_are(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    before = files(folders[kind])
    model, other = load_model(folders[kind]), load_model(folders[kind])
    start, expected = model.checkpoint, answers(other)
    shared = type(model)(start)  # a second model around the very same checkpoint
    train(model, folders[f"{kind}.tsv"], tmp_path / "out")
    assert files(folders[kind]) == before
    assert model.checkpoint is not start
    for untouched in (other, shared, load_model(folders[kind])):
        np.testing.assert_array_equal(answers(untouched), expected)
    train(other, folders[f"{kind}.tsv"], tmp_path / "again")
    assert other.checkpoint.digest() == model.checkpoint.digest()


@pytest.mark.parametrize("network", [{"shared": True, "normalize": True, "temperature": 0.1}, {}], ids=str)
def test_towers_stay_shared_or_apart(
    network: dict[str, Any], tokens: Tokenizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = DualModel(random_checkpoint("dual", tokens, pooling="mean", **network))
    described = describe(model.checkpoint.network)
    train(model, folders["dual.tsv"], tmp_path / "out")
    saved = load_model(tmp_path / "out")
    for trained in (model, saved):
        towers = trained.checkpoint.network
        assert isinstance(towers, DualEncoder)
        assert (towers.query is towers.passage) == towers.shared == bool(network)
        assert describe(towers) == described
        assert trained.checkpoint.lengths == {"query": 12, "passage": 20}
    assert saved.checkpoint.digest() == model.checkpoint.digest()
    np.testing.assert_array_equal(answers(saved), answers(model))


def test_dropout_is_for_training_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    results = {}
    for dropout in (0.0, 0.1, 0.5):
        model = load_model(folders["dual"])
        train(model, folders["dual.tsv"], tmp_path / str(dropout), dropout=dropout)
        results[dropout] = model.checkpoint.digest()
        assert not model.checkpoint.network.training
        np.testing.assert_array_equal(answers(model), answers(model))
    train(model := load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "default")
    assert len(set(results.values())) == 3
    assert model.checkpoint.digest() == results[0.1]


def test_the_seed_decides_order_and_dropout(folders: dict[str, Path], tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate([1, 1, 2]):
        paddle.seed(number)  # what a program does beside it has no part
        np.random.seed(number)
        model = train(load_model(folders["cross"]), folders["cross.tsv"], tmp_path / str(number), seed=seed)
        results.append(model.checkpoint.digest())
    assert results[0] == results[1] != results[2]


def test_a_dual_encoder_learns(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find 40 passages among one another."""
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)
    model, file = load_model(folders["dual"]), write(tmp_path / "train.tsv", rows("dual", 40))

    def found() -> float:
        vectors = model.encode_query(QUERIES[:40]), model.encode_para(TEXTS[:40], TITLES[:40])
        return float(((vectors[0] @ vectors[1].T).argmax(axis=1) == np.arange(40)).mean())

    before = found()
    train(model, file, tmp_path / "out", epoch=20, batch_size=8, learning_rate=2e-3, dropout=0.0)
    losses = [row["loss"] for row in log(tmp_path / "out")]
    assert len(losses) == 100
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert before < 0.15
    assert found() > 0.4


def test_a_cross_encoder_learns(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tell the animals that are near a river; what it learns holds for some that it has not seen."""
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)
    labels = np.array(["river" in text for text in TEXTS])
    lines = [
        (query, "", text, str(int(label))) for query, text, label in zip(QUERIES, TEXTS, labels, strict=True)
    ]
    model, file = load_model(folders["cross"]), write(tmp_path / "train.tsv", lines[:40])
    assert ((model.matching(QUERIES, TEXTS) > 0.5) != labels).any()
    train(model, file, tmp_path / "out", epoch=12, batch_size=8, learning_rate=5e-3)
    losses = [row["loss"] for row in log(tmp_path / "out")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert ((model.matching(QUERIES, TEXTS) > 0.5) == labels).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_leaves_the_model_as_it_was_and_the_same_call_can_be_made_again(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model, output = load_model(folders[kind]), tmp_path / "out"
    expected, file = answers(model), folders[f"{kind}.tsv"]

    def fail() -> None:
        raise MemoryError("no more")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        at_step(patch, 4, fail)
        train(model, file, output)
    np.testing.assert_array_equal(answers(model), expected)
    assert steps(output) == [3]
    train(model, file, output)
    alone = train(load_model(folders[kind]), file, tmp_path / "alone")
    assert model.checkpoint.digest() == alone.checkpoint.digest()
    assert [row["step"] for row in log(output)] == [1, 5]
    assert files(output).keys() == files(tmp_path / "alone").keys()


def test_a_loss_that_is_no_number_stops_before_it_does_harm(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = load_model(folders["dual"]), answers(load_model(folders["dual"]))
    in_batch = losses.in_batch
    monkeypatch.setattr(losses, "in_batch", lambda *vectors: in_batch(*vectors) * float("nan"))
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan; lower the learning rate"):
        train(model, folders["dual.tsv"], tmp_path / "out")
    np.testing.assert_array_equal(answers(model), expected)
    assert not (tmp_path / "out").exists()


def train_in_threads(starts: str, output: str) -> None:
    """Train alone, then three at a time, then beside a thread that loads models; print what comes of each."""
    jobs = KINDS * 3

    def digest(name: str, kind: str) -> str:
        model = load_model(Path(starts, kind))
        return train(model, Path(starts, f"{kind}.tsv"), Path(output, name)).checkpoint.digest()

    def load_on() -> None:
        while not done.is_set():
            load_model(Path(starts, "dual"))

    found = {"alone": [digest(f"alone-{kind}", kind) for kind in jobs]}
    names, done = unique_name.generator, threading.Event()
    with ThreadPoolExecutor(3) as pool:
        found["together"] = list(pool.map(digest, map(str, range(len(jobs))), jobs))
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load_on)
        found["beside loading"] = [digest(f"beside-{number}", kind) for number, kind in enumerate(jobs)]
        done.set()
        loading.result()
    print(json.dumps({**found, "names": unique_name.generator is names}))


def test_trainings_give_what_they_give_alone_whatever_other_threads_do(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """In a process of its own, for Paddle may crash where threads meet."""
    call = f"import test_finetune; test_finetune.train_in_threads({str(folders['dual'].parent)!r}, 'out')"
    done = toy.run(sys.executable, "-c", call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(set(found["alone"])) == 2
    assert found["together"] == found["alone"]
    assert found["beside loading"] == found["alone"]
    assert found["names"]  # another thread's are not left behind: later parameters would get names twice


# Stop and go on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_call_goes_on_when_it_is_made_again(
    kind: str, step: int, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)
    file, settings = folders[f"{kind}.tsv"], {"save_steps": 2, "dropout": 0.3}
    alone = train(load_model(folders[kind]), file, tmp_path / "alone", **settings)

    output, model = tmp_path / "out", load_model(folders[kind])
    expected = answers(model)
    interrupted(model, file, output, step, **settings)
    np.testing.assert_array_equal(answers(model), expected)  # not the trained one yet
    assert len(list(output.glob("unfinished-*"))) == 1
    assert steps(output) == [saved for saved in (2, 4, 5) if saved <= step]

    taken = []
    for number in range(1, 6):
        at_step(monkeypatch, number, lambda number=number: taken.append(number))
    train(load_model(folders[kind]) if step % 2 else model, file, output, **settings)
    assert taken == list(range(step + 1, 6))
    assert files(output) == files(tmp_path / "alone")
    assert load_model(output).checkpoint.digest() == alone.checkpoint.digest()
    assert not list(output.glob("*unfinished*"))
    assert [row["step"] for row in log(output)] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in log(output)] == [row["loss"] for row in log(tmp_path / "alone")]


def test_a_call_can_be_stopped_again_and_again(folders: dict[str, Path], tmp_path: Path) -> None:
    alone = train(load_model(folders["cross"]), folders["cross.tsv"], tmp_path / "alone")
    model = load_model(folders["cross"])
    for step, number in ((2, signal.SIGTERM), (3, signal.SIGINT), (4, signal.SIGTERM)):
        interrupted(model, folders["cross.tsv"], tmp_path / "out", step, number)
    train(model, folders["cross.tsv"], tmp_path / "out")
    assert model.checkpoint.digest() == alone.checkpoint.digest()


def test_a_finished_call_that_is_made_again_starts_anew(folders: dict[str, Path], tmp_path: Path) -> None:
    """From the model it is made on: no state is left to go on from."""
    first, second = (
        train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "out") for _ in range(2)
    )
    assert first.checkpoint.digest() == second.checkpoint.digest()
    train(second, folders["dual.tsv"], tmp_path / "out")
    assert second.checkpoint.digest() != first.checkpoint.digest()
    assert load_model(tmp_path / "out").checkpoint.digest() == second.checkpoint.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-3},
        {"seed": 2},
        {"dropout": 0.2},
        {"adversarial": 0.0},
        {"warmup_share": 0.5},
        {"batch_size": 5, "epoch": 3},
        {"epoch": 3},
        "another file",
        "another file of the same name",
        "another model",
    ],
    ids=str,
)
def test_another_call_does_not_go_on_from_what_was_stopped(
    change: dict[str, Any] | str, tokens: Tokenizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    file, start, output = write(tmp_path / "a.tsv", rows("cross")), folders["cross"], tmp_path / "out"
    interrupted(load_model(start), file, output, 3)
    settings = change if isinstance(change, dict) else {}
    if change == "another file":
        file = write(tmp_path / "b.tsv", rows("cross", 20)[10:])
    elif change == "another file of the same name":
        write(file, rows("cross", 20)[10:])
    elif change == "another model":
        start = tmp_path / "start"
        checkpoints.save(random_checkpoint("cross", tokens, seed=4), start)
    model = train(load_model(start), file, output, **settings)
    alone = train(load_model(start), file, tmp_path / "alone", **settings)
    assert model.checkpoint.digest() == alone.checkpoint.digest()


# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"epoch": 0}, "epoch=0, expected at least 1"),
        ({"epoch": -1}, "epoch=-1, expected at least 1"),
        ({"batch_size": 0}, "batch_size=0, expected at least 1"),
        ({"save_steps": -1}, "save_steps=-1, expected at least 0"),
        ({"dropout": 1.0}, "dropout=1.0, expected 0 or more and less than 1"),
        ({"dropout": -0.1}, "dropout=-0.1, expected 0 or more"),
        ({"learning_rate": -1e-5}, "learning_rate=-1e-05"),
        ({"warmup_share": 1.5}, "warmup_share=1.5, expected 0 to 1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_settings_are_refused(
    kind: str, settings: dict[str, Any], problem: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=problem):
        train(load_model(folders[kind]), folders[f"{kind}.tsv"], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_perturbation_downhill_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adversarial=-0.01, expected 0 or more"):
        train(load_model(folders["cross"]), folders["cross.tsv"], tmp_path / "out", adversarial=-0.01)


@pytest.mark.parametrize(
    "kind, lines, problem",
    [
        ("dual", [], "the file is empty"),
        ("cross", [], "the file is empty"),
        ("dual", rows("cross"), r"train\.tsv:1: 4 columns, expected 6 \(query, positive title"),
        ("cross", rows("dual"), r"train\.tsv:1: 6 columns, expected 4 \(query, title"),
        ("dual", [*rows("dual")[:3], rows("dual")[3][:5]], r"train\.tsv:4: 5 columns, expected 6"),
        ("cross", [*rows("cross")[:6], ("a",)], r"train\.tsv:7: 1 column, expected 4"),
        ("cross", [*rows("cross")[:1], ("a", "b", "c", "2")], r"train\.tsv:2: label '2', expected 0 or 1"),
        ("cross", [("", "b", "c", "1")], r"train\.tsv:1: query '1' has no text"),
    ],
)
def test_wrong_files_are_refused(
    kind: str, lines: list[tuple[str, ...]], problem: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    file = write(tmp_path / "train.tsv", lines)
    with pytest.raises(ValueError, match=problem) as error:
        train(load_model(folders[kind]), file, tmp_path / "out")
    assert "train.tsv" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.tsv"]


def test_a_file_that_is_not_there_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.tsv"):
        train(load_model(folders["dual"]), tmp_path / "no.tsv", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["native", "reference", "huggingface"])
def test_the_folder_of_another_model_is_refused(to: str, folders: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "model"
    if to == "huggingface":
        output.mkdir()
        (output / "config.json").write_text('{"model_type": "bert"}')
    else:
        source = convert.read(folders["cross"])
        convert.write(toolkit_sized(source) if to == "reference" else source, output, to)
    before = files(output)
    with pytest.raises(ValueError, match=r"config\.json is another model's.* choose another folder"):
        train(load_model(folders["cross"]), folders["cross.tsv"], output)
    assert files(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def toolkit_sized(checkpoint: Checkpoint) -> Checkpoint:
    """Of the sizes that the toolkit knows, which has no setting for the feed-forward layer."""
    sizes = dataclasses.replace(checkpoint.network.config, ffn_size=4 * checkpoint.network.config.hidden_size)
    return Checkpoint(CrossEncoder(sizes, head="classes"), checkpoint.tokenizer, checkpoint.lengths)


def test_the_start_itself_is_no_output(folders: dict[str, Path]) -> None:
    before = files(folders["dual"])
    with pytest.raises(ValueError, match="is another model's"):
        train(load_model(folders["dual"]), folders["dual.tsv"], folders["dual"])
    assert files(folders["dual"]) == before


def test_a_toolkit_json_that_names_a_step_is_another_models(folders: dict[str, Path], tmp_path: Path) -> None:
    """The toolkit tells its users to write the folder that `train` made, `step_N`, into this JSON."""
    output = tmp_path / "ce_models"
    convert.write(toolkit_sized(convert.read(folders["cross"])), output, "reference")
    (output / "params").rename(output / "step_1000")
    values = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(values | {"model_checkpoint_path": "step_1000"}))
    expected, before = load_model(output).checkpoint.digest(), files(output)
    with pytest.raises(ValueError, match="is another model's"):
        train(load_model(folders["cross"]), folders["cross.tsv"], output)
    assert files(output) == before
    assert load_model(output).checkpoint.digest() == expected


def test_the_output_of_the_other_kind_is_another_models(folders: dict[str, Path], tmp_path: Path) -> None:
    train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match="is another model's"):
        train(load_model(folders["cross"]), folders["cross.tsv"], tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_an_output_that_is_a_file_is_refused_before_training(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").write_text("mine")
    seen = every_step(monkeypatch)
    with pytest.raises((ValueError, FileExistsError), match="out"):
        train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "out")
    assert not seen
    assert (tmp_path / "out").read_text() == "mine"


# The hook -----------------------------------------------------------------------------------------


def hooked(folder: Path, after_step: Callable[[int], None], network: nn.Layer | None = None) -> Trainer:
    """Four steps on one number."""
    network = network or nn.Linear(1, 1)
    return Trainer(
        "stage",
        {"model": network},
        [1.0],
        lambda batch: {"loss": (network(paddle.to_tensor([batch])) ** 2).sum()},
        StageSettings(batch_size=1, steps=4, optimizer=OptimizerSettings(learning_rate=0.1)),
        folder=folder / "last",
        log=MetricsLog(folder / "log"),
        after_step=after_step,
    )


def test_the_hook_is_called_after_each_step_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = nn.Linear(1, 1), []
    weights = [network.weight.item()]
    trainer = hooked(tmp_path, lambda step: seen.append((step, network.weight.item())), network)
    for step in range(1, 5):
        at_step(monkeypatch, step + 1, lambda: weights.append(network.weight.item()))
    trainer.fit()
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert [weight for _, weight in seen] == [*weights[1:], network.weight.item()]
    assert len({*weights, network.weight.item()}) == 5


def test_the_hook_sees_each_step_once_when_training_goes_on(tmp_path: Path) -> None:
    seen = []

    def stop(step: int) -> None:
        seen.append(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        hooked(tmp_path, stop).fit()
    hooked(tmp_path, seen.append).fit()
    assert seen == [1, 2, 3, 4]


def test_an_error_in_the_hook_ends_training(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        hooked(tmp_path, fail).fit()
