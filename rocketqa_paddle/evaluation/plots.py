"""Pictures of the curves of a run, written as PNG. Without matplotlib, they raise `ImportError`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Plot the losses of all trainings and the dev measures of all steps from the rows of `metrics.jsonl`."""
    with _pictures(path, 2) as (losses, dev):
        _plot_losses(losses, [row for row in rows if "loss" in row])
        _plot_dev(dev, rows)


def plot_comparison(
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], measure: str, path: str | Path
) -> None:
    """Plot a measure of several systems over their optimizer steps, with one picture a model.

    `curves` has, by model and system, points of (optimizer steps, measure on dev).
    """
    with _pictures(path, len(curves)) as pictures:
        for axes, (model, systems) in zip(pictures, curves.items(), strict=True):
            for system, points in systems.items():
                axes.plot(*zip(*points, strict=True), marker="o", label=system)
            axes.set(title=f"Dev queries: {model}", xlabel="steps after the warm-up", ylabel=measure)
            axes.legend()


@contextmanager
def _pictures(path: str | Path, count: int) -> Iterator[Sequence[Any]]:
    """Give axes to draw on, side by side, and write them to a file at the end. No screen is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(11, 4), constrained_layout=True, squeeze=False)
    yield axes[0]
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _plot_losses(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draw one line for each training, which begins where the one before ended."""
    offset = 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        points = [(row["step"] + offset, row["loss"]) for row in rows if row["stage"] == stage]
        axes.plot(*zip(*points, strict=True), label=stage)
        offset = points[-1][0]
    axes.set(xlabel="step", ylabel="loss", title="Training")
    if rows:
        axes.legend()


def _plot_dev(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draw one line for each measure over the steps of the run."""
    keys = sorted({key for row in rows for key in row if key.startswith("dev/")})
    stages = list(dict.fromkeys(row["stage"] for row in rows if any(key in row for key in keys)))
    for key in keys:
        points = {stages.index(row["stage"]): row[key] for row in rows if key in row}
        axes.plot(list(points), list(points.values()), marker="o", label=key.removeprefix("dev/"))
    axes.set(title="Dev queries", ylabel="measure", xticks=range(len(stages)), xticklabels=stages)
    axes.tick_params(axis="x", rotation=20)
    if keys:
        axes.legend()
