"""Which passages hold an answer, as DPR and the RocketQA papers measure retrieval for question answering.

The texts are compared as in DPR's `qa_validation.py` (Karpukhin et al., EMNLP 2020): canonical decomposition,
words and signs in lower case, and an answer's words one after the other in the passage. Titles do not count.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from rocketqa_paddle.records import Passage, Qrels, Query, Run

_WORD, _NOTHING = "LNM", "ZC"  # first letters of Unicode categories: in words; between tokens


def words(text: str) -> list[str]:
    """Split a text into words of letters, digits and marks, and single other signs, in lower case.

    Source: DrQA's `SimpleTokenizer`, on the canonical decomposition (NFD) of the text.
    """
    found, start = [], None
    text = unicodedata.normalize("NFD", text)
    for place, character in enumerate(text):
        kind = _category(character)
        if kind in _WORD:
            start = place if start is None else start
            continue
        if start is not None:
            found.append(text[start:place].lower())
            start = None
        if kind not in _NOTHING:
            found.append(character.lower())
    return [*found, *([text[start:].lower()] if start is not None else [])]


@lru_cache(1 << 12)
def _category(character: str) -> str:
    return unicodedata.category(character)[0]


class Matcher:
    """Tells whether texts hold one of some answers."""

    def __init__(self, answers: Iterable[str]) -> None:
        self._answers = [tuple(words(answer)) for answer in answers]

    def matches(self, text: str) -> bool:
        """Whether the words of an answer follow one another in a text.

        An answer without any word or sign is in every text, as it is for DPR.
        """
        lowered = unicodedata.normalize("NFD", text).lower()
        likely = [answer for answer in self._answers if all(word in lowered for word in answer)]
        if not likely:  # to find the words of a text takes longer
            return False
        tokens = words(text)
        return any(_follow(answer, tokens) for answer in likely)


def _follow(answer: Sequence[str], tokens: Sequence[str]) -> bool:
    size = len(answer)
    return any(tuple(tokens[start : start + size]) == answer for start in range(len(tokens) - size + 1))


def judge(
    runs: Sequence[Run],
    queries: Mapping[str, Query],
    answers: Mapping[str, Sequence[str]],
    passages: Mapping[str, Passage],
) -> Qrels:
    """Judge what runs found: a passage is relevant, 1, if it holds an answer to the query.

    Success@k of these judgements is the papers' top-k accuracy. Every query that has answers is judged,
    without any relevant passage if the runs found none.
    """
    qrels: dict[str, dict[str, int]] = {}
    for query in queries.values():
        if (strings := answers.get(query.text.strip())) is None:
            continue
        matcher, hits = Matcher(strings), [hit for run in runs for hit in run.get(query.id, ())]
        found = dict.fromkeys(hit.passage_id for hit in hits)
        qrels[query.id] = {id: 1 for id in found if matcher.matches(passages[id].text)}
    return qrels
