"""Branch annealing (Gschossmann): a narrow branch grows beside every layer, and takes its place.

Its output is alpha B + (1 - alpha) P, of the layer's own activations B and the branch's P. Alpha goes
from 1 to 0 in stages of training; then three linear maps in a row, ``up``, the next layer and its
``down``, are one smaller layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.errors import BudgetError, CriterionError, NonFiniteError, TargetError
from secateur.graph.capture import tensor_of
from secateur.measure.macs import count_macs
from secateur.methods.widening import OWN, PRODUCER, READER, Part, Widened, key, parts_of
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.structured import select_groups
from secateur.running import arguments, call_model, evaluating
from secateur.structure.compact import compact
from secateur.structure.proof import Proof
from secateur.structure.units import Structure, trace

Start = Literal["least squares", "svd", "random"]


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
        data: batches of inputs, or of inputs and labels, of the training split; not for a random start.
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
        found = {n: parts_of(structure, n, g) for n, g in select_groups(structure, include, exclude).items()}
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
        _start_random(self.network, parts, torch.Generator().manual_seed(seed))
        self.network.settle(structure)
        if start != "random":
            pairs = [inputs for inputs, _ in batches(data, "branch annealing", model)]
            _start_near(self.network, structure, parts, pairs, start)

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
        given = dict.fromkeys(self.network.alphas, value) if isinstance(value, (int, float)) else dict(value)
        for name, alpha in given.items():
            if name not in self.network.alphas:
                raise TargetError(f"no group {name!r} has a branch; {', '.join(self.network.alphas)} have")
            if not 0 <= alpha <= 1:
                raise BudgetError(f"alpha is {alpha!r}; it goes from 1 to 0")
        self.network.alphas.update(given)

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


@torch.no_grad()
def _start_random(network: Widened, parts: Mapping[str, Sequence[Part]], generator: torch.Generator) -> None:
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
def _start_near(
    network: Widened,
    structure: Structure,
    parts: Mapping[str, Sequence[Part]],
    data: Sequence[Any],
    start: Start,
) -> None:
    """Start the branches near the layers that they are beside: see ``BranchAnnealing``."""
    if start == "least squares":
        chosen: dict[str, Tensor] = {}
        grams = _grams(network, parts, data)
        for name, group in parts.items():
            units = len(structure.groups[name])
            size = torch.zeros(units, dtype=torch.float64)
            for part in group:
                if part.role == READER:
                    weight = tensor_of(network.model, part.tensor).unflatten(1, (-1, part.entries))
                    size += weight.double().square().movedim(1, 0).flatten(1).sum(1).cpu()
            chosen[name] = _pivots(grams[name][:units, :units], size.sqrt(), network.widths[name])
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
        _learn_statistics(network, data)
    grams = _grams(network, parts, data)
    for name in parts:
        units = len(structure.groups[name])
        xx, xy = grams[name][units:, units:], grams[name][units:, :units]
        pull = 1e-6 * xx.diagonal().mean() + 1e-12
        up = torch.linalg.solve(xx + pull * torch.eye(len(xx), dtype=xx.dtype), xy)
        network.up[key(name)].copy_(up.T)


def _pivots(gram: Tensor, size: Tensor, number: int) -> Tensor:
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


def _grams(network: Widened, parts: Mapping[str, Sequence[Part]], data: Sequence[Any]) -> dict[str, Tensor]:
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


def _learn_statistics(network: Widened, data: Sequence[Any]) -> None:
    """Give the branches' norms the mean statistics of the data; the model's own stay."""
    norms = network.norms()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(network):
        network.freeze(True)
        try:
            for number, inputs in enumerate(data, 1):
                for norm in norms:
                    norm.train()
                    norm.momentum = 1 / number
                call_model(network, inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            network.freeze(False)
