"""The figures of the documentation, from results: kept small in docs/results, and never written by hand.

secateur run NAME                  # trains and measures, into runs/NAME
python docs/results.py runs/NAME   # keeps what the pages need of it, in docs/results/NAME
python docs/results.py NAME=runs/A,runs/B  # the same of studies that each ran some methods of the recipe NAME
python docs/results.py             # writes the tables, the pictures and the page of all quoted figures

A kept folder is a study's like any other: ``secateur report docs/results/NAME`` draws its page.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
import sources

from secateur.experiments.recipe import packaged_recipes
from secateur.experiments.results import read_results
from secateur.report.aggregate import Figure, Group, all_groups, scored, value_text
from secateur.report.figures import match
from secateur.report.pictures import write_pictures

DOCS = Path(__file__).parent
KEPT = DOCS / "results"
PAGES = [DOCS / "recipes.md"]
PICTURES = {  # the picture of a page: the studies of the report, and which of its plots
    "std": (["std"], "Accuracy against compression rate"),
    "percentile": (["percentile"], "Accuracy against compression rate"),
    "gradual": (["gradual"], "Accuracy against compression rate"),
    "deep_compression": (["deep_compression"], "Accuracy against file size"),
    "neuron_pruning": (["neuron_pruning"], "Accuracy against sparsity"),
    "neuron_over_weight": (["neuron_pruning", "weight_pruning"], "Accuracy against sparsity"),
    "branch_annealing": (["branch_annealing"], "Accuracy against alpha"),
    "larger_model": (["larger_model"], "Accuracy against compression rate"),
}
METRICS = {  # what a table may show: its title, and how a figure is written
    "sparsity": ("sparsity", lambda f: f"{100 * f.mean:.2f} %"),
    "compression": ("compression", lambda f: f"{f.mean:.2f}x"),
    "dense": ("dense", scored),
    "pruned": ("pruned", scored),
    "retrained": ("retrained", scored),
    "validation": ("validation", scored),
    "score": ("score", lambda f: _spread(f"{f.mean:.3f}", f"{f.std:.3f}", f)),
    "error": ("error", lambda f: _spread(f"{100 * (1 - f.mean):.2f}", f"{100 * f.std:.2f}", f)),
    "parameters": ("parameters", lambda f: f"{f.mean:,.0f}"),
    "nonzero": ("non-zero", lambda f: f"{f.mean:,.0f}"),
    "bytes": ("bytes", lambda f: f"{f.mean:,.0f}"),
    "packed": ("dense / file", lambda f: f"{f.mean:.1f}x"),
    "macs": ("multiply-adds left", lambda f: f"{100 * f.mean:.0f} %"),
    "latency": ("latency", lambda f: f"{100 * f.mean:.0f} %"),
    "memory": ("peak memory", lambda f: f"{100 * f.mean:.0f} %"),
    "average": ("average memory", lambda f: f"{100 * f.mean:.0f} %"),
    "seeds": ("seeds", lambda f: str(f.number)),
}
_PLACES = {
    "compression": "compression_rate",
    "bytes": "bytes_packed",
    "packed": "compression_packed",
    "parameters": "parameters",
    "nonzero": "nonzero",
    "sparsity": "sparsity",
    "dense": "score_dense",
    "pruned": "score_pruned",
    "retrained": "score_retrained",
}
_NEEDED = ("point", "seed", "epochs", "classes")  # of a trial, empty or not
_OVER = {
    "macs_effective": "macs_dense",
    "latency_ms": "latency_dense_ms",
    "peak_memory_mb": "peak_memory_dense_mb",
    "average_memory_mb": "average_memory_dense_mb",
}
_TABLE = re.compile(r"<!-- table ([^>]*?) -->\n.*?<!-- end -->", re.DOTALL)


def _spread(mean: str, deviation: str, shown: Figure) -> str:
    return f"{mean} ± {deviation}" if shown.number > 1 else mean


def keep(what: str) -> Path:
    """Keep the figures of a study's trials in docs/results, without curves and layers; return where."""
    name, _, folders = what.rpartition("=")
    parts = [read_results(Path(folder)) for folder in folders.split(",")]
    results = parts[0] | {"trials": [trial for part in parts for trial in part["trials"]]}
    if name:
        text = packaged_recipes()[name].read_text(encoding="utf-8")
        results |= {"recipe": name, "text": text, "description": yaml.safe_load(text)["description"]}
    usual = {"layers": [], "curves": {}, "seconds": {}}
    rows = []
    for trial in results["trials"]:
        config = trial["config"]
        short = {"data": config["data"], "model": config["model"], "steps": config["steps"][:1]}
        metrics = {name: _short(value) for name, value in trial["metrics"].items() if value is not None}
        own = {name: part for name, part in trial.items() if part or name in _NEEDED}
        rows.append(own | usual | {"config": short, "metrics": metrics})
    head = {key: value for key, value in results.items() if key != "trials"}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path = KEPT / results["recipe"] / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{json.dumps(head)[:-1]},\n"trials": [\n{lines}\n]}}\n', encoding="utf-8")
    read_results(path.parent)
    return path


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def studies() -> dict[str, dict[str, Any]]:
    """Return the studies kept, by name, with the quoted figures as the recipes give them today."""
    found = {path.parent.name: read_results(path.parent) for path in sorted(KEPT.glob("*/results.json"))}
    for name, study in found.items():
        if name in packaged_recipes():
            recipe = yaml.safe_load(packaged_recipes()[name].read_text(encoding="utf-8"))
            study["reference"] = recipe.get("reference", [])
            study["source"] = recipe["source"]
    return found


