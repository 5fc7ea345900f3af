"""Two thin layers in the place of one: the truncated singular value decomposition of its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.errors import BudgetError, ModelError, TargetError
from secateur.graph.names import canonical_modules, unwrapped
from secateur.numeric import is_whole
from secateur.pruning.budgets import check_value
from secateur.pruning.targets import find_targets
from secateur.running import run_once
from secateur.structure.layers import LayerView, layer_view
from secateur.structure.replaced.two_layers import TwoLayers, can_be_two, two_layers
from secateur.text import first_line


@dataclass(frozen=True)
class LowRank:
    """What ``low_rank`` replaced; printed it is a line a layer.

    Attributes:
        ranks: by the name of a layer that became two, its rank. ``secateur.save`` and ``load`` know of them;
            ``low_rank(fresh, x, ranks=...)`` gives a fresh network these shapes, to load a state dict into.
        errors: by the same name, the part of the weight's squares that is lost, from 0 to 1.
        kept: the layers that stayed one, and why.
        parameters: before and after.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> small, done = sc.low_rank(net, torch.ones(1, 64), share=0.5)
        >>> done.ranks, done.parameters
        ({'0': 16, '2': 1}, (4420, 2184))
    """

    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    kept: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)

    def __repr__(self) -> str:
        lines = [f"{name}: rank {rank}, {self.errors[name]:.2%} lost" for name, rank in self.ranks.items()]
        before, after = self.parameters
        lines += [f"kept {name}: {why}" for name, why in self.kept.items()]
        return "\n".join([*lines, f"{before:,} -> {after:,} parameters"])


def low_rank(
    model: nn.Module,
    example_inputs: Any,
    *,
    energy: float | None = None,
    share: float | None = None,
    ranks: Mapping[str, int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> tuple[nn.Module, LowRank]:
    """Return a copy of the network in which two layers stand for one wherever that is fewer multiply-adds,
    and what was done. A layer W becomes a layer V to r channels, of W's own kernel, and a 1 x 1 layer U back,
    with U V the best approximation of W of rank r.

    Args:
        model: the network; it is not changed.
        example_inputs: what it is called on, once, to see that its forward bears it.
        energy: each layer keeps at least this share of its squared singular values, over 0 and up to 1.
        share: each layer has at most this share of its weights left, over 0 and under 1, and rank 1 at least.
        ranks: or the ranks themselves, by the names of layers.
        kwargs: arguments by name beside ``example_inputs``.
        include: name patterns of layers or weights, as in ``secateur.prune``.
        exclude: name patterns of those left out.

    Returns:
        The network, and the record.

    Raises:
        BudgetError: for none or several of ``energy``, ``share`` and ``ranks``, or an impossible one.
        TargetError: for a name in ``ranks`` that is no layer which can be factored.
        ModelError: where the forward needs a layer as it was.

    Source:
        Denton et al., "Exploiting Linear Structure Within Convolutional Networks" (NeurIPS 2014); Zhang et
        al., "Accelerating Very Deep Convolutional Networks" (2015).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        >>> with torch.no_grad():  # of rank 2
        ...     _ = net[0].weight.copy_(torch.randn(32, 2) @ torch.randn(2, 32))
        >>> x = torch.randn(8, 32)
        >>> small, done = sc.low_rank(net, x, energy=0.9999)
        >>> done.ranks["0"], torch.allclose(small(x), net(x), rtol=1e-3, atol=1e-3)
        (2, True)
    """
    choices = {"energy": energy, "share": share, "ranks": ranks}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        raise BudgetError(f"give one of energy, share and ranks; got {', '.join(given) or 'none'}")
    for name, value in (("energy", energy), ("share", share)):
        if value is not None:
            check_value(name, value)
            if not 0 < value <= 1 or (name == "share" and value == 1):
                raise BudgetError(f"{name} is {value!r}; it is a share over 0, and under 1 of the weights")
    model = unwrapped(model)
    small, done = _factored(model, energy, share, ranks, include, exclude)
    try:
        run_once(small, example_inputs, kwargs=kwargs)
    except ModelError as error:
        raise ModelError(
            f"{type(model).__name__} does not run with two layers in the place of one ({first_line(error)}); "
            "leave out with exclude= the layers whose weight its forward reads itself"
        ) from error
    return small, done


@torch.no_grad()
def _factored(
    model: nn.Module,
    energy: float | None,
    share: float | None,
    ranks: Mapping[str, int] | None,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> tuple[nn.Module, LowRank]:
    small = copied(model)
    layers, kept = _layers(small, include, exclude)
    if unknown := [name for name in ranks or () if name not in layers]:
        raise TargetError(f"ranks: {unknown[0]!r} is no layer that can be factored; {', '.join(layers)} can")
    chosen: dict[str, int] = {}
    errors: dict[str, float] = {}
    for name, (module, view) in layers.items():
        matrix = view.matrix(module.weight)
        if ranks is None or name in ranks:
            left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
            rank = _rank(values, matrix, energy, share) if ranks is None else ranks[name]
            if not (is_whole(rank) and 1 <= rank <= len(values)):
                raise BudgetError(f"ranks: {name} has {rank!r}; it is from 1 to {len(values)}")
            if ranks is None and rank * sum(matrix.shape) >= matrix.numel():
                kept[name] = f"rank {rank} of {len(values)} has no fewer multiply-adds"
                continue
            small.set_submodule(name, _two(module, left[:, :rank], values[:rank], right[:rank]))
            total = float(values.square().sum())
            chosen[name], errors[name] = rank, float(values[rank:].square().sum()) / total if total else 0.0
    sizes = [sum(p.numel() for p in network.parameters()) for network in (model, small)]
    return small, LowRank(chosen, errors, kept, (sizes[0], sizes[1]))


def _layers(
    model: nn.Module, include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> tuple[dict[str, tuple[Any, LayerView]], dict[str, str]]:
    """Return the layers that can be factored by name, and why others cannot."""
    targets = {target.module: name for name, target in find_targets(model, include, exclude).items()}
    uses = Counter(p for _, module in canonical_modules(model) for p in module._parameters.values())
    found: dict[str, tuple[Any, LayerView]] = {}
    kept: dict[str, str] = {}
    for name, module in canonical_modules(model):
        if module not in targets:
            continue
        view = layer_view(module)
        if view is not None and view.groups > 1:
            kept[name] = f"a convolution in {view.groups} groups"
        elif view is None or not (view.plain and can_be_two(module)):
            kept[name] = f"a {type(module).__name__} is not factored"
        elif uses[module._parameters["weight"]] > 1:
            kept[name] = "its weight is used elsewhere too"
        elif not name:
            kept["the network itself"] = "a single layer has no place for two"
        else:
            found[name] = module, view
    return found, kept


def _rank(values: Tensor, matrix: Tensor, energy: float | None, share: float | None) -> int:
    if share is not None:
        return max(1, int(share * matrix.numel() / sum(matrix.shape)))
    assert energy is not None
    sums = values.square().cumsum(0)
    return int((sums < energy * sums[-1] * (1 - 1e-12)).sum()) + 1


def _two(module: Any, left: Tensor, values: Tensor, right: Tensor) -> TwoLayers:
    """Return the two layers, the singular values shared out evenly among them."""
    made: Any = two_layers(module, len(values))
    first, last = made
    first.weight.copy_((values.sqrt()[:, None] * right).reshape(first.weight.shape))
    last.weight.copy_((left * values.sqrt()).reshape(last.weight.shape))
    if module.bias is not None:
        last.bias.copy_(module.bias)
    return made
