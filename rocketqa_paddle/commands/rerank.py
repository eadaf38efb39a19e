"""The command `rocketqa rerank`: a run in a re-ranker's order."""

from typing import Literal

from rocketqa_paddle.data.places import shown
from rocketqa_paddle.data.runs import check_run_ids, read_run, write_run
from rocketqa_paddle.data.texts import load_passages, load_queries
from rocketqa_paddle.runtime.device import select
from rocketqa_paddle.settings import at_least


def rerank(
    checkpoint: str,
    run: str,
    queries: str,
    passages: str,
    output: str,
    titles: str | None = None,
    format: Literal["tsv", "trec"] = "tsv",
    depth: int = 50,
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
    use_cuda: bool = False,
) -> None:
    """Order the best passages of a run by a re-ranker and write the new run.

    Args:
        checkpoint: a re-ranker: folder, toolkit's JSON or published name
        run: run to re-rank (TREC, or `qid pid rank score`)
        queries: file of `id TAB text` lines, or BEIR's queries.jsonl
        passages: file of `id TAB text` lines (para.txt), or BEIR's corpus.jsonl
        output: run file to write
        titles: file of `id TAB title` lines (para.title.txt)
        format: of the new run: `qid TAB pid TAB rank TAB score`, or TREC's six columns
        depth: passages a query that are scored; the others are left out
        batch_size: rows computed together
        precision: arithmetic; bf16 is faster where the processor or GPU has it, and less exact
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.networks.encoders import CROSS
    from rocketqa_paddle.networks.truncation import truncations
    from rocketqa_paddle.search import retrieval

    at_least(1, depth=depth, batch_size=batch_size)
    hits = {query_id: found[:depth] for query_id, found in read_run(run).items()}
    if not hits:
        raise ValueError(f"{run}: empty file, expected a run")
    found = {hit.passage_id for query_hits in hits.values() for hit in query_hits}
    check_run_ids(output, format, hits, found)
    texts = load_queries(queries)
    corpus = load_passages(passages, titles, only=found)
    for name, missing in {queries: hits.keys() - texts.keys(), passages: found - corpus.keys()}.items():
        if missing:
            example = shown(min(missing))
            raise ValueError(f"{run}: {len(missing)} ids are not in {name}, for example {example}")
    arithmetic = select(use_cuda, precision)
    model = convert.read(checkpoint, kind=CROSS)
    for sentence in truncations(model, [texts[query_id].text for query_id in hits], list(corpus.values())):
        print(sentence)
    with arithmetic:
        ordered = retrieval.rerank(model, hits, corpus, texts, depth, batch_size=batch_size)
    write_run(output, ordered, format)
    print(f"{len(hits)} queries re-ranked in {output}")
