"""The command `rocketqa search`: a search engine for people, or for a file of queries."""

from collections.abc import Sequence
from typing import Literal

from rocketqa_paddle.data.places import NO_TITLE
from rocketqa_paddle.data.runs import check_run_ids, write_run
from rocketqa_paddle.data.texts import load_queries
from rocketqa_paddle.records import Hit, Query, Result


def search(
    checkpoint: str,
    query: list[str],
    index: str | None = None,
    reranker: str | None = None,
    queries: str | None = None,
    output: str | None = None,
    format: Literal["tsv", "trec"] = "tsv",
    k: int = 5,
    depth: int | None = None,
    fuse: Literal["rrf", "weighted"] | None = None,
    weight: float | None = None,
    use_cuda: bool = False,
) -> None:
    """Search an index, for people (a readable list) or for a file of queries (a run).

    Args:
        checkpoint: a run's `best` folder, or the folder of the retriever that made the index
        query: what to search for
        index: index folder; by default the one in the `best` folder
        reranker: a re-ranker that orders the best passages; by default the one in the `best` folder
        queries: file of `id TAB text` lines, or BEIR's queries.jsonl, to search for
        output: run file to write for `queries`
        format: of the run file: `qid TAB pid TAB rank TAB score`, or TREC's six columns
        k: passages a query
        depth: passages that the re-ranker reads, 20 if the `best` folder says nothing else; 0 leaves the
            order of what was found
        fuse: search with BM25 as well and fuse the two by reciprocal ranks (rrf) or by a weighted sum of
            scores; needs an index that was made with `--bm25 true`
        weight: of BM25 in a weighted fusion, from 0 to 1; `rocketqa tune` finds a good one
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.search.engine import SearchEngine, check_request

    wanted = _read_queries(query, queries, output)
    texts = check_request([q.text for q in wanted.values()], k, depth, fuse, weight)
    if output:
        check_run_ids(output, format, wanted, [])
    engine = SearchEngine.open(checkpoint, index, False if depth == 0 else reranker, use_cuda)
    options = {"fuse": fuse, "weight": weight, "progress": "re-rank" if output else ""}
    found = engine.search(texts, k, depth, **options)
    if output:
        run = {
            query_id: [Hit(query_id, result.passage.id, result.rank, result.score) for result in results]
            for query_id, results in zip(wanted, found, strict=True)
        }
        write_run(output, run, format)
        print(f"{len(found)} queries answered in {output}")
    else:
        for text, results in zip(texts, found, strict=True):
            _show(text, results)


def _read_queries(words: list[str], file: str | None, output: str | None) -> dict[str, Query]:
    if bool(words) == bool(file):
        raise ValueError("search needs either queries as words or --queries FILE")
    if not file:
        return {str(number): Query(str(number), text) for number, text in enumerate(words, 1)}
    if not output:
        raise ValueError("--queries needs --output, the run file to write")
    return load_queries(file)


def _show(query: str, results: Sequence[Result]) -> None:
    print(f"\n{query}")
    for result in results:
        passage = result.passage
        heading = passage.id if passage.title in ("", NO_TITLE) else passage.title
        print(f"{result.rank:3d}. {heading}  ({result.score:.2f})\n     {_shorten(passage.text)}")


def _shorten(text: str, width: int = 160) -> str:
    return text if len(text) <= width else text[: width - 1].rsplit(" ", 1)[0] + "…"
