"""What branches begin from, and are fitted to: least squares on what the layers read on calibration data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.errors import CriterionError, NonFiniteError
from secateur.graph.capture import tensor_of
from secateur.methods.widening import LEARNING, OWN, PRODUCER, READER, Part, Widened, key
from secateur.running import call_model, evaluating
from secateur.structure.units import Structure

Start = Literal["least squares", "svd", "random"]


@torch.no_grad()
def start_random(network: Widened, parts: Mapping[str, Sequence[Part]], generator: torch.Generator) -> None:
    """As torch starts a convolution or a linear layer: uniform within 1 / sqrt(inputs)."""
    for matrix in (*network.down.values(), *network.up.values()):
        bound = 1 / math.sqrt(matrix.shape[1])
        matrix.copy_((torch.rand(matrix.shape, generator=generator) * 2 - 1) * bound)
    _own_as(network, parts, None)


@torch.no_grad()
def _own_as(
    network: Widened, parts: Mapping[str, Sequence[Part]], chosen: Mapping[str, Tensor] | None
) -> None:
    """Give the branches norms of their own: those of the ``chosen`` channels, or fresh ones."""
    for group_name, group in parts.items():
        width = network.widths[group_name]
        for part in group:
            if part.role != OWN:
                continue
            old = tensor_of(network.model, part.tensor)
            path, _, leaf = part.tensor.rpartition(".")
            if chosen is not None:
                new = old.unflatten(0, (-1, part.entries))[chosen[group_name]].flatten(0, 1)
            elif isinstance(network.wide.get_submodule(path), (nn.modules.conv._ConvNd, nn.PReLU)):
                new = old.unflatten(0, (-1, part.entries))[:width].flatten(0, 1)
            else:
                new = torch.full((width * part.entries,), 0.0 if leaf in ("bias", "running_mean") else 1.0)
            name = key(part.tensor)
            place = (
                network.own[name] if name in network.own else tensor_of(network.wide, part.tensor)[len(old) :]
            )
            place.copy_(new)


@torch.no_grad()
def start_near(
    network: Widened,
    structure: Structure,
    parts: Mapping[str, Sequence[Part]],
    data: Sequence[Any],
    start: Start,
) -> None:
    """Start the branches near the layers that they are beside: see ``secateur.BranchAnnealing``."""
    if start == "least squares":
        chosen: dict[str, Tensor] = {}
        seen = grams(network, parts, data)
        for name, group in parts.items():
            units = len(structure.groups[name])
            size = torch.zeros(units, dtype=torch.float64)
            for part in group:
                if part.role == READER:
                    weight = tensor_of(network.model, part.tensor).unflatten(1, (-1, part.entries))
                    size += weight.double().square().movedim(1, 0).flatten(1).sum(1).cpu()
            chosen[name] = pivots(seen[name][:units, :units], size.sqrt(), network.widths[name])
            for part in group:
                if part.role == PRODUCER:
                    down = network.down[key(part.tensor.rpartition(".")[0])]
                    down.copy_(torch.eye(units)[chosen[name]])
        _own_as(network, parts, chosen)
    else:
        for name, group in parts.items():
            for part in group:
                if part.role == PRODUCER and part.tensor.endswith("weight"):
                    weight = tensor_of(network.model, part.tensor).unflatten(0, (-1, part.entries))
                    left = torch.linalg.svd(weight.double().flatten(1), full_matrices=True)[0]
                    down = network.down[key(part.tensor.rpartition(".")[0])]
                    down.copy_(left[:, : network.widths[name]].T)
        _own_as(network, parts, None)
        learn_statistics(network, data, own=False)
    _fit_up(network, parts, grams(network, parts, data), dict.fromkeys(parts, 1.0), dict.fromkeys(parts, 0.0))


@torch.no_grad()
def refit(
    network: Widened, parts: Mapping[str, Sequence[Part]], data: Sequence[Any], alphas: Mapping[str, float]
) -> None:
    """Set the alphas, and every ``up`` such that with them its readers read, as nearly as they can on the
    data, what they read now."""
    before = dict(network.alphas)
    changed = {name: part for name, part in parts.items() if alphas[name] != before[name]}
    if changed:
        _fit_up(network, changed, grams(network, changed, data), before, alphas)
    network.alphas.update(alphas)


def _fit_up(
    network: Widened,
    parts: Mapping[str, Sequence[Part]],
    sums: Mapping[str, Tensor],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> None:
    """Solve a B + (1 - a) U P = a' B + (1 - a') U' P for U' by least squares, a being alpha before, a' after.

    Where V P is the best prediction of B, U' = ((a - a') V + (1 - a) U) / (1 - a').
    """
    for name in parts:
        old, new = before[name], after[name]
        if new == 1:
            continue
        up = network.up[key(name)]
        units = len(up)
        xx, xy = sums[name][units:, units:], sums[name][units:, :units]
        pull = 1e-6 * xx.diagonal().mean() + 1e-12
        predicted = torch.linalg.solve(xx + pull * torch.eye(len(xx), dtype=xx.dtype), xy).T
        up.copy_(((old - new) * predicted + (1 - old) * up.double().cpu()) / (1 - new))


def pivots(gram: Tensor, size: Tensor, number: int) -> Tensor:
    """Return the channels of largest energy that the ones before do not predict (pivoted Cholesky)."""
    left = gram * size[:, None] * size
    least = 1e-12 * float(left.diagonal().max())  # less is rounding
    picked: list[int] = []
    for _ in range(number):
        energy = left.diagonal().clone()
        energy[picked] = -math.inf
        best = int(energy.argmax())
        picked.append(best)
        if energy[best] > least:
            column = left[:, best].clone()
            left = left - column[:, None] * column / energy[best]
    return torch.tensor(sorted(picked))


def grams(network: Widened, parts: Mapping[str, Sequence[Part]], data: Sequence[Any]) -> dict[str, Tensor]:
    """Return by group the sums of x xT over what its readers read on the data, both paths (C + C')."""
    sums: dict[str, Tensor] = {}

    def watch(part: Part, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            dim = args[0].dim() - 1 if isinstance(module, nn.Linear) else 1
            x = args[0].detach().unflatten(dim, (-1, part.entries)).movedim(dim, -1).flatten(0, -2).double()
            sums[part.group] = sums.get(part.group, 0.0) + (x.T @ x).cpu()

        return module.register_forward_pre_hook(hook)

    with ExitStack() as hooks, evaluating(network):
        for group in parts.values():
            for part in group:
                if part.role == READER:
                    module = network.wide.get_submodule(part.tensor.rpartition(".")[0])
                    hooks.enter_context(watch(part, module))
        for inputs in data:
            call_model(network, inputs)
    missing = [name for name in parts if name not in sums]
    if missing:
        raise CriterionError(f"{missing[0]}: the layers that read it never ran on the data given; exclude it")
    for name, gram in sums.items():
        if not gram.isfinite().all():
            raise NonFiniteError(f"{name}: a NaN or an infinity in what its next layers read on the data")
    return sums


@torch.no_grad()
def learn_statistics(network: Widened, data: Sequence[Any], own: bool) -> None:
    """Give norms the mean statistics of the data: those of branches, and the model's ``own`` too."""
    learning = [module for module in network.wide.modules() if isinstance(module, LEARNING)] if own else []
    norms = [*network.norms(), *(norm for norm in learning if norm.track_running_stats)]
    momenta, frozen = [norm.momentum for norm in norms], network.frozen
    with evaluating(network):
        network.freeze(not own)
        try:
            for number, inputs in enumerate(data, 1):
                for norm in norms:
                    norm.train()
                    norm.momentum = 1 / number
                call_model(network, inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            network.freeze(frozen)
