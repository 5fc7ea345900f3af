"""Branch annealing (Gschossmann): a narrow branch grows beside every layer, and takes its place.

Its output is alpha B + (1 - alpha) P, of the layer's own activations B and the branch's P. Alpha goes
from 1 to 0 in stages of training; then three linear maps in a row, ``up``, the next layer and its
``down``, are one smaller layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.errors import BudgetError, CriterionError, TargetError
from secateur.measure.macs import count_macs
from secateur.methods.branch_fitting import Start, learn_statistics, refit, start_near, start_random
from secateur.methods.widening import Widened, key, parts_of
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.structured import select_groups
from secateur.running import arguments
from secateur.structure.compact import compact
from secateur.structure.proof import Proof
from secateur.structure.tracing import trace


@dataclass(frozen=True)
class Descent:
    """The way of alpha from 1 to 0 in stages.

    Under ``threshold`` alpha jumps to 0.

    Args:
        kind: "step", minus ``step`` each; "multiplicative", times ``factor``; "exponential", exp(-``rate``
            k^2), slow at first; "cosine", half a cosine over ``stages``.
        step: over 0 and up to 1.
        factor: over 0 and under 1.
        rate: over 0.
        stages: how many, from 1.
        threshold: over 0 and up to 1.

    Raises:
        BudgetError: for a setting that is not one of these.

    Example:
        >>> import secateur as sc
        >>> sc.Descent(step=0.25).alphas()
        [0.75, 0.5, 0.25, 0.0]
        >>> sc.Descent("multiplicative", factor=0.5, threshold=0.1).alphas()
        [0.5, 0.25, 0.125, 0.0]
    """

    kind: Literal["step", "multiplicative", "exponential", "cosine"] = "step"
    step: float = 0.1
    factor: float = 0.5
    rate: float = 0.05
    stages: int = 10
    threshold: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in ("step", "multiplicative", "exponential", "cosine"):
            raise BudgetError(
                f"kind is {self.kind!r}; step, multiplicative, exponential and cosine are known"
            )
        for name, low, high in (("step", 0, 1), ("factor", 0, 1), ("rate", 0, math.inf), ("threshold", 0, 1)):
            value = getattr(self, name)
            if not low < value <= high or (name == "factor" and value == 1):
                raise BudgetError(f"{name} is {value!r}; it lies between {low} and {high}")
        if self.stages < 1:
            raise BudgetError(f"stages is {self.stages!r}; it counts from 1")

    def alphas(self) -> list[float]:
        """Return the alphas after the first, 1; the last is 0."""
        values: list[float] = []
        while not values or values[-1] > 0:
            k = len(values) + 1
            alpha = {
                "step": 1 - k * self.step,
                "multiplicative": self.factor**k,
                "exponential": math.exp(-self.rate * k**2),
                "cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, k / self.stages))),
            }[self.kind]
            values.append(0.0 if alpha < self.threshold - 1e-12 else round(alpha, 12))
        return values


class BranchAnnealing:
    """Narrow branches beside the layers of a network, to be annealed to and folded into a smaller one. Train
    ``network`` while ``alpha`` goes from 1 to 0, then ``fold``; ``secateur.anneal_branches`` is the
    way down in stages.

    ``network`` is called like ``model`` and computes the same at first; its parameters are those of a copy of
    the model, and the branches'. A branch has ``ratio`` of a group's channels (half to even), one at least;
    all layers that add into a residual stream share its ``up``. ``skipped``: the groups without a branch, and
    why.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict.
        ratio: the share of a group's channels that its branch has, over 0 and under 1.
        start: "least squares", the branch begins with the channels from which all of the group's are best
            predicted on ``data``, found by pivoted Cholesky weighted by the weights that read them, and
            ``up`` is that prediction; "svd", ``down`` are the left singular vectors of each layer's weight,
            the branch's norms take their statistics from ``data``, and ``up`` is fitted as before; "random",
            as in the source.
        data: batches of inputs, or of inputs and labels, of the training split: for any start but a random
            one, and for what is fitted later.
        kwargs: arguments by name beside ``example_inputs``.
        include: name patterns of groups, as in ``secateur.prune``.
        exclude: name patterns of those left out.
        seed: of the random start.

    Raises:
        TargetError: where nothing can have a branch.
        BudgetError: for an impossible ratio.
        CriterionError: where data are needed and not given, or do not fit.
        ModelError: where the model cannot be captured, or its forward cannot follow more channels.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> branches = sc.BranchAnnealing(model, torch.randn(2, 8), start="random")
        >>> branches.alpha = 0.5
        >>> branches
        0 -> 2: 8 channels beside 16, alpha 0.5
        >>> small, proof = branches.fold()
        >>> proof.parameters
        (212, 108)
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        ratio: float = 0.5,
        start: Start = "least squares",
        data: Batches | None = None,
        kwargs: Mapping[str, Any] | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < ratio < 1:
            raise BudgetError(
                f"ratio is {ratio!r}; it is the share of the channels that a branch has, under 1"
            )
        if start not in ("least squares", "svd", "random"):
            raise BudgetError(f"start is {start!r}; it is 'least squares', 'svd' or 'random'")
        if data is None and start != "random":
            raise CriterionError(f"start={start!r} needs data: pass data=batches, or start='random'")
        structure = trace(model, example_inputs, kwargs=kwargs)
        self._example = arguments(example_inputs, kwargs)
        self._dense = structure.model
        chosen = select_groups(structure, include, exclude, removable_only=False)
        found = {n: parts_of(structure, n, g) for n, g in chosen.items()}
        parts = {name: some for name, some in found.items() if not isinstance(some, str)}
        self.skipped: dict[str, str] = {name: why for name, why in found.items() if isinstance(why, str)}
        widths = {name: max(1, round(ratio * len(structure.groups[name]))) for name in parts}
        for name in [name for name in parts if widths[name] == len(structure.groups[name])]:
            self.skipped[name] = f"{ratio:g} of its {widths[name]} channels are as many"
            del parts[name], widths[name]
        if not parts:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.skipped.items())
            raise TargetError(
                f"{type(structure.model).__name__} has no group that can have a branch ({reasons})"
            )
        self.network = Widened(structure, parts, widths)
        self._parts = parts
        self._given = None
        if data is not None:
            self._given = [inputs for inputs, _ in batches(data, "branch annealing", model)]
        start_random(self.network, parts, torch.Generator().manual_seed(seed))
        self.network.settle(structure)
        if start != "random":
            start_near(self.network, structure, parts, self._inputs(), start)

    def __repr__(self) -> str:
        network = self.network
        lines = [
            f"{name}: {network.widths[name]} channels beside {len(network.up[key(name)])}, alpha {alpha:g}"
            for name, alpha in network.alphas.items()
        ]
        return "\n".join([*lines, *(f"skipped {name}: {why}" for name, why in self.skipped.items())])

    @property
    def alpha(self) -> float | dict[str, float]:
        """The share of the original path: one number, or one a group where they differ."""
        values = set(self.network.alphas.values())
        return values.pop() if len(values) == 1 else dict(self.network.alphas)

    @alpha.setter
    def alpha(self, value: float | Mapping[str, float]) -> None:
        self.network.alphas.update(self._checked(value))

    def _checked(self, value: float | Mapping[str, float]) -> dict[str, float]:
        """Return the alpha of every group."""
        known = self.network.alphas
        given = dict.fromkeys(known, value) if isinstance(value, (int, float)) else dict(value)
        for name, alpha in given.items():
            if name not in known:
                raise TargetError(f"no group {name!r} has a branch; {', '.join(known)} have")
            if not 0 <= alpha <= 1:
                raise BudgetError(f"alpha is {alpha!r}; it goes from 1 to 0")
        return known | given

    def refit(self, alpha: float | Mapping[str, float]) -> None:
        """Set ``alpha``, and every ``up`` anew: by least squares on ``data``, so that the next layers read
        with it, as nearly as can be, what they read now.

        Args:
            alpha: the share of the original path, one number or one a group.

        Raises:
            TargetError, BudgetError: for an alpha that cannot be.
            CriterionError: where no ``data`` were given.

        Example:
            >>> import secateur as sc, torch
            >>> first, x = torch.nn.Linear(8, 4, bias=False), torch.randn(64, 8)
            >>> first.weight.data[2:] = first.weight.data[:2]  # two channels are copies of the others
            >>> model = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(4, 2))
            >>> branches = sc.BranchAnnealing(model, x[:2], start="random", data=[x])
            >>> branches.network.down["0"].data = torch.eye(4)[:2]  # the branch holds the two
            >>> branches.refit(0.0)
            >>> torch.allclose(branches.network(x), model(x), atol=1e-4)
            True
        """
        refit(self.network, self._parts, self._inputs(), self._checked(alpha))

    def learn_statistics(self) -> None:
        """Take the statistics of the norms anew, as the means over ``data``; of the branches' norms alone
        where the pretrained weights are frozen.

        Raises:
            CriterionError: where no ``data`` were given.

        Example:
            >>> import secateur as sc, torch
            >>> first, last, x = torch.nn.Linear(8, 4), torch.nn.Linear(4, 2), torch.randn(64, 8)
            >>> model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(4), torch.nn.ReLU(), last)
            >>> branches = sc.BranchAnnealing(model, x[:2], start="random", data=[x])
            >>> branches.learn_statistics()
            >>> mean = branches.network.wide.get_submodule("1").running_mean[:4]
            >>> torch.allclose(mean, model[0](x).mean(0), atol=1e-6)
            True
        """
        learn_statistics(self.network, self._inputs(), own=not self.network.frozen)

    def _inputs(self) -> list[Any]:
        if self._given is None:
            raise CriterionError("the branches were given no data= to be fitted on; pass batches")
        return self._given

    @torch.no_grad()
    def fold(self) -> tuple[nn.Module, Proof]:
        """Return the small network of the model's class that the branches alone make, and the proof that it
        equals ``network`` at alpha 0. The annealing itself is not changed.

        Returns:
            The small network, and the proof, with the model's own ``parameters`` and ``macs`` before it.

        Raises:
            ModelError: where the small network is not equal.
        """
        before = dict(self.network.alphas)
        try:
            self.alpha = 0.0
            grown = self.network.grown()
        finally:
            self.network.alphas.update(before)
        device = next(grown.parameters()).device
        args, kwargs = _pytree.tree_map_only(Tensor, lambda t: t.to(device), self._example)
        small, proof = compact(grown, args, kwargs=kwargs)
        dense = sum(p.numel() for p in self._dense.parameters())
        macs = (count_macs(self._dense, *self._example).dense, proof.macs[1])
        return small, replace(proof, parameters=(dense, proof.parameters[1]), macs=macs)
