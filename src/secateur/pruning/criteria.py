"""Importance scores: ``criterion(targets, data, loss)`` gives one score an entry, low ones go first.

A criterion returns, for each target's name, either the tensor of scores or a function from a slice
of rows to their scores; the second form never makes anything of the network's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from secateur.errors import CriterionError
from secateur.numeric import is_whole
from secateur.pruning.calibration import Batches, Loss, input_rms, mean_gradients
from secateur.pruning.capabilities import name_of, says
from secateur.pruning.selection import Scores
from secateur.pruning.targets import Targets
from secateur.shards import local, own, placed
from secateur.structure.units import Structure

Rows = Callable[[slice], Tensor]


class Criterion(Protocol):
    """Gives the importance of every entry of every target.

    Scores that are all the same are an error where it says that it ``reads_data``, or says nothing and data
    are given. What else it may say of itself: ``secateur.pruning.capabilities``.

    Of a weight that is sharded over processes it gives a tensor of the whole shape, sharded or not, or a
    function from a slice of rows of this process's part to theirs.
    """

    def __call__(
        self, targets: Targets, data: Batches | None = None, loss: Loss | None = None
    ) -> Mapping[str, Tensor | Rows]: ...


@dataclass(frozen=True)
class Magnitude:
    """|w|: the size of the weight itself; needs no data.

    With whole units a unit's score is the sum over its entries.

    Source:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015).

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.1, -0.4, 0.3, -0.2]])
        >>> _ = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.5))
        >>> layer.weight.data
        tensor([[ 0.0000, -0.4000,  0.3000,  0.0000]])
    """

    reads_data: ClassVar[bool] = False
    is_magnitude: ClassVar[bool] = True

    def __call__(self, targets: Targets, data: Any = None, loss: Any = None) -> dict[str, Rows]:
        weights = {name: local(t.weight.detach()) for name, t in targets.items()}
        return {n: lambda rows, w=w: w[rows].abs() for n, w in weights.items()}


@dataclass(frozen=True)
class Random:
    """Uniform random scores from ``seed``: the baseline that every criterion has to beat.

    A whole unit gets one number of its own, not the sum over its entries, which would rank by size.

    Args:
        seed: of the generator; the same seed gives the same scores.

    Raises:
        CriterionError: for a seed that is no whole number.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(100, 10)
        >>> targets = sc.find_targets(layer)
        >>> torch.equal(sc.Random(seed=1)(targets)["weight"], sc.Random(seed=1)(targets)["weight"])
        True
        >>> sc.prune(layer, sc.Random(), sc.Uniform(0.9)).sparsity
        0.9
    """

    seed: int = 0
    reads_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not is_whole(self.seed):
            raise CriterionError(f"seed is {self.seed!r}; it is a whole number")

    def __call__(self, targets: Targets, data: Any = None, loss: Any = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: placed(torch.rand(target.weight.shape, generator=generator), target.weight).to(
                target.weight.device
            )
            for name, target in targets.items()
        }

    def score_units(self, structure: Structure, data: Any = None, loss: Any = None) -> dict[str, Tensor]:
        """Draw one number a unit: sums over its entries would rank by size."""
        generator = torch.Generator().manual_seed(self.seed)
        return {name: torch.rand(len(g), generator=generator) for name, g in structure.groups.items()}


@dataclass(frozen=True)
class Wanda:
    """|w| x rms of the input that w multiplies; needs data, no labels.

    The rms runs over the batch and every position. What is compared the budget decides: within one output,
    as in the paper, ``Uniform(..., per="row")``. Biases have no score.

    Args:
        sequential: layers are pruned in running order, each by what it reads once those before it are
            pruned. For budgets that cut within a layer: Uniform, PerLayer, NM.

    Raises:
        CriterionError: for what is neither True nor False.

    Source:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2023).

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0, 2.0]])
        >>> x = torch.tensor([[9.0, 1.0]])  # the first input is large, so its small weight counts for more
        >>> sc.Wanda()(sc.find_targets(layer), data=[x])["weight"](slice(None))
        tensor([[9., 2.]])
    """

    sequential: bool = False
    reads_data: ClassVar[bool] = True
    scores_vectors: ClassVar[bool] = False  # a bias multiplies no input

    def __post_init__(self) -> None:
        if not isinstance(self.sequential, bool):
            raise CriterionError(f"sequential is {self.sequential!r}; it is True or False")

    def __call__(self, targets: Targets, data: Batches | None = None, loss: Any = None) -> dict[str, Rows]:
        rms = input_rms(targets, data)
        return {
            name: self.of_input(local(t.weight.detach()), own(rms[name], t.weight))
            for name, t in targets.items()
        }

    def of_input(self, weight: Tensor, rms: Tensor) -> Rows:
        """Return the scores of one weight from the rms of its inputs, which broadcasts over it."""
        return lambda rows: weight[rows].abs() * (rms if rms.shape[0] == 1 else rms[rows])


@dataclass(frozen=True)
class Taylor:
    """|w x gradient of the loss|: what the loss would change by, to first order.

    Needs ``data`` of (inputs, labels); ``loss(outputs, labels)`` is cross-entropy unless given. The
    gradient is the mean over the batches.

    Source:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (ICLR
        2017).

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, 1.0]])
        >>> batch = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0]])  # the first weight does nothing here
        >>> scores = sc.Taylor()(sc.find_targets(layer), data=[batch], loss=torch.nn.functional.mse_loss)
        >>> scores["weight"](slice(None))
        tensor([[0., 2.]])
    """

    reads_data: ClassVar[bool] = True

    def __call__(
        self, targets: Targets, data: Batches | None = None, loss: Loss | None = None
    ) -> dict[str, Rows]:
        gradients = mean_gradients(targets, data, loss, "Taylor")
        pairs = {n: (local(t.weight.detach()), own(gradients[n], t.weight)) for n, t in targets.items()}
        return {n: lambda rows, w=w, g=g: _first_order(w[rows], g[rows]) for n, (w, g) in pairs.items()}


@dataclass(frozen=True)
class Fisher:
    """w^2 x mean squared gradient: Optimal Brain Damage with the empirical Fisher information.

    It stands for the Hessian's diagonal, and is the mean over the batches of ``data``, which are (inputs,
    labels). ``loss(outputs, labels)`` is cross-entropy unless given.

    Source:
        LeCun et al., "Optimal Brain Damage" (NIPS 1989).

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, 1.0]])
        >>> batch = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0]])
        >>> scores = sc.Fisher()(sc.find_targets(layer), data=[batch], loss=torch.nn.functional.mse_loss)
        >>> scores["weight"](slice(None))
        tensor([[0., 4.]])
    """

    reads_data: ClassVar[bool] = True

    def __call__(self, targets: Targets, data: Any = None, loss: Any = None) -> dict[str, Rows]:
        squares = mean_gradients(targets, data, loss, "Fisher", power=2)
        pairs = {n: (local(t.weight.detach()), own(squares[n], t.weight)) for n, t in targets.items()}
        return {n: lambda rows, w=w, f=f: w[rows].abs().square() * f[rows] for n, (w, f) in pairs.items()}


def _first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """What the loss changes by; the gradient of a complex number is that by its parts, as torch gives it."""
    return (weight * gradient.conj()).real.abs()


def check_telling(criterion: Any, scores: Sequence[Scores], data: Any, loss: Any) -> None:
    """Raise CriterionError where all that a criterion read from data is one number, over and over.

    Equal magnitudes are a tie, which the exact count breaks; a constant read from data is a mistake.
    """
    reads = says(criterion, "reads_data")
    if not (data is not None if reads is None else reads):
        return
    part = next((one.part for one in scores if one.part is not None), None)
    said = [_values_of(scores)] if part is None else part.peers.gather(_values_of(scores))
    values = set().union(*(values for values, _ in said))
    if len(values) == 1 and any(one.numel - one.number_masked > 1 for one in scores):
        value, number = values.pop(), sum(number for _, number in said)
        where = " on which they differ"
        if loss is None:
            where += (
                ", and where it reads a loss the task's own loss=, as in loss=torch.nn.functional.mse_loss: "
                "the default, cross-entropy, is constant for a single output"
            )
        raise CriterionError(
            f"{name_of(criterion)}: all {number} scores are {value:g}, which ranks nothing; pass data={where}"
        )


def _values_of(scores: Sequence[Scores]) -> tuple[set[float], int]:
    """Return the values that scores have here, but no more of them than tell that they differ, and how many
    scores were looked at."""
    values: set[float] = set()
    number = 0
    for one in scores:
        for rows, score in one.chunks() if one.counted else ():
            kept = score if one.masked is None else score[~one.masked[rows]]
            if kept.numel():
                values |= {float(end) for end in kept.aminmax()}
                number += kept.numel()
            if len(values) > 1:
                return values, number
    return values, number
