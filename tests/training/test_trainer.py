"""The training loop: what a step computes, and stop and resume to the bit."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
from contextlib import nullcontext

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from kills import killed_at
from nets import (
    Net,
    arrays,
    assert_same,
    examples,
    failing,
    make_nets,
    make_trainer,
    squared,
    stopping,
)

from rocketqa_paddle.runtime import folders
from rocketqa_paddle.training import trainer as trainer_module
from rocketqa_paddle.training.trainer import Leg, Stopped, Trainer


def others(nets) -> dict[str, Net]:
    """Networks as a new process would make them: other weights, and other random numbers to come."""
    paddle.seed(99)
    return {name: Net(net.dropout.p) for name, net in nets.items()}


def stop(folder, nets, at: int = 2, number: int = signal.SIGTERM, **options) -> None:
    """Train, and be stopped in a step."""
    with pytest.raises(Stopped):
        make_trainer(folder, nets, stopping(squared(nets), at, number), **options).fit()


def state_of(folder) -> dict:
    return json.loads((folder / "last" / "state.json").read_text())


@pytest.fixture
def log_every_step(monkeypatch):
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What nine steps with dropout give when nothing stops them."""
    nets = make_nets(dropout=0.3)
    make_trainer(tmp_path_factory.mktemp("whole"), nets, rates={"two": 0.5}).fit()
    return arrays(nets)


# Steps --------------------------------------------------------------------------------------------


def test_training_learns_and_leaves_evaluation_mode(tmp_path):
    nets = make_nets(dropout=0.1)
    trainer = make_trainer(tmp_path, nets, size={"steps": 60, "batch_size": 15})
    trainer.fit()
    first, *_, last = [row["loss"] for row in trainer.log.read() if "loss" in row]
    assert last < first / 2
    assert not any(net.training for net in nets.values())


def test_dropout_changes_from_step_to_step(tmp_path):
    """Otherwise the tests of resuming would not notice a training that draws the wrong numbers."""
    nets, seen = make_nets(dropout=0.5), []

    def loss(batch):
        seen.append(F.dropout(paddle.ones([64]), 0.5).numpy())
        return squared(nets)(batch)

    make_trainer(tmp_path, nets, loss, size={"steps": 3}).fit()
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_no_examples_are_refused(tmp_path):
    with pytest.raises(ValueError, match="training: no training examples"):
        make_trainer(tmp_path, make_nets(), data=[])


def test_the_name_and_the_seed_decide_the_order(tmp_path):
    nets = make_nets()
    orders = [
        [make_trainer(tmp_path, nets, data=list(range(30)), **options)._batch(step) for step in range(3)]
        for options in ({}, {"seed": 2}, {"name": "other"}, {})
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


# A batch sampler of one's own ---------------------------------------------------------------------


def by_topic(data, batch_size, seed):
    """All of one topic: examples are topics here, and each batch is drawn from those of one."""
    topics = sorted(set(data))

    def sample(step):
        generator = np.random.default_rng([seed[0], step])
        rows = np.flatnonzero(np.array(data) == topics[step % len(topics)])
        return generator.choice(rows, batch_size, replace=False)

    return sample


def test_a_batch_sampler_decides_which_examples_meet(tmp_path):
    nets, seen = make_nets(), []

    def loss(batch):
        seen.append(list(batch))
        return squared(nets)([([int(topic)], 0.0) for topic in batch])

    options = {"data": [row % 3 for row in range(30)], "batches": by_topic}
    make_trainer(tmp_path, nets, loss, **options).fit()
    assert seen == [[step % 3] * 4 for step in range(9)]


def test_a_training_that_goes_on_sees_the_batches_of_its_sampler(tmp_path):
    topics = [row % 3 for row in range(30)]
    sampler = by_topic(topics, 4, (1, "training"))
    data = list(range(30))
    seen = []

    def recording(nets):
        def loss(batch):
            seen.append(list(batch))
            return squared(nets)([([row % 20], 0.0) for row in batch])

        return loss

    def batches(given, batch_size, seed):
        assert (given, batch_size, seed) == (data, 4, (1, "training"))
        return sampler

    nets = make_nets()
    with pytest.raises(Stopped):
        make_trainer(tmp_path, nets, stopping(recording(nets), 5), data, batches=batches).fit()
    make_trainer(tmp_path, nets, recording(nets), data, batches=batches).fit()
    assert seen == [sampler(step).tolist() for step in range(9)]


def test_a_sampler_that_fills_no_batch_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, make_nets(), batches=lambda *_: lambda step: [0, 1, 2])
    with pytest.raises(AssertionError, match=r"\(3, 4, 1\)"):
        trainer.fit()


