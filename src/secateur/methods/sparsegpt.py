"""SparseGPT: weights chosen and the others moved to make up for them, layer after layer, without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.copying import copied
from secateur.errors import BudgetError, CriterionError, MaskError, NonFiniteError, TargetError
from secateur.graph.names import canonical_parameters, unwrapped
from secateur.graph.replay import Seen
from secateur.methods.fitted_layer import windows
from secateur.numeric import is_real
from secateur.pruning.batches import Batches
from secateur.pruning.budgets import NM, Uniform
from secateur.pruning.layer_by_layer import LayerByLayer, calls_of
from secateur.pruning.masks import Masks
from secateur.pruning.ranks import Peers, together
from secateur.pruning.targets import Target, find_targets
from secateur.running import as_written
from secateur.structure.layers import LayerView, layer_view

_BLOCK = 128  # columns that one choice prunes
_POLISH = 5  # steps towards the least squares of what is left
_ROWS = 1024  # that take them at a time
_TINY = 1e-35
_SINGULAR = 1e-12  # of an input's square, what the others leave of it: float32 rounds to about its root
_CHUNK = 2**22  # values of a layer's inputs taken to float64 at a time


@torch.no_grad()
def sparsegpt(
    model: nn.Module,
    budget: Uniform | NM,
    data: Batches,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    masks: Masks | None = None,
    damping: float = 0.01,
    group: Any = None,
) -> Masks:
    """Zero weights of ``model`` in place and move the others, biases too, so that each layer's outputs change
    least. Layers are pruned in running order, each on what those before it, already pruned, give.

    It runs a copy, layer by layer, on inputs alone: no labels, no gradients. An error leaves the model as it
    was.

    Where a process group is up and its ranks hold the same network, all of them call this, each with data of
    its own: what layers read is added up over them.

    Args:
        model: the network.
        budget: ``Uniform``, the same share of every layer, exactly, or ``NM``.
        data: batches of inputs or (inputs, labels) from the training split, read several times.
        include: name patterns of what is pruned, see ``secateur.find_targets``; default every Linear and Conv
            layer.
        exclude: name patterns of what is not.
        masks: an earlier pruning of this model; what it masks counts, and stays masked.
        damping: added to the diagonal of each layer's second moments, in units of their mean.
        group: another process group than the model's, or False for a process that prunes on its own.

    Returns:
        The masks, bound to the model. Notes name the layers that stay dense, and why.

    Raises:
        BudgetError: for another budget, or a damping that is no number from 0.
        TargetError: where patterns match nothing, or no layer can be pruned so.
        MaskError: for masks of another network, or of more than the budget takes; for ranks that differ.
        CriterionError: for data that cannot be read several times, or without a batch.
        NonFiniteError: for a NaN or an infinity in weights or inputs.

    Source:
        Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023;
        the last steps as in Meng et al., "ALPS", 2024.

    Example:
        >>> import copy, torch, secateur as sc
        >>> dense = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        >>> x = torch.randn(256, 4) @ torch.randn(4, 16)  # inputs that go together
        >>> net, other = copy.deepcopy(dense), copy.deepcopy(dense)
        >>> masks = sc.sparsegpt(net, sc.Uniform(0.5), [x])
        >>> masks.sparsity
        0.5
        >>> _ = sc.prune(other, sc.Magnitude(), sc.Uniform(0.5))
        >>> bool((net(x) - dense(x)).square().mean() < (other(x) - dense(x)).square().mean() / 2)
        True
    """
    check_choices(budget, damping)
    if isinstance(data, Iterator):
        raise CriterionError("sparsegpt reads data several times; pass a list of batches or a DataLoader")
    with together(model, group) as peers:
        model = unwrapped(model)
        earlier = {} if masks is None else masks.bind(model).kept
        work = copied(model).eval()
        layers, notes = _layers(work, model, include, exclude, budget)
        with as_written():
            calls = calls_of(work, layers, data, "sparsegpt", peers)
            run = LayerByLayer(work, data, "sparsegpt", peers)
            for path, number in calls.items():
                layer = layers[path]
                for group_number, gram in enumerate(_moments(layer, run.calls(path, number), peers)):
                    layer.prune(group_number, gram, budget, earlier.get(layer.name), float(damping))
        peers.compare({layers[path].name: layers[path].kept for path in calls})
    idle = sorted(layers.keys() - calls.keys())
    notes += [f"{layers[path].name}: stays dense: its layer never runs" for path in idle]
    kept = {layers[path].name: layers[path].kept for path in calls}
    own = canonical_parameters(model)
    for path in calls:
        layer = layers[path]
        own[layer.name].copy_(layer.weight)
        if layer.bias is not None:
            own[layer.bias_name].copy_(layer.bias)
    kept |= {name: mask for name, mask in earlier.items() if name not in kept}
    share = 1 - budget.keep / budget.of if isinstance(budget, NM) else budget.sparsity
    requested = {layers[path].name: share for path in calls}
    overall = None if isinstance(budget, NM) else budget.sparsity
    return Masks(model, kept, requested=requested, requested_overall=overall, notes=tuple(notes))


def check_choices(budget: Any, damping: Any) -> None:
    """Refuse a budget that compares layers, or rows, and what is no damping."""
    if not isinstance(budget, (Uniform, NM)):
        raise BudgetError(f"sparsegpt takes Uniform or NM, not {budget!r}: it compares within a layer")
    if isinstance(budget, Uniform) and budget.per != "layer":
        raise BudgetError(f"sparsegpt compares all rows of a layer; Uniform({budget.sparsity}) is right")
    if not is_real(damping) or not 0 <= damping < float("inf"):
        raise BudgetError(f"damping is {damping!r}; a number from 0 is right")


class _Layer:
    """A Linear or Conv layer of a copy of the network: its matrix, and which of it is kept so far."""

    def __init__(self, target: Target, path: str, view: LayerView, bias_name: str) -> None:
        self.name, self.path, self.view, self.bias_name = target.name, path, view, bias_name
        self.module = target.module
        self.weight: Tensor = target.weight
        self.bias: Tensor | None = getattr(target.module, view.bias) if bias_name and view.bias else None
        self.kept = torch.ones_like(self.weight, dtype=torch.bool)

    def rows_of(self, group: int) -> slice:
        each = len(self.view.matrix(self.weight)) // self.view.groups
        return slice(group * each, (group + 1) * each)

    def prune(
        self, group: int, gram: Tensor, budget: Uniform | NM, earlier: Tensor | None, damping: float
    ) -> None:
        """Prune the rows of one group, whose inputs have these second moments."""
        if not gram.isfinite().all():
            raise NonFiniteError(f"{self.name}: what its layer reads holds a NaN or an infinity")
        rows, matrix = self.rows_of(group), self.view.matrix(self.weight)
        taken = budget
        if isinstance(taken, Uniform):  # exact over all groups together
            before, until = (taken.sparsity * end * matrix.shape[1] for end in (rows.start, rows.stop))
            taken = round(until) - round(before)
        weight = matrix[rows].double()
        if not weight.isfinite().all():
            raise NonFiniteError(f"{self.name}: its weights hold a NaN or an infinity")
        if self.bias is not None:
            weight = torch.cat([weight, self.bias[rows, None].double()], 1)
        masked = torch.zeros_like(matrix[rows], dtype=torch.bool)
        if earlier is not None:
            masked = ~self.view.matrix(earlier)[rows].to(masked.device)
        order = self._order(matrix.shape[1]) if isinstance(budget, NM) else None
        if order is not None:
            weight[:, : len(order)], masked = weight[:, order], masked[:, order]
            whole = torch.cat([order, torch.arange(len(order), len(gram), device=order.device)])
            gram = gram[whole][:, whole]
        try:
            new, pruned = solved(weight, gram, taken, masked, damping)
        except MaskError as error:
            raise MaskError(f"{self.name}: {error}") from None
        if self.bias is not None:
            self.bias[rows] = new[:, -1].to(self.bias.dtype)
            new = new[:, :-1]
        if order is not None:
            back = order.argsort()
            new, pruned = new[:, back], pruned[:, back]
        matrix, kept = matrix.clone(), self.view.matrix(self.kept).clone()
        matrix[rows], kept[rows] = new.to(matrix.dtype), ~pruned
        self.weight.copy_(self.view.unmatrix(matrix, self.weight))
        self.kept = self.view.unmatrix(kept, self.weight).contiguous()

    def _order(self, columns: int) -> Tensor:
        """The columns so that inputs of one position of the kernel stand side by side, for N:M."""
        inputs = self.weight.shape[self.view.input_dim]
        return torch.arange(columns, device=self.weight.device).view(inputs, -1).T.flatten()

    def no_moments(self) -> list[Tensor]:
        """Return by group the second moments before the first call."""
        size = self.view.matrix(self.weight).shape[1] + (self.bias is not None)
        return [self.weight.new_zeros(size, size, dtype=torch.float64) for _ in range(self.view.groups)]

    def moments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
        """Yield by group the sum of x xᵀ over what a call reads, 1 for the bias at the end of each x."""
        x = [*args, *kwargs.values()][0]
        if self.view.product == "windows":
            x = x if x.dim() == self.view.kernel + 2 else x[None]
            x = windows(self.module, x)
            x = x.flatten(0, self.view.kernel)  # (positions, channels, *kernel)
        else:
            x = x.movedim(self.view.channels, -1)
            x = x.reshape(-1, x.shape[-1])
        for part in x.chunk(self.view.groups, 1):
            width = part[0].numel()
            total: Tensor | float = 0.0
            for rows in part.split(max(1, _CHUNK // width)):
                flat = rows.reshape(len(rows), width).double()
                flat = flat if self.bias is None else F.pad(flat, (0, 1), value=1.0)
                total = total + flat.T @ flat
            yield total  # type: ignore[misc]


def solved(
    weight: Tensor, gram: Tensor, taken: int | NM, masked: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """Return a matrix (outputs, inputs) with so many entries zeroed, or N of every M in a row, and the rest
    moved so that its products change least, and what is zeroed; columns beyond those of ``masked`` are moved,
    never zeroed.

    ``gram`` (inputs, inputs): the sum of x xᵀ, which is damped in place. ``masked``: what is zero already,
    counts, and stays.
    """
    columns = masked.shape[1]
    work = weight.clone()
    diagonal = gram.diagonal()
    dead = diagonal == 0
    diagonal += dead.to(gram.dtype) + damping * diagonal.mean()
    work[:, dead] = 0.0
    upper = _inverse_root(gram, damping)
    pattern = taken if isinstance(taken, NM) else None
    of = 1 if pattern is None else pattern.of
    step = max(1, _BLOCK // of) * of
    pruned = masked.clone()
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        part, own, goes = work[:, start:stop].clone(), upper[start:stop, start:stop], pruned[:, start:stop]
        score = (part / own.diagonal()).square()
        if isinstance(taken, int):
            _take(goes, score, round(taken * stop / columns) - int(pruned[:, :start].sum()))
        errors = torch.zeros_like(part)
        for j in range(stop - start):
            if pattern is not None and j % of == 0:
                among = slice(j, j + of)
                score = (part[:, among] / own.diagonal()[among]).square().masked_fill(goes[:, among], -1.0)
                lowest = score.argsort(dim=1, stable=True)[:, : of - pattern.keep]
                goes[:, among] |= torch.zeros_like(goes[:, among]).scatter_(1, lowest, True)
            errors[:, j] = part[:, j].where(goes[:, j], 0.0) / own[j, j]
            part[:, j + 1 :] -= errors[:, j, None] * own[j, j + 1 :]
            part[:, j].masked_fill_(goes[:, j], 0.0)
        work[:, start:stop] = part
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    del upper
    if isinstance(taken, int) and (gone := int(pruned.sum())) > taken:
        raise MaskError(f"masks= zeroes {gone} of its weights, and the budget takes {taken}")
    _polish(work, weight, gram, pruned)
    return work, pruned


def _inverse_root(gram: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with UᵀU the inverse of a matrix; of a large one few fit into memory."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed or (factor.diagonal().square() < _SINGULAR * gram.diagonal()).any():
        raise BudgetError(f"damping={damping:g}: inputs that depend on each other need more, like 0.01")
    inverse = torch.cholesky_inverse(factor)
    del factor
    return torch.linalg.cholesky(inverse, upper=True)


def _polish(work: Tensor, dense: Tensor, gram: Tensor, pruned: Tensor) -> None:
    """Bring the weights that are left nearer to the least squares on their places, in place: columns that
    were passed could not move any more. Rows know nothing of each other, so some go at a time; float32 is as
    exact as a few steps are."""
    single = gram.float()
    for rows in torch.arange(len(work), device=work.device).split(_ROWS):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        work[at] += _steps(work[at], dense[at], single, pruned[at]).to(work.dtype)


def _steps(work: Tensor, dense: Tensor, gram: Tensor, pruned: Tensor) -> Tensor:
    """Return what a few steps of conjugate gradients add, all rows side by side, scaled by the diagonal."""
    missing = (dense - work).float()
    work = torch.zeros_like(missing)
    free = F.pad(~pruned, (0, len(gram) - pruned.shape[1]), value=True)
    scale = gram.diagonal()
    rest = (missing @ gram).where(free, 0.0)
    ahead = rest / scale
    along, size = ahead, (rest * ahead).sum(1, keepdim=True)
    for _ in range(_POLISH):
        turned = (along @ gram).where(free, 0.0)
        step = size / (along * turned).sum(1, keepdim=True).clamp_min(_TINY)
        work, rest = work + step * along, rest - step * turned
        ahead = rest / scale
        new = (rest * ahead).sum(1, keepdim=True)
        along, size = ahead + new / size.clamp_min(_TINY) * along, new
    return work


def _take(taken: Tensor, score: Tensor, number: int) -> None:
    """Mark the lowest scores beside what is marked, in place, until ``number`` are."""
    more = min(number, score.numel()) - int(taken.sum())
    if more > 0:
        order = score.masked_fill(taken, torch.inf).flatten().argsort(stable=True)[:more]
        taken |= torch.zeros_like(taken).flatten().scatter_(0, order, True).view_as(taken)


def _layers(
    work: nn.Module,
    model: nn.Module,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    budget: Uniform | NM,
) -> tuple[dict[str, _Layer], list[str]]:
    """Return by path the layers of a copy that are pruned, and a line for each that stays dense."""
    find_targets(model, include, exclude)  # its errors name the model's own parts
    paths = {module: path for path, module in work.named_modules()}
    uses: dict[int, int] = {}
    for module in paths:
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    layers: dict[str, _Layer] = {}
    notes: list[str] = []
    for name, target in find_targets(work, include, exclude).items():
        path, view = paths[target.module], layer_view(target.module)
        why = _unfit(target, view, uses)
        if not why and isinstance(budget, NM) and target.weight.shape[target.input_dim] % budget.of:
            why = f"no input dim that divides by {budget.of}"
        if why or view is None:
            notes.append(f"{name}: stays dense: {why}")
            continue
        bias = view.bias if view.bias and getattr(target.module, view.bias, None) is not None else ""
        bias_name = f"{path}.{bias}".lstrip(".") if bias else ""
        shared = bias and uses[id(getattr(target.module, bias))] > 1
        layers[path] = _Layer(target, path, view, "" if shared else bias_name)
    if not layers:
        raise TargetError("sparsegpt: no layer can be pruned: " + "; ".join(notes))
    return layers, notes


def _unfit(target: Target, view: LayerView | None, uses: Mapping[int, int]) -> str:
    if view is None or not view.plain or not view.multiplies or view.weights != (target.of,):
        return f"{type(target.module).__name__} is no plain Linear or Conv layer"
    if target.name.rpartition(".")[2] != target.of:
        return "its weight is computed from what is stored"
    if uses[id(target.weight)] > 1:
        return "its weight is used elsewhere too"
    return ""


def _moments(layer: _Layer, calls: Iterable[Seen], peers: Peers) -> list[Tensor]:
    """Return by group the second moments of what a layer reads in its calls, of all ranks."""
    total = layer.no_moments()
    for args, kwargs, _ in calls:
        total = [a + b for a, b in zip(total, layer.moments(args, kwargs), strict=True)]
    peers.gather(layer.path)  # a rank that failed has nothing to add
    peers.add(total)
    return total
