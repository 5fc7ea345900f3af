"""Masks: what is zero, and keeping it zero through any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from secateur.errors import MaskError, NonFiniteError, StorageError, nearest
from secateur.measure.summary import aligned
from secateur.storage import load_tensors, pack_bits, save_tensors, unpack_bits
from secateur.structure.names import canonical_modules, canonical_parameters

_CHECK_EVERY = 64
# These move every weight by its own gradient and state alone, so that masking the weights is enough.
# Masked gradients would cost: where Adam's second moments are 0, MKL's sqrt takes five times as long.
_WEIGHT_BY_WEIGHT = {
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop,
    optim.Adagrad, optim.Adadelta,
}  # fmt: skip


class Masks(Mapping[str, Tensor]):
    """One bool tensor a pruned parameter, True where the weight is kept, bound to a model.

    Keys are canonical parameter names. ``a & b`` keeps what both keep, ``a | b`` what either
    keeps. ``notes`` are lines on what deserves a look: layers emptied, say. Where whole units were
    pruned, ``units`` are by group (kept, of how many), and ``requested`` goes by group too. ``dense``:
    how many entries a tensor had before units were cut out of it, where fewer are left.
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
        self._parameters(model)

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
            torch.equal(mask, other.kept[name].to(mask.device)) for name, mask in self.kept.items()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def sparsity(self) -> float:
        """The share of the masked tensors' entries, as dense as they were, that are zero or gone."""
        total = sum(map(self._whole, self.kept))
        return 1 - sum(_count(m) for m in self.kept.values()) / total if total else 0.0

    def layers(self) -> list[dict[str, Any]]:
        """One row a tensor: name, shape, weights, kept, sparsity, and the sparsity requested."""
        return [
            {
                "name": name,
                "shape": list(mask.shape),
                "weights": self._whole(name),
                "kept": _count(mask),
                "sparsity": 1 - _count(mask) / max(1, self._whole(name)),
                "requested": self.requested.get(name),
            }
            for name, mask in self.kept.items()
        ]

    def _whole(self, name: str) -> int:
        return self.dense.get(name, self.kept[name].numel())

    def __repr__(self) -> str:
        total, kept = sum(map(self._whole, self.kept)), sum(map(_count, self.kept.values()))
        lines = self._table(
            ("tensor", "shape", "weights"),
            [
                (row["name"], "x".join(map(str, row["shape"])), row["weights"], row["kept"], row["requested"])
                for row in self.layers()
            ],
            total,
            kept,
        )
        if self.units:
            lines = self._table(
                ("group", "", "units"),
                [(name, "", of, left, self.requested.get(name)) for name, (left, of) in self.units.items()],
                sum(of for _, of in self.units.values()),
                sum(left for left, _ in self.units.values()),
            )
            lines.append(f"{total - kept:,} of {total:,} entries of {len(self.kept)} tensors are masked")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _table(self, head: tuple[str, str, str], rows: list[Any], total: int, kept: int) -> list[str]:
        """Lay out (name, shape, number, kept, requested share) as lines, with their totals."""
        cells = [(*head, "kept", "sparsity", "requested")]
        for name, shape, number, left, asked in [*rows, ("all", "", total, kept, self.requested_overall)]:
            share = "" if asked is None else f"{asked:.2%}"
            gone = 1 - left / number if number else 0.0
            cells.append((name, shape, f"{number:,}", f"{left:,}", f"{gone:.2%}", share))
        shown = [cell if any(row[1] for row in cells) else cell[:1] + cell[2:] for cell in cells]
        return list(aligned(shown, words=len(shown[0]) - 4))

    # -- holding -----------------------------------------------------------------------------

    @contextmanager
    def held(self, optimizer: torch.optim.Optimizer) -> Iterator[Masks]:
        """Keep the masked weights exactly zero whatever ``optimizer`` does inside the block.

        Works through hooks on its step: weights are masked after it, gradients before it where the
        optimizer mixes those of several weights, and a closure (LBFGS) sees masked weights. Names
        and the forward pass stay as they are. Leaving the block checks that the zeros held.

        Raises MaskError where the optimizer updates none of the masked parameters, or the zeros
        did not hold; NonFiniteError for NaN or infinite weights.
        """
        holder = Holder(self, optimizer)
        self.apply()
        handles = [
            optimizer.register_step_pre_hook(holder.before),
            optimizer.register_step_post_hook(holder.after),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
        holder.check_finite()
        self.check()

    def check(self) -> None:
        """Raise MaskError where a masked weight of the model is not zero."""
        for name, parameter in self._parameters(self.model).items():
            alive = _count(parameter.detach()[~self.kept[name].to(parameter.device)])
            if alive:
                raise MaskError(
                    f"{name}: {alive} masked weights are not zero; something other than the held "
                    "optimizer wrote them (load_state_dict, another optimizer?)"
                )

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> Masks:
        """Zero the masked weights of ``model`` (default: the bound one; an EMA copy, say)."""
        parameters = self._parameters(self.model if model is None else model)
        for name, parameter in parameters.items():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(f"{name}: holds a NaN or an infinity; a mask does not hide it")
        for name, parameter in parameters.items():
            parameter.masked_fill_(~self.kept[name].to(parameter.device), 0)
        return self

    @torch.no_grad()
    def mask_grads(self) -> None:
        """Zero the gradients of masked weights now: before clipping, so that the norm is right."""
        for name, parameter in self._parameters(self.model).items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~self.kept[name].to(parameter.device), 0)

    # -- binding -----------------------------------------------------------------------------

    def bind(self, model: nn.Module) -> Masks:
        """Return the same masks bound to another model with the same parameter names and shapes."""
        return Masks(
            model,
            self.kept,
            requested=self.requested,
            requested_overall=self.requested_overall,
            notes=self.notes,
            units=self.units,
            dense=self.dense,
        )

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = canonical_parameters(model)
        for name, mask in self.kept.items():
            if name not in parameters:
                raise MaskError(
                    f"{type(model).__name__} has no parameter {name!r}{nearest(name, parameters)}"
                )
            if mask.shape != parameters[name].shape:
                raise MaskError(
                    f"{name}: the mask has shape {tuple(mask.shape)}, the parameter "
                    f"{tuple(parameters[name].shape)}"
                )
            if mask.dtype != torch.bool:
                raise MaskError(f"{name}: the mask has dtype {mask.dtype}; bool is right")
        return {name: parameters[name] for name in self.kept}

    # -- combining ---------------------------------------------------------------------------

    def __and__(self, other: Masks) -> Masks:
        """Keep what both keep; a tensor that only one of them masks stays as that one has it."""
        return self._with(other, torch.logical_and, either=True)

    def __or__(self, other: Masks) -> Masks:
        """Keep what either keeps; a tensor that only one of them masks is kept whole."""
        return self._with(other, torch.logical_or, either=False)

    def _with(self, other: Masks, join: Callable[[Tensor, Tensor], Tensor], either: bool) -> Masks:
        other._parameters(self.model)
        kept = {n: join(self.kept[n], other.kept[n].to(self.kept[n].device)) for n in self.kept if n in other}
        if either:
            kept = {n: kept.get(n, m) for n, m in (other.kept | self.kept).items()}
        notes = tuple(dict.fromkeys(self.notes + other.notes))
        return Masks(self.model, kept, notes=notes, dense=self.dense | other.dense)

    # -- files and other tools ---------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, one bit an entry."""
        metadata = {
            "secateur": "masks 1",
            "shapes": {name: list(mask.shape) for name, mask in self.kept.items()},
            "requested": self.requested,
            "requested_overall": self.requested_overall,
            "notes": list(self.notes),
            "units": self.units,
            "dense": self.dense,
        }
        save_tensors(path, {n: pack_bits(m) for n, m in self.kept.items()}, metadata)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> Masks:
        """Read masks and bind them to ``model``; its weights are left as they are (see apply)."""
        tensors, metadata = load_tensors(path)
        shapes = metadata.get("shapes")
        if metadata.get("secateur") != "masks 1" or not isinstance(shapes, dict):
            raise StorageError(f"{path}: not a file of masks (its metadata lack 'secateur: masks 1')")
        if set(shapes) != set(tensors):
            raise StorageError(f"{path}: the shapes and the tensors do not name the same parameters")
        parameters = canonical_parameters(model)
        kept: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if name not in parameters:
                raise MaskError(
                    f"{path}: {type(model).__name__} has no parameter {name!r}{nearest(name, parameters)}"
                )
            if list(parameters[name].shape) != shape:
                raise MaskError(
                    f"{path}: {name} has shape {tuple(shape)} there and "
                    f"{tuple(parameters[name].shape)} in the model"
                )
            kept[name] = unpack_bits(tensors[name], tuple(shape)).to(parameters[name].device)
        return cls(
            model,
            kept,
            requested=metadata.get("requested"),
            requested_overall=metadata.get("requested_overall"),
            notes=tuple(metadata.get("notes", ())),
            units={name: (left, of) for name, (left, of) in metadata.get("units", {}).items()},
            dense=metadata.get("dense"),
        )

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> Masks:
        """Take over a model pruned by ``torch.nn.utils.prune``: make its pruning permanent there
        (plain parameter names again) and return the same masks."""
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


