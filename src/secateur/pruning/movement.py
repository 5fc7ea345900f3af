"""Importance by where training takes a weight: a criterion that watches an optimizer, so none for recipes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from secateur.errors import CriterionError
from secateur.pruning.holding import Level, Optimizers, around_steps, innermost, left_out, owned
from secateur.pruning.targets import Targets, find_targets


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
            if left_out(level):
                return
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
