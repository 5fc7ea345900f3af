"""Network slimming (Liu et al., ICCV 2017): an L1 penalty on the scales of batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from secateur.errors import TargetError
from secateur.pruning.budgets import check_value
from secateur.pruning.holding import Level, Optimizers, around_steps, innermost, owned

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@contextmanager
def slimming(optimizer: Optimizers, model: nn.Module, penalty: float = 1e-4) -> Iterator[None]:
    """Add ``penalty`` times sign(weight) to the gradient of every scale of a BatchNorm (or InstanceNorm with
    one) before each step of ``optimizer``: network slimming's L1 penalty (Liu et al., 2017). Scales shrink
    and are not zero: prune by them afterwards (``secateur.BNScale``).

    Their statistics are of one channel alone, so that a scale of zero silences its channel; scales of
    GroupNorm and LayerNorm are left alone, as channels normalised together cannot go one by one. An adaptive
    optimizer scales the penalty as it does the gradient. A GradScaler's factor is taken into account.

    Args:
        optimizer: the one that trains the scales, or a list.
        model: the network.
        penalty: the factor of the sum of |scale| in the loss, from 0.

    Returns:
        A context manager.

    Raises:
        BudgetError: for an impossible penalty.
        TargetError: where the optimizer trains no such scale.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with sc.slimming(optimizer, model, penalty=0.5):
        ...     model(torch.randn(4, 8)).sum().backward()
        ...     optimizer.step()
        >>> bool((model[1].weight < 1).all())
        True
    """
    check_value("penalty", penalty)
    levels = innermost(optimizer)
    scales = {module.weight for module in model.modules() if isinstance(module, _NORMS)} - {None}
    mine = owned(levels, scales, lambda scale: scale)
    if not any(mine.values()):
        raise TargetError("the optimizer trains no scale of a BatchNorm or InstanceNorm of this model")

    def penalise(level: Level, by_closure: bool) -> None:
        factor = getattr(level.optimizer, "grad_scale", None)  # fused optimizers divide by it themselves
        for scale in mine[level]:
            if scale.grad is not None:
                scale.grad += penalty * (1.0 if factor is None else factor) * scale.sign()

    with around_steps(levels, gradients=penalise):
        yield
