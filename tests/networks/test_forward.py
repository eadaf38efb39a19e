"""Groups to scores with gradient, and texts to arrays, each equal to what one text at a time gives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
import paddle
import pytest
import toy
from paddle import Tensor, nn

from rocketqa_paddle.networks import forward as scoring
from rocketqa_paddle.networks import fused
from rocketqa_paddle.networks.batching import Batch, collate
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder, build, describe
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.parameters import load_arrays, to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.records import Collection, Group, Passage
from rocketqa_paddle.runtime import device


@pytest.fixture
def groups(collection: Collection) -> list[Group]:
    """6 groups of 5 passages, whose lengths differ: more rows than one pass takes, in no order of length."""
    passages = list(collection.passages.values())
    queries = list(collection.splits["train"].queries.values())[:6]
    return [
        Group(
            query,
            tuple(longer(passages[(7 * i + 3 * j) % 30], (i + 2 * j) % 4) for j in range(5)),
            (1, 0, 0, 0, 0),
        )
        for i, query in enumerate(queries)
    ]


def longer(passage: Passage, times: int) -> Passage:
    return Passage(passage.id, passage.title, " ".join([passage.text] * (times + 1)))


@pytest.fixture(params=[False, True], ids=["two-towers", "shared"])
def retriever(request: pytest.FixtureRequest, tiny_config: ErnieConfig, tokenizer: Tokenizer) -> Checkpoint:
    network = DualEncoder(tiny_config, shared=request.param, temperature=2.0)
    return Checkpoint(spread(network), tokenizer, {"query": 16, "passage": 40})


@pytest.fixture(params=["logit", "classes"])
def reranker(request: pytest.FixtureRequest, tiny_config: ErnieConfig, tokenizer: Tokenizer) -> Checkpoint:
    network = CrossEncoder(tiny_config, head=request.param, dropout=0.0)
    return Checkpoint(spread(network), tokenizer, {"pair": 48})


def spread(network: nn.Layer) -> nn.Layer:
    """Weights of ordinary size: at their initial values all scores are nearly alike."""
    for parameter in network.parameters():
        parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
    return network


def naive_retriever_scores(retriever: Checkpoint, groups: Sequence[Group]) -> Tensor:
    network, tokenizer = retriever.network, retriever.tokenizer

    def score(group: Group, passage: Passage) -> Tensor:
        query = tokenizer.pack_queries([group.query.text], 16)
        text = tokenizer.pack_passages([passage.title], [passage.text], 40)
        vectors = network.encode_queries(collate(query, 0)), network.encode_passages(collate(text, 0))
        return (vectors[0] * vectors[1]).sum()

    return paddle.stack([paddle.stack([score(group, p) for p in group.passages]) for group in groups])


def naive_reranker_scores(reranker: Checkpoint, groups: Sequence[Group]) -> Tensor:
    def score(group: Group, passage: Passage) -> Tensor:
        pair = reranker.tokenizer.pack_pairs([group.query.text], [passage.title], [passage.text], 48)
        return reranker.network(collate(pair, 0))[0]

    return paddle.stack([paddle.stack([score(group, p) for p in group.passages]) for group in groups])


Scorer = Callable[[Checkpoint, Sequence[Group]], Tensor]


def assert_equal_scores_and_gradients(
    checkpoint: Checkpoint, groups: Sequence[Group], scorer: Scorer, naive: Scorer
) -> None:
    results = []
    for score in (scorer, naive):
        scores = score(checkpoint, groups)
        (scores**2).mean().backward()
        gradients = [parameter.grad.numpy() for parameter in checkpoint.network.parameters()]
        checkpoint.network.clear_gradients()
        results.append((scores.numpy(), gradients))
    (given, given_gradients), (expected, expected_gradients) = results
    assert given.shape == (len(groups), 5)
    assert expected.std() > 0.05
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(given_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * max(1, np.abs(other).max()))


def test_retriever_scores_equal_those_one_by_one(retriever: Checkpoint, groups: list[Group]) -> None:
    assert_equal_scores_and_gradients(retriever, groups, scoring.retriever_scores, naive_retriever_scores)


def test_reranker_scores_equal_those_one_by_one(reranker: Checkpoint, groups: list[Group]) -> None:
    assert_equal_scores_and_gradients(reranker, groups, scoring.reranker_scores, naive_reranker_scores)


def test_every_query_is_encoded_once_a_group_and_every_passage_once(
    retriever: Checkpoint, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"encode_queries": 0, "encode_passages": 0}
    for name in rows:
        encode = getattr(retriever.network, name)

        def count(batch: Batch, name: str = name, encode: Callable[[Batch], Tensor] = encode) -> Tensor:
            rows[name] += len(batch.token_ids)
            return encode(batch)

        monkeypatch.setattr(retriever.network, name, count)
    scoring.retriever_scores(retriever, groups)
    assert rows == {"encode_queries": 6, "encode_passages": 30}


@pytest.mark.parametrize("plain", [True, False])
def test_passes_of_the_plain_encoder_hold_rows_of_like_length(
    reranker: Checkpoint, groups: list[Group], monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """The fused one has no padding, and takes all rows at once."""
    batches: list[Batch] = []
    if plain:
        monkeypatch.setattr(fused, "_COMPILER", False)
    monkeypatch.setattr(scoring, "collate", lambda *args: batches.append(collate(*args)) or batches[-1])
    scoring.reranker_scores(reranker, groups)
    assert sum(len(batch.token_ids) for batch in batches) == 30
    assert (len(batches) > 1) == plain
    widths = [batch.token_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert (widths[0] > widths[-1]) == plain


def test_query_and_passage_vectors_come_in_order(retriever: Checkpoint, groups: list[Group]) -> None:
    passages = [passage for group in groups for passage in group.passages]
    vectors = scoring.passage_vectors(retriever, passages).numpy()
    assert vectors.shape == (30, 32)
    for i in (0, 13, 29):
        np.testing.assert_allclose(
            scoring.passage_vectors(retriever, [passages[i]]).numpy()[0], vectors[i], atol=1e-5
        )
    queries = scoring.query_vectors(retriever, groups).numpy()
    np.testing.assert_allclose(
        scoring.query_vectors(retriever, groups[4:5]).numpy()[0], queries[4], atol=1e-5
    )


def test_groups_of_unequal_sizes_are_refused(
    retriever: Checkpoint, reranker: Checkpoint, groups: list[Group]
) -> None:
    passages = groups[0].passages + groups[1].passages
    ragged = [Group(groups[0].query, passages[:3], (1,) * 3), Group(groups[1].query, passages[3:], (1,) * 7)]
    for score, checkpoint in (
        (scoring.retriever_scores, retriever),
        (scoring.reranker_scores, reranker),
    ):
        with pytest.raises(ValueError, match=r"groups of \[3, 7\] passages, expected .* of one size"):
            score(checkpoint, ragged)


# Texts to arrays --------------------------------------------------------------------------------

MADE = toy.collection()
# Texts of 0 to 40 words, so that the lengths of buckets differ and some texts are truncated
TEXTS = [" ".join([passage.text] * (i % 4)) for i, passage in enumerate(MADE.passages.values())]
TITLES = [passage.title for passage in MADE.passages.values()]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return toy.tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module", params=["cls", "mean"])
def encoder(request, tokens):
    return toy.dual(tokens, pooling=request.param, dropout=0.2)


@pytest.fixture(scope="module")
def scorer(tokens):
    return toy.cross(tokens, dropout=0.2)


def test_encoding_in_buckets_equals_one_by_one(encoder):
    queries = [query.text for query in MADE.splits["train"].queries.values()]
    passages = [scoring.encode_passages(encoder, [a], [b]) for a, b in zip(TITLES, TEXTS, strict=True)]
    alone = [np.concatenate(passages)]
    alone.append(np.concatenate([scoring.encode_queries(encoder, [query]) for query in queries]))
    for batch_size in (1, 7, 64):
        for together, expected in zip(
            (
                scoring.encode_passages(encoder, TITLES, TEXTS, batch_size=batch_size),
                scoring.encode_queries(encoder, queries, batch_size=batch_size),
            ),
            alone,
            strict=True,
        ):
            assert together.dtype == np.float32
            assert together.shape == (len(expected), 16)
            assert len(np.unique(together.round(4), axis=0)) > len(expected) / 2  # else no order would show
            np.testing.assert_allclose(together, expected, atol=1e-5)


def test_scoring_in_buckets_equals_one_by_one(scorer):
    queries = [f"where is the {colour} {animal}" for colour, animal in toy.PAIRS]
    together = scoring.score_pairs(scorer, queries, TITLES, TEXTS, batch_size=8)
    alone = [
        scoring.score_pairs(scorer, [query], [title], [text])
        for query, title, text in zip(queries, TITLES, TEXTS, strict=True)
    ]
    assert together.shape == (60,)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_more_rows_than_are_tokenised_together(encoder, monkeypatch):
    whole = scoring.encode_passages(encoder, TITLES, TEXTS)
    for name, bound in (("_TOKENISED", 13), ("_TOKENISED_TOKENS", 20 * 9)):
        with monkeypatch.context() as patch:
            patch.setattr(scoring, name, bound)
            found = scoring.encode_passages(encoder, TITLES, TEXTS, batch_size=4)
        np.testing.assert_allclose(found, whole, atol=1e-5)


def broken(checkpoint: Checkpoint, value: float) -> Checkpoint:
    """A copy of a model, one weight of whose layer norms is this number."""
    network = build(describe(checkpoint.network), checkpoint.network.config)
    arrays = to_arrays(checkpoint.network)
    for name, array in arrays.items():
        if name.endswith("ffn_norm.weight"):
            array[3] = value
    load_arrays(network, arrays, "copy")
    return dataclasses.replace(checkpoint, network=network)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_refused_with_the_models_place(encoder, scorer, value):
    vocabulary = re.escape(str(encoder.tokenizer.path))
    dual, cross = broken(encoder, value), broken(scorer, value)
    dual.network.train()
    for compute in (
        lambda: scoring.encode_queries(dual, TEXTS),
        lambda: scoring.encode_passages(dual, TITLES, TEXTS),
        lambda: scoring.score_pairs(cross, TEXTS, TITLES, TEXTS),
    ):
        with pytest.raises(ValueError, match=f"with the vocabulary {vocabulary} computes NaN or infinity"):
            compute()
    assert dual.network.training


def test_no_rows_at_all(encoder):
    assert scoring.encode_queries(encoder, []).shape == (0, 16)


def test_no_dropout_while_encoding_and_training_goes_on_after(encoder):
    encoder.network.train()
    first = scoring.encode_passages(encoder, TITLES, TEXTS)
    assert encoder.network.training
    assert np.array_equal(scoring.encode_passages(encoder, TITLES, TEXTS), first)
    encoder.network.eval()
    scoring.encode_passages(encoder, TITLES, TEXTS)
    assert not encoder.network.training


@pytest.mark.skipif(not device.has_bf16(), reason="this processor has no instructions for bf16")
def test_bf16_on_a_cpu_is_close_to_float32(retriever, reranker, groups, monkeypatch):
    monkeypatch.setattr(scoring, "_WORTH_COMPILING", 20)
    passages = [passage for group in groups for passage in group.passages]
    titles, texts = [p.title for p in passages], [p.text for p in passages]
    calls = {
        "passages": lambda: scoring.encode_passages(retriever, titles, texts, batch_size=4),
        "pairs": lambda: scoring.score_pairs(reranker, [f"{t} ?" for t in titles], titles, texts),
        "few": lambda: scoring.encode_queries(retriever, texts[:19]),
    }
    for name, call in calls.items():
        single = call()
        with device.arithmetic("bf16"):
            half = call()
        assert half.dtype == np.float32
        apart = np.abs(half - single).max() / np.abs(single).max()
        assert apart < 0.05
        assert (apart == 0) == (name == "few")  # a compilation would take longer than it saves


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="precision=fp16: this processor has no instructions for it"):
        device.arithmetic("fp16")


def test_bf16_is_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(device, "has_bf16", lambda: False)
    with pytest.raises(ValueError, match="precision=bf16: this processor has no instructions for it"):
        device.arithmetic("bf16")
