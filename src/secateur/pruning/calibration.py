"""What criteria read from data: the size of each layer's input, the gradients of the loss.

It is read from a copy of the network, so that nothing that a forward leaves behind is left on the user's own,
and added up over the ranks that prune together. Of a sharded network every rank runs a whole copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from secateur.errors import CriterionError
from secateur.graph.names import canonical_modules, canonical_names, canonical_parameters, unwrapped
from secateur.pruning.batches import Batches, batches
from secateur.pruning.ranks import together
from secateur.pruning.stacks import Place, Sums, Watch, merged
from secateur.pruning.targets import Target, Targets
from secateur.running import as_written, call_model, failing, shapes
from secateur.shards import copied_whole
from secateur.structure.layers import LayerView, layer_view, stored_weights
from secateur.structure.units import Structure
from secateur.task.classifying import cross_entropy
from secateur.text import first_line

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Reader:
    """A module whose first argument is watched: its channels, ``number`` of them (else it is passed over),
    lie along the dim ``channels``, counted from the end."""

    module: nn.Module
    channels: int
    number: int

    def squares(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, int] | None:
        """Return by channel the sum of squares of what a call reads, and of how many numbers each is."""
        inputs = args[0] if args else kwargs.get("input", next(iter(kwargs.values())))
        inputs = inputs.data if isinstance(inputs, PackedSequence) else inputs
        dim = inputs.dim() + self.channels
        if dim < 0 or inputs.shape[dim] != self.number:
            return None
        others = [d for d in range(inputs.dim()) if d != dim]
        size = inputs.detach().abs() if inputs.is_complex() else inputs.detach()
        squares = size.to(torch.promote_types(size.dtype, torch.float32)).square()
        return squares.sum(others, dtype=torch.float64), inputs.numel() // inputs.shape[dim]


def input_rms(targets: Targets, data: Batches | None) -> dict[str, Tensor]:
    """Return the rms of each target's input by channel, shaped to broadcast over its weight: one for each
    matrix where it is a stack of them, as experts have."""
    stacked = {name for name, target in targets.items() if target.stacked}
    layers = replace(targets, found={n: t for n, t in targets.items() if n not in stacked})

    def stacks(work: nn.Module) -> dict[str, Tensor]:
        parameters = canonical_parameters(work)
        return {name: parameters[name] for name in stacked}

    found, sums = _mean_squares(targets.model, partial(readers_of, layers), data, "Wanda", stacks)
    rms = {name: rms_over(target, found[name]) for name, target in layers.items() if name in found}
    for (name, dim), own in sums.items():
        rms[name] = own.means.sqrt().unsqueeze(3 - dim).to(targets[name].weight.device, torch.float32)
    for name in targets:
        if name not in rms:
            raise never_ran(name)
    return rms


def readers_of(targets: Targets, work: nn.Module) -> dict[str, Reader]:
    """Return what to watch in a copy of the network for the input of each target."""
    paths = {module: path for path, module in canonical_modules(targets.model)}
    views = {name: _multiplied(target) for name, target in targets.items()}
    modules = dict(canonical_modules(work))
    return {
        n: Reader(modules[paths[t.module]], views[n].channels, views[n].number_of_inputs(t.weight))
        for n, t in targets.items()
    }


def never_ran(name: str) -> CriterionError:
    return CriterionError(f"{name}: its layer never ran on the data given; exclude it")


def rms_over(target: Target, mean_square: Tensor) -> Tensor:
    """Return the root of the mean squares of a target's inputs, shaped to broadcast over its weight."""
    return _over_weight(target.weight, _multiplied(target), mean_square.sqrt().to(target.weight.device))