# Stop and resume ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "number"), [(1, signal.SIGTERM), (5, signal.SIGINT), (9, signal.SIGTERM)])
def test_a_stopped_training_goes_on_to_the_same_parameters(tmp_path, whole, at, number):
    nets = make_nets(dropout=0.3)
    first = make_trainer(tmp_path, nets, stopping(squared(nets), at, number), rates={"two": 0.5})
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match=f"training, step {at} of 9"):
        first.fit()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert state_of(tmp_path)["step"] == at

    nets = others(nets)
    again = make_trainer(tmp_path, nets, rates={"two": 0.5})
    again.fit()
    assert again.step == 9
    assert_same(arrays(nets), whole)


def test_a_training_stopped_again_and_again(tmp_path, whole):
    for _ in range(4):
        nets = make_nets(dropout=0.3)
        stop(tmp_path, nets, at=2, rates={"two": 0.5})
    nets = others(nets)
    make_trainer(tmp_path, nets, rates={"two": 0.5}).fit()
    assert_same(arrays(nets), whole)


def test_networks_that_an_earlier_training_trained(tmp_path):
    """One process goes from training to training; the one that goes on begins with the second."""

    def second(folder, nets, loss=None):
        return make_trainer(folder, nets, loss, name="second", optimizer={"weight_decay": 0.1})

    nets = make_nets(dropout=0.3)
    make_trainer(tmp_path / "whole", nets, name="first").fit()
    second(tmp_path / "whole", nets).fit()
    whole = arrays(nets)

    nets = make_nets(dropout=0.3)
    make_trainer(tmp_path / "cut", nets, name="first").fit()
    with pytest.raises(Stopped):
        second(tmp_path / "cut", nets, stopping(squared(nets), 5)).fit()
    nets = others(nets)
    second(tmp_path / "cut", nets).fit()
    assert_same(arrays(nets), whole)


