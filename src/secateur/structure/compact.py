"""``compact``: a new, really smaller model, proved equal to the one given."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError, NonFiniteError
from secateur.measure.macs import count_macs
from secateur.measure.running import copied, first_line, run_once
from secateur.measure.size import count_parameters
from secateur.structure.attributes import Change, adjust, changed_sizes
from secateur.structure.capture import all_tensors, arguments
from secateur.structure.dead import Found, find_dead, fold
from secateur.structure.labels import Array
from secateur.structure.names import unwrapped
from secateur.structure.surgery import Removed, cut, mask_units, removed_by, sliced
from secateur.structure.units import Structure, trace
from secateur.structure.verify import (
    TOLERANCE,
    Proof,
    Widened,
    as_dtype,
    call,
    difference,
    hollow,
    randomise,
    redrawn,
    resized,
    tensors_in,
    untraced,
)

_SEEDS = 4  # of randomised weights that are tried where the outputs are all NaN


def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    masks: Any = None,
    structure: Structure | None = None,
) -> tuple[nn.Module, Proof]:
    """Remove every unit that is dead, unread or constant, and prove that nothing else changed.

    Units are dead whatever made them so: structured masks, unstructured ones that emptied a row or
    all columns of a neuron, or training. Constant outputs are folded into the next bias where that is
    exact. Returns (a new model of the same class, a :class:`Proof`); the given model never changes.

    ``optimizer``: one that trains ``model``; its like for the small model, with momentum and Adam's
    moments cut to size, is ``proof.optimizer``. ``masks``: masks held on ``model``; the same for the
    small model is ``proof.masks``. ``structure``: a :func:`secateur.trace` of this model, to
    save time, or because it was made with ``streams=True``.

    Where a ``forward`` has sizes written into it that no attribute explains, the units concerned stay
    (their zeros too) and ``proof.kept`` says so. Raises ModelError where the model cannot be captured,
    copied or run, or where the small one is not equal and no such withdrawal mends it.
    """
    model = unwrapped(model)
    args, named = arguments(example_inputs, kwargs)
    if structure is not None and (not isinstance(structure, Structure) or structure.model is not model):
        raise ModelError(f"structure= {untraced(structure)}")
    _check_finite(model)
    run_once(model, args, kwargs=named)
    structure = structure or trace(model, args, kwargs=named)
    found = find_dead(copied(model), structure)
    trial = _Trial(model, structure, args, named, found)
    doomed, changes, small, withdrawn, error = trial.search(found.doomed)
    found.kept.update(withdrawn)
    removed = removed_by(structure, doomed)
    randomised, dtype = trial.prove_randomised(doomed, changes)
    proof = Proof(
        inputs=len(trial.draws),
        dtype=str(dtype).removeprefix("torch."),
        max_error=error,
        max_error_randomised=randomised,
        removed={n: (int(g.sum()), len(g)) for n, g in doomed.items() if g.any()},
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(count_macs(model, args, named).dense, count_macs(small, args, named).dense),
        kept=found.kept,
        folded=len(found.constants_of(doomed)),
        changed=tuple(map(str, changes)),
        gone=doomed,
        units={name: len(group) for name, group in structure.groups.items()},
        optimizer=None if optimizer is None else _migrated(optimizer, model, small, removed),
        masks=None if masks is None else _rebound(masks, small, removed),
    )
    return small, proof


def _check_finite(model: nn.Module) -> None:
    """A NaN in a weight makes outputs NaN, which would be equal whatever is removed."""
    for name, tensor in all_tensors(model):
        parameter = isinstance(tensor, nn.Parameter)
        if tensor.is_floating_point() and (tensor.isnan().any() or (parameter and tensor.isinf().any())):
            raise NonFiniteError(f"{name}: holds a NaN or an infinity; nothing can be proved of its network")


class _Trial:
    """The search for what can really be cut: everything that is dead, less what a forward refuses."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        args: tuple[Any, ...],
        named: dict[str, Any],
        found: Found,
    ) -> None:
        self.model, self.structure, self.found = model, structure, found
        generator = torch.Generator().manual_seed(0)
        self.draws = [(args, named), (redrawn(args, generator), redrawn(named, generator))]
        self.dtype = self._widest()
        floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
        self.narrowest = max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
        self.widened = structure.walk.streams and self.dtype == torch.float64
        try:
            self.wanted = [self._expected(draw) for draw in self.draws]
        except (RuntimeError, TypeError, ValueError):
            if not self.widened:
                raise
            self.widened = False
            self.wanted = [self._expected(draw) for draw in self.draws]
        self._check_outputs()
        if found.constants:
            self._resize()

    def _check_outputs(self) -> None:
        """Refuse outputs that prove nothing, and drop redrawn inputs that give such."""
        name = type(self.model).__name__
        if not any(t.numel() for t in tensors_in(self.wanted[0])):
            raise ModelError(
                f"{name} puts out no tensor on these example inputs, so nothing could be compared"
            )
        if hollow(self.wanted[0]):
            raise NonFiniteError(f"{name} puts out nothing but NaN on these example inputs")
        if hollow(self.wanted[1]):
            del self.draws[1], self.wanted[1]

    def _resize(self) -> None:
        """Draw inputs of other sizes too, as far as the model takes them: a constant must hold there."""
        example = self.draws[0]
        for size in sorted({n for tensor in tensors_in(example) for n in tensor.shape if n > 1}):
            for other in (size // 2, 2 * size):
                draw = resized(example, size, other)
                try:
                    wanted = self._expected(draw)
                except Exception:  # whatever a forward raises on sizes it did not expect
                    continue
                self.draws.append(draw)
                self.wanted.append(wanted)
                break

    def _widest(self) -> torch.dtype:
        """float64 where the model runs in it, else float32."""
        try:
            wide = copied(self.model).double()
            args, named = as_dtype(self.draws[0], torch.float64)
            call(wide, args, named)
        except (RuntimeError, TypeError, ValueError):
            return torch.float32
        return torch.float64

    def _expected(self, draw: Any) -> Any:
        wide = copied(self.model).to(self.dtype)
        return self._call(wide, draw)

    def _call(self, wide: nn.Module, draw: Any) -> Any:
        """Run a model of the proof's dtype; under streams also what its forward casts to float32 for,
        norms above all, which do not round the same over fewer channels."""
        with Widened() if self.widened else nullcontext():
            return call(wide, *as_dtype(draw, self.dtype))

    def tolerance(self) -> float:
        """How far off outputs may be: rounding, and that of biases that took up a constant."""
        rounding = 32 * torch.finfo(self.narrowest).eps if self.found.constants else 0.0
        return max(TOLERANCE[self.dtype], rounding)

    def base(self, doomed: Mapping[str, Array]) -> nn.Module:
        """A copy of the model that lost these units: zeroed, their constants in the next biases."""
        work = copied(self.model)
        fold(work, chain.from_iterable(self.found.constants_of(doomed)))
        mask_units(work, self.structure, doomed)
        return work

    def search(
        self, doomed: Mapping[str, Array]
    ) -> tuple[dict[str, Array], list[Change], nn.Module, dict[str, str], float]:
        withdrawn: dict[str, str] = {}
        current = {name: gone.copy() for name, gone in doomed.items() if gone.any()}
        while True:
            small, changes, error, failure, stack = self.attempt(current)
            if error <= self.tolerance():
                return current, changes, small, withdrawn, self._stored(small, error)
            if not current:
                raise ModelError(
                    f"{type(self.model).__name__} with its dead units zeroed is not equal to the model "
                    f"itself (relative error {error:.1e}); is its forward random in eval mode? {failure}"
                )
            blamed = self._blamed(current, stack) or self._halved(current)
            for name in blamed:
                why = failure or f"outputs off by {error:.1e}"
                withdrawn[name] = f"its removal breaks the forward: {why}"
                del current[name]

    def attempt(self, doomed: Mapping[str, Array]) -> tuple[nn.Module, list[Change], float, str, list[str]]:
        """Cut a copy, adjust its attributes, and compare; returns what came of it."""
        removed = removed_by(self.structure, doomed)
        small = self.base(doomed)
        wide = copied(small).to(self.dtype)
        try:
            cut(small, removed)
        except ModelError as error:
            return small, [], float("inf"), str(error), []
        # Cut in the wide dtype too: a rescaled norm rounds in the model's own.
        cut(wide, removed)
        sizes = changed_sizes(self.structure, removed)

        def run() -> list[Any]:
            return [self._call(wide, draw) for draw in self.draws]

        changes, attempt = adjust(
            wide, sizes, run, lambda outputs: difference(self.wanted, outputs) <= self.tolerance()
        )
        if attempt.error is not None:
            where = f" in {attempt.stack[-1]}" if attempt.stack and attempt.stack[-1] else ""
            message = f"{type(attempt.error).__name__}{where}: {first_line(attempt.error)}"
            return small, [], float("inf"), message, attempt.stack
        for change in changes:
            change.apply(small)
        return small, changes, difference(self.wanted, attempt.outputs), "", []

    def _stored(self, small: nn.Module, error: float) -> float:
        """The error of the model as it is handed out: rescaled norms are rounded to its dtype."""
        if not self.structure.walk.streams:
            return error
        wide = copied(small).to(self.dtype)
        found = [self._call(wide, draw) for draw in self.draws]
        return max(error, difference(self.wanted, found))

    def prove_randomised(
        self, doomed: Mapping[str, Array], changes: list[Change]
    ) -> tuple[float, torch.dtype]:
        """Compare again with the surviving weights randomised under the same masks."""
        worst, outputs = float("nan"), []
        for seed in range(_SEEDS):
            masked = self.base(doomed).to(self.dtype)
            randomise(masked, seed)
            outputs = [self._call(masked, draw) for draw in self.draws]
            if not any(map(hollow, outputs)):
                small = copied(masked)
                cut(small, removed_by(self.structure, doomed))
                for change in changes:
                    change.apply(small)
                found = [self._call(small, draw) for draw in self.draws]
                worst = max(map(difference, outputs, found))
                break
        if worst > self.tolerance():
            raise ModelError(
                f"{type(self.model).__name__}: the small network equals the masked one on these weights and "
                f"not on others (relative error {worst:.1e}); nothing was changed"
            )
        return worst, self.dtype

    def _blamed(self, current: Mapping[str, Array], stack: list[str]) -> list[str]:
        """The groups with a tensor in the module that failed, innermost first."""
        for path in reversed(stack):
            prefix = f"{path}." if path else ""
            inside = [
                name
                for name in current
                if path and any(part.name.startswith(prefix) for part in self.structure.groups[name].slices)
            ]
            if inside:
                return inside
        return []

    def _halved(self, current: dict[str, Array]) -> list[str]:
        """Find one group to blame by halves: the smallest leading part of the list that fails."""
        names = list(current)
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            error = self.attempt({name: current[name] for name in names[:middle]})[2]
            low, high = (middle, high) if error <= self.tolerance() else (low, middle)
        return names[low:high]


def _migrated(
    optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, removed: Removed
) -> torch.optim.Optimizer:
    """Return the optimizer's like for the small model: same settings, its state cut to size."""
    pairs = zip(model.named_parameters(), small.parameters(), strict=True)
    new_of = {id(old): (name, new) for (name, old), new in pairs}
    strange = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in new_of]
    if strange:
        raise ModelError(
            "the optimizer holds parameters that are not the model's; make it from model.parameters()"
        )
    moved = object.__new__(type(optimizer))  # copy.copy would drop what a subclass keeps of its own
    moved.__dict__.update(optimizer.__dict__)
    for name, value in vars(optimizer).items():
        if isinstance(value, list) and value and all(id(part) in new_of for part in value):
            moved.__dict__[name] = [new_of[id(part)][1] for part in value]  # LBFGS's own list
    moved._optimizer_step_pre_hooks = OrderedDict()
    moved._optimizer_step_post_hooks = OrderedDict()
    moved.param_groups = [
        {**group, "params": [new_of[id(p)][1] for p in group["params"]]} for group in optimizer.param_groups
    ]
    moved.state = defaultdict(dict)
    for old, state in optimizer.state.items():
        name, new = new_of[id(old)]
        if any(isinstance(v, torch.Tensor) and v.dim() and v.shape != old.shape for v in state.values()):
            continue  # LBFGS's history of the whole network: it starts anew
        moved.state[new] = {
            key: sliced(value, name, removed).clone()
            if isinstance(value, torch.Tensor) and value.shape == old.shape
            else copy.deepcopy(value)
            for key, value in state.items()
        }
    return moved


def _rebound(masks: Any, small: nn.Module, removed: Removed) -> Any:
    parameters = dict(small.named_parameters())
    # A bias entry that took up a constant is needed, masked or not.
    kept = {name: sliced(mask, name, removed) | (parameters[name] != 0) for name, mask in masks.items()}
    return type(masks)(
        small,
        kept,
        requested=masks.requested,
        requested_overall=masks.requested_overall,
        notes=masks.notes,
        units=masks.units,
        dense={name: mask.numel() for name, mask in masks.items()} | masks.dense,
    )
