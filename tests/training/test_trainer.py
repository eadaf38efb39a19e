"""The training loop: its rates and steps against NumPy, and stop and resume to the bit."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import warnings
from contextlib import nullcontext

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from paddle import nn

from rocketqa_paddle.settings import OptimizerSettings, StageSettings
from rocketqa_paddle.training import trainer as trainer_module
from rocketqa_paddle.training.loss_scale import LossScale
from rocketqa_paddle.training.trainer import Leg, MetricsLog, Stopped, Trainer, learning_rate, make_optimizer

HIDDEN = 6


class Net(nn.Layer):
    """Embedding, layer norm, dropout, linear: one of each that the optimizer treats in its own way."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(HIDDEN, 1)

    def forward(self, tokens):
        states = self.embedding(paddle.to_tensor(np.array(tokens)))
        return self.output(self.dropout(self.norm(states).mean(axis=1)))[:, 0]


def make_nets(dropout: float = 0.0, names=("one", "two")) -> dict[str, Net]:
    paddle.seed(3)
    return {name: Net(dropout) for name in names}


def examples(count: int = 30) -> list[tuple[list[int], float]]:
    generator = np.random.default_rng(5)
    return [(generator.integers(0, 20, 4).tolist(), float(generator.normal())) for _ in range(count)]


def squared(nets):
    """Mean square error of the nets' sum, and a part of it to log."""

    def loss(batch):
        tokens, targets = zip(*batch, strict=True)
        scores = paddle.stack([net(list(tokens)) for net in nets.values()])
        error = F.mse_loss(scores.sum(axis=0), paddle.to_tensor(np.array(targets, dtype=np.float32)))
        return {"loss": error, "half": error / 2}

    return loss


def make_trainer(folder, nets, loss=None, data=None, *, stage="stage", **options) -> Trainer:
    optimizer = OptimizerSettings(**{"learning_rate": 1e-2, **options.pop("optimizer", {})})
    stretch = {"batch_size": 4, "steps": 9, **options.pop("stretch", {})}
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        stage,
        nets,
        examples() if data is None else data,
        loss or squared(nets),
        StageSettings(optimizer=optimizer, **stretch),
        folder=folder / "last",
        log=MetricsLog(folder / "metrics.jsonl"),
        **options,
    )


def arrays(nets) -> dict[str, np.ndarray]:
    return {
        f"{name}.{key}": parameter.numpy().copy()
        for name, net in nets.items()
        for key, parameter in net.named_parameters()
    }


def assert_same(ours, theirs, **tolerance) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        if tolerance:
            np.testing.assert_allclose(ours[name], theirs[name], err_msg=name, **tolerance)
        else:
            assert np.array_equal(ours[name], theirs[name]), name


# The rate -----------------------------------------------------------------------------------------


def test_linear_rate_with_warmup():
    settings = OptimizerSettings(learning_rate=1.0, warmup_share=0.2)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_linear_rate_without_warmup_begins_at_the_peak():
    rates = [learning_rate(step, 4, OptimizerSettings(learning_rate=2.0)) for step in range(4)]
    assert rates == [2, 1.5, 1, 0.5]