def test_a_training_killed_after_a_save_takes_the_later_steps_again(tmp_path, whole, log_every_step):
    """And `metrics.jsonl` then has every step once, and what other trainings wrote."""
    nets = make_nets(dropout=0.3)
    trainer = make_trainer(tmp_path, nets, failing(squared(nets), 6), rates={"two": 0.5})
    trainer.after_step = lambda step: trainer.save() if step == 3 else None
    trainer.log.write(stage="earlier", step=7, loss=1.0)
    trainer.log.write(stage="warm-up", **{"dev/retriever/RR@10": 0.5})
    with pytest.raises(MemoryError):
        trainer.fit()
    rows = trainer.log.read()
    assert [row.get("step") for row in rows] == [7, None, 1, 2, 3, 4, 5]
    losses = [row["loss"] for row in rows[2:]]

    nets = others(nets)
    again = make_trainer(tmp_path, nets, rates={"two": 0.5})
    again.fit()
    rows = again.log.read()
    assert [row.get("step") for row in rows] == [7, None, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert rows[1]["dev/retriever/RR@10"] == 0.5
    assert [row["loss"] for row in rows[2:7]] == losses
    assert_same(arrays(nets), whole)


def test_a_training_killed_before_its_first_save_logs_no_step_twice(tmp_path):
    nets = make_nets()
    with pytest.raises(MemoryError):
        make_trainer(tmp_path, nets, failing(squared(nets), 3)).fit()
    again = make_trainer(tmp_path, make_nets())
    again.fit()
    assert [row["step"] for row in again.log.read()] == [1, 9]


def test_a_killed_process_leaves_half_a_line_in_the_log(tmp_path):
    stop(tmp_path, make_nets())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1.0, "stage": "trai')
    trainer = make_trainer(tmp_path, make_nets())
    trainer.fit()
    assert [row["step"] for row in trainer.log.read()] == [1, 9]


def test_saving_as_time_goes_by(tmp_path):
    make_trainer(tmp_path, make_nets(), save_minutes=0.0, fingerprint="0123").fit()
    state = state_of(tmp_path)
    assert (state["name"], state["fingerprint"], state["step"]) == ("training", "0123", 9)
    assert {path.name for path in (tmp_path / "last").iterdir()} == {
        "parameters.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


# Another training's state -------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["last", ".last.rocketqa-old"])
@pytest.mark.parametrize("change", [{"name": "other"}, {"fingerprint": "4567"}], ids=str)
def test_the_state_of_another_training_is_not_used_but_removed(tmp_path, change, place):
    """Also where a crash has left it under the name that it has while it is replaced."""
    stop(tmp_path, make_nets(), fingerprint="0123")
    (tmp_path / "last").rename(tmp_path / place)
    nets, alone = make_nets(), make_nets()
    options = {"fingerprint": "0123", **change}
    kept = []
    trainer = make_trainer(
        tmp_path, nets, after_step=lambda step: kept.extend(tmp_path.glob("*last*")), **options
    )
    trainer.fit()
    make_trainer(tmp_path / "alone", alone, **options).fit()
    assert_same(arrays(nets), arrays(alone))
    assert kept == []
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "alone"}


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("fingerprint", ["the same", "another"])
def test_a_death_at_any_moment_of_a_save_or_of_a_clean_up_is_harmless(tmp_path, fingerprint, every):
    """The second save replaces a state of the first; the training that follows goes on or begins anew."""
    options = {"fingerprint": "the same"}
    expected = make_nets()
    make_trainer(tmp_path / "whole", expected, fingerprint=fingerprint).fit()
    for change in itertools.count(0, every):
        folder = tmp_path / str(change)
        stop(folder, make_nets(), at=2, **options)
        saving = make_trainer(folder, saved := make_nets(), stopping(squared(saved), 3), **options)
        died = killed_at(change, lambda saving=saving: pytest.raises(Stopped, saving.fit))
        cleaning = make_trainer(folder, make_nets(), fingerprint=fingerprint)
        killed_at(change % 5, cleaning._resume)
        nets = others(make_nets())
        nets = nets if (folder / "last").exists() and fingerprint == "the same" else make_nets()
        make_trainer(folder, nets, fingerprint=fingerprint).fit()
        assert_same(arrays(nets), arrays(expected))
        folders.remove(folder / "last", trainer_module.CONTENTS)
        assert {path.name for path in folder.iterdir()} == {"metrics.jsonl"}
        if not died:
            break
    assert change > 15


def test_a_state_that_a_crash_left_under_its_old_name_is_used(tmp_path, whole):
    nets = make_nets(dropout=0.3)
    stop(tmp_path, nets, at=4, rates={"two": 0.5})
    (tmp_path / "last").rename(tmp_path / ".last.rocketqa-old")
    nets = others(nets)
    taken = []
    make_trainer(tmp_path, nets, rates={"two": 0.5}, after_step=taken.append).fit()
    assert taken == [5, 6, 7, 8, 9]
    assert_same(arrays(nets), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"steps": 12}}, "total_steps was 9, is now 12"),
        ({"data": examples(29)}, "examples was 30, is now 29"),
    ],
)
def test_changed_sizes_are_refused(tmp_path, change, message):
    stop(tmp_path, make_nets())
    with pytest.raises(ValueError, match=f"{message}: .*, or remove .*last to begin this training anew"):
        make_trainer(tmp_path, make_nets(), **change).fit()


