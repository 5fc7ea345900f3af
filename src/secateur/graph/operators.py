"""What each operator does with the entries of its operands: one table for whoever reads a graph.

A row says what kind of operator it is, where its weight stands, and whether a number that is the same
everywhere stays so. What an operator does to labels, to a program or to a mask is stated where that is
done, by the same keys. Users add rows with ``register_operator``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from secateur.errors import ModelError
from secateur.graph.calls import Call

Kind = Literal[
    "pointwise", "same", "moves", "affine", "norm", "pools", "reduces", "runs along", "joins", "other"
]


@dataclass(frozen=True)
class Operator:
    """One row.

    ``kind``: "pointwise" makes each entry from those at its place; "same" gives its operand back (in eval
    mode), "moves" its entries elsewhere; "affine" sums over an operand's channels with ``weight`` and adds
    ``bias``, both names of arguments; "norm" normalises, then scales and shifts by them; "pools" looks at
    ``spatial`` last dims; "reduces" and "runs along" work over or along ``dim``; "joins" puts tensors
    beside each other; "other" is none of these. ``keeps_constants``: a result is one number all over
    wherever its operand is, on inputs of every size. ``transposed``: an affine weight's first dim reads.
    ``like``: the operator whose rules serve for it. ``rule``: a user's rule for labels.
    """

    kind: Kind = "other"
    weight: str | None = None
    bias: str | None = None
    spatial: int = 0
    keeps_constants: bool = False
    transposed: bool = False
    like: Any = None
    rule: Callable[..., Any] | None = None


UNKNOWN = Operator()


def _rows(kind: Kind, names: str, **more: Any) -> Iterator[tuple[str, Operator]]:
    return ((name, Operator(kind, **more)) for name in names.split())


_PAIR = {"weight": "weight", "bias": "bias"}
# By the name in torch.ops.aten. In-place operators stand under their name without the last underscore.
ROWS: list[tuple[str, Operator]] = [
    *_rows(
        "pointwise",
        """
            relu relu6 gelu silu mish selu elu celu hardswish hardsigmoid hardtanh leaky_relu softplus tanh
            sigmoid log_sigmoid where masked_fill clamp clamp_min clamp_max lerp addcmul addcdiv threshold
            rsub square softshrink hardshrink pow sub add mul div true_divide floor_divide remainder maximum
            minimum logical_and logical_or logical_not logical_xor __and__ __or__ eq ne lt gt le ge rrelu
            bitwise_and bitwise_or bitwise_not isnan isinf nan_to_num abs neg exp log sqrt rsqrt erf sin cos
            prelu complex polar angle
            """,
        keeps_constants=True,
    ),
    *_rows(
        "same",
        """
            contiguous clone alias detach to _to_copy type_as dropout feature_dropout alpha_dropout
            feature_alpha_dropout lift_fresh_copy lift_fresh requires_grad_ cpu cuda resolve_conj resolve_neg
            native_dropout positive
            """,
        keeps_constants=True,
    ),
    *_rows(
        "moves",
        """
            view reshape _unsafe_view _reshape_alias permute transpose t mT adjoint numpy_T expand expand_as
            repeat repeat_interleave slice select split split_with_sizes chunk tensor_split hsplit vsplit
            unsafe_split unsafe_chunk unbind unflatten flatten ravel squeeze unsqueeze roll flip fliplr flipud
            reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d unfold pixel_shuffle
            pixel_unshuffle channel_shuffle native_channel_shuffle index index_select narrow movedim moveaxis
            swapaxes swapdims tile rot90 diagonal view_as reshape_as take_along_dim
            unsafe_split_with_sizes split_copy squeeze_copy
            """,
        keeps_constants=True,
    ),
    *_rows("moves", "pad constant_pad_nd im2col"),  # zeros of padding stand beside what was even
    *_rows("affine", "linear conv1d conv2d conv3d convolution", **_PAIR),
    *_rows("affine", "conv_transpose1d conv_transpose2d conv_transpose3d", transposed=True, **_PAIR),
    *_rows("affine", "embedding", weight="weight"),
    *_rows("affine", "addmm", weight="mat2", bias="self", transposed=True),
    *_rows("affine", "matmul", weight="other", transposed=True),
    *_rows("affine", "mm", weight="mat2", transposed=True),
    *_rows("norm", "batch_norm native_batch_norm _native_batch_norm_legit", **_PAIR, keeps_constants=True),
    *_rows("norm", "_native_batch_norm_legit_no_training", **_PAIR, keeps_constants=True),
    *_rows("norm", "layer_norm native_layer_norm group_norm instance_norm", **_PAIR),
    *_rows("norm", "rms_norm", weight="weight"),
    *(
        row
        for dims in (1, 2, 3)
        for row in (
            *_rows("pools", f"max_pool{dims}d adaptive_avg_pool{dims}d", spatial=dims, keeps_constants=True),
            *_rows("pools", f"adaptive_max_pool{dims}d", spatial=dims, keeps_constants=True),
            *_rows("pools", f"upsample_nearest{dims}d", spatial=dims, keeps_constants=True),
            *_rows("pools", f"avg_pool{dims}d", spatial=dims),
        )
    ),
    *_rows("pools", "max_unpool2d", spatial=2),
    *_rows("pools", "max_unpool3d", spatial=3),
    *_rows("pools", "max_pool2d_with_indices _adaptive_avg_pool2d", spatial=2, keeps_constants=True),
    *_rows("pools", "upsample_bilinear2d upsample_bicubic2d", spatial=2, keeps_constants=True),
    *_rows("pools", "_upsample_bicubic2d_aa _upsample_bilinear2d_aa", spatial=2),
    *_rows("pools", "upsample_linear1d", spatial=1, keeps_constants=True),
    *_rows("pools", "upsample_trilinear3d", spatial=3, keeps_constants=True),
    *_rows("reduces", "mean amax amin", keeps_constants=True),
    *_rows(
        "reduces",
        """
            sum linalg_vector_norm norm max min var std var_mean std_mean prod argmax argmin any all logsumexp
            median nanmedian nansum aminmax topk count_nonzero argsort multinomial kthvalue mode
            """,
    ),
    *_rows("runs along", "softmax _softmax log_softmax _log_softmax cumsum cumprod cummax cummin sort"),
    *_rows("joins", "cat concat concatenate stack", keeps_constants=True),
    *_rows("other", "glu", keeps_constants=True),
]
_REGISTERED: dict[Any, Operator] = {}


def register_operator(
    operator: Any,
    *,
    like: Any = None,
    kind: Kind | None = None,
    weight: str | None = None,
    bias: str | None = None,
    transposed: bool = False,
    rule: Callable[..., Any] | None = None,
) -> None:
    """Say what an operator of your own does, so that networks that call it can be pruned.

    What is not said is found out by trying it, or freezes the channels that it touches, and the structure
    says so.

    Args:
        operator: the operator, as in ``torch.ops.mylib.scaled_relu`` (all its overloads) or its name
            ``"mylib::scaled_relu"``.
        like: an operator of torch with arguments of the same names that does the same to channels, as in
            ``torch.ops.aten.linear``: its rules serve.
        kind: "pointwise" makes each entry from those at its place; "same" gives its operand back; "moves"
            puts its entries elsewhere; "affine" multiplies by the argument ``weight`` and adds ``bias``;
            "norm" normalises, then scales and shifts by them; "pools" looks at the last dims; "reduces" and
            "runs along" work over or along a dim; "joins" puts tensors beside each other; "other" is none of
            these.
        weight: name of the argument that holds an affine operator's matrix (outputs, inputs), or a norm's
            scale.
        bias: name of the argument that is added.
        transposed: the matrix is (inputs, outputs).
        rule: a function ``(walk, call, arguments)`` that returns the value of the call, as those in
            ``secateur.structure.rules`` do.

    Raises:
        ModelError: for what is no operator, or a row that says nothing or what cannot be.

    Example:
        >>> import torch, secateur as sc
        >>> torch.library.define("shop::product", "(Tensor x, Tensor weight) -> Tensor")
        >>> torch.library.impl(
        ...     "shop::product", "CompositeExplicitAutograd", lambda x, weight: x @ weight.T
        ... )
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first = torch.nn.Linear(8, 16)
        ...         self.weight = torch.nn.Parameter(torch.ones(4, 16))
        ...
        ...     def forward(self, x):
        ...         return torch.ops.shop.product(self.first(x).relu(), self.weight)
        >>> sc.trace(Net(), torch.ones(1, 8)).protected[0].reason
        'shop.product.default has no rule'
        >>> sc.register_operator("shop::product", kind="affine", weight="weight")
        >>> list(sc.trace(Net(), torch.ones(1, 8)).groups)
        ['first -> weight']
        >>> sc.forget_operator("shop::product")
    """
    found = _packet(operator)
    if like is kind is rule is None:
        raise ModelError(f"register_operator({found}): give like=, kind= or rule=")
    if kind is not None and kind not in get_args(Kind):
        raise ModelError(f"register_operator({found}): kind is {kind!r}; one of {', '.join(get_args(Kind))}")
    if rule is not None and not callable(rule):
        raise ModelError(f"register_operator({found}): rule is {rule!r}; it is a function")
    if kind in ("affine", "norm") and weight is None:
        raise ModelError(f"register_operator({found}): kind {kind!r} needs weight=, an argument's name")
    known = {
        argument.name
        for overload in found.overloads()
        for argument in getattr(found, overload)._schema.arguments
    }
    for name in (weight, bias):
        if name is not None and name not in known:
            raise ModelError(f"{found} has no argument {name!r}; it has {', '.join(sorted(known))}")
    model = None if like is None else _packet(like)
    if model is not None:
        _check_alike(found, model, known)
    base = UNKNOWN if model is None else operator_at(model)
    _REGISTERED[found] = Operator(
        kind or base.kind,
        weight or base.weight,
        bias or base.bias,
        base.spatial,
        base.keeps_constants or kind in ("pointwise", "same", "moves"),
        transposed or base.transposed,
        model,
        rule,
    )


def forget_operator(operator: Any) -> None:
    """Take back what ``register_operator`` was told of an operator.

    An operator that it was not told of is no error.

    Args:
        operator: the operator, or its name, as for ``register_operator``.

    Raises:
        ModelError: for what is no operator.

    Example:
        >>> import torch, secateur as sc
        >>> sc.register_operator("aten::erfinv", kind="pointwise")
        >>> sc.forget_operator(torch.ops.aten.erfinv)
    """
    _REGISTERED.pop(_packet(operator), None)


def _check_alike(found: Any, like: Any, known: set[str]) -> None:
    """Raise ModelError where an operator lacks tensors that the one it is to be like cannot do without."""
    missing = [
        [a.name for a in schema.arguments if _must_be_tensor(a) and a.name not in known]
        for schema in (getattr(like, overload)._schema for overload in like.overloads())
    ]
    if all(missing):
        raise ModelError(
            f"{found} has no argument {' and '.join(map(repr, missing[0]))}, which {like} has; it has "
            f"{', '.join(sorted(known))}"
        )


def _must_be_tensor(argument: Any) -> bool:
    return str(argument.type) in ("Tensor", "List[Tensor]") and not argument.has_default_value()


def _packet(operator: Any) -> Any:
    if isinstance(operator, str) and "::" in operator:
        namespace, _, name = operator.partition("::")
        named, operator = operator, getattr(getattr(torch.ops, namespace), name, None)
        if operator is None:
            raise ModelError(f"no operator {named} is defined; define it before it is registered")
    if isinstance(operator, torch.library.CustomOpDef):
        name = operator._qualname.replace("::", ".")
        raise ModelError(f"operator is what torch.library.custom_op returned; pass torch.ops.{name}")
    if isinstance(operator, torch._ops.OpOverload):
        operator = operator.overloadpacket
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        raise ModelError(
            f"operator is {operator!r}; it is one of torch.ops, like torch.ops.mylib.scaled_relu"
        )
    return operator


OPERATORS: dict[Any, Operator] = {
    getattr(torch.ops.aten, name): row for name, row in ROWS if hasattr(torch.ops.aten, name)
}


def plain(packet: Any) -> Any:
    """Return the operator whose rules serve for one: the one that it is said to be like, an in-place
    operator's twin, or itself."""
    row = _REGISTERED.get(packet)
    if row is not None:
        return packet if row.like is None else plain(row.like)
    if packet in OPERATORS or not isinstance(packet, torch._ops.OpOverloadPacket):
        return packet
    namespace, _, name = packet._qualified_op_name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return packet
    twin = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None)
    return packet if twin is None else plain(twin)


def operator_at(packet: Any) -> Operator:
    """Return the row of an operator, of its twin where it works in place; UNKNOWN where there is none."""
    if packet in _REGISTERED:
        return _REGISTERED[packet]
    twin = plain(packet)
    return _REGISTERED.get(twin) or OPERATORS.get(twin, UNKNOWN)


def operator_of(call: Call) -> Operator:
    """Return the row of a call's operator; torch's own word that one is pointwise is a row too."""
    row = operator_at(call.operator)
    if row is UNKNOWN and call.schema is not None and torch.Tag.pointwise in call.node.target.tags:  # type: ignore[union-attr]
        return _POINTWISE
    return row


_POINTWISE = Operator("pointwise", keeps_constants=True)
