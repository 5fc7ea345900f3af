"""The parts of a recipe as it is written, each validated by pydantic: unknown keys are errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from secateur.experiments.choices import as_number
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


Real = Annotated[float, BeforeValidator(as_number)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[list[Seed], Field(max_length=10_000)]
Plain = str | int | float | bool | None
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Strict(BaseModel):
    model_config = _STRICT | ConfigDict(extra="forbid")


class DataSpec(BaseModel):
    """``name`` of a data set, the ``validation`` share or number, and the data set's own options."""

    model_config = _STRICT | ConfigDict(extra="allow")
    name: str
    validation: Annotated[int | Real, Field(ge=0)] = 0.1


class ModelSpec(BaseModel):
    """``name`` of a network or ``package.module:factory``, its options, and ``weights`` to start from."""

    model_config = _STRICT | ConfigDict(extra="allow")
    name: str
    weights: str | None = None


class ScheduleSpec(Strict):
    """A schedule by name, and the training after each of its steps but the last."""

    name: str
    steps: Annotated[int, Field(ge=2, le=10_000)]
    initial: Real = 0.0
    retrain: dict[str, Any]


class PruneSpec(Strict):
    """One ``prune`` step. ``units``: whole neurons, filters or heads, of which each group keeps
    ``min_kept`` and a multiple of ``round_to``. ``calibration``: training examples that criteria with
    data read. ``relative_to``: what a global budget's sparsity is a share of, once units are gone: the
    weights of the network as it is, or of the dense one."""

    criterion: str | dict[str, Any] = "magnitude"
    budget: dict[str, Any]
    shrinkage: str | dict[str, Any] = "hard"
    schedule: ScheduleSpec | None = None
    block: Annotated[tuple[Count, Count], pydantic.Strict(False)] | None = None
    units: bool = False
    round_to: Count = 1
    min_kept: Count = 1
    include: Annotated[list[str], Field(min_length=1)] | None = None
    exclude: list[str] | None = None
    calibration: Count = 1024
    relative_to: Literal["network", "dense"] = "network"


class RefitSpec(Strict):
    """One ``refit`` step: the layers that read removed units fitted to the dense network's outputs on
    ``calibration`` training examples, by least squares with a ``ridge``."""

    calibration: Count = 10_000
    ridge: Annotated[Real, Field(ge=0)] = 1e-3


class PruneToSpec(Strict):
    """One ``prune_to`` step: units go until one constraint is met, and are removed for real.

    ``macs``, ``parameters``: the share of the network's that is left; ``latency_ms``: of one example.
    """

    criterion: str | dict[str, Any] = "l2_norm"
    macs: Real | None = None
    parameters: Real | None = None
    latency_ms: Real | None = None
    round_to: Count = 1
    min_kept: Count = 1
    include: Annotated[list[str], Field(min_length=1)] | None = None
    exclude: list[str] | None = None
    calibration: Count = 1024


class GreedySpec(Strict):
    """One ``greedy`` step: the unit that is missed least goes, again and again, until a goal is met.

    ``sparsity``: the share of the dense network's weights that is gone; ``parameters``, ``macs``: the share
    left; ``latency_ms``; or ``accuracy_drop``: percentage points of validation accuracy that may be lost.
    Chosen on ``examples`` drawn from the validation split. ``retrain``: after every so many removals.
    """

    sparsity: Real | None = None
    parameters: Real | None = None
    macs: Real | None = None
    latency_ms: Real | None = None
    accuracy_drop: Real | None = None
    criterion: Literal["score", "output"] = "score"
    scope: Literal["layer", "network"] = "layer"
    every: Count = 16
    at_once: Count = 1
    min_kept: Count = 1
    examples: Count = 1000
    include: Annotated[list[str], Field(min_length=1)] | None = None
    exclude: list[str] | None = None
    retrain: dict[str, Any] | None = None


class SelectionSpec(Strict):
    """One ``structure_selection`` step: factors on units and residual blocks trained with the weights, by
    ``train``; those under ``threshold`` in the end are removed for real. ``penalty`` times the sum of
    |factors| is added to the loss; ``lr`` and ``momentum`` are the factors' own."""

    penalty: Annotated[Real, Field(ge=0)] = 1e-3
    lr: Annotated[Real, Field(gt=0)] | None = 0.1
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    threshold: Annotated[Real, Field(ge=0)] = 1e-4
    blocks: bool = True
    units: bool = True
    include: Annotated[list[str], Field(min_length=1)] | None = None
    exclude: list[str] | None = None
    train: dict[str, Any] = {}


