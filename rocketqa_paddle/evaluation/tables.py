"""What a run achieved: a table of measures with significance, and a picture of its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Qrels, Run


@dataclass(frozen=True)
class Row:
    """A system and what it retrieved for one split."""

    name: str
    run: Run


def table(
    title: str, rows: Sequence[Row], qrels: Qrels, measures: Sequence[str], *, against_first: bool = False
) -> str:
    """A Markdown table, one row a system, one column a measure, the best of a column in bold.

    With `against_first`, the last column is the first measure's difference from the first row, and the p of a
    paired t-test.
    """
    values = [metrics.evaluate(qrels, row.run, measures) for row in rows]
    best = {name: max(value[name] for value in values) for name in measures}
    heads = [
        f"{name} ({metrics.PAPER_NAMES[name]})" if name in metrics.PAPER_NAMES else name for name in measures
    ]
    cells = [
        [row.name, *(_cell(value[name], best[name]) for name in measures)]
        for row, value in zip(rows, values, strict=True)
    ]
    if against_first:
        heads.append(f"{measures[0]} against {rows[0].name}")
        for row, line in zip(rows, cells, strict=True):
            line.append("" if row is rows[0] else _difference(row, rows[0], qrels, measures[0]))
    return f"{title}\n\n" + align([["system", *heads], *cells])


def _difference(ours: Row, baseline: Row, qrels: Qrels, measure: str) -> str:
    result = metrics.compare(qrels, ours.run, baseline.run, measure)
    p = f" (p = {result.p_value:.2g})" if result.queries > 1 else ""
    return f"{result.difference:+.3f}{p}"


def _cell(value: float, best: float) -> str:
    return f"**{value:.3f}**" if value == best else f"{value:.3f}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def significance(ours: Row, baseline: Row, qrels: Qrels, measure: str) -> str:
    """One sentence: how much better, and by a paired t-test how surely."""
    result = metrics.compare(qrels, ours.run, baseline.run, measure)
    if result.queries < 2:
        return f"{ours.name} against {baseline.name}: {measure} {result.difference:+.3f} on a single query."
    verdict = "significant at 0.05" if result.p_value < 0.05 else "not significant at 0.05"
    return (
        f"{ours.name} against {baseline.name}: {measure} {result.difference:+.3f}, "
        f"paired t-test over {result.queries} queries p = {result.p_value:.2g}, {verdict}."
    )


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Loss of every stage over its steps, and dev measures over the stages, as a PNG.

    Args:
        rows: lines of `metrics.jsonl`.
        path: where to write the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, (losses, dev) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    _plot_losses(losses, [row for row in rows if "loss" in row])
    _plot_dev(dev, rows)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_comparison(
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], measure: str, path: str | Path
) -> None:
    """A measure over the steps of several systems, one picture a model, as a PNG.

    Args:
        curves: by model and system, points of steps and the measure on dev.
        measure: its name.
        path: where to write the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, pictures = pyplot.subplots(1, len(curves), figsize=(11, 4), constrained_layout=True)
    for axes, (model, systems) in zip(pictures, curves.items(), strict=True):
        for system, points in systems.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=system)
        axes.set(title=f"Dev queries: {model}", xlabel="steps after the warm-up", ylabel=measure)
        axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _pyplot() -> Any:
    """Matplotlib's, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot_losses(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """One line a stage, its steps after those of the stage before."""
    offset = 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        points = [(row["step"] + offset, row["loss"]) for row in rows if row["stage"] == stage]
        axes.plot(*zip(*points, strict=True), label=stage)
        offset = points[-1][0]
    axes.set(xlabel="step", ylabel="loss", title="Training")
    if rows:
        axes.legend()


def _plot_dev(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """One line a measure, over the stages in the order of the run."""
    keys = sorted({key for row in rows for key in row if key.startswith("dev/")})
    stages = list(dict.fromkeys(row["stage"] for row in rows if any(key in row for key in keys)))
    for key in keys:
        points = {stages.index(row["stage"]): row[key] for row in rows if key in row}
        axes.plot(list(points), list(points.values()), marker="o", label=key.removeprefix("dev/"))
    axes.set(title="Dev queries", ylabel="measure", xticks=range(len(stages)), xticklabels=stages)
    axes.tick_params(axis="x", rotation=20)
    if keys:
        axes.legend()
