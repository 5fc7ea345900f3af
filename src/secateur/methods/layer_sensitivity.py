"""How much each layer alone can lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.copying import copied
from secateur.errors import BudgetError, CriterionError
from secateur.graph.names import unwrapped
from secateur.pruning.budgets import Uniform
from secateur.pruning.criteria import Criterion, Magnitude
from secateur.pruning.prune import prune
from secateur.pruning.targets import find_targets


@dataclass(frozen=True)
class Sensitivity:
    """``scores[layer][i]`` is the score with that layer alone pruned at ``levels[i]``; ``dense``
    is the score of the network as it was."""

    dense: float
    levels: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]

    def __repr__(self) -> str:
        width = max(len("layer pruned alone"), *(len(name) for name in self.scores))
        head = f"{'layer pruned alone':<{width}}" + "".join(f"{level:>9.1%}" for level in self.levels)
        rows = [
            f"{name:<{width}}" + "".join(f"{score:>9.4f}" for score in scores)
            for name, scores in self.scores.items()
        ]
        return "\n".join([head, *rows, f"dense: {self.dense:.4f}"])


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], Any],
    *,
    criterion: Criterion | None = None,
    levels: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
    data: Any = None,
    loss: Any = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Sensitivity:
    """Evaluate ``model`` with each layer pruned alone at each level.

    Use validation data, since the result is for choosing. ``evaluate`` is given a copy, so that nothing of
    ``model`` itself changes.

    Args:
        model: the network.
        evaluate: ``evaluate(model)`` returns a score, or (score, loss).
        criterion: what ranks weights; default ``Magnitude()``.
        levels: the shares of a layer that go, each from 0 to 1.
        data: batches, for criteria that read them.
        loss: ``loss(outputs, labels)``, for criteria that read one.
        include: name patterns of layers, as in ``secateur.prune``.
        exclude: name patterns of those left out.

    Returns:
        ``dense``, the score as it was, and ``scores``: by layer one for each of the ``levels``. Printed it is
        a table.

    Raises:
        BudgetError: for no level, or an impossible one.
        CriterionError: for an evaluation that gives no score.

    Source:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> def evaluate(model):  # here: how much of the weights is left
        ...     return 1 - sc.sparsity(model)
        >>> sc.sensitivity(net, evaluate, levels=(0.5, 0.75))
        layer pruned alone    50.0%    75.0%
        0.weight             0.6667   0.5000
        2.weight             0.8333   0.7500
        dense: 1.0000
    """
    if not levels:
        raise BudgetError("levels is empty; give shares between 0 and 1")
    criterion = criterion or Magnitude()
    scores: dict[str, tuple[float, ...]] = {}
    work = copied(unwrapped(model))
    dense = _score(evaluate(work))
    for name, target in find_targets(work, include, exclude).items():
        original = target.weight.detach().clone()
        row: list[float] = []
        for level in levels:
            prune(work, criterion, Uniform(level), include=name, data=data, loss=loss)
            row.append(_score(evaluate(work)))
            with torch.no_grad():
                target.weight.copy_(original)
        scores[name] = tuple(row)
    return Sensitivity(dense, tuple(levels), scores)


def _score(result: Any) -> float:
    score: Any = result[0] if isinstance(result, (tuple, list)) and result else result
    try:
        return float(score)
    except (TypeError, ValueError) as error:
        raise CriterionError(f"evaluate returned {result!r}; it returns a score, or (score, loss)") from error
