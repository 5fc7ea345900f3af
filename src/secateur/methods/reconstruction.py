"""After units have gone: refit the weights that read the others, by least squares, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BudgetError, CriterionError, ModelError, NonFiniteError, TargetError
from secateur.measure.running import as_written, call_model, evaluating
from secateur.measure.summary import aligned
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.masks import Masks
from secateur.structure.capture import tensor_of
from secateur.structure.names import canonical_modules, unwrapped
from secateur.structure.units import Structure

POSITIONS = 64
"""Output positions of a convolution that one example gives; where it has more, they are drawn."""

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHUNK = 2**22  # values of a layer's inputs taken to float64 at a time
_APART = "it does not run on the same examples in both networks"


@dataclass(frozen=True)
class Refit:
    """``layers``: by refitted layer, the squared error of its outputs relative to the dense
    network's, before and after, on the calibration data; ``skipped``: the layers (or parameters)
    that read lost units and were left as they are, and why."""

    layers: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]

    def __repr__(self) -> str:
        rows = [("layer refitted", "error before", "after")]
        rows += [(name, f"{old:.3%}", f"{new:.3%}") for name, (old, new) in self.layers.items()]
        return "\n".join(
            [*aligned(rows, words=1), *(f"skipped {n}: {why}" for n, why in self.skipped.items())]
        )


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

    Each gets the weights and the bias with which it comes nearest, from the inputs it now sees, to
    the outputs it had in ``dense``: a copy of the model taken before it was pruned. ``ridge`` pulls
    the weights towards the old ones, in units of the mean square of an input; whatever it is, no
    layer's error grows. All-zero rows and columns stay zero; a layer that ``masks`` thin out further
    is skipped. ``data``: batches of inputs or (inputs, labels) from the training split, iterated over
    once a layer. Convolutions read at most :data:`POSITIONS` positions an example, drawn with a fixed
    seed. An error leaves the model as it was.

    Raises TargetError, ModelError, MaskError, CriterionError and BudgetError for a structure, a dense
    network, masks, data and a ridge that do not fit, NonFiniteError for activations that overflow.
    """
    model, dense = unwrapped(model), unwrapped(dense)
    if model is not structure.model:
        raise TargetError("structure= was traced from another model; trace this one")
    if not 0 <= ridge < float("inf"):
        raise BudgetError(f"ridge is {ridge}; a number from 0 is right")
    if isinstance(data, Iterator):
        raise CriterionError("reconstruct reads data several times; pass a list of batches or a DataLoader")
    _check_dense(model, dense)
    layers, skipped = _consumers(structure, model, dense, {} if masks is None else masks.bind(model).kept)
    found: dict[str, tuple[float, float]] = {}
    originals = {p: p.clone() for layer in layers.values() for p in layer.parameters}
    try:
        with evaluating(model), evaluating(dense), as_written():
            calls = _calls(model, layers, data) if layers else {}
            for name, number in calls.items():
                if _observe(layers[name], number, model, dense, data):
                    found[name] = layers[name].refit(name, ridge)
                else:
                    skipped[name] = _APART
    except BaseException:
        for parameter, original in originals.items():
            parameter.copy_(original)
        raise
    return Refit(found, skipped | {n: "it never runs on the data given" for n in layers if n not in calls})


# -- which layers --------------------------------------------------------------------------------


def _check_dense(model: nn.Module, dense: nn.Module) -> None:
    if dense is model:
        raise ModelError("dense= is the pruned model itself; give a copy taken before it was pruned")
    ours, theirs = (
        {n: f"{tuple(p.shape)} on {p.device}" for n, p in m.named_parameters()} for m in (model, dense)
    )
    for name in [*ours, *theirs]:
        here, there = ours.get(name, "absent"), theirs.get(name, "absent")
        if here != there:
            raise ModelError(f"{name} is {there} in dense= and {here} in the model; give a copy of it")


