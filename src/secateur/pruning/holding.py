"""Holding something while optimizers step: any of them, wrapped in others or several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn, optim

from secateur.errors import MaskError, ModelError, NonFiniteError, TargetError
from secateur.graph.names import canonical_parameters
from secateur.shards import local, settle, total
from secateur.structure.following import as_list, inside
from secateur.text import nearest

T = TypeVar("T")
Optimizers = Any  # a torch optimizer, what wraps one, or a list of such

# -- the optimizers that a step goes through -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Level:
    """An optimizer that a step goes through: one that was given (``outermost``), or one that it drives.

    ``innermost``: it drives no other, so that steps are really taken there.
    """

    optimizer: Any
    outermost: bool
    innermost: bool


Action = Callable[[Level], None]
Gradients = Callable[[Level, bool], None]


def levels_of(optimizer: Optimizers) -> list[Level]:
    """Return each optimizer given and those inside it, the outermost first.

    Raises MaskError for what is no optimizer, or steps in a way that nothing can be hooked to.
    """
    given = as_list(optimizer)
    if not given:
        raise MaskError(f"optimizer is {optimizer!r}; it is the one that trains the model, or a list of them")
    chains = [_chain(one) for one in given]
    return [
        Level(one, one is chain[0], not any(inner in chain for inner in inside(one)))
        for chain in chains
        for one in chain
    ]


def innermost(optimizer: Optimizers) -> list[Level]:
    """Return the levels where steps are really taken."""
    return [level for level in levels_of(optimizer) if level.innermost]


def updated_by(levels: Iterable[Level]) -> set[int]:
    """Return the ids of all parameters that the optimizers update."""
    groups = [group for level in levels for group in getattr(level.optimizer, "param_groups", ())]
    return {id(parameter) for group in groups for parameter in group["params"]}


def owned(
    levels: Iterable[Level], things: Iterable[T], tensor: Callable[[T], Tensor]
) -> dict[Level, list[T]]:
    """Return by level those of some things whose tensor its optimizer updates."""
    mine, things = {level: updated_by([level]) for level in levels}, list(things)
    return {level: [t for t in things if id(tensor(t)) in ids] for level, ids in mine.items()}


def check_updates(levels: Iterable[Level], tensors: Iterable[Tensor], what: str, model: nn.Module) -> None:
    """Raise MaskError where the optimizers update none of the tensors: ``module.to(...)`` may have replaced
    the parameters that they were made from."""
    mine = updated_by(levels)
    if not any(id(tensor) in mine for tensor in tensors):
        raise MaskError(
            f"the optimizer updates none of {what}; make it from {type(model).__name__}.parameters() of the "
            "model that they belong to"
        )


def _chain(optimizer: Any) -> list[Any]:
    if isinstance(optimizer, type) or not callable(getattr(optimizer, "step", None)):
        raise MaskError(f"optimizer is {optimizer!r}; it is the one that trains the model")
    if not _hooks_called(optimizer) and not hasattr(optimizer, "__dict__"):
        raise MaskError(f"{type(optimizer).__name__} cannot be hooked; give a torch.optim.Optimizer")
    found: dict[Any, None] = {}
    waiting = [optimizer]
    while waiting:
        one = waiting.pop(0)
        if one not in found:
            found[one] = None
            waiting += inside(one)
    if not any(isinstance(getattr(one, "param_groups", None), list) for one in found):
        raise MaskError(
            f"{type(optimizer).__name__} has no param_groups, nor an optimizer inside it that has: what it "
            "updates cannot be seen; give the torch optimizer that it drives"
        )
    return list(found)


# -- around their steps --------------------------------------------------------------------------------


def _nothing(level: Level, by_closure: bool = False) -> None:
    pass


@contextmanager
def around_steps(
    levels: Sequence[Level],
    *,
    forward: Action = _nothing,
    gradients: Gradients = _nothing,
    after: Action = _nothing,
) -> Iterator[None]:
    """Inside the block do something around each step of some optimizers, without a history for autograd.

    ``forward``: before a closure that a step was given is evaluated, each time. ``gradients``: when these
    are to be used, which is after each such evaluation (True), else before a step where it is really taken.
    ``after``: after the step.
    """
    with ExitStack() as hooks:
        for level in levels:
            hooks.enter_context(
                _hooked(level.optimizer, _before(level, forward, gradients), _after(level, after))
            )
        yield


def _before(level: Level, forward: Action, gradients: Gradients) -> Callable[..., Any]:
    def before(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # torch passes the optimizer first
        if closure is None:
            if level.innermost:
                with torch.no_grad():
                    gradients(level, False)
            return None

        def evaluated() -> Any:
            with torch.no_grad():
                forward(level)
            value = closure()
            with torch.no_grad():
                gradients(level, True)
            return value

        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    return before


def _after(level: Level, after: Action) -> Callable[..., None]:
    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            after(level)

    return stepped


def _hooks_called(optimizer: Any) -> bool:
    """Whether torch calls an optimizer's hooks: not where a subclass leaves out ``super().__init__()``."""
    made = isinstance(optimizer, optim.Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks")
    return made and getattr(type(optimizer).step, "hooked", False)


@contextmanager
def _hooked(optimizer: Any, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Inside the block call torch's two kinds of hook around each step, torch's own way where it has one."""
    if _hooks_called(optimizer):
        with optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after):
            yield
        return
    step, earlier = optimizer.step, vars(optimizer).get("step")
    within = True

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not within:
            return step(*args, **kwargs)
        given, kwargs = before(self, (self, *args), kwargs) or ((self, *args), kwargs)
        result = step(*given[1:], **kwargs)
        after(self, given, kwargs)
        return result

    stepped.__dict__ |= getattr(step, "__dict__", {})  # the mark of a scheduler that is there already
    optimizer.step = ours = MethodType(stepped, optimizer)  # schedulers, which wrap it in turn, want a method
    try:
        yield
    finally:
        within = False
        if vars(optimizer).get("step") is ours:
            del optimizer.step
            if earlier is not None:
                optimizer.step = earlier


# -- a GradScaler around them --------------------------------------------------------------------------

_UNSCALES = "_step_supports_amp_scaling"  # torch's mark of a step that unscales by itself, as fused ones do


@contextmanager
def scalers_shown(levels: Sequence[Level]) -> Iterator[None]:
    """Inside the block a GradScaler leaves its mark on any optimizer that it steps, as on a fused one, and
    ``refuse_scaler`` sees it."""
    marked = [level.optimizer for level in levels if not getattr(level.optimizer, _UNSCALES, False)]
    for optimizer in marked:
        setattr(optimizer, _UNSCALES, True)
    try:
        yield
    finally:
        for optimizer in marked:
            vars(optimizer).pop(_UNSCALES, None)


def left_out(level: Level) -> bool:
    """Whether a GradScaler lets a fused optimizer's step change nothing, since a gradient was no number."""
    found = getattr(level.optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found > 0)


def refuse_scaler(levels: Sequence[Level], why: str) -> None:
    """Raise ModelError, from within a step, where a GradScaler takes it; the scaler's marks go."""
    for level in levels:
        if vars(level.optimizer).pop("found_inf", None) is not None:
            vars(level.optimizer).pop("grad_scale", None)
            raise ModelError(f"a GradScaler {why}")


# -- what is held: tensors by a parameter's name -------------------------------------------------------


def bound(model: nn.Module, held: Mapping[str, Tensor], what: str) -> dict[str, nn.Parameter]:
    """Return the parameters of ``model`` that tensors (``what`` they are) belong to by canonical name; raise
    MaskError where one is missing or has another shape."""
    settle(model)
    parameters = canonical_parameters(model)
    for name, tensor in held.items():
        if name not in parameters:
            raise MaskError(f"{type(model).__name__} has no parameter {name!r}{nearest(name, parameters)}")
        if tensor.shape != parameters[name].shape:
            raise MaskError(
                f"{name}: the {what} has shape {tuple(tensor.shape)}, the parameter "
                f"{tuple(parameters[name].shape)}"
            )
    return {name: parameters[name] for name in held}


def require_finite(what: str, tensor: Tensor, why: str) -> None:
    """Raise NonFiniteError where ``tensor`` holds a NaN or an infinity; ``why`` that is no good."""
    if total(int(torch.isfinite(local(tensor)).logical_not_().count_nonzero()), tensor):
        raise NonFiniteError(f"{what} holds a NaN or an infinity; {why}")


def check_writable(weights: Mapping[str, Tensor]) -> None:
    """Raise TargetError for weights that torch lets nobody change."""
    for name, weight in weights.items():
        if weight.is_inference() and not torch.is_inference_mode_enabled():
            raise TargetError(
                f"{name}: made in torch.inference_mode(), so that it cannot be changed outside of it; "
                "build or load the network outside, or take a copy.deepcopy of it there"
            )
