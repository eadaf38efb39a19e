"""BM25, the ranking by shared words that dense retrievers are compared with."""

from functools import partial

from rocketqa_paddle.records import Passages, Queries, Run
from rocketqa_paddle.search.retrieval import to_run


def bm25(passages: Passages, queries: Queries, k: int) -> Run:
    """Find the `k` best passages of every query by BM25 over title and text. Needs the package bm25s.

    English stop words do not count, and a passage that shares no other word with the query is no hit.
    """
    import bm25s

    if not queries:
        return {}
    words = partial(bm25s.tokenize, stopwords="en", show_progress=False)
    ids, index = list(passages), bm25s.BM25()
    index.index(words([f"{p.title} {p.text}" for p in passages.values()]), show_progress=False)
    texts = [query.text for query in queries.values()]
    found, scores = index.retrieve(words(texts), k=min(k, len(ids)), show_progress=False)
    run = to_run(list(queries), ids, scores, found)
    return {query_id: [hit for hit in hits if hit.score > 0] for query_id, hits in run.items()}
