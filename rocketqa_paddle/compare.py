"""The command `rocketqa compare`: systems side by side, from one warm-up, with one budget of steps."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from rocketqa_paddle import distributed, formats, report, retrieval
from rocketqa_paddle.config import (
    SYSTEMS,
    WARMUP_ROW,
    CompareSettings,
    JointSettings,
    RocketQAv2Settings,
    RunSettings,
)
from rocketqa_paddle.pipeline import Pipeline
from rocketqa_paddle.report import Row
from rocketqa_paddle.stages import Stage
from rocketqa_paddle.staging import check_folder, claimed
from rocketqa_paddle.storage import write_text
from rocketqa_paddle.systems import rocketqav2

Runs = Mapping[str, Pipeline]
"""The finished run of every row, by its name; the warm-up's is the first."""
MODELS = {"retriever": "retrievers", "reranker": "re-rankers"}


def compare(settings: CompareSettings) -> None:
    """Warm up two models, train every system from them, and tell how they do.

    A comparison that was stopped goes on; a system whose settings changed is trained again, the others not.
    Writes `report.md` and `curves.png` into the folder, beside a run of every row.

    Raises:
        ValueError: settings that a system does not take, or steps that cannot be shared out. Before any work.
    """
    folder = Path(settings.output)
    rows = {row: _system_settings(settings, row) for row in settings.systems}
    check_folder(folder, settings)
    with claimed(folder, settings):
        runs: dict[str, Pipeline] = {WARMUP_ROW: rocketqav2.train(_warmup_settings(settings))}
        for row, own in rows.items():
            runs[WARMUP_ROW].say(f"\n# {row}\n")
            runs[row] = _train(settings, row, own)
            runs[row].share_data(runs[WARMUP_ROW])
        _report(settings, runs)


def _train(settings: CompareSettings, row: str, own: RunSettings) -> Pipeline:
    try:
        return _module(settings, row).train(own)
    except ValueError as error:
        raise ValueError(f"systems.{row}: {error}") from error


# Settings of the runs -----------------------------------------------------------------------------


def _warmup_settings(settings: CompareSettings) -> RocketQAv2Settings:
    """RocketQAv2 without a round."""
    common = {field.name: getattr(settings, field.name) for field in dataclasses.fields(RunSettings)}
    return RocketQAv2Settings(
        **{**common, "output": str(Path(settings.output) / WARMUP_ROW)},
        warmup_retriever=settings.warmup_retriever,
        warmup_reranker=settings.warmup_reranker,
        joint=JointSettings(rounds=0),
    )


def _module(settings: CompareSettings, row: str) -> ModuleType:
    return import_module(f"rocketqa_paddle.systems.{settings.systems[row]['system']}")


def _system_settings(settings: CompareSettings, row: str) -> RunSettings:
    """What all rows share, the models to begin with, the row's own settings, its share of the steps."""
    folder, module = Path(settings.output), _module(settings, row)
    values = {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(RunSettings)}
    values["output"] = str(folder / settings.folder_name(row))
    values["evaluation"]["start"] = False  # the warm-up's run has measured them
    for model in MODELS:
        values[model]["start"] = str(folder / WARMUP_ROW / "best" / model)
    own = {key: value for key, value in settings.systems[row].items() if key != "system"}
    values |= copy.deepcopy(own)
    for section, as_it_is in module.WARMED_UP.items():
        values.setdefault(section, {}).update(as_it_is)
    parsed = _parse(settings, row, values)
    for section, steps in _share_out(settings.steps, parsed, module.own_training(parsed), row).items():
        _inside(values, section)["steps"] = steps
    return _parse(settings, row, values)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else copy.deepcopy(value)


def _parse(settings: CompareSettings, row: str, values: Mapping[str, Any]) -> RunSettings:
    kind = SYSTEMS[settings.systems[row]["system"]]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        parsed = parser.instantiate_classes(parser.parse_object(copy.deepcopy(dict(values))))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"systems.{row}: {error}") from None
    return kind(**vars(parsed))


def _share_out(steps: int, settings: RunSettings, sections: Sequence[str], row: str) -> dict[str, int]:
    """The steps of every section, as whole numbers that add up, a section counted as often as it is named."""
    given = [_inside(settings, section).steps for section in sections]
    weights = [1] * len(sections) if None in given else given
    if not sections:
        raise ValueError(f"systems.{row}: nothing is trained after the warm-up (rounds is 0)")
    whole = sum(weights) // math.gcd(*weights)
    if steps % whole:
        parts = " + ".join(f"{weight} {section}" for section, weight in zip(sections, weights, strict=True))
        raise ValueError(
            f"systems.{row}: steps={steps} cannot be shared out as {parts}: take a multiple of {whole}"
        )
    return {
        section: steps * weight // sum(weights) for section, weight in zip(sections, weights, strict=True)
    }