def figure(group: Group, column: str) -> Figure | None:
    """Return what a column shows of a point."""
    final = group.final
    if column == "score":
        return sources.figure(group, f"balance_{final.removeprefix('score_')}")
    if column == "seeds":
        return group.figure("score_dense")
    place = {
        "validation": f"{final}_validation",
        "error": final,
        "latency": "latency_ms",
        "macs": "macs_effective",
    }
    place |= {"memory": "peak_memory_mb", "average": "average_memory_mb"} | _PLACES
    return group.figure(place[column], _OVER.get(place[column]))


def table(words: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table that a page asks for: ``STUDY | COLUMN | ...``.

    A column is a metric, a key of the sweep (``prune.budget.sparsity``), ``method``, or ``quoted METRIC``;
    ``STUDY: METHOD`` shows one method alone.
    """
    name, *columns = (word.strip() for word in words.split("|"))
    name, _, method = name.partition(":")
    if name not in found:
        command = f"secateur run {name} && python docs/results.py runs/{name}"
        return f"Not run yet here: `{command}`.\n"
    groups = [g for g in all_groups([found[name]]) if not method or g.method == method.strip()]
    reference = [{"study": name, **entry} for entry in found[name]["reference"]]
    titles = [_title(column) for column in columns]
    rows = [[_cell(group, column, groups, reference) for column in columns] for group in groups]
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _title(column: str) -> str:
    if column.startswith("quoted "):
        return "quoted"
    return METRICS[column][0] if column in METRICS else column.rpartition(".")[2]


def _cell(group: Group, column: str, groups: Sequence[Group], reference: Iterable[Mapping[str, Any]]) -> str:
    if column.startswith("quoted "):
        metric = f"accuracy_{column.removeprefix('quoted ')}"
        told = [e[metric] for e in reference if metric in e and match(groups, e) is group]
        return ", ".join(f"{100 * value:.2f}" for value in told)
    if column == "method":
        return group.method
    if column in METRICS:
        shown = figure(group, column)
        write = METRICS[column][1]
        if shown is None:
            return ""
        return scored(shown, group.scale) if write is scored else write(shown)
    return value_text(group.point[column]) if column in group.point else ""


def with_tables(text: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page with every table that it asks for written anew."""
    return _TABLE.sub(lambda m: f"<!-- table {m[1]} -->\n\n{table(m[1], found)}\n<!-- end -->", text)


def draw(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the pictures of the pages whose studies are all kept."""
    for picture, (names, title) in PICTURES.items():
        if all(name in found for name in names):
            with tempfile.TemporaryDirectory() as folder:
                drawn = write_pictures([found[name] for name in names], Path(folder), "png")
                wanted = re.sub(r"[^a-z0-9]+", "-", title.lower())
                chosen = next((path for path in drawn if wanted in path.stem), None)
                if chosen is None:
                    raise SystemExit(f"{picture}: no plot {title!r} among {[path.stem for path in drawn]}")
                shutil.copy(chosen, DOCS / "images" / f"{picture}.png")


def main(folders: Sequence[str]) -> None:
    for folder in folders:
        print(keep(folder))
    found = studies()
    for path in PAGES:
        path.write_text(with_tables(path.read_text(encoding="utf-8"), found), encoding="utf-8")
    (DOCS / "sources.md").write_text(sources.page(found), encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    main(sys.argv[1:])
