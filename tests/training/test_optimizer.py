"""The optimizer: its rates, its steps against NumPy, what decays, and the loss scale."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from nets import arrays, assert_same, make_nets, make_trainer, squared
from safetensors.numpy import save_file

from rocketqa_paddle.networks import fused
from rocketqa_paddle.settings import OptimizerSettings, TrainingSettings
from rocketqa_paddle.training.optimizer import LossScale, Optimizer, learning_rate, total_steps

ALGORITHMS = ["adamw", "lamb"]


@pytest.fixture(params=["loops", "Paddle's"])
def both_rules(request, monkeypatch) -> None:
    """Run a test with AdamW as a loop, and with Paddle's."""
    if request.param == "Paddle's":
        monkeypatch.setattr(fused, "_COMPILER", False)


# The rate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"warmup_ratio": 0.2}, [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"learning_rate": 2.0}, [2, 1.5, 1, 0.5]),
        ({"learning_rate": 3.0, "warmup_ratio": 0.5, "decay": "constant"}, [1.5, 3, 3, 3]),
    ],
    ids=["warm-up", "no warm-up", "constant"],
)
def test_rates(options, rates):
    settings = OptimizerSettings(**{"learning_rate": 1.0, **options})
    assert [learning_rate(step, len(rates), settings) for step in range(len(rates))] == pytest.approx(rates)


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(["linear", "constant"]))
@hypothesis_settings(max_examples=30)
def test_every_rate_is_above_zero_and_at_most_the_peak(total, ratio, decay):
    settings = OptimizerSettings(learning_rate=1.0, warmup_ratio=ratio, decay=decay)
    rates = [learning_rate(step, total, settings) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1
    peak = rates.index(1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(1, 4, 8), (3, 4, 23), (1, 30, 1), (2, 64, 1)])
def test_epochs_become_steps(epochs, batch_size, steps):
    assert total_steps(TrainingSettings(batch_size=batch_size, epochs=epochs), 30) == steps
    assert epochs * 30 <= steps * batch_size < epochs * 30 + batch_size
    assert total_steps(TrainingSettings(batch_size=batch_size, epochs=epochs, steps=7), 30) == 7


# The step -----------------------------------------------------------------------------------------


def adamw(values, gradients, steps, decayed, decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Loshchilov and Hutter's AdamW, with `gradients[i]` and the rates `steps[i]` in step i."""
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


def lamb(values, gradients, steps, decayed, decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-6):
    """You et al.'s LAMB. What does not decay takes Adam's step as it is: in Paddle the two go together."""
    first = dict.fromkeys(values, 0.0)
    second = dict(first)
    for number, (rates, gradient) in enumerate(zip(steps, gradients, strict=True), 1):
        for name, g in gradient.items():
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g**2
            m, v = first[name] / (1 - beta1**number), second[name] / (1 - beta2**number)
            step, size = m / (np.sqrt(v) + epsilon), 1.0
            if name in decayed:
                step = step + decay * values[name]
                size = np.linalg.norm(values[name]) / np.linalg.norm(step)
            values[name] = values[name] - rates[name] * size * step
    return values


def gradients_before_each_step(trainer) -> list:
    """Pairs of the rate and the clipped gradients, filled while the trainer takes its steps."""
    seen, step = [], trainer.optimizer._rule.step

    def record(rate, factor):
        parameters = trainer.optimizer.parameters
        seen.append((rate, {name: factor * p.grad.numpy() for name, p in parameters.items()}))
        step(rate, factor)

    trainer.optimizer._rule.step = record
    return seen


def norm_of(gradients) -> float:
    return math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))


def test_steps_equal_a_numpy_adamw(tmp_path, both_rules):
    """Rates of the schedule and of each network, clipping, and decay of weights alone."""
    nets = make_nets()
    trainer = make_trainer(
        tmp_path,
        nets,
        rates={"two": 0.25},
        optimizer={"warmup_ratio": 0.3, "weight_decay": 0.5, "max_grad_norm": 0.05},
        size={"steps": 6},
    )
    before, recorded = arrays(nets), gradients_before_each_step(trainer)
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
        assert norm_of(gradients) == pytest.approx(0.05, rel=1e-3)


