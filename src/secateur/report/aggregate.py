"""Trials joined over their seeds: means, deviations and the front they make."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from secateur.errors import RecipeError
from secateur.experiments.schema import scale_of
from secateur.task.base import ACCURACY, Scale

Column = tuple[str, Callable[["Group"], str]]


@dataclass(frozen=True)
class Figure:
    """A mean over ``number`` seeds with its sample standard deviation (0 for one seed)."""

    mean: float
    std: float
    number: int


@dataclass(frozen=True)
class Group:
    """The trials of one point of one method of one study: everything but the seed."""

    study: str
    method: str
    point: Mapping[str, Any]
    scale: Scale
    trials: tuple[Mapping[str, Any], ...]

    def figure(self, metric: str, over: str | None = None) -> Figure | None:
        """Return the mean of a metric, or of each trial's own ``metric / over``, over the trials that have
        it."""
        if over is None:
            return figure_of(trial["metrics"].get(metric) for trial in self.trials)
        pairs = [(trial["metrics"].get(metric), trial["metrics"].get(over)) for trial in self.trials]
        return figure_of(mine / dense for mine, dense in pairs if mine is not None and dense)

    @property
    def settings(self) -> str:
        """The settings that the sweep changes, short: "budget global, sparsity 0.9"."""
        return settings_text(self.point)

    @property
    def label(self) -> str:
        """The method and the settings that the sweep changes, short."""
        return f"{self.method}: {self.settings}" if self.settings else self.method

    @property
    def data(self) -> str:
        """The name of the data set; empty where no trial says."""
        return self._name_of("data")

    @property
    def network(self) -> str:
        """The name of the network; empty where no trial says."""
        return self._name_of("model")

    def _name_of(self, part: str) -> str:
        names = (trial.get("config", {}).get(part, {}).get("name") for trial in self.trials)
        return next((str(name) for name in names if name), "")

    @property
    def final(self) -> str:
        """The metric of the network handed back: retrained where it was, else pruned."""
        return "score_retrained" if self.figure("score_retrained") else "score_pruned"


def dense_parameters(metrics: Mapping[str, Any]) -> int | None:
    """Return all parameters of the dense network: what the compression rate has as its numerator."""
    rate, nonzero = metrics.get("compression_rate"), metrics.get("nonzero")
    return None if rate is None or nonzero is None else round(rate * max(1, nonzero))


def figure_of(values: Iterable[float | None]) -> Figure | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    return Figure(statistics.fmean(known), std, len(known))


def all_groups(studies: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Return the points of several studies; studies of one name are told apart by a number."""
    return [
        group
        for study, name in zip(studies, names_of(studies), strict=True)
        for group in groups_of(study, name)
    ]


