"""The report of a comparison: the rows side by side on the tests and on dev, and what they have computed."""

from collections.abc import Mapping
from functools import partial

from rocketqa_paddle.commands.comparison.settings import WARM_UP, CompareSettings
from rocketqa_paddle.evaluation import plots, tables
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs.artefacts import TrainedModel
from rocketqa_paddle.runs.plan import PlannedStep, Work
from rocketqa_paddle.runs.report import CURVES, REPORT, bm25_row, draw, found, reranked
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import write_text

Runs = Mapping[str, Run]
"""The warm-up, then the systems: runs by the names of their rows."""


def report(settings: CompareSettings, runs: Runs) -> None:
    """Write `report.md` and `curves.png`, and print the tables."""
    first, measure = runs[WARM_UP], settings.evaluation.measures[0]
    ordered = {row: runs[row] for row in dict.fromkeys([settings.baseline, *runs])}
    shown = [table for queries in first.tests for table in _tables(ordered, queries.name)]
    text = "\n\n".join([*shown, *(_dev_table(runs, kind) for kind in Model), _costs(runs)])
    if distributed.is_main():
        write_text(first.folder / REPORT, text + "\n")
        curves = {f"{kind.title}s": _curves(runs, kind) for kind in Model}
        draw(partial(plots.plot_comparison, curves, measure, first.folder / CURVES))
    say(f"\n{text}\n")


def _tables(runs: Runs, name: str) -> list[str]:
    """What the best retrievers find for some queries, and how the best re-rankers order that."""
    first, retrievers, rerankers = runs[WARM_UP], {}, {}
    queries, s = first.evaluated[name], first.settings.evaluation
    for row, run in runs.items():
        retriever, reranker = (run.measured.best_of(kind) for kind in Model)
        retrievers[row] = found(run, retriever)(queries)
        rerankers[row] = reranked(run, reranker, retriever)(queries)
    shown = {"retrievers": retrievers | bm25_row(first, queries)}
    shown[f"re-rankers over the {s.rerank_depth} best of these"] = rerankers
    title = f"**{name}**, {len(queries)} queries over {len(first.corpus)} passages"
    return [
        tables.table(f"{title}: {what}", rows, s.measures, against_first=True) for what, rows in shown.items()
    ]


def _dev_table(runs: Runs, kind: Model) -> str:
    """The models after every step of every system, beside those that all began with."""
    first, rows = runs[WARM_UP], {}
    for row, run in runs.items():
        for steps, model in _after_steps(run, kind):
            title = f"{row}, {model.title} ({steps} steps)" if steps else WARM_UP
            rows[title] = run.measured.means(model)
    over = " over the best of the warm-up's retriever" if kind is Model.RERANKER else ""
    when = "after every step, and so many optimizer steps after the warm-up"
    head = f"**{first.dev.name}** {when}: {kind.title}s{over}"
    return tables.table(head, rows, first.settings.evaluation.measures)


def _curves(runs: Runs, kind: Model) -> dict[str, list[tuple[int, float]]]:
    """Steps after the warm-up and the measure on dev, by row."""
    return {
        row: [(steps, run.measured.value(model)) for steps, model in _after_steps(run, kind)]
        for row, run in runs.items()
        if row != WARM_UP
    }


def _after_steps(run: Run, kind: Model) -> list[tuple[int, TrainedModel]]:
    """The models of a kind, with the optimizer steps that the row had taken after each."""
    taken, steps = {}, 0
    for step in _own_steps(run):
        taken[step.name] = steps = steps + step.work.steps
    return [(taken.get(model.step, 0), model) for model in run.measured.models[kind]]


def _own_steps(run: Run) -> list[PlannedStep]:
    """The steps of a row, without those of the warm-up."""
    return [step for name, step in run.plan.steps.items() if run.row and run.owns(name)]


def _costs(runs: Runs) -> str:
    """A table of about what every row has computed in the steps that trained."""
    rows = [("system", "steps", "texts trained on", "pairs trained on", "texts encoded", "pairs scored")]
    for row, run in runs.items():
        if row != WARM_UP:
            work = sum((step.work for step in _own_steps(run)), Work())
            costs = (work.steps, work.trained_texts, work.trained_pairs, work.encoded, work.scored)
            rows.append((row, *(f"{number:,}" for number in costs)))
    return "Computed after the warm-up, about:\n\n" + tables.align(rows)