def _inside(settings: Any, path: str) -> Any:
    """The section at a dotted path; in a dictionary it is made if it is not there."""
    for name in path.split("."):
        is_dict = isinstance(settings, dict)
        settings = settings.setdefault(name, {}) if is_dict else getattr(settings, name)
    return settings


# Results ------------------------------------------------------------------------------------------


def _report(settings: CompareSettings, runs: Runs) -> None:
    warmup = runs[WARMUP_ROW]
    ordered = {row: runs[row] for row in dict.fromkeys([settings.baseline, *runs])}
    tests = settings.data.tests or [settings.data.dev]
    tables = [table for name in tests for table in _tables(settings, ordered, name)]
    text = "\n\n".join([*tables, *_dev_tables(settings, runs), _costs(runs)])
    if distributed.is_main():
        write_text(Path(settings.output) / "report.md", text + "\n")
        try:
            curves = {title: _curves(runs, model) for model, title in MODELS.items()}
            report.plot_comparison(curves, warmup.measure, Path(settings.output) / "curves.png")
        except ImportError:
            warmup.say("curves.png is left out: it needs matplotlib (pip install matplotlib)")
    warmup.say(f"\n{text}\n")


def _tables(settings: CompareSettings, runs: Runs, name: str) -> list[str]:
    """What the best retrievers find in a split, and how the best re-rankers order that."""
    some = runs[WARMUP_ROW]
    split, s = some.split(name), settings.evaluation
    found, ordered = [], []
    for row, run in runs.items():
        best = run.best_stages()
        retriever, reranker = best["retriever"], best["reranker"]
        found.append(Row(row, run.hits(retriever, name)))
        ordered.append(Row(row, formats.read_run(run.reranked_path(reranker, retriever, name))))
    if s.bm25:
        found.append(Row("BM25", retrieval.bm25(some.passages, split.queries, s.depth)))
    title = f"**{name}**, {len(split.queries)} queries over {len(some.passages)} passages"
    over = f"re-rankers over the {s.rerank_depth} best of these"
    return [
        report.table(f"{title}: {what}", rows, split.qrels, s.measures, against_first=True)
        for what, rows in {"retrievers": found, over: ordered}.items()
    ]


def _dev_tables(settings: CompareSettings, runs: Runs) -> list[str]:
    """The models after every stage of every system, beside those that all began with."""
    dev, tables = settings.data.dev, []
    split = runs[WARMUP_ROW].split(dev)
    for model, title in MODELS.items():
        rows = [
            Row(f"{row}, {stage.title} ({steps} steps)", formats.read_run(run.dev_runs(stage.name)[model]))
            for row, run in runs.items()
            for steps, stage in _measured(run, model)
            if steps or row == WARMUP_ROW
        ]
        over = " over the best of the warm-up's retriever" if model == "reranker" else ""
        head = f"**{dev}** after every stage: {title}{over}"
        tables.append(report.table(head, rows, split.qrels, settings.evaluation.measures))
    return tables


def _measured(run: Pipeline, model: str) -> list[tuple[int, Stage]]:
    """The stages that trained a model of this name, and how many steps the run had taken after each."""
    steps, measured = 0, []
    for stage in run.done.values():
        steps += stage.work.steps
        if model in stage.work.models:
            measured.append((steps, stage))
    return measured


def _curves(runs: Runs, model: str) -> dict[str, list[tuple[int, float]]]:
    """Steps after the warm-up and the measure on dev, by row."""
    return {
        row: [
            (steps, run.dev_value(run.dev_runs(stage.name)[model])) for steps, stage in _measured(run, model)
        ]
        for row, run in runs.items()
        if row != WARMUP_ROW
    }


def _costs(runs: Runs) -> str:
    """What every row has computed after the warm-up."""
    rows = [("system", "steps", "texts trained on", "pairs trained on", "texts encoded", "pairs scored")]
    for row, run in runs.items():
        if row != WARMUP_ROW:
            work = [stage.work for stage in run.done.values() if stage.work.steps]
            counts = [
                sum(getattr(each, name) for each in work)
                for name in ("steps", "trained_texts", "trained_pairs", "encoded", "scored")
            ]
            rows.append((row, *(f"{count:,}" for count in counts)))
    return "Computed after the warm-up:\n\n" + report.align(rows)
