"""Networks that are really smaller beside the dense ones they came from: a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.aggregate import Figure, Group, dense_parameters, figure_of, scored
from secateur.report.drawing import Plot, axes_of, coloured

_SHOWN = 6  # networks in one figure; the Pareto fronts show more of them
_DENSE = "#9aa4b0"


def smaller_of(groups: Sequence[Group]) -> list[Group]:
    """Return the points whose networks have fewer parameters than the dense ones, whatever their zeros."""
    return [group for group in groups if all(map(_is_smaller, group.trials))]


def smaller_table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): each really smaller network's figures after the dense network's."""
    shown = smaller_of(groups)
    header = ["dense → pruned", "parameters", "multiply-adds", "one example, ms"]
    header += [f"test {group.scale.title}" for group in shown[:1]]
    return header, [
        [
            group.label,
            _fewer(*_parameters(group), "smaller"),
            _fewer(group.figure("macs_dense"), group.figure("macs"), "fewer"),
            _fewer(group.figure("latency_dense_ms"), group.figure("latency_ms"), "faster"),
            " → ".join(scored(group.figure(metric), group.scale) for metric in ("score_dense", group.final)),
        ]
        for group in shown
    ]


def smaller_plot(groups: Sequence[Group]) -> Plot | None:
    """Bars of size, multiply-adds, measured latency and the test score, dense and pruned, in percent: of the
    dense network's, and a score in percent as it is. None where no network is smaller, or many are."""
    shown = smaller_of(groups)
    if not 1 <= len(shown) <= _SHOWN:
        return None
    traces: list[Plot] = []
    for colour, group in coloured(shown):
        name = f"dense, of {group.label}" if len(shown) > 1 else "dense"
        dense, pruned = zip(*_pairs(group), strict=True)
        traces += [_bars(name, _DENSE, dense), _bars(group.label, colour, pruned)]
    share = ", and the score itself" if shown[0].scale.unit == "%" else ""
    layout = axes_of(f"% of the dense network's{share}", "")
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "title": None}
    layout["xaxis"] |= {"range": [0, 120], "tickvals": [0, 20, 40, 60, 80, 100]}  # figures end beside 100
    layout["margin"] |= {"t": 36}  # the page's buttons stand above the first bar
    return {"data": traces, "layout": layout | {"barmode": "group", "height": 200 + 110 * len(shown)}}


def _pairs(group: Group) -> list[tuple[tuple[str, float, str], tuple[str, float, str]]]:
    """Return for each quantity (its name, the length of the bar, the figure beside it), dense and pruned."""
    pairs: list[tuple[tuple[str, float, str], tuple[str, float, str]]] = []
    for name, (dense, pruned), form in (
        ("parameters", _parameters(group), "{:,.0f}"),
        ("multiply-adds", (group.figure("macs_dense"), group.figure("macs")), "{:,.0f}"),
        ("latency", (group.figure("latency_dense_ms"), group.figure("latency_ms")), "{:.3g} ms"),
    ):
        if dense and pruned and dense.mean and pruned.mean:
            share = pruned.mean / dense.mean
            left = f"{form.format(pruned.mean)} ({1 / share:.2f}x less)"
            pairs.append(((name, 100.0, form.format(dense.mean)), (name, 100 * share, left)))
    scale, dense, pruned = group.scale, group.figure("score_dense"), group.figure(group.final)
    whole = 1.0 if dense is None or scale.unit == "%" else dense.mean
    if dense and pruned and whole > 0:
        unit = f" {scale.unit}".rstrip()
        before, after = (
            (f"test {scale.name}", 100 * each.mean / whole, scored(each, scale) + unit)
            for each in (dense, pruned)
        )
        pairs.append((before, after))
    return pairs


def _bars(name: str, colour: str, bars: Sequence[tuple[str, float, str]]) -> Plot:
    names, lengths, texts = map(list, zip(*bars, strict=True))
    own = {"text": texts, "textposition": "outside", "cliponaxis": False, "hoverinfo": "text"}
    plain = {"type": "bar", "orientation": "h", "name": name, "x": lengths, "y": names}
    return plain | own | {"marker": {"color": colour}}


def _parameters(group: Group) -> tuple[Figure | None, Figure | None]:
    dense = figure_of(dense_parameters(trial["metrics"]) for trial in group.trials)
    return dense, group.figure("parameters")


def _is_smaller(trial: Mapping[str, Any]) -> bool:
    dense, left = dense_parameters(trial["metrics"]), trial["metrics"].get("parameters")
    return dense is not None and left is not None and left < dense


def _fewer(dense: Figure | None, pruned: Figure | None, word: str) -> str:
    if dense is None or pruned is None or not pruned.mean:
        return ""
    form = "{:,.0f}" if dense.mean >= 1000 else "{:.3g}"
    return f"{form.format(dense.mean)} → {form.format(pruned.mean)} ({dense.mean / pruned.mean:.2f}x {word})"
