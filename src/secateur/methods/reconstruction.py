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
from torch.nn import functional as F

from secateur.copying import copied, fresh
from secateur.errors import BudgetError, CriterionError, ModelError, NonFiniteError, TargetError
from secateur.graph.calls import Call
from secateur.graph.capture import tensor_of
from secateur.graph.compare import difference
from secateur.graph.names import canonical_modules, unwrapped
from secateur.graph.operators import operator_of
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.masks import Masks
from secateur.running import as_written, call_model, failing
from secateur.structure.labels import Array
from secateur.structure.layers import LayerView, layer_view
from secateur.structure.proof import untraced
from secateur.structure.units import Slice, Structure, all_zero

POSITIONS = 64  # of a convolution's output that one example gives; where it has more, they are drawn
_CHUNK = 2**22  # values of a layer's inputs taken to float64 at a time


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
            why = next((w for inputs, _ in pairs if (w := layer.see(work, reference, inputs, number))), "")
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


class FittedLayer:
    """A layer as a matrix (outputs, flattened inputs) of which some rows and columns live; a bias is
    one more column, which reads 1. Sums over examples: of x xᵀ, x yᵀ and y² for the x and y kept."""

    def __init__(self, module: nn.Module, dense: nn.Module, view: LayerView) -> None:
        self.module, self.dense, self.view = module, dense, view
        self.weight: Tensor = getattr(module, view.weights[0])
        self.bias: Tensor | None = None if view.bias is None else getattr(module, view.bias)
        alive = view.matrix(self.weight) != 0
        self.rows, self.columns = (alive.any(dim).nonzero().flatten() for dim in (1, 0))
        self.xx = self.xy = self.yy = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        self.draw = torch.Generator().manual_seed(0)

    def thinned(self, masks: Mapping[str, Tensor], path: str) -> bool:
        """Whether masks zero any entry of the rows and columns kept."""
        names = (self.view.weights[0], self.view.bias or "")
        weight, bias = (masks.get(f"{path}.{name}".lstrip(".")) for name in names)
        inside = weight is None or self.view.matrix(weight)[self.rows][:, self.columns].all()
        return not (inside and (bias is None or bias[self.rows].all()))

    def see(self, model: nn.Module, dense: nn.Module, batch: Any, number: int) -> str:
        """Add the inputs now and the dense outputs of a batch; return why not where that says nothing."""
        inputs = _shown(model, self.module, batch, number, outputs=False)
        targets = _shown(dense, self.dense, batch, number, outputs=True)
        if self.view.registered and not all(map(self._computes, inputs)):
            return "its output is not the product of its input and its weight"
        if len(inputs) != len(targets) or not all(map(self._add, inputs, targets)):
            return "it does not run on the same examples in both networks"
        return ""

    def _computes(self, x: Tensor) -> bool:
        """Whether the layer's output is what a layer of its kind computes."""
        product = F.linear(x.movedim(self.view.channels, -1), self.view.matrix(self.weight), self.bias)
        rounding = 64 * torch.finfo(product.dtype).eps
        return difference(self.module(x).movedim(self.view.channels, -1), product) <= rounding

    def _add(self, x: Tensor, y: Tensor) -> bool:
        if self.view.product == "windows":
            batched = self.view.kernel + 2
            x, y = (t if t.dim() == batched else t[None] for t in (x, y))
            x, y = _windows(self.module, x), y.movedim(1, -1)
        else:
            x, y = (t.movedim(self.view.channels, -1) for t in (x, y))
            x, y = (t.reshape(-1, t.shape[-1]) for t in (x, y))
        spatial = y.shape[1:-1]
        if x.shape[: y.dim() - 1] != y.shape[:-1]:
            return False
        width = x.shape[y.dim() - 1 :].numel()
        step = max(1, _CHUNK // (width * min(POSITIONS, spatial.numel())))
        for part, target in zip(x.split(step), y.split(step), strict=True):
            if spatial.numel() > POSITIONS:
                chosen = torch.randint(spatial.numel(), (len(part), POSITIONS), generator=self.draw)
                at = torch.arange(len(part))[:, None], *torch.unravel_index(chosen, spatial)
                part, target = part[at], target[at]
            part = part.reshape(-1, width)[:, self.columns].double()
            target = target.reshape(-1, y.shape[-1])[:, self.rows].double()
            if self.bias is not None:
                part = F.pad(part, (0, 1), value=1.0)
            self.xx, self.xy = self.xx + part.T @ part, self.xy + part.T @ target
            self.yy = self.yy + target.square().sum()
        return True

    def refit(self, name: str, ridge: float) -> tuple[float, float]:
        """Write the best weights and bias; return the relative error before and after."""
        if not (self.xx.isfinite().all() and self.xy.isfinite().all()):
            raise NonFiniteError(f"{name}: what it reads or puts out holds a NaN or an infinity")
        old = self.kept()
        rest = self.xy - self.xx @ old
        if self.bias is None:
            change = _solved(self.xx, rest, ridge)
        else:  # the best bias for any weights, put in: that centres x and y
            number = self.xx[-1, -1].clamp_min(1)
            mean = self.xx[:-1, -1:] / number
            change = _solved(self.centred()[0], rest[:-1] - mean * rest[-1], ridge)
            change = torch.cat([change, rest[-1] / number - mean.T @ change])
        new = (old + change).to(self.weight.dtype)
        matrix = self.view.matrix(self.weight).clone()
        matrix[self.rows[:, None], self.columns] = new[: len(self.columns)].T
        self.weight.copy_(self.view.unmatrix(matrix, self.weight))
        if self.bias is not None:
            self.bias[self.rows] = new[-1].to(self.bias.dtype)
        return self._error(old), self._error(self.kept())

    def centred(self) -> tuple[Tensor, float]:
        """Return the sums of x xᵀ and y² about their means where the layer has a bias, as they are else."""
        if self.bias is None:
            return self.xx, float(self.yy)
        number = self.xx[-1, -1].clamp_min(1)
        mean = self.xx[:-1, -1:] / number
        return self.xx[:-1, :-1] - mean * self.xx[-1, :-1], float(self.yy - (self.xy[-1] ** 2).sum() / number)

    def kept(self) -> Tensor:
        """Return the part kept, turned: (columns, rows)."""
        weight = self.view.matrix(self.weight)[self.rows][:, self.columns].T
        bias = () if self.bias is None else (self.bias[None, self.rows],)
        return torch.cat([weight, *bias]).double()

    def _error(self, kept: Tensor) -> float:
        squares = self.yy + (kept * (self.xx @ kept - 2 * self.xy)).sum()
        return max(0.0, float(squares / self.yy)) if self.yy else 0.0


def _solved(xx: Tensor, xy: Tensor, ridge: float) -> Tensor:
    """Return the smallest d that minimises dᵀ xx d - 2 dᵀ xy + ridge · mean(diag xx) · |d|²."""
    pull = ridge * xx.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(xx + pull * torch.eye(len(xx)).to(xx))
    if ridge and not failed:
        return torch.cholesky_solve(xy, factor)
    values, vectors = torch.linalg.eigh(xx)
    some = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, some] @ ((vectors[:, some].T @ xy) / (values[some, None] + pull))


def _windows(conv: Any, x: Tensor) -> Tensor:
    """Return a view (batch, *positions, channels, *kernel) of what a convolution reads."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
    for dim, size in enumerate(conv.kernel_size):
        apart = conv.dilation[dim]
        x = x.unfold(dim + 2, apart * (size - 1) + 1, conv.stride[dim])[..., ::apart]
    return x.movedim(1, len(conv.kernel_size) + 1)
