"""The ERNIE network: masks, attention, recompute, dropout, limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from rocketqa_paddle.networks import ernie, fused
from rocketqa_paddle.networks.batching import Batch, collate
from rocketqa_paddle.networks.ernie import Ernie, ErnieConfig
from rocketqa_paddle.networks.tokenization import Packed


@pytest.fixture(params=["fused", "plain"], autouse=True)
def encoder(request, monkeypatch) -> str:
    """Both ways to compute the network."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "_COMPILER", False)
    return request.param


@pytest.fixture
def network(tiny_config):
    return randomised(Ernie(tiny_config))


def randomised(network: Ernie) -> Ernie:
    rng = np.random.default_rng(3)
    for parameter in network.parameters():
        noise = 0.3 * rng.standard_normal(parameter.shape)
        parameter.set_value((parameter.numpy() + noise).astype(np.float32))
    return network


def sequence(length: int, seed: int = 0) -> Packed:
    rng = np.random.default_rng(seed)
    return Packed(rng.integers(5, 60, length).tolist(), np.sort(rng.integers(0, 2, length)).tolist())


def states(network: Ernie, *sequences: Packed) -> np.ndarray:
    return network(*collate(sequences, pad_id=0)).numpy()


# Padding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [[9], [64], [5, 30, 6]])
def test_padding_does_not_change_the_states_of_a_row(network, others):
    row = sequence(5, seed=1)
    alone = states(network, row)[0]
    together = states(network, row, *(sequence(n, seed=n) for n in others))[0, :5]
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_the_content_of_padding_does_not_matter(network):
    token_ids = np.array([[6, 7, 8, 9], [6, 7, 1, 2]])
    mask = paddle.to_tensor([[True] * 4, [True, True, False, False]])
    types = paddle.zeros([2, 4], dtype="int64")
    one = network(paddle.to_tensor(token_ids), types, mask)[1, :2].numpy()
    token_ids[1, 2:] = 40, 50
    other = network(paddle.to_tensor(token_ids), types, mask)[1, :2].numpy()
    np.testing.assert_array_equal(one, other)
    without_mask = network(paddle.to_tensor(token_ids), types)[1, :2].numpy()
    assert np.abs(without_mask - one).max() > 1e-2


def test_order_and_sentence_types_matter(network):
    row = Packed([6, 7, 8, 9], [0, 0, 1, 1])
    base = states(network, row)[0, 0]
    for changed in (Packed([6, 8, 7, 9], row.type_ids), Packed(row.token_ids, [0, 1, 1, 1])):
        assert np.abs(states(network, changed)[0, 0] - base).max() > 1e-3


# Attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_equals_paddles_own(masked):
    rng = np.random.default_rng(0)
    shape, mask = (3, 7, 2, 5), None
    if masked:
        keep = np.arange(7) < np.array([[7], [3], [1]])
        mask = paddle.to_tensor(np.where(keep, 0.0, ernie.MASKED).astype(np.float32))
    outputs, gradients = [], []
    for attend in (ernie._plain_attention, ernie._fused_attention):
        rng = np.random.default_rng(0)
        qkv = [
            paddle.to_tensor(2 * rng.standard_normal(shape).astype(np.float32), stop_gradient=False)
            for _ in range(3)
        ]
        output = attend(*qkv, mask, 0.0)
        (output**2).sum().backward()
        outputs.append(output.numpy())
        gradients.append([x.grad.numpy() for x in qkv])
    assert outputs[0].shape == shape
    np.testing.assert_allclose(outputs[0], outputs[1], atol=2e-6)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_masked_key_has_no_weight_at_all():
    q = paddle.ones([1, 2, 1, 4])
    v = paddle.to_tensor([[[[1.0] * 4], [[1e6] * 4]]])
    mask = paddle.to_tensor([[0.0, ernie.MASKED]])
    np.testing.assert_array_equal(ernie._plain_attention(q, q, v, mask, 0.0).numpy(), np.ones((1, 2, 1, 4)))


# Training ---------------------------------------------------------------------------------------


def gradients(network: Ernie, batch: Batch) -> Iterator[np.ndarray]:
    output = network(*batch)
    (output[:, 0] ** 3).sum().backward()
    yield output.numpy()
    yield from (parameter.grad.numpy() for parameter in network.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[6, 6], [6, 3]], ids=["unpadded", "padded"])
