"""The dual and the cross encoder: towers, pooling, heads. Their values are checked in test_parity.py."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import paddle
import pytest

from rocketqa_paddle.networks.batching import collate
from rocketqa_paddle.networks.encoders import (
    DUAL_SETTINGS,
    Checkpoint,
    CrossEncoder,
    DualEncoder,
    build,
    describe,
    restore,
    shapes,
)
from rocketqa_paddle.networks.parameters import named_tensors, shapes_of, to_arrays
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


WRONG = [
    *(("temperature", value) for value in (0.0, -1.0, 1e-300, 1e300, math.inf, math.nan, "1", None, True)),
    *(("normalize", value) for value in ("no", 1, None)),
    *(("shared", value) for value in ("yes", 0, [])),
    *(("pooling", value) for value in ("max", None, ["cls"], {"cls": True})),
    *(("dropout", value) for value in (1, -0.1, math.nan, "0.1", None)),
]


@pytest.mark.parametrize("name, value", WRONG)
def test_a_dual_encoder_refuses_wrong_settings(tiny_config, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}, expected")):
        DualEncoder(tiny_config, **{name: value})
    if name in DUAL_SETTINGS:
        whole = {"model_type": "dual_encoder", "shared": True, "pooling": "cls", "normalize": False}
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}, expected")):
            build({"temperature": 1.0, **whole, name: value}, tiny_config)


@pytest.mark.parametrize("kind", ["dual_encoder", "cross_encoder"])
def test_a_description_that_is_not_whole_is_refused(tiny_config, kind):
    with pytest.raises(ValueError, match=f"no (shared|head).*, which a {kind} needs"):
        build({"model_type": kind}, tiny_config)
    for other in ({}, {"model_type": "bert"}, {"model_type": [kind]}):
        with pytest.raises(ValueError, match="model_type .*expected 'dual_encoder' or 'cross_encoder'"):
            build(other, tiny_config)


@pytest.mark.parametrize(
    "lengths, problem",
    [
        ({"query": -5, "passage": 20}, "query length -5, expected a whole number from 3 on"),
        ({"query": 2, "passage": 20}, "query length 2, expected a whole number from 3 on"),
        ({"query": 12, "passage": 3}, "passage length 3, expected a whole number from 4 on"),
        ({"query": 12.0, "passage": 20}, "query length 12.0, expected a whole number"),
        ({"query": True, "passage": 20}, "query length True, expected a whole number"),
        ({"query": "12", "passage": 20}, "query length '12', expected a whole number"),
        ({"query": 12, "passage": 65}, "passage length 65, but the encoder has only 64 positions"),
        ({"query": 12}, "lengths {'query': 12}, expected ['passage', 'query']"),
    ],
)
def test_lengths_that_leave_no_room_for_text_are_refused(tiny_config, tokenizer, lengths, problem):
    network = DualEncoder(tiny_config, shared=True)
    with pytest.raises(ValueError, match=re.escape(problem)):
        Checkpoint(network, tokenizer, lengths)
    assert Checkpoint(network, tokenizer, {"query": 3, "passage": 4}).lengths["query"] == 3


# Shapes -----------------------------------------------------------------------------------------

DUALS = [{"model_type": "dual_encoder", "shared": shared} for shared in (True, False)]
CROSSES = [{"model_type": "cross_encoder", "head": h} for h in ("logit", "classes", "pooled_logit")]


@pytest.mark.parametrize("tasks", [0, 3])
@pytest.mark.parametrize("given", [*DUALS, *CROSSES], ids=lambda d: str(list(d.values())[1]))
def test_the_shapes_of_a_description_are_those_of_the_network(tiny_config, given, tasks):
    sizes = dataclasses.replace(tiny_config, task_types=tasks, num_layers=3)
    description = {"pooling": "cls", "normalize": False, "temperature": 1.0, **given}
    assert shapes(description, sizes) == shapes_of(named_tensors(build(description, sizes)))


@pytest.mark.parametrize("sizes", [{"vocab_size": 2**31 - 1}, {"num_layers": 10**7}, {"ffn_size": 2**31 - 1}])
def test_sizes_that_no_file_has_are_refused_before_a_network_is_made(tiny_config, monkeypatch, sizes):
    network = DualEncoder(tiny_config, shared=True)
    monkeypatch.setattr("rocketqa_paddle.networks.encoders.build", None)
    wrong = dataclasses.replace(tiny_config, **sizes)
    with pytest.raises(ValueError, match="here: the parameters do not fit"):
        restore(describe(network), wrong, to_arrays(network), "here")


def test_a_cross_encoder_refuses_an_unknown_head(tiny_config):
    with pytest.raises(ValueError, match="head='probability', expected 'logit', 'classes' or 'pooled_logit'"):
        CrossEncoder(tiny_config, head="probability")
