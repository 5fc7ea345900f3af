"""Parameters, non-zeros and bytes, dense and sparse."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, each shared one once."""
    return sum(p.numel() for p in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Return the number of parameters that are not zero, biases and norms counted as well."""
    return sum(int(torch.count_nonzero(p.detach())) for p in model.parameters())


def bytes_dense(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers as they are."""
    return sum(t.numel() * t.element_size() for t in _tensors(model))


def bytes_sparse(model: nn.Module) -> int:
    """Return the bytes with each tensor in the smallest of three forms, indices counted: dense;
    its non-zeros and one bit an entry; its non-zeros and, compressed by rows, a column index each.
    """
    return sum(tensor_bytes_sparse(t) for t in _tensors(model))


def tensor_bytes_sparse(tensor: Tensor) -> int:
    number, size = tensor.numel(), tensor.element_size()
    nonzero = int(torch.count_nonzero(tensor.detach()))
    dense = number * size
    if tensor.dim() < 2 or not number:
        return dense
    rows = tensor.shape[0]
    columns = number // rows
    index = 2 if columns <= 1 << 16 else 4
    bitmask = nonzero * size + -(-number // 8)
    by_rows = nonzero * (size + index) + 4 * (rows + 1)
    return min(dense, bitmask, by_rows)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
