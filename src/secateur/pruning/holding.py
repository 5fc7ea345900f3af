"""Holding zeros while optimizers step: any of them, wrapped in others or several at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, optim

from secateur.errors import MaskError, NonFiniteError, SecateurWarning
from secateur.pruning.averages import averages_among
from secateur.structure.following import as_list, inside

if TYPE_CHECKING:
    from secateur.pruning.masks import Masks

_CHECK_EVERY = 64
# These move every weight by its own gradient and state alone, so that masking the weights is enough.
# Masked gradients would cost: where Adam's second moments are 0, MKL's sqrt takes five times as long.
_WEIGHT_BY_WEIGHT = {
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop,
    optim.Adagrad, optim.Adadelta,
}  # fmt: skip
# Under these names optimizers keep weights that later come back: schedule-free ones, several Lookaheads,
# averaged SGD.
_COPIES = (
    "z", "x", "y", "ax", "swa_buffer", "lookahead_slow_buff", "slow_buffer", "slow_param", "slow_params",
    "cached_params", "backup_params",
)  # fmt: skip

Optimizers = Any  # a torch optimizer, what wraps one, or a list of such


def chains_of(optimizer: Optimizers) -> list[list[Any]]:
    """Return, for each optimizer given, itself and those inside it, the outermost first.

    Raises MaskError for what is no optimizer, or steps in a way that nothing can be hooked to.
    """
    given = as_list(optimizer)
    if not given:
        raise MaskError(f"optimizer is {optimizer!r}; it is the one that trains the model, or a list of them")
    return [list(_levels(one)) for one in given]


def updated_by(chains: list[list[Any]]) -> set[int]:
    """Return the ids of all parameters that the optimizers update."""
    groups = [group for chain in chains for level in chain for group in getattr(level, "param_groups", ())]
    return {id(parameter) for group in groups for parameter in group["params"]}


def steppers(optimizer: Optimizers) -> list[Any]:
    """Return the optimizers that really step: of those that wrap others the innermost."""
    return [level for chain in chains_of(optimizer) for level in chain if _steps_itself(level, chain)]


def _steps_itself(level: Any, chain: list[Any]) -> bool:
    return not any(inner in chain for inner in inside(level))


def _levels(optimizer: Any) -> dict[Any, None]:
    if isinstance(optimizer, type) or not callable(getattr(optimizer, "step", None)):
        raise MaskError(f"optimizer is {optimizer!r}; it is the one that trains the model")
    if not _hooked(optimizer) and not hasattr(optimizer, "__dict__"):
        raise MaskError(f"{type(optimizer).__name__} cannot be hooked; give a torch.optim.Optimizer")
    levels: dict[Any, None] = {}
    waiting = [optimizer]
    while waiting:
        level = waiting.pop(0)
        if level not in levels:
            levels[level] = None
            waiting += inside(level)
    if not any(isinstance(getattr(level, "param_groups", None), list) for level in levels):
        raise MaskError(
            f"{type(optimizer).__name__} has no param_groups, nor an optimizer inside it that has: what it "
            "updates cannot be seen; give the torch optimizer that it drives"
        )
    return levels


def _hooked(optimizer: Any) -> bool:
    """Whether torch calls an optimizer's hooks: not where a subclass leaves out ``super().__init__()``."""
    made = isinstance(optimizer, optim.Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks")
    return made and getattr(type(optimizer).step, "hooked", False)


@contextmanager
def around_steps(optimizer: Any, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Inside the block call torch's two kinds of hook around each step, torch's own way where it has one."""
    if _hooked(optimizer):
        handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
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

    optimizer.step = ours = MethodType(stepped, optimizer)  # schedulers, which wrap it in turn, want a method
    try:
        yield
    finally:
        within = False
        if vars(optimizer).get("step") is ours:
            del optimizer.step
            if earlier is not None:
                optimizer.step = earlier


def mask_sparse_gradient(weight: Tensor, mask: Tensor) -> bool:
    """Zero a gradient that is sparse (an Embedding's) where the mask is zero; False where it is not one."""
    if weight.grad is None or weight.grad.layout != torch.sparse_coo:
        return False
    grad = weight.grad.coalesce()
    values = grad.values() * mask[tuple(grad.indices())]
    weight.grad = torch.sparse_coo_tensor(
        grad.indices(), values, grad.shape, is_coalesced=True, check_invariants=False
    )
    return True


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], around: Callable[[Callable[[], Any]], Callable[[], Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return a step's arguments with another closure in the place of its own; None where it has none."""
    own, rest = args[:1], args[1:]  # torch passes the optimizer itself first
    closure = rest[0] if rest else kwargs.get("closure")
    if closure is None:
        return None
    if rest:
        return (*own, around(closure), *rest[1:]), kwargs
    return args, {**kwargs, "closure": around(closure)}


class Holder:
    """The state behind ``Masks.held`` and ``during``: the masks in force, ready for foreach operations beside
    all tensors that they are to be zero in, and the steps taken.

    ``averaged``: averages of the model, masked with it. ``on_step`` is called after each step taken.
    """

    def __init__(
        self, optimizer: Optimizers, averaged: Any = None, on_step: Callable[[], None] | None = None
    ) -> None:
        self.chains = chains_of(optimizer)
        self.averaged = as_list(averaged)
        self.on_step = on_step
        self.steps = 0
        self._taken = False
        kinds = {type(level) for chain in self.chains for level in chain}
        self._copies_kept = not kinds <= _WEIGHT_BY_WEIGHT

    @torch.no_grad()
    def hold(self, masks: Masks) -> None:
        """Hold these masks from now on, and zero what they mask."""
        named = masks.parameters()
        mine = updated_by(self.chains)
        # ``module.to(...)`` may replace parameters: an optimizer made before it updates nothing.
        if named and not any(id(p) in mine for p in named.values()):
            raise MaskError(
                "the optimizer updates none of the masked parameters; make it from "
                f"{type(masks.model).__name__}.parameters() of the model the masks are bound to"
            )
        averages = [masks.weights_in(average) for average in self.averaged]
        for model in (masks.model, *self.averaged):
            masks.apply(model)
        self.masks, self.kept = masks, masks.kept
        self.names = list(named)
        self.weights: list[Tensor] = list(named.values())
        self.own = [masks[n].to(device=p.device, dtype=p.dtype) for n, p in named.items()]
        further = [(n, tensor) for average in averages for n, tensor in average.items()]
        self.all = [*self.weights, *(tensor for _, tensor in further)]
        self.all_masks = [*self.own, *(masks[n].to(device=t.device, dtype=t.dtype) for n, t in further)]
        self._mask_weights()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold through every step of every optimizer; leaving the block checks that the zeros held."""
        self._warn_of_averages()
        with ExitStack() as hooks:
            for chain in self.chains:
                for level in chain:
                    # Gradients are masked, and steps counted, where they are really taken.
                    innermost = _steps_itself(level, chain)
                    hooks.enter_context(
                        around_steps(
                            level, self._before(innermost), self._after(level is chain[0], innermost)
                        )
                    )
            yield
        for average in self.averaged:
            self.masks.apply(average)
        self.check_finite()
        self.masks.check()

    def _before(self, innermost: bool) -> Callable[..., Any]:
        def masked(closure: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> Any:
                with torch.no_grad():
                    self._mask_weights()
                value = closure()
                with torch.no_grad():
                    self._mask_grads()
                return value

            return call

        @torch.no_grad()
        def before(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = with_closure(args, kwargs, masked)
            if given is None and innermost and type(optimizer) not in _WEIGHT_BY_WEIGHT:
                self._mask_grads()
            return given

        return before

    def _after(self, outermost: bool, innermost: bool) -> Callable[..., Any]:
        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            if self.masks.kept is not self.kept:  # load_state_dict
                self.hold(self.masks)
            with torch.no_grad():
                self._mask_weights()
            self._taken |= innermost
            if outermost and self._taken:  # a scaler or accumulation may leave the step out
                self._taken = False
                self.steps += 1
                if self.steps % _CHECK_EVERY == 0:
                    self.check_finite()
                if self.on_step is not None and optimizer is self.chains[0][0]:
                    self.on_step()

        return after

    def check_finite(self) -> None:
        """A NaN stays a NaN, so looking now and then, and at the end, misses none."""
        if not self.weights:
            return
        for name, norm in zip(self.names, torch._foreach_norm(self.weights, torch.inf), strict=True):
            if not torch.isfinite(norm):
                raise NonFiniteError(f"{name}: training made a NaN or an infinity of its weights")

    def _mask_weights(self) -> None:
        if self.all:
            torch._foreach_mul_(self.all, self.all_masks)
        if self._copies_kept:
            for copy, mask in self._copies():
                copy.mul_(mask.to(copy.dtype))

    def _copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The optimizers' own copies of masked weights, which they make when they like."""
        states = [
            state for chain in self.chains for level in chain if (state := getattr(level, "state", None))
        ]
        for weight, mask in zip(self.weights, self.own, strict=True):
            for state in states:
                own = state.get(weight) or {}
                for key in _COPIES:
                    if isinstance(copy := own.get(key), Tensor) and copy.shape == weight.shape:
                        yield copy, mask

    def _mask_grads(self) -> None:
        pairs = [
            (weight.grad, mask)
            for weight, mask in zip(self.weights, self.own, strict=True)
            if not mask_sparse_gradient(weight, mask) and weight.grad is not None
        ]
        if pairs:
            grads, masks = zip(*pairs, strict=True)
            torch._foreach_mul_(list(grads), list(masks))

    def _warn_of_averages(self) -> None:
        """Say so where an average is in sight that nobody masks: its weights keep what was pruned."""
        held = {id(tensor) for tensor in self.all}
        levels = [level for chain in self.chains for level in chain]
        hooks = [hook for o in levels for hook in getattr(o, "_optimizer_step_post_hooks", {}).values()]
        near = [
            *self.masks.model.modules(),
            *(value for level in levels for value in getattr(level, "__dict__", {}).values()),
            *(value for hook in hooks for value in _closed_over(hook)),
            *(getattr(hook, "__self__", None) for hook in hooks),
        ]
        for average in averages_among(near):
            if self.masks.fit(average) and not held.issuperset(
                map(id, self.masks.weights_in(average).values())
            ):
                warnings.warn(
                    f"{type(average).__name__} keeps an average of the weights, in which pruned ones live "
                    "on; give it too: averaged=it",
                    SecateurWarning,
                    stacklevel=6,
                )
                return


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # not filled yet
            yield cell.cell_contents