def test_small_gradients_are_not_scaled_up(tmp_path):
    nets = make_nets()
    trainer = make_trainer(tmp_path, nets, optimizer={"max_grad_norm": 1e6}, size={"steps": 1})
    loss = squared(nets)(trainer._batch(0))["loss"]
    loss.backward()
    expected = {name: p.grad.numpy().copy() for name, p in trainer.optimizer.parameters.items()}
    for net in nets.values():
        net.clear_gradients()
    recorded = gradients_before_each_step(trainer)
    trainer.fit()
    assert_same(recorded[0][1], expected, rtol=1e-5, atol=1e-9)
    [row] = trainer.log.read()
    assert row["gradient_norm"] == pytest.approx(norm_of(expected), rel=1e-4)
    assert row["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert row["half"] == pytest.approx(float(loss) / 2, rel=1e-5)
    assert row["learning_rate"] == 1e-2
    assert (row["stage"], row["step"]) == ("training", 1)


@pytest.mark.parametrize("decay", [0.5, 0.01])
def test_steps_equal_a_numpy_lamb(decay):
    """Every tensor in several steps: decay and the ratio of norms for weights alone, a rate for each net."""
    nets, generator = make_nets(), np.random.default_rng(7)
    settings = OptimizerSettings(algorithm="lamb", learning_rate=0.1, weight_decay=decay, max_grad_norm=1e9)
    optimizer, before = Optimizer(nets, settings, {"two": 0.25}), arrays(nets)
    rates, gradients = [0.1, 0.05, 0.02], []
    for rate in rates:
        drawn = {name: generator.normal(size=v.shape).astype(np.float32) for name, v in before.items()}
        for name, parameter in optimizer.parameters.items():
            parameter.grad = paddle.to_tensor(drawn[name])
        assert optimizer.step(rate) == pytest.approx(norm_of(drawn), rel=1e-4)
        gradients.append(drawn)
    decayed = {name for name in before if name.endswith(("embedding.weight", "output.weight"))}
    steps = [{name: rate * (0.25 if name.startswith("two") else 1) for name in before} for rate in rates]
    assert_same(arrays(nets), lamb(before, gradients, steps, decayed, decay), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_weights_decay(algorithm, both_rules):
    """With a gradient of zero, decay alone moves a tensor: neither biases nor layer norms."""
    nets = make_nets(names=("one",))
    for parameter in nets["one"].parameters():
        parameter.set_value(paddle.full_like(parameter, 0.5))
        parameter.grad = paddle.zeros_like(parameter)
    settings = OptimizerSettings(algorithm=algorithm, learning_rate=0.1, weight_decay=0.5)
    Optimizer(nets, settings, {}).step(0.1)
    moved = {name for name, array in arrays(nets).items() if not np.allclose(array, 0.5)}
    assert moved == {"one.embedding.weight", "one.output.weight"}
    if algorithm == "adamw":
        for name in moved:
            np.testing.assert_allclose(arrays(nets)[name], 0.95 * 0.5, rtol=1e-5)


def test_a_rate_of_0_freezes_a_network(tmp_path):
    nets = make_nets()
    before = arrays(nets)
    make_trainer(tmp_path, nets, rates={"one": 0.0}).fit()
    after = arrays(nets)
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("one"), name


def test_the_rate_of_an_earlier_optimizer_does_not_stay(tmp_path):
    nets, others = make_nets(), make_nets()
    Optimizer(nets, OptimizerSettings(), {"one": 0.0})
    for which in (nets, others):
        make_trainer(tmp_path / str(id(which)), which, size={"steps": 2}).fit()
    assert_same(arrays(nets), arrays(others))


# State --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_state_goes_on_with_other_parameters_of_the_same_names(tmp_path, algorithm, both_rules):
    settings = OptimizerSettings(algorithm=algorithm)
    whole, first = make_nets(), make_nets()
    steps = [gradients_of(seed, whole) for seed in range(4)]
    apply(Optimizer(whole, settings, {}), steps)
    optimizer = Optimizer(first, settings, {})
    apply(optimizer, steps[:2])
    save_file(optimizer.state(), tmp_path / "state")
    paddle.seed(9)
    second = {name: type(net)() for name, net in first.items()}
    for name, net in second.items():
        net.set_state_dict(first[name].state_dict())
    again = Optimizer(second, settings, {})
    again.load(tmp_path / "state")
    apply(again, steps[2:])
    assert_same(arrays(second), arrays(whole))


def gradients_of(seed: int, nets) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=a.shape).astype(np.float32) for name, a in arrays(nets).items()}


def apply(optimizer: Optimizer, steps) -> None:
    for gradients in steps:
        for name, parameter in optimizer.parameters.items():
            parameter.grad = paddle.to_tensor(gradients[name])
        optimizer.step(0.01)


# The loss scale -----------------------------------------------------------------------------------


def test_the_loss_scale_grows_after_many_finite_steps():
    scale = LossScale(patience=3)
    for finite in [True, True, False, True, True, True, True]:
        scale.update(finite=finite)
    assert (scale.value, scale.steps) == (2.0**16, 1)  # halved, then doubled


def test_a_gradient_that_is_not_finite_moves_nothing():
    nets = make_nets(names=("one",))
    for scale in (LossScale(), None):
        optimizer, before = Optimizer(nets, OptimizerSettings(), {}, scale), arrays(nets)
        for parameter in nets["one"].parameters():
            parameter.grad = paddle.full_like(parameter, math.inf)
        if scale:
            assert not math.isfinite(optimizer.step(0.1))
            assert scale.value == 2.0**15
        else:
            with pytest.raises(FloatingPointError, match="the gradient is"):
                optimizer.step(0.1)
        assert_same(arrays(nets), before)
