"""What ``deploy.json`` holds, checked where it is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from secateur.experiments.checked_json import (
    SCHEMA,
    Count,
    Hash,
    Listed,
    Model,
    Object,
    Real,
    ScoreNamed,
    Seed,
    Text,
    Texts,
    check_schema,
    checked,
)


class _Timing(Model):
    median: Real
    low: Real
    high: Real
    runs: Count = 0
    threads: Count = 1


class _Timings(Model):
    at_1: Annotated[_Timing, Field(alias="1")]
    at_64: Annotated[_Timing, Field(alias="64")]


class _Peak(Model):
    at_1: Annotated[Count, Field(alias="1")]
    at_64: Annotated[Count, Field(alias="64")]


class _Memory(Model):
    imports: Count
    peak: _Peak


class _Format(Model):
    name: Text
    reason: None
    file: Text
    bytes: Count
    load_s: Real
    memory: _Memory | None
    latency: _Timings
    score: Real | None
    same: Count | None
    error: Real | None = None
    note: Text | None = None


class _NotMade(Model):
    name: Text
    reason: Text


class _Deployed(Model):
    id: Hash
    method: Text
    point: Object
    seed: Seed


class _Deployment(Model):
    trial: _Deployed
    environment: Object
    test: Count
    score: ScoreNamed | None = None
    reference: Text = "pruned, PyTorch"
    seconds: Real = 0.0
    formats: Annotated[list[Any], Listed]
    notes: Texts = Field(default_factory=list)


def validated_deployment(value: Any, where: str) -> dict[str, Any]:
    """Return what ``secateur deploy`` measured, as ``deploy.json`` holds it, checked.

    Raises StorageError, naming the file by ``where``, for the first thing that it would not write.
    """
    check_schema(value, where)
    found = checked(_Deployment, value, where)
    formats: list[dict[str, Any]] = []
    for i, each in enumerate(found["formats"]):
        made = isinstance(each, dict) and each.get("reason") is None
        if made and "accuracy" in each:  # of classification alone
            each = {"score" if key == "accuracy" else key: value for key, value in each.items()}
        formats.append(checked(_Format if made else _NotMade, each, f"{where}: formats.{i}"))
    return {"schema": SCHEMA} | found | {"formats": formats, "notes": found.get("notes", [])}
