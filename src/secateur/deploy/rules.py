"""What layers, pools, norms and arithmetic of an exported graph become in a program.

A rule takes (the program in the making, the call's arguments by name, the graph's node) and returns the
value, or a list of them; it raises :class:`Refused` for settings that a program has not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from secateur.deploy.terms import (
    Arguments,
    Constant,
    Refused,
    Rule,
    Value,
    beside_batch,
    is_constant,
    shape_of,
)

if TYPE_CHECKING:
    from secateur.deploy.lowering import Lowering


def _each(value: Any, spatial: int) -> list[int]:
    """One number a spatial dim: PyTorch lets one stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * spatial if len(values) == 1 else values


# -- layers --------------------------------------------------------------------------------------------


def _linear(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    if not is_constant(a["weight"]) or a["weight"].tensor.dim() != 2:
        raise Refused("has a weight that is computed from the input, or is no matrix")
    weight, bias = made.tensor(a["weight"]), made.tensor(a["bias"])
    return made.emit("linear", [a["input"]], shape_of(node), weight=weight, bias=bias)


def _conv(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    x = a["input"]
    spatial = len(x.shape) - 2
    weight, bias = made.tensor(a["weight"]), made.tensor(a["bias"])
    kernel = list(a["weight"].tensor.shape[2:])
    stride, dilation = _each(a["stride"], spatial), _each(a["dilation"], spatial)
    padding = a["padding"]
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = [t // 2 for t in total]
        if any(t % 2 for t in total):  # PyTorch puts the odd zero on the right
            after = [t - t // 2 for t in total]
            shape = (*x.shape[:2], *(n + t for n, t in zip(x.shape[2:], total, strict=True)))
            x = made.emit("pad", [x], shape, before=[0, *padding], after=[0, *after], value=0.0)
            padding = [0] * spatial
    padding = [0] * spatial if padding == "valid" else _each(padding, spatial)
    settings = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": a["groups"],
    }
    return made.emit("conv", [x], shape_of(node), weight=weight, bias=bias, **settings)


def _embedding(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    if is_constant(a["indices"]):
        raise Refused("")
    return made.emit("embedding", [a["indices"]], shape_of(node), weight=made.tensor(a["weight"]))


def _addmm(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    if a["beta"] != 1 or a["alpha"] != 1 or not is_constant(a["self"]) or a["self"].tensor.dim() != 1:
        raise Refused("is not a product plus a bias")
    return _product(made, a["mat1"], a["mat2"], node, a["self"])


def _matmul(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    return _product(made, a["self"], a.get("other", a.get("mat2")), node, None)


def _product(made: Lowering, left: Any, right: Any, node: fx.Node, bias: Any) -> Any:
    if is_constant(right) and right.tensor.dim() == 2 and not is_constant(left):
        turned = Constant(f"{right.name}.T", right.tensor.T)
        weight = made.tensor(turned)
        return made.emit("linear", [left], shape_of(node), weight=weight, bias=made.tensor(bias))
    if not isinstance(left, Value) or not isinstance(right, Value) or bias is not None:
        raise Refused("multiplies a constant from the left, or by one that is no matrix")
    if len(left.shape) != len(right.shape) or len(left.shape) < 3:
        raise Refused("multiplies over the batch")
    return made.emit("matmul", [left, right], shape_of(node))


# -- pooling and reductions ----------------------------------------------------------------------------


def _pool(spatial: int, op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, node: fx.Node) -> Any:
        kernel = _each(a["kernel_size"], spatial)
        stride = _each(a["stride"], spatial) if a["stride"] not in (None, []) else kernel
        settings: Arguments = {"kernel": kernel, "stride": stride, "padding": _each(a["padding"], spatial)}
        if op == "max_pool":
            settings["dilation"] = _each(a["dilation"], spatial)
        else:
            settings.update(count_padding=a["count_include_pad"], divisor=a.get("divisor_override"))
        return made.emit(op, [a["self"]], shape_of(node), **settings)

    return rule


def _adaptive(spatial: int, op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, node: fx.Node) -> Any:
        value = node.meta["val"]
        shape = tuple((value[0] if op == "max_pool" else value).shape)
        sizes = list(zip(a["self"].shape[-spatial:], shape[-spatial:], strict=True))
        if any(size % out for size, out in sizes):
            raise Refused(f"pools {[s for s, _ in sizes]} to {[o for _, o in sizes]}, which does not divide")
        kernel = [size // out for size, out in sizes]
        settings: Arguments = {"kernel": kernel, "stride": kernel, "padding": [0] * spatial}
        if op == "max_pool":
            return [made.emit(op, [a["self"]], shape, **settings, dilation=[1] * spatial), None]
        return made.emit(op, [a["self"]], shape, **settings, count_padding=True, divisor=None)

    return rule


def _reduction(op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, node: fx.Node) -> Any:
        if a.get("dtype") not in (None, torch.float32):
            raise Refused("gives another dtype than float32")
        dims = a.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or range(len(a["self"].shape))
        dims = sorted(beside_batch(dim, a["self"]) for dim in dims)
        return made.emit(op, [a["self"]], shape_of(node), dims=dims, keepdim=bool(a.get("keepdim")))

    return rule


# -- norms ---------------------------------------------------------------------------------------------


def _batch_norm(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or not is_constant(mean) or not is_constant(variance):
        raise Refused("normalises by the batch at hand")
    scale = (variance.tensor.double() + a["eps"]).rsqrt()
    if a["weight"] is not None:
        scale = scale * a["weight"].tensor.double()
    shift = -mean.tensor.double() * scale
    if a["bias"] is not None:
        shift = shift + a["bias"].tensor.double()
    stem = mean.name.rpartition(".")[0] or mean.name
    names = made.tensor(Constant(f"{stem}.scale", scale)), made.tensor(Constant(f"{stem}.shift", shift))
    return made.emit("scale", [a["input"]], shape_of(node), scale=names[0], shift=names[1])


def _instance_norm(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    if not a["use_input_stats"]:
        return _batch_norm(made, {**a, "training": False}, node)
    return _group_norm(made, {**a, "num_groups": a["input"].shape[1]}, node)


def _layer_norm(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    dims = len(a["normalized_shape"])
    if dims >= len(a["input"].shape):
        raise Refused("works along the batch")
    weight, bias = made.tensor(a["weight"]), made.tensor(a["bias"])
    settings = {"dims": dims, "weight": weight, "bias": bias, "eps": a["eps"]}
    return made.emit("layer_norm", [a["input"]], shape_of(node), **settings)


def _group_norm(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    weight, bias = made.tensor(a["weight"]), made.tensor(a["bias"])
    settings = {"groups": a["num_groups"], "weight": weight, "bias": bias, "eps": a["eps"]}
    return made.emit("group_norm", [a["input"]], shape_of(node), **settings)


def _softmax(op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, node: fx.Node) -> Any:
        if a.get("dtype") not in (None, torch.float32):
            raise Refused("gives another dtype than float32")
        return made.emit(op, [a["self"]], shape_of(node), dim=beside_batch(a["dim"], a["self"]))

    return rule


# -- elementwise ---------------------------------------------------------------------------------------


def _elementwise(op: str, settings: Callable[[Arguments], Arguments] = lambda a: {}) -> Rule:
    def rule(made: Lowering, a: Arguments, node: fx.Node) -> Any:
        if a.get("scale", 1) != 1 or a.get("input_scale", 1) != 1:
            raise Refused("is scaled")
        if any(isinstance(v, (Value, Constant)) for key, v in a.items() if key != "self"):
            raise Refused("has bounds that are tensors")
        return made.emit(op, [a["self"]], shape_of(node), **settings(a))

    return rule


def _clamp(low: Callable[[Arguments], Any], high: Callable[[Arguments], Any]) -> Rule:
    def bound(value: Any) -> float | None:
        return None if value is None or math.isinf(value) else float(value)

    return _elementwise("clamp", lambda a: {"low": bound(low(a)), "high": bound(high(a))})


def _gelu(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    return made.emit("gelu_tanh" if a["approximate"] == "tanh" else "gelu", [a["self"]], shape_of(node))


def _arithmetic(op: str, swapped: bool = False) -> Rule:
    def rule(made: Lowering, a: Arguments, node: fx.Node) -> Any:
        if a.get("rounding_mode") is not None:
            raise Refused("rounds")
        left, right = a["self"], a["other"]
        left, right = (right, left) if swapped else (left, right)
        if a.get("alpha", 1) != 1:
            right = _times(made, right, a["alpha"])
        values = [v for v in (left, right) if isinstance(v, Value)]
        shape = shape_of(node)
        if len(values) == 2:
            if len(left.shape) != len(right.shape):
                raise Refused("broadcasts tensors of different numbers of dims, batches included")
            return made.emit(op, values, shape)
        constant = right if values[0] is left else left
        settings: Arguments = {"reversed": values[0] is right}
        if not is_constant(constant):
            settings["scalar"] = float(constant)
        elif constant.tensor.numel() == 1 and constant.tensor.dim() <= len(values[0].shape):
            settings["scalar"] = float(constant.tensor)
        else:
            form = constant.tensor.shape
            if len(form) > len(shape) or (len(form) == len(shape) and form[0] != 1):
                raise Refused("broadcasts a constant over the batch")
            settings["tensor"] = made.tensor(constant)
        return made.emit(op, values, shape, **settings)

    return rule


def _times(made: Lowering, value: Any, factor: float) -> Any:
    if is_constant(value):
        return Constant(f"{value.name}.scaled", value.tensor * factor)
    if not isinstance(value, Value):
        return value * factor
    return made.emit("mul", [value], value.shape, scalar=float(factor), reversed=False)


def _reciprocal(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    return made.emit("div", [a["self"]], shape_of(node), scalar=1.0, reversed=True)


def _negated(made: Lowering, a: Arguments, node: fx.Node) -> Any:
    return made.emit("mul", [a["self"]], shape_of(node), scalar=-1.0, reversed=False)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d"), _conv),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "linear": _linear,
    "addmm": _addmm,
    "embedding": _embedding,
    **{f"max_pool{n}d": _pool(n, "max_pool") for n in (1, 2)},
    **{f"avg_pool{n}d": _pool(n, "avg_pool") for n in (1, 2)},
    **{f"adaptive_avg_pool{n}d": _adaptive(n, "avg_pool") for n in (1, 2)},
    **{f"adaptive_max_pool{n}d": _adaptive(n, "max_pool") for n in (1, 2)},
    **{op: _reduction(op) for op in ("mean", "sum", "amax")},
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    **{op: _softmax(op) for op in ("softmax", "log_softmax")},
    **{op: _elementwise(op) for op in ("relu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid")},
    "relu6": _clamp(lambda a: 0.0, lambda a: 6.0),
    "hardtanh": _clamp(lambda a: a["min_val"], lambda a: a["max_val"]),
    "clamp": _clamp(lambda a: a["min"], lambda a: a["max"]),
    "clamp_min": _clamp(lambda a: a["min"], lambda a: None),
    "clamp_max": _clamp(lambda a: None, lambda a: a["max"]),
    "leaky_relu": _elementwise("leaky_relu", lambda a: {"slope": float(a["negative_slope"])}),
    "elu": _elementwise("elu", lambda a: {"alpha": float(a["alpha"])}),
    "softplus": _elementwise(
        "softplus", lambda a: {"beta": float(a["beta"]), "threshold": float(a["threshold"])}
    ),
    "gelu": _gelu,
    **{op: _arithmetic(op) for op in ("add", "sub", "mul", "div")},
    "rsub": _arithmetic("sub", swapped=True),
    "reciprocal": _reciprocal,
    "neg": _negated,
}
