"""What ``secateur deploy`` measured of a trial, as a table and the lines below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from secateur.experiments.schema import scale_of
from secateur.report.aggregate import Group, columns_unit, names_of
from secateur.task.base import ACCURACY

Deployment = Mapping[str, Any]
_HEADER = (
    "format",
    "bytes",
    "load, ms",
    "batch 1, ms",
    "batch 64, ms",
    "memory, MB",
    "beyond imports, batch 1",
    "batch 64",
)
_AGREEMENT = ("same first choice", "outputs differ by, %")
_WHAT = (
    "Bytes are of the network's file alone. Load: from the file (in the system's cache) to a network ready "
    "to run, once in a new process, imports not counted; PyTorch builds the network at its full size and "
    "fills it.",
    "Latency: median, and first to third quartile, of all formats timed in turn in one process, on one "
    "thread.",
    "Memory: the most that a process of the format's own has resident while it runs, with all it imports; "
    "beside it what loading and running add to the imports: weights, activations, and code read at the "
    "first run.",
)


def deployments_of(studies: Sequence[Mapping[str, Any]]) -> dict[str, Deployment]:
    """Return what was measured of the studies' trials, by the trial's label, in the studies' order."""
    several = len(studies) > 1
    return {
        f"{f'{name}: ' if several else ''}{deployment_label(trial)}": trial["deployment"]
        for study, name in zip(studies, names_of(studies), strict=True)
        for trial in study["trials"]
        if "deployment" in trial
    }


def deployment_label(trial: Mapping[str, Any]) -> str:
    """Return "method: setting value, seed 0" of a row or of a deployment's own trial."""
    label = Group("", trial["method"], trial["point"], ACCURACY, ()).label
    return f"{label}, seed {trial['seed']}"


def deployed_label(deployment: Deployment) -> str:
    """Return what was deployed: a trial's label, or the name of a file or folder."""
    return deployment_label(deployment["trial"]) if "trial" in deployment else deployment["source"]


def deployment_table(deployment: Deployment) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows): a row a format, its figures empty where it could not be made, and no column for
    what no format has."""
    scale, test = scale_of(deployment), deployment["test"]
    made = [row for row in deployment["formats"] if row["reason"] is None]
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        (f"{scale.name}{columns_unit(scale)}", lambda row: _text(row, "score", scale.number)),
        (_AGREEMENT[0], lambda row: _text(row, "same", lambda same: f"{same:,} of {test:,}")),
        (_AGREEMENT[1], lambda row: _text(row, "error", lambda error: f"{100 * error:.2g}")),
    ]
    columns = [(name, of) for name, of in columns if any(of(row) for row in made)]
    header = [*_HEADER, *(name for name, _ in columns)]
    rows = [
        [*_costs(row), *(of(row) for _, of in columns)]
        if row["reason"] is None
        else [row["name"], "not made", *[""] * (len(header) - 2)]
        for row in deployment["formats"]
    ]
    return header, rows


def _text(row: Mapping[str, Any], key: str, shown: Callable[[Any], str]) -> str:
    value = row.get(key)
    return "" if value is None else shown(value)


def _costs(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['bytes']:,}",
        f"{1e3 * row['load_s']:.1f}",
        *(_latency(row["latency"][batch]) for batch in ("1", "64")),
        *_memory(row["memory"]),
    ]


def _latency(timing: Mapping[str, Any]) -> str:
    median, low, high = (1e3 * timing[key] for key in ("median", "low", "high"))
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def _memory(memory: Mapping[str, Any] | None) -> list[str]:
    if memory is None:
        return ["unknown here", "", ""]
    peak, imports = memory["peak"], memory["imports"]
    added = [f"{(peak[batch] - imports) / 1e6:.1f}" for batch in ("1", "64")]
    return [f"{max(peak.values()) / 1e6:.1f}", *added]


def deployment_lines(deployment: Deployment) -> list[str]:
    """Return the lines below the table: the best by each measure, what was not made and why, what the
    figures are, the machine and the versions."""
    made = [row for row in deployment["formats"] if row["reason"] is None]
    lines = [_best(made)] if made else []
    lines += [f"{row['name']}: not made: {row['reason']}" for row in deployment["formats"] if row["reason"]]
    lines += [f"{row['name']}: {row['note']}" for row in made if row.get("note")]
    known = [f"{key} {value}" for key, value in deployment["environment"].items() if value is not None]
    return [*lines, *deployment["notes"], *_WHAT, _agreed(deployment), ", ".join(known)]


def _agreed(deployment: Deployment) -> str:
    """Return what the figures of agreement and of the score are."""
    scale, reference = scale_of(deployment), deployment.get("reference", "pruned, PyTorch")
    scored = any(row.get("score") is not None for row in deployment["formats"])
    score = f"{scale.name[:1].upper()}{scale.name[1:]}: of the whole test split. " if scored else ""
    chosen = any(row.get("same") is not None for row in deployment["formats"])
    compared = "First choice and outputs" if chosen else "Outputs"
    return f"{score}{compared}: beside {reference}, on {deployment['test']:,} examples."


def _with_error(row: Mapping[str, Any]) -> str:
    """Return a format's name, with what must not be missed: outputs that are others by over a percent."""
    error = row.get("error") or 0.0
    return row["name"] if error <= 0.01 else f"{row['name']} (outputs differ by {100 * error:.2g} %)"


def _best(made: Sequence[Mapping[str, Any]]) -> str:
    def least(of: Callable[[Mapping[str, Any]], float]) -> str:
        best = min(map(of, made))
        return " and ".join(_with_error(row) for row in made if of(row) == best)

    # A network without a file of its own has no smallest one, and two engines share the packed file.
    files = {row["file"]: row for row in reversed(made)}
    smallest = min(files.values(), key=lambda row: row["bytes"])
    return (
        f"Fastest at batch 1: {least(lambda row: row['latency']['1']['median'])}; "
        f"at batch 64: {least(lambda row: row['latency']['64']['median'])}; "
        f"smallest file: {smallest['file']} ({smallest['bytes']:,} bytes)."
    )
