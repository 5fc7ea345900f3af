"""The whole file of a recipe as it is written, before its sweep is laid out: unknown keys are errors."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from secateur.experiments.fields import Count, Plain, Seeds, Strict
from secateur.experiments.plan import DataSpec, ModelSpec, TaskSpec
from secateur.text import shown

# Of no folder everywhere, or of one elsewhere; `dense` keeps the networks that studies share.
_NOT_IN_A_NAME = re.compile(r'[/\\:*?"<>|]|^[. ]|[. ]$')
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)(\..*)?|dense", re.IGNORECASE)


def _folder_name(name: str) -> str:
    """Return the name of a recipe, which names its folder of results too."""
    if not name or len(name.encode()) > 100 or _NOT_IN_A_NAME.search(name) or _RESERVED.fullmatch(name):
        raise ValueError(
            f"name is {shown(repr(name))}; the folder of the results has it too: 1 to 100 bytes, none of "
            '/ \\ : * ? " < > |, no dot or space at its ends, and no reserved name'
        )
    return name


def _few_threads(threads: int) -> int:
    most = 16 * (os.cpu_count() or 1)
    if threads > most:
        raise ValueError(f"threads is {threads}; {most} at most, 16 for each core of this machine")
    return threads


Sweep = dict[str, list[Any]] | list[dict[str, list[Any]]]


class MethodSpec(Strict):
    """Steps and a sweep of their settings: a grid, or a list of grids one after the other.

    ``seeds``: of the study's seeds those that it runs with; a grid narrows them by a key ``seeds``.
    """

    steps: list[dict[str, Any]]
    sweep: Sweep = Field({})
    seeds: Seeds | None = None


class RecipeSpec(Strict):
    """The whole file, before its sweep is laid out."""

    name: Annotated[str, AfterValidator(_folder_name)]
    description: str = ""
    source: str = ""
    data: DataSpec
    model: ModelSpec
    task: TaskSpec = Field(TaskSpec())
    train: dict[str, Any] = Field({})
    steps: list[dict[str, Any]] | None = None
    sweep: Sweep = Field({})
    methods: dict[str, MethodSpec] | None = None
    seeds: Annotated[Seeds, Field(min_length=1)] = Field([0, 1, 2])
    reference: list[dict[str, Plain]] = Field([])
    threads: Annotated[Count, AfterValidator(_few_threads)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    measure: list[Literal["latency", "memory"]] = Field(["latency", "memory"])
    sampler: Literal["grid", "tpe"] = "grid"
    trials: Count = 20
