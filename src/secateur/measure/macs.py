"""Multiply-adds of one forward pass, dense and effective, counted by operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.copying import copied
from secateur.running import as_written, forward_once

# Multiply-adds, and the tensors that are multiplied.
Product = tuple[int, Sequence[Tensor]]
Formula = Callable[[Sequence[Any], Any], list[Product]]
aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one forward pass: ``dense``, ``effective`` (zero weights skipped), and the
    dense ones of each weight by its name. Matrix products, convolutions, recurrent layers and attention
    count."""

    dense: int
    effective: int
    weights: dict[str, int]

    @property
    def layers(self) -> dict[str, int]:
        """The dense ones of each layer that has weights, by module name."""
        found: dict[str, int] = {}
        for name, macs in self.weights.items():
            path = name.split(".")
            # A parametrization's tensors lie in modules of their own, inside the layer.
            end = path.index("parametrizations") if "parametrizations" in path else -1
            layer = ".".join(path[:end])
            found[layer] = found.get(layer, 0) + macs
        return found


def count_macs(model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Macs:
    """Count the multiply-adds of ``model`` on ``example_inputs`` (and ``kwargs``), in eval mode.

    What torch runs is counted: an ``nn.Bilinear`` takes one for each weight and example, a causal mask
    saves none, a multiply-add of complex numbers is one in a matrix product, and three in a convolution,
    which torch makes of three real ones. Lookups, interpolation and elementwise products (norms, gates)
    count nothing. The effective count skips the zeros of parameters, buffers and what is computed of
    these alone, but not those in rows that an ``nn.EmbeddingBag`` weights. A copy of the model runs.

    Raises ModelError where the model cannot be copied or does not run.
    """
    work = copied(model)
    counter = _Counter(work)
    with as_written(), _unfused():
        forward_once(work, example_inputs, counter, kwargs=kwargs)
    return Macs(counter.dense, counter.effective, counter.weights)


@contextmanager
def _unfused() -> Iterator[None]:
    """Run attention as the products that it is made of, which one operator hides otherwise."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Counter(TorchDispatchMode):
    """Adds up the multiply-adds of the operators that run under it; keeps which tensors are weights."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.dense = self.effective = 0
        self.weights: dict[str, int] = {}
        self.names = WeakTensorKeyDictionary()  # of parameters, buffers and what is computed of them alone
        for name, tensor in (*model.named_buffers(), *model.named_parameters()):
            self.names[tensor] = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        higher = isinstance(func, HigherOrderOperator)
        operator = func if higher else func._overloadpacket
        known = operator in _FORMULAS or operator in flop_registry
        if not (known or higher or types):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if operator in _FORMULAS:
            for macs, factors in _FORMULAS[operator](args, out):
                self._add(macs, factors)
        elif known:
            self._add(flop_registry[operator](*args, **kwargs, out_val=out) // 2, ())
        self._follow(tree_leaves((args, kwargs)), tree_leaves(out))
        return out

    def _add(self, macs: int, factors: Sequence[Tensor]) -> None:
        weights = [factor for factor in factors if factor in self.names]
        self.dense += macs
        self.effective += min((_without_zeros(macs, weight) for weight in weights), default=macs)
        if weights and macs:
            name = self.names[max(weights, key=Tensor.numel)]
            self.weights[name] = self.weights.get(name, 0) + macs

    def _follow(self, given: Sequence[Any], made: Sequence[Any]) -> None:
        """Take what is computed of weights alone for the largest of them, and nothing else."""
        sources = [leaf for leaf in given if isinstance(leaf, Tensor)]
        weights = bool(sources) and all(source in self.names for source in sources)
        for leaf in made:
            if isinstance(leaf, Tensor) and weights:
                self.names[leaf] = self.names[max(sources, key=Tensor.numel)]
            elif isinstance(leaf, Tensor):
                self.names.pop(leaf, None)


def _without_zeros(macs: int, weight: Tensor) -> int:
    if weight.is_meta:
        return macs
    values = weight.coalesce() if weight.layout == torch.sparse_coo else weight
    values = values if values.layout == torch.strided else values.values()
    return macs * int(torch.count_nonzero(values)) // max(weight.numel(), 1)


def _matrices(first: int) -> Formula:
    """Matrices, batches of them and vectors, of which the left one is argument number ``first``."""

    def products(args: Sequence[Any], out: Any) -> list[Product]:
        left, right = args[first : first + 2]
        return [(left.numel() * (right.shape[-1] if right.dim() > 1 else 1), (left, right))]

    return products


def _linear(args: Sequence[Any], out: Any) -> list[Product]:
    return [(args[0].numel() * args[1].shape[:-1].numel(), args[:2])]


def _convolution(args: Sequence[Any], out: Any) -> list[Product]:
    """Each weight is used once at every position that is made, or that a transposed one reads."""
    x, weight, *_, transposed = args[:7]
    positions = x if transposed else out
    return [(weight.numel() * positions.numel() // max(positions.shape[1], 1), (x, weight))]


def _once(weights: Callable[[Sequence[Any]], Sequence[Tensor]]) -> Formula:
    """Each weight is used once for each vector that is read: once a step and sequence where it recurs."""

    def products(args: Sequence[Any], out: Any) -> list[Product]:
        vectors = args[0].numel() // max(args[0].shape[-1], 1)
        return [(vectors * weight.numel(), (weight,)) for weight in weights(args)]

    return products


def _bag(args: Sequence[Any], out: Any) -> list[Product]:
    """A sum of rows multiplies only where each has a weight of its own."""
    weighted = len(args) > 6 and args[6] is not None
    return [(args[1].numel() * args[0].shape[-1], ())] if weighted else []


_FORMULAS: dict[Any, Formula] = {
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot, aten._int_mm), _matrices(0)),
    **dict.fromkeys((aten._sparse_sparse_matmul, aten._grouped_mm), _matrices(0)),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addbmm, aten.addmv), _matrices(1)),
    **dict.fromkeys((aten._sparse_addmm, aten._addmm_activation), _matrices(1)),
    aten.linear: _linear,
    aten._trilinear: _once(lambda args: args[1:2]),
    **dict.fromkeys((aten.convolution, aten._convolution), _convolution),
    aten.conv_tbc: lambda args, out: [(args[1].numel() * out.shape[:2].numel(), args[:2])],
    aten.mkldnn_rnn_layer: _once(lambda args: args[1:3]),
    **dict.fromkeys(
        (aten._cudnn_rnn, aten.miopen_rnn), _once(lambda args: [w for w in args[1] if w.dim() == 2])
    ),
    **dict.fromkeys((aten._embedding_bag, aten._embedding_bag_forward_only), _bag),
}
