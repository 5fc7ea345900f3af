"""After units have gone: refit the weights that read the others, by least squares, without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from secateur.copying import copied
from secateur.errors import BudgetError, CriterionError, ModelError, TargetError
from secateur.graph.calls import Call
from secateur.graph.capture import tensor_of
from secateur.graph.names import canonical_modules, canonical_parameters, unwrapped
from secateur.graph.operators import operator_of
from secateur.graph.replay import Replay, flow_of, held
from secateur.methods.fitted_layer import FittedLayer
from secateur.numeric import is_real
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.layer_by_layer import calls_of
from secateur.pruning.masks import Masks
from secateur.pruning.ranks import Peers, together
from secateur.running import as_written
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
        if not (lines or self.skipped):
            return "nothing was refitted: no layer reads a unit that the dense network has and this one lost"
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
    group: Any = None,
) -> Refit:
    """Refit, in place, each layer of the pruned ``model`` that reads lost units, in running order.

    Each gets the weights and the bias with which it comes nearest, from the inputs it now sees, to the
    outputs it had in ``dense``. All-zero rows and columns stay zero; a layer that ``masks`` thin out further
    is skipped. A convolution reads at most 64 positions an example, drawn with a fixed seed; in a recurrent
    layer each matrix is fitted to its own product. Copies of both networks run, each layer once on what came
    before it, and nothing but the refitted weights and biases changes in the model; an error leaves it as it
    was.

    Where a process group is up and its ranks hold the same network, all of them call this, each with data of
    its own: what layers read and should put out is added up over them.

    Args:
        model: the network, with units masked and not yet removed.
        dense: a copy of it taken before it was pruned.
        structure: a ``secateur.trace`` of ``model``.
        data: batches of inputs or (inputs, labels) from the training split; those of more than 2 GiB are
            iterated over once a layer, and everything before it is computed again.
        ridge: pulls the weights towards the old ones, in units of the mean square of an input; whatever it
            is, no layer's error grows.
        masks: masks of single weights that have to stay zero.
        group: another process group than the model's, or False for a process that refits on its own.

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
    if not isinstance(structure, Structure) or unwrapped(model) is not structure.model:
        raise TargetError(f"structure= {untraced(structure)}")
    if not is_real(ridge) or not 0 <= ridge < float("inf"):
        raise BudgetError(f"ridge is {ridge!r}; a number from 0 is right")
    if isinstance(data, Iterator):
        raise CriterionError("reconstruct reads data several times; pass a list of batches or a DataLoader")
    found: dict[str, tuple[float, float]] = {}
    paths: set[str] = set()
    with together(model, group) as peers:
        model, dense = unwrapped(model), unwrapped(dense)
        work, reference = copied(model).eval(), copied(dense).eval()
        kept = {} if masks is None else masks.bind(model).kept
        layers, skipped = _readers(structure, work, reference, kept)
        with as_written():
            calls = calls_of(work, layers, data, "reconstruct", peers) if layers else {}
            who = "reconstruct (which reads data several times)"
            shown = Shown((work, reference), structure, data, who, peers)
            for name, number in calls.items():
                layer = layers.pop(name)  # its sums are large
                why = shown.to(layer, number)
                if why:
                    skipped[name] = why
                else:
                    found[name] = layer.refit(name, ridge)
                    paths.add(layer.path)
        peers.gather("all is refitted")  # where one rank fails, none changes its model
    for path in paths:
        both = (network.get_submodule(path).parameters() for network in (model, work))
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
    readers = {part.name for part in parts if part.reads or _columns(model, part)}
    order = {name: number for number, name in enumerate(canonical_parameters(model))}
    for name in sorted(readers, key=lambda own: (order.get(own, -1), own)):
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
    ``dense``, with its path, or with the weight's name where it is one of several in a recurrent layer; or
    with why it cannot be fitted, and the parameter's or the layer's name."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    view = layer_view(module)
    uses = Counter(p for _, module in canonical_modules(model) for p in module._parameters.values())
    steps = view is not None and view.product == "steps" and leaf.startswith(("weight_ih", "weight_hh"))
    if view is None or not view.plain or not (steps or (view.weights == (leaf,) and view.multiplies)):
        return name, f"a parameter of {type(module).__name__}, not of a plain Linear, Conv or recurrent layer"
    if type(module) is NonDynamicallyQuantizableLinear:
        return path, "inside an nn.MultiheadAttention, which multiplies by its weight itself"
    if view.groups > 1:
        return path, f"a convolution in {view.groups} groups"
    if _used_elsewhere(structure, name, path, view) or any(uses[p] > 1 for p in module.parameters()):
        return path, "its parameters are used elsewhere too"
    layer = FittedLayer(path, module, dense.get_submodule(path), _product(leaf, module) if steps else view)
    return name if steps else path, layer if len(layer.rows) else "nothing of its weight is left"


def _product(leaf: str, module: nn.Module) -> LayerView:
    """Return one of the products inside a recurrent layer read as a Linear layer."""
    bias = leaf.replace("weight", "bias", 1)
    return LayerView(type(module), (leaf,), bias if bias in module._parameters else None, product="rows")


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


class Shown:
    """The batches on which layers are fitted, and two networks that run on them, up to one layer after
    another: what comes before is computed once, where batches fit into memory and the forward can be
    captured."""

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        structure: Structure,
        data: Batches,
        who: str,
        peers: Peers,
    ) -> None:
        self.peers = peers
        self.read = partial(batches, data, who, networks[0], empty=peers.number > 1)
        self.held = held(inputs for inputs, _ in self.read())
        fixed = structure.captured.program is not None  # the same way for every batch
        flow = flow_of(networks[0], self.held[0]) if self.held and fixed else None
        self.replays = [Replay(network, flow) for network in networks]

    def to(self, layer: FittedLayer, number: int) -> str:
        """Show a layer of the first network what it reads there, and what it puts out in the second, in its
        first ``number`` calls on each batch of all ranks; return why not where that says nothing."""
        said = self.peers.gather(self._own_to(layer, number))
        return next((why for why in said if why), "") or layer.add_up(self.peers)

    def _own_to(self, layer: FittedLayer, number: int) -> str:
        model, dense = self.replays
        for index, batch in enumerate(self.held or (inputs for inputs, _ in self.read())):
            here = model.calls(layer.path, number, batch, index, ended=False)
            there = dense.calls(layer.path, number, batch, index, ended=layer.by_output)
            if why := layer.see(here, there):
                return why
        return ""
