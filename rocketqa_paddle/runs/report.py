"""The final report of a run: the models that it trained, measured on the tests and compared."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.data.dataset import QuerySet
from rocketqa_paddle.evaluation import metrics, plots, tables
from rocketqa_paddle.evaluation.tables import Values
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import INITIAL, ModelHandle, TrainedModel
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import write_text
from rocketqa_paddle.search import fusion

REPORT, CURVES = "report.md", "curves.png"
_INITIAL_ROW, _BM25_ROW, _FUSED_ROW = "initial checkpoint", "BM25", "retriever and BM25"
Row = Callable[[QuerySet], Values]
"""Queries → every measure of every query, for a model."""


def report_steps(run: Run, system: str, first: TrainedModel, reranker: TrainedModel) -> None:
    """Report on a system whose steps train one retriever after another, each against the one before.

    The re-ranker was trained on candidates of the first retriever, and judges those of all.
    """
    best = run.choose_best(system)[Model.RETRIEVER]
    retrievers = {_title(m): found(run, m) for m in run.measured.models[Model.RETRIEVER]}
    judged = {f"re-ranker over {m.title}": reranked(run, reranker, m) for m in dict.fromkeys([first, best])}
    base, *later = retrievers
    pairs = [*zip(later, [base, *later], strict=False), *((title, base) for title in later[-1:])]
    pairs += [(f"re-ranker over {best.title}", _title(best)), *_against_baselines(run, best)]
    note = f"The re-ranker orders the {run.settings.evaluation.rerank_depth} best of a retriever."
    rows = {**initial_row(run), **retrievers, **fused_row(run, best), **judged}
    write(run, rows, list(dict.fromkeys(pairs)), [note])


def report_rounds(run: Run, system: str, rounds: Sequence[str]) -> None:
    """Report on a system of rounds, which its titles name, every model against the one that was warmed up."""
    best, models = run.choose_best(system), run.measured.models
    over, warm_up = best[Model.RETRIEVER], models[Model.RERANKER][0]
    rows = {_title(model): found(run, model) for model in models[Model.RETRIEVER]}
    rows |= fused_row(run, over)
    for model in (warm_up, best[Model.RERANKER], models[Model.RERANKER][-1]):
        rows[f"re-ranker, {model.title}"] = reranked(run, model, over)
    depth = run.settings.evaluation.rerank_depth
    notes = [f"The re-rankers order the {depth} best of the retriever of {over.step}."]
    pairs = []
    for kind in Model:
        if rounds and best[kind].title not in rounds:
            notes.append(f"No round gave a better {kind.title} on dev than the step {best[kind].step}.")
        shown = best[kind] if best[kind].title in rounds else models[kind][-1]
        if shown.title in rounds:
            pairs.append((f"{kind.title}, {shown.title}", f"{kind.title}, {warm_up.title}"))
    pairs += [(f"re-ranker, {best[Model.RERANKER].title}", _title(over)), *_against_baselines(run, over)]
    write(run, initial_row(run) | rows, pairs, notes)


def _title(retriever: ModelHandle) -> str:
    return f"retriever, {retriever.title}" if isinstance(retriever, TrainedModel) else _INITIAL_ROW


def _against_baselines(run: Run, retriever: ModelHandle) -> list[tuple[str, str]]:
    """The pairs of the best retriever and what it has to beat, where that was measured.

    The retriever in turn has to be beaten by its fusion with BM25.
    """
    title, bm25 = _title(retriever), run.settings.evaluation.bm25
    baselines = [*([_BM25_ROW] if bm25 else []), *initial_row(run)]
    pairs = [(title, baseline) for baseline in baselines if baseline != title]
    return [*pairs, (_FUSED_ROW, title)] if bm25 else pairs


def found(run: Run, retriever: ModelHandle) -> Row:
    """What a retriever finds."""
    depth = run.settings.evaluation.depth
    return lambda queries: run.measure(run.search(retriever, queries, depth))


def reranked(run: Run, reranker: TrainedModel, over: ModelHandle) -> Row:
    """How a re-ranker orders what a retriever finds."""
    depth = run.settings.evaluation.depth
    return lambda queries: run.measure(run.rerank(reranker, run.search(over, queries, depth)))


def initial_row(run: Run) -> dict[str, Row]:
    """The initial checkpoint, if it was measured."""
    measured = run.step(INITIAL) in run.plan.steps
    return {_INITIAL_ROW: found(run, run.initial_retriever())} if measured else {}


def fused_row(run: Run, retriever: ModelHandle) -> dict[str, Row]:
    """What a retriever and BM25 find, fused by reciprocal ranks, if the settings ask for BM25."""
    s = run.settings.evaluation

    def row(queries: QuerySet) -> Values:
        dense, lexical = run.search(retriever, queries, s.depth).value(), run.search_bm25(queries)
        hits = fusion.reciprocal_rank(dense.hits, lexical.hits)
        fused = Candidates(dense.queries, dense.passages, hits)
        return metrics.evaluate_queries(queries.qrels, fused, s.measures)

    return {_FUSED_ROW: row} if s.bm25 else {}


def write(
    run: Run, rows: Mapping[str, Row], pairs: Sequence[tuple[str, str]], notes: Sequence[str] = ()
) -> None:
    """Measure some models on the tests; write `report.md` and `curves.png`, and print the tables.

    `rows` has the rows of a table by their titles, `pairs` the titles of those to compare, the one that is
    hoped to be better first. The notes stand under every table.
    """
    if run.dry:
        return
    kind = run.settings.index
    missed = [] if kind.is_exact else [f"Retrievers search by {kind.factory}, which may miss passages."]
    notes = [*notes, *missed, *run.measured.notes]
    text = "\n\n".join(_table(run, queries, rows, pairs, notes) for queries in run.tests)
    if distributed.is_main():
        write_text(run.place / REPORT, text + "\n")
        lines = [line for line in run.log.read() if line["stage"].split()[0] in run.plan.steps]
        draw(partial(plots.plot_curves, lines, run.place / CURVES))
    say(f"\n{text}\n")


def draw(plot: Callable[[], None]) -> None:
    """Draw a picture where matplotlib is installed; else tell that it is left out."""
    try:
        plot()
    except ImportError:
        say("curves.png is left out: it needs matplotlib (pip install matplotlib)")


def _table(
    run: Run, queries: QuerySet, rows: Mapping[str, Row], pairs: Sequence, notes: Sequence[str]
) -> str:
    measures = run.settings.evaluation.measures
    values = bm25_row(run, queries) | {title: row(queries) for title, row in rows.items()}
    title = f"**{queries.name}**: {len(queries)} queries over {len(run.corpus)} passages"
    compared = [tables.significance(a, values[a], b, values[b], measures[0]) for a, b in pairs]
    return "\n\n".join([tables.table(title, values, measures), *notes, *compared])


def bm25_row(run: Run, queries: QuerySet) -> dict[str, Values]:
    """What BM25 measures, if the settings ask for it."""
    s = run.settings.evaluation
    if not s.bm25:
        return {}
    return {_BM25_ROW: metrics.evaluate_queries(queries.qrels, run.search_bm25(queries), s.measures)}
