"""The search for what can really be cut out of a network: it is cut, run and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from secateur.copying import copied
from secateur.errors import ModelError, NonFiniteError
from secateur.graph.capture import all_tensors, first_names, module_of
from secateur.graph.compare import TOLERANCE, difference, hollow, tensors_in
from secateur.graph.draws import in_dtype, randomise, rescale
from secateur.structure.attributes import Change, adjust, changed_sizes
from secateur.structure.dead import Found, fold_constants
from secateur.structure.graph_form import GraphForm
from secateur.structure.labels import Array
from secateur.structure.runs import Run, Seen, Wide, in_training, outputs_of, why_not
from secateur.structure.surgery import Removed, cut, mask_units, removed_by
from secateur.structure.units import Structure

_SEEDS = 4  # of randomised weights that are tried where the outputs are all NaN
_AGAIN = 2  # times that groups are tried again which went along with one of their kind
_FEW = 4  # groups of a module that failed which are tried again one by one, more by halves
_TRIES = 12  # how often, at most, those of all modules
_LOOSE = 1e-4  # the tolerance of a quick look
_UNTAKEN = "on other weights it takes a path that none of the calls takes"
_DEAF = 1e-6  # under this, outputs do not depend on the inputs


@dataclass(frozen=True)
class Outcome:
    """What came of cutting a copy: the attributes set, the largest ``error``; where it is too large, the
    ``run`` that showed it and the modules it failed in."""

    small: nn.Module
    changes: list[Change] = field(default_factory=list)
    error: float = float("inf")
    failure: str = ""
    stack: list[str] = field(default_factory=list)
    run: int = 0


@dataclass(frozen=True)
class Cut:
    """What could be cut: the units that went by group, the attributes that changed with them, the small
    network, which groups were withdrawn and why, and the largest error."""

    pruned: dict[str, Array]
    changes: list[Change]
    small: nn.Module
    withdrawn: dict[str, str]
    error: float


class Trial:
    """The search for what can really be cut: everything that is dead, less what a call refuses.

    ``runs`` are the calls that are compared, ``wanted`` what the model gives in each; ``notes`` name the
    calls that could not be compared, ``read`` the tensors that any of them has read. A ``quick`` one looks
    whether the calls run at all and give about the same.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        runs: Sequence[Run],
        found: Found,
        graph: GraphForm | None = None,
        quick: bool = False,
    ) -> None:
        self.quick = quick
        self.model, self.structure, self.found, self.graph = model, structure, found, graph
        self.runs: list[Run] = []
        self.wanted: list[Any] = []
        self.notes: list[str] = []
        self.read: set[str] = set()
        floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
        double = torch.float64 in floats
        self.dtype = torch.float64 if double or not quick else torch.float32
        self.narrowest = max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
        if quick:
            self.runs = list(runs)
            return
        self._begin(runs[0])
        for run in runs[1:]:
            self._add(run, strict=True)
        for run in runs if graph is None else ():
            self._add(in_training(run))
        if found.constants and graph is None:
            self._resize(runs[0])

    def _begin(self, run: Run) -> None:
        """Take up the first call, whose outputs must prove something, and one with other numbers."""
        again = run.redrawn(torch.Generator().manual_seed(0))
        try:
            wanted = [self._expected(run)]
        except Exception:  # whatever a forward raises on numbers that it did not expect
            self.dtype = torch.float32
            wanted = [self._expected(run)]
        why = _says_nothing(wanted[0])
        if why:
            kind = NonFiniteError if hollow(wanted[0]) else ModelError
            raise kind(
                f"{type(self.model).__name__} {why} on these example inputs, so nothing could be compared"
            )
        self.runs, self.wanted = [run], wanted
        try:
            other = self._expected(again)
        except Exception as error:  # lengths, indices: not every number will do
            self.notes.append(f"other numbers of the same kind were not compared: {why_not(error)}")
            other = None
        if other is not None and not hollow(other):
            self.runs.append(again)
            self.wanted.append(other)
        drawn = any(t.is_floating_point() for t in tensors_in((run.args, run.kwargs)))
        self.again = drawn and len(self.runs) > 1

    def _add(self, run: Run, *, strict: bool = False) -> None:
        """Take up another call where the model itself bears it and gives the same twice, else note why
        not; a ``strict`` one, which the user asked for, must run."""
        name = type(self.model).__name__
        try:
            run.on(copied(self.model))  # in its own dtype: what a forward caches is of that
            wanted, again = self._expected(run), self._expected(run)
        except Exception as error:  # whatever a forward raises in a mode that it was not made for
            if strict:
                raise ModelError(f"{name} does not run on {run.label}: {why_not(error)}") from error
            self.notes.append(f"{run.label} was not compared: {why_not(error)}")
            return
        why = _says_nothing(wanted) or ("is random" if difference(wanted, again) > self.tolerance() else "")
        if why:
            self.notes.append(f"{run.label} was not compared: it {why}")
            return
        self.runs.append(run)
        self.wanted.append(wanted)

    def _resize(self, example: Run) -> None:
        """Draw inputs of other sizes too, as far as the model takes them: a constant must hold there."""
        tensors = tensors_in((example.args, example.kwargs))
        for size in sorted({n for tensor in tensors for n in tensor.shape if n > 1}):
            for other in (size // 2, 2 * size):
                run = example.resized(size, other)
                try:
                    run.on(copied(self.model))
                    wanted = self._expected(run)
                except Exception:  # whatever a forward raises on sizes it did not expect
                    continue
                self.runs.append(run)
                self.wanted.append(wanted)
                break

    def _expected(self, run: Run) -> Any:
        work = copied(self.model)
        with Seen(work) as seen:
            outputs = run.computed_in(self.dtype, work)
        self.read |= seen.read
        return outputs

    def _calls(self, work: nn.Module, which: slice = slice(None)) -> list[Any]:
        return outputs_of(self.runs[which], work, self.dtype)

    def unseen(self, removed: Removed) -> tuple[str, ...]:
        """Return the parameters that no call has read and that have a dim of a size that was cut."""
        sizes = {old for own in changed_sizes(self.structure, removed).values() for old in own}
        first = first_names(self.model)
        return tuple(
            name
            for name, tensor in all_tensors(self.model)
            if isinstance(tensor, nn.Parameter) and first[name] not in self.read and sizes & {*tensor.shape}
        )

    def tolerance(self) -> float:
        """How far off outputs may be: rounding, and that of biases that took up a constant."""
        rounding = 32 * torch.finfo(self.narrowest).eps if self.found.constants else 0.0
        return _LOOSE if self.quick else max(TOLERANCE[self.dtype], rounding)

    def base(self, pruned: Mapping[str, Array]) -> nn.Module:
        """A copy of the model that lost these units: zeroed, their constants in the next biases."""
        work = copied(self.model).eval()  # some weights change where they are looked at in training mode
        fold_constants(work, chain.from_iterable(self.found.constants_of(pruned)))
        mask_units(work, self.structure, pruned)
        return work

    def search(self, pruned: Mapping[str, Array]) -> Cut:
        """Cut what can be cut: where a call fails, the groups of the module that it fails in stay, and those
        like them in other modules of its class; these are tried once more at the end, beside what went."""
        current = {name: units.copy() for name, units in pruned.items() if units.any()}
        withdrawn: dict[str, str] = {}
        along: dict[str, Array] = {}
        beside: list[dict[str, Array]] = []
        while (done := self.attempt(current)).error > self.tolerance():
            if not current:
                name = type(self.model).__name__
                how = "as a graph" if self.graph else "with its dead units zeroed"
                raise ModelError(
                    f"{name} {how} does not run: {done.failure}"
                    if done.error == float("inf")
                    else f"{name} {how} is not equal to the model itself (relative error {done.error:.1e}); "
                    f"is its forward random in eval mode? {done.failure}"
                )
            blamed, alike = self._blamed(current, done)
            along |= {name: current[name] for name in alike}
            some = {name: current[name] for name in blamed}
            if 1 < len(some) <= _FEW:
                beside += [{name: units} for name, units in some.items()]
            elif some:
                beside += _halves(some)
            for name in (*blamed, *alike):
                withdrawn[name] = f"its removal breaks {done.failure}"
                del current[name]
        for _ in range(_AGAIN if along else 0):
            more = self.attempt(current | along)
            if more.error <= self.tolerance():
                current, done = current | along, more
                withdrawn = {name: why for name, why in withdrawn.items() if name not in along}
                break
            for name in self._blamed(current | along, more)[0]:
                along.pop(name, None)
        for _ in range(_TRIES):  # of several in the module that failed one may be to blame
            if not beside:
                break
            some = beside.pop()
            more = self.attempt(current | some)
            if more.error <= self.tolerance():
                current, done = current | some, more
                withdrawn = {name: why for name, why in withdrawn.items() if name not in some}
            else:
                beside += _halves(some)
        return Cut(current, done.changes, done.small, withdrawn, self._stored(done.small, done.error))

    def attempt(self, pruned: Mapping[str, Array], only: int | None = None) -> Outcome:
        """Cut a copy, adjust its attributes, and compare all calls, or ``only`` one."""
        removed = removed_by(self.structure, pruned)
        small = self.base(pruned)
        if self.quick:  # nothing need be dead yet: the network without these units is the measure
            self.wanted = self._calls(copied(small, shared=small.parameters()))
        # Cut in the wide dtype too where a rescaled norm rounds in the model's own.
        wide = in_dtype(copied(small), self.dtype) if self.structure.walk.rounds else None
        try:
            small = self._cut(small, removed)
        except ModelError as error:
            return Outcome(small, failure=f"the forward: {error}")
        if wide is None:
            wide = copied(small, shared=small.parameters())
        else:
            wide = self._cut(wide, removed)
        which = slice(None) if only is None else slice(only, only + 1)
        changes, attempt = adjust(
            wide,
            changed_sizes(self.structure, removed) if self.graph is None else {},
            lambda: self._calls(wide, which),
            lambda outputs: difference(self.wanted[which], outputs) <= self.tolerance(),
            lambda: Wide(self.dtype),
        )
        labels = [run.label for run in self.runs]
        if attempt.error is not None:
            where = f" in {attempt.stack[-1]}" if attempt.stack and attempt.stack[-1] else ""
            label = attempt.error.__notes__[-1]
            failure = f"{label or 'the forward'}: {why_not(attempt.error)}{where}"
            return Outcome(small, failure=failure, stack=attempt.stack, run=labels.index(label))
        for change in changes:
            change.apply(small)
        errors = [difference(*pair) for pair in zip(self.wanted[which], attempt.outputs, strict=True)]
        worst = errors.index(max(errors))
        label = labels[which][worst]
        failure = f"{label or 'the forward'}: its outputs are off by {errors[worst]:.1e}"
        return Outcome(small, changes, errors[worst], failure, run=worst)

    def _cut(self, work: nn.Module, removed: Removed, changes: Iterable[Change] = ()) -> nn.Module:
        """Return the small network of a copy, which is changed where it is made of modules."""
        if self.graph is not None:
            return self.graph.cut(work, removed)
        cut(work, removed)
        for change in changes:
            change.apply(work)
        return work

    def _stored(self, small: nn.Module, error: float) -> float:
        """The error of the model as it is handed out: rescaled norms are rounded to its dtype."""
        if not self.structure.walk.rounds:
            return error
        return max(error, difference(self.wanted, self._calls(copied(small))))

    def prove_randomised(self, pruned: Mapping[str, Array], changes: list[Change]) -> float:
        """Compare again with the surviving weights randomised under the same masks, and of a size at
        which what they compute reaches the outputs."""
        worst, failed = float("nan"), ""
        for seed in range(_SEEDS):
            masked = self.base(pruned)
            if self.structure.walk.rounds:
                masked = in_dtype(masked, self.dtype)
            randomise(masked, seed)
            if seed < _SEEDS // 2:
                rescale(masked)
            outputs = self._calls(copied(masked, shared=masked.parameters()))
            if not any(map(hollow, outputs)):
                small = self._cut(masked, removed_by(self.structure, pruned), changes)
                try:
                    found = self._calls(small)
                except Exception as error:  # on these weights it takes a path that no call has taken
                    failed = f"{_UNTAKEN} and fails there ({why_not(error)}); give examples= that take it"
                    continue
                worst = max(map(difference, outputs, found))
                self._note_deaf(outputs)
                break
        if failed and worst != worst:
            raise ModelError(f"{type(self.model).__name__}: {failed}")
        if failed:
            self.notes.append(failed)
        if worst > self.tolerance():
            raise ModelError(
                f"{type(self.model).__name__}: the small network equals the masked one on these weights and "
                f"not on others (relative error {worst:.1e}); nothing was changed"
                + (f"; if {_UNTAKEN}, give examples= that take it" if self.structure.captured.refused else "")
            )
        return worst

    def _note_deaf(self, outputs: list[Any]) -> None:
        """Say so where other inputs, the second call's, change nothing that is compared."""
        heard = difference(outputs[0], outputs[1]) if self.again else float("inf")
        if heard < _DEAF:
            self.notes.append(
                f"other inputs change the outputs by {heard:.0e} of their size: what was compared says little"
            )

    def _blamed(self, current: dict[str, Array], done: Outcome) -> tuple[list[str], list[str]]:
        """The groups with a tensor in the module that failed, innermost first, and those that have the same
        tensors of other modules of its class; where no module failed, a group found by halves."""
        slices = {name: self.structure.groups[name].slices for name in current}
        for path in filter(None, reversed(done.stack)):
            blamed = [n for n, parts in slices.items() if any(p.name.startswith(f"{path}.") for p in parts)]
            if blamed:
                roles = {
                    (p.name[len(path) :], p.dim) for n in blamed for p in slices[n] if p.name.startswith(path)
                }
                kind = type(module_of(self.model, path))
                others = [own for own, module in self.model.named_modules() if type(module) is kind]
                places = {(f"{own}{leaf}", dim) for own in others for leaf, dim in roles if own != path}
                alike = [n for n, parts in slices.items() if any((p.name, p.dim) in places for p in parts)]
                return blamed, [name for name in alike if name not in blamed]
        return self._halved(current, done.run), []

    def _halved(self, current: dict[str, Array], run: int) -> list[str]:
        """Find one group to blame for a call that fails, by halves: the smallest leading part of the list
        that makes it fail."""
        names = list(current)
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            error = self.attempt({name: current[name] for name in names[:middle]}, run).error
            low, high = (middle, high) if error <= self.tolerance() else (low, middle)
        return names[low:high]


def _halves(some: dict[str, Array]) -> list[dict[str, Array]]:
    """Return groups in two parts; of one alone none."""
    names = list(some)
    parts = (names[: len(names) // 2], names[len(names) // 2 :]) if len(names) > 1 else ()
    return [{name: some[name] for name in part} for part in parts]


def _says_nothing(outputs: Any) -> str:
    """Return why outputs prove nothing, if they do not."""
    if not any(t.numel() for t in tensors_in(outputs)):
        return "puts out no tensor"
    return "puts out nothing but NaN" if hollow(outputs) else ""
