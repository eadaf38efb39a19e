"""The command `rocketqa compare`: systems side by side, from one warm-up, with one budget of steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from rocketqa_paddle.data import formats
from rocketqa_paddle.evaluation import tables
from rocketqa_paddle.evaluation.tables import Row
from rocketqa_paddle.runs.pipeline import Pipeline
from rocketqa_paddle.runs.stages import Stage
from rocketqa_paddle.runs.staging import check_folder, claimed
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.storage import write_text
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.settings import (
    SYSTEMS,
    WARMUP_ROW,
    CompareSettings,
    GroupSettings,
    JointSettings,
    RocketQAv2Settings,
    RunSettings,
)
from rocketqa_paddle.systems.ar2.run import AR2Run
from rocketqa_paddle.systems.pair.run import PairRun
from rocketqa_paddle.systems.rocketqa.run import RocketQARun
from rocketqa_paddle.systems.rocketqav2.run import JointRun

RUNS: Mapping[str, type[Pipeline]] = {
    "rocketqa": RocketQARun,
    "pair": PairRun,
    "rocketqav2": JointRun,
    "ar2": AR2Run,
}
Runs = Mapping[str, Pipeline]
"""The finished run of every row, by its name; the warm-up's is the first."""
MODELS = {"retriever": "retrievers", "reranker": "re-rankers"}
REPORT, CURVES = "report.md", "curves.png"


def compare(settings: CompareSettings) -> None:
    """Warm up two models, train every system from them, and tell how they do.

    A comparison that was stopped goes on; a system whose settings changed is trained again, the others not.
    Writes `report.md` and `curves.png` into the folder, beside a run of every row.

    Raises:
        ValueError: settings that a system does not take, steps that cannot be shared out, data that do not
            hold together, a folder of something else. Before any work.
    """
    folder = Path(settings.output)
    own = {row: _system_settings(settings, row) for row in settings.systems}
    check_folder(folder, settings)
    warmup = JointRun(_warmup_settings(settings))
    runs: dict[str, Pipeline] = {WARMUP_ROW: warmup}
    for row in own:
        with _named(row):
            check_folder(Path(own[row].output), own[row])
            runs[row] = RUNS[settings.systems[row]["system"]](own[row])
            runs[row].share_data(warmup)
    with claimed(folder, settings):
        if distributed.is_main():
            for name in (REPORT, CURVES):  # of other settings, perhaps
                (folder / name).unlink(missing_ok=True)
        for row, run in runs.items():
            warmup.say(f"\n# {row}\n")
            with _named(row):
                run.run(run.stages(), run.complete)
            run.share_data(warmup)
        _report(settings, runs)


@contextmanager
def _named(row: str) -> Iterator[None]:
    """Errors tell whose they are."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{row}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{row}: {error}") from error


# Settings of the runs -----------------------------------------------------------------------------


def _warmup_settings(settings: CompareSettings) -> RocketQAv2Settings:
    """RocketQAv2 without a round."""
    common = {field.name: getattr(settings, field.name) for field in fields(RunSettings)}
    groups = GroupSettings(negatives=settings.warmup_reranker.negatives, depth=settings.depth)
    return RocketQAv2Settings(
        **{**common, "output": str(Path(settings.output) / WARMUP_ROW)},
        warmup_retriever=settings.warmup_retriever,
        warmup_reranker=settings.warmup_reranker,
        joint=JointSettings(rounds=0, groups=groups),
    )


def _system_settings(settings: CompareSettings, row: str) -> RunSettings:
    """What all rows share, the models to begin with, the row's own settings, its share of the steps."""
    folder, kind = Path(settings.output), RUNS[settings.systems[row]["system"]]
    values = {field.name: _plain(getattr(settings, field.name)) for field in fields(RunSettings)}
    values["output"] = str(folder / settings.folder_name(row))
    values["evaluation"] |= {"start": False, "bm25": False}  # the warm-up's run measures them
    for model in MODELS:
        values[model]["start"] = str(folder / WARMUP_ROW / "best" / model)
    own = {key: value for key, value in settings.systems[row].items() if key != "system"}
    if warm := own.keys() & kind.warmed_up.keys():
        raise ValueError(
            f"systems.{row}: {min(warm)} is not for a comparison, which sets warmup_retriever and "
            "warmup_reranker once for all systems"
        )
    parsed = _parse(settings, row, {**values, **own, **kind.warmed_up})
    sections = kind.own_training(parsed)
    for section, steps in _share_out(settings.steps, parsed, sections, row).items():
        parsed = _replaced(parsed, section, steps=steps)
    for section in {section.partition(".")[0] for section in sections}:
        if hasattr(getattr(parsed, section), "first_query"):
            parsed = _replaced(parsed, section, first_query=_warmup_queries(settings))
    return parsed


