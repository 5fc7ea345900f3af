"""What the files of results hold, checked where they are read: names and figures, never code.

``results.json``, a trial's ``result.json`` and row in ``study.db``: whatever reads one of them takes what
these functions return, which has no key but those below, each of its kind and in its range.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from secateur.errors import StorageError
from secateur.experiments.checked_json import (
    SCHEMA,
    Count,
    Finite,
    Hash,
    Left,
    Listed,
    Model,
    Named,
    Object,
    Positive,
    Real,
    ScoreNamed,
    Seed,
    Share,
    Text,
    Texts,
    check_schema,
    checked,
    named,
    options,
    plain_object,
    positive,
    short,
    text,
)
from secateur.task.base import ACCURACY, Scale, Task

_WHOLE = ("layers", "curves", "epochs", "config", "classes")  # what every finished trial has
EMPTY = {"requested": {}, "metrics": {}, "layers": [], "curves": {}, "stages": {}, "seconds": {}}
EMPTY |= {"epochs": {}, "notes": [], "by_class": []}  # what a failed trial has of them


def _step(value: Any) -> dict[str, Any]:
    """Return a step of a recipe; what is read of it later is there."""
    cut, scratch = plain_object(value).get("prune"), value.get("scratch")
    if "prune" in value:
        named(plain_object(cut).get("budget"))
        if not isinstance(criterion := value["prune"].get("criterion", ""), str):
            named(criterion)
    if "scratch" in value:
        options(plain_object(scratch).get("model", {}))
        if value["scratch"].get("width") is not None:
            positive(value["scratch"]["width"])
    return value


def _reference(value: Any) -> dict[str, Any]:
    for name in ("method", "study", "note"):
        text(plain_object(value).get(name, ""))
    return value


class _Class(Model):
    name: Text
    number: Count
    dense: Share
    final: Share


class _Metrics(Model):
    score_dense: Finite | None = None
    score_dense_validation: Finite | None = None
    score_pruned: Finite | None = None
    score_pruned_validation: Finite | None = None
    score_retrained: Finite | None = None
    score_retrained_validation: Finite | None = None
    sparsity: Left | None = None
    compression_rate: Positive | None = None
    parameters: Count | None = None
    nonzero: Count | None = None
    bytes_dense: Count | None = None
    bytes_sparse: Count | None = None
    bytes_packed: Count | None = None
    compression_packed: Positive | None = None
    macs: Count | None = None
    macs_effective: Count | None = None
    macs_dense: Count | None = None
    latency_ms: Positive | None = None
    latency_dense_ms: Positive | None = None
    peak_memory_mb: Positive | None = None
    peak_memory_dense_mb: Positive | None = None
    average_memory_mb: Positive | None = None
    average_memory_dense_mb: Positive | None = None


class _Requested(Model):
    sparsity: Real | None = None


class _Layer(Model):
    name: Text
    shape: Annotated[list[Count], Listed] = Field(default_factory=list)
    weights: Count = 0
    kept: Count = 0
    sparsity: Left
    requested: Real | None = None


class _Epoch(Model):
    epoch: Count = 0
    lr: Finite = 0.0
    train_loss: Finite = 0.0
    validation_score: Finite
    validation_loss: Finite = 0.0
    seconds: Finite = 0.0


class _Stage(Model):
    alpha: Share
    rate: Finite = 1.0
    score: Real | None
    loss: Finite | None = None
    kept: bool = True


class _Epochs(Model):
    dense: Count = 0
    retrain: Count = 0


class _Config(Model):
    data: Named
    model: Named
    task: Named | None = None
    train: Object | None = None
    steps: Annotated[list[Annotated[Any, AfterValidator(_step)]], Listed]


class _Row(Model):
    id: Hash
    method: Text
    state: Literal["finished", "failed"]
    point: Object
    seed: Seed
    requested: _Requested = _Requested()
    metrics: _Metrics = _Metrics()
    layers: Annotated[list[_Layer], Listed] = Field(default_factory=list)
    curves: dict[Text, Annotated[list[_Epoch], Listed]] = Field(default_factory=dict)
    stages: dict[Text, Annotated[list[_Stage], Listed]] = Field(default_factory=dict)
    seconds: dict[Text, Real] = Field(default_factory=dict)
    epochs: _Epochs = _Epochs()
    notes: Texts = Field(default_factory=list)
    config: _Config | None = None
    dense: Hash | None = None
    classes: Count = 0
    score: ScoreNamed | None = None
    by_class: Annotated[list[_Class], Listed] = Field(default_factory=list)


class _Results(Model):
    recipe: Text
    description: Text = ""
    source: Text = ""
    text: Text = ""
    settings: Object = Field(default_factory=dict)
    environment: Object = Field(default_factory=dict)
    trials: Annotated[list[Any], Listed]
    reference: Annotated[list[Annotated[Any, AfterValidator(_reference)]], Listed] = Field(
        default_factory=list
    )


def validated_results(value: Any, where: str) -> dict[str, Any]:
    """Return the results of a study as ``results.json`` holds them, checked; ``where`` names the file.

    Raises StorageError for the first thing that is not what a study writes.
    """
    check_schema(value, where)
    results = checked(_Results, value, where)
    rows = [validated_row(row, f"{where}: trials.{i}") for i, row in enumerate(results["trials"])]
    for name, number in Counter(row["id"] for row in rows).items():
        if number > 1:
            raise StorageError(f"{where}: the trial {name} stands there twice; once is right")
    usual = {"description": "", "source": "", "text": "", "settings": {}, "environment": {}, "reference": []}
    return {"schema": SCHEMA} | usual | results | {"trials": rows}


def validated_row(value: Any, where: str) -> dict[str, Any]:
    """Return the row of one trial, checked; ``where`` names the file or database that it comes from.

    Keys that this version does not know are left out, and lists that a failed trial does not have are empty.
    Raises StorageError for the first thing that is not what a study writes.
    """
    if isinstance(value, dict) and value.get("state") == "finished":
        needed = ("method", "point", "seed", "metrics", *_WHOLE)
        lacking = [key for key in needed if value.get(key) is None or (key == "metrics" and value[key] == {})]
        if lacking:
            raise StorageError(
                f"{where}: a trial lacks {lacking[0]!r}: written by an early version; run the study again"
            )
    row = checked(_Row, _renewed_row(value), where)
    _check_shares(row, where)
    if row.get("config", ...) is None:  # of a failed trial
        del row["config"]
    return row | {key: empty for key, empty in EMPTY.items() if key not in row}


def renewed(row: Any) -> Any:
    """Return figures with the names that they have now: before schema 2 every score was an accuracy."""
    if not isinstance(row, dict):
        return row
    new = {"validation_accuracy": "validation_score"}
    return {new.get(key, re.sub("^accuracy_", "score_", str(key))): value for key, value in row.items()}


def _renewed_row(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    curves = value.get("curves")
    if isinstance(curves, dict):
        renew = lambda rows: [renewed(row) for row in rows] if isinstance(rows, list) else rows  # noqa: E731
        curves = {step: renew(rows) for step, rows in curves.items()}
    new = {"metrics": renewed(value.get("metrics")), "curves": curves}
    return value | {key: part for key, part in new.items() if key in value}


def _check_shares(row: Mapping[str, Any], where: str) -> None:
    """Raise StorageError for a score in percent that is no share."""
    if scale_of(row).unit != "%":
        return
    scores = {key: value for key, value in row.get("metrics", {}).items() if key.startswith("score_")}
    metrics = [(f"metrics.{key}", value) for key, value in scores.items() if value is not None]
    epochs = [
        (f"curves.{step}.{index}.validation_score", epoch["validation_score"])
        for step, rows in row.get("curves", {}).items()
        for index, epoch in enumerate(rows)
    ]
    for place, value in metrics + epochs:
        if not 0 <= value <= 1:
            raise StorageError(f"{where}: {place} is {short(value)}; a number from 0 to 1 is right")


def score_of(task: Task) -> dict[str, Any]:
    """Return what results say of a task's score."""
    score = task.score
    return {
        "name": score.name,
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "example": task.example,
    }


def scale_of(row: Mapping[str, Any]) -> Scale:
    """Return how the scores of a row are read: as an accuracy where it does not say, as before schema 2."""
    score = row.get("score")
    if score is None:
        return ACCURACY
    return Scale(score["name"], score.get("unit", ""), score.get("higher_is_better", True))
