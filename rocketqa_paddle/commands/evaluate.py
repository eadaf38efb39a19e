"""The command `rocketqa evaluate`: a run measured by judgements."""

from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.settings import EvaluationSettings


def evaluate(
    qrels: str,
    run: str,
    baseline: str | None = None,
    measures: list[str] = EvaluationSettings().measures,  # noqa: B008
) -> None:
    """Measure a run, and compare it with another by a paired t-test.

    Args:
        qrels: judgements: `qid pid`, or four TREC columns
        run: run file (TREC, or `qid pid rank score`)
        baseline: run file to compare with
        measures: names of ir_measures, such as RR@10, Success@50, nDCG@10
    """
    from rocketqa_paddle.evaluation import metrics, tables

    judged, rows = load_qrels(qrels), {}
    for name in filter(None, (baseline, run)):
        hits = read_run(name)
        missing = judged.keys() - hits.keys()
        if missing == judged.keys():
            raise ValueError(f"{name} has hits for none of the {len(judged)} queries of {qrels}")
        if missing:
            print(f"{name} has no hits for {len(missing)} of {len(judged)} queries; they count as 0")
        rows[name] = metrics.evaluate_queries(judged, hits, measures)
    print(tables.table(f"{len(judged)} queries of {qrels}", rows, measures))
    if baseline:
        print("\n" + tables.significance(run, rows[run], baseline, rows[baseline], measures[0]))
