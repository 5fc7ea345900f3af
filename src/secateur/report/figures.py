"""The pictures of a report, as plain plotly figures: {"data": [...], "layout": {...}}."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.aggregate import (
    Figure,
    Group,
    check_one_score,
    columns_unit,
    figure_of,
    is_number,
    scored,
    series_of,
    settings_text,
)
from secateur.report.drawing import QUOTED, Plot, add_dense, axes_of, coloured, line_of, marks_of, means_of
from secateur.report.pareto import Front, Spot, fronts_of
from secateur.report.smaller import smaller_plot
from secateur.task.base import Scale

_JOINED = "lines+markers"
_SCALES = {"sparsity": 100}
_AXES = {
    "sparsity": "sparsity, %",
    "compression_rate": "compression rate, log scale",
    "compression_packed": "bytes of the dense network / bytes of the file, log scale",
}


def plots_of(groups: Sequence[Group], reference: Sequence[Mapping[str, Any]]) -> dict[str, Plot]:
    """Return the figures that the groups can fill, by title."""
    name = check_one_score(groups).name
    score = name[:1].upper() + name[1:]
    plots = {
        "Really smaller, beside the dense network": smaller_plot(groups),
        f"{score} against sparsity": score_plot(groups, reference, "sparsity"),
        f"{score} against compression rate": score_plot(groups, reference, "compression_rate"),
        f"{score} against file size": score_plot(groups, reference, "compression_packed"),
        **{title: pareto_plot(front, groups) for title, front in fronts_of(groups).items()},
        "Parameters and non-zeros": counts_plot(groups),
        "Sparsity by layer": layers_plot(groups),
        f"{score} against alpha": alpha_plot(groups),
        "Training curves": curves_plot(groups),
    }
    return {title: plot for title, plot in plots.items() if plot is not None}


def score_plot(groups: Sequence[Group], reference: Sequence[Mapping[str, Any]], against: str) -> Plot | None:
    """Test score before and after retraining against sparsity or compression, error bars over seeds, the
    dense network's as a line, quoted figures as crosses. Against the size of a file, the score of the
    network that it holds alone."""
    traces: list[Plot] = []
    for colour, (name, members) in coloured(series_of(groups).items()):
        for metric, dash in (("score_retrained", "solid"), ("score_pruned", "dot")):
            words = "retrained" if dash == "solid" else "pruned"
            shown = [g for g in members if against != "compression_packed" or g.final == metric]
            traces += _curve(shown, against, metric, f"{name}, {words}", colour, dash)
    if not traces and against == "compression_packed":
        return None
    traces += _quoted(groups, reference, against)
    if not traces or not any(group.figure("score_dense") for group in groups):
        return None
    layout = axes_of(_AXES[against], f"test {check_one_score(groups).title}")
    if against != "sparsity":
        layout["xaxis"]["type"] = "log"
    add_dense(layout, groups)
    return {"data": traces, "layout": layout}


def _curve(
    members: Sequence[Group], against: str, metric: str, name: str, colour: str, dash: str
) -> list[Plot]:
    points = _along(members, against, metric)
    if not points:
        return []
    scale = points[0][1].scale
    ys = [y for _, _, y in points]
    trace = means_of(name, [x for x, _, _ in points], ys, scale.factor, mode=_JOINED)
    texts = [f"{g.label}<br>{_shown(y, scale)} (n = {y.number})" for _, g, y in points]
    line = {"color": colour, "dash": dash, "width": 2 if dash == "solid" else 1.5}
    return [trace | {"text": texts, "hoverinfo": "text", "line": line, "marker": {"size": 6}}]


def _shown(figure: Figure, scale: Scale) -> str:
    return scored(figure, scale) + columns_unit(scale)


def counts_plot(groups: Sequence[Group]) -> Plot | None:
    """Parameters and non-zeros left against sparsity: zeros alone leave the parameters as many."""
    traces: list[Plot] = []
    for colour, (name, members) in coloured(series_of(groups).items()):
        points = _along(members, "sparsity", "nonzero", "parameters")
        if points:
            xs, _, nonzero, parameters = zip(*points, strict=True)
            traces.append(_count_line(f"{name}, non-zero", xs, nonzero, colour, "solid"))
            traces.append(_count_line(f"{name}, parameters", xs, parameters, colour, "dot"))
    return {"data": traces, "layout": axes_of("sparsity, %", "count")} if traces else None


def _count_line(name: str, xs: Sequence[float], counts: Sequence[Figure], colour: str, dash: str) -> Plot:
    line = {"color": colour, "dash": dash, "width": 1.5}
    return means_of(name, xs, counts, 1, mode=_JOINED) | {"line": line, "marker": {"size": 5}}


def _along(members: Sequence[Group], against: str, *metrics: str) -> list[tuple[Any, ...]]:
    """The groups that have all these figures, along the axis: (place, group, figure of each metric)."""
    scale = _SCALES.get(against, 1)
    found = [(group, [group.figure(metric) for metric in (against, *metrics)]) for group in members]
    points = [(scale * x.mean, group, *ys) for group, (x, *ys) in found if x and all(ys)]
    return sorted(points, key=lambda point: point[0])


def _quoted(groups: Sequence[Group], reference: Sequence[Mapping[str, Any]], against: str) -> list[Plot]:
    """Quoted figures, where their point is one of ours (its sparsity is then ours)."""
    scale = _SCALES.get(against, 1)
    traces: list[Plot] = []
    factor = check_one_score(groups).factor
    for metric, symbol in (("score_retrained", "x"), ("score_pruned", "x-open")):
        points: list[tuple[float, float, str]] = []
        for entry in reference:
            group = match(groups, entry)
            x = group.figure(against) if group else None
            given: Any = entry.get(against)
            value = float(given) if is_number(given) else x.mean if x else None
            if is_number(entry.get(metric)) and value is not None:
                y = factor * entry[metric]
                said = check_one_score(groups).text(entry[metric])
                points.append((scale * value, y, f"quoted: {describe_point(entry)}, {said}"))
        if points:
            xs, ys, texts = map(list, zip(*points, strict=True))
            marker = {"symbol": symbol, "size": 9, "color": QUOTED}
            traces.append(marks_of(f"quoted, {metric.removeprefix('score_')}", xs, ys, texts, marker))
    return traces


def match(groups: Sequence[Group], entry: Mapping[str, Any]) -> Group | None:
    """Return our group at a quoted entry's point: every dotted key (and ``method``) equal."""
    wanted = {key: value for key, value in entry.items() if "." in key}
    for group in groups:
        if entry.get("method", group.method) != group.method:
            continue
        if not group.study.startswith(entry.get("study", "")):
            continue
        if wanted and all(_equal(group.point.get(key), value) for key, value in wanted.items()):
            return group
    return None


