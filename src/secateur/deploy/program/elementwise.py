"""What activations, arithmetic, comparisons and choices of an exported graph become in a program."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from secateur.deploy.program.emitting import (
    COMPARED,
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
from secateur.deploy.program.turning import along, through
from secateur.graph.calls import Call
from secateur.runtime.activations import ACTIVATIONS

# -- functions of one number -----------------------------------------------------------------------------


def _activation(op: str, **settings: str | float) -> Rule:
    """``settings``: those of the activation, each the name of an argument or a number; an argument that is
    none of them must be at its default."""
    taken = {setting: setting for setting in ACTIVATIONS[op].settings} | settings
    number = float if ACTIVATIONS[op].bounds is None else _bound

    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        found = {setting: a[name] if isinstance(name, str) else name for setting, name in taken.items()}
        _check_others(a, call, {"self", *taken.values()})
        if any(isinstance(value, (Value, Constant)) for value in found.values()):
            raise Refused("has bounds that are tensors")
        settings: Arguments = {name: number(value) for name, value in found.items()}
        x = made.cast(a["self"], torch.float32)
        y = through(made, x, 0, lambda x: made.emit(op, [x], x.shape, **settings))
        return made.cast(y, call.node.meta["val"].dtype)

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
    op = "gelu_tanh" if a["approximate"] == "tanh" else "gelu"
    return through(made, a["self"], 0, lambda x: made.emit(op, [x], x.shape))


def _of_one(op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        kind = call.node.meta["val"].dtype
        read = kind if op == "abs" else torch.bool if op == "not" else torch.float32
        return through(made, made.cast(a["self"], read), 0, lambda x: made.emit(op, [x], x.shape, kind))

    return rule


def _power(exponent: float | None = None) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        number = a["exponent"] if exponent is None else exponent
        if not isinstance(a["self"], Value) or not isinstance(number, (int, float)):
            raise Refused("has an exponent that is no number")
        return through(made, a["self"], 0, lambda x: made.emit("power", [x], x.shape, exponent=float(number)))

    return rule


def _prelu(made: Lowering, a: Arguments, call: Call) -> Any:
    """max(x, 0) + weight min(x, 0)"""
    x, weight = a["self"], a["weight"]
    if not is_constant(weight) or not isinstance(x, Value):
        raise Refused("has a slope that is computed from the input")
    column = weight.tensor.reshape(-1, *(1 for _ in x.shape[2:]))
    low = made.emit("clamp", [x], x.shape, low=None, high=0.0)
    low = combined(made, "mul", low, Constant(f"{weight.name}.column", column), x.dtype)
    return made.emit("add", [made.emit("relu", [x], x.shape), low], x.shape)


def _selu(made: Lowering, a: Arguments, call: Call) -> Any:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return through(
        made, a["self"], 0, lambda x: times(made, made.emit("elu", [x], x.shape, alpha=alpha), scale)
    )


def _mish(made: Lowering, a: Arguments, call: Call) -> Any:
    def work(x: Value) -> Value:
        soft = made.emit("softplus", [x], x.shape, beta=1.0, threshold=20.0)
        return made.emit("mul", [x, made.emit("tanh", [soft], x.shape)], x.shape)

    return through(made, a["self"], 0, work)


def _glu(made: Lowering, a: Arguments, call: Call) -> Any:
    def gate(x: Value, dim: int) -> Value:
        half = x.shape[dim] // 2
        shape = (*x.shape[:dim], half, *x.shape[dim + 1 :])
        first, second = (
            made.emit("slice", [x], shape, dim=beside_batch(dim, x), start=at, stop=at + half, step=1)
            for at in (0, half)
        )
        return made.emit("mul", [first, made.emit("sigmoid", [second], shape)], shape)

    return along(a["self"], a["dim"], gate)


# -- arithmetic and comparisons --------------------------------------------------------------------------


def arithmetic(op: str, swapped: bool = False) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if a.get("rounding_mode") is not None:
            raise Refused("rounds")
        left, right = a["self"], a["other"]
        left, right = (right, left) if swapped else (left, right)
        if a.get("alpha", 1) != 1:
            right = times(made, right, a["alpha"])
        kind = call.node.meta["val"].dtype
        return combined(made, op, left, right, _common(left, right) if op in COMPARED else kind)

    return rule


def _common(*operands: Any) -> torch.dtype:
    """The dtype in which two operands are compared."""
    return torch.result_type(
        *(
            torch.empty((1,) * len(x.shape), dtype=x.dtype)
            if isinstance(x, Value)
            else x.tensor
            if is_constant(x)
            else x
            for x in operands
        )
    )


def combined(made: Lowering, op: str, left: Any, right: Any, read: torch.dtype) -> Value:
    """Return ``left op right``, of which one is a value, computed in dtype ``read``."""
    left, right = (made.cast(x, read) if isinstance(x, Value) else x for x in (left, right))
    turned = next((x for x in (left, right) if isinstance(x, Turned)), None)
    if turned is not None:
        left, right = (_lying_as(turned, x) for x in (left, right))
        return turned.of(combined(made, op, left, right, read))
    like = next(x for x in (left, right) if isinstance(x, Value))
    left, right = (made.by_example(x, like) if is_constant(x) else x for x in (left, right))
    constant = right if isinstance(left, Value) else left
    kind = torch.bool if op in COMPARED else read
    settings: Arguments = {"reversed": constant is left}
    if is_constant(constant) and constant.tensor.numel() == 1 and constant.tensor.dim() <= len(like.shape):
        constant = constant.tensor.item()
    if isinstance(constant, (int, float)):
        if not math.isfinite(constant):
            raise Refused("has a number that is not finite")
        settings["scalar"] = float(constant) if read.is_floating_point else int(constant)
        return made.emit(op, [like], like.shape, kind, **settings)
    if is_constant(constant) and read.is_floating_point:
        form = constant.tensor.shape
        if len(form) > len(like.shape) or (len(form) == len(like.shape) and form[0] != 1):
            raise Refused("broadcasts a constant over the batch")
        settings["tensor"] = made.tensor(constant)
        return made.emit(op, [like], torch.broadcast_shapes(like.shape, form), kind, **settings)
    values = [made.cast(made.among(x, like), read) for x in (left, right)]
    return made.emit(op, values, torch.broadcast_shapes(*(x.shape for x in values)), kind)


def _lying_as(turned: Turned, operand: Any) -> Any:
    """Return an operand as it is beside the source of a value whose batch is not in front."""
    if isinstance(operand, Value):
        if getattr(operand, "groups", None) != turned.groups:
            raise Refused("combines values whose batches lie otherwise")
        return operand.source  # type: ignore[attr-defined]
    if not is_constant(operand) or operand.tensor.numel() == 1:
        return operand
    if any(len(group) > 1 for group in turned.groups):
        raise Refused("moves the batch")
    order = sorted(range(len(turned.groups)), key=lambda at: turned.groups[at][0])
    return Constant(f"{operand.name}.turned", _in_order(operand.tensor, order))


def _in_order(tensor: Tensor, order: list[int]) -> Tensor:
    lacking = len(order) - tensor.dim()
    return tensor.reshape(*[1] * lacking, *tensor.shape).permute(order)


def times(made: Lowering, value: Any, factor: float) -> Any:
    if is_constant(value):
        return Constant(f"{value.name}.scaled", value.tensor * factor)
    if not isinstance(value, Value):
        return value * factor
    return combined(made, "mul", value, factor, value.dtype)


def _with_scalar(op: str, number: float, reversed: bool) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        pair = (number, a["self"]) if reversed else (a["self"], number)
        return combined(made, op, *pair, call.node.meta["val"].dtype)

    return rule


# -- choices -------------------------------------------------------------------------------------------


def _where(made: Lowering, a: Arguments, call: Call) -> Any:
    return _chosen(made, a["condition"], a["self"], a["other"], call)


def _masked_fill(made: Lowering, a: Arguments, call: Call) -> Any:
    return _chosen(made, a["mask"], a["value"], a["self"], call)


def _chosen(made: Lowering, condition: Any, yes: Any, no: Any, call: Call) -> Any:
    kind, dims = call.node.meta["val"].dtype, len(call.shape or ())
    like = next((x for x in (condition, yes, no) if isinstance(x, Value) and len(x.shape) == dims), None)
    if like is None:
        raise Refused("broadcasts tensors of different numbers of dims, batches included")
    values = [made.among(x, like) for x in (condition, yes, no)]
    values = [values[0], *(made.cast(x, kind) for x in values[1:])]
    return made.emit("where", values, torch.broadcast_shapes(*(x.shape for x in values)), kind)


def _logical(op: str) -> Rule:
    def rule(made: Lowering, a: Arguments, call: Call) -> Any:
        if call.node.meta["val"].dtype != torch.bool:
            raise Refused("works on the bits of numbers")
        pair = (a["self"], a["other"])
        like = max((x for x in pair if isinstance(x, Value)), key=lambda x: len(x.shape))
        values = [made.cast(made.among(x, like), torch.bool) for x in pair]
        return made.emit(op, values, torch.broadcast_shapes(*(x.shape for x in values)), torch.bool)

    return rule


def _cumsum(made: Lowering, a: Arguments, call: Call) -> Any:
    kind = call.node.meta["val"].dtype
    x = made.cast(a["self"], kind)
    return made.emit("cumsum", [x], x.shape, kind, dim=beside_batch(a["dim"], x))


_ATEN = torch.ops.aten
_ACTIVATIONS = (  # those that have the names and settings of the program's
    *(_ATEN.relu, _ATEN.elu, _ATEN.silu, _ATEN.sigmoid, _ATEN.tanh),
    *(_ATEN.hardswish, _ATEN.hardsigmoid, _ATEN.softplus),
)
_OF_TWO = (
    *(_ATEN.add, _ATEN.sub, _ATEN.mul, _ATEN.div, _ATEN.maximum, _ATEN.minimum),
    *(_ATEN.eq, _ATEN.ne, _ATEN.lt, _ATEN.gt, _ATEN.le, _ATEN.ge),
)
ELEMENTWISE: dict[Any, Rule] = {
    **{op: _activation(op.__name__) for op in _ACTIVATIONS},
    _ATEN.relu6: _activation("clamp", low=0.0, high=6.0),
    _ATEN.hardtanh: _activation("clamp", low="min_val", high="max_val"),
    _ATEN.clamp: _activation("clamp", low="min", high="max"),
    _ATEN.clamp_min: _activation("clamp", low="min", high=math.inf),
    _ATEN.clamp_max: _activation("clamp", low=-math.inf, high="max"),
    _ATEN.leaky_relu: _activation("leaky_relu", slope="negative_slope"),
    _ATEN.gelu: _gelu,
    **dict.fromkeys((_ATEN.prelu, _ATEN._prelu_kernel), _prelu),
    _ATEN.selu: _selu,
    _ATEN.mish: _mish,
    _ATEN.glu: _glu,
    **{op: _of_one(op.__name__) for op in (_ATEN.exp, _ATEN.log, _ATEN.abs, _ATEN.sin, _ATEN.cos)},
    **{op: arithmetic(op.__name__) for op in _OF_TWO},
    _ATEN.pow: _power(),
    _ATEN.square: _power(2.0),
    _ATEN.sqrt: _power(0.5),
    _ATEN.rsqrt: _power(-0.5),
    _ATEN.multiply: arithmetic("mul"),
    _ATEN.subtract: arithmetic("sub"),
    _ATEN.divide: arithmetic("div"),
    _ATEN.rsub: arithmetic("sub", swapped=True),
    _ATEN.reciprocal: _with_scalar("div", 1.0, reversed=True),
    _ATEN.neg: _with_scalar("mul", -1.0, reversed=False),
    _ATEN.where: _where,
    _ATEN.masked_fill: _masked_fill,
    **dict.fromkeys((_ATEN.logical_not, _ATEN.bitwise_not), _of_one("not")),
    **dict.fromkeys((_ATEN.logical_and, _ATEN.bitwise_and, _ATEN.__and__), _logical("and")),
    **dict.fromkeys((_ATEN.logical_or, _ATEN.bitwise_or, _ATEN.__or__), _logical("or")),
    **dict.fromkeys((_ATEN.logical_xor, _ATEN.bitwise_xor, _ATEN.__xor__), _logical("xor")),
    _ATEN.cumsum: _cumsum,
}
