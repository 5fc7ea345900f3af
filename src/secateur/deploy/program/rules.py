"""What layers, pools, norms and arithmetic of an exported graph become in a program.

A rule takes (the program in the making, the call's arguments by name, the call) and returns the value, or
a list of them; it raises ``Refused`` for settings that a program lacks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.deploy.program.elementwise import arithmetic, combined, times
from secateur.deploy.program.emitting import (
    Arguments,
    Constant,
    Lowering,
    Refused,
    Rule,
    Turned,
    Value,
    beside_batch,
    is_constant,
)
from secateur.deploy.program.folding import scale_and_shift
from secateur.deploy.program.resampling import each
from secateur.deploy.program.turning import along, reshaped, through
from secateur.graph.calls import Call

_LOW = -1e30  # what is added to a score that counts for nothing: a finite number in float32


def _affine(made: Lowering, a: Arguments) -> Arguments:
    return {name: made.tensor(a[name]) for name in ("weight", "bias")}


# -- layers --------------------------------------------------------------------------------------------


def _linear(made: Lowering, a: Arguments, call: Call) -> Any:
    if not is_constant(a["weight"]) or a["weight"].tensor.dim() != 2:
        raise Refused("has a weight that is computed from the input, or is no matrix")
    size, affine = len(a["weight"].tensor), _affine(made, a)
    return through(made, a["input"], 1, lambda x: made.emit("linear", [x], (*x.shape[:-1], size), **affine))


def _conv(made: Lowering, a: Arguments, call: Call) -> Any:
    x = a["input"]
    spatial = len(x.shape) - 2
    kernel = list(a["weight"].tensor.shape[2:])
    stride, dilation = each(a["stride"], spatial), each(a["dilation"], spatial)
    padding = a["padding"]
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = [t // 2 for t in total]
        if any(t % 2 for t in total):  # PyTorch puts the odd zero on the right
            after = [t - t // 2 for t in total]
            shape = (*x.shape[:2], *(n + t for n, t in zip(x.shape[2:], total, strict=True)))
            x = made.emit("pad", [x], shape, before=[0, *padding], after=[0, *after], value=0.0)
            padding = [0] * spatial
    padding = [0] * spatial if padding == "valid" else each(padding, spatial)
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
        size, named = right.tensor.shape[1], made.tensor(bias)
        return through(
            made,
            left,
            1,
            lambda x: made.emit("linear", [x], (*x.shape[:-1], size), weight=weight, bias=named),
        )
    if bias is not None:
        raise Refused("adds to a product of two values")
    like: Any = left if isinstance(left, Value) else right
    left, right = made.among(left, like), made.among(right, like)
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
    x = made.emit("matmul", [times(made, q, scale), k], scores)
    if a["is_causal"]:
        mask = Constant("causal", torch.ones(scores[-2:], dtype=torch.bool).tril())
    if mask is not None:
        x = _masked(made, x, mask)
    x = made.emit("softmax", [x], scores, dim=len(scores) - 1)
    if isinstance(mask, Value) and mask.dtype == torch.bool:  # what may look nowhere sees nothing
        x = made.emit("where", [made.among(mask, x), x, made.among(0.0, x)], scores)
    return made.emit("matmul", [x, v], call.shape)


def _masked(made: Lowering, x: Value, mask: Any) -> Value:
    """Scores plus a mask, or low where one of bools is false."""
    if is_constant(mask) and mask.tensor.dtype == torch.bool:
        added = torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, _LOW)
        mask = Constant(f"{mask.name}.added", added)
    if isinstance(mask, Value) and mask.dtype == torch.bool:
        return made.emit("where", [made.among(mask, x), x, made.among(_LOW, x)], x.shape)
    return combined(made, "add", x, mask, x.dtype)


# -- pooling and reductions ----------------------------------------------------------------------------


def _pool(spatial: int, op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        kernel = each(a["kernel_size"], spatial)
        stride = each(a["stride"], spatial) if a["stride"] not in (None, []) else kernel
        settings: Arguments = {"kernel": kernel, "stride": stride, "padding": each(a["padding"], spatial)}
        if op == "max_pool":
            settings["dilation"] = each(a["dilation"], spatial)
        else:
            settings.update(count_padding=a["count_include_pad"], divisor=a.get("divisor_override"))
        return made.emit(op, [a["self"]], call.shape, **settings)

    return rule


def _reduction(op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        found = call.node.meta["val"]
        return _reduced(made, op, made.cast(a["self"], found.dtype), a, found)

    return rule


def _reduced(made: Lowering, op: str, x: Value, a: Arguments, found: Tensor) -> Value:
    """Reduce over the dims that a call names (all where it names none) to the shape of ``found``."""
    dims = a.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(len(x.shape))
    if isinstance(x, Turned) and len(dims) == 1 and not a.get("keepdim"):
        return _reduced_turned(made, op, x, dims[0] % len(x.shape))
    dims = sorted(beside_batch(dim, x) for dim in dims)
    return made.emit(op, [x], tuple(found.shape), found.dtype, dims=dims, keepdim=bool(a.get("keepdim")))


def _reduced_turned(made: Lowering, op: str, x: Turned, dim: int) -> Value:
    """A reduction over steps that come before the batch."""

    def reduce(x: Value, dim: int) -> Value:
        dims, shape = [beside_batch(dim, x)], (*x.shape[:dim], 1, *x.shape[dim + 1 :])
        return made.emit(op, [x], shape, x.dtype, dims=dims, keepdim=True)

    return reshaped(made, along(x, dim, reduce), (*x.shape[:dim], *x.shape[dim + 1 :]))


def _largest(sign: int) -> Rule:
    """``amax``; ``max(x, dim)``, the values and where they are; of two tensors the larger ones. What is
    smallest is what is largest of the negative ones."""
    of_two = arithmetic("maximum" if sign > 0 else "minimum")

    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if "other" in a:
            return of_two(made, a, call)
        found = call.node.meta["val"]
        pair = isinstance(found, (tuple, list))
        x, whole = _signed(made, a["self"], sign), found[0] if pair else found
        value = _signed(made, _reduced(made, "amax", x, a, whole), sign)
        if not pair:
            return value
        read = any(user.args[1] == 1 and user.users for user in call.node.users)
        return [value, _place(made, x, a["dim"], a["keepdim"]) if read else None]

    return rule


def _place_of(sign: int) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if a["dim"] is None:
            raise Refused("is over all dims")
        return _place(made, _signed(made, a["self"], sign), a["dim"], a["keepdim"])

    return rule


def _signed(made: Lowering, x: Value, sign: int) -> Value:
    if sign < 0 and x.dtype not in (torch.float32, torch.int64):
        raise Refused("looks for the smallest of numbers that have no negative")
    return x if sign > 0 else combined(made, "mul", x, -1.0, x.dtype)


def _place(made: Lowering, x: Value, dim: int, keepdim: bool) -> Value:
    """Where along a dim the first largest number is."""
    dim = beside_batch(dim, x)
    found = made.emit("argmax", [x], (*x.shape[:dim], *x.shape[dim + 1 :]), torch.int64, dim=dim)
    return reshaped(made, found, (*x.shape[:dim], 1, *x.shape[dim + 1 :])) if keepdim else found


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
    settings = {"dims": dims, **_affine(made, a), "eps": a["eps"]}
    return through(made, a["input"], dims, lambda x: made.emit("layer_norm", [x], x.shape, **settings))


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


def _length(made: Lowering, a: Arguments, call: Call) -> Any:
    """The square root of a sum of squares."""
    if a["ord"] != 2 or a.get("dtype") not in (None, torch.float32):
        raise Refused("is of another order than 2")
    squares = made.emit("power", [a["self"]], a["self"].shape, exponent=2.0)
    sums = _reduction("sum")(made, {**a, "self": squares}, call)
    return made.emit("power", [sums], call.shape, exponent=0.5)


def _softmax(op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if a.get("dtype") not in (None, torch.float32):
            raise Refused("gives another dtype than float32")
        return along(
            a["self"], a["dim"], lambda x, dim: made.emit(op, [x], x.shape, dim=beside_batch(dim, x))
        )

    return rule


_ATEN = torch.ops.aten
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
    **{op: _reduction(op.__name__) for op in (_ATEN.mean, _ATEN.sum)},
    **dict.fromkeys((_ATEN.max, _ATEN.amax), _largest(1)),
    **dict.fromkeys((_ATEN.min, _ATEN.amin), _largest(-1)),
    _ATEN.argmax: _place_of(1),
    _ATEN.argmin: _place_of(-1),
    _ATEN.linalg_vector_norm: _length,
    _ATEN.batch_norm: _batch_norm,
    _ATEN.instance_norm: _instance_norm,
    _ATEN.layer_norm: _layer_norm,
    _ATEN.rms_norm: _rms_norm,
    _ATEN.group_norm: _group_norm,
    **{op: _softmax(op.__name__) for op in (_ATEN.softmax, _ATEN.log_softmax)},
}
