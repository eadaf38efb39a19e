"""The dual and the cross encoder: towers, pooling, heads. Their values are checked in test_parity.py."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from rocketqa_paddle.networks.batching import collate
from rocketqa_paddle.networks.encoders import CrossEncoder, DualEncoder
from rocketqa_paddle.networks.tokenization import Packed


@pytest.fixture
def batch(tokenizer):
    """Three rows, two of them padded."""
    return collate(tokenizer.pack_queries(["moon", "what is the moon", "tides follow its pull ?"], 32), 0)


def test_a_dual_encoder_has_two_towers_of_its_own(tiny_config, batch):
    network = DualEncoder(tiny_config)
    assert not network.shared
    assert len(network.parameters()) == 2 * len(network.query.parameters())
    assert np.abs((network.encode_queries(batch) - network.encode_passages(batch)).numpy()).max() > 1e-3
    network.encode_queries(batch).sum().backward()
    assert network.query.norm.bias.grad is not None
    assert network.passage.norm.bias.grad is None


def test_a_shared_tower_serves_both_sides_and_is_counted_once(tiny_config, batch):
    network = DualEncoder(tiny_config, shared=True)
    assert network.shared
    assert len(network.parameters()) == len(network.query.parameters())
    queries, passages = network.encode_queries(batch), network.encode_passages(batch)
    np.testing.assert_array_equal(queries.numpy(), passages.numpy())
    (queries * passages.detach()).sum().backward()
    one_side = network.query.norm.bias.grad.numpy().copy()
    network.clear_gradients()
    (network.encode_queries(batch) * network.encode_passages(batch)).sum().backward()
    np.testing.assert_allclose(network.query.norm.bias.grad.numpy(), 2 * one_side, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_normalized_vectors_have_unit_length(tiny_config, batch, pooling):
    network = DualEncoder(tiny_config, pooling=pooling, normalize=True, shared=True)
    vectors = network.encode_queries(batch).numpy()
    assert vectors.shape == (3, tiny_config.hidden_size)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_the_temperature_divides_every_inner_product_once(tiny_config, batch):
    cold, warm = (DualEncoder(tiny_config, shared=True, normalize=True, temperature=t) for t in (0.05, 1.0))
    warm.set_state_dict(cold.state_dict())
    scores = [(n.encode_queries(batch) * n.encode_passages(batch)).sum(axis=-1).numpy() for n in (cold, warm)]
    np.testing.assert_allclose(scores[0], 20 * scores[1], rtol=1e-5)
    np.testing.assert_allclose(scores[0], 20, rtol=1e-5)


def test_mean_pooling_leaves_padding_out(tiny_config):
    network = DualEncoder(tiny_config, pooling="mean")
    short, long = Packed([2, 9, 3], [0, 0, 0]), Packed([2, 9, 10, 11, 12, 3], [0] * 6)
    alone = network.encode_queries(collate([short], 0)).numpy()[0]
    padded = network.encode_queries(collate([short, long], 0)).numpy()[0]
    np.testing.assert_allclose(padded, alone, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_mean_pooling_reaches_every_token_and_cls_pooling_the_first(tiny_config, padded):
    rows = [Packed([2, 9, 10, 3], [0] * 4), Packed([2, 3], [0] * 2)][: 1 + padded]
    batch = collate(rows, 0)
    for pooling, share in (("cls", [1, 0, 0, 0]), ("mean", [0.25] * 4)):
        states = paddle.rand([len(rows), 4, tiny_config.hidden_size])
        states.stop_gradient = False
        DualEncoder(tiny_config, pooling=pooling)._pool(states, batch)[0].sum().backward()
        np.testing.assert_allclose(states.grad[0, :, 0].numpy(), share)


@pytest.mark.parametrize("head, columns", [("logit", 1), ("classes", 2)])
def test_a_cross_encoder_scores_every_row(tiny_config, batch, head, columns):
    network = CrossEncoder(tiny_config, head=head)
    network.eval()
    logits, scores = network.logits(batch).numpy(), network(batch).numpy()
    assert logits.shape == (3, columns)
    assert scores.shape == (3,)
    if head == "classes":
        probability = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
        np.testing.assert_allclose(1 / (1 + np.exp(-scores)), probability, rtol=1e-5)


def test_only_the_classes_head_has_a_pooler(tiny_config):
    names = {
        head: {n.split(".")[0] for n in CrossEncoder(tiny_config, head=head).state_dict()}
        for head in ("logit", "classes")
    }
    assert names == {"logit": {"ernie", "output"}, "classes": {"ernie", "output", "pooler"}}


def test_the_head_is_dropped_out_in_training_only(tiny_config, batch):
    network = CrossEncoder(tiny_config, dropout=0.5)
    network.ernie.eval()
    assert np.abs((network(batch) - network(batch)).numpy()).max() > 1e-4
    network.eval()
    np.testing.assert_array_equal(network(batch).numpy(), network(batch).numpy())


@pytest.mark.parametrize("settings", [{"pooling": "max"}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_a_dual_encoder_refuses_wrong_settings(tiny_config, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}, expected"):
        DualEncoder(tiny_config, **settings)


def test_a_cross_encoder_refuses_an_unknown_head(tiny_config):
    with pytest.raises(ValueError, match="head='probability', expected 'logit', 'classes' or 'pooled_logit'"):
        CrossEncoder(tiny_config, head="probability")