def test_another_number_of_processes_begins_anew_and_says_so(tmp_path, whole, capsys):
    stop(tmp_path, make_nets(dropout=0.3), rates={"two": 0.5})
    state = state_of(tmp_path)
    (tmp_path / "last" / "state.json").write_text(json.dumps(state | {"processes": 2}))
    nets = make_nets(dropout=0.3)
    make_trainer(tmp_path, nets, rates={"two": 0.5}).fit()
    told = "training: 2 of its steps were taken by 2 processes and now there are 1"
    assert f"{told}: this training begins anew" in capsys.readouterr().out
    assert_same(arrays(nets), whole)


def test_another_network_is_refused(tmp_path):
    stop(tmp_path, make_nets())
    with pytest.raises(ValueError, match="missing other.embedding.weight"):
        make_trainer(tmp_path, make_nets(names=("one", "other"))).fit()


@pytest.mark.parametrize("name", ["optimizer.safetensors", "parameters.safetensors"])
def test_a_damaged_state_is_refused_and_can_be_removed(tmp_path, name):
    """What the error says to do helps."""
    nets = make_nets()
    stop(tmp_path, nets)
    (tmp_path / "last" / name).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"remove {tmp_path}/last, and this training begins anew"):
        make_trainer(tmp_path, nets).fit()
    shutil.rmtree(tmp_path / "last")
    make_trainer(tmp_path, nets).fit()


# Legs ---------------------------------------------------------------------------------------------


def in_legs(folder, nets, steps, *, stop_at=None, **options) -> None:
    """As many trainers as `steps` says, one after another. Every step sees all examples."""
    data, first = examples(), 0
    for number, count in enumerate(steps):
        before = folder / f"{number - 1}.safetensors" if number else None
        leg = Leg(first, sum(steps), before, folder / f"{number}.safetensors")
        loss = stopping(squared(nets), 2) if number == stop_at else None
        size = {"batch_size": len(data), "steps": count}
        make_trainer(folder, nets, loss, data, name=f"leg {number}", leg=leg, size=size, **options).fit()
        first += count


@pytest.mark.parametrize("algorithm", ["adamw", "lamb"])
def test_legs_equal_one_training(tmp_path, algorithm):
    """One schedule and one optimizer, whatever the number of trainers."""
    optimizer = {"warmup_ratio": 0.5, "algorithm": algorithm, "weight_decay": 0.1}
    whole, legs = make_nets(), make_nets()
    size = {"batch_size": len(examples()), "steps": 9}
    make_trainer(tmp_path / "whole", whole, optimizer=optimizer, size=size).fit()
    in_legs(tmp_path / "legs", legs, [2, 3, 4], optimizer=optimizer)
    assert_same(arrays(legs), arrays(whole), atol=1e-5)
    anew = make_nets()
    for number in range(3):  # which are not equal with new moments
        size, leg = {"batch_size": len(examples()), "steps": 3}, Leg(3 * number, 9)
        make_trainer(tmp_path / "anew", anew, name=f"{number}", leg=leg, optimizer=optimizer, size=size).fit()
    with pytest.raises(AssertionError):
        assert_same(arrays(anew), arrays(whole), atol=1e-5)