def _equal(mine: Any, quoted: Any) -> bool:
    if is_number(mine) and is_number(quoted):
        return abs(mine - quoted) <= 1e-9 * max(1.0, abs(quoted))
    return mine == quoted


def describe_point(entry: Mapping[str, Any]) -> str:
    return settings_text({key: value for key, value in entry.items() if "." in key})


def pareto_plot(front: Front, groups: Sequence[Group]) -> Plot:
    """Seed means of every point, a colour a curve of ``groups``, those on the front joined by the best
    that is had at each place, the dominated ones paler, the dense network's score as a line, and
    the knee in a circle."""
    step = "vh" if front.axis.larger_is_better else "hv"
    joined = line_of(
        "front",
        [spot.x for spot in front.best],
        [s.group.scale.factor * s.y.mean for s in front.best],
        "#444444",
    )
    traces = [joined | {"line": {"color": "#444444", "width": 1, "shape": step}, "hoverinfo": "skip"}]
    best = {id(spot.group) for spot in front.best}
    spot_of = {id(spot.group): spot for spot in front.spots}
    for colour, (name, members) in coloured(series_of(groups).items()):
        spots = [spot_of[id(group)] for group in members if id(group) in spot_of]
        marker = {"size": 8, "color": colour}
        on_front = [spot for spot in spots if id(spot.group) in best]
        dominated = [spot for spot in spots if id(spot.group) not in best]
        traces += [_spots(name, front, on_front, marker)] if on_front else []
        if dominated:
            paler = {"opacity": 0.35, "showlegend": not on_front}
            traces.append(_spots(name, front, dominated, marker) | paler)
    if front.knee is not None:
        ring = {"symbol": "circle-open", "size": 17, "color": "#b8324f"}
        knee = _spots(f"knee: {front.knee.group.label}", front, [front.knee], ring)
        traces.append(knee | {"error_y": {}})
    layout = axes_of(front.axis.title, f"test {check_one_score(groups).title}")
    add_dense(layout, [spot.group for spot in front.spots])
    return {"data": traces, "layout": layout}


def _spots(name: str, front: Front, spots: Sequence[Spot], marker: Plot) -> Plot:
    axis = front.axis
    texts = [
        f"{s.group.label}<br>{_shown(s.y, s.group.scale)} (n = {s.y.number}), "
        f"{axis.column} {axis.text(s.group)}"
        for s in spots
    ]
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    trace = means_of(name, xs, ys, spots[0].group.scale.factor, mode="markers")
    return trace | {"legendgroup": name, "text": texts, "hoverinfo": "text", "marker": marker}


