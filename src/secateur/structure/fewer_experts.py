"""Taking experts out of a mixture, equal to a router that never chooses them.

A zero in a router's weights is a score like any other. The network that a removal must equal is the one whose
scores of those experts are minus infinity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.copying import copied
from secateur.errors import ModelError, SecateurError
from secateur.graph.capture import first_names, tensor_of
from secateur.graph.compare import TOLERANCE, difference, hollow
from secateur.graph.draws import randomise, rescale
from secateur.graph.names import unwrapped
from secateur.measure.macs import count_macs
from secateur.measure.size import count_parameters
from secateur.numeric import is_whole
from secateur.structure.attributes import Change, adjust, settings_of
from secateur.structure.experts import Mixture, find_experts
from secateur.structure.proof import Proof
from secateur.structure.runs import Run, Wide, in_training, outputs_of, runs_of, why_not, widest
from secateur.structure.surgery import Removed, cut
from secateur.text import nearest

_PRODUCTS = ("linear", "matmul", "mm", "addmm", "__matmul__")
_SEEDS = 4  # of randomised weights that are tried where the outputs are all NaN


def remove_experts(
    model: nn.Module,
    example_inputs: Any,
    experts: Mapping[str, Sequence[int]],
    *,
    kwargs: Mapping[str, Any] | None = None,
    examples: Sequence[Any] = (),
) -> tuple[nn.Module, Proof]:
    """Return a network without some experts, proved equal to this one with their scores at minus infinity.

    The rows of the router, what else it holds of each expert (a correction bias), the stacks and lists go,
    and what says their number follows. The given network never changes.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        experts: by path of a mixture, as ``find_experts`` gives it, the numbers of the experts that go.
        kwargs: arguments by name beside ``example_inputs``.
        examples: more inputs, each as ``example_inputs``, that are compared too.

    Returns:
        A new model of the same class, and a ``Proof``.

    Raises:
        ModelError: for paths or numbers that there are not, where fewer experts would be left than the router
            chooses, or where the small network is not equal.

    Source:
        Lasby et al., "REAP the Experts", 2025, for removal instead of merging.

    Example:
        >>> import torch, secateur as sc
        >>> class Mixture(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate = torch.nn.Linear(4, 3, bias=False)
        ...         self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        ...
        ...     def forward(self, x):
        ...         weight, chosen = self.gate(x).softmax(-1).max(-1)
        ...         every = torch.stack([expert(x) for expert in self.experts], 1)
        ...         return every[torch.arange(len(x)), chosen] * weight[:, None]
        >>> small, proof = sc.remove_experts(Mixture(), torch.randn(8, 4), {"": [1]})
        >>> len(small.experts), tuple(small.gate.weight.shape)
        (2, (2, 4))
    """
    model = unwrapped(model)
    runs = runs_of(model, example_inputs, kwargs, examples)
    chosen = _chosen(model, runs[0], experts)
    return _removed(model, runs, chosen)


@torch.no_grad()
def _removed(
    model: nn.Module, runs: list[Run], chosen: list[tuple[Mixture, np.ndarray]]
) -> tuple[nn.Module, Proof]:
    dtype = widest(model, runs[0])
    masked = copied(model).eval()
    runs, wanted, notes = _borne(masked, runs, chosen, dtype)
    small = _cut(copied(model).eval(), chosen)
    named = _named(small, chosen)
    for change in named:
        change.apply(small)
    work = copied(small, shared=small.parameters())
    changes, attempt = adjust(
        work,
        {path: {m.experts: {m.experts - len(gone)}} for m, gone in chosen for path in _around(small, m.path)},
        lambda: outputs_of(runs, work, dtype),
        lambda outputs: difference(wanted, outputs) <= TOLERANCE[dtype],
        lambda: Wide(dtype),
    )
    where = f" in {attempt.stack[-1]}" if attempt.stack and attempt.stack[-1] else ""
    if attempt.error is not None:
        label = attempt.error.__notes__[-1]
        raise ModelError(
            f"{type(model).__name__} does not run without these experts: {label and f'{label}: '}"
            f"{why_not(attempt.error)}{where}; do as many stay as the router chooses, the same number in "
            "every group of experts, and is their number written into its forward?"
        ) from attempt.error
    for change in changes:
        change.apply(small)
    error = difference(wanted, attempt.outputs)
    if error > TOLERANCE[dtype]:
        raise ModelError(
            f"{type(model).__name__} without these experts is not equal to the one that never chooses them "
            f"(relative error {error:.1e})"
        )
    others: list[Any] = []
    for seed in range(_SEEDS):
        randomise(masked, seed)
        rescale(masked)
        others = _silenced(masked, runs, chosen, dtype)
        if not any(map(hollow, others)):
            break
    again = _cut(masked, chosen)
    for change in (*named, *changes):
        change.apply(again)
    randomised = difference(others, outputs_of(runs, again, dtype))
    if randomised > TOLERANCE[dtype] or any(map(hollow, others)):
        raise ModelError(
            f"{type(model).__name__} without these experts is equal on these weights and not on others "
            f"(relative error {randomised:.1e})"
        )
    small.train(model.training)
    first = runs[0]
    return small, Proof(
        inputs=len(runs),
        dtype=str(dtype).removeprefix("torch."),
        max_error=error,
        max_error_randomised=randomised,
        removed={f"experts of {m.path}": (len(gone), m.experts) for m, gone in chosen},
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(
            count_macs(model, first.args, first.kwargs).dense,
            count_macs(small, first.args, first.kwargs).dense,
        ),
        changed=tuple(map(str, (*named, *changes))),
        notes=("equal to the network whose scores of the experts that went are minus infinity", *notes),
    )


def _borne(
    masked: nn.Module, asked: list[Run], chosen: list[tuple[Mixture, np.ndarray]], dtype: torch.dtype
) -> tuple[list[Run], list[Any], list[str]]:
    """Return the calls that the masked network bears, what it gives in them, and why others are not compared:
    those asked for, which it must bear, other numbers of the same kind, and all in training mode."""
    name, runs, wanted, notes = type(masked).__name__, list[Run](), list[Any](), list[str]()
    other = asked[0].redrawn(torch.Generator().manual_seed(0))
    for run in (*asked, other, *map(in_training, asked)):
        label = "other numbers of the same kind" if run is other else run.label or "these inputs"
        try:
            outputs, again = (_silenced(masked, [run], chosen, dtype)[0] for _ in range(2))
        except SecateurError:
            if run not in asked:
                continue
            raise
        except Exception as error:  # whatever a forward raises on numbers, or in a mode, it was not made for
            if run in asked:
                raise ModelError(f"{name} does not run on {label}: {why_not(error)}") from error
            notes.append(f"{label} was not compared: {why_not(error)}")
            continue
        if hollow(outputs) and run is asked[0]:
            raise ModelError(f"{name} puts out nothing but NaN without these experts")
        if hollow(outputs) or difference(outputs, again) > TOLERANCE[dtype]:
            notes.append(f"{label} was not compared: its outputs are NaN, or random")
            continue
        runs.append(run)
        wanted.append(outputs)
    return runs, wanted, notes


def _chosen(model: nn.Module, run: Run, experts: Any) -> list[tuple[Mixture, np.ndarray]]:
    found = find_experts(model, run.args, kwargs=run.kwargs)
    if not isinstance(experts, Mapping) or not any(len(_listed(numbers)) for numbers in experts.values()):
        raise ModelError(
            f"experts is {experts!r}; it is a dict by path of a mixture ({_paths(found)}) of the numbers of "
            "the experts that go"
        )
    chosen = []
    for path, numbers in experts.items():
        if path not in found:
            near = nearest(str(path), found) if any(found) else f"; it has {_paths(found)}"
            raise ModelError(f"{type(model).__name__} has no mixture of experts {path!r}{near}")
        number, every = found[path].experts, _listed(numbers)
        if not all(is_whole(n) and 0 <= n < number for n in every) or len({*every}) == number:
            raise ModelError(
                f"experts of {path!r}: {numbers!r}; they are a list of integers from 0 to {number - 1}, and "
                "some stay"
            )
        if every:
            chosen.append((found[path], np.unique(np.array(every, dtype=np.int64))))
    return chosen


def _listed(numbers: Any) -> list[Any]:
    """Return numbers as a list; one that no expert has in the place of what is no list."""
    if isinstance(numbers, Tensor):
        numbers = numbers.tolist()
    return list(numbers) if isinstance(numbers, (Sequence, np.ndarray, range)) else [None]


def _paths(found: Mapping[str, Mixture]) -> str:
    return ", ".join(repr(path) for path in found) or "none"


def _around(model: nn.Module, path: str) -> Iterator[str]:
    """Yield the paths of a module, of what is inside it, and of the network itself."""
    yield ""
    for name, _ in model.named_modules():
        if name == path or name.startswith(f"{path}." if path else ""):
            yield name


# -- the network without them, and what it must equal ------------------------------------------------------


def _cut(work: nn.Module, chosen: list[tuple[Mixture, np.ndarray]]) -> nn.Module:
    """Take the experts out of a copy, in place."""
    first, removed = first_names(work), Removed()
    for mixture, gone in chosen:
        for name in (mixture.router, *mixture.scores, *mixture.stacks):
            removed[first[name], 0] = gone
    cut(work, removed)
    for mixture, gone in chosen:
        for path in mixture.lists:
            own = work.get_submodule(path)
            kept = [pair for n, pair in enumerate(own._modules.items()) if n not in gone]
            own._modules.clear()
            for n, (name, child) in enumerate(kept):
                own._modules[name if isinstance(own, nn.ModuleDict) else str(n)] = child  # type: ignore[assignment]
    return work


def _named(small: nn.Module, chosen: list[tuple[Mixture, np.ndarray]]) -> list[Change]:
    """Return the changes of what is called a number of experts, in the mixtures and in configurations."""
    changes: dict[tuple[int, str], Change] = {}
    for mixture, gone in chosen:
        left = mixture.experts - len(gone)
        for path in _around(small, mixture.path):
            module = small.get_submodule(path)
            holders = [(None, module), *settings_of(module)]
            for inner, holder in holders:
                for name, value in vars(holder).items():
                    if type(value) is int and value == mixture.experts and "expert" in name:
                        changes.setdefault((id(holder), name), Change(path, inner, name, value, left))
    return list(changes.values())


def _silenced(
    masked: nn.Module, runs: list[Run], chosen: list[tuple[Mixture, np.ndarray]], dtype: torch.dtype
) -> list[Any]:
    """Return what a network gives whose scores of the experts that go are minus infinity."""
    work = copied(masked)
    routers: list[tuple[Tensor, Tensor]] = []
    for mixture, gone in chosen:
        index = torch.from_numpy(gone)
        router = tensor_of(work, first_names(work)[mixture.router])
        routers.append((router.detach().clone(), index.to(router.device)))
        for name in mixture.scores:
            tensor_of(work, first_names(work)[name])[index] = -torch.inf
    with _Silenced(routers) as mode:
        outputs = [run.computed_in(dtype, work) for run in runs]
    if len(mode.seen) < len(routers):
        raise ModelError(
            f"{type(masked).__name__}: no product with a router was seen, so its scores could not be masked"
        )
    return outputs


class _Silenced(TorchFunctionMode):
    """Puts minus infinity where a router's product scores the experts that go."""

    def __init__(self, routers: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.routers = routers
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _PRODUCTS and isinstance(result, Tensor):
            for number, (router, gone) in enumerate(self.routers):
                if any(_is(weight, router) for weight in (*args, *(kwargs or {}).values())):
                    self.seen.add(number)
                    result = result.index_fill(-1, gone, -torch.inf)
        return result


def _is(value: Any, router: Tensor) -> bool:
    """Whether a tensor holds a router's numbers, in whatever dtype, turned or not."""
    if not isinstance(value, Tensor) or value.dim() != 2 or not value.is_floating_point():
        return False
    if value.shape == router.shape and torch.equal(value.to(router.dtype), router):
        return True
    return value.shape == router.T.shape and torch.equal(value.T.to(router.dtype), router)