def names_of(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the studies' names; those of one name are told apart by a number."""
    names = [str(study["recipe"]) for study in studies]
    return [f"{name} {index}" if names.count(name) > 1 else name for index, name in enumerate(names, start=1)]


def references_of(studies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the quoted figures of all studies, each with the ``study`` it belongs to; what a recipe calls by
    the score's own name (``accuracy_pruned``, ``perplexity_pruned``) is ``score_pruned`` here."""
    found: list[dict[str, Any]] = []
    for study in studies:
        names = {scale_of(trial).name for trial in study["trials"]} or {ACCURACY.name}
        own = [re.sub(r"\W+", "_", name.lower()) + "_" for name in names]
        for entry in study.get("reference", []):
            renamed = {
                next((f"score_{key.removeprefix(name)}" for name in own if key.startswith(name)), key): value
                for key, value in entry.items()
            }
            found.append({"study": str(study["recipe"]), **renamed})
    return found


def groups_of(results: Mapping[str, Any], name: str | None = None) -> list[Group]:
    """Return the points of a study in the order of its sweep."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for trial in results["trials"]:
        key = json.dumps([trial["method"], trial["point"]], sort_keys=True, default=str)
        found.setdefault(key, []).append(trial)
    return [
        Group(
            name or results["recipe"],
            trials[0]["method"],
            trials[0]["point"],
            scale_of(trials[0]),
            tuple(trials),
        )
        for trials in found.values()
    ]


def check_one_score(groups: Sequence[Group]) -> Scale:
    """Return how the scores of all groups are read; raises RecipeError where they are not the same."""
    scales = list(dict.fromkeys(group.scale for group in groups)) or [ACCURACY]
    if len(scales) > 1:
        raise RecipeError(
            f"scores of several kinds ({', '.join(scale.title for scale in scales)}) have no common axis; "
            "a report of each study apart is right"
        )
    return scales[0]


def series_of(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Split groups into curves: one for each study, method and setting but the amount pruned."""
    series: dict[str, list[Group]] = {}
    groups = list(groups)
    several = len({group.study for group in groups}) > 1
    alone = _along_one_curve(groups)
    for group in groups:
        plotted = amount_of(group.point)
        rest = {} if alone[group.study, group.method] else group.point
        words = [settings_text({k: v}) for k, v in rest.items() if k != plotted]
        name = ", ".join(dict.fromkeys([group.method, *words]))
        if several and group.method != group.study:
            name = f"{group.study}: {name}"
        series.setdefault(name, []).append(group)
    return series


def _along_one_curve(groups: Sequence[Group]) -> dict[tuple[str, str], bool]:
    """Return by study and method whether each of its points has an amount of its own: whatever else
    they differ in (the epochs left at that amount, say) then makes no other curve."""
    amounts: dict[tuple[str, str], list[Any]] = {}
    for group in groups:
        key = amount_of(group.point)
        amounts.setdefault((group.study, group.method), []).append(None if key is None else group.point[key])
    return {which: None not in some and len(set(some)) == len(some) for which, some in amounts.items()}


_AMOUNTS = ("macs", "parameters", "latency_ms", "sparsity", "drop", "accuracy_drop", "penalty")
_AMOUNTS += ("ratio", "width")


def amount_of(point: Mapping[str, Any]) -> str | None:
    """Return the setting that a curve runs along: the last number of a budget, a shrinkage, or what
    decides how much another step removes (``prune_to.macs``, ``greedy.sparsity``, ``anneal.ratio``)."""
    numbers = [key for key, value in point.items() if is_number(value)]
    amounts = [k for k in numbers if ".budget." in k or ".shrinkage." in k or _is_constraint(k)]
    return (amounts or [None])[-1]


def _is_constraint(key: str) -> bool:
    parts = key.split(".")
    return len(parts) == 2 and parts[1] in _AMOUNTS and parts[0] not in ("data", "model", "train")


def front(points: list[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats: larger x (sparser) and larger y."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    best, kept = float("-inf"), []
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return kept[::-1]


def short(key: str) -> str:
    """``prune.budget.sparsity`` is ``sparsity``, ``prune.budget.name`` is ``budget``."""
    parts = key.split(".")
    return parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return "budget global, sparsity 0.9" for the settings of a point."""
    return ", ".join(f"{short(key)} {value_text(value)}" for key, value in settings.items())


def value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join(value_text(v) for v in value.values())
    return str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def scored(figure: Figure | None, scale: Scale) -> str:
    """Return "98.31 ± 0.05" for a score, in its unit; the deviation, to as many digits, only over several
    seeds."""
    if figure is None:
        return ""
    mean, std = scale.factor * figure.mean, scale.factor * figure.std
    if figure.number == 1:
        return scale.number(figure.mean)
    if scale.unit != "%" and not 1e-3 <= abs(mean) < 1e4:
        return f"{scale.number(figure.mean)} ± {scale.number(figure.std)}"
    digits = 2 if scale.unit == "%" else 3 - math.floor(math.log10(abs(mean)))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def columns_unit(scale: Scale) -> str:
    """Return what stands behind a column's title: " %", or nothing where the score has no unit."""
    return f" {scale.unit}" if scale.unit else ""


def table_of(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows) of the result table: one row a point, scores in their unit."""
    unit = columns_unit(check_one_score(groups))
    keys = dict.fromkeys(key for group in groups for key in group.point)
    packed = [
        _mean("file bytes", "bytes_packed", "{:,.0f}"),
        _mean("dense / file", "compression_packed", "{:.2f}x"),
    ]
    columns: list[Column] = [
        *which_of(groups, "study"),
        *which_of(groups, "method"),
        *((short(key), partial(_setting, key)) for key in keys),
        _mean("sparsity %", "sparsity", "{:.2f}", 100),
        ("requested %", _requested),
        _mean("compression", "compression_rate", "{:.2f}x"),
        *((f"{stage}{unit}", partial(_score, stage)) for stage in ("dense", "pruned", "retrained")),
        ("epochs", lambda group: str(group.trials[0].get("epochs", {}).get("retrain") or "")),
        ("change", _change),
        _mean("non-zero", "nonzero", "{:,.0f}"),
        *(packed if any(group.figure("bytes_packed") for group in groups) else []),
        ("seeds", lambda group: str(dense.number if (dense := group.figure("score_dense")) else 0)),
    ]
    return filled(columns, groups)


def filled(columns: Sequence[Column], groups: Iterable[Group]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows) of a table with a row a group."""
    return [title for title, _ in columns], [[cell(group) for _, cell in columns] for group in groups]


def which_of(groups: Sequence[Group], name: str) -> list[Column]:
    """Return the column that tells groups of several studies (or methods) apart; none where there is one."""
    several = len({getattr(group, name) for group in groups}) > 1
    return [(name, lambda group: getattr(group, name))] if several else []


def _mean(title: str, metric: str, form: str, scale: float = 1) -> Column:
    return title, lambda group: form.format(scale * of.mean) if (of := group.figure(metric)) else ""


def _setting(key: str, group: Group) -> str:
    return value_text(group.point.get(key, ""))


def _requested(group: Group) -> str:
    share = group.trials[0].get("requested", {}).get("sparsity")
    return "" if share is None else f"{100 * share:.2f}"


def _score(stage: str, group: Group) -> str:
    return scored(group.figure(f"score_{stage}"), group.scale)


def _change(group: Group) -> str:
    dense, last = group.figure("score_dense"), group.figure(group.final)
    return group.scale.number(last.mean - dense.mean, "+") if last and dense else ""
