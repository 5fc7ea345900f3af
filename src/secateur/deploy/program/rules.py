"""What layers, pools, norms and arithmetic of an exported graph become in a program.

A rule takes (the program in the making, the call's arguments by name, the call) and returns the value, or
a list of them; it raises ``Refused`` for settings that a program lacks.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from secateur.deploy.program.emitting import (
    Arguments,
    Constant,
    Lowering,
    Refused,
    Rule,
    Value,
    beside_batch,
    is_constant,
)
from secateur.deploy.program.folding import scale_and_shift
from secateur.graph.calls import Call
from secateur.runtime.activations import ACTIVATIONS

_LOW = -1e30  # what is added to a score that counts for nothing: a finite number in float32


def _each(value: Any, spatial: int) -> list[int]:
    """One number a spatial dim: PyTorch lets one stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * spatial if len(values) == 1 else values


def _affine(made: Lowering, a: Arguments) -> Arguments:
    return {name: made.tensor(a[name]) for name in ("weight", "bias")}


# -- layers --------------------------------------------------------------------------------------------


def _linear(made: Lowering, a: Arguments, call: Call) -> Any:
    if not is_constant(a["weight"]) or a["weight"].tensor.dim() != 2:
        raise Refused("has a weight that is computed from the input, or is no matrix")
    return made.emit("linear", [a["input"]], call.shape, **_affine(made, a))


def _conv(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["input"]
    spatial = len(x.shape) - 2
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
    windows = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return made.emit("conv", [x], call.shape, **_affine(made, a), **windows, groups=a["groups"])


def _embedding(made: Lowering, a: Arguments, call: Call) -> Any:
    if is_constant(a["indices"]):
        raise Refused("")
    return made.emit("embedding", [a["indices"]], call.shape, weight=made.tensor(a["weight"]))


def _addmm(made: Lowering, a: Arguments, call: Call) -> Any:
    if a["beta"] != 1 or a["alpha"] != 1 or not is_constant(a["self"]) or a["self"].tensor.dim() != 1:
        raise Refused("is not a product plus a bias")
    return _product(made, a["mat1"], a["mat2"], call, a["self"])


def _matmul(made: Lowering, a: Arguments, call: Call) -> Any:
    return _product(made, a["self"], a.get("other", a.get("mat2")), call, None)


def _product(made: Lowering, left: Any, right: Any, call: Call, bias: Any) -> Any:
    if is_constant(right) and right.tensor.dim() == 2 and not is_constant(left):
        turned = Constant(f"{right.name}.T", right.tensor.T)
        weight = made.tensor(turned)
        return made.emit("linear", [left], call.shape, weight=weight, bias=made.tensor(bias))
    if not isinstance(left, Value) or not isinstance(right, Value) or bias is not None:
        raise Refused("multiplies a constant from the left, or by one that is no matrix")
    if len(left.shape) != len(right.shape) or len(left.shape) < 3:
        raise Refused("multiplies over the batch")
    return made.emit("matmul", [left, right], call.shape)


def _attention(made: Lowering, a: Arguments, call: Call) -> Any:
    """softmax(q kᵀ · scale + mask) v"""
    q, k, v, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    if a["dropout_p"] or a["enable_gqa"]:
        raise Refused("drops out, or shares keys")
    like = next(x for x in (q, k, v) if isinstance(x, Value))
    q, k, v = (made.repeated(x, like) if is_constant(x) else x for x in (q, k, v))
    scale = a["scale"] if a["scale"] is not None else q.shape[-1] ** -0.5
    scores = (*q.shape[:-1], k.shape[-2])
    turned = [*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2]
    k = made.emit("permute", [k], [k.shape[dim] for dim in turned], dims=turned)
    x = made.emit("matmul", [_times(made, q, scale), k], scores)
    if a["is_causal"]:
        mask = Constant("causal", torch.ones(scores[-2:], dtype=torch.bool).tril())
    if is_constant(mask):
        if mask.tensor.dtype == torch.bool:
            mask = Constant(
                f"{mask.name}.added", torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, _LOW)
            )
        mask = made.by_example(mask, x)
    if isinstance(mask, Value):
        x = made.emit("add", [x, mask], scores)
    elif mask is not None:
        if mask.tensor.dim() == len(scores) and len(mask.tensor) != 1:
            raise Refused("has a mask along the batch")
        x = made.emit("add", [x], scores, tensor=made.tensor(mask), reversed=False)
    x = made.emit("softmax", [x], scores, dim=len(scores) - 1)
    return made.emit("matmul", [x, v], call.shape)


# -- pooling and reductions ----------------------------------------------------------------------------


