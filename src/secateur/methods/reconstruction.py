"""After units have gone: refit the weights that read the others, by least squares, without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.copying import copied, fresh
from secateur.errors import BudgetError, CriterionError, ModelError, TargetError
from secateur.graph.calls import Call
from secateur.graph.capture import tensor_of
from secateur.graph.names import canonical_modules, unwrapped
from secateur.graph.operators import operator_of
from secateur.methods.fitted_layer import FittedLayer
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.masks import Masks
from secateur.running import as_written, call_model, failing
from secateur.structure.labels import Array
from secateur.structure.layers import LayerView, layer_view
from secateur.structure.proof import untraced
from secateur.structure.units import Slice, Structure, all_zero


@dataclass(frozen=True)
class Refit:
    """What ``reconstruct`` refitted, and how near it came.

    Printed it is a line a layer.

    Attributes:
        layers: by refitted layer, the squared error of its outputs relative to the dense network's, before
            and after, on the calibration data.
        skipped: the layers (or parameters) that read lost units and were left as they are, and why.

    Example:
        >>> import copy, torch, secateur as sc
        >>> dense = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> net = copy.deepcopy(dense)
        >>> structure = sc.trace(net, torch.ones(1, 8))
        >>> _ = sc.prune(net, sc.L2Norm(), sc.Uniform(0.25), structure=structure)
        >>> refit = sc.reconstruct(net, dense, structure, [torch.randn(64, 8)])
        >>> before, after = refit.layers["2"]
        >>> after < before
        True
    """

    layers: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]

    def __repr__(self) -> str:
        lines = [f"{name}: error {old:.3%} -> {new:.3%}" for name, (old, new) in self.layers.items()]
        return "\n".join([*lines, *(f"skipped {name}: {reason}" for name, reason in self.skipped.items())])


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    dense: nn.Module,
    structure: Structure,
    data: Batches,
    *,
    ridge: float = 1e-3,
    masks: Masks | None = None,
) -> Refit:
    """Refit, in place, each layer of the pruned ``model`` that reads lost units, in running order.

    Each gets the weights and the bias with which it comes nearest, from the inputs it now sees, to the
    outputs it had in ``dense``. All-zero rows and columns stay zero; a layer that ``masks`` thin out further
    is skipped. A convolution reads at most 64 positions an example, drawn with a fixed seed. Copies of both
    networks run, and nothing but the refitted weights and biases changes in the model; an error leaves it as
    it was.

    Args:
        model: the network, with units masked and not yet removed.
        dense: a copy of it taken before it was pruned.
        structure: a ``secateur.trace`` of ``model``.
        data: batches of inputs or (inputs, labels) from the training split, iterated over once a layer.
        ridge: pulls the weights towards the old ones, in units of the mean square of an input; whatever it
            is, no layer's error grows.
        masks: masks of single weights that have to stay zero.

    Returns:
        The error of each layer before and after, and what was skipped.

    Raises:
        TargetError, ModelError, MaskError, CriterionError, BudgetError: where the structure, the dense
            network, the masks, the data or the ridge do not fit.
        NonFiniteError: for a NaN inside.

    Example:
        >>> import copy, torch, secateur as sc
        >>> dense = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> net, x = copy.deepcopy(dense), torch.randn(64, 8)
        >>> structure = sc.trace(net, x)
        >>> _ = sc.prune(net, sc.L2Norm(), sc.Uniform(0.25), structure=structure)
        >>> before = (net(x) - dense(x)).square().mean()
        >>> _ = sc.reconstruct(net, dense, structure, [x])
        >>> bool((net(x) - dense(x)).square().mean() < before / 2)
        True
    """
    model, dense = unwrapped(model), unwrapped(dense)
    if not isinstance(structure, Structure) or model is not structure.model:
        raise TargetError(f"structure= {untraced(structure)}")
    if not 0 <= ridge < float("inf"):
        raise BudgetError(f"ridge is {ridge}; a number from 0 is right")
    if isinstance(data, Iterator):
        raise CriterionError("reconstruct reads data several times; pass a list of batches or a DataLoader")
    work, reference = copied(model).eval(), copied(dense).eval()
    layers, skipped = _readers(structure, work, reference, {} if masks is None else masks.bind(model).kept)
    found: dict[str, tuple[float, float]] = {}
    with as_written():
        calls = calls_of(work, layers, data) if layers else {}
        for name, number in calls.items():
            layer = layers.pop(name)  # its sums are large
            pairs = batches(data, "reconstruct (which reads data several times)", model)
            seen = (seen_of(layer, work, reference, inputs, number) for inputs, _ in pairs)
            why = next(filter(None, seen), "")
            if why:
                skipped[name] = why
            else:
                found[name] = layer.refit(name, ridge)
    for name in found:
        both = (network.get_submodule(name).parameters() for network in (model, work))
        for parameter, refitted in zip(*both, strict=True):
            parameter.copy_(refitted)
    return Refit(found, skipped | dict.fromkeys(layers, "its module is never called on the data given"))


def _readers(
    structure: Structure, model: nn.Module, dense: nn.Module, masks: Mapping[str, Tensor]
) -> tuple[dict[str, FittedLayer], dict[str, str]]:
    """Return the layers that read units lost since ``dense``, and why others that do are skipped."""
    both = [{n: f"{[*p.shape]} on {p.device}" for n, p in m.named_parameters()} for m in (model, dense)]
    for name in both[0] | both[1]:
        here, there = (one.get(name, "absent") for one in both)
        if here != there:
            raise ModelError(f"{name} is {there} in dense= and {here} in the model; give a copy of it")
    pruned, before = _pruned(structure, model), _pruned(structure, dense)
    lost = [name for name, units in pruned.items() if (units & ~before[name]).any()]
    if not lost and any(units.any() for units in pruned.values()):
        raise ModelError("dense= lacks the same units as the model; give a copy taken before it was pruned")
    layers: dict[str, FittedLayer] = {}
    skipped: dict[str, str] = {}
    parts = [part for group in lost for part in structure.groups[group].slices]
    for name in sorted({part.name for part in parts if part.reads or _columns(model, part)}):
        path, found = fitted_layer(structure, name, model, dense)
        if isinstance(found, str):
            skipped[path] = found
        elif found.thinned(masks, path):
            skipped[path] = "masks zero single weights too in its rows and columns that are kept"
        else:
            layers[path] = found
    return layers, skipped


def fitted_layer(
    structure: Structure, name: str, model: nn.Module, dense: nn.Module
) -> tuple[str, FittedLayer | str]:
    """Return the layer in ``model`` that a weight of the structure belongs to, its outputs to be those in
    ``dense``, with its path; or with why it cannot be fitted, and the parameter's or the layer's name."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    view = layer_view(module)
    uses = Counter(p for _, module in canonical_modules(model) for p in module._parameters.values())
    if view is None or not (view.plain and view.weights == (leaf,) and view.multiplies):
        return name, f"a parameter of {type(module).__name__}, not of a plain Linear or Conv layer"
    if view.groups > 1:
        return path, f"a convolution in {view.groups} groups"
    if _used_elsewhere(structure, name, path, view) or any(uses[p] > 1 for p in module.parameters()):
        return path, "its parameters are used elsewhere too"
    layer = FittedLayer(module, dense.get_submodule(path), view)
    return path, layer if len(layer.rows) else "nothing of its weight is left"


