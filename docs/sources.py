"""The page of every figure that the five sources quote, beside ours; docs/results.py writes it.

A recipe's ``reference`` holds what its source quotes, and ``note`` there what was tried where ours is less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from secateur.experiments.recipe import packaged_recipes
from secateur.report.aggregate import (
    Figure,
    Group,
    all_groups,
    figure_of,
    references_of,
    scored,
    settings_text,
)
from secateur.report.figures import match
from secateur.task.base import ACCURACY

SOURCES = {  # how a recipe's ``source`` begins, and the heading of its figures
    "Cao": "S1: Cao, pruning by standard deviation, percentile, soft and trimmed thresholds",
    "Gschossmann": "S2: Gschossmann, branch annealing",
    "ECE 595": "S3: ECE 595 project B, magnitude sweep",
    "Fathollahi": "S4: Fathollahi, weights against neurons",
    "Rast & Lee": "S5: Rast & Lee, greedy filters, structure selection, hybrid",
}
METRICS = {  # what a reference may quote
    "score_dense": "dense",
    "score_pruned": "pruned",
    "score_retrained": "retrained",
    "compression_rate": "compression",
    "change_pruned": "pruned, less dense",
    "change_retrained": "retrained, less dense",
    "balance_retrained": "(retrained + sparsity) / 2",
}
_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 10: 2.26, 15: 2.14}  # Student's t, two-sided, by number of seeds
HEAD = """\
# Every quoted figure, beside ours

Test accuracies in percent, ours as mean ± standard deviation over n seeds, from the results in
`docs/results` (`python docs/results.py` writes this page). *Ours, as there* is at the source's own
setting. *Best of ours*, where it is another one by more than the noise of seeds and of validation
images, is the best on validation of all that was measured on the same data and network and is at least
as small (in multiply-adds too, where ours is); for a figure without retraining, of networks that were
not retrained either. *Beaten*: the mean lies above the quoted figure by more than its 95 % interval (one
seed has none); *equal within noise*: by less, either way. Nothing was chosen on test images.
"""


@dataclass(frozen=True)
class Row:
    """One quoted figure, ours at its own setting, and the best of ours."""

    what: str
    quoted: float
    metric: str
    own: Group | None
    best: Group | None
    note: str

    def cells(self) -> list[str]:
        own, best = (figure(group, self.metric) for group in (self.own, self.best))
        better = (
            "" if self.best is None or self.best is self.own else f"{self._text(best)} (`{self._name()}`)"
        )
        return [
            self.what,
            self._text(Figure(self.quoted, 0, 1)),
            self._text(own),
            better,
            self._verdict(best or own),
        ]

    def _name(self) -> str:
        assert self.best is not None
        label = "" if self.best.method == self.best.study else f" {self.best.method}"
        return f"{self.best.study}{label}, {self.best.settings}"

    def _text(self, shown: Figure | None) -> str:
        if shown is None:
            return "not run"
        text = f"{shown.mean:.2f}x" if self.metric == "compression_rate" else scored(shown, ACCURACY)
        return f"{text}, n={shown.number}" if shown.number > 1 else text

    def _verdict(self, ours: Figure | None) -> str:
        if ours is None:
            return f"not run{self._why()}"
        if self.metric == "compression_rate":
            return "equal" if round(ours.mean, 2) >= self.quoted else f"not reached{self._why()}"
        more = 100 * (ours.mean - self.quoted)
        wide = 100 * noise(ours)
        if more > wide:
            return f"beaten, by {more:.2f}" + (" (one seed)" if ours.number == 1 else "")
        if more >= -max(wide, 0.005):
            return f"equal within noise ({more:+.2f} ± {wide:.2f})"
        return f"not reached, by {-more:.2f}{self._why()}"

    def _why(self) -> str:
        return f": {self.note}" if self.note else ""


def rows_of(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Row]]:
    """Yield each quoted figure under its source's heading."""
    groups = [group for study in found.values() for group in all_groups([study])]
    for name, study in found.items():
        heading = next((title for start, title in SOURCES.items() if study["source"].startswith(start)), None)
        if heading is None or "question" in study["source"]:
            continue
        mine = [group for group in groups if group.study == name]
        for entry in references_of([study]):
            own = match(mine, {"study": name, **entry})
            for metric, value in entry.items():
                if metric in METRICS:
                    shown = {key: part for key, part in entry.items() if "." in key}
                    what = f"`{name}` {settings_text(shown)}, {METRICS[metric]}"
                    whole = metric in ("compression_rate", "score_dense")  # what nothing else could better
                    best = own if whole else _best(groups, own, metric)
                    yield heading, Row(what, float(value), metric, own, best, str(entry.get("note", "")))


