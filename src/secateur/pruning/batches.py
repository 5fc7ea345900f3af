"""How a batch is read: which of it are the inputs that the forward takes, and which the labels."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import CriterionError
from secateur.graph.names import network_of

Batches = Iterable[Any]
_LABELS = ("labels", "label", "targets", "target")
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_HOW = "write ((a, b), labels), ((a, b), None) or a dict of the forward's arguments"


@dataclass(frozen=True)
class Arguments:
    """What a forward takes: ``positional`` names of which ``required`` come first without a default, all
    that may be given by keyword and which of them are ``needed``, whether there are ``*args`` and
    ``**kwargs``, and whether the first is annotated as a list.
    """

    name: str
    positional: tuple[str, ...]
    required: int
    keywords: frozenset[str]
    needed: frozenset[str]
    more: bool
    any_keyword: bool
    a_list: bool

    def fits(self, number: int) -> bool:
        """Whether the forward takes ``number`` positional arguments."""
        return self.required <= number and (self.more or number <= len(self.positional))

    def __str__(self) -> str:
        names = [*self.positional, *sorted(self.keywords - set(self.positional))]
        shown = [n if i < self.required or n in self.needed else f"{n}=..." for i, n in enumerate(names)]
        return f"({', '.join(shown + ['*'] * self.more + ['**'] * self.any_keyword)})"


def arguments_of(model: nn.Module) -> Arguments:
    """Return what the forward of the network takes, whatever is wrapped around it."""
    network = network_of(model)
    try:
        found = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):  # written in C++, say
        found = [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)]
    positional = [p for p in found if p.kind in _POSITIONAL]
    named = [p for p in found if p.kind in _NAMED]
    return Arguments(
        type(network).__name__,
        tuple(p.name for p in positional),
        sum(p.default is Parameter.empty for p in positional),
        frozenset(p.name for p in named),
        frozenset(p.name for p in named if p.default is Parameter.empty),
        any(p.kind is Parameter.VAR_POSITIONAL for p in found),
        any(p.kind is Parameter.VAR_KEYWORD for p in found),
        bool(positional) and "list" in str(positional[0].annotation).lower(),
    )


def batches(
    data: Batches | None, who: str, model: nn.Module, *, inside: bool = True, empty: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Yield (inputs, labels or None) on the model's device from whatever the user calls batches.

    What is what goes by the forward's required arguments: for one of them ``(x, y)`` is an input and its
    labels, for two it is two inputs, ``(x1, x2, y)`` and ``((x1, x2), y)`` have labels too. A dict gives
    arguments by name; ``labels`` in it stay there too where the forward takes them, unless ``inside`` is
    False. ``who`` asks, for the errors. ``empty``: data without a batch are no error.

    Raises CriterionError for what is no iterable of batches, or can be read in two ways.
    """
    if data is None:
        raise CriterionError(f"{who} needs data: pass data=batches, an iterable of (inputs, labels)")
    if isinstance(data, (Tensor, np.ndarray, str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise CriterionError(
            f"{who} was given a {type(data).__name__} as data; "
            "pass batches: a list of tensors or of (inputs, labels)"
        )
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if first is None else first.device
    takes = arguments_of(model)
    number = 0
    for number, batch in enumerate(data, 1):
        inputs, labels = read(batch, takes, f"{who}: batch {number} of data=")
        if isinstance(batch, Mapping) and not inside:
            inputs = {name: value for name, value in inputs.items() if name not in _LABELS}
        yield _to(inputs, device), _to(labels, device)
    if not number and not empty:
        raise CriterionError(f"{who} was given data without a single batch")


def read(batch: Any, takes: Arguments, what: str) -> tuple[Any, Any]:
    """Return (inputs, labels or None) of one batch; ``what`` it is, for the errors."""
    if isinstance(batch, Mapping):
        return _read_named(batch, takes, what)
    if _is_input(batch):
        return _alone(batch), None
    if not isinstance(batch, (tuple, list)) or not batch:
        raise CriterionError(
            f"{what} holds a {type(batch).__name__}; pass a list of tensors or of (inputs, labels)"
        )
    if len(batch) == 2 and isinstance(batch[0], Mapping):
        return _read_named(batch[0], takes, what)[0], batch[1]
    if len(batch) == 2 and isinstance(batch[0], (tuple, list)) and not _is_input(batch[0]):
        inputs, labels = batch
        if takes.fits(len(inputs)) and not takes.a_list:
            return list(inputs), labels
        if takes.required == 1:  # one argument that is a list
            return [inputs], labels
    if not all(_is_input(part) or isinstance(part, (tuple, list, Mapping)) for part in batch[:1]):
        raise CriterionError(
            f"{what} holds a {type(batch[0]).__name__}; pass a list of tensors or of (inputs, labels)"
        )
    return _read_flat(list(batch), takes, what)


def _read_flat(parts: list[Any], takes: Arguments, what: str) -> tuple[Any, Any]:
    """Read (x, ..., labels) or (x, ...) by how many inputs the forward requires."""
    number = len(parts)
    named = number <= len(takes.positional) and takes.positional[number - 1] in _LABELS
    opaque = takes.more and not takes.positional and number > 1
    if number == 1 or (number == takes.required and not opaque):
        return parts, parts[-1] if named and number > 1 else None
    if not opaque:
        # The usual pair, also where nothing is required (transformers' models give all a default).
        if number == max(takes.required, 1) + 1:
            return (_alone(parts[0]) if number == 2 else parts[:-1]), parts[-1]
        if named:
            return parts, parts[-1]
        if takes.fits(number - 1) and not takes.fits(number):
            return parts[:-1], parts[-1]
    raise CriterionError(
        f"{what} is a tuple of {number}, and {takes.name}.forward takes {takes}: which of it are inputs and "
        f"which labels can only be guessed; {_HOW}"
    )


def _read_named(batch: Mapping[str, Any], takes: Arguments, what: str) -> tuple[dict[str, Any], Any]:
    """Read a dict of arguments; labels among them stay there only where the forward takes them."""
    inputs = dict(batch)
    names = [name for name in (*_LABELS, *({"y"} - takes.keywords)) if name in inputs]
    own = [name for name in names if name in takes.keywords]
    opaque = takes.any_keyword and not takes.keywords
    labels = inputs[(own or names)[0]] if names else None
    if not own and not opaque and names:
        if len(names) > 1:
            raise CriterionError(
                f"{what} has both {names[0]!r} and {names[1]!r}; leave the labels alone there"
            )
        del inputs[names[0]]
    strange = [name for name in inputs if name not in takes.keywords and not takes.any_keyword]
    missing = sorted(takes.needed - inputs.keys())
    if strange or missing:
        wrong = f"has {strange[0]!r}, which is none of them" if strange else f"lacks {missing[0]!r}"
        raise CriterionError(
            f"{what} {wrong}: {takes.name}.forward takes {takes}; write a dict of its arguments, and labels"
        )
    return inputs, labels


def _is_input(value: Any) -> bool:
    """Whether a value is one input: a tensor, or what moves between devices as one (PackedSequence)."""
    return isinstance(value, Tensor) or (
        callable(getattr(value, "to", None)) and not isinstance(value, Mapping)
    )


def _alone(value: Any) -> Any:
    """A single input so that it stays one: a tuple would be taken for several."""
    return value if isinstance(value, Tensor) else [value]


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _to(v, device) for key, v in value.items()}
    if _is_input(value):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return [_to(v, device) for v in value]
    return value
