"""Zeros that stay zero while optimizers step: the masks in force, in the weights and in copies of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn, optim

from secateur.errors import NonFiniteError, SecateurWarning
from secateur.pruning.averages import averages_among
from secateur.pruning.holding import Level, Optimizers, around_steps, check_updates, levels_of
from secateur.shards import fitted, local, total
from secateur.structure.following import as_list

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


class Zeros(Protocol):
    """What a ``Holder`` needs of masks."""

    model: nn.Module
    kept: dict[str, Tensor]

    def parameters(self) -> Mapping[str, nn.Parameter]: ...
    def weights_in(self, average: Any) -> Mapping[str, Tensor]: ...
    def fit(self, average: Any) -> bool: ...
    def apply(self, model: Any = None) -> Any: ...
    def check(self) -> None: ...


class Holder:
    """The state behind ``Masks.held`` and ``during``: the masks in force, ready for foreach operations beside
    all tensors that they are to be zero in, and the steps taken.

    ``averaged``: averages of the model, masked with it. ``on_step`` is called after each step taken.
    """

    def __init__(
        self, optimizer: Optimizers, averaged: Any = None, on_step: Callable[[], None] | None = None
    ) -> None:
        self.levels = levels_of(optimizer)
        self.averaged = as_list(averaged)
        self.on_step = on_step
        self.steps = 0
        self._taken = False
        self._copies_kept = not {type(level.optimizer) for level in self.levels} <= _WEIGHT_BY_WEIGHT

    @torch.no_grad()
    def hold(self, masks: Zeros) -> None:
        """Hold these masks from now on, and zero what they mask."""
        named = masks.parameters()
        trained = [weight for weight in named.values() if weight.requires_grad]
        if trained:
            check_updates(self.levels, trained, "the masked parameters", masks.model)
        averages = [masks.weights_in(average) for average in self.averaged]
        for model in (masks.model, *self.averaged):
            masks.apply(model)
        self.masks, self.kept = masks, masks.kept
        self.names = list(named)
        self.weights: list[Tensor] = list(named.values())
        self.own = [fitted(self.kept[n], p).to(p.dtype) for n, p in named.items()]
        further = [(n, tensor) for average in averages for n, tensor in average.items()]
        self.all = [*self.weights, *(tensor for _, tensor in further)]
        self.all_masks = [*self.own, *(fitted(self.kept[n], t).to(t.dtype) for n, t in further)]
        self._mask_weights()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold through every step of every optimizer; leaving the block checks that the zeros held."""
        self._warn_of_averages()
        with around_steps(
            self.levels,
            forward=lambda level: self._mask_weights(),
            gradients=self._mask_gradients_of,
            after=self._stepped,
        ):
            yield
        for average in self.averaged:
            self.masks.apply(average)
        self.check_finite()
        self.masks.check()

    def _mask_gradients_of(self, level: Level, by_closure: bool) -> None:
        if by_closure or type(level.optimizer) not in _WEIGHT_BY_WEIGHT:
            self._mask_gradients()

    def _stepped(self, level: Level) -> None:
        if self.masks.kept is not self.kept:  # load_state_dict
            self.hold(self.masks)
        self._mask_weights()
        self._taken |= level.innermost
        if level.outermost and self._taken:  # a scaler or accumulation may leave the step out
            self._taken = False
            self.steps += 1
            if self.steps % _CHECK_EVERY == 0:
                self.check_finite()
            if self.on_step is not None and level is self.levels[0]:
                self.on_step()

    def check_finite(self) -> None:
        """A NaN stays a NaN, so looking now and then, and at the end, misses none."""
        if not self.weights:
            return
        norms = torch._foreach_norm([_some(local(weight)) for weight in self.weights], torch.inf)
        for name, weight, norm in zip(self.names, self.weights, norms, strict=True):
            if total(int(not torch.isfinite(norm)), weight):
                raise NonFiniteError(f"{name}: training made a NaN or an infinity of its weights")

    def _mask_weights(self) -> None:
        if self.all:
            torch._foreach_mul_([local(tensor) for tensor in self.all], self.all_masks)
        if self._copies_kept:
            for copy, mask in self._copies():
                local(copy).mul_(mask.to(copy.dtype))

    def _copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The optimizers' own copies of masked weights, which they make when they like."""
        states = [state for level in self.levels if (state := getattr(level.optimizer, "state", None))]
        for weight, mask in zip(self.weights, self.own, strict=True):
            for state in states:
                own = state.get(weight) or {}
                for key in _COPIES:
                    if isinstance(copy := own.get(key), Tensor) and copy.shape == weight.shape:
                        yield copy, mask

    def _mask_gradients(self) -> None:
        pairs = [
            (local(weight.grad), mask)
            for weight, mask in zip(self.weights, self.own, strict=True)
            if not mask_sparse_gradient(weight, mask) and weight.grad is not None
        ]
        if pairs:
            gradients, masks = zip(*pairs, strict=True)
            torch._foreach_mul_(list(gradients), list(masks))

    def _warn_of_averages(self) -> None:
        """Say so where an average is in sight that nobody masks: its weights keep what was pruned."""
        held = {id(tensor) for tensor in self.all}
        optimizers = [level.optimizer for level in self.levels]
        hooks = [hook for o in optimizers for hook in getattr(o, "_optimizer_step_post_hooks", {}).values()]
        near = [
            *self.masks.model.modules(),
            *(value for o in optimizers for value in getattr(o, "__dict__", {}).values()),
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


def _some(part: Tensor) -> Tensor:
    """Return a part of a weight that has entries: one without any has no norm."""
    return part if part.numel() else part.new_zeros(1)


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # not filled yet
            yield cell.cell_contents


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