def test_a_leg_that_was_stopped_goes_on(tmp_path):
    optimizer = {"warmup_ratio": 0.5}
    whole, cut = make_nets(), make_nets()
    in_legs(tmp_path / "whole", whole, [2, 4], optimizer=optimizer)
    with pytest.raises(Stopped):
        in_legs(tmp_path / "cut", cut, [2, 4], optimizer=optimizer, stop_at=1)
    assert not (tmp_path / "cut" / "1.safetensors").exists()
    nets = others(cut)
    leg = Leg(2, 6, tmp_path / "cut" / "0.safetensors", tmp_path / "cut" / "1.safetensors")
    size = {"batch_size": len(examples()), "steps": 4}
    make_trainer(tmp_path / "cut", nets, name="leg 1", leg=leg, optimizer=optimizer, size=size).fit()
    assert_same(arrays(nets), arrays(whole))
    states = [(tmp_path / name / "1.safetensors").read_bytes() for name in ("whole", "cut")]
    assert states[0] == states[1]


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    nets = make_nets()
    make_trainer(tmp_path, {"one": nets["one"]}, leg=Leg(0, 9, None, tmp_path / "state")).fit()
    trainer = make_trainer(tmp_path, nets, name="next", leg=Leg(9, 18, tmp_path / "state"))
    with pytest.raises(
        ValueError, match=r"state: .*two\..* is missing: remove .*state, and the optimizer beg"
    ):
        trainer.fit()


# Half precision -----------------------------------------------------------------------------------


@pytest.fixture
def in_float32(monkeypatch):
    """Compute in fp32 whatever the precision, so that all else that fp16 changes is left."""
    monkeypatch.setattr(trainer_module.device, "arithmetic", lambda precision: nullcontext())


def bursting(nets, at: set[int]):
    """A loss whose gradient is not finite in some of its calls, counted from 0."""
    calls, plain = [], squared(nets)

    def loss(batch):
        calls.append(1)
        losses = plain(batch)
        if len(calls) - 1 in at:  # the square root's slope at 0
            zero = losses["loss"] - losses["loss"].detach()
            losses["loss"] = losses["loss"] + paddle.sqrt(zero)
        return losses

    return loss


@pytest.mark.parametrize("algorithm", ["adamw", "lamb"])
def test_the_loss_scale_changes_no_step(tmp_path, in_float32, algorithm):
    """A power of two costs no precision."""
    options = {"optimizer": {"algorithm": algorithm}}
    plain, scaled = make_nets(), make_nets()
    make_trainer(tmp_path / "plain", plain, **options).fit()
    make_trainer(tmp_path / "scaled", scaled, precision="fp16", **options).fit()
    assert_same(arrays(scaled), arrays(plain), rtol=1e-6, atol=1e-8)


def test_a_step_too_large_for_fp16_is_left_out_and_the_scale_halved(tmp_path, in_float32, log_every_step):
    nets, seen = make_nets(), []
    trainer = make_trainer(
        tmp_path,
        nets,
        bursting(nets, {0, 2}),
        precision="fp16",
        size={"steps": 4},
        after_step=lambda step: seen.append(arrays(nets)),
    )
    before = arrays(nets)
    trainer.fit()
    assert_same(seen[0], before)
    assert_same(seen[2], seen[1])
    for one, other in [(seen[0], seen[1]), (seen[2], seen[3])]:
        assert all(not np.array_equal(one[name], other[name]) for name in before if "output" in name)
    scales = [row["loss_scale"] / 2.0**16 for row in trainer.log.read()]
    assert scales == [1 / 2, 1 / 2, 1 / 4, 1 / 4]


def test_a_gradient_that_no_loss_scale_makes_finite_is_an_error(tmp_path, in_float32):
    nets = make_nets()
    loss = bursting(nets, set(range(99)))
    trainer = make_trainer(tmp_path, nets, loss, precision="fp16", size={"steps": 99})
    with pytest.raises(FloatingPointError, match="step 17: the gradient is .*set precision=bf16"):
        trainer.fit()


