"""`train` of both models: steps and folders, what comes out, stop and go on, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest
import toy
from finetuning import (
    KINDS,
    ONE_STEP,
    QUERIES,
    TEXTS,
    TITLES,
    Arrays,
    Model,
    answers,
    arrays_of,
    assert_same,
    at_step,
    files,
    interrupted,
    log,
    random_checkpoint,
    rows,
    steps,
    train,
    write,
)

from rocketqa_paddle import losses
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder, describe
from rocketqa_paddle.toolkit import CrossModel, DualModel, load_model
from rocketqa_paddle.training import trainer as trainer_module
from rocketqa_paddle.training.trainer import Trainer

SETTINGS = {"save_steps": 2, "dropout": 0.3}
"""The settings of `Trained`."""


@dataclass(frozen=True)
class Trained:
    """What one call of `train` with `SETTINGS` has done."""

    kind: str
    start: Path
    file: Path
    output: Path
    model: Model
    untrained: Model
    """A model that had the same checkpoint before."""
    start_files: dict[str, bytes]
    start_answers: np.ndarray
    states: list[Arrays]
    """The parameters before the first step and after each."""
    named: dict[int, str]
    """The digest of what `config.json` names, at the beginning of some steps."""


@pytest.fixture(scope="module", params=KINDS)
def trained(request, folders, tmp_path_factory):
    kind, output = request.param, tmp_path_factory.mktemp(request.param) / "out"
    start, file = folders[kind], folders[f"{kind}.tsv"]
    model, states, named, take = load_model(start), [], {}, Trainer._take_step
    untrained, start_files, start_answers = type(model)(model.checkpoint), files(start), answers(model)

    def taking(self: Trainer) -> dict[str, float]:
        if self.step in (2, 4):
            named[self.step] = load_model(output).checkpoint.digest()
        if not states:
            states.append(arrays_of(self.networks["model"]))
        values = take(self)
        states.append(arrays_of(self.networks["model"]))
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "_LOG_SECONDS", -1.0)
        patch.setattr(Trainer, "_take_step", taking)
        train(model, file, output, **SETTINGS)
    assert len(states) == 6
    return Trained(kind, start, file, output, model, untrained, start_files, start_answers, states, named)


@pytest.fixture
def log_every_step(monkeypatch):
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)


# Steps, rates and folders -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, count, settings, total, saved",
    [
        ("dual", 10, {"epoch": 1, "batch_size": 4, "save_steps": 0}, 3, [2, 3]),
        ("cross", 8, {"epoch": 2, "batch_size": 4, "save_steps": 0}, 4, [2, 4]),
        ("dual", 10, {"epoch": 3, "batch_size": 5, "save_steps": 3}, 6, [3, 6]),
        ("cross", 10, {"epoch": 1, "batch_size": 4, "save_steps": 1}, 3, [1, 2, 3]),
        ("dual", 10, {"epoch": 2, "batch_size": 4, "save_steps": 100}, 5, [5]),
    ],
)
def test_steps_and_saves(kind, count, settings, total, saved, folders, tmp_path):
    file, output = write(tmp_path / "train.tsv", rows(kind, count)), tmp_path / "out"
    train(load_model(folders[kind]), file, output, **settings)
    check_output(kind, output, total, saved)


def check_output(kind: str, output: Path, total: int, saved: list[int]) -> None:
    assert log(output)[-1]["step"] == total
    names = ["config.json", *(f"step_{step}" for step in saved)]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    assert json.loads((output / "config.json").read_text()) == {
        "model_type": f"{kind}_encoder",
        "model_checkpoint_path": f"step_{total}",
    }


def test_a_batch_larger_than_the_file_is_cut_with_a_warning(folders, tmp_path):
    file, output = write(tmp_path / "train.tsv", rows("dual", 3)), tmp_path / "out"
    model = load_model(folders["dual"])
    with pytest.warns(UserWarning, match=r"batch_size=16, but .*train\.tsv has 3 lines") as warned:
        model.train(file, 1, output, batch_size=16, log_folder=f"{output}-log")
    assert warned[0].filename == __file__  # the line of the user's
    check_output("dual", output, 1, [1])


def test_a_folder_holds_the_parameters_of_its_step(trained):
    check_output(trained.kind, trained.output, 5, [2, 4, 5])
    for step in (2, 4, 5):
        saved = load_model(trained.output / f"step_{step}")
        assert_same(arrays_of(saved.checkpoint.network), trained.states[step])
    assert_same(arrays_of(trained.model.checkpoint.network), trained.states[5])
    assert any((trained.states[4][name] != trained.states[5][name]).any() for name in trained.states[5])


def test_the_config_names_the_last_folder_at_any_time(trained):
    """So that what was saved can be used while training goes on."""
    expected = {step: load_model(trained.output / f"step_{step}").checkpoint.digest() for step in (2, 4)}
    assert trained.named == expected


def test_the_defaults_are_the_toolkits(folders, tmp_path, monkeypatch, log_every_step):
    """2e-5 and a linear decay from the first step on; saves half-way and at the end; a folder `log`."""
    monkeypatch.chdir(tmp_path)
    model = load_model(str(folders["dual"]), batch_size=4)
    model.train(str(folders["dual.tsv"]), 2, "out")
    lines = [json.loads(line) for line in Path("log", "log.train").read_text().splitlines()]
    assert [row["step"] for row in lines] == [1, 2, 3, 4, 5]  # 10 examples twice, 4 a step as in load_model
    assert [row["learning_rate"] for row in lines] == pytest.approx([2e-5 * n / 5 for n in (5, 4, 3, 2, 1)])
    assert steps(Path("out")) == [3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


def test_train_takes_what_the_toolkits_takes():
    defaults = {
        "save_steps": 0,
        "learning_rate": 2e-5,
        "batch_size": None,
        "log_folder": "log",
        "warmup_ratio": 0,
        "dropout": 0.1,
        "drop_false_negatives": True,
        "seed": 1,
    }
    for model, extra in ((DualModel, {}), (CrossModel, {"adversarial": 0.01})):
        arguments = inspect.signature(model.train).parameters
        assert list(arguments)[:4] == ["self", "train_set", "epoch", "save_model_path"]
        given = {name: argument.default for name, argument in list(arguments.items())[4:]}
        assert given == defaults | extra


def test_a_warm_up_can_be_had(folders, tmp_path, log_every_step):
    train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "o", warmup_ratio=0.4)
    rates = [row["learning_rate"] for row in log(tmp_path / "o")]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])


def test_models_can_share_a_log_of_json_lines(folders, tmp_path):
    """All models of a program log to one folder unless told otherwise; what an earlier one wrote stays."""
    folder = tmp_path / "a" / "log"
    for kind in KINDS:
        model, file = load_model(folders[kind]), folders[f"{kind}.tsv"]
        train(model, file, tmp_path / kind, log_folder=folder, epoch=1, batch_size=5)
    assert [path.name for path in folder.iterdir()] == ["log.train"]
    lines = [json.loads(line) for line in (folder / "log.train").read_text().splitlines()]
    assert [row["step"] for row in lines] == [1, 2, 1, 2]
    for row in lines:
        assert row.keys() >= {"time", "loss", "learning_rate", "gradient_norm"}
        assert np.isfinite(row["loss"]) and row["gradient_norm"] > 0


# What comes out -----------------------------------------------------------------------------------


def test_what_train_saves_load_model_loads(trained):
    output, after = trained.output, answers(trained.model)
    assert np.abs(after - trained.start_answers).max() > 1e-3
    for path in (output, output / "config.json", output / "step_5", output / "step_5" / "config.json"):
        for source in (path, str(path)):
            loaded = load_model(source)
            assert type(loaded) is type(trained.model)
            np.testing.assert_array_equal(answers(loaded), after)
    assert np.abs(answers(load_model(output / "step_4")) - after).max() > 1e-6


def test_a_saved_model_can_be_moved_and_trained_on(trained, tmp_path):
    shutil.copytree(trained.output, tmp_path / "elsewhere")
    model, expected = load_model(tmp_path / "elsewhere"), trained.model.checkpoint.digest()
    assert model.checkpoint.digest() == expected
    train(model, trained.file, tmp_path / "more", **ONE_STEP)
    assert load_model(tmp_path / "more").checkpoint.digest() == model.checkpoint.digest() != expected


def test_the_start_and_other_models_of_it_stay_as_they_are(trained):
    assert files(trained.start) == trained.start_files
    assert trained.model.checkpoint is not trained.untrained.checkpoint
    for model in (trained.untrained, load_model(trained.start)):
        np.testing.assert_array_equal(answers(model), trained.start_answers)


@pytest.mark.parametrize("network", [{"shared": True, "normalize": True, "temperature": 0.1}, {}], ids=str)
def test_towers_stay_shared_or_apart(network, tokens, folders, tmp_path):
    model = DualModel(random_checkpoint("dual", tokens, pooling="mean", **network))
    described = describe(model.checkpoint.network)
    train(model, folders["dual.tsv"], tmp_path / "out", **ONE_STEP)
    saved = load_model(tmp_path / "out")
    for one in (model, saved):
        towers = one.checkpoint.network
        assert isinstance(towers, DualEncoder)
        assert (towers.query is towers.passage) == towers.shared == bool(network)
        assert describe(towers) == described
        assert one.checkpoint.lengths == {"query": 12, "passage": 20}
    assert saved.checkpoint.digest() == model.checkpoint.digest()
    np.testing.assert_array_equal(answers(saved), answers(model))


def test_dropout_is_for_training_alone(folders, tmp_path):
    results = {}
    for name, dropout in {"none": 0.0, "0.1": 0.1, "0.5": 0.5, "default": None}.items():
        settings = {} if dropout is None else {"dropout": dropout}
        model = load_model(folders["dual"])
        train(model, folders["dual.tsv"], tmp_path / name, **ONE_STEP, **settings)
        results[name] = model.checkpoint.digest()
        assert not model.checkpoint.network.training
        np.testing.assert_array_equal(answers(model), answers(model))
    assert results.pop("default") == results["0.1"]
    assert len(set(results.values())) == 3


def test_the_seed_decides_order_and_dropout(folders, tmp_path):
    results = []
    for number, seed in enumerate([1, 1, 2]):
        paddle.seed(number)  # what else a program draws has no part in it
        np.random.seed(number)
        settings = {"epoch": 1, "batch_size": 5, "seed": seed}
        model = train(load_model(folders["cross"]), folders["cross.tsv"], tmp_path / str(number), **settings)
        results.append(model.checkpoint.digest())
    assert results[0] == results[1] != results[2]


def test_a_dual_encoder_learns(folders, tmp_path, log_every_step):
    """To find 24 passages among one another."""
    count = 24
    model, file = load_model(folders["dual"]), write(tmp_path / "train.tsv", rows("dual", count))

    def found() -> float:
        vectors = model.encode_query(QUERIES[:count]), model.encode_para(TEXTS[:count], TITLES[:count])
        return float(((vectors[0] @ vectors[1].T).argmax(axis=1) == np.arange(count)).mean())

    before = found()
    train(model, file, tmp_path / "out", epoch=16, batch_size=8, learning_rate=3e-3, dropout=0.0)
    losses = [row["loss"] for row in log(tmp_path / "out")]
    assert len(losses) == 48
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert before < 0.15
    assert found() > 0.4


def test_a_cross_encoder_learns(folders, tmp_path, log_every_step):
    """To tell the animals that are near a river; what it learns holds for some that it has not seen."""
    labels = np.array(["river" in text for text in TEXTS])
    lines = [
        (query, "", text, str(int(label))) for query, text, label in zip(QUERIES, TEXTS, labels, strict=True)
    ]
    model, file = load_model(folders["cross"]), write(tmp_path / "train.tsv", lines[:40])
    assert ((model.matching(QUERIES, TEXTS) > 0.5) != labels).any()
    train(model, file, tmp_path / "out", epoch=16, batch_size=8, learning_rate=5e-3)
    losses = [row["loss"] for row in log(tmp_path / "out")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert ((model.matching(QUERIES, TEXTS) > 0.5) == labels).all()


def test_an_error_leaves_the_model_as_it_was_and_the_same_call_can_be_made_again(trained, tmp_path):
    model, output = load_model(trained.start), tmp_path / "out"

    def fail() -> None:
        raise MemoryError("no more")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        at_step(patch, 4, fail)
        train(model, trained.file, output, **SETTINGS)
    np.testing.assert_array_equal(answers(model), trained.start_answers)
    assert steps(output) == [2]
    train(model, trained.file, output, **SETTINGS)
    assert files(output) == files(trained.output)
    assert [row["step"] for row in log(output)] == [1, 5]


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(folders, tmp_path, monkeypatch):
    model, expected = load_model(folders["dual"]), answers(load_model(folders["dual"]))
    in_batch = losses.in_batch
    monkeypatch.setattr(losses, "in_batch", lambda *vectors: in_batch(*vectors) * float("nan"))
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan; lower the learning rate"):
        train(model, folders["dual.tsv"], tmp_path / "out")
    np.testing.assert_array_equal(answers(model), expected)
    assert not (tmp_path / "out").exists()


def test_trainings_give_what_they_give_alone_whatever_other_threads_do(folders, tmp_path):
    """In a process of its own, because Paddle may crash where threads meet."""
    worker = toy.ROOT / "tests" / "finetuning.py"
    done = toy.run(sys.executable, worker, folders["dual"].parent, tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(set(found["alone"])) == 2
    assert found["together"] == found["alone"] * 2
    assert found["beside loading"] == found["alone"]
    assert found["names"]  # those of another thread are not left behind: later parameters would share names


# Stop and go on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["once", "again and again"])
def test_a_stopped_call_goes_on_when_it_is_made_again(trained, stop, tmp_path, log_every_step):
    """Stopped in the first step, in the last, or in others, of which some save a checkpoint."""
    stops = [2, 3, 4] if stop == "again and again" else [1] if trained.kind == "dual" else [5]
    output, model = tmp_path / "out", load_model(trained.start)
    for step in stops:
        number = signal.SIGTERM if step % 2 else signal.SIGINT
        interrupted(model, trained.file, output, step, number, **SETTINGS)
        np.testing.assert_array_equal(answers(model), trained.start_answers)  # not the trained one yet
        assert len(list(output.glob("unfinished-*"))) == 1
        assert steps(output) == [saved for saved in (2, 4, 5) if saved <= step]

    if stop == "once":
        model = load_model(trained.start)  # in another process, for example
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        for number in range(1, 6):
            at_step(patch, number, lambda number=number: taken.append(number))
        train(model, trained.file, output, **SETTINGS)
    assert taken == list(range(stops[-1] + 1, 6))
    assert files(output) == files(trained.output)
    assert model.checkpoint.digest() == trained.model.checkpoint.digest()
    assert not list(output.glob("*unfinished*"))
    expected = [(row["step"], row["loss"]) for row in log(trained.output)]
    assert [(row["step"], row["loss"]) for row in log(output)] == expected


@pytest.mark.parametrize("place", ["step_2/notes.txt", "step_5/notes.txt", "unfinished-mine/notes.txt"])
def test_training_again_loses_no_file_of_the_users(trained, place, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained.output, output)
    (output / place).parent.mkdir(exist_ok=True)
    (output / place).write_text("mine")
    model = load_model(trained.start)
    if place.startswith("step"):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, 1, lambda: pytest.fail("it has begun"))
            with pytest.raises(ValueError, match=r"notes\.txt, which would be lost"):
                train(model, trained.file, output, **SETTINGS)
    else:
        train(model, trained.file, output, **SETTINGS)
    assert (output / place).read_text() == "mine"


def test_a_finished_call_that_is_made_again_starts_anew(folders, tmp_path):
    """From the model it is made on: no state is left to go on from."""
    file, output = folders["dual.tsv"], tmp_path / "out"
    first, second = (train(load_model(folders["dual"]), file, output, **ONE_STEP) for _ in range(2))
    assert first.checkpoint.digest() == second.checkpoint.digest()
    train(second, file, output, **ONE_STEP)
    assert second.checkpoint.digest() != first.checkpoint.digest()
    assert load_model(output).checkpoint.digest() == second.checkpoint.digest()


class Begun(Exception):
    """A training has begun, and that is enough."""


@pytest.fixture(scope="module")
def stopped(folders, tmp_path_factory):
    """A folder with a training file `a.tsv`, and the output `out` of a call that was stopped in step 3."""
    folder = tmp_path_factory.mktemp("stopped")
    file = write(folder / "a.tsv", rows("cross"))
    interrupted(load_model(folders["cross"]), file, folder / "out", 3)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"learning_rate": 2e-3},
        {"seed": 2},
        {"dropout": 0.2},
        {"adversarial": 0.0},
        {"warmup_ratio": 0.5},
        {"batch_size": 5, "epoch": 3},
        {"epoch": 3},
        {"save_steps": 2},
        "another file",
        "another file of the same name",
        "another model",
    ],
    ids=str,
)
def test_another_call_does_not_go_on_from_what_was_stopped(change, stopped, tokens, folders, tmp_path):
    """It begins with the first step, and with the parameters of its own start."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    file, model = tmp_path / "a.tsv", load_model(folders["cross"])
    if change == "another file":
        file = write(tmp_path / "b.tsv", rows("cross", 20)[10:])
    elif change == "another file of the same name":
        write(file, rows("cross", 20)[10:])
    elif change == "another model":
        model = CrossModel(random_checkpoint("cross", tokens, seed=4))
    begun = []

    def begin(self: Trainer) -> dict[str, float]:
        begun.append((self.step, arrays_of(self.networks["model"])))
        raise Begun

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Begun):
        patch.setattr(Trainer, "_take_step", begin)
        train(model, file, tmp_path / "out", **(change if isinstance(change, dict) else {}))
    [(step, arrays)] = begun
    assert step == (0 if change else 3)
    start = arrays_of(model.checkpoint.network)
    assert all(np.array_equal(arrays[name], start[name]) for name in start) == bool(change)


# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, settings, problem",
    [
        ("dual", {"epoch": 0}, "epoch=0, expected at least 1"),
        ("cross", {"epoch": -1}, "epoch=-1, expected at least 1"),
        ("cross", {"epoch": 1.5}, "epoch=1.5, expected at least 1, a whole number"),
        ("dual", {"batch_size": 0}, "batch_size=0, expected at least 1"),
        ("cross", {"save_steps": -1}, "save_steps=-1, expected at least 0"),
        ("dual", {"dropout": 1.0}, "dropout=1.0, expected 0 or more and less than 1"),
        ("cross", {"dropout": -0.1}, "dropout=-0.1, expected 0 or more"),
        ("dual", {"learning_rate": -1e-5}, "learning_rate=-1e-05, expected a number above 0"),
        ("cross", {"learning_rate": 0}, "learning_rate=0, expected a number above 0"),
        ("cross", {"warmup_ratio": 1.5}, "warmup_ratio=1.5, expected 0 to 1"),
        ("cross", {"adversarial": -0.01}, "adversarial=-0.01, expected at least 0"),  # downhill
    ],
    ids=str,
)
def test_wrong_settings_are_refused(kind, settings, problem, folders, tmp_path):
    with pytest.raises(ValueError, match=problem):
        train(load_model(folders[kind]), folders[f"{kind}.tsv"], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


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
def test_wrong_files_are_refused(kind, lines, problem, folders, tmp_path):
    file = write(tmp_path / "train.tsv", lines)
    with pytest.raises(ValueError, match=problem) as error:
        train(load_model(folders[kind]), file, tmp_path / "out")
    assert "train.tsv" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.tsv"]


def test_a_file_without_a_line_to_train_on_is_refused(folders, tmp_path):
    file = write(tmp_path / "train.tsv", [("a", "b", "c", "B", "c ", "0")] * 2)
    problem = r"train\.tsv: no line has a negative, expected training examples"
    with pytest.warns(UserWarning, match="left out 2 negatives"), pytest.raises(ValueError, match=problem):
        train(load_model(folders["dual"]), file, tmp_path / "out")


def test_a_passage_is_not_relevant_on_one_line_and_irrelevant_on_another(folders, tmp_path):
    lines = rows("cross")
    query, title, text, _ = next(line for line in lines if line[3] == "1")
    file = write(
        tmp_path / "train.tsv", [*lines, (query.upper(), title, f" {text}", "0"), ("x", "", "X", "0")]
    )
    plain = answers(train(load_model(folders["cross"]), folders["cross.tsv"], tmp_path / "plain"))
    with pytest.warns(UserWarning, match="left out 2 negatives that are positives of their query"):
        again = answers(train(load_model(folders["cross"]), file, tmp_path / "again"))
    np.testing.assert_array_equal(again, plain)
    released = train(load_model(folders["cross"]), file, tmp_path / "released", drop_false_negatives=False)
    assert np.abs(answers(released) - plain).max() > 1e-6


def test_a_query_is_not_contrasted_with_its_own_positives(folders, tmp_path):
    """A line whose negative is its positive is as good as not there, and the log says what a batch masked."""

    def trained(name: str, lines: list, **options: bool) -> np.ndarray:
        file, model = write(tmp_path / f"{name}.tsv", lines), load_model(folders["dual"])
        return answers(train(model, file, tmp_path / name, batch_size=10, **options))

    lines = rows("dual")
    plain, released = trained("plain", lines), trained("released", lines, drop_false_negatives=False)
    with pytest.warns(UserWarning, match="left out 1 negatives that are positives"):
        again = trained("again", [*lines, ("where?", "red", "the dog", "Red", "the  dog", "0")])
    np.testing.assert_array_equal(again, plain)
    assert np.abs(released - plain).max() > 1e-4
    assert {row["masked"] for row in log(tmp_path / "plain")} == {3}  # three negatives are positives as well
    assert not any("masked" in row for row in log(tmp_path / "released"))


def test_a_file_that_is_not_there_is_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.tsv"):
        train(load_model(folders["dual"]), tmp_path / "no.tsv", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def refused(model: Model, file: Path, output: Path) -> None:
    """Check that an output is another model's, and that it stays as it is."""
    before = files(output), files(Path(f"{output}-log"))
    with pytest.raises(ValueError, match=r"config\.json is another model's.* choose another folder"):
        train(model, file, output)
    assert (files(output), files(Path(f"{output}-log"))) == before


@pytest.mark.parametrize("to", ["native", "reference", "huggingface"])
def test_the_folder_of_another_model_is_refused(to, folders, tmp_path):
    output = tmp_path / "model"
    if to == "huggingface":
        output.mkdir()
        (output / "config.json").write_text('{"model_type": "bert"}')
    else:
        source = convert.read(folders["cross"])
        convert.write(toolkit_sized(source) if to == "reference" else source, output, to)
    refused(load_model(folders["cross"]), folders["cross.tsv"], output)


def toolkit_sized(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of the sizes that the toolkit knows, which has no setting for the feed-forward layer."""
    sizes = dataclasses.replace(checkpoint.network.config, ffn_size=4 * checkpoint.network.config.hidden_size)
    return Checkpoint(CrossEncoder(sizes, head="classes"), checkpoint.tokenizer, checkpoint.lengths)


def test_the_start_itself_and_the_output_of_the_other_kind_are_refused(trained, folders):
    refused(load_model(trained.start), trained.file, trained.start)
    other = "cross" if trained.kind == "dual" else "dual"
    refused(load_model(folders[other]), folders[f"{other}.tsv"], trained.output)


def test_a_toolkit_json_that_names_a_step_is_another_models(folders, tmp_path):
    """The toolkit tells its users to write the folder that `train` made, `step_N`, into this JSON."""
    output = tmp_path / "ce_models"
    convert.write(toolkit_sized(convert.read(folders["cross"])), output, "reference")
    (output / "params").rename(output / "step_1000")
    values = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(values | {"model_checkpoint_path": "step_1000"}))
    expected = load_model(output).checkpoint.digest()
    refused(load_model(folders["cross"]), folders["cross.tsv"], output)
    assert load_model(output).checkpoint.digest() == expected


@pytest.mark.parametrize("name", ["out", "out-log"])
def test_a_file_in_the_place_of_a_folder_is_refused_before_training(name, folders, tmp_path, monkeypatch):
    (tmp_path / name).write_text("mine")
    begun = []
    at_step(monkeypatch, 1, lambda: begun.append(1))
    with pytest.raises(ValueError, match=f"{name} is a file"):
        train(load_model(folders["dual"]), folders["dual.tsv"], tmp_path / "out")
    assert not begun
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]
