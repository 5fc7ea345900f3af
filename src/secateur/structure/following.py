"""What follows a network into its smaller one: its optimizers, their schedulers, what is held on it."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import ModelError
from secateur.graph.capture import all_tensors
from secateur.structure.surgery import Removed, sliced


class Follower(Protocol):
    """What goes with a network (masks held on it, shared weights, its optimizers) and can follow it into its
    smaller one."""

    def follow(self, small: nn.Module, removed: Removed) -> Any: ...


@dataclass(frozen=True)
class Trainers:
    """The optimizers of a network and their schedulers, one of each or a list; None stays None. ``notes`` say
    what did not follow."""

    model: nn.Module
    optimizer: Any
    scheduler: Any
    notes: tuple[str, ...] = ()

    def follow(self, small: nn.Module, removed: Removed) -> Trainers:
        """Return their likes for the small network: settings stay, state is cut to size, and a wrapper
        (Accelerate's, say) gives way to what it wraps.

        Raises ModelError for an optimizer with parameters that are not the model's, and for a scheduler of
        another optimizer.
        """
        after = {name: p for name, p in all_tensors(small) if isinstance(p, nn.Parameter)}
        own = [(name, p) for name, p in all_tensors(self.model) if isinstance(p, nn.Parameter)]
        new_of = {id(parameter): (name, after[name]) for name, parameter in own if name in after}
        given, schedulers = as_list(self.optimizer), as_list(self.scheduler)
        moved: dict[int, Optimizer] = {}
        for one in given:
            inner = _inner(one)
            moved[id(one)] = moved[id(inner)] = _migrated(inner, new_of, removed)
        followed = [_rescheduled(one, moved) for one in schedulers]
        driven = {id(_inner(one.optimizer)) for one in schedulers}
        notes = tuple(
            f"a scheduler still drives the old {type(_inner(one)).__name__}; pass scheduler= to move it along"
            for one in given
            if hasattr(_inner(one).step, "_wrapped_by_lr_sched") and id(_inner(one)) not in driven
        )
        optimizers = [moved[id(one)] for one in given]
        return Trainers(small, _as(self.optimizer, optimizers), _as(self.scheduler, followed), notes)


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _as(given: Any, values: list[Any]) -> Any:
    """Return values as they were given: a list, one alone, or None."""
    return values if isinstance(given, (list, tuple)) else next(iter(values), None)


def inside(optimizer: Any) -> list[Any]:
    """Return the optimizers that a wrapper drives, whatever it calls them."""
    values = getattr(optimizer, "__dict__", {}).values()
    lists = [
        v.values() if isinstance(v, dict) else v if isinstance(v, (list, tuple)) else [v] for v in values
    ]
    return [part for parts in lists for part in parts if part is not optimizer and _looks_like_one(part)]


def _looks_like_one(value: Any) -> bool:
    return (
        not isinstance(value, (type, nn.Module, Tensor))
        and hasattr(value, "param_groups")
        and hasattr(value, "step")
    )


def _inner(optimizer: Any) -> Any:
    """Return what a wrapper that adds nothing to the state goes around: Accelerate's, say."""
    while len(within := inside(optimizer)) == 1 and not vars(optimizer).get("state"):
        optimizer = within[0]
    return optimizer


def _migrated(optimizer: Any, new_of: Mapping[int, tuple[str, nn.Parameter]], removed: Removed) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise ModelError(
            f"optimizer is a {type(optimizer).__name__}; it is one of torch.optim, or a list of them"
        )
    strange = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in new_of]
    if strange:
        raise ModelError(
            "the optimizer holds parameters that are not the model's; make it from model.parameters()"
        )
    moved = object.__new__(type(optimizer))  # copy.copy would drop what a subclass keeps of its own
    moved.__dict__.update(optimizer.__dict__)
    moved.__dict__.pop("step", None)  # a scheduler's wrapper, which is bound to the old one
    for name, value in vars(optimizer).items():
        if isinstance(value, list) and value and all(id(part) in new_of for part in value):
            moved.__dict__[name] = [new_of[id(part)][1] for part in value]  # LBFGS's own list
        elif isinstance(value, Optimizer):  # what a lookahead goes around
            moved.__dict__[name] = _migrated(value, new_of, removed)
    moved._optimizer_step_pre_hooks = OrderedDict()
    moved._optimizer_step_post_hooks = OrderedDict()
    moved.param_groups = [
        {**group, "params": [new_of[id(p)][1] for p in group["params"]]} for group in optimizer.param_groups
    ]
    moved.state = defaultdict(dict)
    for old, state in optimizer.state.items():
        name, new = new_of[id(old)]
        if any(isinstance(v, Tensor) and v.dim() and v.shape != old.shape for v in state.values()):
            continue  # LBFGS's history of the whole network: it starts anew
        moved.state[new] = {
            key: sliced(value, name, removed).clone()
            if isinstance(value, Tensor) and value.shape == old.shape
            else copy.deepcopy(value)
            for key, value in state.items()
        }
    return moved


def _rescheduled(scheduler: Any, moved: Mapping[int, Optimizer]) -> Any:
    """Return a scheduler's like that drives the moved optimizer; those inside it too."""
    old = getattr(scheduler, "optimizer", None)
    if old is None or id(old) not in moved:
        raise ModelError(
            f"scheduler is a {type(scheduler).__name__} of another optimizer than optimizer=; pass both, as "
            "they are together"
        )
    like = copy.copy(scheduler)
    like.optimizer = _tracked(moved[id(old)])
    for name, value in vars(scheduler).items():
        if isinstance(value, (list, tuple)) and value and all(hasattr(part, "optimizer") for part in value):
            vars(like)[name] = type(value)(_rescheduled(part, moved) for part in value)
        elif isinstance(value, (list, dict)):
            vars(like)[name] = copy.copy(value)
    return like


def _tracked(optimizer: Optimizer) -> Optimizer:
    """Let schedulers see that an optimizer steps, as their constructor does."""
    if not hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        step: Any = optimizer.step
        stepped: Any = functools.wraps(step.__func__)(lambda *args, **kwargs: step(*args, **kwargs))
        stepped._wrapped_by_lr_sched = True
        optimizer._opt_called = True  # type: ignore[attr-defined]
        optimizer.step = stepped  # type: ignore[method-assign, assignment]
    return optimizer
