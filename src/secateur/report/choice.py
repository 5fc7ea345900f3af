"""One network of a study chosen: the cheapest whose validation score is within a limit.

Choosing reads no test figure: the test set measures the choice once it is made.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Any

from secateur.errors import RecipeError, StorageError
from secateur.experiments.claim import RESULT, whole_result
from secateur.experiments.commands.finished import pruned_options
from secateur.experiments.results import inside, read_results
from secateur.models import MODELS
from secateur.report.aggregate import Figure, Group, check_one_score, dense_parameters, groups_of, names_of
from secateur.storage import load_tensors, replacing

Metrics = Mapping[str, Any]
_DENSE = "score_dense_validation"
_LATENCY, _DENSE_LATENCY = "measured latency, batch of one, ms", "latency_dense_ms"
_ROUNDING = 1e-9  # percentage points: what a mean's last digits may be off


@dataclass(frozen=True)
class Quantity:
    """What a choice makes small: a metric, or its ratio ``over`` another in the same trial.

    ``dense`` gives the same of the dense network from a trial's metrics, None where they do not say.
    """

    name: str
    metric: str
    words: str
    dense: Callable[[Metrics], float | None]
    over: str | None = None


def _dense_bytes(metrics: Metrics) -> float | None:
    """At the bytes a parameter that the network left has: buffers make this an estimate."""
    number, size, left = dense_parameters(metrics), metrics.get("bytes_dense"), metrics.get("parameters")
    return None if number is None or size is None or left is None else number * size / max(1, left)


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("bytes", "bytes_sparse", "bytes in a sparse form, indices counted", _dense_bytes),
        Quantity("latency", "latency_ms", _LATENCY, methodcaller("get", _DENSE_LATENCY), over=_DENSE_LATENCY),
        Quantity("macs", "macs", "multiply-adds, zeros counted", methodcaller("get", "macs_dense")),
        Quantity("parameters", "parameters", "parameters, zeros counted", dense_parameters),
    )
}


@dataclass(frozen=True)
class Candidate:
    """A point of a method over its finished seeds: the validation scores of its networks and of the dense
    ones they came from, and the quantity that is to be small."""

    folder: Path
    group: Group
    metric: str
    validation: Figure
    dense: Figure
    cost: Figure

    @property
    def drop(self) -> float:
        """How much worse the mean is than the dense networks', in the score's unit (percentage points)."""
        return self.group.scale.drop(self.dense.mean, self.validation.mean)


@dataclass(frozen=True)
class Choice:
    """The candidates within ``limit`` points of the dense network, best first; the others, nearest
    first; and the trial of the best one whose own validation score is the best."""

    quantity: Quantity
    limit: float
    within: tuple[Candidate, ...]
    beyond: tuple[Candidate, ...]
    trial: Mapping[str, Any]
    failed: int

    @property
    def chosen(self) -> Candidate:
        return self.within[0]

    @property
    def ties(self) -> int:
        """How many other candidates within the limit cost exactly what the chosen one does."""
        return sum(other.cost.mean == self.chosen.cost.mean for other in self.within[1:])


@dataclass(frozen=True)
class Files:
    """The files of a choice. ``reshaped``: the model was written by ``sc.save``, else as a state dict."""

    model: Path
    masks: Path | None
    reshaped: bool


def choose(folders: Sequence[Path], drop: float, minimise: str = "bytes") -> Choice:
    """Choose a network of the studies in ``folders`` on their validation figures alone.

    Of the points (means over their finished seeds) whose validation score is at most ``drop`` worse, in its
    unit (percentage points of accuracy), than that of the dense networks they came from, the one with
    the least ``minimise`` (see ``QUANTITIES``; latency as the share of the dense network's in the same
    trial) is chosen; of equal ones that of the better validation score, then of the higher sparsity,
    then the first. Of its seeds the one of the best validation score is taken.

    Raises RecipeError for a drop or a quantity that cannot be, a quantity that was not measured,
    studies of several data sets, and where no point is within the limit; StorageError for folders
    without results.
    """
    if minimise not in QUANTITIES:
        raise RecipeError(f"--minimise {minimise}: one of {', '.join(QUANTITIES)}")
    if not 0 <= drop < math.inf:
        raise RecipeError(f"--drop {drop:g}: it is in the score's unit, from 0")
    quantity = QUANTITIES[minimise]
    studies = [read_results(folder) for folder in folders]
    failed = sum(trial.get("state") != "finished" for study in studies for trial in study["trials"])
    candidates = _candidates(folders, studies, quantity)
    within = sorted((c for c in candidates if c.drop <= drop + _ROUNDING), key=_preference)
    beyond = sorted((c for c in candidates if c.drop > drop + _ROUNDING), key=lambda c: c.drop)
    if not within:
        scale = beyond[0].group.scale
        raise RecipeError(
            f"--drop {drop:g}: none of {len(beyond)} points keeps its validation {scale.name} that near; the "
            f"nearest is {beyond[0].group.label!r}, {beyond[0].drop:.2f} {scale.points} worse than dense"
        )
    best = within[0]
    scale = best.group.scale
    trial = max(best.group.trials, key=lambda trial: scale.oriented(trial["metrics"][best.metric]))
    return Choice(quantity, drop, tuple(within), tuple(beyond), trial, failed)


def _preference(candidate: Candidate) -> tuple[float, float, float]:
    sparsity = candidate.group.figure("sparsity")
    better = candidate.group.scale.oriented(candidate.validation.mean)
    return candidate.cost.mean, -better, -sparsity.mean if sparsity else 0.0


def _candidates(
    folders: Sequence[Path], studies: Sequence[Mapping[str, Any]], quantity: Quantity
) -> list[Candidate]:
    """Return every point that has validation scores, in the order of its study."""
    points: list[tuple[Path, Group, str]] = []
    for folder, study, name in zip(folders, studies, names_of(studies), strict=True):
        for group in groups_of(study, name):
            metric = _final(group)
            if metric is not None:
                trials = tuple(t for t in group.trials if t["metrics"].get(metric) is not None)
                points.append((folder, replace(group, trials=trials), metric))
    if not points:
        listed = ", ".join(map(str, folders))
        raise RecipeError(f"{listed}: no finished trial has a validation score to choose by")
    groups = [group for _, group, _ in points]
    check_one_score(groups)
    _check_one_data_set(groups)
    _check_measured(groups, quantity)
    return [_candidate(folder, group, metric, quantity) for folder, group, metric in points]


def _candidate(folder: Path, group: Group, metric: str, quantity: Quantity) -> Candidate:
    validation, dense = group.figure(metric), group.figure(_DENSE)
    cost = group.figure(quantity.metric, quantity.over)
    assert validation is not None
    assert dense is not None
    assert cost is not None  # all three are checked before
    return Candidate(folder, group, metric, validation, dense, cost)


def _final(group: Group) -> str | None:
    """The validation metric of the network handed back: retrained where it was, else pruned."""
    metrics = ("score_retrained_validation", "score_pruned_validation")
    return next((m for m in metrics if group.figure(m) and group.figure(_DENSE)), None)


def _check_one_data_set(groups: Sequence[Group]) -> None:
    names = list(dict.fromkeys(group.data for group in groups))
    if len(names) > 1:
        raise RecipeError(
            f"scores on several data sets ({', '.join(names)}) cannot be compared; choose in each apart"
        )


def _check_measured(groups: Sequence[Group], quantity: Quantity) -> None:
    wanted = [metric for metric in (quantity.metric, quantity.over) if metric is not None]
    trials = [(group, trial) for group in groups for trial in group.trials]
    lacking = [(g, t) for g, t in trials if any(t["metrics"].get(metric) is None for metric in wanted)]
    if lacking:
        group, trial = lacking[0]
        raise RecipeError(
            f"--minimise {quantity.name}: not measured in {len(lacking)} of {len(trials)} trials (first: "
            f"{group.label!r}, seed {trial['seed']}); minimise another quantity, or run the study into a "
            "new folder with it measured"
        )


def write_choice(choice: Choice, out: Path) -> Files:
    """Copy the chosen trial's network to ``out``, and its masks, where it has any, beside it as
    ``<out's stem>-masks.safetensors`` (an earlier choice's masks there go where it has none).

    Each file is replaced as a whole. Raises StorageError where the network is missing, damaged, or not the
    trial's.
    """
    place = (choice.chosen.folder, "trials", choice.trial["id"])
    model, masks = (inside(*place, f"{name}.safetensors") for name in ("model", "masks"))
    if not model.is_file():
        raise StorageError(f"{model}: no such file; the chosen trial's network is not beside its results")
    if (model.parent / RESULT).exists():  # else nothing says what the files were
        whole_result(model.parent)
    _, metadata = load_tensors(model)
    masks_out = out.with_name(f"{out.stem}-masks.safetensors")
    _copy(model, out)
    if masks.is_file():
        _copy(masks, masks_out)
    else:
        masks_out.unlink(missing_ok=True)
    reshaped = str(metadata.get("secateur", "")).startswith("model ")
    return Files(out, masks_out if masks.is_file() else None, reshaped)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def is_own(choice: Choice) -> bool:
    """Whether the chosen network is one of the user's own: its name is no part of any code then."""
    return choice.trial["config"]["model"]["name"] not in MODELS


def how_to_load(choice: Choice, files: Files) -> list[str]:
    """Return the lines of Python that load the network written.

    The results name a network and its options: of secateur's own they are pasted in as what they are, texts
    and numbers; one of the user's own is for the user to build.
    """
    config = choice.trial["config"]
    name, own = config["model"]["name"], is_own(choice)
    options = pruned_options(config, str(choice.chosen.folder / "results.json")).items()
    words = [repr(name), *(f"{key}={value!r}" for key, value in options)]
    built = "..." if own else f"sc.build_model({', '.join(words)})"
    note = f"  # your own, built as in the recipe, where it is {name!a}" if own else ""
    file = str(files.model)
    if files.reshaped:
        return ["import secateur as sc", f"model = {built}{note}", f"sc.load(model, {file!r})"]
    return [
        *([] if own else ["import secateur as sc"]),
        "from safetensors.torch import load_file",
        f"model = {built}{note}",
        f"model.load_state_dict(load_file({file!r}))",
    ]
