"""What criteria read from data: the size of each layer's input, the gradients of the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import CriterionError
from secateur.measure.running import as_written, call_model, evaluating, failing, first_line, shapes
from secateur.pruning.targets import Target, Targets
from secateur.structure.units import Structure

Batches = Iterable[Any]
Loss = Callable[[Any, Any], Tensor]


def input_rms(targets: Targets, data: Batches | None) -> dict[str, Tensor]:
    """Return the rms of each target's input by channel, shaped to broadcast over its weight."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(targets, 0)

    def watch(name: str, target: Target) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = (args[0] if args else kwargs["input"]).detach().to(torch.float32)
            dim = inputs.dim() - target.weight.dim() + 1  # channels, batched or not
            others = [d for d in range(inputs.dim()) if d != dim]
            total = inputs.square().sum(others).double()
            sums[name] = sums[name] + total if name in sums else total
            counts[name] += inputs.numel() // inputs.shape[dim]

        return target.module.register_forward_pre_hook(hook, with_kwargs=True)

    for name, target in targets.items():
        layer = hasattr(target.module, "in_features") or hasattr(target.module, "in_channels")
        if not layer or target.weight.dim() < 2:
            raise CriterionError(
                f"{name}: Wanda needs the weight of a Linear or Conv layer, which its input "
                f"multiplies; this is a parameter of {type(target.module).__name__}; exclude it"
            )
    handles = [watch(name, target) for name, target in targets.items()]
    try:
        with evaluating(targets.model), as_written(), torch.no_grad():
            for inputs, _ in batches(data, "Wanda", targets.model):
                with failing(targets.model, inputs, "a batch of data="):
                    call_model(targets.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    unused = [name for name in targets if name not in sums]
    if unused:
        raise CriterionError(f"{unused[0]}: its layer never ran on the data given; exclude it")
    return {n: _over_weight(t, (sums[n] / counts[n]).sqrt()) for n, t in targets.items()}


def _over_weight(target: Target, rms: Tensor) -> Tensor:
    weight = target.weight
    rms = rms.to(weight.dtype if weight.element_size() >= 4 else torch.float32)
    ones = [1] * (weight.dim() - 2)
    if target.input_dim == 0:
        return rms.reshape(-1, 1, *ones)
    groups = getattr(target.module, "groups", 1)
    if groups == 1:
        return rms.reshape(1, -1, *ones)
    by_group = rms.reshape(groups, -1)
    return by_group.repeat_interleave(weight.shape[0] // groups, 0).reshape(*weight.shape[:2], *ones)


def operand_rms(structure: Structure, data: Batches | None, who: str) -> dict[tuple[str, int], Tensor]:
    """Return, for each (weight, dim) that reads activations, the rms of each of its inputs.

    Only weights of modules that are called with the activation they read are watched.
    """
    sums: dict[tuple[str, int], Tensor] = {}
    counts: dict[tuple[str, int], int] = {}
    places = {(part.name, part.dim) for g in structure.groups.values() for part in g.slices if part.reads}

    def watch(place: tuple[str, int], module: nn.Module, size: int, convolves: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            weight = getattr(module, "weight", None)
            dim = given.dim() - (weight.dim() - 1) if convolves else given.dim() - 1  # type: ignore[union-attr]
            if given.shape[dim] == size:
                inputs = given.detach().double()
                total = inputs.square().sum([d for d in range(inputs.dim()) if d != dim]).cpu()
                sums[place] = sums[place] + total if place in sums else total
                counts[place] = counts.get(place, 0) + inputs.numel() // size

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    handles = []
    parameters = dict(structure.model.named_parameters())
    owners = {
        id(parameter): (module, leaf)
        for module in structure.model.modules()
        for leaf, parameter in module._parameters.items()
        if not isinstance(module, nn.Embedding)  # a tied one looks its rows up, it does not sum
    }
    for name, dim in places:
        weight = parameters.get(name)
        module, leaf = owners.get(id(weight), (None, ""))
        if module is not None and weight is not None and leaf in ("weight", "weight_ih_l0", "weight_ih"):
            convolves = isinstance(module, nn.modules.conv._ConvNd)
            size = weight.shape[dim] * (module.groups if convolves and not module.transposed else 1)  # type: ignore[union-attr]
            handles.append(watch((name, dim), module, size, convolves))
    try:
        with evaluating(structure.model), as_written(), torch.no_grad():
            for inputs, _ in batches(data, who, structure.model):
                with failing(structure.model, inputs, "a batch of data="):
                    call_model(structure.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {place: (total / counts[place]).sqrt() for place, total in sums.items()}


def mean_gradients(
    targets: Targets, data: Batches | None, loss: Loss | None, who: str, power: int = 1
) -> dict[str, Tensor]:
    """Return the mean over the batches of the loss's gradient for each target, to a ``power``.

    ``loss(outputs, labels)`` is cross-entropy unless given; ``who`` asks, for the errors. Neither
    ``.grad`` nor any buffer changes.
    """
    loss = nn.functional.cross_entropy if loss is None else loss
    if not callable(loss):
        raise CriterionError(f"loss is {loss!r}; it is a function of (outputs, labels)")
    weights = [target.weight for target in targets.values()]
    frozen = [w for w in weights if not w.requires_grad]
    sums = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
    number = 0
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with evaluating(targets.model), as_written(), torch.enable_grad():
            for inputs, labels in batches(data, who, targets.model):
                if labels is None:
                    raise CriterionError(f"{who} needs batches of (inputs, labels); got inputs alone")
                with failing(targets.model, inputs, "a batch of data="):
                    outputs = call_model(targets.model, inputs)
                value = _loss_of(loss, outputs, labels, who)
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
                for name, total, gradient in zip(targets, sums, gradients, strict=True):
                    if gradient is None:
                        raise CriterionError(f"{name}: the loss does not depend on it; exclude it")
                    total += gradient.to(total.dtype).pow(power)
                number += 1
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return {name: total / number for name, total in zip(targets, sums, strict=True)}


def _loss_of(loss: Loss, outputs: Any, labels: Any, who: str) -> Tensor:
    """Return the loss of a batch, one number that has a gradient."""
    given = f"outputs {shapes(outputs)} and labels {shapes(labels)}"
    try:
        value = loss(outputs, labels)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise CriterionError(f"{who}: the loss fails on {given}: {first_line(error)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        what = shapes(value) + (
            "" if not isinstance(value, Tensor) or value.requires_grad else ", no gradient"
        )
        raise CriterionError(f"{who}: the loss of {given} is {what}; one number with a gradient is right")
    return value


def batches(data: Batches | None, who: str, model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yield (inputs, labels or None) on the model's device from whatever the user calls batches."""
    if data is None:
        raise CriterionError(f"{who} needs data: pass data=batches, an iterable of (inputs, labels)")
    if isinstance(data, (Tensor, np.ndarray, str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise CriterionError(
            f"{who} was given a {type(data).__name__} as data; "
            "pass batches: a list of tensors or of (inputs, labels)"
        )
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    number = 0
    for number, batch in enumerate(data, 1):
        pair = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        if not isinstance(pair[0], (Tensor, Mapping, tuple, list)):
            raise CriterionError(
                f"{who}: batch {number} of data= holds a {type(pair[0]).__name__}; "
                "pass a list of tensors or of (inputs, labels)"
            )
        yield _to(pair[0], device), _to(pair[1], device)
    if not number:
        raise CriterionError(f"{who} was given data without a single batch")


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _to(v, device) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to(v, device) for v in value]
    return value.to(device) if isinstance(value, Tensor) else value
