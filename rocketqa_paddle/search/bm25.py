"""BM25, the ranking by shared words that dense retrievers are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rocketqa_paddle.data.candidates import Candidates, as_hits, no_hits
from rocketqa_paddle.data.store import ids_of, rows_of
from rocketqa_paddle.records import Passage, Passages, Queries
from rocketqa_paddle.runtime.folders import whole
from rocketqa_paddle.settings import need_bm25s

_CJK = (
    "\u3005-\u3007"  # 々〆〇
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb\uffa0-\uffdc"  # Hangul
)
_WORD = (
    rf"(?=([{_CJK}]{{2}}"  # two neighbours,
    rf"|(?<![{_CJK}])[{_CJK}](?![{_CJK}])"  # or a character without any,
    rf"|[^\W{_CJK}]{{2,}}))"  # or a word of another script, of two letters or more
    rf"(?:[{_CJK}]|[^\W{_CJK}]+)"
)

FOLDER = "bm25"
"""The folder of a `BM25Index` inside of an index folder."""
FILES = (f"{FOLDER}/*.index.npy", f"{FOLDER}/*.index.json")


class BM25Index:
    """Finds passages by the words of title and text, ranked by BM25. Needs the package bm25s.

    The scores are those of bm25s (Lù, arXiv 2407.03618) with its defaults: Lucene's variant, k1 = 1.5 and
    b = 0.75. English stop words do not count. Chinese, Japanese and Korean are not split at spaces: every two
    neighbouring characters are a word.

    `passages` are at least one. They are read one after the other, and only the numbers of their words are
    kept.
    """

    def __init__(self, passages: Iterable[Passage]) -> None:
        import bm25s

        words = _words(f"{passage.title} {passage.text}" for passage in passages)
        words.vocab.setdefault("", len(words.vocab))  # bm25s cannot do without any word
        self._index = bm25s.BM25()
        with np.errstate(invalid="ignore"):  # the passages may have no words, and so a mean length of 0
            self._index.index(words, show_progress=False)

    def __len__(self) -> int:
        return self._index.scores["num_docs"]

    def search(self, queries: Sequence[str], k: int) -> np.ndarray:
        """Find the `k` best passages of every query, best first; of equal scores, the lower row is first.

        Return `[queries, min(k, passages)]` of the type `candidates.HIT`. A passage that shares no word with
        the query is no hit, so the last rows of a query may be -1.
        """
        hits = no_hits(len(queries), min(k, len(self)))
        for found, words in zip(hits, _words(queries, return_ids=False), strict=True):
            scores = self._index.get_scores_from_ids(self._index.get_tokens_ids(words))
            rows = _best(scores, len(found))
            found[: len(rows)] = as_hits(scores[rows], rows)
        return hits

    def save(self, folder: str | Path) -> None:
        """Write the files into the folder `bm25` of an index folder."""
        self._index.save(Path(folder) / FOLDER)

    @classmethod
    def load(cls, folder: str | Path) -> BM25Index:
        """Open what `save` wrote into an index folder. The scores are mapped; the words are read.

        Raises:
            FileNotFoundError: the index folder has no BM25, or a file of it is missing.
            ValueError: the files are damaged, or the package bm25s is not installed.
        """
        place = whole(folder) / FOLDER
        if not place.is_dir():
            raise FileNotFoundError(f"{place}: not there; build it with `rocketqa index --bm25 true`")
        need_bm25s(str(place))
        import bm25s

        index = cls.__new__(cls)
        try:
            index._index = bm25s.BM25.load(place, mmap=True)
            index._check_sizes()
        except (ValueError, TypeError, AttributeError, EOFError) as error:
            raise ValueError(f"{place} is damaged ({str(error)[:200]}): build the index again") from None
        return index

    def _check_sizes(self) -> None:
        names = ("indptr", "indices", "data", "num_docs")
        ends, rows, scores, passages = (self._index.scores[name] for name in names)
        words = len(self._index.vocab_dict)
        if words != len(ends) - 1 or not ends[-1] == len(rows) == len(scores) or type(passages) is not int:
            given = f"{words} words, {len(rows)} rows and {len(scores)} scores of {passages} passages"
            raise ValueError(f"{given} do not fit each other")


def words(texts: Iterable[str]) -> list[list[str]]:
    """Return the words of every text as `BM25Index` counts them, without stop words. Needs bm25s."""
    return _words(texts, return_ids=False)


def _words(texts: Iterable[str], **options: bool) -> Any:
    """The words of every text: their numbers and the vocabulary, or with `return_ids=False` the words."""
    import bm25s

    return bm25s.tokenize(texts, token_pattern=_WORD, stopwords="en", show_progress=False, **options)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """The rows of the `k` best scores above 0, best first; `scores` are `[passages]`."""
    least = np.partition(scores, -k)[-k]
    rows = np.flatnonzero((scores >= least) & (scores > 0))
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def bm25(passages: Passages, queries: Queries, k: int) -> Candidates:
    """Find the `k` best passages of every query by a `BM25Index`, which is made for them alone."""
    ids = ids_of(passages)
    if not queries or not ids:
        return Candidates(list(queries), ids, no_hits(len(queries), 0))
    hits = BM25Index(rows_of(passages)).search([query.text for query in queries.values()], k)
    return Candidates(list(queries), ids, hits)
