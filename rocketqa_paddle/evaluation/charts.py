"""Charts for web pages: figures of HTML with inline SVG, whose colours the page's style sheet sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from rocketqa_paddle.evaluation.curves import Points

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 38  # margins around what is drawn
_SLANTED = 44  # the margin under names in the place of numbers
_COLOURS = 6
_BINS = 30
_MARKED = 40  # points at most that are marked one by one


def line_chart(title: str, curves: Mapping[str, Points], x: str, names: Sequence[str] = ()) -> str:
    """Draw curves over a common axis `x`.

    Args:
        title: stands above the chart.
        curves: points by the name of the curve; without any, the chart says so.
        x: what the horizontal axis counts.
        names: what the numbers from 0 on that axis stand for, if they stand for something.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return _figure(title, "<p>nothing was logged</p>", [])
    steps = range(len(names)) if names else [step for step, _ in points]
    axes = _Axes(steps, [value for _, value in points], names)
    drawn = [axes.frame(x)]
    for number, curve in enumerate(curves.values()):
        path = " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in curve)
        drawn.append(f'<polyline class="line c{number % _COLOURS}" points="{path}"/>')
        if len(curve) <= _MARKED:
            drawn += [
                f'<circle class="dot c{number % _COLOURS}" cx="{axes.x(step):.1f}" cy="{axes.y(value):.1f}" '
                f'r="2.5"><title>{escape(_at(step, names))}: {value:.4g}</title></circle>'
                for step, value in curve
            ]
    return _figure(title, _svg(drawn, axes.height), curves if len(curves) > 1 or names else [])


def histogram(title: str, groups: Mapping[str, np.ndarray], x: str) -> str:
    """Draw how the values of some groups are distributed, each as shares of its own.

    Args:
        title: stands above the chart.
        groups: finite values by the name of the group.
        x: what the values are.
    """
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        return _figure(title, "<p>no scores</p>", [])
    together = np.concatenate([*groups.values()])
    edges = np.histogram_bin_edges(together, bins=_BINS)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in groups.items()}
    axes = _Axes(edges.tolist(), [0.0, max(float(share.max()) for share in shares.values())])
    drawn = [axes.frame(x)]
    for number, share in enumerate(shares.values()):
        tops = [(edge, height) for n, height in enumerate(share) for edge in (edges[n], edges[n + 1])]
        corners = [(edges[0], 0.0), *tops, (edges[-1], 0.0)]
        path = " ".join(f"{axes.x(edge):.1f},{axes.y(height):.1f}" for edge, height in corners)
        drawn.append(f'<polygon class="area c{number % _COLOURS}" points="{path}"/>')
    counted = [f"{name} ({len(values):,})" for name, values in groups.items()]
    return _figure(title, _svg(drawn, axes.height), counted)


class _Axes:
    """Where values lie in the picture, and the frame around them."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], names: Sequence[str] = ()) -> None:
        self._names, self._bottom = names, _SLANTED if names else _BOTTOM
        self.height = _HEIGHT + self._bottom - _BOTTOM
        self._xs, self._ys = _span(xs), _span(ys)

    def x(self, value: float) -> float:
        low, high = self._xs
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._ys
        return self.height - self._bottom - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    def frame(self, x: str) -> str:
        """Lines and numbers of both axes, and the name of the horizontal one."""
        base, right = self.height - self._bottom, _WIDTH - _RIGHT
        drawn = []
        for value in _ticks(*self._ys):
            y = self.y(value)
            drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
        if self._names:
            every = math.ceil(len(self._names) / 8)
            for number, name in list(enumerate(self._names))[::every]:
                place = f"{self.x(number):.1f},{base + 14}"
                turned = f'transform="translate({place}) rotate(-20)" text-anchor="end"'
                drawn.append(f"<text {turned}>{escape(name)}</text>")
            return "".join(drawn)
        for value in _ticks(*self._xs):
            place = f'x="{self.x(value):.1f}" y="{base + 15}" text-anchor="middle"'
            drawn.append(f"<text {place}>{value:g}</text>")
        name = f'x="{(_LEFT + right) / 2}" y="{base + 32}" text-anchor="middle"'
        return "".join([*drawn, f'<text class="name" {name}>{escape(x)}</text>'])


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest value, apart from each other."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers in a span."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.99)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [float(f"{number * step:.10g}") for number in numbers]


def _at(step: float, names: Sequence[str]) -> str:
    return names[int(step)] if names else f"step {step:g}"


def _svg(drawn: Iterable[str], height: int) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(drawn)}</svg>'


def _figure(title: str, drawn: str, legend: Iterable[str]) -> str:
    entries = "".join(
        f'<li class="c{number % _COLOURS}">{escape(name)}</li>' for number, name in enumerate(legend)
    )
    told = f"<ul class='legend'>{entries}</ul>" if entries else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}{told}</figure>"
