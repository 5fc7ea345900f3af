"""``sparsify``: the same network with its pruned layers as sparse ones, where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from secateur.copying import copied, fresh
from secateur.deploy.program.folding import scale_and_shift, scaled
from secateur.deploy.sparse_layers import SparseLayer, supported
from secateur.errors import ModelError, NonFiniteError
from secateur.graph.calls import Call
from secateur.graph.capture import Captured, capture
from secateur.graph.compare import TOLERANCE, difference, tensors_in
from secateur.graph.names import unwrapped
from secateur.measure.latency import Timing, time_inference
from secateur.running import call_model, run_once
from secateur.runtime.workspace import UnsupportedError
from secateur.text import table

_WORTH = 0.95  # of dense's time: a sparse layer has to be faster than that to take its place
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class LayerChoice:
    """One layer with zeros: the ``times`` of the engines in seconds a call, and the one taken."""

    name: str
    shape: tuple[int, ...]
    sparsity: float
    times: dict[str, float]
    engine: str


@dataclass(frozen=True)
class Sparsified:
    """What ``sparsify`` chose, layer by layer, and what came of it.

    Printed it is a table of times.

    Attributes:
        layers: each layer with zeros: its ``name``, ``shape`` and ``sparsity``, the ``times`` of the engines
            in seconds a call, and the ``engine`` that was taken.
        times: the network's time in seconds as it was ("dense"), with its batch norms folded ("folded") and
            as it is returned ("sparse").
        max_error: against the network given, relative to its largest output.
        skipped: engines that are not there, and every layer with weights that was not timed and stays dense,
            its kind and the reason.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> _ = sc.prune(net, sc.Magnitude(), sc.Uniform(0.9), include="0")
        >>> fast, table = sc.sparsify(net, torch.randn(1, 64), engines=["scipy"], seconds=0.01)
        >>> [(layer.name, round(layer.sparsity, 3)) for layer in table.layers]  # "2" has no zeros
        [('0', 0.9)]
        >>> sorted(table.times), table.max_error < 1e-5
        (['dense', 'folded', 'sparse'], True)
    """

    layers: tuple[LayerChoice, ...]
    times: dict[str, Timing]
    max_error: float
    skipped: dict[str, str]

    @property
    def speedup(self) -> float:
        return self.times["dense"].median / self.times["sparse"].median

    def __repr__(self) -> str:
        engines = list(dict.fromkeys(name for layer in self.layers for name in layer.times))
        head = ("layer", "shape", "sparsity", *(f"{name}, us" for name in engines), "engine")
        rows: list[Sequence[str]] = [head]
        for layer in self.layers:
            times = (f"{1e6 * layer.times[n]:.1f}" if n in layer.times else "-" for n in engines)
            shape = " x ".join(map(str, layer.shape))
            rows.append((layer.name, shape, f"{layer.sparsity:.2%}", *times, layer.engine))
        times = ", ".join(f"{name} {1e6 * timing.median:.1f}" for name, timing in self.times.items())
        lines = table(rows, words=1) if self.layers else ["no layer has zeros"]
        lines.append(f"whole network, us: {times}; {self.speedup:.2f}x; max error {self.max_error:.1e}")
        return "\n".join([*lines, *(f"{name}: {why}" for name, why in self.skipped.items())])


@torch.no_grad()
def sparsify(
    model: nn.Module,
    example_inputs: Any,
    *,
    engines: Sequence[str] | None = None,
    threads: int = 1,
    seconds: float = 0.2,
) -> tuple[nn.Module, Sparsified]:
    """Return the network for inference with pruned Linear and Conv layers as sparse ones, and the table of
    what was chosen. The choice is for these inputs' batch size on this machine.

    Batch norms are folded into the layers before them. Every layer with zeros is then timed on what it
    reads in a run on ``example_inputs``, as it is and by each engine, and the fastest taken. A layer whose
    sparse form is not at least 5 % faster stays dense, and so does the whole network where it is no faster.

    Args:
        model: the network, in float32 on the CPU; it is not changed.
        example_inputs: a tensor, or a tuple of them.
        engines: some of "compiled", which needs numba, "scipy" and "torch csr" (default: all that are
            there).
        threads: the compiled kernels' and torch's.
        seconds: about how long each layer is timed.

    Returns:
        The network, in eval mode and without gradients, and the table.

    Raises:
        ModelError: for a model that is not in float32 on the CPU, that cannot be captured, or where the
            sparse network computes something else.
        NonFiniteError: where the outputs are no numbers.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> _ = sc.prune(model, sc.Magnitude(), sc.Global(0.9))
        >>> fast, table = sc.sparsify(model, torch.randn(1, 64), engines=["scipy"], seconds=0.01)
        >>> table.layers[0].shape
        (64, 64)
    """
    model = unwrapped(model)
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ModelError(
                f"sparsify runs in float32 on the CPU; {name} is {parameter.dtype} on {parameter.device}"
            )
    known = ("compiled", "scipy", "torch csr")
    for name in engines or ():
        if name not in known:
            raise ModelError(f"no engine {name!r}; {', '.join(known)} are known")
    wanted = run_once(model, example_inputs)
    if any(t.is_floating_point() and not t.isfinite().all() for t in tensors_in(wanted)):
        raise NonFiniteError(
            f"{type(model).__name__} puts out a NaN or an infinity on these inputs: nothing can be compared"
        )
    folded = copied(model).eval().requires_grad_(False)
    fold_batch_norms(folded, capture(folded, example_inputs))
    made = copied(folded)
    read = _inputs_of(made, example_inputs)
    layers, skipped = [], {}
    for path, module in list(made.named_modules()):
        if not (weights := _weights_of(module)):
            continue
        zeros = 1 - sum(int(w.count_nonzero()) for w in weights) / max(sum(w.numel() for w in weights), 1)
        possible = [name for name in supported(module) if name in (engines or known)]
        x = read.get(path)
        why = _why_dense(zeros, possible, x)
        if why or x is None:
            skipped[path or type(module).__name__] = f"{type(module).__name__}, {why}"
            continue
        built = _built(module, possible, x, threads, skipped)
        times = time_inference({"dense": module, **built}, x, seconds=seconds, threads=threads)
        medians = {name: timing.median for name, timing in times.items()}
        best = min(medians, key=lambda name: medians[name])
        engine = best if medians[best] < _WORTH * medians["dense"] else "dense"
        if engine != "dense" and path:
            made.set_submodule(path, built[engine])
        elif engine != "dense":
            made = built[engine]
        layers.append(LayerChoice(path, tuple(weights[0].shape), zeros, medians, engine))
    both = {"dense": model, "folded": folded, "sparse": made}
    times = time_inference(both, example_inputs, seconds=max(seconds, 0.1), threads=threads)
    if times["sparse"].median > times["folded"].median:
        made, times = folded, {**times, "sparse": times["folded"]}
        skipped["the whole network"] = "no faster with these layers sparse: they stay dense"
    error = difference(wanted, run_once(made, example_inputs))
    if not error <= TOLERANCE[torch.float32]:
        raise ModelError(
            f"the sparse {type(model).__name__} is off by {error:.1e} of the largest output of the one given"
        )
    return made, Sparsified(tuple(layers), times, error, skipped)


def fold_batch_norms(model: nn.Module, captured: Captured) -> list[str]:
    """Multiply batch norms into the layers before them, in place, and return which are now an Identity.

    A norm goes where nobody else reads its layer's output and both run once.
    """
    calls: dict[str, list[Any]] = {}
    for node in captured.graph.nodes:
        names = [captured.tensors.get(arg.name) for arg in node.args if hasattr(arg, "name")]
        for name in {name.rpartition(".")[0] for name in names if name is not None}:
            calls.setdefault(name, []).append(node)
    gone = []
    for path, module in list(model.named_modules()):
        fixed = isinstance(module, _BATCH_NORMS) and module.running_mean is not None
        if not fixed or len(calls.get(path, ())) != 1:
            continue
        source = calls[path][0].args[0]
        before = [name for name, nodes in calls.items() if nodes == [source]]
        layer = model.get_submodule(before[0]) if len(before) == 1 else None
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or len(Call(source).readers) != 1:
            continue
        if isinstance(layer, nn.Linear) and source.meta["val"].dim() != 2:
            continue  # a norm is along dim 1, a linear layer's features are last
        _fold(layer, module)
        model.set_submodule(path, nn.Identity())
        gone.append(path)
    return gone


def _fold(layer: nn.Linear | nn.Conv1d | nn.Conv2d, norm: nn.Module) -> None:
    scale, shift = scale_and_shift(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]
    weight, bias = (t.to(layer.weight) for t in scaled(layer.weight, layer.bias, scale, shift))
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias, layer.weight.requires_grad)


def _weights_of(module: nn.Module) -> list[torch.Tensor]:
    """Return the matrices that a module multiplies by or looks up in, whatever its kind."""
    if isinstance(module, _LAYERS):
        return [module.weight]  # a computed one too
    if isinstance(module, ParametrizationList):  # its layer's, seen already
        return []
    return [p for p in module._parameters.values() if p is not None and p.dim() > 1]


def _why_dense(zeros: float, engines: Sequence[str], x: torch.Tensor | None) -> str:
    """Return why a layer that reads ``x`` is not worth timing, or cannot be; empty where it is."""
    if zeros == 0:
        return "none of its weights is zero"
    if not engines:
        return "which has no sparse kernel in this form"
    return "not called on one tensor alone" if x is None else ""


def _inputs_of(model: nn.Module, example_inputs: Any) -> dict[str, torch.Tensor]:
    """Return what each layer reads first in a run, for those that are called on one tensor."""
    read: dict[str, torch.Tensor | None] = {}
    with ExitStack() as hooks:
        for path, module in model.named_modules():

            def hook(_: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
                read.setdefault(path, args[0].detach().clone() if len(args) == 1 else None)

            if isinstance(module, _LAYERS):
                hooks.enter_context(module.register_forward_pre_hook(hook))
        call_model(model, fresh(example_inputs))
    return {path: x for path, x in read.items() if x is not None}


def _built(
    layer: nn.Module, engines: Sequence[str], x: torch.Tensor, threads: int, skipped: dict[str, str]
) -> dict[str, nn.Module]:
    """Return the layer in the form of each engine that is there and computes it."""
    built: dict[str, nn.Module] = {}
    wanted = run_once(layer, x)
    for name in engines:
        try:
            candidate = SparseLayer(layer, name, threads)
            found = run_once(candidate, x)
        except ImportError as error:
            skipped[name] = f"not there: {error}"
            continue
        except (UnsupportedError, ModelError) as error:
            skipped[name] = str(error)
            continue
        if difference(wanted, found) <= TOLERANCE[torch.float32]:
            built[name] = candidate
    return built
