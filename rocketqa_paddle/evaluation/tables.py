"""Markdown tables of measures, and sentences on their significance."""

from collections.abc import Mapping, Sequence

import numpy as np

from rocketqa_paddle.evaluation import metrics

Values = Mapping[str, np.ndarray]
"""The values of all queries, `[queries]`, by the name of the measure."""


def table(
    title: str, rows: Mapping[str, Values], measures: Sequence[str], *, against_first: bool = False
) -> str:
    """Write a table with a row for each system and a column for each measure. The best means are bold.

    `against_first` adds a column with the difference of the first measure from that of the first row, and the
    p of a paired t-test.
    """
    means = {name: {m: float(values[m].mean()) for m in measures} for name, values in rows.items()}
    best = {m: max(values[m] for values in means.values()) for m in measures}
    heads = [f"{m} ({metrics.PAPER_NAMES[m]})" if m in metrics.PAPER_NAMES else m for m in measures]
    cells = [[name, *(_cell(values[m], best[m]) for m in measures)] for name, values in means.items()]
    if against_first:
        first, *others = rows
        heads.append(f"{measures[0]} against {first}")
        differences = [_difference(rows[name][measures[0]], rows[first][measures[0]]) for name in others]
        for line, difference in zip(cells, ["", *differences], strict=True):
            line.append(difference)
    return f"{title}\n\n" + align([["system", *heads], *cells])


def _difference(values: np.ndarray, baseline: np.ndarray) -> str:
    result = metrics.compare(values, baseline)
    p = f" (p = {result.p_value:.2g})" if result.queries > 1 else ""
    return f"{result.difference:+.3f}{p}"


def _cell(value: float, best: float) -> str:
    return f"**{value:.3f}**" if value == best else f"{value:.3f}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table with columns of even width. The first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def significance(name: str, values: Values, baseline: str, others: Values, measure: str) -> str:
    """Say in one sentence how a system compares with a baseline, of values `others` on the same queries."""
    result = metrics.compare(values[measure], others[measure])
    difference = f"{name} against {baseline}: {measure} {result.difference:+.3f}"
    if result.queries < 2:
        return f"{difference} on a single query."
    verdict = "significant at 0.05" if result.significant else "not significant at 0.05"
    test = f"paired t-test over {result.queries} queries p = {result.p_value:.2g}"
    return f"{difference}, {test}, {verdict}."


def duration(seconds: float) -> str:
    """Seconds in the unit that people would take."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes in the unit that people would take."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
