"""Sizes that a network states of itself and does not read when it runs: those by which timm uses it on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.structure.runs import Run

_FEATURES = ("num_features", "head_hidden_size")


def restate(model: nn.Module, small: nn.Module, run: Run) -> list[str]:
    """Set in ``small`` what networks of timm say of their widths (``feature_info``, ``num_features``,
    ``head_hidden_size``), so that ``reset_classifier`` and ``features_only`` fit it; return what changed."""
    rows = rows_of(small)
    if not rows:
        return []
    paths = {str(row.get("module")) for row in rows}
    before, after = _widths(copied(model), run, paths), _widths(copied(small), run, paths)
    heads = _head(model), _head(small)
    changes, last = [], dict[int, int]()
    for number, row in enumerate(rows):
        path, old = str(row.get("module")), row["num_chs"]
        axis = next((n for n, size in enumerate(before.get(path, ())) if n and size == old), None)
        new = old if axis is None else after[path][axis]
        last = {old: new}
        if new != old:
            row["num_chs"] = new
            changes.append(f"feature_info[{number}]: {old} -> {new}")
    news = last | {heads[0]: heads[1]}
    for name in _FEATURES:
        old = getattr(small, name, None)
        new = news.get(old, old) if type(old) is int else old
        if new != old:
            setattr(small, name, new)
            changes.append(f"{name}: {old} -> {new}")
    return changes


def rows_of(model: nn.Module) -> list[dict[str, Any]]:
    """Return what a network of timm says of its features, a dict of each; nothing of any other network."""
    said: Any = getattr(model, "feature_info", None)
    rows = getattr(said, "info", said)
    good = isinstance(rows, list) and all(isinstance(row, dict) and "num_chs" in row for row in rows)
    return rows if good else []  # type: ignore[return-value]


def _widths(work: nn.Module, run: Run, paths: set[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that modules put out when a copy runs."""
    found: dict[str, tuple[int, ...]] = {}
    for path, module in work.named_modules():
        if path in paths and path:

            def seen(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
                if isinstance(output, Tensor):
                    found[path] = tuple(output.shape)

            module.register_forward_hook(seen)
    with torch.no_grad():
        run.on(work)
    return found


def _head(model: nn.Module) -> int | None:
    """Return how many features the classifier reads."""
    get: Any = getattr(model, "get_classifier", None)
    head = get() if callable(get) else None
    return getattr(head, "in_features", getattr(head, "in_channels", None))