def test_constant_rate():
    settings = OptimizerSettings(learning_rate=3.0, warmup_share=0.5, decay="constant")
    assert [learning_rate(step, 4, settings) for step in range(4)] == [1.5, 3, 3, 3]


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(["linear", "constant"]))
def test_every_rate_is_above_zero_and_at_most_the_peak(total, share, decay):
    settings = OptimizerSettings(learning_rate=1.0, warmup_share=share, decay=decay)
    rates = [learning_rate(step, total, settings) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1
    peak = rates.index(1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


# The step -----------------------------------------------------------------------------------------


def adamw(values, gradients, steps, decayed, decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Loshchilov and Hutter's AdamW, `gradients[i]` and rate `steps[i]` for step i."""
    first = dict.fromkeys(values, 0.0)
    second = dict(first)
    for number, (rates, gradient) in enumerate(zip(steps, gradients, strict=True), 1):
        for name, g in gradient.items():
            if name in decayed:
                values[name] = values[name] * (1 - rates[name] * decay)
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g**2
            m, v = first[name] / (1 - beta1**number), second[name] / (1 - beta2**number)
            values[name] = values[name] - rates[name] * m / (np.sqrt(v) + epsilon)
    return values


def test_steps_equal_a_numpy_adamw(tmp_path):
    """Rates of the schedule and of each network, clipping, and decay on weights alone."""
    nets, recorded = make_nets(), []
    trainer = make_trainer(
        tmp_path,
        nets,
        rates={"two": 0.25},
        optimizer={"warmup_share": 0.3, "weight_decay": 0.5, "clip_norm": 0.05},
        stretch={"steps": 6},
    )
    set_lr, before = trainer.optimizer.set_lr, arrays(nets)

    def record(rate):  # the last call before the step
        gradients = {name: p.grad.numpy().copy() for name, p in trainer.parameters.items()}
        recorded.append((rate, gradients))
        set_lr(rate)

    trainer.optimizer.set_lr = record
    trainer.fit()
    assert [rate for rate, _ in recorded] == pytest.approx(
        [learning_rate(step, 6, trainer.settings.optimizer) for step in range(6)]
    )
    steps = [
        {name: rate * (0.25 if name.startswith("two") else 1) for name in before} for rate, _ in recorded
    ]
    decayed = {name for name in before if name.endswith(("embedding.weight", "output.weight"))}
    assert len(decayed) == 4
    assert len(before) == 10
    expected = adamw(before, [gradients for _, gradients in recorded], steps, decayed, decay=0.5)
    assert_same(arrays(nets), expected, rtol=1e-4, atol=1e-6)
    for _, gradients in recorded:
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
        assert norm == pytest.approx(0.05, rel=1e-3)


def test_small_gradients_are_not_scaled_up(tmp_path):
    nets = make_nets()
    trainer = make_trainer(tmp_path, nets, optimizer={"clip_norm": 1e6}, stretch={"steps": 1})
    loss = squared(nets)(trainer._batch(0))["loss"]
    loss.backward()
    expected = {name: p.grad.numpy().copy() for name, p in trainer.parameters.items()}
    trainer.optimizer.clear_grad()
    seen = {}
    set_lr = trainer.optimizer.set_lr
    trainer.optimizer.set_lr = lambda rate: (
        seen.update({name: p.grad.numpy().copy() for name, p in trainer.parameters.items()}),
        set_lr(rate),
    )
    trainer.fit()
    assert_same(seen, expected, rtol=1e-5, atol=1e-9)
    [row] = trainer.log.read()
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected.values()))
    assert row["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert row["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert row["half"] == pytest.approx(float(loss) / 2, rel=1e-5)
    assert row["learning_rate"] == 1e-2
    assert (row["stage"], row["step"]) == ("stage", 1)


def test_a_rate_of_0_freezes_a_network(tmp_path):
    nets = make_nets()
    before = arrays(nets)
    make_trainer(tmp_path, nets, rates={"one": 0.0}).fit()
    after = arrays(nets)
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("one"), name


def test_the_rate_of_an_earlier_stage_does_not_stay(tmp_path):
    nets, others = make_nets(), make_nets()
    make_optimizer(nets, OptimizerSettings(), {"one": 0.0})
    for which in (nets, others):
        make_trainer(tmp_path / str(id(which)), which, stretch={"steps": 2}).fit()
    assert_same(arrays(nets), arrays(others))


def test_only_weights_decay():
    nets = make_nets(names=("one",))
    optimizer = make_optimizer(nets, OptimizerSettings(learning_rate=0.1, weight_decay=0.5), {})
    before = arrays(nets)
    for parameter in nets["one"].parameters():
        parameter.grad = paddle.zeros_like(parameter)
    optimizer.step()
    after = arrays(nets)
    shrunk = {name for name in before if not np.array_equal(before[name], after[name])}
    assert shrunk == {"one.embedding.weight", "one.output.weight"}
    for name in shrunk:
        np.testing.assert_allclose(after[name], 0.95 * before[name], rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulating_equals_one_batch(tmp_path, parts):
    results, logs = [], []
    for accumulate in (1, parts):
        nets = make_nets()
        trainer = make_trainer(
            tmp_path / str(accumulate), nets, stretch={"accumulate": accumulate, "batch_size": 8}
        )
        trainer.fit()
        results.append(arrays(nets))
        logs.append([(row["step"], row["loss"], row["gradient_norm"]) for row in trainer.log.read()])
    assert_same(results[0], results[1], atol=1e-5)
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-4)


def test_training_learns_and_leaves_evaluation_mode(tmp_path):
    nets = make_nets(dropout=0.1)
    trainer = make_trainer(tmp_path, nets, stretch={"steps": 60, "batch_size": 15})
    trainer.fit()
    first, *_, last = [row["loss"] for row in trainer.log.read() if "loss" in row]
    assert last < first / 2
    assert not any(net.training for net in nets.values())


# Examples -----------------------------------------------------------------------------------------


@given(count=st.integers(1, 25), batch_size=st.integers(1, 9), seed=st.integers(0, 3))
@hypothesis_settings(max_examples=25)
def test_each_pass_covers_every_example_once(tmp_path_factory, count, batch_size, seed):
    folder = tmp_path_factory.getbasetemp() / "passes"
    nets = make_nets(names=("one",))
    options = {"data": list(range(count)), "stretch": {"batch_size": batch_size, "steps": 30}, "seed": seed}
    trainer = make_trainer(folder, nets, squared(nets), **options)
    stream = [example for step in range(30) for example in trainer._batch(step)]
    passes = [stream[start : start + count] for start in range(0, len(stream) - count + 1, count)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    if count > 8 and len(passes) > 1:
        assert passes[0] != passes[1]
    again = make_trainer(folder, nets, squared(nets), **options)
    assert again._batch(29) == trainer._batch(29)  # of the step alone, not of those before


@pytest.mark.parametrize("batch_size", [4, 7, 16, 29, 30])
def test_no_batch_has_an_example_twice_and_every_pass_has_all(tmp_path, batch_size):
    nets = make_nets(names=("one",))
    stretch = {"batch_size": batch_size, "steps": 60}
    trainer = make_trainer(tmp_path, nets, squared(nets), data=list(range(30)), stretch=stretch)
    batches = [trainer._batch(step) for step in range(60)]
    assert all(len(set(batch)) == batch_size for batch in batches)
    stream = [example for batch in batches for example in batch]
    passes = [stream[start : start + 30] for start in range(0, len(stream) - 29, 30)]
    assert all(sorted(examples) == list(range(30)) for examples in passes)
    assert trainer._batch(1) == batches[1] and trainer._batch(59) == batches[59]  # asked for in any order


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(1, 4, 8), (3, 4, 23), (1, 30, 1), (2, 64, 1)])
def test_epochs_become_steps(tmp_path, epochs, batch_size, steps):
    stretch = {"steps": None, "epochs": epochs, "batch_size": batch_size}
    trainer = make_trainer(tmp_path, make_nets(), stretch=stretch)
    assert trainer.total_steps == steps
    assert epochs * 30 <= steps * batch_size < epochs * 30 + batch_size


def test_the_stage_and_the_seed_shuffle_in_their_own_ways(tmp_path):
    nets = make_nets()
    orders = [
        [make_trainer(tmp_path, nets, data=list(range(30)), **options)._batch(step) for step in range(3)]
        for options in ({}, {"seed": 2}, {"stage": "other"}, {})
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_no_examples_are_refused(tmp_path):
    with pytest.raises(ValueError, match="stage: no training examples"):
        make_trainer(tmp_path, make_nets(), data=[])


# Stop and resume ----------------------------------------------------------------------------------


def stopping(loss, at: int, number=signal.SIGTERM):
    """A loss that asks for a stop in its call `at`."""
    calls = []

    def stop(batch):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return loss(batch)

    return stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_stopped_run_goes_on_to_the_same_parameters(tmp_path, at, number):
    whole = make_nets(dropout=0.3)
    make_trainer(tmp_path / "whole", whole, rates={"two": 0.5}).fit()

    nets = make_nets(dropout=0.3)
    first = make_trainer(tmp_path / "cut", nets, stopping(squared(nets), at, number), rates={"two": 0.5})
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match=f"stage, step {at} of 9"):
        first.fit()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert json.loads((tmp_path / "cut/last/state.json").read_text())["step"] == at

    paddle.seed(99)  # a new process has other weights and other random numbers
    nets = {name: Net(0.3) for name in nets}
    again = make_trainer(tmp_path / "cut", nets, rates={"two": 0.5})
    again.fit()
    assert again.step == 9
    assert_same(arrays(nets), arrays(whole))


def test_networks_that_an_earlier_stage_trained(tmp_path):
    """The same process goes from stage to stage; the one that goes on begins with the second."""

    def second_stage(folder, nets, loss=None):
        return make_trainer(folder, nets, loss, stage="second", optimizer={"weight_decay": 0.1})

    whole = make_nets(dropout=0.3)
    make_trainer(tmp_path / "whole", whole, stage="first").fit()
    second_stage(tmp_path / "whole", whole).fit()

    nets = make_nets(dropout=0.3)
    make_trainer(tmp_path / "cut", nets, stage="first").fit()
    with pytest.raises(Stopped):
        second_stage(tmp_path / "cut", nets, stopping(squared(nets), 5)).fit()
    nets = {name: Net(0.3) for name in nets}
    second_stage(tmp_path / "cut", nets).fit()
    assert_same(arrays(nets), arrays(whole))


# Legs ---------------------------------------------------------------------------------------------


def in_legs(folder, nets, steps, *, optimizer, loss=None, stop_at=None):
    """As many trainers as `steps` says, one after the other. Every step sees all examples."""
    data, first = examples(), 0
    for number, count in enumerate(steps):
        before = folder / f"{number - 1}.safetensors" if number else None
        leg = Leg(first, sum(steps), before, folder / f"{number}.safetensors")
        some = stopping(loss or squared(nets), 2) if number == stop_at else loss
        stretch = {"batch_size": len(data), "steps": count}
        make_trainer(
            folder, nets, some, data, stage=f"leg {number}", leg=leg, optimizer=optimizer, stretch=stretch
        ).fit()
        first += count


@pytest.mark.parametrize("algorithm", ["adamw", "lamb"])
def test_legs_equal_one_training(tmp_path, algorithm):
    """One schedule and one optimizer, whatever the number of trainers."""
    optimizer = {"warmup_share": 0.5, "algorithm": algorithm, "weight_decay": 0.1}
    whole, legs = make_nets(), make_nets()
    stretch = {"batch_size": len(examples()), "steps": 9}
    make_trainer(tmp_path / "whole", whole, optimizer=optimizer, stretch=stretch).fit()
    in_legs(tmp_path / "legs", legs, [2, 3, 4], optimizer=optimizer)
    assert_same(arrays(legs), arrays(whole), atol=1e-5)
    anew = make_nets()
    for number in range(3):  # which it would not be with new moments
        stretch = {"batch_size": len(examples()), "steps": 3}
        leg = Leg(3 * number, 9)
        make_trainer(
            tmp_path / "anew", anew, stage=f"{number}", leg=leg, optimizer=optimizer, stretch=stretch
        ).fit()
    with pytest.raises(AssertionError):
        assert_same(arrays(anew), arrays(whole), atol=1e-5)


def test_a_leg_that_was_stopped_goes_on(tmp_path):
    optimizer = {"warmup_share": 0.5}
    whole, cut = make_nets(), make_nets()
    in_legs(tmp_path / "whole", whole, [2, 4], optimizer=optimizer)
    with pytest.raises(Stopped):
        in_legs(tmp_path / "cut", cut, [2, 4], optimizer=optimizer, stop_at=1)
    assert not (tmp_path / "cut" / "1.safetensors").exists()
    nets = {name: Net(0.0) for name in cut}
    leg = Leg(2, 6, tmp_path / "cut" / "0.safetensors", tmp_path / "cut" / "1.safetensors")
    stretch = {"batch_size": len(examples()), "steps": 4}
    make_trainer(tmp_path / "cut", nets, stage="leg 1", leg=leg, optimizer=optimizer, stretch=stretch).fit()
    assert_same(arrays(nets), arrays(whole))
    states = [(tmp_path / name / "1.safetensors").read_bytes() for name in ("whole", "cut")]
    assert states[0] == states[1]


@pytest.fixture
def in_float32(monkeypatch):
    """Whatever precision a trainer is given: what fp16 adds beside its arithmetic is left."""
    monkeypatch.setattr(trainer_module.device, "arithmetic", lambda precision: nullcontext())


def bursting(nets, at: set[int]):
    """A loss whose gradient is not finite at some of its calls."""
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
    """A power of two costs no digits."""
    options = {"optimizer": {"algorithm": algorithm}, "stretch": {"accumulate": 2}}
    plain, scaled = make_nets(), make_nets()
    make_trainer(tmp_path / "plain", plain, **options).fit()
    make_trainer(tmp_path / "scaled", scaled, precision="fp16", **options).fit()
    assert_same(arrays(scaled), arrays(plain), rtol=1e-6, atol=1e-8)


def test_a_step_too_large_for_fp16_is_left_out_and_the_scale_halved(tmp_path, in_float32, monkeypatch):
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)  # log every step
    nets, seen = make_nets(), []
    trainer = make_trainer(
        tmp_path,
        nets,
        bursting(nets, {0, 2}),
        precision="fp16",
        stretch={"steps": 4},
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
    trainer = make_trainer(
        tmp_path, nets, bursting(nets, set(range(99))), precision="fp16", stretch={"steps": 99}
    )
    with pytest.raises(FloatingPointError, match="step 17: the gradient is .*set precision=bf16"):
        trainer.fit()


def test_the_loss_scale_grows_after_many_finite_steps():
    scale = LossScale(patience=3)
    for finite in [True, True, False, True, True, True, True]:
        scale.update(finite=finite)
    assert (scale.value, scale.steps) == (2.0**16, 1)  # halved, then doubled


@pytest.mark.parametrize("at", [1, 2])
def test_the_loss_scale_goes_on_from_leg_to_leg_and_after_a_stop(tmp_path, in_float32, at):
    """Even where no step was finite yet, and so the optimizer has no state."""
    folder, nets = tmp_path, make_nets()
    legs = [Leg(0, 6, None, folder / "state"), Leg(3, 6, folder / "state", folder / "end")]
    stretch, first = {"steps": 3}, 2.0**16

    def leg(number: int, loss=None) -> Trainer:
        options = {"stage": f"leg {number}", "leg": legs[number], "stretch": stretch, "precision": "fp16"}
        trainer = make_trainer(folder, nets, loss or squared(nets), **options)
        trainer.scale.patience = 2
        return trainer

    with pytest.raises(Stopped):
        leg(0, stopping(bursting(nets, {0, 1}), at)).fit()
    again = leg(0, bursting(nets, {0} if at == 1 else set()))
    again.fit()
    assert (again.scale.value, again.scale.steps) == (first / 4, 1)
    last = leg(1)
    last.fit()
    assert (last.scale.value, last.scale.steps) == (first, 0)


def test_the_state_of_a_run_without_loss_scale_is_refused(tmp_path):
    nets = make_nets()
    make_trainer(tmp_path, nets, leg=Leg(0, 9, None, tmp_path / "state")).fit()
    trainer = make_trainer(tmp_path, nets, stage="next", leg=Leg(9, 18, tmp_path / "state"), precision="fp16")
    with pytest.raises(ValueError, match=r"state: .*loss_scale\..* is missing: remove .*state, and the opt"):
        trainer.fit()


@pytest.mark.parametrize("name", ["optimizer.safetensors", "parameters.safetensors"])
def test_an_unfinished_state_that_is_refused_can_be_removed(tmp_path, name):
    """What the error says to do helps."""
    nets = make_nets()
    with pytest.raises(Stopped):
        make_trainer(tmp_path, nets, stopping(squared(nets), 2)).fit()
    (tmp_path / "last" / name).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"remove {tmp_path}/last, and the stage begins anew"):
        make_trainer(tmp_path, nets).fit()
    shutil.rmtree(tmp_path / "last")
    make_trainer(tmp_path, nets).fit()


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    nets = make_nets()
    make_trainer(tmp_path, {"one": nets["one"]}, leg=Leg(0, 9, None, tmp_path / "state")).fit()
    with pytest.raises(ValueError, match=r"state: .*two\..* is missing"):
        make_trainer(tmp_path, nets, stage="next", leg=Leg(9, 18, tmp_path / "state")).fit()


