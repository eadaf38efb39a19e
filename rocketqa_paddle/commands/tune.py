"""The command `rocketqa tune`: the weight of BM25 in a fused search, chosen by judged queries."""

from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.texts import load_queries
from rocketqa_paddle.settings import COLLECTION


def tune(
    checkpoint: str,
    queries: str,
    qrels: str,
    index: str | None = None,
    use_cuda: bool = False,
    uri: str | None = None,
    collection: str = COLLECTION,
) -> None:
    """Tell which weight of BM25 is best for `rocketqa search --fuse weighted`, by RR@10 on judged queries.

    Args:
        checkpoint: a run's `best` folder, or the folder of the retriever that made the index
        queries: file of `id TAB text` lines, or BEIR's queries.jsonl; dev queries, not those of a test
        qrels: their judgements: `qid pid`, or four TREC columns
        index: index folder that was made with `--bm25 true`; by default the one in the `best` folder
        use_cuda: compute on a GPU
        uri: where Milvus has such an index: a file NAME.db, or http://HOST:19530
        collection: name of the index in Milvus
    """
    from rocketqa_paddle.evaluation import tables
    from rocketqa_paddle.evaluation.weights import MEASURE, best_weight, measure_weights
    from rocketqa_paddle.search.engine import SearchEngine

    judgements = load_qrels(qrels)
    judged = {id: query for id, query in load_queries(queries).items() if id in judgements}
    if not judged:
        raise ValueError(f"{qrels} judges none of the queries of {queries}: give the judgements of these")
    engine = SearchEngine.open(checkpoint, index, False, use_cuda, uri=uri, collection=collection)
    values = measure_weights(*engine.candidates(judged), judgements)
    rows = {f"weight {weight}": {MEASURE: measured} for weight, measured in values.items()}
    title = f"{len(judged)} queries of {queries}, fused with BM25"
    print(tables.table(title, rows, [MEASURE], against_first=True))
    print(f"\nbest: --fuse weighted --weight {best_weight(values)}")
