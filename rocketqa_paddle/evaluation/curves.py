"""The curves in the log of a run: values of trainings over their steps, and measures on dev."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""A line of `metrics.jsonl`."""
Points = list[tuple[int, float]]
"""Pairs of a step and a value."""


def of_trainings(rows: Sequence[Row], name: str) -> dict[str, Points]:
    """The points of a value, such as `loss`, by training. Values that were not finite (null) are left out."""
    curves: dict[str, Points] = {}
    for row in rows:
        if row.get(name) is not None and "step" in row:
            curves.setdefault(row["stage"], []).append((row["step"], row[name]))
    return curves


def of_dev(rows: Sequence[Row]) -> tuple[list[str], dict[str, Points]]:
    """The steps of a run that were measured on dev, and by measure pairs of a step's number and the value.

    A measure has the name of the log without `dev/`, such as `retriever/RR@10`. Numbers count from 0.
    """
    measured = [row for row in rows if any(key.startswith("dev/") for key in row)]
    steps = list(dict.fromkeys(row["stage"] for row in measured))
    curves: dict[str, dict[int, float]] = {}
    for row in measured:
        for key, value in row.items():
            if key.startswith("dev/") and value is not None:
                curves.setdefault(key.removeprefix("dev/"), {})[steps.index(row["stage"])] = value
    return steps, {key: list(curves[key].items()) for key in sorted(curves)}
