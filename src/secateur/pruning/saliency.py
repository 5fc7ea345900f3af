"""Importance by what a network would be without training, and by where training takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.copying import copied
from secateur.errors import CriterionError
from secateur.graph.names import canonical_parameters, unwrapped
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.holding import Level, Optimizers, around_steps, innermost, owned
from secateur.pruning.targets import Targets, find_targets
from secateur.running import as_written, call_model, failing


@dataclass(frozen=True)
class SynFlow:
    """|w x gradient of the synaptic flow|: how much of what flows through the network goes through w.

    The flow is the sum of all outputs on inputs of ones, every parameter and buffer replaced by its absolute
    value. ``data`` gives the inputs their shape and nothing else. Meant for a network before training, in
    many steps of an ``Iterative`` schedule: at once it may cut a layer off.

    Source:
        Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow"
        (NeurIPS 2020).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> net[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
        >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
        >>> sc.SynFlow()(sc.find_targets(net), data=[torch.randn(4, 2)])["0.weight"]
        tensor([[2., 4.],
                [3., 0.]], dtype=torch.float64)
    """

    reads_data: ClassVar[bool] = False

    def __call__(self, targets: Targets, data: Batches | None = None, loss: Any = None) -> dict[str, Tensor]:
        if data is None:
            raise CriterionError("SynFlow needs data= for the shape of the inputs; pass one batch of any")
        work = copied(unwrapped(targets.model)).eval().double()
        with torch.no_grad():
            for tensor in (*work.parameters(), *work.buffers()):
                tensor.copy_(tensor.abs())
        parameters = canonical_parameters(work)
        weights = [parameters[name].requires_grad_(True) for name in targets]
        inputs = next((inputs for inputs, _ in batches(data, "SynFlow", work)), None)
        ones = _pytree.tree_map_only(Tensor, _ones, inputs)
        with as_written(), torch.enable_grad(), failing(work, ones, "inputs of ones"):
            outputs = _pytree.tree_leaves(call_model(work, ones))
            flow = sum(out.double().sum() for out in outputs if isinstance(out, Tensor) and out.requires_grad)
        if not isinstance(flow, Tensor) or not flow.isfinite():
            raise CriterionError(f"SynFlow: the flow is {flow}, which has no gradient")
        gradients = torch.autograd.grad(flow, weights, allow_unused=True)
        scores = {}
        for name, weight, gradient in zip(targets, weights, gradients, strict=True):
            if gradient is None:
                raise CriterionError(f"{name}: the outputs do not depend on it; exclude it")
            scores[name] = (weight.detach() * gradient).abs()
        return scores


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor[:1], dtype=torch.float64) if tensor.is_floating_point() else tensor[:1]


@dataclass(frozen=True, eq=False)
class Movement:
    """How far training moves w away from zero: minus the sum of w x gradient over the steps that it watched.

    A weight that shrinks has a negative score, whatever its size, and goes first: for networks that were
    pretrained on something else. It keeps its sums from one pruning to the next.

    Source:
        Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning" (NeurIPS 2020). There masked weights
        go on being trained; here a zero stays zero.

    Example:
        >>> import torch, secateur as sc
        >>> layer, movement = torch.nn.Linear(2, 1, bias=False), sc.Movement()
        >>> layer.weight.data = torch.tensor([[3.0, 1.0]])
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> with movement.watching(optimizer, layer):  # and then, still inside it, with sc.during(...)
        ...     (layer.weight * torch.tensor([[1.0, -1.0]])).sum().backward()
        ...     optimizer.step()
        >>> movement(sc.find_targets(layer))["weight"]  # the large weight shrinks, the small one grows
        tensor([[-3.,  1.]])
    """

    sums: dict[str, Tensor] = field(default_factory=dict, repr=False)
    reads_data: ClassVar[bool] = False

    @contextmanager
    def watching(self, optimizer: Optimizers, model: nn.Module) -> Iterator[None]:
        """Inside the block add up -w x gradient of every target at each step of ``optimizer``.

        Args:
            optimizer: the one that trains the model, or a list. A GradScaler's factor is taken into account.
            model: the network.

        Returns:
            A context manager.

        Raises:
            CriterionError: where the optimizer trains no target.
        """
        levels = innermost(optimizer)
        weights = {name: target.weight for name, target in find_targets(model).items()}
        mine = owned(levels, weights.items(), lambda item: item[1])
        if not any(mine.values()):
            raise CriterionError(f"Movement: the optimizer trains no target of {type(model).__name__}")

        def add(level: Level, by_closure: bool) -> None:
            factor = getattr(level.optimizer, "grad_scale", None)
            for name, weight in mine[level]:
                if weight.grad is not None:
                    moved = -(weight * weight.grad.conj()).real
                    moved = moved if factor is None else moved / factor
                    self.sums[name] = self.sums[name] + moved if name in self.sums else moved

        with around_steps(levels, gradients=add):
            yield

    def __call__(self, targets: Targets, data: Any = None, loss: Any = None) -> dict[str, Tensor]:
        for name, target in targets.items():
            if name not in self.sums or self.sums[name].shape != target.weight.shape:
                raise CriterionError(f"{name}: Movement has not watched its training; see Movement.watching")
        return {name: self.sums[name] for name in targets}
