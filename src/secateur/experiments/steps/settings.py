"""The settings that several kinds of steps have: choices by name, patterns of names, and trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo

from secateur.errors import RecipeError
from secateur.experiments.choices import as_number, make
from secateur.experiments.fields import Count
from secateur.experiments.validation import wrong
from secateur.text import nearest, shown
from secateur.training.settings import Training

AS_TRAINED: Any = {}  # the dense network's training, with nothing put over it


def training_over(raw: Any, base: Training) -> Training:
    """Return the training that settings describe; what ``raw`` does not say is as in ``base``.

    Raises:
        ValidationError: for the setting that is wrong.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{shown(raw)} is no mapping of training settings")
    known = [field.name for field in fields(Training)]
    for key in raw:
        if key not in known:
            raise wrong(f"unknown key {shown(key)!r}{nearest(key, known)}", key)
    try:
        return replace(base, **{key: as_number(value) for key, value in raw.items()})
    except RecipeError as error:
        raise wrong(str(error), str(error).split()[0]) from error  # it begins with the setting's name


def own_training(raw: Any, info: ValidationInfo, **usual: Any) -> Training:
    """Return the training of a step, which can learn from the dense network: its settings are put over
    ``usual`` ones, and those over the dense network's training."""
    training = training_over(raw, replace(_base(info), **usual))
    if "temperature" in raw and not training.distill:
        raise wrong("temperature does nothing without distill; give both, or neither", "temperature")
    return training


def _base(info: ValidationInfo) -> Training:
    return (info.context or {}).get("train", Training())


def _chosen(kind: str) -> PlainValidator:
    return PlainValidator(partial(make, kind))


def _budget(raw: Any) -> Any:
    if not isinstance(raw, Mapping):
        raise ValueError(f"budget is {shown(raw)}; it is a mapping with a name and an amount")
    return make("budget", raw)


def _to_the_last(raw: Any, info: ValidationInfo) -> Training:
    """Return a training in which something shrinks from epoch to epoch: the best one would be the first."""
    training = own_training(raw, info, keep="last")
    if training.epochs == 0:
        raise wrong("what is trained here needs epochs", "epochs")
    if training.keep != "last":
        raise wrong("what has shrunk would come back from an earlier epoch; keep: last is right", "keep")
    return training


Base = Annotated[Training, PlainValidator(lambda raw, info: training_over(raw, _base(info)))]
Trained = Annotated[Training, PlainValidator(own_training), Field(validate_default=True)]
TrainedToTheLast = Annotated[Training, PlainValidator(_to_the_last), Field(validate_default=True)]
Criterion = Annotated[Any, _chosen("criterion")]
Budget = Annotated[Any, PlainValidator(_budget)]
Shrinkage = Annotated[Any, _chosen("shrinkage")]
Include = Annotated[
    Annotated[list[str], Field(min_length=1)] | None,
    Field(description="Only what these patterns match; null is all."),
]
Exclude = Annotated[list[str] | None, Field(description="Nothing that these patterns match.")]
Alike = Annotated[
    bool,
    Field(
        description="Like groups of like blocks lose as many units each (heads, neurons), so that a stock "
        "configuration of transformers can say what is left."
    ),
]
Calibration = Annotated[Count, Field(description="Training examples that are read, if any are.")]
