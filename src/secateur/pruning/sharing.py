"""Weight sharing: the surviving weights of a tensor take a few values, which are then trained.

Han, Mao & Dally, "Deep Compression" (ICLR 2016), section 3: k-means over the weights of each tensor,
started from values evenly spaced between the smallest and the largest weight ("linear"), then gradient
descent on the shared values, the gradient of each being the sum over the weights that share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, MaskError, TargetError
from secateur.pruning.holding import (
    Level,
    Optimizers,
    around_steps,
    bound,
    check_updates,
    innermost,
    owned,
    require_finite,
)
from secateur.pruning.masks import Masks
from secateur.pruning.targets import find_targets
from secateur.shards import refuse_sharded
from secateur.structure.surgery import Removed, sliced
from secateur.text import table

_ROUNDS = 1000
_FINITE = "shared values are finite"


class Sharing:
    """Which weights of a model share a value.

    Made by ``share_weights``; train the values under ``held``, and store them by ``secateur.pack``.

    Args:
        model: the network.
        clusters: by canonical name an int16 tensor of the weight's shape with the number of the value, -1
            where the weight is zero and stays so.

    Raises:
        MaskError: for a sharing that does not fit the model.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> net.weight.data = torch.tensor([[1.0, 3.0, -5.0, 0.0]])
        >>> sharing = sc.share_weights(net, values=2)
        >>> sharing.clusters["weight"]
        tensor([[ 1,  1,  0, -1]], dtype=torch.int16)
        >>> sharing.codebooks["weight"], net.weight.data
        (tensor([-5.,  2.]), tensor([[ 2.,  2., -5.,  0.]]))
    """

    def __init__(self, model: nn.Module, clusters: Mapping[str, Tensor]) -> None:
        self.model = model
        self.clusters = dict(clusters)
        bound(model, self.clusters, "sharing")

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """The shared values of each tensor, as they are now."""
        return {m.name: m.means().to(m.weight.dtype) for m in self._members(self.model)}

    def __repr__(self) -> str:
        rows = [("tensor", "shape", "weights", "not zero", "values")]
        for name, cluster in self.clusters.items():
            shape = "x".join(map(str, cluster.shape))
            alive = int((cluster >= 0).sum())
            rows.append((name, shape, f"{cluster.numel():,}", f"{alive:,}", str(int(cluster.max()) + 1)))
        return "\n".join(table(rows, words=2))

    @contextmanager
    def held(self, optimizer: Optimizers) -> Iterator[Sharing]:
        """Train the shared values: whatever ``optimizer`` does inside the block, weights that share one stay
        equal, and zeros stay zero.

        Before a step each weight's gradient becomes the sum, not the mean, over the weights of its value: the
        gradient of the loss by that value, so that SGD's step is the paper's. (Sums over thousands of weights
        want a learning rate as much smaller; Adam's step does not depend on it.) After a step each value is
        the mean over its weights, which an elementwise optimizer has left equal. Clipping before the step
        sees the gradients of single weights. Leaving the block checks that all this held. Weights that are
        not shared are trained as ever; with ``masks.held`` around it pruned ones among them stay zero.

        Args:
            optimizer: one or a list.

        Returns:
            A context manager that gives this sharing.

        Raises:
            MaskError: where the optimizer updates none of the shared weights, or something else wrote them.
            BudgetError: for LBFGS.
            NonFiniteError: for a NaN or an infinite weight.

        Source:
            Han et al., "Deep Compression" (ICLR 2016).

        Example:
            >>> import torch, secateur as sc
            >>> net = torch.nn.Linear(10, 10)
            >>> sharing, optimizer = sc.share_weights(net, values=4), torch.optim.Adam(net.parameters())
            >>> with sharing.held(optimizer):
            ...     net(torch.randn(8, 10)).square().mean().backward()
            ...     optimizer.step()
            >>> len(net.weight.unique())
            4
        """
        levels = innermost(optimizer)
        if any(isinstance(level.optimizer, torch.optim.LBFGS) for level in levels):
            raise BudgetError(
                "LBFGS compares gradients along lines that shared weights do not follow; use Adam"
            )
        members = self._members(self.model)
        check_updates(levels, [m.weight for m in members], "the shared weights", self.model)
        mine = owned(levels, members, lambda member: member.weight)
        self.apply()

        def snap(level: Level) -> None:
            for member in mine[level]:
                member.snap()

        with around_steps(levels, gradients=lambda level, _: _sum_gradients(mine[level]), after=snap):
            yield self
        self.check()

    def check(self) -> None:
        """Raise MaskError where weights that share a value differ, or one that stays zero is not;
        NonFiniteError where a weight is a NaN or an infinity."""
        for member in self._members(self.model):
            require_finite(member.name, member.weight, _FINITE)
            if not torch.equal(member.shared(), member.weight.detach()):
                raise MaskError(
                    f"{member.name}: weights that share a value differ; something other than the held "
                    "optimizer wrote them (load_state_dict, another optimizer?). apply() makes them equal"
                )

    def apply(self, model: nn.Module | None = None) -> Sharing:
        """Give the weights of ``model`` (default: the bound one; an EMA copy, say) that share a value the
        mean of what they are now, and make the others zero."""
        members = self._members(self.model if model is None else model)
        for member in members:
            require_finite(member.name, member.weight, _FINITE)
        for member in members:
            member.snap()
        return self

    def follow(self, small: nn.Module, removed: Removed) -> Sharing:
        """Return the same sharing for the smaller network that ``secateur.compact`` makes: cut to size,
        and bound to it."""
        return Sharing(small, {name: sliced(c, name, removed) for name, c in self.clusters.items()})

    def _members(self, model: nn.Module) -> list[_Member]:
        parameters = bound(model, self.clusters, "sharing")
        return [_Member(name, p, self.clusters[name]) for name, p in parameters.items()]


def share_weights(
    model: nn.Module,
    masks: Masks | None = None,
    *,
    values: int = 16,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Sharing:
    """Let the surviving weights of each target of ``model`` share ``values`` values, in place. Zeros stay
    zero and take none of the values.

    A tensor with no weight left is passed over; one with fewer distinct weights than ``values`` is not
    changed.

    Args:
        model: the network.
        masks: masks of it, which must hold.
        values: how many values a tensor's weights share, from 2 to 256.
        include: name patterns of targets, as in ``secateur.prune``.
        exclude: name patterns of what is left out.

    Returns:
        The ``Sharing``, under which the values can be trained; ``secateur.pack`` stores each weight
        as its value's number.

    Raises:
        BudgetError: for ``values`` outside 2 to 256.
        MaskError: where a masked weight is not zero.
        NonFiniteError: for a NaN or an infinity.
        TargetError: where a pattern matches nothing.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Linear(8, 16)
        >>> sharing = sc.share_weights(model, values=4)
        >>> len(model.weight.unique())
        4
    """
    check_values(values)
    refuse_sharded(model, "share_weights")
    targets = find_targets(model, include, exclude)
    if masks is not None:
        masks.bind(model).check()
    for name, target in targets.items():
        if target.weight.is_complex():
            raise TargetError(f"{name}: its weights are complex, and shared values are real; exclude it")
        require_finite(name, target.weight, _FINITE)
    clusters: dict[str, Tensor] = {}
    for name, target in targets.items():
        weight = target.weight.detach()
        alive = weight != 0
        if not alive.any():
            continue
        codebook, members = clustered(weight[alive].double().cpu().numpy(), values)
        cluster = torch.full(weight.shape, -1, dtype=torch.int16, device=weight.device)
        cluster[alive] = torch.from_numpy(members.astype(np.int16)).to(weight.device)
        shared = torch.from_numpy(codebook).to(weight.device, weight.dtype)
        weight[alive] = shared[cluster[alive].long()]
        clusters[name] = cluster
    return Sharing(model, clusters)


def check_values(values: Any) -> None:
    """Raise BudgetError where ``values`` is not a number of shared values."""
    if isinstance(values, bool) or not isinstance(values, int) or not 2 <= values <= 256:
        raise BudgetError(f"values is {values!r}; it is a number of shared values, an integer from 2 to 256")


def clustered(values: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means in one dimension: return (codebook, index into it of each value), codebook ascending.

    ``values``: finite, not zero, at least one; ``number``: the most clusters. Where there are not more
    distinct values they are the codebook. It begins linearly, as the paper's. A cluster that stays empty,
    as those between the negative and the positive weights do after pruning, halves the one whose squared
    error is largest. No value of the codebook is zero.
    """
    ordered = np.sort(values.astype(np.float64))
    distinct = ordered[np.append(True, np.diff(ordered) > 0)]
    if len(distinct) <= number:
        return distinct, np.searchsorted(distinct, values)
    sums = np.append(0.0, np.cumsum(ordered))
    squares = np.append(0.0, np.cumsum(ordered**2))
    codebook = np.linspace(ordered[0], ordered[-1], number)
    edges, before = _edges(ordered, codebook), None
    for _ in range(_ROUNDS):  # sorted, the clusters are ranges: a round takes no look at the weights
        counts, totals = np.diff(edges), np.diff(sums[edges])
        if before is not None and np.array_equal(edges, before):
            if counts.all():
                break
            errors = np.diff(squares[edges]) - totals**2 / np.maximum(counts, 1)
            widest = int(errors.argmax())
            start, end = edges[widest], edges[widest + 1]
            middle = start + np.searchsorted(ordered[start:end], codebook[widest])
            if not start < middle < end:  # nothing but rounding errors are left to halve
                break
            halves = ordered[start:middle].mean(), ordered[middle:end].mean()
            codebook[[widest, int(counts.argmin())]] = halves
            codebook.sort()
        else:
            codebook = np.where(counts, totals / np.maximum(counts, 1), codebook)
        edges, before = _edges(ordered, codebook), edges
    used = np.diff(edges) > 0
    for index in np.flatnonzero(used & (codebook == 0)):
        near = ordered[edges[index] : edges[index + 1]]
        codebook[index] = near[np.abs(near).argmin()]
    codebook = codebook[used]
    nearest = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, values)
    used, members = np.unique(nearest, return_inverse=True)
    return codebook[used], members