def _pool(spatial: int, op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        kernel = _each(a["kernel_size"], spatial)
        stride = _each(a["stride"], spatial) if a["stride"] not in (None, []) else kernel
        settings: Arguments = {"kernel": kernel, "stride": stride, "padding": _each(a["padding"], spatial)}
        if op == "max_pool":
            settings["dilation"] = _each(a["dilation"], spatial)
        else:
            settings.update(count_padding=a["count_include_pad"], divisor=a.get("divisor_override"))
        return made.emit(op, [a["self"]], call.shape, **settings)

    return rule


def _adaptive(spatial: int, op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        value = call.node.meta["val"]
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
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if a.get("dtype") not in (None, torch.float32):
            raise Refused("gives another dtype than float32")
        dims = a.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or range(len(a["self"].shape))
        dims = sorted(beside_batch(dim, a["self"]) for dim in dims)
        return made.emit(op, [a["self"]], call.shape, dims=dims, keepdim=bool(a.get("keepdim")))

    return rule


# -- norms ---------------------------------------------------------------------------------------------


def _batch_norm(made: Lowering, a: Arguments, call: Call) -> Any:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or not is_constant(mean) or not is_constant(variance):
        raise Refused("normalises by the batch at hand")
    factor, added = (None if a[name] is None else a[name].tensor for name in ("weight", "bias"))
    scale, shift = scale_and_shift(mean.tensor, variance.tensor, factor, added, a["eps"])
    stem = mean.name.rpartition(".")[0] or mean.name
    names = made.tensor(Constant(f"{stem}.scale", scale)), made.tensor(Constant(f"{stem}.shift", shift))
    return made.emit("scale", [a["input"]], call.shape, scale=names[0], shift=names[1])


def _instance_norm(made: Lowering, a: Arguments, call: Call) -> Any:
    if not a["use_input_stats"]:
        return _batch_norm(made, {**a, "training": False}, call)
    return _group_norm(made, {**a, "num_groups": a["input"].shape[1]}, call)


def _layer_norm(made: Lowering, a: Arguments, call: Call) -> Any:
    dims = len(a["normalized_shape"])
    if dims >= len(a["input"].shape):
        raise Refused("works along the batch")
    return made.emit("layer_norm", [a["input"]], call.shape, dims=dims, **_affine(made, a), eps=a["eps"])


def _group_norm(made: Lowering, a: Arguments, call: Call) -> Any:
    settings = {"groups": a["num_groups"], **_affine(made, a), "eps": a["eps"]}
    return made.emit("group_norm", [a["input"]], call.shape, **settings)


def _rms_norm(made: Lowering, a: Arguments, call: Call) -> Any:
    x, dims = a["input"], len(a["normalized_shape"])
    if dims >= len(x.shape):
        raise Refused("works along the batch")
    over = list(range(len(x.shape) - dims, len(x.shape)))
    means = (*x.shape[:-dims], *([1] * dims))
    squares = made.emit("power", [x], x.shape, exponent=2.0)
    mean = made.emit("mean", [squares], means, dims=over, keepdim=True)
    eps = torch.finfo(torch.float32).eps if a["eps"] is None else a["eps"]
    size = made.emit("power", [_plus(made, mean, eps)], means, exponent=-0.5)
    x = made.emit("mul", [x, size], x.shape)
    weight = made.tensor(a["weight"])
    return x if weight is None else made.emit("mul", [x], x.shape, tensor=weight, reversed=False)


def _plus(made: Lowering, value: Value, number: float) -> Value:
    return made.emit("add", [value], value.shape, scalar=float(number), reversed=False)


def _softmax(op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if a.get("dtype") not in (None, torch.float32):
            raise Refused("gives another dtype than float32")
        return made.emit(op, [a["self"]], call.shape, dim=beside_batch(a["dim"], a["self"]))

    return rule


# -- elementwise ---------------------------------------------------------------------------------------


def _activation(op: str, **settings: str | float) -> Rule:
    """``settings``: those of the activation, each the name of an argument or a number; an argument that is
    none of them must be at its default."""
    taken = {setting: setting for setting in ACTIVATIONS[op].settings} | settings
    number = float if ACTIVATIONS[op].bounds is None else _bound

    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        x = a["self"]
        found = {setting: a[name] if isinstance(name, str) else name for setting, name in taken.items()}
        _check_others(a, call, {"self", *taken.values()})
        if any(isinstance(value, (Value, Constant)) for value in found.values()):
            raise Refused("has bounds that are tensors")
        return made.emit(op, [x], call.shape, **{name: number(v) for name, v in found.items()})

    return rule


def _check_others(a: Arguments, call: Call, taken: set[Any]) -> None:
    assert call.schema is not None
    for argument in call.schema.arguments:
        if argument.name not in taken and a[argument.name] != argument.default_value:
            raise Refused(f"has {argument.name}={a[argument.name]}")


def _bound(value: float | None) -> float | None:
    """One that is infinite is none."""
    return None if value is None or math.isinf(value) else float(value)


def _gelu(made: Lowering, a: Arguments, call: Call) -> Any:
    return made.emit("gelu_tanh" if a["approximate"] == "tanh" else "gelu", [a["self"]], call.shape)


def _arithmetic(op: str, swapped: bool = False) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if a.get("rounding_mode") is not None:
            raise Refused("rounds")
        left, right = a["self"], a["other"]
        left, right = (right, left) if swapped else (left, right)
        if a.get("alpha", 1) != 1:
            right = _times(made, right, a["alpha"])
        like = next(v for v in (left, right) if isinstance(v, Value))
        left, right = (made.by_example(v, like) if is_constant(v) else v for v in (left, right))
        values = [v for v in (left, right) if isinstance(v, Value)]
        shape = call.shape or ()
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


def _with_scalar(op: str, number: float, reversed: bool) -> Rule:
    return lambda made, a, call: made.emit(op, [a["self"]], call.shape, scalar=number, reversed=reversed)


def _power(exponent: float | None = None) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        number = a["exponent"] if exponent is None else exponent
        if not isinstance(a["self"], Value) or not isinstance(number, (int, float)):
            raise Refused("has an exponent that is no number")
        return made.emit("power", [a["self"]], call.shape, exponent=float(number))

    return rule


def _length(made: Lowering, a: Arguments, call: Call) -> Any:
    """The square root of a sum of squares."""
    if a["ord"] != 2 or a.get("dtype") not in (None, torch.float32):
        raise Refused("is of another order than 2")
    squares = made.emit("power", [a["self"]], a["self"].shape, exponent=2.0)
    sums = _reduction("sum")(made, {**a, "self": squares}, call)
    return made.emit("power", [sums], call.shape, exponent=0.5)


_ATEN = torch.ops.aten
_ACTIVATIONS = (  # those that have the names and settings of the program's
    *(_ATEN.relu, _ATEN.elu, _ATEN.silu, _ATEN.sigmoid, _ATEN.tanh),
    *(_ATEN.hardswish, _ATEN.hardsigmoid, _ATEN.softplus),
)
RULES: dict[Any, Rule] = {
    **dict.fromkeys((_ATEN.conv1d, _ATEN.conv2d), _conv),
    _ATEN.linear: _linear,
    **dict.fromkeys((_ATEN.matmul, _ATEN.bmm, _ATEN.mm), _matmul),
    _ATEN.addmm: _addmm,
    _ATEN.embedding: _embedding,
    _ATEN.scaled_dot_product_attention: _attention,
    _ATEN.max_pool1d: _pool(1, "max_pool"),
    _ATEN.max_pool2d: _pool(2, "max_pool"),
    _ATEN.avg_pool1d: _pool(1, "avg_pool"),
    _ATEN.avg_pool2d: _pool(2, "avg_pool"),
    _ATEN.adaptive_avg_pool1d: _adaptive(1, "avg_pool"),
    _ATEN.adaptive_avg_pool2d: _adaptive(2, "avg_pool"),
    _ATEN.adaptive_max_pool1d: _adaptive(1, "max_pool"),
    _ATEN.adaptive_max_pool2d: _adaptive(2, "max_pool"),
    **{op: _reduction(op.__name__) for op in (_ATEN.mean, _ATEN.sum, _ATEN.amax)},
    _ATEN.batch_norm: _batch_norm,
    _ATEN.instance_norm: _instance_norm,
    _ATEN.layer_norm: _layer_norm,
    _ATEN.rms_norm: _rms_norm,
    _ATEN.group_norm: _group_norm,
    **{op: _softmax(op.__name__) for op in (_ATEN.softmax, _ATEN.log_softmax)},
    **{op: _activation(op.__name__) for op in _ACTIVATIONS},
    _ATEN.relu6: _activation("clamp", low=0.0, high=6.0),
    _ATEN.hardtanh: _activation("clamp", low="min_val", high="max_val"),
    _ATEN.clamp: _activation("clamp", low="min", high="max"),
    _ATEN.clamp_min: _activation("clamp", low="min", high=math.inf),
    _ATEN.clamp_max: _activation("clamp", low=-math.inf, high="max"),
    _ATEN.leaky_relu: _activation("leaky_relu", slope="negative_slope"),
    _ATEN.gelu: _gelu,
    **{op: _arithmetic(op.__name__) for op in (_ATEN.add, _ATEN.sub, _ATEN.mul, _ATEN.div)},
    _ATEN.pow: _power(),
    _ATEN.square: _power(2.0),
    _ATEN.sqrt: _power(0.5),
    _ATEN.rsqrt: _power(-0.5),
    _ATEN.linalg_vector_norm: _length,
    _ATEN.multiply: _arithmetic("mul"),
    _ATEN.subtract: _arithmetic("sub"),
    _ATEN.divide: _arithmetic("div"),
    _ATEN.rsub: _arithmetic("sub", swapped=True),
    _ATEN.reciprocal: _with_scalar("div", 1.0, reversed=True),
    _ATEN.neg: _with_scalar("mul", -1.0, reversed=False),
}
