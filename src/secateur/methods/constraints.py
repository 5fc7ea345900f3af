"""Prune to a constraint on the network that is left: its MACs, parameters or measured latency."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from secateur.copying import copied
from secateur.errors import SecateurWarning
from secateur.graph.names import unwrapped
from secateur.methods.goals import goal_of
from secateur.pruning.alike import kinds_of
from secateur.pruning.budgets import Global
from secateur.pruning.calibration import Batches, Loss
from secateur.pruning.criteria import Criterion
from secateur.pruning.prune import prune
from secateur.pruning.structured import select_groups
from secateur.pruning.unit_criteria import L2Norm, UnitCriterion, unit_scores
from secateur.structure.compact import compact
from secateur.structure.proof import Proof
from secateur.structure.runs import Methods
from secateur.structure.tracing import trace

_PROBES = 12
_GOALS = ("macs", "parameters", "latency_ms")


def prune_to(
    model: nn.Module,
    example_inputs: Any,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    latency_ms: float | None = None,
    criterion: Criterion | UnitCriterion | None = None,
    kwargs: Mapping[str, Any] | None = None,
    examples: Sequence[Any] = (),
    methods: Methods = ("forward",),
    data: Batches | None = None,
    loss: Loss | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    round_to: int = 1,
    min_kept: int = 1,
    alike: bool = False,
) -> tuple[nn.Module, Proof]:
    """Remove as few of the least important units as meet one constraint; return (small model, proof). The
    number of units is found by bisection, each try compacted and proved, and the given model is not changed.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        macs: the share of its dense multiply-adds that may be left, over 0 and up to 1 (0.6 is 40 % fewer).
        parameters: the share of its parameters that may be left, likewise.
        latency_ms: the median of one forward on ``example_inputs``, measured here and now.
        criterion: ranks the units of all groups together, once; default ``L2Norm(normalise=True)``.
        kwargs: arguments by name beside ``example_inputs``.
        examples: further calls that must stay equal, as in ``secateur.compact``.
        methods: further methods that must, likewise.
        data: batches, for criteria that read them.
        loss: ``loss(outputs, labels)``, for criteria that read one.
        include: name patterns of groups, as in ``secateur.prune``.
        exclude: name patterns of those left out.
        round_to: what the number of units left in a pruned group is a multiple of.
        min_kept: how many units every group keeps.
        alike: take as many units from like groups of like blocks, as in ``secateur.prune``.

    Returns:
        The small network, and the proof that it equals the masked one, with both networks' ``parameters`` and
        ``macs``.

    Raises:
        BudgetError: where the constraint is not one of these, or cannot be met.
        CriterionError, TargetError, ModelError: as ``secateur.prune`` and ``secateur.compact``.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> small, proof = sc.prune_to(model, torch.randn(2, 8), macs=0.5)
        >>> proof.macs
        (384, 192)
    """
    model = unwrapped(model)
    goal = goal_of(
        model, example_inputs, kwargs, _GOALS, macs=macs, parameters=parameters, latency_ms=latency_ms
    )
    scored = _Scored(criterion or L2Norm(normalise=True))

    def attempt(share: float) -> tuple[nn.Module, Proof, float]:
        masked = copied(model)
        structure = trace(masked, example_inputs, kwargs=kwargs)
        with warnings.catch_warnings():
            # The constraint is met, whatever rounding gives back.
            warnings.simplefilter("ignore", SecateurWarning)
            prune(
                masked, scored, Global(share), structure=structure, data=data, loss=loss, include=include,
                exclude=exclude, round_to=round_to, min_kept=min_kept, alike=alike,
            )  # fmt: skip
        small, proof = compact(
            masked, example_inputs, kwargs=kwargs, examples=examples, methods=methods, structure=structure
        )
        return small, proof, goal.cost(small)

    chosen = select_groups(trace(model, example_inputs, kwargs=kwargs), include, exclude)
    groups = [chosen[name] for name in (kinds_of(chosen) if alike else chosen)]
    low, high = 0.0, sum(max(0, len(g) - min_kept) for g in groups) / sum(map(len, groups))
    best: tuple[nn.Module, Proof] | None = None
    least = math.inf
    for probe in range(_PROBES):
        share = high if probe == 0 else (low + high) / 2
        small, proof, cost = attempt(share)
        least = min(least, cost)
        if goal.met(cost):
            best, high = (small, proof), share
        elif probe == 0:
            break
        else:
            low = share
    if best is None:
        raise goal.missed(min_kept, least)
    return best


class _Scored:
    """A criterion that is asked once: its first scores serve every try."""

    counts_units: ClassVar[bool] = True

    def __init__(self, criterion: Criterion | UnitCriterion) -> None:
        self.criterion = criterion
        self.scores: dict[str, torch.Tensor] = {}

    def __call__(self, structure: Any, data: Any = None, loss: Any = None) -> dict[str, torch.Tensor]:
        if not self.scores:
            self.scores = unit_scores(structure, self.criterion, data, loss)
        return self.scores
