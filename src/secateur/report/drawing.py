"""What the figures of a report are drawn with: plain plotly, {"data": [...], "layout": {...}}."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from secateur.report.aggregate import Figure, Group, check_one_score

Plot = dict[str, Any]
T = TypeVar("T")
_COLOURS = ("#2563a8", "#c2571a", "#2f8f5b", "#8a4fb0", "#b8324f", "#5b6b7a", "#a58a1e", "#1f8a96")
QUOTED = "#777777"


def with_texts(part: Any, change: Callable[[str], str]) -> Any:
    """Return a plot, or a part of one, with every text in it changed; the keys are our own."""
    if isinstance(part, str):
        return change(part)
    if isinstance(part, Mapping):
        return {key: with_texts(value, change) for key, value in part.items()}
    return [with_texts(value, change) for value in part] if isinstance(part, (list, tuple)) else part


def add_dense(layout: Plot, groups: Sequence[Group]) -> None:
    """Draw the dense scores as lines with their names."""
    levels, scale = dense_levels(groups), check_one_score(groups)
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1}
    dashed = {"line": {"color": "#444", "width": 1, "dash": "dash"}}
    layout["shapes"] = [across | {"y0": level, "y1": level} | dashed for level in levels.values()]
    place = {"xref": "paper", "x": 0.01, "xanchor": "left", "yshift": 9, "showarrow": False}
    written = place | {"font": {"size": 11, "color": "#444"}}
    layout["annotations"] = [
        written | {"y": level, "text": f"{name} {scale.number(level / scale.factor)}"}
        for name, level in levels.items()
    ]


def dense_levels(groups: Sequence[Group]) -> dict[str, float]:
    """The dense score of each network of each study, as it is shown: where several of one kind are trained,
    their mean. Those that are equal have one line."""
    found: dict[tuple[str, str], list[float]] = {}
    for group in groups:
        dense = group.figure("score_dense")
        if dense:
            found.setdefault((group.study, group.network), []).append(group.scale.factor * dense.mean)
    studies = [study for study, _ in found]
    digits = 2 if check_one_score(groups).unit == "%" else 6
    levels: dict[float, list[str]] = {}
    for (study, network), values in found.items():
        words = [study] if len(set(studies)) > 1 else []
        words += [network] if studies.count(study) > 1 else []
        levels.setdefault(round(statistics.fmean(values), digits), []).append(" ".join(words))
    if len(levels) == 1:
        return {"dense": next(iter(levels))}
    return {f"dense, {' and '.join(names)}": level for level, names in levels.items()}


def coloured(parts: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Give each part of a figure a colour, in turn."""
    return zip(itertools.cycle(_COLOURS), parts, strict=False)


def line_of(name: str, xs: Sequence[float], ys: list[float], colour: str) -> Plot:
    return _scatter("lines", name, xs, ys) | {"line": {"color": colour, "width": 1.5}}


def marks_of(name: str, xs: Sequence[float], ys: list[float], texts: list[str], marker: Plot) -> Plot:
    return _scatter("markers", name, xs, ys) | {"text": texts, "hoverinfo": "text", "marker": marker}


def means_of(
    name: str, xs: Sequence[float], figures: Sequence[Figure], scale: float = 100, *, mode: str
) -> Plot:
    """Draw means, times ``scale``, with their deviations as error bars."""
    trace = _scatter(mode, name, xs, [scale * figure.mean for figure in figures])
    deviations = [scale * figure.std for figure in figures]
    return trace | {"error_y": {"type": "data", "array": deviations, "thickness": 1}}


def _scatter(mode: str, name: str, xs: Sequence[float], ys: list[float]) -> Plot:
    return {"type": "scatter", "mode": mode, "name": name, "x": list(xs), "y": ys}


def axes_of(x: str, y: str) -> Plot:
    axis = {"gridcolor": "#e4e8ee", "zeroline": False, "linecolor": "#9aa4b0", "ticks": "outside"}
    return {
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}, "automargin": True},
        "margin": {"l": 50, "r": 10, "t": 10, "b": 45},
        "height": 420,
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "legend": {"orientation": "h", "y": -0.2, "font": {"size": 11}},
        "hovermode": "closest",
    }
