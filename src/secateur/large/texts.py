"""Text as what a language model of a folder is called on: its own tokens, in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import DataError, MissingExtraError, ModelError
from secateur.factories import need
from secateur.large.ranks import Ranks
from secateur.numeric import is_whole
from secateur.pretrained.inputs import inputs_of
from secateur.text import first_line

_AT_ONCE = 2048  # tokens that run together
_MOST = 64 << 20  # bytes of a text that are read
Batches = list[dict[str, Any]]


def tokens_of(text: str | Path | Tensor, folder: Path, *, remote_code: bool = False) -> Tensor:
    """Return the tokens of a text, one dim, or windows of them, two: those of a .npy file or a tensor as they
    are, those of a text file by the folder's tokenizer."""
    if isinstance(text, Tensor):
        return _checked(text, "text")
    file = Path(text)
    if not file.is_file():
        raise DataError(f"text {str(text)!r:.200}: no such file; one of text, or a .npy of token numbers")
    if file.suffix == ".npy":
        try:
            return _checked(torch.from_numpy(np.load(file, allow_pickle=False).astype(np.int64)), str(file))
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{file}: cannot be read: {first_line(error)}") from error
    with file.open("rb") as opened:
        content = opened.read(_MOST).decode("utf-8", errors="ignore")
    kinds = need("transformers", extra="transformers")
    try:
        options = {"local_files_only": True, "trust_remote_code": remote_code}
        tokenizer = kinds.AutoTokenizer.from_pretrained(str(folder), **options)
    except MissingExtraError:
        raise
    except Exception as error:  # whatever a tokenizer's files make transformers raise
        raise DataError(
            f"{folder}: holds no tokenizer that opens ({first_line(error):.120}); give its tokens "
            "themselves, as a .npy of numbers (sequences, length)"
        ) from error
    return torch.tensor(tokenizer(content, add_special_tokens=False)["input_ids"], dtype=torch.int64)


def _checked(tokens: Tensor, what: str) -> Tensor:
    if tokens.dim() not in (1, 2) or tokens.is_floating_point() or not tokens.numel():
        raise DataError(
            f"{what}: is {tuple(tokens.shape)} of {tokens.dtype}; whole numbers (sequences, length) are right"
        )
    return tokens.long()


def drawn(tokens: Tensor, sequences: int, length: int, seed: int) -> Tensor:
    """Return windows (``sequences``, ``length``) from places in the text that ``seed`` draws; of a tensor of
    windows the first ones."""
    for name, value in (("sequences", sequences), ("length", length)):
        if not is_whole(value) or value < 1:
            raise DataError(f"{name} is {value!r}; it counts from 1")
    if tokens.dim() == 2:
        return tokens[:sequences, :length]
    if len(tokens) <= length:
        raise DataError(f"the text has {len(tokens)} tokens; windows of {length} need more")
    random = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - length, (sequences,), generator=random)
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])


def windows(tokens: Tensor, length: int) -> Tensor:
    """Return all of a text in windows (number, ``length``), one after the other; the rest is left out."""
    if tokens.dim() == 2:
        return tokens[:, :length]
    if len(tokens) < length:
        raise DataError(f"the text has {len(tokens)} tokens; one window of {length} needs more")
    return tokens[: len(tokens) // length * length].view(-1, length)


def batches_of(model: Any, tokens: Tensor) -> Batches:
    """Return windows as a model is called on them, a few at a time; what is read and what is written is a
    half each where it has an encoder and a decoder."""
    most = model.config.get_text_config().vocab_size
    if model.main_input_name != "input_ids":
        raise ModelError(
            f"{type(model).__name__} reads {model.main_input_name}, not tokens; give batches of arguments by "
            "name"
        )
    if int(tokens.max()) >= most or int(tokens.min()) < 0:
        raise DataError(f"the text has token {int(tokens.max())}, and the model knows {most}")
    at_once = max(1, _AT_ONCE // tokens.shape[1])
    return [_named(model, part) for part in tokens.split(at_once)]


def _named(model: Any, tokens: Tensor) -> dict[str, Any]:
    if getattr(model.config, "is_encoder_decoder", False):
        half = tokens.shape[1] // 2
        return {"input_ids": tokens[:, :half], "decoder_input_ids": tokens[:, half:]}
    return {"input_ids": tokens}


def context_of(model: Any, wanted: int) -> int:
    """Return ``wanted``, or what the model can read where that is less."""
    config = model.config.get_text_config()
    longest: list[Any] = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    return min([wanted, *(size for size in longest if is_whole(size) and size > 0)])


def calls_on(
    model: Any,
    text: str | Path | Tensor | Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    sequences: int,
    length: int,
    seed: int,
    remote_code: bool = False,
    ranks: Ranks,
) -> tuple[Batches, dict[str, Any]]:
    """Return the batches of a text that the model is shown on this rank, and a short example of such a call,
    the same on all."""
    if isinstance(text, (str, Path, Tensor)):
        tokens = tokens_of(text, folder, remote_code=remote_code)
        chosen = drawn(tokens, sequences, context_of(model, length), seed)
        _check_enough(len(chosen), ranks, "sequences")
        return batches_of(model, chosen[ranks.rank :: ranks.number]), inputs_of(model)
    batches = [dict(batch) for batch in text] if isinstance(text, Sequence) else []
    if not batches:
        raise DataError("text is the name of a file, a tensor of tokens, or a list of arguments by name")
    _check_enough(len(batches), ranks, "batches")
    return batches[ranks.rank :: ranks.number], batches[0]


def _check_enough(number: int, ranks: Ranks, what: str) -> None:
    if number < ranks.number:
        raise DataError(f"the text has {number} {what} for {ranks.number} processes; each reads at least one")