def _consumers(
    structure: Structure, model: nn.Module, dense: nn.Module, masks: Mapping[str, Tensor]
) -> tuple[dict[str, _Layer], dict[str, str]]:
    """Return the layers that read units lost since ``dense``, and why others that do are skipped."""
    gone, before = _gone(structure, model), _gone(structure, dense)
    lost = [name for name, units in gone.items() if (units & ~before[name]).any()]
    if not lost and any(units.any() for units in gone.values()):
        raise ModelError("dense= lacks the same units as the model; give a copy taken before it was pruned")
    owners: dict[Tensor | None, list[str]] = {}
    for path, module in canonical_modules(model):
        for parameter in module._parameters.values():
            owners.setdefault(parameter, []).append(path)
    layers: dict[str, _Layer] = {}
    skipped: dict[str, str] = {}
    for name, dim in {(p.name, p.dim) for group in lost for p in structure.groups[group].slices if p.reads}:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf != "weight" or not _plain(module):
            skipped[name] = f"a parameter of {type(module).__name__}, not of a plain Linear or Conv layer"
        elif getattr(module, "groups", 1) > 1:
            skipped[path] = f"a convolution in {module.groups} groups"
        elif others := [o for p in module._parameters.values() if p is not None for o in owners[p][1:]]:
            skipped[path] = f"it shares a parameter with {others[0]}"
        else:
            layer = _Layer(module, dense.get_submodule(path))
            reason = layer.refusal(dim, masks.get(name), masks.get(f"{path}.bias".lstrip(".")))
            if reason:
                skipped[path] = reason
            else:
                layers[path] = layer
    return layers, skipped


def _gone(structure: Structure, model: nn.Module) -> dict[str, Any]:
    """Return by group the units of which only zeros are left."""
    found: dict[str, Any] = {}
    for name, group in structure.groups.items():
        alive = np.zeros(len(group), dtype=bool)
        for part in group.slices:
            if part.masked:
                nonzero = tensor_of(model, part.name).movedim(part.dim, 0) != 0
                alive |= nonzero.reshape(len(nonzero), -1).any(1).cpu().numpy()[part.indices].any(1)
        found[name] = ~alive
    return found


