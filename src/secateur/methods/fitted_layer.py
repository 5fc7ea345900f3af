"""One layer's least squares: what it reads and should put out, as rows while they are few, else as sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import CriterionError, NonFiniteError
from secateur.graph.compare import difference
from secateur.graph.replay import Seen
from secateur.methods.recurrent import rows_read
from secateur.pruning.ranks import Peers
from secateur.structure.layers import LayerView

POSITIONS = 64  # of a convolution's output that one example gives; where it has more, they are drawn
MEMORY = 2**32  # bytes that the rows or the sums of one layer may take
_CHUNK = 2**22  # values of a layer's inputs taken to float64 at a time


class FittedLayer:
    """A layer as a matrix (outputs, flattened inputs) of which some rows and columns live.

    What it reads (x) and should put out (y) is held example by example while that is less than the sums of
    x xᵀ, and as sums from then on; then a bias is one more column, which reads 1.
    """

    def __init__(self, path: str, module: nn.Module, dense: nn.Module, view: LayerView) -> None:
        self.path, self.module, self.dense, self.view = path, module, dense, view
        self.by_output = not isinstance(module, (nn.RNNBase, nn.RNNCellBase))
        self.weight: Tensor = getattr(module, view.weights[0])
        self.bias: Tensor | None = None if view.bias is None else getattr(module, view.bias)
        alive = view.matrix(self.weight) != 0
        self.rows, self.columns = (alive.any(dim).nonzero().flatten() for dim in (1, 0))
        self.xx = self.xy = self.yy = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        self.held: list[tuple[Tensor, Tensor]] | None = []
        self.draw = torch.Generator().manual_seed(0)

    def thinned(self, masks: Mapping[str, Tensor], path: str) -> bool:
        """Whether masks zero any entry of the rows and columns kept."""
        names = (self.view.weights[0], self.view.bias or "")
        weight, bias = (masks.get(f"{path}.{name}".lstrip(".")) for name in names)
        inside = weight is None or self.view.matrix(weight)[self.rows][:, self.columns].all()
        return not (inside and (bias is None or bias[self.rows].all()))

    # -- what is seen ----------------------------------------------------------------------------

    def see(self, here: list[Seen], dense: list[Seen]) -> str:
        """Add what the calls on a batch read now and gave when dense; return why not where that says
        nothing."""
        inputs = [self._read(self.module, call) for call in here]
        targets = [self._wanted(call) for call in dense]
        if self.view.registered and not all(map(self._computes, inputs)):
            return "its output is not the product of its input and its weight"
        if len(inputs) != len(targets) or not all(map(self._add, inputs, targets)):
            return "it does not run on the same examples in both networks"
        if self.held is not None and self._seen() > len(self.columns):
            if 8 * len(self.columns) ** 2 <= MEMORY:
                self._sum()
            elif sum(part.nbytes for pair in self.held for part in pair) > MEMORY:
                return self._too_many()
        return ""

    def _read(self, module: nn.Module, call: Seen) -> Tensor:
        """Return what the matrix multiplied in a call of its layer."""
        args, kwargs, _ = call
        inside = not self.by_output
        return (
            rows_read(module, self.view.weights[0], args, kwargs) if inside else [*args, *kwargs.values()][0]
        )

    def _wanted(self, call: Seen) -> Tensor:
        """Return what the layer put out in a call of the dense one; of one with several products inside,
        what this one gave."""
        _, _, output = call
        if self.by_output:
            return output
        bias = None if self.view.bias is None else getattr(self.dense, self.view.bias)
        return F.linear(self._read(self.dense, call), getattr(self.dense, self.view.weights[0]), bias)

    def _computes(self, x: Tensor) -> bool:
        """Whether the layer's output is what a layer of its kind computes."""
        product = F.linear(x.movedim(self.view.channels, -1), self.view.matrix(self.weight), self.bias)
        rounding = 64 * torch.finfo(product.dtype).eps
        return difference(self.module(x).movedim(self.view.channels, -1), product) <= rounding

    def _add(self, x: Tensor, y: Tensor) -> bool:
        if self.view.product == "windows":
            batched = self.view.kernel + 2
            x, y = (t if t.dim() == batched else t[None] for t in (x, y))
            x, y = windows(self.module, x), y.movedim(1, -1)
        else:
            x, y = (t.movedim(self.view.channels, -1) for t in (x, y))
            x, y = (t.reshape(-1, t.shape[-1]) for t in (x, y))
        spatial = y.shape[1:-1]
        if x.shape[: y.dim() - 1] != y.shape[:-1]:
            return False
        width = x.shape[y.dim() - 1 :].numel()
        step = max(1, _CHUNK // (width * min(POSITIONS, spatial.numel())))
        for part, target in zip(x.split(step), y.split(step), strict=True):
            if spatial.numel() > POSITIONS:
                chosen = torch.randint(spatial.numel(), (len(part), POSITIONS), generator=self.draw)
                at = torch.arange(len(part))[:, None], *torch.unravel_index(chosen, spatial)
                part, target = part[at], target[at]
            part = part.reshape(-1, width)[:, self.columns]
            target = target.reshape(-1, y.shape[-1])[:, self.rows]
            if self.held is None:
                self._count(part, target)
            else:
                self.held.append((part, target))
        return True

    def _seen(self) -> int:
        return sum(len(part) for part, _ in self.held or ())

    def _count(self, part: Tensor, target: Tensor) -> None:
        part, target = part.double(), target.double()
        if self.bias is not None:
            part = F.pad(part, (0, 1), value=1.0)
        self.xx, self.xy = self.xx + part.T @ part, self.xy + part.T @ target
        self.yy = self.yy + target.square().sum()

    def _sum(self) -> None:
        """Go over from rows to sums."""
        held, self.held = self.held or (), None
        for part, target in held:
            self._count(part, target)

    def add_up(self, peers: Peers) -> str:
        """Take what the other ranks have seen to what this one has; return why not where that is too much."""
        if peers.number == 1:
            return ""
        seen = peers.gather(None if self.held is None else self._seen())
        sums = 8 * len(self.columns) ** 2 <= MEMORY  # else no rank has gone over to them
        if sums and (None in seen or sum(seen) > len(self.columns)):
            if self.held is not None:
                self._sum()
            size = len(self.columns) + (self.bias is not None)
            self.xx = self.xx + self.xx.new_zeros(size, size)
            self.xy = self.xy + self.xy.new_zeros(size, len(self.rows))
            peers.gather(self.path)  # a rank that failed has nothing to add
            peers.add([self.xx, self.xy, self.yy])
            return ""
        own = [(x.cpu(), y.cpu()) for x, y in self.held or ()]
        if sum(peers.gather(sum(part.nbytes for pair in own for part in pair))) > MEMORY:
            return self._too_many()
        device = self.weight.device
        self.held = [(x.to(device), y.to(device)) for pairs in peers.gather(own) for x, y in pairs]
        return ""

    def _too_many(self) -> str:
        return f"{len(self.columns):,} inputs of so many examples take over {MEMORY >> 30} GiB"

    # -- what follows from it ----------------------------------------------------------------------

    def refit(self, name: str, ridge: float) -> tuple[float, float]:
        """Write the best weights and bias; return the relative error before and after."""
        return self._refit_rows(name, ridge) if self.held is not None else self._refit_sums(name, ridge)

    def _refit_sums(self, name: str, ridge: float) -> tuple[float, float]:
        _check_finite(name, self.xx, self.xy)
        old = self.kept()
        rest = self.xy - self.xx @ old
        if self.bias is None:
            change = _solved(self.xx, rest, ridge * self.xx.diagonal().mean())
        else:  # the best bias for any weights, put in: that centres x and y
            number = self.xx[-1, -1].clamp_min(1)
            mean = self.xx[:-1, -1:] / number
            xx = self.centred()[0]
            change = _solved(xx, rest[:-1] - mean * rest[-1], ridge * xx.diagonal().mean())
            change = torch.cat([change, rest[-1] / number - mean.T @ change])
        self._write((old + change).T)
        return self._error(old), self._error(self.kept())

    def _refit_rows(self, name: str, ridge: float) -> tuple[float, float]:
        """The same with as many unknowns as rows: the change of the weights is a sum of the rows."""
        x, y = (torch.cat(column) for column in zip(*self.held, strict=True))  # type: ignore[misc]
        _check_finite(name, x, y)
        rest, energy = self._missing(x, y), y.double().square().sum()
        before = rest.square().sum()
        means = (x.double().mean(0), rest.mean(0)) if self.bias is not None else None
        about = 0.0 if means is None else means[0]
        products, size = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device), x.shape[1]
        for columns in _chunks(x):
            part = x[:, columns].double() - (about[columns] if isinstance(about, Tensor) else 0.0)
            products += part @ part.T
        pull = ridge * products.trace() / size
        shares = _solved(products, rest if means is None else rest - means[1], pull)
        weight = self.view.matrix(self.weight).clone()
        shift = 0.0 if means is None else means[1]
        for columns in _chunks(x):
            part = x[:, columns].double() - (about[columns] if isinstance(about, Tensor) else 0.0)
            change = shares.T @ part
            if means is not None:
                shift = shift - change @ means[0][columns]
            place = self.rows[:, None], self.columns[columns]
            weight[place] = (weight[place].double() + change).to(weight.dtype)
        self.weight.copy_(self.view.unmatrix(weight, self.weight))
        if self.bias is not None:
            self.bias[self.rows] = (self.bias[self.rows].double() + shift).to(self.bias.dtype)
        after = self._missing(x, y).square().sum()
        return tuple(float(error / energy) if energy else 0.0 for error in (before, after))  # type: ignore[return-value]

    def _missing(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the rows' outputs lack of their targets."""
        matrix, rest = self.view.matrix(self.weight), y.double()
        for columns in _chunks(x):
            part = matrix[self.rows[:, None], self.columns[columns]]
            rest = rest - x[:, columns].double() @ part.T.double()
        return rest if self.bias is None else rest - self.bias[self.rows].double()

    def _write(self, new: Tensor) -> None:
        """Put new values in the place of the part kept, the bias as the last column."""
        matrix = self.view.matrix(self.weight).clone()
        matrix[self.rows[:, None], self.columns] = new[:, : len(self.columns)].to(matrix.dtype)
        self.weight.copy_(self.view.unmatrix(matrix, self.weight))
        if self.bias is not None:
            self.bias[self.rows] = new[:, -1].to(self.bias.dtype)

    def centred(self) -> tuple[Tensor, float]:
        """Return the sums of x xᵀ and y² about their means where the layer has a bias, as they are else;
        raises CriterionError where they would be too large."""
        if 8 * len(self.columns) ** 2 > MEMORY:
            raise CriterionError(
                f"the sums of a layer with {len(self.columns):,} inputs would take over {MEMORY >> 30} GiB"
            )
        if self.held is not None:
            self._sum()
        if self.bias is None:
            return self.xx, float(self.yy)
        number = self.xx[-1, -1].clamp_min(1)
        mean = self.xx[:-1, -1:] / number
        return self.xx[:-1, :-1] - mean * self.xx[-1, :-1], float(self.yy - (self.xy[-1] ** 2).sum() / number)

    def kept(self) -> Tensor:
        """Return the part kept, turned: (columns, rows)."""
        weight = self.view.matrix(self.weight)[self.rows][:, self.columns].T
        bias = () if self.bias is None else (self.bias[None, self.rows],)
        return torch.cat([weight, *bias]).double()

    def _error(self, kept: Tensor) -> float:
        squares = self.yy + (kept * (self.xx @ kept - 2 * self.xy)).sum()
        return max(0.0, float(squares / self.yy)) if self.yy else 0.0


def _check_finite(name: str, *values: Tensor) -> None:
    if not all(value.isfinite().all() for value in values):
        raise NonFiniteError(f"{name}: what it reads or puts out holds a NaN or an infinity")


def _chunks(x: Tensor) -> Iterator[slice]:
    """Yield slices of columns, of about ``_CHUNK`` values each."""
    step = max(1, _CHUNK // max(1, len(x)))
    yield from (slice(start, start + step) for start in range(0, x.shape[1], step))


def _solved(xx: Tensor, xy: Tensor, pull: Any) -> Tensor:
    """Return the smallest d that minimises dᵀ xx d - 2 dᵀ xy + pull · |d|²."""
    factor, failed = torch.linalg.cholesky_ex(xx + pull * torch.eye(len(xx)).to(xx))
    if pull and not failed:
        return torch.cholesky_solve(xy, factor)
    values, vectors = torch.linalg.eigh(xx)
    some = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, some] @ ((vectors[:, some].T @ xy) / (values[some, None] + pull))


def windows(conv: Any, x: Tensor) -> Tensor:
    """Return a view (batch, *positions, channels, *kernel) of what a convolution reads."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
    for dim, size in enumerate(conv.kernel_size):
        apart = conv.dilation[dim]
        x = x.unfold(dim + 2, apart * (size - 1) + 1, conv.stride[dim])[..., ::apart]
    return x.movedim(1, len(conv.kernel_size) + 1)
