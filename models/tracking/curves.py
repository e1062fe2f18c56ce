"""Geometry of overlaid curves as inline SVG: pure functions from points to paths and ticks.

Own SVG, not a plotting library's: a page of thirty charts stays below 300 kB (plotly.js alone is 4.5 MB),
needs no network, and its lines take the colours of the reader's light or dark theme (matplotlib fixes them).
Tick positions come from matplotlib.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Chart", "Line", "chart"]

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 30
MAX_POINTS = 240

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve. `run` is its position in the comparison (and so its colour); `part` is train, val, ..."""

    run: int
    part: str
    dashed: bool
    path: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """One plot. Ticks are (pixel, text); `frame` is left, top, right, bottom in pixels."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    frame: tuple[int, int, int, int]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script needs to show values under the pointer."""
        lines = [{"run": line.run, "part": line.part, "points": line.points} for line in self.lines]
        return {"frame": self.frame, "x": self.x_range, "y": self.y_range, "label": self.x_label, "lines": lines}


def chart(title: str, series: Mapping[tuple[int, str], Points], *, x_label: str = "step") -> Chart | None:
    """Lays out curves on common axes; None when there is nothing finite to draw.

    Curves of more than 240 points are drawn as means over equal shares of their points.

    Args:
        title: Name of the plot.
        series: (run index, part) to points, x rising.
        x_label: What x counts.
    """
    thinned = {key: _thin([p for p in points if math.isfinite(p[1])]) for key, points in series.items()}
    thinned = {key: points for key, points in thinned.items() if points}
    if not thinned:
        return None
    x_ticks, x_range = _axis([x for points in thinned.values() for x, _ in points], count=6)
    y_ticks, y_range = _axis([y for points in thinned.values() for _, y in points], count=5, padded=True)
    has_both = len({part for _, part in thinned}) > 1
    frame = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)

    def x_pixel(x: float) -> float:
        return round(LEFT + (x - x_range[0]) / (x_range[1] - x_range[0]) * (frame[2] - LEFT), 1)

    def y_pixel(y: float) -> float:
        return round(frame[3] - (y - y_range[0]) / (y_range[1] - y_range[0]) * (frame[3] - TOP), 1)

    lines = tuple(
        Line(run, part, has_both and part == "train", _path([(x_pixel(x), y_pixel(y)) for x, y in points]),
             tuple((x, float(f"{y:.6g}")) for x, y in points))
        for (run, part), points in thinned.items()
    )  # fmt: skip
    return Chart(
        title=title, x_label=x_label, lines=lines, frame=frame, x_range=x_range, y_range=y_range,
        x_ticks=tuple((x_pixel(tick), f"{tick:,.6g}") for tick in x_ticks),
        y_ticks=tuple((y_pixel(tick), _short(tick)) for tick in y_ticks),
    )  # fmt: skip


def _thin(points: Points) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return list(points)
    shares = [points[start : start + size] for start in range(0, len(points), size)]
    return [(share[-1][0], sum(y for _, y in share) / len(share)) for share in shares]


def _axis(values: Sequence[float], *, count: int, padded: bool = False) -> tuple[list[float], tuple[float, float]]:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  -- slow to import, and the CLI lists runs without it

    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    elif not padded and 0 < low < 0.05 * high:
        low = 0.0
    elif padded:
        margin = 0.05 * (high - low)
        low, high = low - margin if low < 0 or low > margin else 0.0, high + margin
    ticks = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high], (low, high)


def _path(pixels: Points) -> str:
    if len(pixels) == 1:
        ((x, y),) = pixels
        return f"M{x - 3},{y}h6"
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in pixels)


def _short(value: float) -> str:
    if value and abs(value) < 1e-3:  # noqa: PLR2004
        return np.format_float_scientific(value, precision=3, trim="-", exp_digits=1)
    return f"{value:,.5g}"
