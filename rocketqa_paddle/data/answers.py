"""Files of questions and the strings that answer them, as DPR has them."""

import ast
import csv
import json
from collections.abc import Iterator
from typing import Any

from rocketqa_paddle.data.places import FilePath, Place
from rocketqa_paddle.data.tables import Row, json_objects, lines, peek

Answers = dict[str, list[str]]
"""Question -> the strings that answer it."""
_EXPECTED = 'expected QUESTION, a tab, and a list such as ["1972", "December 1972"]'
_LONGEST_LIST = 1 << 16  # characters; Python's parser takes much more memory than the text


def load_answers(path: FilePath) -> Answers:
    """Load questions with their answers.

    A line is `question TAB ["answer", ...]` (DPR's `nq-test.qa.csv`; the list may be Python's or JSON's, and
    a column may be quoted as in CSV), or a JSON object with `question` and `answer`, a string or a list of
    them. A question that comes twice has the answers of both lines.

    Raises:
        ValueError: a line is neither, or a question has no answer.
    """
    loaded: Answers = {}
    for place, question, answers in _read(path):
        if not question.strip():
            raise place.wrong("the question is empty")
        if isinstance(answers, str):
            answers = [answers]
        if not (isinstance(answers, list) and answers and all(isinstance(one, str) for one in answers)):
            raise place.wrong(
                f"the answers are {str(answers)[:60]}, expected a list of strings, at least one"
            )
        if not all(one.strip() for one in answers):
            raise place.wrong("an answer is empty, which every passage would have")
        loaded.setdefault(question.strip(), []).extend(answers)
    if not loaded:
        raise Place(path, 1).wrong(f"empty file, {_EXPECTED}")
    return loaded


def _read(path: FilePath) -> Iterator[tuple[Place, str, Any]]:
    first, rows = peek(lines(path))
    if not first.startswith("{"):
        yield from map(_columns, rows)
        return
    for place, item in json_objects(rows):
        yield place, place.string(item, "question"), item.get("answer", item.get("answers"))


def _columns(row: Row) -> tuple[Place, str, Any]:
    place, line = row
    fields = next(csv.reader([line], delimiter="\t", strict=False))
    if len(fields) != 2 or len(fields[1]) > _LONGEST_LIST:
        raise place.wrong(f"{len(fields)} columns, {_EXPECTED}")
    question, answers = fields
    try:
        return place, question, json.loads(answers)
    except (ValueError, RecursionError):
        pass
    try:
        return place, question, ast.literal_eval(answers)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise place.wrong(f"the second column is no list, {_EXPECTED}") from None
