"""Tables of operator names: what only moves data, what leaves it as it is, what is pointwise."""

from __future__ import annotations


def names(text: str) -> list[str]:
    """Return the words of a table of operator names."""
    return text.split()


MOVES = frozenset(
    names(
        """
        view reshape _unsafe_view _reshape_alias permute transpose t mT adjoint numpy_T expand
        expand_as repeat repeat_interleave slice select split split_with_sizes chunk tensor_split
        hsplit vsplit unsafe_split unsafe_chunk unbind unflatten flatten squeeze unsqueeze roll flip
        fliplr flipud pad constant_pad_nd zero_pad2d reflection_pad1d reflection_pad2d
        replication_pad1d replication_pad2d reflect_pad unfold im2col pixel_shuffle pixel_unshuffle
        channel_shuffle native_channel_shuffle index index_select narrow movedim moveaxis swapaxes
        swapdims tile rot90 diagonal view_as reshape_as take_along_dim unsafe_split_with_sizes
        split_copy squeeze_copy
        """
    )
)
SAME = frozenset(
    names(
        """
        contiguous clone alias detach to _to_copy type_as dropout dropout_ feature_dropout
        alpha_dropout feature_alpha_dropout lift_fresh_copy lift_fresh detach_ float double half
        bfloat16 requires_grad_ cpu cuda resolve_conj resolve_neg native_dropout view_dtype
        """
    )
)
POINTWISE = frozenset(
    names(
        """
        relu relu6 gelu silu mish selu elu celu hardswish hardsigmoid hardtanh leaky_relu softplus
        tanh sigmoid log_sigmoid logsigmoid where masked_fill clamp clamp_min clamp_max lerp addcmul
        addcdiv threshold rsub square softshrink hardshrink tanhshrink softsign pow sub add mul div
        true_divide floor_divide remainder maximum minimum logical_and logical_or logical_not
        logical_xor __and__ __or__ eq ne lt gt le ge rrelu bitwise_and bitwise_or bitwise_not isnan
        isinf nan_to_num abs neg exp log sqrt rsqrt erf sin cos
        """
    )
)
