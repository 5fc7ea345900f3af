"""L0 regularisation of whole units: a random gate on each, open or shut, trained by how often it is open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.errors import TargetError
from secateur.methods.scaling import Scaled, Site, columns, folded
from secateur.pruning.budgets import check_value
from secateur.pruning.holding import Level, Optimizers, around_steps, innermost, updated_by
from secateur.pruning.structured import select_groups
from secateur.structure.compact import compact
from secateur.structure.proof import Proof
from secateur.structure.tracing import trace

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # gamma, zeta and beta of the paper
_OPEN = TEMPERATURE * math.log(-LOW / HIGH)


def gate(log_alpha: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Return hard concrete gates in [0, 1]: drawn with ``uniform`` numbers, or their medians without them."""
    noise = 0.0 if uniform is None else uniform.log() - (1 - uniform).log()
    soft = torch.sigmoid((log_alpha + noise) / (1.0 if uniform is None else TEMPERATURE))
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def open_share(log_alpha: Tensor) -> Tensor:
    """Return the probability that a gate is not zero."""
    return torch.sigmoid(log_alpha - _OPEN)


class _Gated(Scaled):
    """A network whose units are multiplied by gates: drawn anew in each training forward, else medians."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], start: float) -> None:
        super().__init__(model, sites)
        sizes = {name: factor.detach() for name, factor in Scaled.factors.fget(self).items()}  # type: ignore[misc]
        self._buffers = {name: t for name, t in self._buffers.items() if name.startswith("entries")}
        self.names = {name: name.replace(".", "/") for name in sizes}  # torch allows no dot
        made = {key: torch.full_like(sizes[name], start) for name, key in self.names.items()}
        self.log_alpha = nn.ParameterDict({key: nn.Parameter(value) for key, value in made.items()})

    @property
    def factors(self) -> dict[str, Tensor]:
        return {name: gate(self.log_alpha[key], self._drawn(key)) for name, key in self.names.items()}

    def _drawn(self, key: str) -> Tensor | None:
        if not self.training:
            return None
        return torch.rand_like(self.log_alpha[key]).clamp(1e-6, 1 - 1e-6)

    def _leaves(self) -> Scaled:
        return self  # gates are computed, and what they are computed from are parameters


class L0Gates:
    """A hard concrete gate on every unit, trained with the weights so that few are open. Train ``network`` in
    any loop, its optimizer stepping inside ``trained``, then ``fold``.

    The loss that is minimised is the caller's plus ``penalty`` times the expected number of open gates.
    ``network`` is called like the model, whose weights are trained too; a gate acts where the next layers
    read its unit. ``skipped``: the groups without gates, and why.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict.
        penalty: of one open gate, from 0; compare it with a loss that is a mean over examples.
        open_at_first: the median of each gate at first, over 0 and under 1.
        kwargs: arguments by name beside ``example_inputs``.
        include: name patterns of groups, as in ``secateur.prune``.
        exclude: name patterns of those left out.

    Raises:
        BudgetError: for an impossible number.
        TargetError: where no unit can have a gate.
        ModelError: where the model cannot be captured.

    Source:
        Louizos et al., "Learning Sparse Neural Networks through L0 Regularization" (ICLR 2018).

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> gates = sc.L0Gates(model, torch.randn(2, 8), penalty=0.5)
        >>> optimizer = torch.optim.Adam(gates.network.parameters(), lr=0.1)
        >>> with gates.trained(optimizer) as network:
        ...     for _ in range(60):
        ...         optimizer.zero_grad()
        ...         network(torch.randn(32, 8)).square().mean().backward()
        ...         optimizer.step()
        >>> small, proof = gates.fold()
        >>> proof.parameters[1] < proof.parameters[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        penalty: float = 1e-3,
        open_at_first: float = 0.9,
        kwargs: Mapping[str, Any] | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        check_value("penalty", penalty)
        check_value("open_at_first", open_at_first)
        structure = trace(model, example_inputs, kwargs=kwargs)
        self.penalty = penalty
        self._inputs = structure.captured.args, structure.captured.kwargs
        sites, self.skipped = columns(structure, select_groups(structure, include, exclude))
        if not sites:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise TargetError(
                f"{type(structure.model).__name__} has no unit that a gate can act on ({reasons})"
            )
        soft = (min(max(open_at_first, 0.01), 0.99) - LOW) / (HIGH - LOW)
        self.network = _Gated(structure.model, sites, math.log(soft / (1 - soft)))

    @property
    def gates(self) -> Mapping[str, Tensor]:
        """The medians of the gates by group, one a unit; those at 0 are shut."""
        named = self.network.names.items()
        return {name: gate(self.network.log_alpha[key].detach()) for name, key in named}

    @contextmanager
    def trained(self, optimizer: Optimizers) -> Iterator[nn.Module]:
        """Add the penalty's gradient to that of the gates before each step of ``optimizer`` inside the block.

        Args:
            optimizer: one that trains ``network``, or a list.

        Returns:
            A context manager that gives ``network``.

        Raises:
            TargetError: where the optimizer does not train the gates.
        """
        levels = innermost(optimizer)
        if not {id(p) for p in self.network.log_alpha.parameters()} <= updated_by(levels):
            raise TargetError("the optimizer does not train the gates; make it from network.parameters()")

        def penalise(level: Level, by_closure: bool) -> None:
            mine, factor = updated_by([level]), getattr(level.optimizer, "grad_scale", None)
            for log_alpha in self.network.log_alpha.parameters():
                if id(log_alpha) in mine and log_alpha.grad is not None:
                    share = open_share(log_alpha)
                    scale = self.penalty if factor is None else self.penalty * factor
                    log_alpha.grad += scale * share * (1 - share)

        with around_steps(levels, gradients=penalise):
            yield self.network

    @torch.no_grad()
    def fold(self) -> tuple[nn.Module, Proof]:
        """Return the network without the units whose gates are shut, the others' in its weights, and a proof.

        A group whose gates are all shut keeps the widest. The model and the gates are not changed.

        Returns:
            The small network, and the proof of ``secateur.compact``.

        Raises:
            ModelError: where the small network is not equal to the gated one.
        """
        chosen = dict(self.gates)
        for name, gates in chosen.items():
            if not gates.any():
                best = int(self.network.log_alpha[self.network.names[name]].argmax())
                gates[best] = 1.0
        masked = folded(Scaled(self.network.model, self.network.sites), chosen)
        device = next(masked.parameters()).device
        args, kwargs = _pytree.tree_map_only(Tensor, lambda t: t.to(device), self._inputs)
        return compact(masked, args, kwargs=kwargs)