@pytest.mark.parametrize("at", [1, 2])
def test_the_loss_scale_goes_on_from_leg_to_leg_and_after_a_stop(tmp_path, in_float32, at):
    """Even if no step was finite before, so that the optimizer has no state."""
    nets, first = make_nets(), 2.0**16
    legs = [Leg(0, 6, None, tmp_path / "state"), Leg(3, 6, tmp_path / "state", tmp_path / "end")]

    def leg(number: int, loss=None) -> Trainer:
        options = {"name": f"leg {number}", "leg": legs[number], "size": {"steps": 3}, "precision": "fp16"}
        trainer = make_trainer(tmp_path, nets, loss or squared(nets), **options)
        trainer.optimizer.scale.patience = 2
        return trainer

    with pytest.raises(Stopped):
        leg(0, stopping(bursting(nets, {0, 1}), at)).fit()
    again = leg(0, bursting(nets, {0} if at == 1 else set()))
    again.fit()
    assert (again.optimizer.scale.value, again.optimizer.scale.steps) == (first / 4, 1)
    last = leg(1)
    last.fit()
    assert (last.optimizer.scale.value, last.optimizer.scale.steps) == (first, 0)


def test_the_state_of_a_training_without_loss_scale_is_refused(tmp_path):
    nets = make_nets()
    make_trainer(tmp_path, nets, leg=Leg(0, 9, None, tmp_path / "state")).fit()
    trainer = make_trainer(tmp_path, nets, name="next", leg=Leg(9, 18, tmp_path / "state"), precision="fp16")
    with pytest.raises(ValueError, match=r"state: .*loss_scale\..* is missing: remove .*state, and the opt"):
        trainer.fit()


# Losses and gradients that are not finite ---------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(tmp_path, bad):
    nets, calls = make_nets(), []
    loss = squared(nets)

    def breaking(batch):
        calls.append(1)
        values = loss(batch)
        return {"loss": values["loss"] * bad} if len(calls) == 4 else values

    trainer = make_trainer(tmp_path, nets, breaking, name="round-002 both", save_minutes=0.0)
    with pytest.raises(FloatingPointError, match=f"round-002 both, step 4: the loss is {bad}") as error:
        trainer.fit()
    assert str(tmp_path / "last") in str(error.value)
    assert state_of(tmp_path)["step"] == 3
    assert all(np.isfinite(array).all() for array in arrays(nets).values())  # not even stepped in memory


def test_a_gradient_that_is_not_finite_is_not_saved(tmp_path):
    """The loss can be finite where its slope is not."""
    nets = make_nets()

    def loss(batch):
        return {"loss": paddle.sqrt(squared(nets)(batch)["loss"] * 0.0)}

    trainer = make_trainer(tmp_path, nets, loss, save_minutes=0.0)
    with pytest.raises(FloatingPointError, match="step 1"):
        trainer.fit()
    assert not (tmp_path / "last").exists()


# The hook -----------------------------------------------------------------------------------------


def test_the_hook_is_called_after_each_step_with_its_number(tmp_path, log_every_step):
    nets, seen = make_nets(), []
    before = arrays(nets)
    trainer = make_trainer(
        tmp_path, nets, after_step=lambda step: seen.append((step, arrays(nets))), size={"steps": 4}
    )
    trainer.fit()
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    states = [before, *(state for _, state in seen)]
    for earlier, later in zip(states, states[1:], strict=False):
        assert not np.array_equal(earlier["one.output.weight"], later["one.output.weight"])
    assert_same(states[-1], arrays(nets))


def test_the_hook_is_called_once_a_step_when_training_goes_on(tmp_path):
    nets, seen = make_nets(), []
    with pytest.raises(Stopped):
        make_trainer(tmp_path, nets, stopping(squared(nets), 2), after_step=seen.append).fit()
    make_trainer(tmp_path, nets, after_step=seen.append).fit()
    assert seen == [*range(1, 10)]


def test_an_error_in_the_hook_ends_training(tmp_path):
    def fail(step: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_trainer(tmp_path, make_nets(), after_step=fail).fit()