def test_a_stage_killed_before_its_first_save_logs_no_step_twice(tmp_path):
    nets = make_nets()
    loss, calls = squared(nets), []

    def killed(batch):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return loss(batch)

    with pytest.raises(MemoryError):
        make_trainer(tmp_path, nets, killed).fit()
    again = make_trainer(tmp_path, make_nets())
    again.fit()
    assert [row["step"] for row in again.log.read()] == [1, 9]


def test_dropout_changes_from_step_to_step(tmp_path):
    """Else the test above would not see a resumed run that draws the wrong numbers."""
    nets, seen = make_nets(dropout=0.5), []

    def loss(batch):
        seen.append(F.dropout(paddle.ones([64]), 0.5).numpy())
        return squared(nets)(batch)

    make_trainer(tmp_path, nets, loss, stretch={"steps": 3}).fit()
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_a_run_stopped_again_and_again(tmp_path):
    whole = make_nets(dropout=0.3)
    make_trainer(tmp_path / "whole", whole, stretch={"steps": 5}).fit()
    for _ in range(4):
        nets = make_nets(dropout=0.3)
        with pytest.raises(Stopped):
            make_trainer(tmp_path / "cut", nets, stopping(squared(nets), 1), stretch={"steps": 5}).fit()
    nets = make_nets(dropout=0.3)
    make_trainer(tmp_path / "cut", nets, stretch={"steps": 5}).fit()
    assert_same(arrays(nets), arrays(whole))


