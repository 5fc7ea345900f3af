"""What a network of transformers is called on where nobody says: drawn by what its configuration tells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.errors import ModelError

_TOKENS = 12


def inputs_of(model: Any) -> dict[str, Tensor]:
    """Return inputs by name, the same for the same configuration."""
    random = torch.Generator().manual_seed(0)
    config = model.config
    text, vision = (getattr(config, name, None) for name in ("text_config", "vision_config"))
    found: dict[str, Tensor] = {}
    main = model.main_input_name
    if main in ("input_ids", "decoder_input_ids"):
        found[main] = _tokens(config.get_text_config(), random)
    if main == "pixel_values" or (text is not None and vision is not None):
        found["pixel_values"] = _pixels(vision or config, random)
    if main == "input_features":
        frames = 2 * config.max_source_positions
        found[main] = torch.randn(2, config.num_mel_bins, frames, generator=random)
    if main == "input_values":
        found[main] = torch.randn(2, 4000, generator=random)
    if found and getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = _tokens(config.get_text_config(decoder=True), random)
    if not found:
        raise ModelError(
            f"{type(model).__name__} reads {main!r}, which is not drawn here; give example_inputs, as "
            '{"' + str(main) + '": tensor}'
        )
    return found


def _tokens(config: Any, random: torch.Generator) -> Tensor:
    longest = getattr(config, "max_position_embeddings", None) or _TOKENS
    return torch.randint(config.vocab_size, (2, min(_TOKENS, longest)), generator=random)


def _pixels(config: Any, random: torch.Generator) -> Tensor:
    size = getattr(config, "image_size", 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(2, getattr(config, "num_channels", 3), height, width, generator=random)
