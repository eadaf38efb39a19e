"""The inverse cloze task: the query is a sentence of a passage, and the positive is the rest of it."""

from __future__ import annotations

import pytest

from rocketqa_paddle.data.cloze import inverse_cloze, sentences
from rocketqa_paddle.records import Passage

TEXT = "The dog sleeps. Who knows why? It is a dog! Dogs do."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, ["The dog sleeps.", "Who knows why?", "It is a dog!", "Dogs do."]),
        ("no full stop", ["no full stop"]),
        ("version 1.2 of a.b is out. Try it", ["version 1.2 of a.b is out.", "Try it"]),
        ("狗在睡觉。为什么？因为累！好", ["狗在睡觉。", "为什么？", "因为累！", "好"]),
        ("  spaces .   and  \n lines.\nend. ", ["spaces .", "and  \n lines.", "end."]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def passages(count):
    return [Passage(f"p{i}", "a title", TEXT) for i in range(count)]


def test_the_query_is_a_sentence_and_the_positive_has_the_others():
    queries = set()
    for group in inverse_cloze(passages(40), keep=0.0, seed=1):
        (positive,) = group.passages
        assert (group.source, group.labels) == ("ict", (1,))
        assert (positive.id, positive.title) == (group.query.id, "a title")
        rest = [sentence for sentence in sentences(TEXT) if sentence != group.query.text]
        assert len(rest) == 3
        assert positive.text == " ".join(rest)
        queries.add(group.query.text)
    assert queries == set(sentences(TEXT)) - {"Dogs do."}  # which is too short to be a query


def test_a_share_of_the_passages_keeps_the_sentence():
    kept = [group.passages[0].text == TEXT for group in inverse_cloze(passages(2000), keep=0.1, seed=1)]
    assert 0.07 < sum(kept) / len(kept) < 0.13
    assert all(group.passages[0].text == TEXT for group in inverse_cloze(passages(9), keep=1.0, seed=1))


def test_a_passage_of_one_sentence_gives_no_group():
    short = [
        Passage("p1", "", "One sentence."),
        Passage("p2", "", "   "),
        Passage("p3", "", "A. B. C."),
        *passages(1),
    ]
    assert [group.query.id for group in inverse_cloze(short, keep=0.0, seed=1)] == ["p0"]


def test_the_seed_decides():
    first, again, other = (list(inverse_cloze(passages(20), keep=0.5, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
