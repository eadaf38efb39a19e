"""How many texts a model cuts, counted by hand, and the length that would keep most of them."""

from __future__ import annotations

import dataclasses

import pytest

from rocketqa_paddle.networks import truncation
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.truncation import truncations
from rocketqa_paddle.records import Passage


@pytest.fixture
def retriever(tiny_config, tokenizer) -> Checkpoint:
    return Checkpoint(DualEncoder(tiny_config), tokenizer, {"query": 6, "passage": 10})


def words(count: int) -> str:
    return " ".join(["bread"] * count)


def passages(*lengths: int) -> list[Passage]:
    """Passages of so many tokens each, with a title of one and three special ones."""
    return [Passage(str(i), "moon", words(length - 4)) for i, length in enumerate(lengths)]


def test_nothing_is_told_where_nothing_is_cut(retriever):
    assert truncations(retriever, [words(4)], passages(8, 10)) == []
    assert truncations(retriever, [], []) == []


def test_each_kind_of_text_is_told_with_the_length_that_keeps_most_whole(retriever):
    told = truncations(retriever, [words(5), words(4), words(7)], passages(*range(5, 25)))
    assert told == [
        "67 % of 3 queries are longer than the query length, 6 tokens, and are cut; "
        "9 tokens would keep 95 % of them whole",
        "70 % of 20 passages are longer than the passage length, 10 tokens, and are cut; "
        "23 tokens would keep 95 % of them whole",
    ]
    longer = dataclasses.replace(retriever, lengths={"query": 9, "passage": 23})
    (told,) = truncations(longer, [words(7)], passages(*range(5, 25)))
    assert told == "5 % of 20 passages are longer than the passage length, 23 tokens, and are cut"


def test_a_rare_cut_is_not_told_as_none(retriever):
    (told,) = truncations(retriever, [], passages(*[9] * 400, 11))
    assert told.startswith("less than 1 % of 401 passages are longer")


def test_more_than_the_encoder_can_read_is_said(retriever):
    (told,) = truncations(retriever, [], passages(9, 65, 300))
    assert told.startswith("67 % of 3 passages")
    assert told.endswith("; 95 % of them whole would take more than the encoder's 64 positions")
    (told,) = truncations(retriever, [], passages(9, 64))
    assert told.endswith("; 64 tokens would keep 95 % of them whole")


def test_a_re_ranker_reads_pairs(tiny_config, tokenizer):
    reranker = Checkpoint(CrossEncoder(tiny_config), tokenizer, {"pair": 12})
    (told,) = truncations(reranker, [words(2), words(4)], passages(9, 9, 12, 12))
    assert told == (  # 9 + 2, 9 + 4, 12 + 2, 12 + 4, as both have three special tokens
        "75 % of 4 pairs are longer than the pair length, 12 tokens, and are cut; 16 tokens would keep 95 % "
        "of them whole"
    )
    assert truncations(reranker, [], passages(30)) == []


def test_a_large_collection_is_sampled_and_always_the_same_sample(retriever, monkeypatch):
    monkeypatch.setattr(truncation, "SAMPLE", 50)
    many = passages(*[9] * 60, *[11] * 40)
    (told,) = truncations(retriever, [], many)
    share = int(told.split(" %")[0])
    assert told.startswith(f"{share} % of 50 sampled passages are longer") and 20 < share < 60
    assert truncations(retriever, [], many) == [told]
