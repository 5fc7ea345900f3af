"""The plots of a report as static pictures, for papers and READMEs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import RecipeError
from secateur.factories import need
from secateur.report.aggregate import all_groups, references_of
from secateur.report.drawing import with_texts
from secateur.report.figures import Plot, plots_of
from secateur.storage import replacing
from secateur.text import printable

_TALLEST, _NAMED = 100, 200  # inches of a picture, and rows or columns of a map with a name each
FORMATS = ("png", "svg", "pdf")
_DASHES = {"solid": "-", "dot": ":", "dash": "--"}
_MARKERS = {"x": "x", "x-open": "+", "circle": "o", "circle-open": "o"}
_STEPS = {"linear": "default", "vh": "steps-pre", "hv": "steps-post"}


def write_pictures(studies: Sequence[Mapping[str, Any]], folder: Path, kind: str) -> list[Path]:
    """Draw every plot of the page of ``studies`` into ``folder`` as ``kind`` (png, svg or pdf)."""
    check_format(kind)
    matplotlib = need("matplotlib")
    matplotlib.use("Agg")
    groups = all_groups(studies)
    reference = references_of(studies)
    paths: list[Path] = []
    # A name with two dollars is no formula, whatever a matplotlibrc in the working folder says.
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        for title, plot in plots_of(groups, reference).items():
            name = re.sub(r"\W+", "-", title.lower())[:100]
            path = folder / f"{name}.{kind}"
            with replacing(path) as temporary:
                _draw(with_texts(plot, printable), temporary, kind)
            paths.append(path)
    return paths


def check_format(kind: str | None) -> None:
    if kind is not None and kind not in FORMATS:
        raise RecipeError(f"--pictures {kind}: one of {', '.join(FORMATS)}")


def _draw(plot: Plot, path: Path, kind: str) -> None:
    from matplotlib import pyplot

    layout = plot["layout"]
    drawn_as = plot["data"][0]["type"]
    height = min(max(2.5, layout["height"] / 90), _TALLEST)
    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    if drawn_as == "heatmap":
        _draw_map(figure, axes, plot["data"][0])
    elif drawn_as == "bar":
        _draw_bars(axes, plot["data"])
        axes.set_xlabel(_title(layout["xaxis"]))
        axes.set_xlim(*layout["xaxis"]["range"])
        axes.set_xticks(layout["xaxis"]["tickvals"])
        axes.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    else:
        for trace in plot["data"]:
            _draw_trace(axes, trace)
        axes.grid(color="#e4e8ee")
        axes.set_axisbelow(True)
        axes.set_xlabel(_title(layout["xaxis"]))
        axes.set_ylabel(_title(layout["yaxis"]))
        axes.set_xscale(layout["xaxis"].get("type", "linear"))
        if "tickvals" in layout["xaxis"]:
            axes.set_xticks(layout["xaxis"]["tickvals"], layout["xaxis"]["ticktext"])
        if layout["xaxis"].get("type") == "log":
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        for shape, note in zip(layout.get("shapes", []), layout.get("annotations", []), strict=True):
            axes.axhline(shape["y0"], color="#444444", linewidth=1, linestyle="--")
            place = {"xy": (0.01, shape["y0"]), "xycoords": ("axes fraction", "data")}
            axes.annotate(note["text"], **place, fontsize=8, va="bottom")
        if sum(trace.get("showlegend", True) for trace in plot["data"]) <= 12:
            axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format=kind, dpi=150)
    pyplot.close(figure)


def _draw_bars(axes: Any, traces: Sequence[Plot]) -> None:
    """Bars from the left, those of one name together, each with its figure beside it."""
    names = list(dict.fromkeys(name for trace in traces for name in trace["y"]))
    height = 0.8 / len(traces)
    for index, trace in enumerate(traces):
        places = [names.index(name) + (index + 0.5) * height - 0.4 for name in trace["y"]]
        colour = trace["marker"]["color"]
        bars = axes.barh(places, trace["x"], 0.9 * height, label=trace["name"], color=colour)
        axes.bar_label(bars, trace["text"], padding=4, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _draw_trace(axes: Any, trace: Plot) -> None:
    line, marker = trace.get("line", {}), trace.get("marker", {})
    lines, markers = "lines" in trace["mode"], "markers" in trace["mode"]
    symbol = marker.get("symbol", "circle")
    axes.errorbar(
        trace["x"],
        trace["y"],
        yerr=trace.get("error_y", {}).get("array"),
        label=trace["name"] if trace.get("showlegend", True) else None,
        color=line.get("color") or marker.get("color"),
        linestyle=_DASHES[line.get("dash", "solid")] if lines else "none",
        linewidth=line.get("width", 1.5),
        drawstyle=_STEPS[line.get("shape", "linear")],
        marker=_MARKERS[symbol] if markers else None,
        markerfacecolor="none" if symbol.endswith("-open") else None,
        markersize=marker.get("size", 6) * 0.7,
        alpha=trace.get("opacity", 1.0),
        capsize=2,
    )


def _draw_map(figure: Any, axes: Any, trace: Plot) -> None:
    grid = [[float("nan") if v is None else v for v in row] for row in trace["z"]]
    image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    x, y = (list(enumerate(trace[axis]))[:: 1 + len(trace[axis]) // _NAMED] for axis in ("x", "y"))
    axes.set_xticks([i for i, _ in x], [name for _, name in x], fontsize=8, rotation=30, ha="right")
    axes.set_yticks([i for i, _ in y], [name for _, name in y], fontsize=8)
    figure.colorbar(image, ax=axes, label="sparsity, %")


def _title(axis: Plot) -> str:
    return (axis.get("title") or {}).get("text", "")
