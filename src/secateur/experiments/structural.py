"""The actions of a trial that work on whole units: tracing, refitting, compacting."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.data.dataset import Dataset
from secateur.experiments.choices import make
from secateur.experiments.dense import calibration_batches
from secateur.experiments.specs import PruneToSpec, RefitSpec
from secateur.methods.constraints import prune_to
from secateur.methods.reconstruction import reconstruct
from secateur.pruning.masks import Masks
from secateur.pruning.targets import count_nonzero, find_targets
from secateur.structure.compact import compact
from secateur.structure.units import Structure, trace


def traced(model: nn.Module, data: Dataset) -> Structure:
    """Return the units of a trial's network."""
    return trace(model, _example(model, data))


def refit(
    model: nn.Module, dense: nn.Module, masks: Masks | None, data: Dataset, spec: RefitSpec, seed: int
) -> list[str]:
    """Refit the layers that read removed units, in place; return what could not be refitted."""
    batches = list(calibration_batches(data.train, spec.calibration, seed))
    done = reconstruct(model, dense, traced(model, data), batches, ridge=spec.ridge, masks=masks)
    return [f"not refitted: {name} ({reason})" for name, reason in done.skipped.items()]


def pruned_to(model: nn.Module, data: Dataset, spec: PruneToSpec, seed: int) -> tuple[nn.Module, str]:
    """Return the small network that meets the constraint, and what the proof says."""
    example = _example(model, data)
    small, proof = prune_to(
        model,
        example[:1] if spec.latency_ms is not None else example,
        macs=spec.macs,
        parameters=spec.parameters,
        latency_ms=spec.latency_ms,
        criterion=make("criterion", spec.criterion),
        data=list(calibration_batches(data.train, spec.calibration, seed)),
        include=spec.include,
        exclude=spec.exclude,
        round_to=spec.round_to,
        min_kept=spec.min_kept,
    )
    return small, "; ".join(repr(proof).splitlines())


def compacted(model: nn.Module, masks: Masks | None, data: Dataset) -> tuple[nn.Module, Masks | None, str]:
    """Return the really smaller network, its masks, and what the proof says."""
    small, proof = compact(model, _example(model, data), masks=masks)
    return small, proof.masks, "; ".join(repr(proof).splitlines())


def layer_rows(model: nn.Module, dense: nn.Module) -> list[dict[str, Any]]:
    """One row a target of the dense network: how many of its weights are left and not zero."""
    now = find_targets(model)
    return [
        {
            "name": name,
            "shape": list(now[name].weight.shape),
            "weights": target.weight.numel(),
            "kept": count_nonzero(now[name].weight),
            "sparsity": 1 - count_nonzero(now[name].weight) / target.weight.numel(),
            "requested": None,
        }
        for name, target in find_targets(dense).items()
    ]


def _example(model: nn.Module, data: Dataset) -> Any:
    return data.validation.inputs[:2].to(next(model.parameters()).device)
