"""Linear and convolution layers that multiply by the weights that are left, each by one engine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.runtime.planning import Compiled
from secateur.structure.layers import layer_view

Engine = Callable[[Tensor], Tensor]


class SparseLayer(nn.Module):
    """A pruned layer at inference: ``engine`` is "compiled", "scipy" or "torch csr".

    It has the layer's weights as they were when it was made, in the engine's own form and in no state dict;
    it takes float32 on the CPU and keeps no gradients.
    """

    def __init__(self, layer: nn.Module, engine: str, threads: int = 1) -> None:
        super().__init__()
        self.engine, self.layer_type = engine, type(layer).__name__
        self.shape = tuple(layer.weight.shape)  # type: ignore[union-attr,arg-type]
        self.call = _ENGINES[engine](layer, threads)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ModelError(
                f"a sparse {self.layer_type} reads float32 on the CPU, not {x.dtype} on {x.device}"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise ModelError(
                f"a sparse {self.layer_type} has no gradients: call it under torch.inference_mode()"
            )
        return self.call(x.detach())

    def extra_repr(self) -> str:
        return f"{self.layer_type}, {' x '.join(map(str, self.shape))}, {self.engine}"


def supported(layer: Any) -> tuple[str, ...]:
    """Return the engines that can run a layer; none where it has no zeros or is of another kind."""
    view = layer_view(layer)
    stock = view is not None and type(layer) is view.cls and not view.registered
    if view is None or not stock or not view.multiplies or view.transposed:
        return ()
    if view.product == "rows":
        return tuple(_ENGINES)
    plain = view.kernel < 3 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return ("compiled",) if plain else ()


def _numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().float().contiguous().numpy()


def _compiled(layer: Any, threads: int) -> Engine:
    weights = {"weight": _numpy(layer.weight), "bias": _numpy(layer.bias)}
    named = {"weight": "weight", "bias": None if layer.bias is None else "bias"}
    view = layer_view(layer)
    convolves = view is not None and view.product == "windows"

    @functools.cache
    def program(*shape: int) -> Compiled:
        node: dict[str, Any] = {"op": "linear", "inputs": ["x"], "output": "y", **named}
        if convolves:
            windows = {name: getattr(layer, name) for name in ("stride", "groups", "padding", "dilation")}
            node |= {"op": "conv", "kernel": layer.kernel_size, **windows}
            padded = [n + 2 * p for n, p in zip(shape[1:], layer.padding, strict=True)]
            sizes = zip(padded, layer.kernel_size, layer.stride, layer.dilation, strict=True)
            node["shape"] = [layer.out_channels, *((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes)]
        else:
            node["shape"] = [layer.out_features]
        given = {"name": "x", "shape": [None, *shape], "dtype": "float32"}
        graph = {"version": 1, "inputs": [given], "outputs": ["y"], "nodes": [node]}
        return Compiled(graph, weights, threads)  # type: ignore[arg-type]

    def linear(x: Tensor) -> Tensor:
        rows = x.reshape(-1, layer.in_features)
        y = program(layer.in_features)([rows.numpy()])[0]
        return torch.from_numpy(y).view(*x.shape[:-1], layer.out_features)

    def conv(x: Tensor) -> Tensor:
        if x.dim() != len(layer.kernel_size) + 2 or x.shape[1] != layer.in_channels:
            raise ModelError(f"a sparse convolution of {layer.in_channels} channels got {tuple(x.shape)}")
        return torch.from_numpy(program(*x.shape[1:])([x.numpy()])[0])

    return conv if convolves else linear


def _scipy(layer: Any, threads: int) -> Engine:
    from scipy import sparse

    matrix, bias = sparse.csr_array(_numpy(layer.weight)), _numpy(layer.bias)

    def run(x: Tensor) -> Tensor:
        rows = x.reshape(-1, layer.in_features).numpy()
        y = (matrix @ np.ascontiguousarray(rows.T)).T  # one feature a row: four times as fast
        y = np.ascontiguousarray(y if bias is None else y + bias)
        return torch.from_numpy(y).view(*x.shape[:-1], layer.out_features)

    return run


def _torch_csr(layer: Any, threads: int) -> Engine:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse CSR.*")  # it is in beta, as all of them know
        matrix = layer.weight.detach().float().to_sparse_csr()
    bias = None if layer.bias is None else layer.bias.detach().float()

    def run(x: Tensor) -> Tensor:
        # Not F.linear, which with a sparse weight takes a path many times slower.
        y = torch.sparse.mm(matrix, x.reshape(-1, layer.in_features).T).T
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], layer.out_features)

    return run


_ENGINES: dict[str, Callable[[Any, int], Engine]] = {
    "compiled": _compiled,
    "scipy": _scipy,
    "torch csr": _torch_csr,
}
