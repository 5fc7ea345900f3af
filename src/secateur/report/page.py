"""The report: one HTML file that opens from disk, with no network."""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from secateur.report.aggregate import Figure, Group, all_groups, is_number, percent, references_of, table_of
from secateur.report.checklist import Point, checklist
from secateur.report.deployed import Deployment, deployment_lines, deployment_table, deployments_of
from secateur.report.drawing import with_texts
from secateur.report.figures import describe_point, match, plots_of
from secateur.report.pareto import Front, front_table, fronts_of
from secateur.report.worst_class import worst_class_table
from secateur.storage import replacing
from secateur.text import printable

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; }
body { margin: 0 auto; max-width: 1080px; padding: 0 16px 48px; }
h1 { font-size: 1.5rem; margin: 1.4rem 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.source { color: #5a6675; margin: .1rem 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; white-space: nowrap; }
table { font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e8ee; }
th { border-bottom: 2px solid #9aa4b0; } th:first-child, td:first-child { text-align: left; }
tr:hover td { background: #f6f8fb; } .plot { width: 100%; min-height: 260px; }
pre { background: #f6f8fb; padding: .8rem; overflow-x: auto; font-size: .8rem; }
table.checklist { white-space: normal; } table.checklist td, table.checklist th { text-align: left; }
.note { color: #8a5a00; } .quoted { color: #777; }
"""

_SCRIPT = """
const figures = JSON.parse(document.getElementById('figures').textContent);
for (const [id, figure] of Object.entries(figures)) {
  const narrow = window.innerWidth < 600;
  if (narrow && figure.layout.legend) figure.layout.legend.font = {size: 9};
  Plotly.newPlot(id, figure.data, figure.layout, {responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ['select2d', 'lasso2d'], displayModeBar: !narrow});
}
"""


def write_page(studies: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the page of one or several studies' results (as in ``results.json``) to ``path``."""
    with replacing(path) as temporary:
        temporary.write_text(page(studies), encoding="utf-8")
    return path


def page(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return the page's HTML; everything that a user named is escaped."""
    groups = all_groups(studies)
    reference = references_of(studies)
    plots = plots_of(groups, reference)
    figures = {f"plot{index}": plot for index, plot in enumerate(plots.values())}
    title = " + ".join(str(study["recipe"]) for study in studies)
    parts = [f"<h1>{_text(title)}</h1>"]
    for study in studies:
        parts += [f"<p>{_text(study.get('description', ''))}</p>"]
        parts += [f"<p class=source>Source: {_text(study['source'])}</p>"] if study.get("source") else []
    parts.append(_section("Results", _note_on_figures(groups) + _table(*table_of(groups))))
    fronts = fronts_of(groups)
    for name, plot_id in zip(plots, figures, strict=True):
        parts.append(_section(name, f'<div class=plot id="{plot_id}"></div>'))
        if name == next(reversed(fronts), None):
            parts.append(_note_on_fronts(fronts) + _table(*front_table(fronts)))
    header, rows = worst_class_table(groups)
    if rows:
        parts.append(_section("The class that lost most", _table(header, rows)))
    costs = _costs(groups)
    if costs:
        parts.append(_section("Time and memory beside the dense network", costs))
    deployments = deployments_of(studies)
    if deployments:
        parts.append(_section("Deployment", "\n".join(map(_deployed, deployments, deployments.values()))))
    if reference:
        parts.append(_section("Beside the quoted figures", _reference_table(groups, reference)))
    parts += _notes(studies)
    parts.append(_section("Twenty points of an honest report", _checklist(checklist(studies, groups))))
    for study in studies:
        rows = [[str(key), str(value)] for key, value in study["environment"].items()]
        parts.append(_section(f"Environment of {study['recipe']}", _table(["what", "value"], rows)))
        settings = "".join(f"\n# --set {k}={v}" for k, v in study.get("settings", {}).items())
        recipe = _text(study.get("text", "") + settings)
        parts.append(_section(f"Recipe {study['recipe']}", f"<pre>{recipe}</pre>"))
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<link rel=icon href='data:,'>"
        f"<title>{_text(title)} - secateur</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script type='application/json' id=figures>{_json(figures)}</script>"
        + f"\n<script>{_plotly()}</script>\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )


@functools.cache
def _plotly() -> str:
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _note_on_figures(groups: Sequence[Group]) -> str:
    seeds = {len(group.trials) for group in groups} or {0}
    number = str(min(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return (
        f"<p>Accuracies are of the test set, read once a trial after every choice, in percent: mean ± "
        f"standard deviation over {number} seeds. Sparsity and compression have the dense network as "
        "denominator; compression = all its parameters / non-zero parameters left.</p>"
    )


def _note_on_fronts(fronts: Mapping[str, Front]) -> str:
    names = {front.axis.name for front in fronts.values()}
    lines = [
        "Points are means over seeds of test accuracy; those joined are the front, which no other point "
        "beats, and the paler ones are beaten."
    ]
    if any(front.knee for front in fronts.values()):
        lines.append(
            "The knee is the front's point farthest beyond the straight line between its two ends, both axes "
            "scaled to 0..1: past it, saving more costs more accuracy."
        )
    if "MACs" in names:
        lines.append("MACs are the multiply-adds of the network left: zeros alone do not lower them.")
    if "latency" in names:
        lines.append(
            "Latency is measured, batch of one, beside the dense network's in the same trial; the figure is "
            "the mean of the trials' own ratios."
        )
    lines += [
        f"{title}: points without a figure, not shown: {front.missing}."
        for title, front in fronts.items()
        if front.missing
    ]
    lines.append(
        "All this is seen on the test set; to choose a network, secateur choose reads validation alone."
    )
    return f"<p>{_text(' '.join(lines))}</p>"


def _costs(groups: Sequence[Group]) -> str:
    """The table of what one inference takes, of the networks that are really smaller."""
    rows: list[list[str]] = []
    for group in groups:
        macs, dense = group.figure("macs"), group.figure("macs_dense")
        if macs is None or dense is None or macs.mean >= dense.mean:
            continue
        row = [group.label, f"{dense.mean:,.0f}", f"{macs.mean:,.0f}"]
        for what, unit in (("latency", "ms"), ("peak_memory", "mb"), ("average_memory", "mb")):
            name, whole = f"{what}_{unit}", f"{what}_dense_{unit}"
            figures = group.figure(whole), group.figure(name), group.figure(name, whole)
            row += [f"{figure.mean:.2f}" if figure else "" for figure in figures]
        rows.append(row)
    if not any(cell for row in rows for cell in row[3:]):
        return ""
    header = ["", "MACs, dense", "pruned", "ms, dense", "pruned", "ratio"]
    header += ["peak MB, dense", "pruned", "ratio", "average MB, dense", "pruned", "ratio"]
    return (
        "<p>One example, one inference: the median time, both networks in turn, and the memory of weights "
        "and activations, at its peak and on average over that time. Means over seeds; the ratios are the "
        "trials' own.</p>" + _table(header, rows)
    )


def _deployed(label: str, deployment: Deployment) -> str:
    below = "".join(f"<p class=source>{_text(line)}</p>" for line in deployment_lines(deployment))
    return f"<p>{_text(label)}</p>" + _table(*deployment_table(deployment)) + below


def _reference_table(groups: Sequence[Group], reference: Sequence[Mapping[str, Any]]) -> str:
    header = ["setting", "figure", "quoted", "ours", "difference"]
    rows: list[list[str]] = []
    for entry in reference:
        group = match(groups, entry)
        for metric, quoted in entry.items():
            if "." in metric or not is_number(quoted) or group is None:
                continue
            ours = group.figure(metric)
            if ours is not None:
                label = describe_point(entry) or group.label
                rows.append([label, metric.replace("_", " "), *_compared(metric, float(quoted), ours)])
    return "<p class=quoted>Quoted figures are the source's own, as printed there.</p>" + _table(header, rows)


def _compared(metric: str, quoted: float, ours: Figure) -> list[str]:
    if metric.startswith(("accuracy", "sparsity")):
        return [f"{100 * quoted:.2f}", percent(ours), f"{100 * (ours.mean - quoted):+.2f}"]
    return [f"{quoted:g}", f"{ours.mean:.2f}", f"{ours.mean - quoted:+.2f}"]


def _notes(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = dict.fromkeys(n for s in studies for t in s["trials"] for n in t.get("notes", []))
    if not notes:
        return []
    items = "".join(f"<li class=note>{_text(note)}</li>" for note in notes)
    return [_section("Emptied, skipped and protected layers", f"<ul>{items}</ul>")]


def _checklist(points: Sequence[Point]) -> str:
    words = {True: "kept", False: "not kept", None: "does not apply"}
    rows = [[str(p.number), p.asks, words[p.kept], p.why] for p in points]
    kept = sum(p.kept is True for p in points)
    apply = sum(p.kept is not None for p in points)
    intro = f"<p>{kept} of the {apply} that apply are kept, computed from the data.</p>"
    return intro + _table(["", "asks for", "", "seen"], rows, "checklist")


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>\n{body}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table class={kind}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f"<div class=wide>{table}</div>"


def _text(value: Any) -> str:
    return html.escape(printable(str(value), keep="\n\t"))


def _json(value: Any) -> str:
    """JSON that cannot end its script element, with names safe in plotly's own small HTML."""
    return json.dumps(with_texts(value, _name), allow_nan=False).replace("</", "<\\/")


def _name(text: str) -> str:
    return html.escape(printable(text), quote=False).replace("&lt;br&gt;", "<br>")
