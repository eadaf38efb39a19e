"""The fused encoder: it equals the plain one, forwards and backwards, whatever the sizes and the threads."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable

import numba
import numpy as np
import paddle
import pytest

from rocketqa_paddle.networks import fused
from rocketqa_paddle.networks.batching import Batch, collate
from rocketqa_paddle.networks.ernie import Ernie, ErnieConfig, unchanging
from rocketqa_paddle.networks.tokenization import Packed

SIZES = ErnieConfig(
    vocab_size=60, hidden_size=20, num_layers=2, num_heads=2, ffn_size=36, max_positions=40, task_types=3
)
ODD = dataclasses.replace(SIZES, hidden_size=21, num_heads=3, ffn_size=13, task_types=0)
Arrays = dict[str, np.ndarray]


@pytest.fixture
def make() -> Callable[..., Ernie]:
    return lambda sizes=SIZES, **training: randomised(Ernie(sizes, **training))


def randomised(network: Ernie) -> Ernie:
    """Weights that differ from those of a new network, and are as large as those of a trained one."""
    rng = np.random.default_rng(3)
    for parameter in network.parameters():
        noise = 0.2 * rng.standard_normal(parameter.shape)
        parameter.set_value((parameter.numpy() + noise).astype(np.float32))
    network.eval()
    return network


def batch_of(*lengths: int) -> Batch:
    rng = np.random.default_rng(sum(lengths))
    return collate(
        [Packed(rng.integers(5, 60, n).tolist(), np.sort(rng.integers(0, 2, n)).tolist()) for n in lengths], 0
    )


def pass_through(network: Ernie, batch: Batch, first_only: bool = False) -> tuple[np.ndarray, Arrays]:
    """Return the states of tokens, and the gradients of a sum that weighs each of them differently."""
    states = network(*batch, first_only=first_only)
    weights = np.random.default_rng(5).standard_normal(states.shape).astype(np.float32)
    if batch.mask is not None and not first_only:
        weights *= batch.mask.numpy()[:, :, None]
    (states * paddle.to_tensor(weights)).sum().backward()
    gradients = {name: p.grad.numpy().copy() for name, p in network.named_parameters()}
    network.clear_gradients()
    return states.numpy() * (weights != 0), gradients


def check_equal(one: tuple[np.ndarray, Arrays], other: tuple[np.ndarray, Arrays]) -> None:
    np.testing.assert_allclose(one[0], other[0], atol=1e-6 * max(1, np.abs(one[0]).max()))
    whole = np.sqrt(sum(np.sum(g**2) for g in one[1].values()))
    for name, gradient in one[1].items():
        size = np.linalg.norm(gradient)
        off = np.linalg.norm(gradient - other[1][name])
        assert off <= 1e-5 * max(size, 1e-2 * whole), (name, off, size)


@pytest.mark.parametrize("first_only", [False, True], ids=["all tokens", "first tokens"])
@pytest.mark.parametrize(
    "lengths",
    [[1], [5], [7, 7, 7], [40, 1, 3, 1], [2, 33, 8, 21] * 9],
    ids=["one token", "one row", "no padding", "almost all padding", "many rows"],
)
@pytest.mark.parametrize(
    "sizes", [SIZES, ODD, dataclasses.replace(SIZES, activation="relu")], ids=["tasks", "odd", "relu"]
)
def test_it_equals_the_plain_encoder(make, monkeypatch, sizes, lengths, first_only):
    network, batch = make(sizes), batch_of(*lengths)
    assert fused.computes(network.word_embedding.weight)
    quick = pass_through(network, batch, first_only)
    monkeypatch.setattr(fused, "_COMPILER", False)
    check_equal(pass_through(network, batch, first_only), quick)


@pytest.mark.parametrize("frozen", [(), ("word_embedding",), ("word_embedding", "position_embedding")])
def test_gradients_of_several_passes_add_up(make, monkeypatch, frozen):
    def summed(network: Ernie) -> dict[str, np.ndarray]:
        for name, parameter in network.named_parameters():
            parameter.stop_gradient = name.startswith(frozen)
        for lengths in ([5, 2], [9]):
            network(*batch_of(*lengths), first_only=True).square().sum().backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        return {name: g.numpy() for name, g in gradients.items() if g is not None}

    network = make()
    got = summed(network)
    network.clear_gradients(set_to_zero=False)
    monkeypatch.setattr(fused, "_COMPILER", False)
    expected = summed(network)
    assert got.keys() == expected.keys()
    assert not any(name.startswith(frozen) for name in got)
    check_equal((np.zeros(1), got), (np.zeros(1), expected))


def test_the_first_tokens_alone_are_those_of_all(make):
    network, batch = make(), batch_of(9, 4, 6)
    first = network(*batch, first_only=True)
    assert first.shape == [3, 1, 20]
    np.testing.assert_allclose(first.numpy(), network(*batch).numpy()[:, :1], atol=1e-6)


@pytest.mark.parametrize("first_only", [False, True], ids=["all tokens", "first tokens"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_slopes(make, dropout, first_only):
    """Moved along any direction, the sum changes as the gradient says; dropout repeats itself by its seed."""
    network, batch = make(dropout=dropout), batch_of(6, 11, 3)
    network.train()

    def value() -> float:
        paddle.seed(7)
        with paddle.no_grad():
            states = network(*batch, first_only=first_only).numpy().astype(np.float64)
        weights = np.random.default_rng(5).standard_normal(states.shape).astype(np.float32)
        if not first_only:
            weights *= batch.mask.numpy()[:, :, None]
        return float((states * weights).sum())

    paddle.seed(7)
    _, gradients = pass_through(network, batch, first_only)
    rng, step = np.random.default_rng(1), 2e-3
    for name, parameter in network.named_parameters():
        before, direction = parameter.numpy(), rng.standard_normal(parameter.shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        sides = []
        for sign in (1, -1):
            parameter.set_value(before + sign * step * direction)
            sides.append(value())
        parameter.set_value(before)
        slope, expected = (sides[0] - sides[1]) / (2 * step), float((gradients[name] * direction).sum())
        assert slope == pytest.approx(expected, rel=0.02, abs=0.02), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_any_number_of_threads_gives_the_same_bits(make, dropout):
    network, batch, most, results = (
        make(dropout=dropout),
        batch_of(*[3, 17, 9] * 7),
        numba.get_num_threads(),
        [],
    )
    network.train()
    for threads in (1, most):
        numba.set_num_threads(threads)
        paddle.seed(11)
        results.append(pass_through(network, batch))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        np.testing.assert_array_equal(gradient, results[1][1][name])


def test_dropout_follows_the_seed_and_its_rate(make):
    network, batch = make(dropout=0.3), batch_of(12, 30, 25)
    network.train()
    drawn = []
    for seed in (1, 1, 2):
        paddle.seed(seed)
        drawn.append(network(*batch).numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0.1
    weights, out = paddle.ones([4, 2, 64, 64]), paddle.empty([4, 2, 64, 64])
    fused._run("drop_weights", weights, np.arange(4) * 64, *fused.Dropout(0.3).random, out)
    kept = out.numpy()
    assert set(np.unique(kept).tolist()) == {0.0, float(np.float32(1 / 0.7))}
    assert kept.mean() == pytest.approx(1, abs=0.02)
    for axis in range(4):  # no row, column or head is dropped more than another
        assert kept.mean(axis=tuple(a for a in range(4) if a != axis)).std() < 0.08


@pytest.mark.parametrize(
    "name", ["word_embedding", "layers.0.attention.key", "layers.1.ffn_in", "layers.1.ffn_norm"]
)
def test_nan_comes_through(make, name):
    network = make()
    weight = dict(network.named_parameters())[f"{name}.weight"]
    weight.set_value(np.full(weight.shape, np.nan, dtype=np.float32))
    states = network(*batch_of(5, 9)).numpy()
    assert np.isnan(states[0, :5]).all()
    assert np.isnan(states[1]).all()


def test_another_precision_takes_the_plain_encoder(make):
    network = make().to(dtype="float64")
    assert not fused.computes(network.word_embedding.weight)
    assert network(*batch_of(5, 9)).dtype == paddle.float64


def test_nowhere_to_keep_what_is_compiled(tmp_path):
    """As for a package of root's and a user without a home: the process compiles for itself alone."""
    code = (
        "import paddle; from rocketqa_paddle.networks import fused;"
        "print(float(fused.gelu(paddle.ones([3, 2]), paddle.ones([2])).sum()))"
    )
    locators = "numba.core.caching.UserProvidedCacheLocator"  # the only one, and no folder is provided
    environment = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": locators, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(6 * 1.9545, abs=1e-3), done.stderr
    assert "compiling loops for this processor" in done.stderr
    assert not list(tmp_path.iterdir())


def test_joined_weights_are_kept_while_they_do_not_change(make: Callable[..., Ernie]) -> None:
    network, batch, kept = make(), batch_of(5, 3), {}
    with paddle.no_grad():
        expected = network(*batch).numpy()
        for _ in range(2):
            with unchanging(kept):
                assert (network(*batch).numpy() == expected).all()
        assert len(kept) == SIZES.num_layers
        network.layers[0].attention.key.weight.set_value(paddle.zeros([20, 20]))
        with unchanging(kept):
            assert (network(*batch).numpy() == expected).all()  # so `kept` is what is used
        assert (network(*batch).numpy() != expected).any()