def _unkept() -> dict[str, Mapping[str, Any]]:
    """Return what the recipes quote, as studies without a trial."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in packaged_recipes().items()}
    recipes = {name: yaml.safe_load(text) for name, text in texts.items()}
    return {
        name: {key: recipe[key] for key in ("source", "reference")} | {"recipe": name, "trials": []}
        for name, recipe in recipes.items()
        if "reference" in recipe
    }


def _best(groups: Sequence[Group], own: Group | None, metric: str) -> Group | None:
    """Return the best on validation of what is at least as small as ours at the source's own setting."""
    if own is None or (size := own.figure("compression_rate")) is None:
        return own
    fits = [
        group
        for group in groups
        if _task(group) == _task(own)
        and (shown := group.figure("compression_rate")) is not None
        and (metric.startswith("balance") or shown.mean >= 0.995 * size.mean)
        and figure(group, metric) is not None
        and (not metric.endswith("_pruned") or _cut_alike(group, own))
        and _as_fast(group, own)
    ]
    known = [(shown, group) for group in fits if (shown := figure(group, metric, "_validation")) is not None]
    mine = figure(own, metric, "_validation")
    if not known or mine is None:
        return own
    shown, best = max(known, key=lambda pair: pair[0].mean)
    images = own.trials[0]["config"]["data"].get("validation", 1000)
    share = shown.mean if metric.startswith("score") else 0.5  # of a difference the widest
    drawn = 2 * math.sqrt(share * (1 - share) / images)
    return best if shown.mean - mine.mean > max(noise(shown), noise(mine), drawn) else own


def noise(shown: Figure) -> float:
    """Return half of the 95 % interval of a mean over seeds."""
    return _T95.get(shown.number, 2.0) * shown.std / math.sqrt(shown.number)


def _task(group: Group) -> list[Any]:
    """Return the data and the network of a point, with their options."""
    return [group.trials[0]["config"][part] for part in ("data", "model")]


def _as_fast(group: Group, own: Group) -> bool:
    """Whether a point has no more multiply-adds than one that is really smaller: zeros alone have all."""
    macs, wanted, dense = group.figure("macs"), own.figure("macs"), own.figure("macs_dense")
    if wanted is None or dense is None or wanted.mean >= dense.mean:
        return True
    return macs is not None and macs.mean <= 1.005 * wanted.mean


def _cut_alike(group: Group, own: Group) -> bool:
    """Whether nothing was trained between the dense network and what counts as pruned, or only annealed, as
    ours at the source's own setting was."""
    first, its = ((one.trials[0]["config"]["steps"] or [{}])[0] for one in (group, own))
    if "anneal" in its:
        return "anneal" in first
    return isinstance(first.get("prune"), dict) and "schedule" not in first["prune"]


def figure(group: Group | None, metric: str, split: str = "") -> Figure | None:
    """Return what a metric is at a point: one that trials have, or made of two of theirs."""
    if group is None:
        return None
    kind, _, which = metric.partition("_")
    if kind not in ("change", "balance"):
        return group.figure(metric + split)
    other = f"score_dense{split}" if kind == "change" else "sparsity"
    found = [(t["metrics"].get(f"score_{which}{split}"), t["metrics"].get(other)) for t in group.trials]
    pairs = [(mine, its) for mine, its in found if mine is not None and its is not None]
    return figure_of(mine - its if kind == "change" else (mine + its) / 2 for mine, its in pairs)


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the whole page."""
    parts: dict[str, list[Row]] = {title: [] for title in SOURCES.values()}
    for heading, row in rows_of({**_unkept(), **found}):
        parts[heading].append(row)
    text = HEAD
    for heading, rows in parts.items():
        lines = [["quoted for", "quoted", "ours, as there", "best of ours", "verdict"], ["---"] * 5]
        lines += [row.cells() for row in rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        text += f"\n## {heading}\n\n{table if rows else 'Not run yet here.'}\n"
    return text
