"""One image file to pixels, through Pillow, with its traps closed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.data.checks import reading
from secateur.errors import DataError
from secateur.factories import need

MAX_PIXELS = 2**26  # 8192 x 8192; a few kilobytes can claim far more
EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}

Array = np.ndarray[Any, Any]


def read_image(
    source: Path | bytes, shown: str, *, size: int | None = None, formats: Sequence[str] | None = None
) -> Array:
    """Decode an image, the first frame and upright, into uint8 (3, H, W), squeezed to ``size`` x ``size``.

    ``formats``: Pillow's names of those accepted (default: all that Pillow reads by itself). Raises
    DataError, naming ``shown``, for what is no image, is damaged, huge, or has over 8 bits a channel.
    """
    image_module = need("PIL.Image", "pillow")
    ops = need("PIL.ImageOps", "pillow")
    # A decoder given foreign bytes may raise anything at all.
    with reading(f"{shown}: not a whole image that Pillow can read", Exception):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, refused below, and of odd metadata
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with image_module.open(file, formats=formats or readable_formats()) as image:
                _check(image, shown)
                upright = ops.exif_transpose(image).convert("RGB")
        if size is not None and upright.size != (size, size):
            upright = upright.resize((size, size), image_module.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(upright, np.uint8).transpose(2, 0, 1))


def read_map(source: Path | bytes, shown: str, *, size: int) -> Array:
    """Decode a map of classes, grey or with a palette, into uint8 (size, size), each pixel the nearest one's
    number. Raises DataError as ``read_image`` does, and for colours."""
    image_module = need("PIL.Image", "pillow")
    with reading(f"{shown}: not a whole image that Pillow can read", Exception):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with image_module.open(file, formats=readable_formats()) as image:
                _check(image, shown)
                if image.mode not in ("L", "P", "1"):
                    raise DataError(
                        f"{shown}: pixels of mode {image.mode}; a class number each (L, P) is right"
                    )
                plain = image.convert("L") if image.mode == "1" else image.copy()
        if plain.size != (size, size):
            plain = plain.resize((size, size), image_module.Resampling.NEAREST)
        found = np.ascontiguousarray(np.asarray(plain, np.uint8))
        return found // 255 if image.mode == "1" else found


def readable_formats() -> list[str]:
    """Return the formats that Pillow decodes by itself: for EPS it would start Ghostscript."""
    image_module = need("PIL.Image", "pillow")
    image_module.init()
    return [name for name in image_module.ID if name != "EPS"]


def _check(image: Any, shown: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{shown}: {image.width} x {image.height} pixels; at most {MAX_PIXELS} are right")
    if image.mode not in EIGHT_BIT:
        raise DataError(f"{shown}: pixels of mode {image.mode}; 8 bits a channel are right")