def _warmup_queries(settings: CompareSettings) -> int:
    """How many the warm-up deals out: the rounds are to have others. Where it takes all, there are none."""
    return sum(part.queries or 0 for part in (settings.warmup_retriever, settings.warmup_reranker))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) else value


def _parse(settings: CompareSettings, row: str, values: Mapping[str, Any]) -> RunSettings:
    kind = SYSTEMS[settings.systems[row]["system"]]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        parsed = parser.instantiate_classes(parser.parse_object(copy.deepcopy(dict(values))))
        return kind(**vars(parsed))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"systems.{row}: {error}") from None


def _share_out(steps: int, settings: RunSettings, sections: Sequence[str], row: str) -> dict[str, int]:
    """The steps of every section, as whole numbers that add up, a section counted as often as it is named."""
    if not sections:
        raise ValueError(f"systems.{row}: nothing is trained after the warm-up (rounds is 0)")
    given = [attrgetter(section)(settings).steps for section in sections]
    weights = [1] * len(sections) if None in given else given
    whole = sum(weights) // math.gcd(*weights)
    if steps % whole:
        parts = " + ".join(f"{weight} {section}" for section, weight in zip(sections, weights, strict=True))
        raise ValueError(
            f"systems.{row}: steps={steps} cannot be shared out as {parts}: take a multiple of {whole}"
        )
    return {
        section: steps * weight // sum(weights) for section, weight in zip(sections, weights, strict=True)
    }


def _replaced(settings: Any, path: str, **values: Any) -> Any:
    """Settings with other values in the section at a dotted path."""
    name, _, rest = path.partition(".")
    inner = getattr(settings, name)
    inner = _replaced(inner, rest, **values) if rest else replace(inner, **values)
    return replace(settings, **{name: inner})


# Results ------------------------------------------------------------------------------------------


def _report(settings: CompareSettings, runs: Runs) -> None:
    warmup = runs[WARMUP_ROW]
    ordered = {row: runs[row] for row in dict.fromkeys([settings.baseline, *runs])}
    tests = settings.data.tests or [settings.data.dev]
    shown = [table for name in tests for table in _tables(settings, ordered, name)]
    text = "\n\n".join([*shown, *_dev_tables(settings, runs), _costs(runs)])
    if distributed.is_main():
        write_text(Path(settings.output) / REPORT, text + "\n")
        try:
            curves = {title: _curves(runs, model) for model, title in MODELS.items()}
            tables.plot_comparison(curves, warmup.measure, Path(settings.output) / CURVES)
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
        tables.table(f"{title}: {what}", rows, split.qrels, s.measures, against_first=True)
        for what, rows in {"retrievers": found, over: ordered}.items()
    ]


def _dev_tables(settings: CompareSettings, runs: Runs) -> list[str]:
    """The models after every stage of every system, beside those that all began with."""
    dev, shown = settings.data.dev, []
    split = runs[WARMUP_ROW].split(dev)
    for model, title in MODELS.items():
        rows = [
            Row(
                WARMUP_ROW if row == WARMUP_ROW else f"{row}, {stage.title} ({steps} steps)",
                formats.read_run(run.dev_runs(stage.name)[model]),
            )
            for row, run in runs.items()
            for steps, stage in _measured(run, model)
            if steps or row == WARMUP_ROW
        ]
        over = " over the best of the warm-up's retriever" if model == "reranker" else ""
        head = f"**{dev}** after every stage, and so many steps after the warm-up: {title}{over}"
        shown.append(tables.table(head, rows, split.qrels, settings.evaluation.measures))
    return shown


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
    """About what every row has computed in the stages that trained."""
    rows = [("system", "steps", "texts trained on", "pairs trained on", "texts encoded", "pairs scored")]
    for row, run in runs.items():
        if row != WARMUP_ROW:
            work = [stage.work for stage in run.done.values() if stage.work.steps]
            counts = [
                sum(getattr(each, name) for each in work)
                for name in ("steps", "trained_texts", "trained_pairs", "encoded", "scored")
            ]
            rows.append((row, *(f"{count:,}" for count in counts)))
    return "Computed after the warm-up, about:\n\n" + tables.align(rows)