class DescentSpec(Strict):
    """How alpha goes from 1 to 0, as :class:`secateur.Descent`, ``name`` being its kind."""

    name: Literal["step", "multiplicative", "exponential", "cosine"] = "step"
    step: Annotated[Real, Field(ge=1e-4, le=1)] = 0.1
    factor: Annotated[Real, Field(gt=0, le=0.999)] = 0.5
    rate: Annotated[Real, Field(ge=1e-6)] = 0.05
    stages: Annotated[int, Field(ge=1, le=10_000)] = 10
    threshold: Annotated[Real, Field(ge=1e-6, le=1)] = 0.01


class AnnealSpec(Strict):
    """One ``anneal`` step: a branch of ``ratio`` of the channels beside every layer takes its place in
    stages, each trained by ``train``, and is folded into a really smaller network.

    ``adaptive``, ``rates``, ``update``: as in :class:`secateur.Annealing`; ``tolerance`` in percentage
    points of validation accuracy. ``calibration``: training examples that the ``start`` reads.
    """

    ratio: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    start: Literal["least squares", "svd", "random"] = "least squares"
    update: Literal["start", "never"] | Real = "start"
    schedule: DescentSpec = DescentSpec()
    adaptive: bool = False
    tolerance: Real = 1.0
    rates: Annotated[list[Real], Field(max_length=100)] = [1.0]
    include: Annotated[list[str], Field(min_length=1)] | None = None
    exclude: list[str] | None = None
    calibration: Count = 1024
    train: dict[str, Any] = {}


class CompactSpec(Strict):
    """One ``compact`` step: dead units are removed for real, and the result is proved equal."""


class ShareSpec(Strict):
    """One ``share`` step: the surviving weights of each target take ``values`` values (k-means), which are
    trained by ``train``."""

    values: int = 16
    include: Annotated[list[str], Field(min_length=1)] | None = None
    exclude: list[str] | None = None
    train: dict[str, Any] = {}


class PackSpec(Strict):
    """One ``pack`` step: the network in a small file, which is read back. ``values``: null keeps each, bit
    for bit; float16 or a number of shared values loses something."""

    values: int | str | None = None
    compression: Literal["lzma", "zstd"] = "lzma"


class ScratchSpec(Strict):
    """One ``scratch`` step: instead of the pruned network, a new one of the same kind with other
    ``model`` options, trained from its initial weights: the control that pruning has to beat.
    ``width``: what the network's own option ``width`` is multiplied by."""

    model: dict[str, Any] = {}
    width: Annotated[Real, Field(gt=0)] | None = None
    train: dict[str, Any] = {}

    def options_beside(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that differ from those of the study's ``network``."""
        if self.width is None:
            return dict(self.model)
        return self.model | {"width": network.get("width", 1.0) * self.width}


class MethodSpec(Strict):
    """Steps and a sweep of their settings: a grid, or a list of grids one after the other.

    ``seeds``: of the study's seeds those that it runs with; a grid narrows them by a key ``seeds``.
    """

    steps: list[dict[str, Any]]
    sweep: dict[str, list[Any]] | list[dict[str, list[Any]]] = {}
    seeds: Seeds | None = None


class RecipeSpec(Strict):
    """The whole file, before its sweep is laid out."""

    name: Annotated[str, AfterValidator(_folder_name)]
    description: str = ""
    source: str = ""
    data: DataSpec
    model: ModelSpec
    train: dict[str, Any] = {}
    steps: list[dict[str, Any]] | None = None
    sweep: dict[str, list[Any]] | list[dict[str, list[Any]]] = {}
    methods: dict[str, MethodSpec] | None = None
    seeds: Annotated[Seeds, Field(min_length=1)] = [0, 1, 2]
    reference: list[dict[str, Plain]] = []
    threads: Annotated[Count, AfterValidator(_few_threads)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    measure: list[Literal["latency", "memory"]] = ["latency", "memory"]
    sampler: Literal["grid", "tpe"] = "grid"
    trials: Count = 20