def _plain(module: nn.Module) -> bool:
    kind = type(module)
    own = any(kind.forward is known.forward for known in (nn.Linear, *_CONVS))
    return own or (kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."))


# -- what they see -------------------------------------------------------------------------------


class _Enough(BaseException):
    """Ends a forward that has shown what was wanted; no ``except Exception`` in it is in the way."""


def _calls(model: nn.Module, layers: Mapping[str, _Layer], data: Batches) -> dict[str, int]:
    """Return how often each layer runs in a forward, in the order in which they run."""
    most: dict[str, int] = {}
    now: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            now[name] = now.get(name, 0) + 1
            most[name] = max(most.get(name, 0), now[name])

        return layers[name].module.register_forward_pre_hook(hook)

    handles = [count(name) for name in layers]
    try:
        for inputs, _ in batches(data, "reconstruct", model):
            now.clear()
            call_model(model, inputs)
            if len(most) == len(layers):
                break
    finally:
        for handle in handles:
            handle.remove()
    return most


def _observe(layer: _Layer, number: int, model: nn.Module, dense: nn.Module, data: Batches) -> bool:
    """Show the layer its inputs now and its outputs in the dense network; False where they differ
    in number."""
    for batch, _ in batches(data, "reconstruct (which reads data several times)", model):
        inputs = _shown(model, layer.module, batch, number, outputs=False)
        targets = _shown(dense, layer.dense, batch, number, outputs=True)
        if len(inputs) != len(targets):
            return False
        for x, y in zip(inputs, targets, strict=True):
            if not layer.add(x, y):
                return False
    return layer.number > 0


def _shown(model: nn.Module, module: nn.Module, batch: Any, number: int, outputs: bool) -> list[Tensor]:
    """Return the first ``number`` inputs (or outputs) of a module in one forward."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        value = output if outputs else [*args, *kwargs.values()][0]
        seen.append(value.clone())  # what follows may change it in place
        if len(seen) == number:
            raise _Enough

    register = module.register_forward_hook if outputs else module.register_forward_pre_hook
    handle = register(hook, with_kwargs=True)
    try:
        call_model(model, batch)
    except _Enough:
        pass
    finally:
        handle.remove()
    return seen


# -- the least squares ---------------------------------------------------------------------------


class _Layer:
    """A layer as a matrix (outputs, flattened inputs), the ``rows`` and ``columns`` of it that live,
    and sums over examples of x xᵀ, x yᵀ, x, y and y² for living inputs x and outputs y."""

    def __init__(self, module: Any, dense: Any) -> None:
        self.module, self.dense = module, dense
        self.parameters: list[Tensor] = [p for p in (module.weight, module.bias) if p is not None]
        alive = self._matrix(module.weight) != 0
        self.rows, self.columns = (alive.any(dim).nonzero().flatten() for dim in (1, 0))
        size = {"dtype": torch.float64, "device": module.weight.device}
        self.xx = torch.zeros(len(self.columns), len(self.columns), **size)
        self.xy = torch.zeros(len(self.columns), len(self.rows), **size)
        self.x, self.y = self.xx.new_zeros(len(self.columns)), self.xx.new_zeros(len(self.rows))
        self.yy, self.number = 0.0, 0
        self.draw = torch.Generator().manual_seed(0)

    @property
    def _turned(self) -> bool:
        return not isinstance(self.module, (nn.Linear, *_CONVS))  # transformers' Conv1D: inputs first

    def _matrix(self, tensor: Tensor) -> Tensor:
        return tensor.T if self._turned else tensor.flatten(1)

    def refusal(self, dim: int, mask: Tensor | None, bias_mask: Tensor | None) -> str:
        """Return why this layer cannot be refitted, or nothing."""
        if dim != 1 - self._turned:
            return "its weight is read transposed"
        if not len(self.rows):
            return "nothing is left of its weight"
        inside = mask is not None and not self._matrix(mask)[self.rows.cpu()][:, self.columns.cpu()].all()
        if inside or (bias_mask is not None and not bias_mask[self.rows.cpu()].all()):
            return "masks also zero single weights inside its living rows and columns"
        return ""

    def add(self, x: Tensor, y: Tensor) -> bool:
        """Add the inputs and outputs of one call; False where they do not go together."""
        if isinstance(self.module, _CONVS):
            batched = len(self.module.kernel_size) + 2
            x, y = (t if t.dim() == batched else t[None] for t in (x, y))
            x, y = _windows(self.module, x), y.movedim(1, -1)
        else:
            x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        spatial = y.shape[1:-1]
        if x.shape[: y.dim() - 1] != y.shape[:-1]:
            return False
        step = max(1, _CHUNK // (min(POSITIONS, spatial.numel()) * x[0].numel()))
        for part, target in zip(x.split(step), y.split(step), strict=True):
            at = self._positions(len(part), spatial) if spatial else (slice(None),)
            target = target[at].reshape(-1, y.shape[-1])[:, self.rows].double()
            part = part[at].reshape(len(target), -1)[:, self.columns].double()
            self.xx += part.T @ part
            self.xy += part.T @ target
            self.x += part.sum(0)
            self.y += target.sum(0)
            self.yy += float(target.square().sum())
            self.number += len(part)
        return True

    def _positions(self, examples: int, spatial: torch.Size) -> tuple[Tensor, ...]:
        """Return indices (examples, positions) of every position, or of some drawn for each example."""
        chosen = torch.arange(spatial.numel()).expand(examples, -1)
        if spatial.numel() > POSITIONS:
            chosen = torch.randint(spatial.numel(), (examples, POSITIONS), generator=self.draw)
        return torch.arange(examples)[:, None], *torch.unravel_index(chosen, spatial)

    def refit(self, name: str, ridge: float) -> tuple[float, float]:
        """Write the best weights and bias; return the relative error before and after."""
        if not (torch.isfinite(self.xx).all() and torch.isfinite(self.xy).all()):
            raise NonFiniteError(f"{name}: what it reads or puts out holds a NaN or an infinity")
        weight, bias = self._living()
        before = self._error(weight, bias)
        xx, xy = self.xx, self.xy
        if self.module.bias is not None:
            mean = self.x[:, None] / self.number
            xx, xy = xx - mean * self.x, xy - mean * self.y
        weight += _solved(xx, xy - xx @ weight.T, ridge).T
        matrix = self._matrix(self.module.weight).clone()
        matrix[self.rows[:, None], self.columns] = weight.to(matrix.dtype)
        self.module.weight.copy_((matrix.T if self._turned else matrix).reshape(self.module.weight.shape))
        if self.module.bias is not None:
            bias = (self.y - weight @ self.x) / self.number
            self.module.bias[self.rows] = bias.to(self.module.bias.dtype)
        return before, self._error(*self._living())

    def _living(self) -> tuple[Tensor, Tensor]:
        weight = self._matrix(self.module.weight)[self.rows][:, self.columns].double()
        bias = self.module.bias
        return weight, self.y.new_zeros(len(self.y)) if bias is None else bias[self.rows].double()

    def _error(self, weight: Tensor, bias: Tensor) -> float:
        """Return |x weightᵀ + bias - y|² over |y|²."""
        squares = ((weight @ self.xx) * weight).sum() - 2 * (weight * self.xy.T).sum() + self.yy
        squares += (bias * (2 * (weight @ self.x - self.y) + self.number * bias)).sum()
        return max(0.0, float(squares)) / self.yy if self.yy else 0.0


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
    x = F.pad(
        x,
        conv._reversed_padding_repeated_twice,
        "constant" if conv.padding_mode == "zeros" else conv.padding_mode,
    )
    for dim, (size, stride, apart) in enumerate(
        zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), 2
    ):
        x = x.unfold(dim, apart * (size - 1) + 1, stride)[..., ::apart]
    return x.movedim(1, x.dim() - len(conv.kernel_size) - 1)
