"""What makes an image larger or smaller in a program."""

from __future__ import annotations

import numpy as np
import pytest
from programs import check, ops
from torch import nn
from torch.nn import functional as F

from secateur.runtime.operators import OPERATORS

SIZES = [{"scale_factor": 2}, {"size": 7}, {"scale_factor": 1.7}, {"size": 3}, {"scale_factor": 0.6}]
SIZES_2 = [{"scale_factor": 2}, {"size": (7, 3)}, {"scale_factor": (1.5, 0.6)}]
MODES = [("nearest", None), ("nearest-exact", None), ("linear", False), ("linear", True)]
MODES_2 = [("nearest", None), ("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)]
TRANSPOSED = [
    {},
    {"stride": 2},
    {"stride": 3, "padding": 1, "output_padding": 2},
    {"groups": 2, "dilation": 2},
    {"bias": False, "stride": 2, "padding": 1},
    {"stride": 2, "padding": 2, "dilation": 3, "output_padding": 1},
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("mode", "corners"), MODES)
def test_one_dim_resized(mode, corners, size):
    check(lambda m, x: F.interpolate(x, mode=mode, align_corners=corners, **size), 3, 5)


@pytest.mark.parametrize("size", SIZES_2, ids=str)
@pytest.mark.parametrize(("mode", "corners"), MODES_2)
def test_two_dims_resized(mode, corners, size):
    check(lambda m, x: F.interpolate(x, mode=mode, align_corners=corners, **size), 3, 5, 6)


def test_a_factor_for_the_sizes_alone():
    """Sizes of 7.5 are 7, and what is taken from where goes by 1.5 or by 7 / 5."""
    for again in (True, False):
        resize = nn.Upsample(scale_factor=1.5, mode="bilinear", recompute_scale_factor=again)
        check(lambda m, x: m.u(x), 2, 5, 5, u=resize)


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolutions(options):
    check(lambda m, x: m.c(x).relu(), 4, 5, 6, c=nn.ConvTranspose2d(4, 6, (3, 2), **options))
    check(lambda m, x: m.c(x), 4, 5, c=nn.ConvTranspose1d(4, 6, 3, **options))


def test_an_empty_batch_of_a_transposed_convolution():
    node = {"kernel": [2], "stride": [2], "padding": [0], "dilation": [1], "groups": 1, "bias": None}
    node |= {"op": "conv_transpose", "weight": "w", "shape": [4, 6]}
    weights = {"w": np.ones((2, 4, 2), np.float32)}
    found = OPERATORS["conv_transpose"](node, [np.zeros((0, 2, 3), np.float32)], weights)
    assert found.shape == (0, 4, 6)


def test_adaptive_pools_of_any_size():
    assert ops(check(lambda m, x: F.adaptive_avg_pool2d(x, (3, 2)), 3, 9, 4)) == ["avg_pool"]
    for size in ((3, 4), (7, 4), (9, 2)):
        check(lambda m, x, size=size: F.adaptive_avg_pool2d(x, size), 3, 7, 9)
        check(lambda m, x, size=size: F.adaptive_max_pool2d(x, size), 3, 7, 9)
    check(lambda m, x: F.adaptive_avg_pool1d(x, 4), 3, 7)
    check(lambda m, x: F.adaptive_max_pool1d(x, 4), 3, 7)


def test_pixels_and_channels():
    check(lambda m, x: F.pixel_shuffle(x, 2), 8, 3, 4)
    check(lambda m, x: F.pixel_unshuffle(x, 2), 3, 4, 6)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_edges_that_repeat_what_is_there(mode):
    check(lambda m, x: F.pad(x, (1, 2, 2, 1), mode=mode), 3, 4, 6)
    check(lambda m, x: F.pad(x, (2, 0), mode=mode), 3, 6)
    check(lambda m, x: m.c(x), 3, 6, 7, c=nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode))


def test_pads_that_cut():
    check(lambda m, x: F.pad(x, (-1, 2)), 3, 6)
    check(lambda m, x: F.pad(x, (1, -2, -1, 0), value=3.0), 3, 6, 5)