class Holder:
    """The state behind ``Masks.held``: masks in the weights' dtype, ready for foreach operations."""

    def __init__(self, masks: Masks, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, optim.Optimizer):
            raise MaskError(f"optimizer is {optimizer!r}; it is the one that trains the model")
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = masks._parameters(masks.model)
        # ``module.to(...)`` may replace parameters: an optimizer made before it updates nothing.
        if named and not any(id(p) in mine for p in named.values()):
            raise MaskError(
                "the optimizer updates none of the masked parameters; make it from "
                f"{type(masks.model).__name__}.parameters() of the model the masks are bound to"
            )
        self.names = list(named)
        self.weights: list[Tensor] = list(named.values())
        self.masks = [masks[n].to(device=p.device, dtype=p.dtype) for n, p in named.items()]
        self.steps = 0

    @torch.no_grad()
    def before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        own, rest = args[:1], args[1:]  # torch passes the optimizer itself first
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            if type(optimizer) not in _WEIGHT_BY_WEIGHT:
                self._mask_grads()
            return None

        def masked_closure() -> Any:
            with torch.no_grad():
                self._mask_weights()
            value = closure()
            with torch.no_grad():
                self._mask_grads()
            return value

        if rest:
            return (*own, masked_closure, *rest[1:]), kwargs
        return args, {**kwargs, "closure": masked_closure}

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._mask_weights()
        self.steps += 1
        if self.steps % _CHECK_EVERY == 0:
            self.check_finite()

    def check_finite(self) -> None:
        """A NaN stays a NaN, so looking now and then, and at the end, misses none."""
        if not self.weights:
            return
        for name, norm in zip(self.names, torch._foreach_norm(self.weights, torch.inf), strict=True):
            if not torch.isfinite(norm):
                raise NonFiniteError(f"{name}: training made a NaN or an infinity of its weights")

    def _mask_weights(self) -> None:
        if self.weights:
            torch._foreach_mul_(self.weights, self.masks)

    def _mask_grads(self) -> None:
        pairs = [(w.grad, m) for w, m in zip(self.weights, self.masks, strict=True) if w.grad is not None]
        if pairs:
            grads, masks = zip(*pairs, strict=True)
            torch._foreach_mul_(list(grads), list(masks))


def _count(mask: Tensor) -> int:
    return int(torch.count_nonzero(mask))
