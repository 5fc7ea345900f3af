"""Penalties that push whole units, or chosen weights, to zero while the network is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, TargetError
from secateur.graph.capture import tensor_of
from secateur.numeric import is_whole
from secateur.pruning.budgets import check_value
from secateur.pruning.holding import (
    Level,
    Optimizers,
    around_steps,
    check_updates,
    innermost,
    left_out,
    updated_by,
)
from secateur.pruning.masks import Masks
from secateur.pruning.structured import select_groups
from secateur.structure.proof import untraced
from secateur.structure.units import Group, Structure


@contextmanager
def group_lasso(
    optimizer: Optimizers,
    structure: Structure,
    penalty: float = 1e-3,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Iterator[None]:
    """Inside the block take ``penalty`` times the learning rate off the norm of every unit after each step
    of ``optimizer``, down to exactly zero: proximal steps of the penalty times the sum of the units' norms.

    A unit's norm is that of all it consists of, weights, bias and norm scales; times the root of their
    number, so that units with many entries are not favoured. ``secateur.compact`` removes what is zero.

    Args:
        optimizer: the one that trains the network, or a list. What scales gradients does not scale this.
        structure: a ``secateur.trace`` of the network.
        penalty: from 0.
        include: name patterns of groups, as in ``secateur.prune``.
        exclude: name patterns of those left out.

    Returns:
        A context manager.

    Raises:
        BudgetError: for an impossible penalty.
        TargetError: for no structure, or where the optimizer trains nothing of it.

    Source:
        Yuan & Lin (2006); for filters Wen et al., "Learning Structured Sparsity in Deep Neural Networks"
        (NeurIPS 2016).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with sc.group_lasso(optimizer, sc.trace(net, torch.ones(1, 8)), penalty=100.0):
        ...     net(torch.randn(4, 8)).sum().backward()
        ...     optimizer.step()
        >>> int(torch.count_nonzero(net[0].weight))
        0
    """
    check_value("penalty", penalty)
    if not isinstance(structure, Structure):
        raise TargetError(f"structure= {untraced(structure)}")
    levels = innermost(optimizer)
    groups = list(select_groups(structure, include, exclude).values())
    mine = {
        level: [_Units(structure.model, group, updated_by([level])) for group in groups] for level in levels
    }
    if not any(units.parts for each in mine.values() for units in each):
        raise TargetError("the optimizer trains nothing of the units of this structure")

    def shrink(level: Level) -> None:
        groups = level.optimizer.param_groups
        rates = {id(tensor): float(group["lr"]) for group in groups for tensor in group["params"]}
        for units in [] if left_out(level) else mine[level]:
            units.shrink(penalty, rates)

    with around_steps(levels, after=shrink):
        yield


class _Units:
    """The tensors, of those that are ``trained``, that a group's units consist of, each along one dim."""

    def __init__(self, model: nn.Module, group: Group, trained: Collection[int]) -> None:
        made = [part for part in group.slices if part.masked and not part.reads]
        found = [(tensor_of(model, p.name), p.dim, torch.from_numpy(p.indices)) for p in made]
        self.parts = [part for part in found if id(part[0]) in trained and part[0].requires_grad]
        sizes = [tensor.numel() // tensor.shape[dim] * index.shape[1] for tensor, dim, index in self.parts]
        self.root = sum(sizes) ** 0.5

    def shrink(self, penalty: float, rates: Mapping[int, float]) -> None:
        """Take ``penalty`` times each tensor's learning rate and the root of a unit's size off its norm."""
        rows = [tensor.detach().movedim(dim, 0)[index.to(tensor.device)] for tensor, dim, index in self.parts]
        squares = [row.flatten(1).float().square().sum(1).cpu() for row in rows]
        norms = torch.stack(squares).sum(0).sqrt().clamp_min(1e-30) if squares else torch.ones(1)
        for (tensor, dim, index), row in zip(self.parts, rows, strict=True):
            factor = (1 - penalty * rates[id(tensor)] * self.root / norms).clamp_min(0)
            scale = factor.to(device=tensor.device, dtype=tensor.dtype).reshape(-1, *[1] * (row.dim() - 1))
            tensor.detach().movedim(dim, 0)[index.to(tensor.device)] = row * scale


@contextmanager
def growing_penalty(
    optimizer: Optimizers, masks: Masks, *, start: float = 0.0, growth: float = 1e-4, every: int = 10
) -> Iterator[None]:
    """Inside the block add an L2 penalty on what the masks are to zero, and on nothing else, to the gradients
    before each step. It grows, so that what is to go hands over what it does; ``masks.apply()`` zeroes it
    then.

    Choose on a copy (``masks = sc.prune(copy, ...).bind(model)``), so that the network itself is whole at
    first.

    Args:
        optimizer: the one that trains the network, or a list.
        masks: what is to go, of weights or of whole units, bound to the network.
        start: the penalty at first.
        growth: what is added to it every so many steps.
        every: steps, from 1.

    Returns:
        A context manager.

    Raises:
        BudgetError: for an impossible number.
        MaskError: where the optimizer trains none of the masked parameters.

    Source:
        Wang et al., "Neural Pruning via Growing Regularization" (ICLR 2021), GReg-1.

    Example:
        >>> import copy, torch, secateur as sc
        >>> net = torch.nn.Linear(8, 8)
        >>> masks = sc.prune(copy.deepcopy(net), sc.Magnitude(), sc.Uniform(0.5)).bind(net)
        >>> optimizer, before = torch.optim.SGD(net.parameters(), lr=0.1), net.weight.abs().sum()
        >>> with sc.growing_penalty(optimizer, masks, start=1.0):
        ...     (0 * net(torch.randn(4, 8))).sum().backward()
        ...     optimizer.step()
        >>> bool(net.weight.abs().sum() < before), sc.sparsity(net)
        (True, 0.0)
    """
    check_value("start", start)
    check_value("growth", growth)
    if not (is_whole(every) and every >= 1):
        raise BudgetError(f"every is {every!r}; it counts steps, from 1")
    levels, parameters = innermost(optimizer), masks.parameters()
    check_updates(levels, parameters.values(), "the masked parameters", masks.model)
    going: list[tuple[Tensor, Tensor]] = [
        (weight, ~masks[name].to(weight.device)) for name, weight in parameters.items()
    ]
    mine = {level: updated_by([level]) for level in levels}
    steps = dict.fromkeys(levels, 0)

    def penalise(level: Level, by_closure: bool) -> None:
        amount = start + growth * (steps[level] // every)
        steps[level] += 1
        factor = getattr(level.optimizer, "grad_scale", None)  # fused optimizers divide by it themselves
        amount = amount if factor is None else amount * factor
        for weight, gone in going:
            if weight.grad is not None and id(weight) in mine[level]:
                weight.grad += amount * weight * gone

    with around_steps(levels, gradients=penalise):
        yield
