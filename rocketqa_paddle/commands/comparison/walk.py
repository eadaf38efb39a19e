"""A comparison: systems side by side, from one warm-up, with one budget of optimizer steps."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

from rocketqa_paddle.commands.comparison.report import report
from rocketqa_paddle.commands.comparison.settings import WARM_UP, CompareSettings, folder_name
from rocketqa_paddle.runs.report import REPORT, report_rounds
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.settings import RunSettings, TrainingSettings
from rocketqa_paddle.systems import SYSTEMS
from rocketqa_paddle.systems.warm_up import warm_up

Rows = Mapping[str, RunSettings]
"""The settings of every row, by its name."""


def walk(run: Run, settings: CompareSettings, rows: Rows) -> None:
    """Warm up two models, let every system begin with them, and report on all."""
    run.measure_initial()
    deal = run.deal()
    models = warm_up(run, settings, run.initial_retriever(), deal, settings.depth)
    report_rounds(run, "Warm-up", [])
    if not run.dry and distributed.is_main():  # a `report.md` in the run folder tells that all is done
        (run.folder / REPORT).replace(run.folder / WARM_UP / REPORT)
    done = {WARM_UP: run}
    for row, own in rows.items():
        done[row] = run.within(folder_name(row), own, {model.kind: model for model in models}, deal.dealt)
        if not run.dry:
            say(f"\n# {row}\n")
        with _named(row):
            SYSTEMS[settings.systems[row]["system"]].train(done[row], own)
    if not run.dry:
        report(settings, done)


def share_out(run: Run, settings: CompareSettings, rows: Rows) -> dict[str, RunSettings]:
    """The settings of the rows, with the steps of the comparison shared out among the trainings of each."""
    planned, shared = run.rehearse(partial(walk, settings=settings, rows=rows)).trainings, {}
    for row, own in rows.items():
        place = folder_name(row) + "/"
        trainings = {name: training for name, training in planned.items() if name.startswith(place)}
        with _named(row):
            shared[row] = _share_out(settings.steps, own, trainings)
    return shared


@contextmanager
def _named(row: str) -> Iterator[None]:
    """Add to errors whose they are."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{row}: {error}") from error


def _share_out(steps: int, settings: RunSettings, trainings: Mapping[str, TrainingSettings]) -> RunSettings:
    """The settings of a row with whole numbers of steps for its trainings, which add up to `steps`.

    The settings of every training are an object inside of `settings`.
    """
    if not trainings:
        raise ValueError("nothing is trained after the warm-up (rounds is 0)")
    weights = [training.steps for training in trainings.values()]
    if None in weights:
        weights = [1] * len(weights)
    whole = sum(weights) // math.gcd(*weights)
    if steps % whole:
        parts = " + ".join(f"{weight} {name}" for name, weight in zip(trainings, weights, strict=True))
        raise ValueError(f"steps={steps} cannot be shared out as {parts}: take a multiple of {whole}")
    shares = {id(t): steps * w // sum(weights) for t, w in zip(trainings.values(), weights, strict=True)}
    return _with_steps(settings, shares)


def _with_steps(settings: Any, shares: Mapping[int, int]) -> Any:
    """The same settings with other `steps` in some of their sections, which are named by identity."""
    inner = {field.name: getattr(settings, field.name) for field in fields(settings)}
    changed = {name: _with_steps(value, shares) for name, value in inner.items() if is_dataclass(value)}
    if id(settings) in shares:
        changed["steps"] = shares[id(settings)]
    return replace(settings, **changed)