def layers_plot(groups: Sequence[Group]) -> Plot | None:
    """The sparsity of each layer at each point, first seed, as a map."""
    shown = [group for group in groups if group.trials[0].get("layers")]
    if not shown:
        return None
    rows = [{row["name"]: 100 * row["sparsity"] for row in g.trials[0]["layers"]} for g in shown]
    names = list(dict.fromkeys(name for row in rows for name in row))
    layout = axes_of("", "")
    layout["height"] = 160 + 22 * len(shown)
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "type": "category", "title": None}
    layout["xaxis"] |= {"automargin": True, "type": "category", "title": None}
    trace = {
        "type": "heatmap",
        "x": names,
        "y": [group.label for group in shown],
        "z": [[row.get(name) for name in names] for row in rows],
        "zmin": 0,
        "zmax": 100,
        "colorscale": [[0, "#f3f6fa"], [0.5, "#8fb4d9"], [1, "#123a63"]],
        "texttemplate": "%{z:.1f}" if len(names) <= 8 else "",
        "colorbar": {"title": {"text": "%"}, "thickness": 12},
    }
    return {"data": [trace], "layout": layout}


def curves_plot(groups: Sequence[Group]) -> Plot | None:
    """Validation score by epoch: the dense training, and each point's retraining after it."""
    traces: list[Plot] = []
    scale = check_one_score(groups)
    dense = _mean_curve([t["curves"].get("dense", []) for g in groups for t in g.trials], scale)
    if dense:
        traces.append(line_of("dense", range(1, len(dense) + 1), dense, "#444444"))
    for colour, group in coloured(groups):
        rows = [
            [row for step, part in trial["curves"].items() if step != "dense" for row in part]
            for trial in group.trials
        ]
        curve = _mean_curve(rows, scale)
        if curve:
            start = len(dense) + 1
            traces.append(line_of(group.label, range(start, start + len(curve)), curve, colour))
    layout = axes_of("epoch, retraining after the dense training", f"validation {scale.title}")
    return {"data": traces, "layout": layout} if traces else None


def alpha_plot(groups: Sequence[Group]) -> Plot | None:
    """Validation score at each alpha of an annealing: from 1 on the left, where the network is the
    dense one, over a log scale to 0 on the right. Where the seeds' alphas differ, a line for each."""
    lines: dict[tuple[str, str], dict[float, list[float]]] = {}
    scale = check_one_score(groups)
    for group in groups:
        runs = [(trial["seed"], run) for trial in group.trials if (run := _by_alpha(trial))]
        same = len({tuple(run) for _, run in runs}) == 1
        for seed, run in runs:
            name = group.label if same else f"{group.label}, seed {seed}"
            for alpha, score in run.items():
                lines.setdefault((group.study, name), {}).setdefault(alpha, []).append(scale.oriented(score))
    if not lines:
        return None
    least = min((alpha for line in lines.values() for alpha in line if alpha > 0), default=1.0)
    end = 0.3 - math.log10(least)  # where 0 stands
    traces: list[Plot] = []
    for colour, ((_, name), line) in coloured(lines.items()):
        xs = [-math.log10(alpha) if alpha > 0 else end for alpha in line]
        figures = [figure for figure in map(figure_of, line.values()) if figure]
        texts = [f"{name}<br>alpha {a:g}: {_shown(f, scale)}" for a, f in zip(line, figures, strict=True)]
        more = {"text": texts, "hoverinfo": "text", "line": {"color": colour, "width": 1.5}}
        traces.append(means_of(name, xs, figures, scale.factor, mode=_JOINED) | more)
    layout = axes_of("alpha, log scale and 0", f"validation {scale.title}")
    marks = [m for e in range(9) for m in (10.0**-e, 0.5 * 10.0**-e, 0.2 * 10.0**-e) if m >= least]
    ticks = {-math.log10(mark): f"{mark:g}" for mark in marks} | {end: "0"}
    layout["xaxis"] |= {"tickvals": [*ticks], "ticktext": [*ticks.values()]}
    return {"data": traces, "layout": layout}


def _by_alpha(trial: Mapping[str, Any]) -> dict[float, float]:
    """The score that went on from each alpha of a trial's last annealing, larger being better."""
    steps = [*trial.get("stages", {}).values()]
    rows = steps[-1] if steps else []
    return {row["alpha"]: row["score"] for row in rows if row["kept"] and row["score"] is not None}


def _mean_curve(rows: Sequence[Sequence[Mapping[str, Any]]], scale: Scale) -> list[float]:
    longest = max((len(curve) for curve in rows), default=0)
    return [
        scale.factor * statistics.fmean(curve[i]["validation_score"] for curve in rows if len(curve) > i)
        for i in range(longest)
    ]
