"""How well a folder's language model foretells a text, block by block, and how fast it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.large.mapped import Mapped, mapped
from secateur.large.texts import batches_of, context_of, tokens_of, windows
from secateur.large.walk import ACTIVATIONS, Walk
from secateur.pretrained.inputs import inputs_of
from secateur.pretrained.opening import from_pretrained
from secateur.storage import as_path
from secateur.text import table

Told = Callable[[int, int, str], None]
_DECODED = 16  # tokens


@dataclass(frozen=True)
class EvaluatedFolder:
    """What a folder's language model is worth on a text, and what it takes.

    Attributes:
        folder: where it lies.
        perplexity: by length of a context, that of the tokens after the first of each window.
        tokens: by length of a context how many were foretold.
        parameters: how many it has.
        zeros: how many of them are zero.
        bytes: of its files of weights.
        speed: tokens a second of "prompt" and of "decoding", on this machine; empty where it was not asked.

    Example:
        >>> import secateur as sc
        >>> from pathlib import Path
        >>> sc.EvaluatedFolder(Path("small"), {512: 7.25}, {512: 4088}, 1000, 500, 2000, {})
        folder  context  perplexity  tokens  parameters  sparsity  bytes
        small       512        7.25   4,088       1,000    50.00%  2,000
    """

    folder: Path
    perplexity: Mapping[int, float]
    tokens: Mapping[int, int]
    parameters: int
    zeros: int
    bytes: int
    speed: Mapping[str, float]

    def __repr__(self) -> str:
        rows = [("folder", "context", "perplexity", "tokens", "parameters", "sparsity", "bytes", *self.speed)]
        for context, value in self.perplexity.items():
            rows.append(
                (
                    self.folder.name,
                    str(context),
                    f"{value:.4g}" if value < 1e4 else f"{value:.2e}",
                    f"{self.tokens[context]:,}",
                    f"{self.parameters:,}",
                    f"{self.zeros / self.parameters:.2%}",
                    f"{self.bytes:,}",
                    *(f"{speed:.1f}" for speed in self.speed.values()),
                )
            )
        return "\n".join(table(rows, words=1))


@torch.no_grad()
def evaluate_folder(
    folder: str | Path,
    text: str | Path | Tensor,
    *,
    contexts: Sequence[int] = (512,),
    windows_read: int | None = None,
    speed: bool = False,
    trust_remote_code: bool = False,
    on_step: Told | None = None,
) -> EvaluatedFolder:
    """Measure the perplexity of a folder of transformers on a text, block by block: memory stays that of one
    block and the text's activations.

    The text is cut into windows, one after the other, and in each every token but the first is foretold from
    those before it. A network with an encoder reads the first half of a window and foretells the second.

    Args:
        folder: a folder of ``save_pretrained`` or ``prune_folder``.
        text: a file of text, which the folder's tokenizer reads, or of tokens (a .npy), or tokens themselves:
            the test split.
        contexts: lengths of the windows, in tokens; those that the model cannot read are cut to what it can.
        windows_read: how many windows are read, from the start; default all.
        speed: measure tokens a second too, for which the whole network is loaded.
        trust_remote_code: run the code that came with the folder, where its class is of that.
        on_step: called with (blocks done, blocks, what is done now).

    Returns:
        Perplexities and sizes.

    Raises:
        StorageError, ModelError: for a folder that cannot be opened.
        DataError: for a text that cannot be read.

    Example:
        >>> import tempfile, transformers, torch, secateur as sc
        >>> config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)
        >>> folder = tempfile.mkdtemp()
        >>> transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        >>> found = sc.evaluate_folder(folder, torch.randint(64, (8, 16)))
        >>> 50 < found.perplexity[16] < 80  # as good as chance, of 64
        True
    """
    path = as_path(folder)
    tell = on_step or (lambda done, number, what: None)
    tokens = tokens_of(text, path, remote_code=trust_remote_code)
    perplexities: dict[int, float] = {}
    numbers: dict[int, int] = {}
    with mapped(path, remote_code=trust_remote_code, plan=True) as opened:
        for context in contexts:
            length = context_of(opened.model, context if tokens.dim() == 1 else min(context, tokens.shape[1]))
            batches = batches_of(opened.model, windows(tokens, length)[:windows_read])
            perplexities[length], numbers[length] = perplexity(opened, batches, tell)
        whole = list(opened.stored.values())
        zeros = sum(t.numel() - int(t.count_nonzero()) for t in whole)
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        parameters = sum(p.numel() for p in opened.model.parameters())
    measured = _speed(path, tokens, min(perplexities)) if speed else {}
    return EvaluatedFolder(path, perplexities, numbers, parameters, zeros, size, measured)


def perplexity(opened: Mapped, batches: Sequence[dict[str, Any]], tell: Told) -> tuple[float, int]:
    """Return the perplexity of a folder's model on some batches, and how many tokens were foretold."""
    walk = Walk(opened, batches, inputs_of(opened.model), ACTIVATIONS)
    for number, path in enumerate(walk.blocks):
        tell(number, len(walk.blocks), path)
        walk.reach(path)
        walk.put(path, opened.block(path))
    total, count = 0.0, 0
    for batch, outputs in zip(batches, walk.outputs(), strict=True):
        logits = getattr(outputs, "logits", None)
        if logits is None:
            raise ModelError(f"{type(opened.model).__name__} gives no logits: it foretells no tokens")
        told = next(reversed(batch.values()))  # what is written, where there is an encoder
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), told[:, 1:].flatten(), reduction="sum")
        total, count = total + float(loss), count + told[:, 1:].numel()
    return math.exp(min(total / count, 700.0)), count


def _speed(folder: Path, tokens: Tensor, length: int) -> dict[str, float]:
    """Return tokens a second of one sequence, read at once and written one after the other."""
    model = from_pretrained(folder).float().eval()
    prompt = tokens.reshape(-1)[:length][None]
    if getattr(model.config, "is_encoder_decoder", False):
        return {}
    found: dict[str, list[float]] = {"prompt": [], "decoding": []}
    for _ in range(3):
        start = time.perf_counter()
        outputs = model(input_ids=prompt, use_cache=True)
        found["prompt"].append(prompt.numel() / (time.perf_counter() - start))
        past, start = outputs.past_key_values, time.perf_counter()
        following = outputs.logits[:, -1:].argmax(-1)
        for _ in range(_DECODED):
            outputs = model(input_ids=following, past_key_values=past, use_cache=True)
            following = outputs.logits[:, -1:].argmax(-1)
        found["decoding"].append(_DECODED / (time.perf_counter() - start))
    return {f"{name} tok/s": max(speeds) for name, speeds in found.items()}
