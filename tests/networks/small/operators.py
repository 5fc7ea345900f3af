"""Operators that treat channels one by one, each between two convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..zoo import Network, floats

_IMAGE = floats((2, 3, 12, 10))


class Between(nn.Module):
    """Two convolutions with an operator between them; a module is called on what lies there."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 18, 3, padding=1), nn.Conv2d(18, 14, 3, padding=1)
        self.operator, self.last = operator, nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.operator(self.first(x))).relu().mean((2, 3)))


def _unpooled(h: Tensor) -> Tensor:
    small, at = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(small * 2, at, 2)


def _warped(h: Tensor) -> Tensor:
    turn = torch.tensor([[0.9, 0.2, 0.1], [-0.2, 0.9, 0.0]], dtype=h.dtype).expand(len(h), 2, 3)
    return F.grid_sample(h, F.affine_grid(turn, (len(h), 1, 9, 8), align_corners=False), align_corners=False)


def _folded(h: Tensor) -> Tensor:
    columns = F.unfold(h, 3, padding=1)
    return F.fold(columns, h.shape[2:], 3, padding=1)


def _spectrum(h: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(h) * 0.5, s=h.shape[2:])


def _scattered(h: Tensor) -> Tensor:
    order = h.argsort(3)
    return torch.zeros_like(h).scatter(3, order, h)