def _pruned(structure: Structure, model: nn.Module) -> dict[str, Array]:
    """Return by group the units of which only zeros are left."""
    return {name: all_zero(group, partial(tensor_of, model)) for name, group in structure.groups.items()}


def _columns(model: nn.Module, part: Slice) -> bool:
    """Whether a part is inputs of a layer that is not a plain product: grouped, or weight-normed."""
    view = layer_view(model.get_submodule(part.name.rpartition(".")[0].partition(".parametrizations")[0]))
    inputs = view is not None and part.dim == view.input_dim and view.multiplies
    return inputs and tensor_of(model, part.name).dim() > 1


def _used_elsewhere(structure: Structure, name: str, path: str, view: LayerView) -> bool:
    """Whether anything reads a layer's weight but the layer's forward and products like the layer's own."""
    nodes = [node for node, own in structure.walk.named.items() if own == name]
    return not all(
        path in call.modules or _multiplies(call, node, view)
        for node in nodes
        for call in map(Call, node.users)
    )


def _multiplies(call: Call, weight: fx.Node, view: LayerView) -> bool:
    row = operator_of(call)
    affine = row.kind == "affine" and row.bias is not None and row.transposed == view.transposed
    return affine and call.arguments.get(row.weight or "") is weight


def seen_of(layer: FittedLayer, model: nn.Module, dense: nn.Module, batch: Any, number: int) -> str:
    """Show a layer of ``model`` a batch, what it reads there and what it puts out in ``dense``; return why
    not where that says nothing."""
    inputs = _shown(model, layer.module, batch, number, outputs=False)
    return layer.see(inputs, _shown(dense, layer.dense, batch, number, outputs=True))


class _Enough(BaseException):
    """Ends a forward that has shown what was wanted; no ``except Exception`` in it is in the way."""


def calls_of(model: nn.Module, layers: Mapping[str, FittedLayer], data: Batches) -> Mapping[str, int]:
    """Return how often each layer runs in a forward, in the order in which they run."""
    most: Counter[str] = Counter()
    now: Counter[str] = Counter()
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = partial(lambda name, *_: now.update([name]), name)
            hooks.enter_context(layer.module.register_forward_pre_hook(hook))
        for inputs, _ in batches(data, "reconstruct", model):
            now.clear()
            with failing(model, inputs, "a batch of data="):
                call_model(model, fresh(inputs))
            most |= now
            if len(most) == len(layers):
                break
    return most


def _shown(model: nn.Module, module: nn.Module, batch: Any, number: int, outputs: bool) -> list[Tensor]:
    """Return the first ``number`` inputs (or outputs) of a module in one forward."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        value = output if outputs else [*args, *kwargs.values()][0]
        seen.append(value.clone())  # what follows may change it in place
        if len(seen) == number:
            raise _Enough

    register: Any = module.register_forward_hook if outputs else module.register_forward_pre_hook
    with register(hook, with_kwargs=True), suppress(_Enough), failing(model, batch, "a batch of data="):
        call_model(model, fresh(batch))
    return seen
