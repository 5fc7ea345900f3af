"""One's own checkpoint on the command line: look at it, or prune it, without a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from secateur.errors import RecipeError
from secateur.experiments.choices import make
from secateur.experiments.dense import calibration_batches, load_dataset
from secateur.experiments.recipe import DataSpec
from secateur.measure.summary import format_layers, layer_profiles, profile
from secateur.models import build_model
from secateur.pruning.prune import prune
from secateur.training.checkpoint import load_weights, save_weights


def inspect_model(name: str, weights: Path | None, input_shape: tuple[int, ...] | None) -> str:
    """Return the layer table of a network; with an input shape, its whole profile."""
    model = build_model(name)
    if weights is not None:
        load_weights(weights, model)
    if input_shape is None:
        return format_layers(layer_profiles(model))
    return repr(profile(model, torch.zeros(input_shape)))


def prune_checkpoint(
    *,
    model: str,
    weights: Path,
    out: Path,
    criterion: str | Mapping[str, Any],
    budget: str | Mapping[str, Any],
    sparsity: float | None,
    shrinkage: str | Mapping[str, Any],
    include: list[str] | None,
    exclude: list[str] | None,
    data: str | Mapping[str, Any] | None,
    masks_out: Path | None,
) -> str:
    """Prune the checkpoint ``weights`` of ``model`` into ``out`` and return the table of masks."""
    if not isinstance(budget, (str, Mapping)):
        raise RecipeError(f"--budget {budget}: a budget's name, or a mapping with a name")
    budget = {"name": budget} if isinstance(budget, str) else dict(budget)
    if sparsity is not None:
        budget["sparsity"] = sparsity
    if budget == {"name": "global"}:
        raise RecipeError(
            "how much should go? give --sparsity 0.9, or --budget '{name: std, sensitivity: 1}'"
        )
    chosen = make("budget", budget)
    batches = None
    if data is not None:
        if not isinstance(data, str) and not (isinstance(data, Mapping) and "name" in data):
            raise RecipeError(f"--data {data}: a data set's name, or a mapping with a name")
        spec = DataSpec.model_validate({"name": data} if isinstance(data, str) else dict(data))
        batches = calibration_batches(load_dataset(spec).train, 1024, seed=0)
    network = build_model(model)
    load_weights(weights, network)
    masks = prune(
        network,
        make("criterion", criterion),
        chosen,
        shrinkage=make("shrinkage", shrinkage),
        include=include,
        exclude=exclude,
        data=batches,
    )
    save_weights(out, network)
    if masks_out is not None:
        masks.save(masks_out)
    return repr(masks)