def _edges(ordered: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return where in ``ordered`` each cluster begins, and its end."""
    inner = np.searchsorted(ordered, (codebook[1:] + codebook[:-1]) / 2)
    return np.concatenate(([0], inner, [len(ordered)]))


class _Member:
    """One tensor whose weights are shared, on the device where it is."""

    def __init__(self, name: str, weight: nn.Parameter, cluster: Tensor) -> None:
        self.name, self.weight = name, weight
        flat = cluster.reshape(-1).to(weight.device)
        self.positions = (flat >= 0).nonzero()[:, 0]
        self.index = flat[self.positions].long()
        self.counts = torch.bincount(self.index)
        order = torch.arange(len(self.index), device=weight.device)
        self.first = torch.zeros_like(self.counts).scatter_reduce_(
            0, self.index, order, "amin", include_self=False
        )

    def taken(self, tensor: Tensor) -> Tensor:
        """Return the entries that share a value, in float64."""
        return tensor.detach().reshape(-1)[self.positions].double()

    def sums(self, taken: Tensor) -> Tensor:
        """Return the sum of such entries over each cluster."""
        return taken.new_zeros(len(self.counts)).index_add_(0, self.index, taken)

    def means(self) -> Tensor:
        taken = self.taken(self.weight)
        first = taken[self.first]  # what differs from it is exactly zero where all are equal
        return first + self.sums(taken - first[self.index]) / self.counts

    def spread(self, values: Tensor) -> Tensor:
        """Return a tensor of the weight's shape and dtype: each weight its cluster's value, else zero."""
        flat = torch.zeros(self.weight.numel(), dtype=self.weight.dtype, device=self.weight.device)
        flat[self.positions] = values.to(flat.dtype)[self.index]
        return flat.reshape(self.weight.shape)

    def shared(self) -> Tensor:
        return self.spread(self.means())

    @torch.no_grad()
    def snap(self) -> None:
        self.weight.copy_(self.shared())


def _sum_gradients(members: Sequence[_Member]) -> None:
    for member in members:
        gradient = member.weight.grad
        if gradient is not None:
            gradient.copy_(member.spread(member.sums(member.taken(gradient))))
