"""The way of alpha from 1 to 0: a training at each stage, and what is done where the score falls."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from secateur.errors import BudgetError, CriterionError, NonFiniteError
from secateur.methods.branch_annealing import BranchAnnealing, Descent


@dataclass(frozen=True)
class Stage:
    """One training at one ``alpha``, with the learning rate times ``rate`` (0: none, the beginning).

    ``score`` and ``loss`` after it, None where it diverged (or no loss was given). ``kept``: its weights are
    those that went on; otherwise the best ones at this alpha came back.
    """

    alpha: float
    rate: float
    score: float | None
    loss: float | None
    kept: bool = True


@dataclass(frozen=True)
class Annealing:
    """How ``anneal_branches`` goes down: the alphas, and what is done where the score falls.

    A score is held when it is at most ``tolerance`` under the best so far. If no training at an alpha holds
    it, alpha falls all the same, and the score reached counts as the best from there.

    Args:
        descent: the alphas.
        adaptive: not these; alpha falls by ``descent.step``, and by half as much from each alpha on at which
            the first training did not hold the score (never by less than ``descent.threshold``, and under
            this it jumps to 0).
        tolerance: how far under the best a score may be, in the score's own unit.
        rates: factors of the learning rate, each for one training at an alpha, as long as the score is not
            held: (1, 1) trains once more, (1, 10, 100) is the source's escalation. What does not improve the
            score is undone.
        update: the pretrained weights are trained from the "start", "never" (nor do their norms learn
            statistics), or from this alpha on.
        order: all layers "together", or "backwards": those nearest to the outputs go to 0 first, one after
            the other, and alpha is the mean of theirs.
        refit: each time alpha falls, ``up`` is fitted anew (``BranchAnnealing.refit``), before the training.
        statistics: after each training the norms' statistics are taken anew from the branches' data.

    Raises:
        BudgetError: for a setting that is not one of these.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> branches = sc.BranchAnnealing(net, torch.randn(2, 8), start="random")
        >>> scores = iter([0.9, 0.8, 0.9, 0.9])  # the first training at alpha 0.5 loses too much
        >>> method = sc.Annealing(sc.Descent(step=0.5), rates=(1, 10))
        >>> stages = sc.anneal_branches(branches, lambda net, rate: None, lambda net: next(scores), method)
        >>> [(stage.alpha, stage.rate, stage.score) for stage in stages]
        [(1.0, 0.0, 0.9), (0.5, 1, 0.8), (0.5, 10, 0.9), (0.0, 1, 0.9)]
    """

    descent: Descent = field(default_factory=Descent)
    adaptive: bool = False
    tolerance: float = 0.01
    rates: tuple[float, ...] = (1.0,)
    update: Literal["start", "never"] | float = "start"
    order: Literal["together", "backwards"] = "together"
    refit: bool = False
    statistics: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise BudgetError(f"tolerance is {self.tolerance!r}; it is a number from 0")
        if not self.rates or not all(math.isfinite(rate) and rate > 0 for rate in self.rates):
            raise BudgetError(f"rates is {self.rates!r}; it holds one positive factor or more")
        named = self.update in ("start", "never")
        if not named and (isinstance(self.update, str) or not 0 <= self.update <= 1):
            raise BudgetError(f"update is {self.update!r}; it is 'start', 'never' or an alpha from 0 to 1")
        if self.order not in ("together", "backwards"):
            raise BudgetError(f"order is {self.order!r}; it is 'together' or 'backwards'")

    def freezes(self, alpha: float) -> bool:
        """Whether the pretrained weights stay as they are at this alpha."""
        return self.update == "never" or (not isinstance(self.update, str) and alpha > self.update)

    def by_group(self, alpha: float, names: Sequence[str]) -> dict[str, float]:
        """Return the alpha of each group, in the order in which they run, where their mean is ``alpha``."""
        if self.order == "together":
            return dict.fromkeys(names, alpha)
        left = alpha * len(names)
        return {name: min(1.0, max(0.0, left - place)) for place, name in enumerate(names)}

    def after(self, stages: Sequence[Stage]) -> tuple[float, float] | None:
        """Return (alpha, rate) of the training that comes after these stages; None after the last."""
        best, here, tries, visited, halved = -math.inf, -math.inf, 0, 0, 0
        alpha = math.nan
        for stage in stages:
            if stage.alpha != alpha:
                best = best if here >= best - self.tolerance else here
                alpha, tries, visited = stage.alpha, 0, visited + 1
            tries += 1
            if stage.kept and stage.score is not None:
                here = stage.score
            best = max(best, here)
            halved += tries == 1 and here < best - self.tolerance
        if here < best - self.tolerance and tries < len(self.rates):
            return alpha, self.rates[tries]
        if alpha == 0:
            return None
        if not self.adaptive:
            return self.descent.alphas()[visited - 1], self.rates[0]
        lower = alpha - max(self.descent.step / 2**halved, self.descent.threshold)
        return 0.0 if lower < self.descent.threshold - 1e-12 else round(lower, 12), self.rates[0]


def anneal_branches(
    branches: BranchAnnealing,
    fine_tune: Callable[..., None],
    evaluate: Callable[[nn.Module], Any],
    method: Annealing | None = None,
    *,
    stages: Sequence[Stage] = (),
    on_stage: Callable[[tuple[Stage, ...]], None] | None = None,
) -> tuple[Stage, ...]:
    """Train ``branches.network`` while alpha goes from 1 to 0, in place; return the stages. A run that was
    stopped goes on to the same numbers from ``stages`` and the ``state_dict`` that the network had then.

    Args:
        branches: the branches beside the layers of a network.
        fine_tune: ``fine_tune(network)`` trains in place, with an optimizer of its own made of the parameters
            that require gradients then; for other ``rates`` than 1 it is ``fine_tune(network, rate)``, its
            learning rate times ``rate``.
        evaluate: ``evaluate(network)`` gives (score, loss) on the validation split, or a score; equal scores
            are told apart by the loss.
        method: how to go down.
        stages: those of a run that was stopped.
        on_stage: ``on_stage(stages)`` hears of each training, and first of the score at alpha 1.

    Returns:
        The stages, one a training.

    Raises:
        NonFiniteError: where the first training at an alpha diverges; a later one is undone.
        BudgetError: for rates that ``fine_tune`` does not take.
        CriterionError: for an evaluation that gives no score, and where something is to be fitted and the
            branches have no data.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> branches = sc.BranchAnnealing(model, torch.randn(2, 8), start="random")
        >>> method = sc.Annealing(sc.Descent(step=0.5))
        >>> stages = sc.anneal_branches(branches, lambda network: None, lambda network: 0.9, method)
        >>> [stage.alpha for stage in stages]
        [1.0, 0.5, 0.0]
    """
    method, network = method or Annealing(), branches.network
    train = _with_rate(fine_tune, method.rates)
    done = list(stages)
    if not done:
        branches.alpha = 1.0
        network.freeze(method.freezes(1.0))
        done.append(Stage(1.0, 0.0, *_evaluated(evaluate(network))))
        if on_stage is not None:
            on_stage(tuple(done))
    while (following := method.after(done)) is not None:
        alpha, rate = following
        so_far = next((s for s in reversed(done) if s.kept and s.alpha == alpha), None)
        before = network.state_dict() if so_far is not None else {}
        before = {name: tensor.detach().clone() for name, tensor in before.items()}
        alphas = method.by_group(alpha, list(network.alphas))
        if method.refit:
            branches.refit(alphas)
        branches.alpha = alphas
        network.freeze(method.freezes(alpha))
        try:
            train(network, rate)
            if method.statistics:
                branches.learn_statistics()
            stage = Stage(alpha, rate, *_evaluated(evaluate(network)))
        except NonFiniteError:
            if so_far is None:
                raise
            stage = Stage(alpha, rate, None, None)
        if so_far is not None and _worth(stage) <= _worth(so_far):
            network.load_state_dict(before)
            stage = replace(stage, kept=False)
        done.append(stage)
        if on_stage is not None:
            on_stage(tuple(done))
    return tuple(done)


def _with_rate(fine_tune: Callable[..., None], rates: Sequence[float]) -> Callable[[nn.Module, float], None]:
    """Return a training as a function of a network and a rate, whether it takes one or not."""
    parameters = inspect.signature(fine_tune).parameters.values()
    taken = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:2]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters) and not taken
    if any_number or any(p.name == "rate" or p.default is p.empty for p in taken):
        return fine_tune
    if any(rate != 1 for rate in rates):
        raise BudgetError(f"rates is {rates!r}, and fine_tune takes the network alone: give it a rate too")
    return lambda network, rate: fine_tune(network)


def _evaluated(found: Any) -> tuple[float, float | None]:
    try:
        score, loss = found if isinstance(found, (tuple, list)) else (found, None)
        score, loss = float(score), None if loss is None else float(loss)
    except (TypeError, ValueError) as error:
        raise CriterionError(
            f"evaluate gave {found!r}; a score, or a pair of numbers (score, loss), is right"
        ) from error
    if not (math.isfinite(score) and math.isfinite(loss or 0.0)):
        raise NonFiniteError(f"evaluate gave a score of {score} and a loss of {loss}; finite ones are right")
    return score, loss


def _worth(stage: Stage) -> tuple[float, float]:
    return (-math.inf, 0.0) if stage.score is None else (stage.score, -(stage.loss or 0.0))