def _buckets(h: Tensor) -> Tensor:
    return torch.bucketize(h, torch.linspace(-1, 1, 5, dtype=h.dtype)).to(h)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's: divided by the mean over channels of what each holds."""

    def __init__(self, width: int = 18) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, width, 1, 1))
        self.beta = nn.Parameter(torch.rand(1, width, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        size = h.norm(p=2, dim=(2, 3), keepdim=True)
        return h + self.gamma * (h * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta


OPERATORS_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {
    # activations
    **{
        name: getattr(F, name)
        for name in (
            "relu",
            "relu6",
            "gelu",
            "silu",
            "mish",
            "selu",
            "elu",
            "celu",
            "hardswish",
            "hardsigmoid",
            "hardtanh",
            "leaky_relu",
            "softplus",
            "tanh",
            "sigmoid",
            "logsigmoid",
            "softshrink",
            "hardshrink",
            "tanhshrink",
            "softsign",
        )
    },
    "prelu": nn.PReLU(18),
    "threshold": lambda h: F.threshold(h, 0.1, 0.0),
    "rrelu": lambda h: F.rrelu(h),
    # pointwise mathematics
    **{
        name: getattr(torch, name)
        for name in (
            "sin",
            "cos",
            "tan",
            "atan",
            "sinh",
            "asinh",
            "erf",
            "erfc",
            "expm1",
            "exp",
            "exp2",
            "floor",
            "ceil",
            "round",
            "trunc",
            "frac",
            "sign",
            "abs",
            "square",
            "sinc",
            "deg2rad",
            "nan_to_num",
        )
    },
    "log1p": lambda h: torch.log1p(h.abs()),
    "logit": lambda h: torch.logit(h.sigmoid(), eps=1e-3),
    "rsqrt": lambda h: torch.rsqrt(h.abs() + 1),
    "reciprocal": lambda h: torch.reciprocal(h.abs() + 1),
    "clamp": lambda h: h.clamp(-0.5, 0.5),
    "lerp": lambda h: torch.lerp(h, h.relu(), 0.3),
    "addcmul": lambda h: torch.addcmul(h, h, h, value=0.1),
    "where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0.0),
    "heaviside": lambda h: torch.heaviside(h, torch.zeros((), dtype=h.dtype)),
    "hypot": lambda h: torch.hypot(h, h),
    "fmod": lambda h: torch.fmod(h, 0.5),
    "bucketize": _buckets,
    # norms
    "batch_norm": nn.BatchNorm2d(18),
    "instance_norm": nn.InstanceNorm2d(18, affine=True),
    "group_norm_one_channel_each": nn.GroupNorm(18, 18),
    "group_norm": nn.GroupNorm(3, 18),
    "local_response_norm": nn.LocalResponseNorm(3),
    "global_response_norm": GlobalResponseNorm(),
    "normalize_positions": lambda h: F.normalize(h, dim=3),
    "layer_norm_positions": nn.LayerNorm([12, 10]),
    "softmax_positions": lambda h: h.softmax(3),
    # pools
    "max_pool": lambda h: F.max_pool2d(h, 2),
    "avg_pool": lambda h: F.avg_pool2d(h, 3, 1, 1),
    "lp_pool": lambda h: F.lp_pool2d(h.relu() + 0.1, 2.0, 2),
    "adaptive_avg_pool": lambda h: F.adaptive_avg_pool2d(h, (3, 4)),
    "adaptive_max_pool": lambda h: F.adaptive_max_pool2d(h, 3),
    "fractional_max_pool": lambda h: F.fractional_max_pool2d(
        h, 2, output_size=(5, 5), _random_samples=torch.full((len(h), h.shape[1], 2), 0.3, dtype=h.dtype)
    ),
    "max_unpool": _unpooled,
    # pads, resizes, folds
    "zero_pad": lambda h: F.pad(h, (1, 2, 0, 1)),
    "constant_pad": lambda h: F.pad(h, (1, 1, 1, 1), value=0.5),
    "reflect_pad": lambda h: F.pad(h, (1, 1, 2, 2), mode="reflect"),
    "replicate_pad": lambda h: F.pad(h, (1, 1, 2, 2), mode="replicate"),
    "circular_pad": lambda h: F.pad(h, (1, 1, 2, 2), mode="circular"),
    "nearest": lambda h: F.interpolate(h, scale_factor=2),
    "nearest_exact": lambda h: F.interpolate(h, size=(7, 9), mode="nearest-exact"),
    "bilinear": lambda h: F.interpolate(h, size=(7, 9), mode="bilinear"),
    "bicubic": lambda h: F.interpolate(h, size=(7, 9), mode="bicubic", align_corners=True),
    "area": lambda h: F.interpolate(h, size=(6, 5), mode="area"),
    "antialias": lambda h: F.interpolate(h, size=(6, 5), mode="bilinear", antialias=True),
    "grid_sample": _warped,
    "fold": _folded,
    # moves
    "flip": lambda h: h.flip(3),
    "roll_positions": lambda h: h.roll(2, 2),
    "rot90": lambda h: h.rot90(1, (2, 3)),
    "transpose_positions": lambda h: h.mT,
    "tril": lambda h: h.tril(),
    "triu": lambda h: h.triu(1),
    "repeat_interleave": lambda h: h.repeat_interleave(2, 2),
    "tile": lambda h: h.tile((1, 1, 2, 1)),
    # sorts, cumulatives, reductions that stay
    "sort": lambda h: h.sort(3).values,
    "topk_positions": lambda h: h.topk(4, 3).values,
    "kthvalue": lambda h: h - h.kthvalue(2, 3, keepdim=True).values,
    "median_positions": lambda h: h - h.median(3, keepdim=True).values,
    "quantile": lambda h: h - h.quantile(0.3, 3, keepdim=True),
    "cumsum": lambda h: h.cumsum(3),
    "cumprod": lambda h: (h * 0.1 + 1).cumprod(3),
    "cummax": lambda h: h.cummax(3).values,
    "cummin": lambda h: h.cummin(2).values,
    "logcumsumexp": lambda h: h.logcumsumexp(3),
    "diff": lambda h: h.diff(dim=3),
    "logsumexp_positions": lambda h: h - h.logsumexp(3, keepdim=True),
    "std_positions": lambda h: h - h.std(3, keepdim=True),
    "amax_positions": lambda h: h - h.amax((2, 3), keepdim=True),
    "unfold_windows": lambda h: h.unfold(2, 3, 1).mean(-1),
    # indices and scatter
    "gather": lambda h: h.gather(3, h.argsort(3)),
    "scatter": _scattered,
    "index_select": lambda h: h.index_select(2, torch.tensor([3, 1, 0])),
    "index_add": lambda h: h.index_add(2, torch.tensor([0, 5]), h[:, :, 2:4]),
    "masked_scatter_rows": lambda h: h.index_copy(3, torch.tensor([2, 7]), h[..., :2]),
    "take_along_dim": lambda h: torch.take_along_dim(h, h.argsort(2), 2),
    "one_position": lambda h: h[:, :, 2:3, 4:5] + h,
    # Fourier and complex
    "rfft": _spectrum,
    "fft_magnitude": lambda h: torch.fft.fft2(h).abs(),
    "complex_product": lambda h: torch.view_as_real(torch.complex(h, h.relu()) * (1 + 2j))[..., 0],
    "stft_like_angle": lambda h: torch.complex(h + 2, h.relu()).angle(),
    # mapped over
    "vmap_channels": torch.vmap(torch.vmap(lambda plane: plane @ plane.T @ plane * 0.05)),
    "fake_quantize": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.02, 128, 0, 255),
    "checkpointed": lambda h: torch.utils.checkpoint.checkpoint(torch.sin, h, use_reentrant=False),
}

OPERATORS = tuple(
    Network(f"op_{name}", lambda operator=operator: Between(operator), _IMAGE)
    for name, operator in OPERATORS_BY_NAME.items()
)
