"""Twenty points that a report on pruning should satisfy, checked from the data alone.

After Blalock et al., "What is the State of Neural Network Pruning?" (2020), and ShrinkBench. A point
is kept, not kept, or does not apply; each answer says what it saw.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.report.aggregate import Group, check_one_score, front, is_number
from secateur.task.base import ACCURACY, Scale

_BEFORE_PRUNING = ("train", "data", "model")
_COLLAPSE = 0.05  # of a share five points, of another score a twentieth: what "on to collapse" asks at least
Study = Mapping[str, Any]
Answer = tuple[bool | None, str]


@dataclass(frozen=True)
class Point:
    """One point of the list: what it asks, whether it is kept (None: does not apply), and why."""

    number: int
    asks: str
    kept: bool | None
    why: str


def checklist(studies: Sequence[Study], groups: Sequence[Group]) -> list[Point]:
    """Check the twenty points against studies and their groups."""
    trials = [t for s in studies for t in s["trials"] if t.get("state") == "finished"]
    scale = check_one_score(groups)
    name = scale.name
    questions = [
        ("The exact architecture: layer list and parameter count", _architecture(trials)),
        (f"The same initial weights for every method; dense {name} of each seed", _same_start(trials)),
        (f"Raw {name} and the change, computed from its two operands", _has(trials, "score_dense")),
        ("Compression rate = original / remaining, saying what is counted", _has(trials, "compression_rate")),
        ("Theoretical speed-up (multiply-adds) beside it", _has(trials, "macs_effective")),
        ("Measured latency, apart from the theoretical", _has(trials, "latency_ms")),
        ("Bytes with the cost of indices", _has(trials, "bytes_sparse")),
        ("At least five operating points, on to collapse, log axis", _operating_points(groups)),
        ("At least three seeds, mean and deviation, n shown", _seeds(groups)),
        ("Baselines: random and magnitude, at the same per-layer ratios", _baselines(trials)),
        ("A dense small network trained from scratch, at equal training", _scratch(trials)),
        ("Selection on validation, test reported once", _has(trials, "score_dense_validation")),
        (
            f"{name[:1].upper()}{name[1:]} before and after recovery; its epochs and rates counted",
            _recovery(trials),
        ),
        ("Achieved beside requested sparsity, per layer; emptied and protected layers", _requested(trials)),
        ("Whether the classifier was pruned", _classifier(trials)),
        ("Claims limited to the data sets run", _data(trials)),
        _metric(trials, scale),
        ("Library versions, hardware, commit, configuration hash", _environment(studies, trials)),
        ("The Pareto front of seed means, dominated points shown", _front(groups)),
        ("Quoted figures labelled as quoted, with their source", _quoted(studies)),
    ]
    return [Point(i, asks, kept, why) for i, (asks, (kept, why)) in enumerate(questions, 1)]


def _architecture(trials: Sequence[Mapping[str, Any]]) -> Answer:
    listed = sum(bool(t["layers"]) and "parameters" in t["metrics"] for t in trials)
    return listed > 0, f"{listed} of {len(trials)} trials list their layers and parameters"


def _same_start(trials: Sequence[Mapping[str, Any]]) -> Answer:
    """One dense score for each seed and data set tells that all began from one network."""
    found: dict[str, set[float | None]] = {}
    for trial in trials:
        changed = {k: v for k, v in trial["point"].items() if k.partition(".")[0] in _BEFORE_PRUNING}
        found.setdefault(f"{trial['seed']} {changed}", set()).add(trial["metrics"].get("score_dense"))
    differing = sum(len(values) > 1 for values in found.values())
    return bool(found) and not differing, f"{len(found)} dense networks, {differing} differ between methods"


def _has(trials: Sequence[Mapping[str, Any]], metric: str) -> Answer:
    number = sum(trial["metrics"].get(metric) is not None for trial in trials)
    return bool(trials) and number == len(trials), f"{metric} in {number} of {len(trials)} trials"


def _operating_points(groups: Sequence[Group]) -> Answer:
    by_method: dict[str, set[float]] = {}
    worst = shown = 0.0
    scale = check_one_score(groups)
    for group in groups:
        sparsity, last, dense = (group.figure(m) for m in ("sparsity", group.final, "score_dense"))
        if sparsity and last and dense:
            by_method.setdefault(group.method, set()).add(round(sparsity.mean, 4))
            worst = max(worst, _lost(group.scale, dense.mean, last.mean))
            shown = max(shown, group.scale.drop(dense.mean, last.mean))
    most = max((len(points) for points in by_method.values()), default=0)
    loss = f"{shown:.4g} {scale.points}" if scale.unit != "%" else f"{shown:.1f} points"
    return most >= 5 and worst >= _COLLAPSE, f"{most} sparsities; the largest loss is {loss}"


def _lost(scale: Scale, dense: float, last: float) -> float:
    """Return which share of the dense score is lost: in points of a share, else relative to it."""
    lost = scale.oriented(dense) - scale.oriented(last)
    return lost if scale.unit == "%" else lost / max(abs(dense), 1e-12)


def _seeds(groups: Sequence[Group]) -> Answer:
    fewest = min((f.number if (f := g.figure("score_dense")) else 0 for g in groups), default=0)
    return fewest >= 3, f"{fewest} seeds at the least"


def _baselines(trials: Sequence[Mapping[str, Any]]) -> Answer:
    cuts = [step["prune"] for t in trials for step in t["config"]["steps"] if "prune" in step]
    criteria = {_name(cut.get("criterion", "magnitude")) for cut in cuts}
    ratios = any(_name(cut["budget"]) == "magnitude_ratios" for cut in cuts)
    missing = [word for word in ("random", "magnitude") if word not in criteria]
    missing += [] if ratios else ["equal per-layer ratios"]
    return not missing, "all there" if not missing else f"missing: {', '.join(missing)}"


def _name(spec: Any) -> str:
    return str(spec["name"] if isinstance(spec, Mapping) else spec)


def _scratch(trials: Sequence[Mapping[str, Any]]) -> Answer:
    """At equal training: a control's epochs are as many as some pruned trial's, dense ones included."""
    controls = [t for t in trials if any("scratch" in step for step in t["config"]["steps"])]
    if not controls:
        return False, "no trial trains one"
    pruned = {sum(t["epochs"].values()) for t in trials if t["layers"]}
    equal = sum(t["epochs"].get("retrain", 0) in pruned for t in controls)
    return equal == len(controls), f"{equal} of {len(controls)} controls train as long as a pruned network"


def _recovery(trials: Sequence[Mapping[str, Any]]) -> Answer:
    retrained = [t for t in trials if t["metrics"].get("score_retrained") is not None]
    if not retrained:
        return None, "nothing was retrained"
    counted = [t for t in retrained if t["epochs"].get("retrain")]
    epochs = statistics.fmean(t["epochs"]["retrain"] for t in counted) if counted else 0
    return len(counted) == len(retrained), f"{epochs:.0f} epochs on average, their rates in the curves"


def _requested(trials: Sequence[Mapping[str, Any]]) -> Answer:
    there = sum(bool(t["layers"]) for t in trials)
    asked = sum(t["requested"].get("sparsity") is not None for t in trials)
    return there > 0, f"achieved by layer in {there} trials; {asked} asked for a sparsity, others for a value"


def _classifier(trials: Sequence[Mapping[str, Any]]) -> Answer:
    pruned = [t for t in trials if t["layers"]]
    if not pruned:
        return None, "nothing was pruned"
    last = pruned[0]["layers"][-1]
    protected = [note for note in pruned[0].get("notes", []) if note.startswith("not pruned")]
    return True, protected[0] if protected else f"{last['name']} was pruned, to {last['sparsity']:.1%}"


def _data(trials: Sequence[Mapping[str, Any]]) -> Answer:
    names = sorted({str(t["config"]["data"]["name"]) for t in trials})
    return bool(names), f"run on {', '.join(names)}, and on nothing else"


def _metric(trials: Sequence[Mapping[str, Any]], scale: Scale) -> tuple[str, Answer]:
    if scale.name != ACCURACY.name:
        better = "higher" if scale.higher_is_better else "lower"
        return "The metric of the task, with its unit", (True, f"{scale.title}; {better} is better")
    most = max((t["classes"] for t in trials), default=0)
    seen = f"top-1 alone, and {most} classes at the most"
    return "Top-1 accuracy (and Top-5 from 100 classes on)", (0 < most < 100, seen)


def _environment(studies: Sequence[Study], trials: Sequence[Mapping[str, Any]]) -> Answer:
    wanted = ("torch", "machine", "commit")
    missing = sorted({key for s in studies for key in wanted if not s["environment"].get(key)})
    seen = f"missing: {', '.join(missing)}" if missing else "all there; a trial's name is the hash"
    return not missing and all(t.get("id") for t in trials), seen


def _front(groups: Sequence[Group]) -> Answer:
    known = [(g.scale, x, y) for g in groups if (x := g.figure("sparsity")) and (y := g.figure(g.final))]
    points = [(x.mean, scale.oriented(y.mean)) for scale, x, y in known]
    if len(points) < 2:
        return None, "fewer than two points"
    return True, f"{len(front(points))} of {len(points)} points are on the front"


def _quoted(studies: Sequence[Study]) -> Answer:
    quoting = [study for study in studies if study.get("reference")]
    if not quoting:
        return None, "nothing is quoted"
    figures = sum(is_number(v) for s in quoting for entry in s["reference"] for v in entry.values())
    named = all(study.get("source") for study in quoting)
    return named, f"{figures} quoted figures, each study's source named"