def test_a_run_killed_after_a_save_takes_the_later_steps_again(tmp_path, monkeypatch):
    """And `metrics.jsonl` then has every step once, and what other stages wrote."""
    monkeypatch.setattr(trainer_module, "_LOG_SECONDS", -1.0)  # log every step
    nets = make_nets(dropout=0.3)
    loss, calls = squared(nets), []

    def killed(batch):
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError
        if len(calls) == 4:
            trainer.save()  # the state after 3 steps
        return loss(batch)

    trainer = make_trainer(tmp_path, nets, killed)
    trainer.log.write(stage="earlier", step=7, loss=1.0)
    trainer.log.write(stage="warm-up", **{"dev/retriever/RR@10": 0.5})
    with pytest.raises(MemoryError):
        trainer.fit()
    assert [row.get("step") for row in trainer.log.read()] == [7, None, 1, 2, 3, 4, 5]

    nets = make_nets(dropout=0.3)
    again = make_trainer(tmp_path, nets)
    again.fit()
    rows = again.log.read()
    assert [row.get("step") for row in rows] == [7, None, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert rows[1]["dev/retriever/RR@10"] == 0.5
    whole = make_nets(dropout=0.3)
    other = make_trainer(tmp_path / "whole", whole)
    other.fit()
    assert [row["loss"] for row in rows[2:]] == [row["loss"] for row in other.log.read()]
    assert_same(arrays(nets), arrays(whole))


def test_a_killed_process_leaves_half_a_line_in_the_log(tmp_path):
    nets = make_nets()
    with pytest.raises(Stopped):
        make_trainer(tmp_path, nets, stopping(squared(nets), 2)).fit()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1.0, "stage": "sta')
    trainer = make_trainer(tmp_path, make_nets())
    trainer.fit()
    assert [row["step"] for row in trainer.log.read()] == [1, 9]


def test_saving_as_time_goes_by(tmp_path):
    trainer = make_trainer(tmp_path, make_nets(), save_minutes=0.0)
    trainer.fit()
    state = json.loads((tmp_path / "last" / "state.json").read_text())
    assert (state["stage"], state["step"]) == ("stage", 9)
    assert {path.name for path in (tmp_path / "last").iterdir()} == {
        "parameters.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_what_another_stage_saved_is_left_alone(tmp_path):
    first = make_nets()
    make_trainer(tmp_path, first, save_minutes=0.0, stage="warm-up").fit()
    nets, alone = make_nets(), make_nets()
    make_trainer(tmp_path, nets, stage="round").fit()
    make_trainer(tmp_path / "alone", alone, stage="round").fit()
    assert_same(arrays(nets), arrays(alone))
    assert json.loads((tmp_path / "last" / "state.json").read_text())["stage"] == "warm-up"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stretch": {"steps": 12}}, "total_steps was 9, is now 12"),
        ({"data": examples(29)}, "examples was 30, is now 29"),
    ],
)
def test_changed_settings_are_refused(tmp_path, change, message):
    nets = make_nets()
    with pytest.raises(Stopped):
        make_trainer(tmp_path, nets, stopping(squared(nets), 2)).fit()
    with pytest.raises(ValueError, match=message) as error:
        make_trainer(tmp_path, make_nets(), **change).fit()
    assert "last" in str(error.value)


