"""BM25, the ranking by shared words that dense retrievers are compared with."""

from functools import partial

from rocketqa_paddle.records import Passages, Queries, Run
from rocketqa_paddle.search.retrieval import to_run

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


def bm25(passages: Passages, queries: Queries, k: int) -> Run:
    """Find the `k` best passages of every query by BM25 over title and text. Needs the package bm25s.

    English stop words do not count, and a passage that shares no other word with the query is no hit.
    Chinese, Japanese and Korean are not split at spaces: every two neighbouring characters are a word.
    """
    import bm25s

    words = partial(bm25s.tokenize, token_pattern=_WORD, stopwords="en", show_progress=False)
    ids, index = list(passages), bm25s.BM25()
    corpus = words([f"{passage.title} {passage.text}" for passage in passages.values()])
    if not queries or not corpus.vocab:
        return {query_id: [] for query_id in queries}
    index.index(corpus, show_progress=False)
    texts = [query.text for query in queries.values()]
    found, scores = index.retrieve(words(texts), k=min(k, len(ids)), show_progress=False)
    run = to_run(list(queries), ids, scores, found)
    return {query_id: [hit for hit in hits if hit.score > 0] for query_id, hits in run.items()}
