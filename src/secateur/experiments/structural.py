"""The actions of a trial that work on whole units: tracing, refitting, compacting."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.data.dataset import Dataset
from secateur.experiments.dense import calibration_batches
from secateur.experiments.specs import RefitSpec
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
