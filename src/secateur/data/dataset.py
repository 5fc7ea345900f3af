"""What a data set is once it is loaded: three splits that fit together, in memory or read anew each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree

from secateur.errors import DataError
from secateur.running import seeded, shapes

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
_LABELS = ("labels", "label", "targets", "target")


class Examples(Protocol):
    """One split, wherever its examples lie."""

    def __len__(self) -> int: ...
    def batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Yield (inputs, labels) of all examples in their order, ``size`` at a time but for a stream."""
        ...

    def drawn(self, number: int, seed: int) -> Split:
        """Return ``number`` examples drawn with ``seed`` (all where there are no more): splits may be
        sorted by class."""
        ...

    def first(self, number: int) -> Any:
        """Return the inputs of the first ``number`` examples."""
        ...


def each_tensor(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return nested inputs or labels with every tensor in them changed."""
    return _pytree.tree_map_only(Tensor, change, value)


def rows_of(value: Any) -> int:
    """Return how many examples nested inputs or labels hold; raises DataError where they disagree."""
    leaves = _pytree.tree_leaves(value)
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1:
        raise DataError(f"{shapes(value)}: tensors with as many examples each, in their first dim, are right")
    return sizes.pop()


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in memory: ``inputs``, a tensor (N, ...) or a tuple or dict of such, and ``labels`` (N, ...).

    Raises DataError where the two do not fit, are empty, or hold a NaN or an infinity.
    """

    inputs: Any
    labels: Any

    def __post_init__(self) -> None:
        for part in (self.inputs, self.labels):
            if not all(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(part)):
                raise DataError(
                    f"a split holds {shapes(part)[:200]}; tensors, or tuples or dicts of them, are right"
                )
        number, labels = rows_of(self.inputs), rows_of(self.labels)
        if number != labels:
            raise DataError(f"{number} inputs and {labels} labels; one label an input")
        if not number or not all(leaf.numel() for leaf in _pytree.tree_leaves(self.inputs)):
            raise DataError(f"a split is empty: its inputs are {shapes(self.inputs)}")
        for what, part in (("inputs", self.inputs), ("labels", self.labels)):
            each_tensor(lambda tensor, w=what: _checked(w, tensor), part)

    def __len__(self) -> int:
        return rows_of(self.labels)

    def taken(self, index: Tensor) -> tuple[Any, Any]:
        """Return the inputs and the labels at an index."""
        return each_tensor(lambda tensor: tensor[index], (self.inputs, self.labels))

    def batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Yield (inputs, labels) of ``size`` examples, the last of fewer."""
        for start in range(0, len(self), size):
            yield each_tensor(lambda tensor, at=start: tensor[at : at + size], (self.inputs, self.labels))

    def drawn(self, number: int, seed: int) -> Split:
        """Return ``number`` examples drawn with ``seed``; all where there are no more."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:number]
        return Split(*self.taken(chosen))

    def first(self, number: int) -> Any:
        """Return the inputs of the first ``number`` examples."""
        return each_tensor(lambda tensor: tensor[:number], self.inputs)


def _checked(what: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.numel():
        # aminmax passes a NaN on and, unlike isfinite, makes no copy: CIFAR-10 takes 600 MB
        low, high = tensor.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise DataError(
                f"{what} hold a NaN or an infinity, or a number too large for "
                f"{str(tensor.dtype).removeprefix('torch.')}"
            )
    return tensor


@dataclass(frozen=True, eq=False)
class Stream:
    """Examples that are never in memory all at once: ``loader`` gives batches again and again, as a
    DataLoader does, each (inputs, labels), or a dict of inputs with ``labels`` among them.

    ``number`` of the examples: those of ``loader.dataset`` where it says them, else they are counted once.
    """

    loader: Iterable[Any]
    number: int = field(default=0)

    def __post_init__(self) -> None:
        if iter(self.loader) is self.loader:
            raise DataError(
                "a split is an iterator, which ends; what gives its batches each time (a DataLoader) is right"
            )
        if not self.number:
            dataset, drop = getattr(self.loader, "dataset", None), getattr(self.loader, "drop_last", False)
            known = hasattr(dataset, "__len__") and not drop
            number = len(dataset) if known else sum(rows_of(labels) for _, labels in self)  # type: ignore[arg-type]
            object.__setattr__(self, "number", number)
        if not self.number:
            raise DataError("a split gives no batch; one at least is right")

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.loader:
            yield _pair(batch)

    def batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Yield the loader's batches; their ``size`` is its own."""
        del size
        yield from self

    def drawn(self, number: int, seed: int) -> Split:
        """Return the first ``number`` examples of a pass that starts with ``seed``."""
        with seeded(seed):
            parts, found = [], 0
            for pair in self:
                parts.append(pair)
                found += rows_of(pair[1])
                if found >= number:
                    break
        leaves = [_pytree.tree_flatten(part) for part in parts]
        joined = [torch.cat(column)[:number] for column in zip(*(flat for flat, _ in leaves), strict=True)]
        return Split(*_pytree.tree_unflatten(joined, leaves[0][1]))

    def first(self, number: int) -> Any:
        """Return the inputs of the first examples of the first batch, ``number`` at most."""
        inputs, _ = next(iter(self))
        return each_tensor(lambda tensor: tensor[:number], inputs)


def _pair(batch: Any) -> tuple[Any, Any]:
    """Return (inputs, labels) of a loader's batch: a tuple of two, or a mapping with labels in it."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        name = next((name for name in _LABELS if name in inputs), None)
        if name is None:
            raise DataError(
                f"a batch is a dict of {', '.join(map(str, inputs))}; one of {', '.join(_LABELS)} is missing"
            )
        labels = inputs.pop(name)
        return inputs, labels
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
        return tuple(inputs) if isinstance(inputs, list) else inputs, labels
    raise DataError(
        f"a batch is {shapes(batch)[:200]}; (inputs, labels), or a dict with labels in it, is right"
    )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready for training.

    ``classes``: a name for each label, where labels are classes. ``note``: what a report must say beside its
    figures. ``fingerprint``: a hash of all that determines the tensors. ``mean`` and ``std``: what was
    subtracted from each channel (or feature) and what it was divided by, both taken on the
    training split after validation was taken off; empty where the inputs are as they came. ``vocabulary``: a
    text for each token, where inputs are tokens.
    """

    name: str
    train: Split | Stream
    validation: Split | Stream
    test: Split | Stream
    classes: tuple[str, ...] = ()
    _: KW_ONLY
    note: str = ""
    fingerprint: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = {part: getattr(self, part) for part in ("train", "validation", "test")}
        held = {part: split for part, split in parts.items() if isinstance(split, Split)}
        shape = _example_shapes(self.train) if isinstance(self.train, Split) else None
        for part, split in held.items():
            if shape is not None and _example_shapes(split) != shape:
                raise DataError(
                    f"{self.name}: {part} examples have shape {_example_shapes(split)}, "
                    f"the training ones {shape}"
                )
            if self.classes:
                self._check_classes(part, split.labels)

    def _check_classes(self, part: str, labels: Any) -> None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
            raise DataError(f"{self.name}: {part} labels are {shapes(labels)}; int64 of (N,) is right")
        if labels.amin() < 0:
            raise DataError(f"{self.name}: {part} holds label {int(labels.amin())}; classes count from 0")
        if labels.amax() >= len(self.classes):
            raise DataError(
                f"{self.name}: {part} holds label {int(labels.amax())}; "
                f"{len(self.classes)} classes have labels 0 to {len(self.classes) - 1}"
            )

    def of_inputs(self) -> Dataset:
        """Return the data set with the inputs as labels, for reconstruction."""

        def pairs(split: Split | Stream) -> Split | Stream:
            if isinstance(split, Split):
                return Split(split.inputs, split.inputs)
            return Stream(_OfInputs(split), len(split))

        return replace(
            self,
            train=pairs(self.train),
            validation=pairs(self.validation),
            test=pairs(self.test),
            classes=(),
        )


@dataclass(frozen=True)
class _OfInputs:
    """The batches of a stream with the inputs as labels."""

    stream: Stream

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return ((inputs, inputs) for inputs, _ in self.stream)


def _example_shapes(split: Split) -> Any:
    found = each_tensor(lambda tensor: tensor.new_empty(tensor.shape[1:]), split.inputs)
    return tuple(found.shape) if isinstance(found, Tensor) else shapes(found)
