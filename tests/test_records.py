"""Which passages are no negatives of a query, told by their content and not by their ids."""

from __future__ import annotations

import pytest

from rocketqa_paddle.records import Content, FalseNegatives, Group, Passage, Query

QUERY = Query("1", "Should we eat meat?")
POSITIVE = Passage("a", "Farms", "No, we should not.")


@pytest.mark.parametrize(
    "title, text",
    [
        ("Farms", "No, we should not."),
        ("FARMS", " no,  we\tshould not."),
        ("", "Farms No, we should not."),
        ("Food", "Should we eat meat?"),
        ("-", "should we  eat meat?"),
        ("Should we eat meat?", ""),
    ],
    ids=["twin", "case and spaces", "title in the text", "query with a title", "query", "query as title"],
)
def test_a_passage_that_says_the_same_is_no_negative(title: str, text: str) -> None:
    assert Content.of(Passage("b", title, text)) in FalseNegatives(QUERY, [Content.of(POSITIVE)])


@pytest.mark.parametrize(
    "title, text",
    [
        ("Food", "No, we should not."),
        ("", "No, we should not."),
        ("Farms", "No, we should not"),
        ("Should we eat meat?", "Yes."),
        ("", "meat"),
    ],
    ids=["other title", "no title", "other text", "query as title of a text", "part of the query"],
)
def test_a_passage_that_says_anything_else_is_a_negative_even_with_the_id_of_the_query(
    title: str, text: str
) -> None:
    assert Content.of(Passage(QUERY.id, title, text)) not in FalseNegatives(QUERY, [Content.of(POSITIVE)])


def test_a_dash_is_no_title() -> None:
    assert Passage("a", "-", "x y").key == Passage("b", " ", "X  y").key != Passage("c", "- -", "x y").key


def test_a_group_without_false_negatives_keeps_the_first_passage_and_the_scores_of_the_others() -> None:
    passages = (
        POSITIVE,
        Passage("b", "", "no"),
        Passage("c", "Farms", "no, we should not."),
        Passage("d", "", "labelled"),
        Passage("e", "", "Labelled"),
        Passage("f", "", "other"),
        Passage("g", "x", QUERY.text),
        Passage("h", "", "no"),
    )
    scores = tuple(map(float, range(8)))
    other = (Passage("i", "", "Other"),)
    group = Group(QUERY, passages, (1, 0, 0, 1, 0, 0, 0, 0), "random", scores, other)
    kept = group.without_false_negatives()
    assert kept == Group(
        QUERY, (POSITIVE, passages[1], passages[7]), (1, 0, 0), "random", (0.0, 1.0, 7.0), other
    )
    assert kept.without_false_negatives() is kept


def test_a_positive_that_is_the_query_itself_stays() -> None:
    """As in the retrieval of duplicate questions."""
    group = Group(QUERY, (Passage("a", "", QUERY.text), POSITIVE), (1, 0))
    assert group.without_false_negatives() is group


@pytest.mark.parametrize(("text", "kept"), [("no, we should not.", False), ("Yes.", True)])
def test_a_single_passage_of_label_0_may_be_a_positive_of_its_query(text: str, kept: bool) -> None:
    group = Group(QUERY, (Passage("b", "Farms", text),), (0,), other_positives=(POSITIVE,))
    assert bool(group.without_false_negatives().passages) == kept