def test_recompute_changes_neither_outputs_nor_gradients(tiny_config, lengths, dropout):
    batch = collate([sequence(n, seed=n) for n in lengths], pad_id=0)
    kept, recomputed = (randomised(Ernie(tiny_config, dropout, use)) for use in (False, True))
    recomputed.set_state_dict(kept.state_dict())
    results = []
    for network in (kept, recomputed):
        network.train()
        paddle.seed(5)
        results.append(list(gradients(network, batch)))
    assert len(results[0]) == len(kept.parameters()) + 1
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_recompute_runs_the_layers_again_in_the_backward_pass(tiny_config, monkeypatch, encoder):
    calls: list[int] = []
    name = "packed" if encoder == "fused" else "forward"
    block = getattr(ernie.Block, name)
    monkeypatch.setattr(ernie.Block, name, lambda *args: calls.append(1) or block(*args))
    network = Ernie(tiny_config, use_recompute=True)
    list(gradients(network, collate([sequence(4)], pad_id=0)))
    assert len(calls) == 2 * tiny_config.num_layers
    calls.clear()
    network.eval()
    list(gradients(network, collate([sequence(4)], pad_id=0)))
    assert len(calls) == tiny_config.num_layers


def test_dropout_acts_in_training_only(tiny_config):
    with_dropout, without = (Ernie(tiny_config, dropout) for dropout in (0.3, 0.0))
    without.set_state_dict(randomised(with_dropout).state_dict())
    without.train()
    row = sequence(6)
    with_dropout.train()
    assert np.abs(states(with_dropout, row) - states(with_dropout, row)).max() > 1e-2
    with_dropout.eval()
    np.testing.assert_array_equal(states(with_dropout, row), states(without, row))


def test_attention_weights_are_dropped_too(tiny_config):
    attention = ernie.Attention(tiny_config, 0.5)
    x = paddle.randn([1, 5, tiny_config.hidden_size])
    attention.train()
    one, other = (attention(x, None, x).numpy() for _ in range(2))
    assert np.abs(one - other).max() > 1e-5
    attention.eval()
    np.testing.assert_array_equal(attention(x, None, x).numpy(), attention(x, None, x).numpy())


def test_initial_weights_follow_the_seed_and_the_range(tiny_config):
    networks = []
    for seed in (1, 1, 2):
        paddle.seed(seed)
        networks.append(Ernie(tiny_config))
    one, same, other = (network.word_embedding.weight.numpy() for network in networks)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert one.std() == pytest.approx(tiny_config.initializer_range, rel=0.15)
    assert not networks[0].layers[0].ffn_in.bias.numpy().any()


# Limits -----------------------------------------------------------------------------------------


def test_a_sequence_longer_than_the_positions_is_refused(network):
    assert states(network, sequence(64)).shape == (1, 64, 32)
    with pytest.raises(ValueError, match="a sequence of 65 tokens, but the encoder has 64 positions"):
        states(network, sequence(65))


def test_heads_must_share_the_hidden_units_equally():
    with pytest.raises(ValueError, match="hidden_size=30 is not a multiple of num_heads=4"):
        ErnieConfig(vocab_size=9, hidden_size=30, num_heads=4)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation='swish', expected one of .'gelu', 'relu'."):
        ErnieConfig(vocab_size=9, activation="swish")


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"num_layers": 0}, "num_layers=0, expected a whole number from 1 to 2147483647"),
        ({"num_layers": 2.0}, "num_layers=2.0, expected a whole number"),
        ({"num_layers": True}, "num_layers=True, expected a whole number"),
        ({"vocab_size": 10**10}, "vocab_size=10000000000, expected a whole number from 1 to 2147483647"),
        ({"hidden_size": "8" * 10**6}, "hidden_size='8888.*8888', expected a whole number"),
        ({"layer_norm_eps": 0}, "layer_norm_eps=0, expected a finite number above 0"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps=10000000"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps='1e-5', expected a finite number above 0"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps=nan, expected a finite number above 0"),
        ({"initializer_range": math.inf}, "initializer_range=inf, expected a finite number above 0"),
        ({"initializer_range": [0.02]}, r"initializer_range=\[0.02\], expected a finite number above 0"),
    ],
)
def test_a_wrong_size_is_refused_in_a_short_message(changes, problem):
    with pytest.raises(ValueError, match=problem) as error:
        ErnieConfig(**{"vocab_size": 9, **changes})
    assert len(str(error.value)) < 200


def test_a_saved_config_reads_the_same_and_names_unknown_keys(tiny_config):
    values = dataclasses.asdict(tiny_config)
    assert ErnieConfig.from_dict(values) == tiny_config
    with pytest.raises(ValueError, match="unknown encoder settings .'layers'."):
        ErnieConfig.from_dict({**values, "layers": 3})
