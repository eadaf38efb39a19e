"""The package computes what the reference does: the oracle's values and the reference's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import paddle
import pytest
import reference
import toy
from reference import Sizes, Variables

from rocketqa_paddle import losses
from rocketqa_paddle.checkpoints.formats.reference import variable
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.batching import collate
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import Ernie
from rocketqa_paddle.networks.parameters import load_arrays
from rocketqa_paddle.networks.tokenization import Packed
from rocketqa_paddle.records import Group, Passage, Query
from rocketqa_paddle.toolkit import CrossModel, DualModel, load_model

NETWORKS = [
    pytest.param(Sizes(50, 24, 2, 3, 40, 20, 2), id="bert"),
    pytest.param(Sizes(33, 16, 3, 1, 64, 20, 4, 3), id="task-embedding"),
    pytest.param(Sizes(70, 32, 1, 8, 16, 20, 4, 0, "relu"), id="relu"),
    pytest.param(Sizes(40, 12, 2, 2, 24, 20, 3, 2, "relu", 1e-12), id="relu-task-small-epsilon"),
]


def fill(tower: Ernie, variables: Variables, sizes: Sizes, prefix: str = "") -> None:
    load_arrays(tower, reference.for_package(variables, sizes, prefix), "oracle")


def sequences(sizes: Sizes, rng: np.random.Generator, lengths: list[int]) -> list[Packed]:
    return [
        Packed(rng.integers(0, sizes.vocab, length).tolist(), np.sort(rng.integers(0, 2, length)).tolist())
        for length in lengths
    ]


@pytest.mark.parametrize("lengths", [[7, 7, 7], [20, 3, 11, 1]], ids=["unpadded", "padded"])
@pytest.mark.parametrize("sizes", NETWORKS)
class TestOracle:
    def test_dual_encoder_vectors(self, sizes, lengths):
        rng = np.random.default_rng(7)
        towers = [reference.random_variables(sizes, rng) for _ in range(2)]
        network = DualEncoder(toy.ernie_config(sizes))
        fill(network.query, towers[0], sizes)
        fill(network.passage, towers[1], sizes)
        rows = sequences(sizes, rng, lengths)
        batch = collate(rows, pad_id=1)
        assert (batch.mask is None) == (len(set(lengths)) == 1)

        states = [[reference.ernie(variables, sizes, row) for row in rows] for variables in towers]
        for pooling, (normalize, temperature) in product(
            ["cls", "mean"], [(False, 1), (True, 0.05), (False, 4)]
        ):
            network.pooling, network.normalize, network.temperature = pooling, normalize, temperature
            queries, passages = (
                np.stack([s[0] if pooling == "cls" else s.mean(axis=0) for s in side]) for side in states
            )
            if normalize:
                queries, passages = (
                    v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (queries, passages)
                )
            for found, expected in (
                (network.encode_queries(batch), queries),
                (network.encode_passages(batch), passages / temperature),
            ):
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)

    def test_cross_encoder_logit(self, sizes, lengths):
        rng = np.random.default_rng(8)
        variables = reference.random_variables(sizes, rng)
        variables["qtp__cls_out_w"] = rng.standard_normal((sizes.hidden, 1)).astype(np.float32)
        variables["qtp__cls_out_b"] = rng.standard_normal(1).astype(np.float32)
        network = CrossEncoder(toy.ernie_config(sizes), head="logit", dropout=0.0)
        fill(network.ernie, variables, sizes)
        fill_head(network, variables)
        rows = sequences(sizes, rng, lengths)

        expected = [
            reference.joint_logit(variables, reference.ernie(variables, sizes, row)[0]) for row in rows
        ]
        scores = network(collate(rows, pad_id=1)).numpy()
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)

    def test_cross_encoder_classes(self, sizes, lengths):
        rng = np.random.default_rng(9)
        h, variables = sizes.hidden, reference.random_variables(sizes, rng)
        for name, shape in {
            "pooled_fc.w_0": (h, h),
            "pooled_fc.b_0": h,
            "_cls_out_w": (h, 2),
            "_cls_out_b": 2,
        }.items():
            variables[name] = (0.5 * rng.standard_normal(shape)).astype(np.float32)
        network = CrossEncoder(toy.ernie_config(sizes), head="classes", dropout=0.0)
        fill(network.ernie, variables, sizes)
        fill_head(network, variables)
        rows = sequences(sizes, rng, lengths)
        batch = collate(rows, pad_id=1)

        states = [reference.ernie(variables, sizes, row)[0] for row in rows]
        expected = np.stack([reference.classes_logits(variables, state) for state in states])
        np.testing.assert_allclose(network.logits(batch).numpy(), expected, rtol=1e-5, atol=1e-5)
        odds = expected[:, 1] - expected[:, 0]
        np.testing.assert_allclose(network(batch).numpy(), odds, rtol=1e-5, atol=1e-5)


def fill_head(network: CrossEncoder, variables: Variables) -> None:
    prefix = "qtp_" if network.head == "logit" else ""
    heads = {"weight": variables[f"{prefix}_cls_out_w"], "bias": variables[f"{prefix}_cls_out_b"]}
    load_arrays(network.output, heads, "oracle")
    if network.pooler is not None:
        pooler = {"weight": variables["pooled_fc.w_0"], "bias": variables["pooled_fc.b_0"]}
        load_arrays(network.pooler, pooler, "oracle")


# The reference's own values ---------------------------------------------------------------------

SAMPLE = Path(__file__).parents[3] / "shared" / "parity" / "sample"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no sample in {SAMPLE}")


@dataclass(frozen=True)
class Sample:
    folder: Path

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def texts(self) -> dict:
        return self.json("texts.json")

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / "expected.npz"))

    def model(self, name: str) -> DualModel | CrossModel:
        return load_model(self.folder / f"{name}.json", batch_size=4)

    def triples(self) -> tuple[list[Query], list[Passage], list[Passage]]:
        picked, passages = self.texts["pair"], self.passages()
        queries = [Query(str(i), self.texts["query"][i]) for i in picked["query"]]
        return queries, [passages[i] for i in picked["pos"]], [passages[i] for i in picked["neg"]]

    def passages(self) -> list[Passage]:
        pairs = zip(self.texts["title"], self.texts["para"], strict=True)
        return [Passage(str(i), title, text) for i, (title, text) in enumerate(pairs)]


def gradients(checkpoint: Checkpoint) -> dict[str, float]:
    """Norms of the parameters' gradients, by the reference's names."""
    network = checkpoint.network
    return {
        variable(name, network): float(parameter.grad.norm())
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


@pytest.fixture(scope="module")
def sample():
    return Sample(SAMPLE)


@needs_sample
def test_sample_word_pieces(sample):
    tokens = sample.json("tokens.json")
    assert tokens
    tokenizer = sample.model("de0").checkpoint.tokenizer
    assert {text: tokenizer.tokenize(text) for text in tokens} == tokens


@needs_sample
@pytest.mark.parametrize("chinese", ["", "_cn"])
@pytest.mark.parametrize("shared", [0, 1])
def test_sample_vectors(sample, shared, chinese):
    model, texts = sample.model(f"de{shared}{chinese}"), sample.texts
    given = {
        "q": model.encode_query(texts["query"]),
        "p": model.encode_para(texts["para"], texts["title"]),
        "match": model.matching(texts["query"], texts["para"], texts["title"]),
    }
    for key, values in given.items():
        expected = sample.expected[f"de{shared}{chinese}_{key}"]
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4, err_msg=key)


@needs_sample
@pytest.mark.parametrize("chinese", ["", "_cn"])
@pytest.mark.parametrize("name", ["ce", "cej"])
def test_sample_rerankers(sample, name, chinese):
    texts = sample.texts
    given = sample.model(name + chinese).matching(texts["query"], texts["para"], texts["title"])
    np.testing.assert_allclose(given, sample.expected[f"{name}{chinese}"], rtol=1e-4, atol=1e-4)


@needs_sample
def test_sample_joint_loss_and_gradients(sample, tmp_path):
    values = sample.json("de0.json")
    for key in ("conf", "vocab", "checkpoint"):
        values[f"model_{key}_path"] = str(sample.folder / values[f"model_{key}_path"])
    values["model_checkpoint_path"] = str(sample.folder / "joint_params")  # it holds the retriever as well
    (tmp_path / "retriever.json").write_text(json.dumps(values))
    retriever = load_model(tmp_path / "retriever.json").checkpoint
    reranker = sample.model("cej").checkpoint
    joint, passages, expected = sample.texts["joint"], sample.passages(), sample.expected
    size = joint["list_size"]
    groups = [
        Group(
            Query(str(start), sample.texts["query"][joint["query_index"][start]]),
            tuple(passages[i] for i in joint["para_index"][start : start + size]),
            (1,) + (0,) * (size - 1),
        )
        for start in range(0, len(joint["para_index"]), size)
    ]
    logits = forward.reranker_scores(reranker, groups)
    loss = losses.joint_distillation(forward.retriever_scores(retriever, groups), logits)["loss"]
    loss.backward()

    np.testing.assert_allclose(logits.numpy(), expected["joint_ce_logits"], rtol=1e-4, atol=1e-4)
    assert float(loss) == pytest.approx(float(expected["joint_loss"]), rel=1e-5)
    norms = {key.split("/")[1]: float(value) for key, value in expected.items() if "joint_grad" in key}
    given = gradients(retriever) | gradients(reranker)
    assert norms
    assert {name: given[name] for name in norms} == pytest.approx(norms, rel=1e-3)


@needs_sample
@pytest.mark.parametrize("name, alpha", [("inbatch_shared", 0.0), ("pair", 0.1)])
def test_sample_in_batch_losses(sample, name, alpha):
    retriever, expected = sample.model("de1").checkpoint, sample.expected
    queries, positives, negatives = sample.triples()
    q = forward.query_vectors(retriever, [Group(query, (), ()) for query in queries])
    p, n = (forward.passage_vectors(retriever, passages) for passages in (positives, negatives))
    loss = losses.pair(q, p, n, alpha=alpha) if alpha else losses.in_batch(q, p, n)
    loss.backward()

    logits = paddle.matmul(q, paddle.concat([p, n]), transpose_y=True)
    np.testing.assert_allclose(logits.numpy(), expected[f"{name}_logits"], rtol=1e-4, atol=1e-4)
    assert float(loss) == pytest.approx(float(expected[f"{name}_loss"]), rel=1e-5)
    gradient = gradients(retriever)["titlepara_encoder_layer_1_ffn_fc_0.w_0"]
    assert gradient == pytest.approx(float(expected[f"{name}_grad_norm"]), rel=1e-3)
