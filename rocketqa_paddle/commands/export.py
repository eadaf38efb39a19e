"""The command `rocketqa export`: a model for another engine."""

from typing import Any, Literal

from rocketqa_paddle.commands.convert import check_places
from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.data.tables import refuse_stream
from rocketqa_paddle.data.texts import load_passages, load_queries
from rocketqa_paddle.runtime.storage import locked

_DEPTH, _MEASURE = 10, "RR@10"


def export(
    source: str,
    target: str,
    to: Literal["onnx"] = "onnx",
    int8: bool = False,
    queries: str | None = None,
    passages: str | None = None,
    titles: str | None = None,
    qrels: str | None = None,
    run: str | None = None,
) -> None:
    """Write a model for ONNX Runtime, and compare the two on sample text, and on dev queries if given.

    Args:
        source: a published name, a toolkit's JSON, or a model's folder
        target: folder to write; `load_model`, `--checkpoint` and sentence-transformers read it
        to: the engine
        int8: round weights to 8 bits, which is faster and less exact
        queries: dev queries, to measure what int8 costs
        passages: the passages that they search; all are encoded, twice
        titles: file of `id TAB title` lines
        qrels: the judgements of the dev queries
        run: for a re-ranker, the candidates that it orders
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.networks.encoders import CROSS

    refuse_stream(target, "a folder")
    found = convert.find(source)
    given = {"--queries": queries, "--passages": passages, "--qrels": qrels}
    if any([*given.values(), titles, run]) and (missing := [flag for flag in given if not given[flag]]):
        raise ValueError(f"to measure on dev, {', '.join(missing)} is missing as well")
    with locked(target):
        check_places(source, found.path, target)
        model = convert.read_found(found)
        if queries and model.kind == CROSS and not run:
            raise ValueError("to measure a re-ranker on dev, --run is missing: the candidates that it orders")
        dev = _Dev(queries, passages, titles, qrels, run) if queries else None
        difference = convert.write(model, target, to, int8=int8)
    print(f"{target}: {model.kind.replace('_', ' ')}, written for ONNX Runtime" + ", in int8" * int8)
    print(f"largest difference on {len(convert.SAMPLE)} sample texts: {difference:.2g}")
    for note in convert.notes(model, to):
        print(f"note: {note}")
    if dev:
        before, after = dev.measure(model), dev.measure(convert.read(target))
        print(f"{_MEASURE} on {len(dev.qrels)} queries: {after:.4f}, the original {before:.4f}")


class _Dev:
    """Queries with judgements, and what is searched or re-ranked for them."""

    def __init__(self, queries: str, passages: str, titles: str | None, qrels: str, run: str | None) -> None:
        self.qrels = load_qrels(qrels)
        self.queries = {id: query for id, query in load_queries(queries).items() if id in self.qrels}
        if len(self.queries) < len(self.qrels):
            lack = len(self.qrels) - len(self.queries)
            raise ValueError(f"{qrels}: {lack} of the queries are not in {queries}")
        self.passages = load_passages(passages, titles)
        self.candidates = (
            {id: hits for id, hits in read_run(run).items() if id in self.queries} if run else {}
        )

    def measure(self, model: Any) -> float:
        from rocketqa_paddle.evaluation import metrics
        from rocketqa_paddle.search import retrieval

        if self.candidates:
            run = retrieval.rerank(model, self.candidates, self.passages, self.queries, depth=50)
        else:
            run = retrieval.CorpusIndex(model, self.passages, progress="encode").search(self.queries, _DEPTH)
        return metrics.evaluate(self.qrels, run, [_MEASURE])[_MEASURE]