def test_another_network_is_refused(tmp_path):
    nets = make_nets()
    with pytest.raises(Stopped):
        make_trainer(tmp_path, nets, stopping(squared(nets), 2)).fit()
    with pytest.raises(ValueError, match="missing other.embedding.weight"):
        make_trainer(tmp_path, make_nets(names=("one", "other"))).fit()


# Trouble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number(tmp_path, bad):
    nets, calls = make_nets(), []
    loss = squared(nets)

    def breaking(batch):
        calls.append(1)
        values = loss(batch)
        return {"loss": values["loss"] * bad} if len(calls) == 4 else values

    trainer = make_trainer(tmp_path, nets, breaking, stage="round-002 both", save_minutes=0.0)
    with pytest.raises(FloatingPointError, match=f"round-002 both, step 4: the loss is {bad}") as error:
        trainer.fit()
    assert str(tmp_path / "last") in str(error.value)
    assert json.loads((tmp_path / "last" / "state.json").read_text())["step"] == 3
    assert all(np.isfinite(array).all() for array in arrays(nets).values())  # not even stepped in memory


def test_a_gradient_that_is_no_number_is_not_saved(tmp_path):
    """The loss can be finite where its slope is not."""
    nets = make_nets()

    def loss(batch):
        return {"loss": paddle.sqrt(squared(nets)(batch)["loss"] * 0.0)}

    trainer = make_trainer(tmp_path, nets, loss, save_minutes=0.0)
    with pytest.raises(FloatingPointError, match="step 1"):
        trainer.fit()
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_cpu(tmp_path, precision):
    nets = {name: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1)) for name in ("one", "two")}
    generator, dtypes = np.random.default_rng(1), []

    def loss(batch):
        x = paddle.to_tensor(np.stack(batch))
        hidden = nets["one"][0](x)
        dtypes.append(hidden.dtype)
        scores = nets["one"][1](hidden) + nets["two"](x)
        return {"loss": ((scores.astype("float32")[:, 0] - x.sum(axis=1)) ** 2).mean()}

    data = [generator.normal(size=8).astype(np.float32) for _ in range(16)]
    options = {"precision": precision, "save_minutes": 0.0, "stretch": {"steps": 30}}
    trainer = make_trainer(tmp_path, nets, loss, data, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle says so where it computes in float32 all the same
        trainer.fit()
    first, *_, last = [row["loss"] for row in trainer.log.read()]
    assert last < first / 2
    assert {parameter.dtype for parameter in trainer.parameters.values()} == {paddle.float32}
    if str(dtypes[0]) == "paddle.float32":
        pytest.skip("Paddle's auto_cast has no effect on a CPU: trained in float32")
    assert set(dtypes) == {{"bf16": paddle.bfloat16, "fp16": paddle.float16}[precision]}


def lamb(values, gradients, rates, decayed, decay, beta1=0.9, beta2=0.999, epsilon=1e-6):
    """You et al.'s LAMB. What is not decayed takes Adam's step as it is: in Paddle the two go together."""
    first = dict.fromkeys(values, 0.0)
    second = dict(first)
    for number, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
        for name, g in gradient.items():
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g**2
            m, v = first[name] / (1 - beta1**number), second[name] / (1 - beta2**number)
            step, size = m / (np.sqrt(v) + epsilon), 1.0
            if name in decayed:
                step = step + decay * values[name]
                size = np.linalg.norm(values[name]) / np.linalg.norm(step)
            values[name] = values[name] - rate * size * step
    return values


@pytest.mark.parametrize("decay", [0.5, 0.01])
def test_steps_equal_a_numpy_lamb(decay):
    """Every tensor, several steps; decay and the ratio of norms on weights alone, a rate for each net."""
    nets, generator = make_nets(), np.random.default_rng(7)
    settings = OptimizerSettings(algorithm="lamb", learning_rate=0.1, weight_decay=decay)
    optimizer = make_optimizer(nets, settings, {"two": 0.25})
    values, parameters, gradients = arrays(nets), dict(trainer_module._named_parameters(nets)), []
    rates = [0.1, 0.05, 0.02]
    before = {name: value.copy() for name, value in values.items()}
    for rate in rates:
        gradients.append(
            {name: generator.normal(size=v.shape).astype(np.float32) for name, v in values.items()}
        )
        for name, parameter in parameters.items():
            parameter.grad = paddle.to_tensor(gradients[-1][name])
        optimizer.set_lr(rate)
        optimizer.step()
        optimizer.clear_grad()
    decayed = {name for name in values if name.endswith(("embedding.weight", "output.weight"))}
    for net, factor in {"one": 1.0, "two": 0.25}.items():
        ours = {name: value for name, value in arrays(nets).items() if name.startswith(net)}
        mine = [{name: g[name] for name in ours} for g in gradients]
        start = {name: before[name] for name in ours}
        expected = lamb(start, mine, [factor * rate for rate in rates], decayed, decay)
        assert_same(ours, expected, rtol=1e-4, atol=1e-5)


def test_lamb_decays_neither_biases_nor_layer_norms():
    """Without a gradient to speak of, decay alone moves a tensor."""
    nets = make_nets(names=("one",))
    for parameter in nets["one"].parameters():
        parameter.set_value(paddle.full_like(parameter, 0.5))
        parameter.grad = paddle.zeros_like(parameter)
    settings = OptimizerSettings(algorithm="lamb", learning_rate=0.1, weight_decay=0.5)
    make_optimizer(nets, settings, {}).step()
    moved = {name for name, p in nets["one"].named_parameters() if not np.allclose(p.numpy(), 0.5)}
    assert moved == {"embedding.weight", "output.weight"}
