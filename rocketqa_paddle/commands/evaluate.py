"""The command `rocketqa evaluate`: a run measured by judgements, or by the answers that passages hold."""

from rocketqa_paddle.data.answers import load_answers
from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.data.texts import load_passages, load_queries
from rocketqa_paddle.records import Qrels, Run
from rocketqa_paddle.settings import EvaluationSettings

TOP_K = ["Success@5", "Success@20", "Success@100"]
"""The measures of the papers for answers: top-k accuracy."""


def evaluate(
    run: str,
    qrels: str | None = None,
    baseline: str | None = None,
    measures: list[str] | None = None,
    answers: str | None = None,
    queries: str | None = None,
    passages: str | None = None,
) -> None:
    """Measure a run, and compare it with another by a paired t-test.

    Args:
        run: run file (TREC, or `qid pid rank score`)
        qrels: judgements: `qid pid`, or four TREC columns
        baseline: run file to compare with
        measures: names of ir_measures, such as RR@10, Success@50, nDCG@10; by default RR@10, Success@5 and
            Success@50, and for answers the top-k accuracy at 5, 20 and 100
        answers: instead of judgements, file of `question TAB ["answer", ...]` lines (DPR's): a passage is
            relevant if its text holds an answer
        queries: for answers: file of `id TAB question` lines
        passages: for answers: file of `id TAB text` lines, or BEIR's corpus.jsonl
    """
    from rocketqa_paddle.evaluation import metrics, tables

    if bool(qrels) == bool(answers):
        raise ValueError("evaluate needs either --qrels, judgements, or --answers")
    if answers and not (queries and passages):
        raise ValueError("--answers needs --queries and --passages, whose texts are compared")
    if qrels and (queries or passages):
        raise ValueError("--queries and --passages are for --answers: leave them out")
    if measures is None:
        measures = TOP_K if answers else EvaluationSettings().measures
    metrics.parse_measures(measures)
    judged = load_qrels(qrels) if qrels else {}
    runs = {name: read_run(name) for name in filter(None, (baseline, run))}
    if answers:
        judged = _judged(list(runs.values()), answers, queries, passages)
    rows = {}
    for name, hits in runs.items():
        missing = judged.keys() - hits.keys()
        if missing == judged.keys():
            raise ValueError(f"{name} has hits for none of the {len(judged)} queries of {qrels or answers}")
        if missing:
            print(f"{name} has no hits for {len(missing)} of {len(judged)} queries; they count as 0")
        rows[name] = metrics.evaluate_queries(judged, hits, measures)
    print(tables.table(f"{len(judged)} queries of {qrels or answers}", rows, measures))
    if baseline:
        print("\n" + tables.significance(run, rows[run], baseline, rows[baseline], measures[0]))


def _judged(runs: list[Run], answers: str, queries: str, passages: str) -> Qrels:
    """Judge runs by answers.

    Raises:
        ValueError: no question is among the queries, or a passage of a run is in no file.
    """
    from rocketqa_paddle.evaluation.answers import judge

    known, asked = load_answers(answers), load_queries(queries)
    found = {hit.passage_id for run in runs for hits in run.values() for hit in hits}
    texts = load_passages(passages, only=found)
    if lacking := sorted(found - texts.keys()):
        given = f"{len(lacking)} passages of the run are not in {passages}, the first is {lacking[0]!r}"
        raise ValueError(f"{given}: give the file that was indexed")
    judged = judge(runs, asked, known, texts)
    if not judged:
        raise ValueError(f"no question of {answers} is a query of {queries}: their texts have to be the same")
    without = len(asked) - len(judged)
    if without:
        print(f"{without} of {len(asked)} queries have no answers in {answers} and are left out")
    return judged
