"""Masks: what is zero, and keeping it zero through any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import MaskError
from secateur.graph.capture import all_tensors
from secateur.graph.names import canonical_modules, canonical_parameters
from secateur.pruning.averages import weights_in
from secateur.pruning.holding import Optimizers, bound, check_writable, require_finite
from secateur.pruning.mask_files import FIELDS, as_state, from_state, packed, unpacked
from secateur.pruning.zeros import Holder, mask_sparse_gradient
from secateur.shards import as_sharded, count, first_of, fitted, local, sharded, total
from secateur.storage import load_tensors, save_tensors
from secateur.structure.surgery import Removed, sliced
from secateur.text import table


class Masks(Mapping[str, Tensor]):
    """One bool tensor a pruned parameter, True where the weight is kept, bound to a model.

    It is a mapping by canonical parameter name; the mask of a sharded parameter is a DTensor, sharded alike.
    ``a & b`` keeps what both keep, ``a | b`` what either keeps; printed it is a table, layer by layer.

    Args:
        model: the network that they mask.
        kept: by name the bool tensor, of the parameter's shape.
        requested: by name the sparsity that was asked for; by group where whole units were pruned.
        requested_overall: the one asked for of all together.
        notes: lines on what deserves a look: layers emptied, say.
        units: where whole units were pruned, by group how many are kept, of how many.
        dense: by name how many entries a tensor had before units were cut out of it, where fewer are left.

    Raises:
        MaskError: for masks that do not fit the model.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
        >>> masks
        tensor    shape  weights  kept  sparsity  requested
        0.weight  16x8       128    32    75.00%     75.00%
        1.weight  4x16        64    16    75.00%     75.00%
        all                  192    48    75.00%     75.00%
        >>> masks.save("masks.safetensors")
        >>> sc.Masks.load("masks.safetensors", net) == masks
        True
    """

    def __init__(
        self,
        model: nn.Module,
        kept: Mapping[str, Tensor],
        *,
        requested: Mapping[str, float] | None = None,
        requested_overall: float | None = None,
        notes: tuple[str, ...] = (),
        units: Mapping[str, tuple[int, int]] | None = None,
        dense: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.kept = dict(kept)
        self.requested = dict(requested or {})
        self.requested_overall = requested_overall
        self.notes = tuple(notes)
        self.units = dict(units or {})
        self.dense = dict(dense or {})
        self.parameters()
        self._count_shards()

    def _count_shards(self) -> None:
        """Count sharded masks while all processes are here, so that one alone may print them later."""
        self._counted = {id(mask): count(mask) for mask in self.kept.values() if sharded(mask)}

    def __getitem__(self, name: str) -> Tensor:
        return self.kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __eq__(self, other: object) -> bool:
        """Whether both mask the same entries of the same names, in whatever models."""
        if not isinstance(other, Masks):
            return NotImplemented
        return self.kept.keys() == other.kept.keys() and all(
            mask.shape == other.kept[name].shape
            and not total(int((local(mask) != fitted(other.kept[name], mask)).count_nonzero()), mask)
            for name, mask in self.kept.items()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def sparsity(self) -> float:
        """The share of the masked tensors' entries, as dense as they were, that are zero or gone."""
        whole = sum(map(self._whole, self.kept))
        return 1 - sum(map(self._number, self.kept)) / whole if whole else 0.0

    def layers(self) -> list[dict[str, Any]]:
        """One row a tensor: name, shape, weights, kept, sparsity, and the sparsity requested."""
        return [
            {
                "name": name,
                "shape": list(mask.shape),
                "weights": self._whole(name),
                "kept": self._number(name),
                "sparsity": 1 - self._number(name) / max(1, self._whole(name)),
                "requested": self.requested.get(name),
            }
            for name, mask in self.kept.items()
        ]

    def _number(self, name: str) -> int:
        mask = self.kept[name]
        return self._counted[id(mask)] if id(mask) in self._counted else count(mask)

    def _whole(self, name: str) -> int:
        return self.dense.get(name, self.kept[name].numel())

    def __repr__(self) -> str:
        rows: list[tuple[Any, ...]] = [
            (row["name"], "x".join(map(str, row["shape"])), row["weights"], row["kept"], row["requested"])
            for row in self.layers()
        ]
        if not self.units:
            lines = self._table(("tensor", "shape", "weights"), rows)
        else:
            units = [(name, of, left, self.requested.get(name)) for name, (left, of) in self.units.items()]
            total, kept = (sum(row[i] for row in rows) for i in (-3, -2))
            entries = f"{total - kept:,} of {total:,} entries of {len(rows)} tensors are masked"
            lines = [*self._table(("group", "units"), units), entries]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _table(self, head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[str]:
        """Lay out rows (words, number, kept, requested share) as lines, with their totals."""
        total, kept = (sum(row[i] for row in rows) for i in (-3, -2))
        whole = ("all", *[""] * (len(head) - 2), total, kept, self.requested_overall)
        cells = [(*head, "kept", "sparsity", "requested")]
        for *names, number, left, asked in [*rows, whole]:
            share = "" if asked is None else f"{asked:.2%}"
            masked = 1 - left / number if number else 0.0
            cells.append((*names, f"{number:,}", f"{left:,}", f"{masked:.2%}", share))
        return table(cells, words=len(head) - 1)

    # -- holding -----------------------------------------------------------------------------

    @contextmanager
    def held(self, optimizer: Optimizers, *, averaged: Any = None) -> Iterator[Masks]:
        """Keep the masked weights exactly zero whatever ``optimizer`` does inside the block. Leaving it
        checks that the zeros held.

        Works through hooks on its step: weights are masked after it, gradients before it where the optimizer
        mixes those of several weights, and a closure (LBFGS) sees masked weights. Names and the forward pass
        stay as they are.

        Args:
            optimizer: one or a list; what it wraps (Accelerate's, schedule-free, Lookahead) is found, and
                copies of weights that optimizers keep are masked with them.
            averaged: averages of the model (AveragedModel, ModelEmaV2, what holds one), one or a list, masked
                with it; SecateurWarning for one that is in the model or the optimizer and not given.

        Returns:
            A context manager that gives these masks.

        Raises:
            MaskError: before the block, for an optimizer that updates none of the masked parameters or whose
                steps cannot be seen; after it, where the zeros did not hold.
            NonFiniteError: for NaN or infinite weights.

        Example:
            >>> import secateur as sc, torch
            >>> model = torch.nn.Linear(8, 16)
            >>> masks = sc.prune(model, sc.Magnitude(), sc.Uniform(0.5))
            >>> optimizer = torch.optim.Adam(model.parameters())
            >>> with masks.held(optimizer):
            ...     model(torch.randn(4, 8)).square().mean().backward()
            ...     optimizer.step()
            >>> sc.sparsity(model)
            0.5
        """
        holder = Holder(optimizer, averaged)
        holder.hold(self)
        with holder.holding():
            yield self

    def check(self) -> None:
        """Raise MaskError where a masked weight of the model is not zero.

        Raises:
            MaskError: naming the tensor, and how many are alive.
        """
        alive = {
            name: number
            for name, parameter in self.parameters().items()
            if (number := total(_count(local(parameter)[~fitted(self.kept[name], parameter)]), parameter))
        }
        if alive:
            name, number = next(iter(alive.items()))
            together = f"{sum(alive.values())} in {len(alive)} tensors; " if len(alive) > 1 else ""
            raise MaskError(
                f"{name}: {number} masked weights are not zero; {together}something other than the held "
                "optimizer wrote them (load_state_dict, another optimizer, a merged adapter?); "
                "masks.apply() puts the zeros back"
            )

    @torch.no_grad()
    def apply(self, model: Any = None) -> Masks:
        """Zero the masked weights of ``model``, in place.

        Args:
            model: the network, by default the bound one; or an average of it, or what holds one:
                AveragedModel, timm's ModelEmaV2, Lightning's callback, diffusers' EMAModel.

        Returns:
            These masks.

        Raises:
            MaskError: for a network that they do not fit.
            NonFiniteError: for NaN or infinite weights, before any changes.

        Example:
            >>> import copy, torch, secateur as sc
            >>> net = torch.nn.Linear(10, 10)
            >>> ema = copy.deepcopy(net)
            >>> masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
            >>> _ = masks.apply(ema)
            >>> sc.sparsity(ema)
            0.5
        """
        weights = self.weights_in(self.model if model is None else model)
        check_writable(weights)
        for name, weight in weights.items():
            require_finite(name, weight, "a mask does not hide it")
        for name, weight in weights.items():
            local(weight).masked_fill_(~fitted(self.kept[name], weight), 0)
        return self

    @torch.no_grad()
    def mask_grads(self) -> None:
        """Zero the gradients of masked weights now: before clipping, so that the norm is right."""
        for name, weight in self.parameters().items():
            mask = fitted(self.kept[name], weight)
            if not mask_sparse_gradient(weight, mask) and weight.grad is not None:
                local(weight.grad).masked_fill_(~mask, 0)

    # -- binding -----------------------------------------------------------------------------

    def bind(self, model: nn.Module) -> Masks:
        """Return the same masks bound to another model with the same parameter names and shapes."""
        return Masks(model, self.kept, **self._rest())

    def follow(self, small: nn.Module, removed: Removed) -> Masks:
        """Return the same masks for the smaller network that ``secateur.compact`` makes: cut to size,
        and bound to it."""
        parameters = dict(all_tensors(small))
        # A bias entry that took up a constant is needed, masked or not.
        kept = {name: sliced(mask, name, removed) | (parameters[name] != 0) for name, mask in self.items()}
        dense = {name: mask.numel() for name, mask in self.items()} | self.dense
        return Masks(small, kept, **self._rest(dense=dense))

    def _rest(self, **other: Any) -> dict[str, Any]:
        """All that the masks are but their model and what is kept."""
        return {name: getattr(self, name) for name in FIELDS} | other

    def parameters(self, model: nn.Module | None = None) -> dict[str, nn.Parameter]:
        """Return the masked parameters of ``model`` (default: the bound one), or raise MaskError."""
        parameters = bound(self.model if model is None else model, self.kept, "mask")
        for name, mask in self.kept.items():
            if mask.dtype != torch.bool:
                raise MaskError(f"{name}: the mask has dtype {mask.dtype}; bool is right")
        return parameters

    def weights_in(self, average: Any) -> Mapping[str, Tensor]:
        """Return the masked weights of a network with this one's names, or of what holds an average of it."""
        if isinstance(average, nn.Module) and not (
            canonical_parameters(average).keys().isdisjoint(self.kept) and self.fit(average)
        ):
            return self.parameters(average)
        return weights_in(average, self.model, self.kept)

    def fit(self, average: Any) -> bool:
        """Whether an object holds weights that these masks could be applied to."""
        try:
            return bool(weights_in(average, self.model, self.kept))
        except MaskError:
            return False

    # -- combining ---------------------------------------------------------------------------

    def __and__(self, other: Masks) -> Masks:
        """Keep what both keep; a tensor that only one of them masks stays as that one has it."""
        return self._with(other, torch.logical_and, either=True)

    def __or__(self, other: Masks) -> Masks:
        """Keep what either keeps; a tensor that only one of them masks is kept whole."""
        return self._with(other, torch.logical_or, either=False)

    def _with(self, other: Masks, join: Callable[[Tensor, Tensor], Tensor], either: bool) -> Masks:
        other.parameters(self.model)
        both = {n: (mask, other.kept[n]) for n, mask in self.kept.items() if n in other}
        kept = {n: as_sharded(join(local(a), fitted(b, a)), a) for n, (a, b) in both.items()}
        if either:
            kept = {n: kept.get(n, m) for n, m in (other.kept | self.kept).items()}
        notes = tuple(dict.fromkeys(self.notes + other.notes))
        return Masks(self.model, kept, notes=notes, dense=self.dense | other.dense)

    # -- files and other tools ---------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, one bit an entry; of sharded ones all processes call this,
        and the first of them writes."""
        bits = self._packed()
        if first_of(self.kept.values()):
            save_tensors(path, *bits)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> Masks:
        """Read masks and bind them to ``model``; its weights are left as they are (see ``apply``).

        Args:
            path: a file of ``save``.
            model: the network.

        Returns:
            The masks.

        Raises:
            StorageError: for what is no file of masks.
            MaskError: for masks of another network.
        """
        return cls(model, **unpacked(*load_tensors(path), path, model))

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors by name, one bit an entry, for a checkpoint of any kind; of sharded
        masks all processes call this, and each gets the whole."""
        return as_state(*self._packed())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the masks of ``state_dict``, bound to the same model as before.

        Its weights are left as they are. Begin from ``Masks(model, {})`` where there are no masks yet.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            StorageError: for what is no such state; nothing has changed then.
            MaskError: for masks of another network, likewise.

        Example:
            >>> import torch, secateur as sc
            >>> net = torch.nn.Linear(10, 10)
            >>> masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
            >>> again = sc.Masks(net, {})
            >>> again.load_state_dict(masks.state_dict())
            >>> again == masks
            True
        """
        vars(self).update(unpacked(*from_state(state), "the state", self.model))
        self._count_shards()

    def _packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return packed(self.kept, self._rest())

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> Masks:
        """Take over a model pruned by ``torch.nn.utils.prune``, and return the same masks.

        Its pruning is made permanent there: parameters have their plain names again.

        Args:
            model: the network, changed in place.

        Returns:
            The masks.

        Raises:
            MaskError: for a network that holds no such mask.

        Example:
            >>> import torch, secateur as sc
            >>> from torch.nn.utils import prune
            >>> net = torch.nn.Linear(10, 10)
            >>> _ = prune.l1_unstructured(net, "weight", amount=0.5)
            >>> sc.Masks.from_torch_prune(net).sparsity
            0.5
            >>> sorted(name for name, _ in net.named_parameters())
            ['bias', 'weight']
        """
        from torch.nn.utils import prune as torch_prune

        kept: dict[str, Tensor] = {}
        for module_name, module in list(canonical_modules(model)):
            for name in [n[:-5] for n in module._parameters if n.endswith("_orig")]:
                mask = module._buffers.get(f"{name}_mask")
                if mask is not None:
                    torch_prune.remove(module, name)
                    kept[f"{module_name}.{name}" if module_name else name] = mask.bool()
        if not kept:
            raise MaskError(f"{type(model).__name__} holds no torch.nn.utils.prune mask")
        return cls(model, kept).apply()


def _count(mask: Tensor) -> int:
    return int(torch.count_nonzero(mask))
