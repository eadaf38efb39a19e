"""Pictures of the curves of a run, written as PNG. Without matplotlib, they raise `ImportError`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocketqa_paddle.evaluation import curves
from rocketqa_paddle.evaluation.curves import Row


def plot_curves(rows: Sequence[Row], path: str | Path) -> None:
    """Plot the losses of all trainings and the dev measures of all steps from the rows of `metrics.jsonl`."""
    with _pictures(path, 2) as (losses, dev):
        _plot_losses(losses, rows)
        _plot_dev(dev, rows)


def plot_comparison(
    models: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], measure: str, path: str | Path
) -> None:
    """Plot a measure of several systems over their optimizer steps, with one picture a model.

    `models` has, by model and system, points of (optimizer steps, measure on dev).
    """
    with _pictures(path, len(models)) as pictures:
        for axes, (model, systems) in zip(pictures, models.items(), strict=True):
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


def _plot_losses(axes: Any, rows: Sequence[Row]) -> None:
    """Draw one line for each training, which begins where the one before ended."""
    offset, losses = 0, curves.of_trainings(rows, "loss")
    for stage, points in losses.items():
        axes.plot(*zip(*((offset + step, loss) for step, loss in points), strict=True), label=stage)
        offset += points[-1][0]
    axes.set(xlabel="step", ylabel="loss", title="Training")
    if losses:
        axes.legend()


def _plot_dev(axes: Any, rows: Sequence[Row]) -> None:
    """Draw one line for each measure over the steps of the run."""
    steps, measures = curves.of_dev(rows)
    for name, points in measures.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(title="Dev queries", ylabel="measure", xticks=range(len(steps)), xticklabels=steps)
    axes.tick_params(axis="x", rotation=20)
    if measures:
        axes.legend()
