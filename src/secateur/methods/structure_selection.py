"""Sparse structure selection: scaling factors on units and residual blocks, trained until many are zero.

Huang & Wang, "Data-Driven Sparse Structure Selection for Deep Neural Networks" (ECCV 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.copying import copied
from secateur.errors import BudgetError, ModelError, TargetError
from secateur.graph.compare import difference
from secateur.graph.draws import as_dtype, in_dtype, redrawn
from secateur.measure.macs import count_macs
from secateur.methods.scaling import Scaled, Site, columns, folded, proximal_step
from secateur.pruning.budgets import check_value
from secateur.pruning.holding import (
    Level,
    Optimizers,
    around_steps,
    levels_of,
    refuse_scaler,
    require_finite,
    scalers_shown,
    updated_by,
)
from secateur.pruning.structured import select_groups
from secateur.running import call
from secateur.structure.blocks import ResidualBlock, find_blocks, remove_blocks
from secateur.structure.compact import compact
from secateur.structure.proof import Proof
from secateur.structure.tracing import trace
from secateur.structure.units import Group

_EQUAL = 1e-6  # relative to the largest |output|, in float64


@dataclass(frozen=True)
class Selected:
    """What ``StructureSelection.fold`` removed.

    Errors are relative to the largest |output|, on the example inputs and another draw. Printed it is a line
    a group and block.

    Attributes:
        units: by group, the units that are left, and all.
        blocks: the residual blocks that were removed.
        identities: the modules that are an ``nn.Identity`` for it.
        removed_error: the change of the outputs that came of setting small factors to zero.
        max_error: that of removing what is zero.
        proof: that of the compaction.
        notes: what deserves a look.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> selection = sc.StructureSelection(net, torch.randn(2, 8))
        >>> selection.factors["0 -> 2"][:6] = 0  # as training makes them
        >>> small, selected = selection.fold()
        >>> selected.units, selected.parameters
        ({'0 -> 2': (10, 16)}, (212, 134))
    """

    units: Mapping[str, tuple[int, int]]
    blocks: tuple[str, ...]
    identities: tuple[str, ...]
    removed_error: float
    max_error: float
    proof: Proof
    notes: tuple[str, ...] = ()

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """The proof alone, as searches that compact more than once have several."""
        return (self.proof,)

    @property
    def parameters(self) -> tuple[int, int]:
        """The parameters of the network with its factors folded in, and of the small one."""
        return self.proof.parameters

    @property
    def macs(self) -> tuple[float, float]:
        """The dense multiply-adds of both."""
        return self.proof.macs

    def __repr__(self) -> str:
        lines = [f"{name}: {kept} of {of} units kept" for name, (kept, of) in self.units.items()]
        lines += [f"block removed: {name}" for name in self.blocks]
        lines += [f"now an nn.Identity: {path}" for path in self.identities]
        lines.append(f"small factors set to zero: outputs off by {self.removed_error:.1e}")
        lines.append(f"what is zero removed: outputs off by {self.max_error:.1e}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


class StructureSelection:
    """Scaling factors on the units (and residual blocks) of a network, trained with its weights until many
    are zero; what they scale is then removed. Train ``network`` in any loop, its optimizer stepping inside
    ``trained``, then ``fold``.

    ``network`` wraps ``model``, whose weights are trained too, and is called the same way. A factor is 1 at
    first. That of a unit multiplies the unit where the layers behind it read it: the columns of their
    weights. That of a block x + F(x) multiplies F: the weight and the bias of its last layer. So a factor of
    any sign folds into the weights exactly. The loss that is minimised is the caller's, plus ``penalty``
    times the sum of all |factors|, by the paper's accelerated proximal gradient, with eta = ``lr`` and mu =
    ``momentum`` and S_t(z) = sign(z) max(|z| - t, 0), after each step of the optimizer (its eqs. 10-12; g is
    the gradient of the caller's loss at the factors f):

        z = f - eta g;   v' = S_{eta penalty}(z) - f + mu v;   f' = S_{eta penalty}(z) + mu v'

    A factor stays at zero where |g| < ``penalty``; compare it with a loss that is a mean over examples.
    Weights want weight decay, as in the paper: without it they grow as much as their factors shrink. (The
    authors' program also clips factors at zero from below; here negative ones stay.) A factor that no
    gradient holds needs some (1 - momentum) / (``lr`` ``penalty``) steps to zero.

    ``skipped``: the groups and blocks that have no factor, and why. In ``network``'s forward nothing may be
    recomputed later (activation checkpointing): that would not see the factors.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict.
        penalty: the factor of the sum of all |factors| in the loss, from 0.
        lr: the rate of the factors' steps. None: that of the optimizer's first parameter group at each step,
            which follows its schedule, as in the paper; for SGD alone, as others have rates of another scale.
        momentum: of the factors' steps, from 0, under 1.
        kwargs: arguments by name beside ``example_inputs``.
        include: name patterns of groups, as in ``secateur.prune``.
        exclude: name patterns of those left out.
        blocks: whether residual blocks have factors.
        units: whether units have.

    Raises:
        BudgetError: for impossible settings.
        TargetError: where a pattern matches nothing, or nothing is left to scale.
        ModelError: where the model cannot be captured.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> selection = sc.StructureSelection(model, torch.randn(2, 8), penalty=0.5)
        >>> optimizer = torch.optim.SGD(selection.network.parameters(), lr=0.01, weight_decay=1e-3)
        >>> with selection.trained(optimizer) as network:
        ...     for _ in range(20):
        ...         optimizer.zero_grad()
        ...         network(torch.randn(32, 8)).square().mean().backward()
        ...         optimizer.step()
        >>> small, selected = selection.fold()
        >>> selected.parameters[1] < selected.parameters[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        penalty: float = 1e-3,
        lr: float | None = 0.1,
        momentum: float = 0.9,
        kwargs: Mapping[str, Any] | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        blocks: bool = True,
        units: bool = True,
    ) -> None:
        check_value("penalty", penalty)
        if lr is not None and not (math.isfinite(lr) and lr > 0):
            raise BudgetError(f"lr is {lr!r}; it is a positive number, or None to follow the optimizer's")
        if not 0 <= momentum < 1:
            raise BudgetError(f"momentum is {momentum!r}; it is a number from 0, under 1")
        if not units and (include is not None or exclude is not None):
            raise BudgetError("include and exclude choose groups of units, and units=False leaves out all")
        self.penalty, self.lr, self.momentum = penalty, lr, momentum
        structure = trace(model, example_inputs, kwargs=kwargs)
        self._inputs = structure.captured.args, structure.captured.kwargs
        chosen: dict[str, Group] = {}
        if units and (structure.groups or include is not None or exclude is not None):
            chosen = select_groups(structure, include, exclude)
        sites, skipped = columns(structure, chosen)
        self.blocks: dict[str, ResidualBlock] = {}
        if blocks:
            self.blocks, unscaled = find_blocks(structure)
            skipped |= unscaled
            for name, block in self.blocks.items():
                sites += [Site(name, parameter) for parameter in block.parameters]
        self.skipped: Mapping[str, str] = skipped
        if not sites:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise TargetError(
                f"{type(structure.model).__name__} has no units or blocks that a factor can scale"
                + (f" ({reasons})" if reasons else "; secateur.trace shows its groups")
            )
        self.network = Scaled(structure.model, sites)

    @property
    def factors(self) -> Mapping[str, Tensor]:
        """The factors by name of their group (one a unit) or block (one), as they are now."""
        return {name: factor.detach() for name, factor in self.network.factors.items()}

    def __repr__(self) -> str:
        lines = [f"{n}: {int((f != 0).sum())} of {len(f)} factors not zero" for n, f in self.factors.items()]
        return "\n".join([*lines, *(f"skipped {name}: {reason}" for name, reason in self.skipped.items())])

    # -- training ----------------------------------------------------------------------------

    @contextmanager
    def trained(self, optimizer: Optimizers) -> Iterator[nn.Module]:
        """Give the factors one proximal step after each ``optimizer.step()`` inside the block; of a list of
        optimizers after that of the last one.

        Their gradients come from the same backward passes, add up over those since the last step, and are
        dropped after it. Clipping and weight decay of the optimizer do not touch them.

        Args:
            optimizer: one that trains ``network``, or a list.

        Returns:
            A context manager that gives ``network``.

        Raises:
            TargetError: where the optimizer trains nothing of ``network``.
            BudgetError: where it cannot be followed (LBFGS; no ``lr`` for other than SGD).
            ModelError: where no gradient reaches the factors, or not as it is: under a GradScaler (train in
                float32 or bfloat16), in several processes, with gradient checkpointing.
            NonFiniteError: for a NaN or an infinity in a gradient or factor, before the step changes any.
        """
        levels = levels_of(optimizer)
        last = self._checked([level for level in levels if level.innermost])
        self._drop_gradients()

        def refuse(level: Level, by_closure: bool) -> None:
            refuse_scaler(levels, "does not unscale the factors' gradients: use bfloat16, or none")

        try:
            with scalers_shown(levels), around_steps([last], gradients=refuse, after=self._step):
                yield self.network
        finally:
            self._drop_gradients()

    def _checked(self, stepping: Sequence[Level]) -> Level:
        """Return the one, of the optimizers that really step, whose steps the factors follow."""
        own = {id(p) for p in self.network.parameters()}
        if not own & updated_by(stepping):
            raise TargetError("the optimizer trains nothing of it; make it from network.parameters()")
        if any(isinstance(level.optimizer, torch.optim.LBFGS) for level in stepping):
            raise BudgetError("LBFGS takes the gradient several times a step; factors need one a step")
        last = stepping[-1]
        if self.lr is None and not isinstance(last.optimizer, torch.optim.SGD):
            kind = type(last.optimizer).__name__
            raise BudgetError(f"lr=None follows the learning rate of an SGD; with {kind} give lr=0.1, say")
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if several and torch.distributed.get_world_size() > 1:
            raise ModelError("the factors' gradients are not averaged over processes; train in one")
        if any(getattr(module, "gradient_checkpointing", False) is True for module in self.network.modules()):
            raise ModelError("gradient checkpointing recomputes activations without the factors; turn it off")
        return last

    def _drop_gradients(self) -> None:
        for factor in self.network.factors.values():
            factor.grad = None

    def _step(self, level: Level) -> None:
        rate = float(level.optimizer.param_groups[0]["lr"]) if self.lr is None else self.lr
        moved = {n: (f, f.grad) for n, f in self.network.factors.items() if f.grad is not None}
        if not moved:
            raise ModelError("no gradient reached the factors: train .network, not the model in it")
        for name, (factor, gradient) in moved.items():
            require_finite(f"{name}: the gradient of a factor", gradient, "nothing was changed")
            require_finite(f"{name}: a factor", factor, "nothing was changed")
        for name, (factor, gradient) in moved.items():
            proximal_step(factor, self.network.velocity(name), gradient, rate, self.penalty, self.momentum)
        self._drop_gradients()

    # -- removal -----------------------------------------------------------------------------

    @torch.no_grad()
    def fold(self, threshold: float = 1e-4) -> tuple[nn.Module, Selected]:
        """Return a really small network and what was ``Selected``, with the proof of its compaction.

        Factors under ``threshold`` become zero, the others go into the weights. Units with a zero are removed
        by ``secateur.compact`` (``proof.kept``: those that a forward's written-in sizes keep), and a residual
        block with a zero whole: an ``nn.Identity`` takes the place of the smallest module that it leaves
        without effect; where there is none, its inner units go. A group of zeros keeps its largest factor.
        The model and the factors are not changed. Outputs change by the threshold alone (``removed_error``):
        the removal is compared with the network whose small factors are zero.

        Args:
            threshold: factors of a smaller size are zero; momentum leaves tiny ones.

        Returns:
            The small network, and the record, whose ``proof`` is that of ``secateur.compact``.

        Raises:
            BudgetError: for what is no number from 0.
            NonFiniteError: for a NaN or an infinite factor.
            ModelError: where the networks differ.
        """
        if not (math.isfinite(threshold) and threshold >= 0):
            raise BudgetError(f"threshold is {threshold!r}; it is a number from 0")
        chosen, removed, notes = self._thresholded(threshold)
        dense = folded(self.network, dict(self.factors))
        masked = folded(self.network, chosen)
        device = next(iter(chosen.values())).device
        args, kwargs = _pytree.tree_map_only(Tensor, lambda t: t.to(device), self._inputs)
        off = difference(call(copied(self.network), args, kwargs), call(dense, args, kwargs))
        tolerance = 32 * max(torch.finfo(p.dtype).eps for p in dense.parameters() if p.is_floating_point())
        if off > tolerance:
            raise ModelError(f"the factors do not fold: outputs are off by {off:.1e}; exclude groups")
        work = copied(masked)
        identities = remove_blocks(work, removed, args, kwargs)
        small, proof = compact(work, args, kwargs=kwargs)
        draws = [(args, kwargs), redrawn((args, kwargs), torch.Generator().manual_seed(0))]
        removed_error = max(_apart(dense, masked, draw) for draw in draws)
        error = max(_apart(masked, small, draw) for draw in draws)
        exact = proof.dtype == "float64" and not proof.folded  # a folded constant is rounded once
        if error > (_EQUAL if exact else tolerance):
            raise ModelError(
                f"{type(small).__name__}: without its zero units and blocks it is not equal to the network "
                f"whose factors are zero there (relative error {error:.1e}); nothing was changed"
            )
        before = sum(p.numel() for p in dense.parameters())
        error = max(error, proof.max_error)
        proof = replace(proof, parameters=(before, proof.parameters[1]), max_error=error)
        if identities:
            proof = replace(proof, macs=(count_macs(dense, args, kwargs).dense, proof.macs[1]))
        within = self._within(removed)
        units = {
            name: (0 if name in within else max(1, int((factor != 0).sum())), len(factor))
            for name, factor in chosen.items()
            if name not in self.blocks
        }
        names = tuple(block.name for block in removed)
        return small, Selected(units, names, tuple(identities), removed_error, error, proof, tuple(notes))

    def _thresholded(self, threshold: float) -> tuple[dict[str, Tensor], list[ResidualBlock], list[str]]:
        """Return the factors with small ones zero, the blocks that go, and what deserves a look."""
        for name, factor in self.factors.items():
            require_finite(f"{name}: a factor", factor, "nothing was changed")
        chosen = {n: torch.where(f.abs() < threshold, 0.0, f) for n, f in self.factors.items()}
        removed = [block for name, block in self.blocks.items() if not chosen[name].any()]
        notes: list[str] = []
        for name in chosen.keys() - self.blocks.keys() - self._within(removed):
            if not chosen[name].any():
                best = self.factors[name].abs().argmax()
                chosen[name][best] = self.factors[name][best]
                notes.append(f"{name}: no factor is {threshold:g} or more; the largest one's unit stays")
        return chosen, removed, sorted(notes)

    def _within(self, removed: Sequence[ResidualBlock]) -> set[str]:
        """Return the groups that nothing but these blocks reads."""
        inside = {weight for block in removed for weight in (*block.inside, *block.parameters)}
        sites = self.network.sites
        read = {site.factor for site in sites if site.factor not in self.blocks}
        return read - {site.factor for site in sites if site.parameter not in inside}


def _apart(first: nn.Module, second: nn.Module, draw: Any) -> float:
    """Return the relative difference of two networks' outputs, in float64 where they run in it."""
    try:
        outputs = [
            call(in_dtype(copied(net), torch.float64), *as_dtype(draw, torch.float64))
            for net in (first, second)
        ]
    except (RuntimeError, TypeError, ValueError):
        outputs = [call(net, *draw) for net in (first, second)]
    return difference(*outputs)
