"""A comparison: systems side by side, from one warm-up, with one budget of optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

from rocketqa_paddle.commands.comparison.settings import WARM_UP, CompareSettings, folder_name
from rocketqa_paddle.evaluation import plots, tables
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs import report
from rocketqa_paddle.runs.artefacts import TrainedModel
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import write_text
from rocketqa_paddle.settings import RunSettings, TrainingSettings
from rocketqa_paddle.systems import SYSTEMS
from rocketqa_paddle.systems.warm_up import warm_up


def walk(run: Run, settings: CompareSettings, rows: Mapping[str, RunSettings]) -> None:
    """Warm up two models, let every system begin with them, and report on all."""
    run.measure_initial()
    deal = run.deal()
    retriever, reranker = warm_up(run, settings, run.initial_retriever(), deal, settings.depth)
    report.report_rounds(run, "Warm-up", [])
    if not run.walk.dry and distributed.is_main():  # a `report.md` in the run folder tells that all is done
        (run.folder / report.REPORT).replace(run.folder / WARM_UP / report.REPORT)
    done = {WARM_UP: run}
    for row, own in rows.items():
        begins_with = {model.kind: model for model in (retriever, reranker)}
        done[row] = run.within(folder_name(row), own, begins_with, deal.dealt)
        if not run.walk.dry:
            say(f"\n# {row}\n")
        with _named(row):
            system = SYSTEMS[settings.systems[row]["system"]]
            trainings = done[row].trial(system.having(own)).trainings
            system.train(done[row], _share_out(settings.steps, own, trainings))
    if not run.walk.dry:
        _report(settings, done)


@contextmanager
def _named(row: str) -> Iterator[None]:
    """Add to errors whose they are."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{row}: {error}") from error


def _share_out(
    steps: int, settings: RunSettings, trainings: Sequence[tuple[str, TrainingSettings]]
) -> RunSettings:
    """The settings with whole numbers of steps for the trainings, which add up to all steps.

    Args:
        steps: of all trainings.
        settings: of a row.
        trainings: the step and the settings of each, an object inside of `settings`.
    """
    if not trainings:
        raise ValueError("nothing is trained after the warm-up (rounds is 0)")
    given = [training.steps for _, training in trainings]
    weights = [1] * len(given) if None in given else given
    whole = sum(weights) // math.gcd(*weights)
    if steps % whole:
        parts = " + ".join(f"{weight} {name}" for (name, _), weight in zip(trainings, weights, strict=True))
        raise ValueError(f"steps={steps} cannot be shared out as {parts}: take a multiple of {whole}")
    shares = {id(t): steps * w // sum(weights) for (_, t), w in zip(trainings, weights, strict=True)}
    return _with_steps(settings, shares)


def _with_steps(settings: Any, shares: Mapping[int, int]) -> Any:
    """The same settings with other `steps` in some of their sections, which are named by identity."""
    inner = {field.name: getattr(settings, field.name) for field in fields(settings)}
    changed = {name: _with_steps(value, shares) for name, value in inner.items() if is_dataclass(value)}
    if id(settings) in shares:
        changed["steps"] = shares[id(settings)]
    return replace(settings, **changed)


# Results -------------------------------------------------------------------------------------------


def _report(settings: CompareSettings, runs: Mapping[str, Run]) -> None:

    first = runs[WARM_UP]
    ordered = {row: runs[row] for row in dict.fromkeys([settings.baseline, *runs])}
    shown = [table for queries in first.tests for table in _tables(ordered, queries.name)]
    text = "\n\n".join([*shown, *(_dev_table(runs, kind) for kind in Model), _costs(runs)])
    if distributed.is_main():
        write_text(first.folder / report.REPORT, text + "\n")
        curves = {f"{kind.title}s": _curves(runs, kind) for kind in Model}
        picture, measure = first.folder / report.CURVES, settings.evaluation.measures[0]
        report.draw(partial(plots.plot_comparison, curves, measure, picture))
    say(f"\n{text}\n")


def _tables(runs: Mapping[str, Run], name: str) -> list[str]:
    """What the best retrievers find for some queries, and how the best re-rankers order that."""

    first, found, ordered = runs[WARM_UP], {}, {}
    queries, s = first.evaluated[name], first.settings.evaluation
    for row, run in runs.items():
        retriever, reranker = (max(models, key=run.dev_value) for models in (run.retrievers, run.rerankers))
        found[row] = run.searches.measured(report.found(run, retriever)(queries))
        ordered[row] = run.searches.measured(report.reranked(run, reranker, retriever)(queries))
    found |= report.bm25_row(first, queries)
    title = f"**{name}**, {len(queries)} queries over {len(first.corpus)} passages"
    return [
        tables.table(f"{title}: {what}", rows, s.measures, against_first=True)
        for what, rows in {
            "retrievers": found,
            f"re-rankers over the {s.rerank_depth} best of these": ordered,
        }.items()
    ]


def _dev_table(runs: Mapping[str, Run], kind: Model) -> str:
    """The models after every step of every system, beside those that all began with."""

    first, rows = runs[WARM_UP], {}
    for row, run in runs.items():
        for steps, model in _after_steps(run, kind):
            rows[f"{row}, {model.title} ({steps} steps)" if steps else WARM_UP] = run.on_dev(model)
    over = " over the best of the warm-up's retriever" if kind is Model.RERANKER else ""
    when = "after every step, and so many optimizer steps after the warm-up"
    head = f"**{first.dev.name}** {when}: {kind.title}s{over}"
    return tables.table(head, rows, first.settings.evaluation.measures)


def _after_steps(run: Run, kind: Model) -> list[tuple[int, TrainedModel]]:
    """The models of a kind, with the optimizer steps that the row had taken after each."""
    steps, taken = {}, 0
    for name, step in run.plan.steps.items():
        taken += step.work.steps if run.walk.row and name.startswith(f"{run.walk.row}/") else 0
        steps[name] = taken
    models = run.retrievers if kind is Model.RETRIEVER else run.rerankers
    return [
        (steps[model.step] if model.step.startswith(f"{run.walk.row}/") else 0, model) for model in models
    ]


def _curves(runs: Mapping[str, Run], kind: Model) -> dict[str, list[tuple[int, float]]]:
    """Steps after the warm-up and the measure on dev, by row."""
    return {
        row: [(steps, run.dev_value(model)) for steps, model in _after_steps(run, kind)]
        for row, run in runs.items()
        if row != WARM_UP
    }


def _costs(runs: Mapping[str, Run]) -> str:
    """A table of about what every row has computed in the steps that trained."""

    names = ("steps", "trained_texts", "trained_pairs", "encoded", "scored")
    rows = [("system", "steps", "texts trained on", "pairs trained on", "texts encoded", "pairs scored")]
    for row, run in runs.items():
        if row != WARM_UP:
            work = [step.work for name, step in run.plan.steps.items() if name.startswith(f"{run.walk.row}/")]
            rows.append((row, *(f"{sum(getattr(each, name) for each in work):,}" for name in names)))
    return "Computed after the warm-up, about:\n\n" + tables.align(rows)