def _multiplied(target: Target) -> LayerView:
    """Return the layer of a target that multiplies what the layer is called with."""
    view, kind = layer_view(target.module), type(target.module).__name__
    if view is None or not target.of:
        raise CriterionError(
            f"{target.name}: Wanda needs the weight of a Linear or Conv layer, which its input multiplies; "
            f"this is a parameter of {kind}; exclude it (or secateur.register_layer its class)"
        )
    if not view.reads_input(target.of):
        raise CriterionError(
            f"{target.name}: Wanda needs the input that a weight multiplies, and this one multiplies a state "
            f"inside the {kind}, which nobody sees; exclude it"
        )
    return view


def _over_weight(weight: Tensor, view: LayerView, rms: Tensor) -> Tensor:
    real = weight.dtype.to_real()
    rms = rms.to(real if real.itemsize >= 4 else torch.float32)
    shape = [1] * weight.dim()
    shape[view.input_dim] = -1
    if view.input_dim != 1 or view.groups == 1:
        return rms.reshape(shape)
    by_group = rms.reshape(view.groups, -1)
    shape[0], shape[1] = weight.shape[:2]
    return by_group.repeat_interleave(weight.shape[0] // view.groups, 0).reshape(shape)


def operand_rms(structure: Structure, data: Batches | None, who: str) -> dict[tuple[str, int], Tensor]:
    """Return, for each (weight, dim) that reads activations, the rms of each of its inputs.

    Only weights of modules that are called with the activation they read are watched, and stacks of matrices,
    as experts have.
    """
    places = {(part.name, part.dim) for g in structure.groups.values() for part in g.slices if part.reads}
    names = canonical_names(structure.model)

    def readers(work: nn.Module) -> dict[tuple[str, int], Reader]:
        parameters = canonical_parameters(work)
        owners = {key: owner for module in work.modules() for key, owner in _weights(module)}
        found = {}
        for name, dim in places:
            weight = parameters.get(names.get(name, name))
            module, view = owners.get(id(weight), (None, None))
            if module is None or weight is None:
                continue
            along = view is not None and dim == view.input_dim
            number = view.number_of_inputs(weight) if view is not None and along else weight.shape[dim]
            found[name, dim] = Reader(module, -1 if view is None else view.channels, number)
        return found

    def stacks(work: nn.Module) -> dict[str, Tensor]:
        parameters = canonical_parameters(work)
        made = {part.name for group in structure.groups.values() for part in group.slices}
        found = {name: parameters.get(names.get(name, name)) for name in made}
        return {name: weight for name, weight in found.items() if weight is not None and weight.dim() == 3}

    means, sums = _mean_squares(structure.model, readers, data, who, stacks)
    means = {place: own.mean for place, own in sums.items()} | means
    return {place: mean.sqrt() for place, mean in means.items()}


def _weights(module: nn.Module) -> Iterator[tuple[int, tuple[nn.Module, LayerView | None]]]:
    """Yield the weights that multiply what a module is called with: a layer's, and what another module calls
    its weight, but for an Embedding, which looks rows up and does not sum."""
    view = layer_view(module)
    if view is not None:
        for stored in stored_weights(module):
            if view.reads_input(stored.weight):
                yield id(stored.parameter), (module, view)
    elif not isinstance(module, nn.Embedding) and module._parameters.get("weight") is not None:
        yield id(module._parameters["weight"]), (module, None)


def _mean_squares(
    model: nn.Module,
    readers: Callable[[nn.Module], Mapping[Any, Reader]],
    data: Batches | None,
    who: str,
    stacks: Callable[[nn.Module], Mapping[str, Tensor]],
) -> tuple[dict[Any, Tensor], dict[Place, Sums]]:
    """Return the mean square of what each reader takes in, by channel, over the batches of all ranks; and of
    what stacks of matrices multiply, the sums."""
    sums: dict[Any, Tensor] = {}
    counts: dict[Any, int] = {}

    def watch(key: Any, reader: Reader) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = reader.squares(args, kwargs)
            if found is not None:
                total, number = found
                sums[key] = sums[key] + total if key in sums else total
                counts[key] = counts.get(key, 0) + number

        reader.module.register_forward_pre_hook(hook, with_kwargs=True)

    with together(model) as peers:
        work = copied_whole(unwrapped(model)).eval()
        for key, reader in readers(work).items():
            watch(key, reader)
        number, stacked = 0, stacks(work)
        seen = Watch(stacked)
        with as_written(), torch.no_grad(), seen if stacked else nullcontext():
            for inputs, _ in batches(data, who, work, empty=peers.number > 1):
                with failing(work, inputs, "a batch of data="):
                    call_model(work, inputs)
                number += 1
        own = {key: total.cpu() for key, total in sums.items()}
        told = peers.gather((number, own, counts, seen.told))
    _check_number(sum(number for number, *_ in told), who)
    everywhere: dict[Any, Tensor] = {}
    for key in dict.fromkeys(key for _, sums, *_ in told for key in sums):
        total = torch.stack([sums[key] for _, sums, *_ in told if key in sums]).sum(0)
        everywhere[key] = total / sum(counts.get(key, 0) for _, _, counts, _ in told)
    return everywhere, merged(stacked for *_, stacked in told)


def mean_gradients(
    targets: Targets, data: Batches | None, loss: Loss | None, who: str, power: int = 1
) -> dict[str, Tensor]:
    """Return the mean over the batches of all ranks of the loss's gradient for each target, to a ``power``.

    ``loss(outputs, labels)`` is what the model returns as its ``loss`` unless given, else cross-entropy;
    ``who`` asks, for the errors.
    """
    if loss is not None and not callable(loss):
        raise CriterionError(f"loss is {loss!r}; it is a function of (outputs, labels)")
    with together(targets.model) as peers:
        work = copied_whole(unwrapped(targets.model)).eval()
        parameters = canonical_parameters(work)
        weights = [parameters[name].requires_grad_(True) for name in targets]
        kinds = [w.dtype if power == 1 else w.dtype.to_real() for w in weights]
        sums = [
            torch.zeros_like(w, dtype=torch.promote_types(kind, torch.float32))
            for w, kind in zip(weights, kinds, strict=True)
        ]
        number = 0
        with as_written(), torch.enable_grad():
            for value in _losses(work, batches(data, who, work, empty=peers.number > 1), loss, who):
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
                for name, total, gradient in zip(targets, sums, gradients, strict=True):
                    if gradient is None:
                        raise CriterionError(f"{name}: the loss does not depend on it; exclude it")
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    size = dense if power == 1 else dense.abs()
                    total += size.to(total.dtype).pow(power)
                number += 1
        number = sum(peers.gather(number))
        peers.add([total.detach() for total in sums])
    _check_number(number, who)
    return {name: total.detach() / number for name, total in zip(targets, sums, strict=True)}


def _check_number(batches: int, who: str) -> None:
    if not batches:
        raise CriterionError(f"{who} was given data without a single batch")


def _losses(
    work: nn.Module, pairs: Iterator[tuple[Any, Any]], loss: Loss | None, who: str
) -> Iterator[Tensor]:
    """Yield the loss of each batch: one number that has a gradient."""
    for inputs, labels in pairs:
        with failing(work, inputs, "a batch of data="):
            outputs = call_model(work, inputs)
        value = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        given = f"outputs {shapes(outputs)}"
        if loss is not None or not isinstance(value, Tensor):  # else as transformers' models return it
            if labels is None:
                raise CriterionError(f"{who} needs batches of (inputs, labels); got inputs alone")
            given += f" and labels {shapes(labels)}"
            try:
                value = (loss or cross_entropy)(outputs, labels)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
                raise CriterionError(f"{who}: the loss fails on {given}: {first_line(error)}") from error
        if not (isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad):
            lacks = ", no gradient" if isinstance(value, Tensor) and not value.requires_grad else ""
            raise CriterionError(
                f"{who}: the loss of {given} is {shapes(value)}{lacks}; one number with a gradient is right"
            )
        yield value
