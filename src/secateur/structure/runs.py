"""The ways in which a network is called for a proof: a method, its arguments, in eval or training mode."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.copying import copied, fresh
from secateur.errors import ModelError
from secateur.graph.capture import all_tensors
from secateur.graph.draws import as_dtype, redrawn, resized
from secateur.running import arguments, as_written, in_full_precision, seeded, uncached
from secateur.text import first_line, nearest, shown

Methods = Sequence[str] | Mapping[str, Any]
FORWARD = "forward"
# Of functions that draw: every number becomes this one, so that fewer channels draw the same.
_DRAWN = {
    **dict.fromkeys(("rand", "rand_like", "uniform_", "randn", "randn_like", "normal", "normal_"), 0.5),
    **dict.fromkeys(("bernoulli", "bernoulli_"), 1.0),
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = ("float", "half", "bfloat16")
_METADATA = frozenset(
    ("size", "dim", "ndimension", "numel", "stride", "is_floating_point", "is_complex", "element_size",
     "get_device", "data_ptr", "requires_grad_", "is_contiguous", "untyped_storage", "__len__", "__hash__",
     "__deepcopy__", "__repr__")
)  # fmt: skip
_MADE = frozenset(
    ("zeros", "ones", "empty", "full", "rand", "randn", "tensor", "as_tensor", "arange", "linspace",
     "logspace", "eye", "from_numpy")
)  # fmt: skip
_DROPOUTS = tuple(f"{kind}{place}" for kind in ("dropout", "alpha_dropout", "feature_dropout",
                  "feature_alpha_dropout") for place in ("", "_"))  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One call of a network. ``label`` says in an error or a note which it is; empty for the first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    method: str = FORWARD
    training: bool = False
    label: str = ""

    def redrawn(self, generator: torch.Generator) -> Run:
        """Return the same call with other numbers of the same kind."""
        return replace(self, args=redrawn(self.args, generator), kwargs=redrawn(self.kwargs, generator))

    def resized(self, size: int, other: int) -> Run:
        """Return the same call with every dim of ``size`` cut, or repeated, to ``other``."""
        return replace(self, args=resized(self.args, size, other), kwargs=resized(self.kwargs, size, other))

    def as_dtype(self, dtype: torch.dtype) -> Run:
        """Return the same call with floating-point numbers of ``dtype``."""
        return replace(self, args=as_dtype(self.args, dtype), kwargs=as_dtype(self.kwargs, dtype))

    @torch.no_grad()
    def on(self, model: nn.Module) -> Any:
        """Call ``model``, a copy of nobody else's, without gradients; nothing in it is drawn at random.

        In training mode its batch norms stay in eval mode: statistics of the batch are not what a removal
        is to keep.
        """
        model.train(self.training)
        for module in model.modules() if self.training else ():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
            if isinstance(vars(module).get("dropout"), float):  # of attention and recurrent layers
                module.dropout = 0.0  # type: ignore[assignment]
        target = model if self.method == FORWARD else getattr(model, self.method)
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            plain = uncached(model) if self.method == FORWARD else nullcontext()
            undisturbed = Undisturbed() if self.training else nullcontext()
            with as_written(), in_full_precision(), plain, same_random_state(), undisturbed:
                return target(*fresh(self.args), **fresh(self.kwargs))
        finally:
            # A power iteration, an observer: the next call begins where this did.
            for buffer, value in before:
                if buffer.shape == value.shape:
                    buffer.copy_(value)

    def computed_in(self, dtype: torch.dtype, model: nn.Module) -> Any:
        """Do what ``on`` does in ``dtype``, what the forward casts to another one for too: norms, above all,
        do not round the same over fewer channels."""
        with Wide(dtype):
            return self.as_dtype(dtype).on(model)


def runs_of(
    model: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    examples: Sequence[Any] = (),
    methods: Methods = (FORWARD,),
) -> list[Run]:
    """Return the calls that a user's examples stand for, the first of them ``example_inputs``' forward.

    ``examples``: more inputs, each as ``example_inputs``. ``methods``: the names of those that are called
    on every example, or a mapping from the name of one to the inputs of its own.

    Raises ModelError for a method that the model does not have.
    """
    if not isinstance(examples, (list, tuple)):
        raise ModelError(f"examples is a {type(examples).__name__}; it is a list, each as example_inputs is")
    args, named = arguments(example_inputs, kwargs)
    calls = [("", args, named)]
    calls += [(f"examples[{index}]", *arguments(example, None)) for index, example in enumerate(examples)]
    runs = [Run(args, named, label=label) for label, args, named in calls]
    own = methods if isinstance(methods, Mapping) else {}
    if not isinstance(methods, Iterable) or not all(isinstance(name, str) for name in methods):
        raise ModelError(f"methods is {shown(methods)}; it is names of methods, or a dict of inputs by name")
    for method in [methods] if isinstance(methods, str) else methods:
        if not callable(getattr(model, method, None)):
            known = [name for name in dir(type(model)) if not name.startswith("_")]
            raise ModelError(f"{type(model).__name__} has no method {method!r}{nearest(method, known)}")
        if method == FORWARD:
            continue
        if method in own:
            args, named = arguments(own[method], None)
            runs.append(Run(args, named, method, label=f"{method}()"))
            continue
        runs += [
            Run(args, named, method, label=f"{method}()" + (f" on {label}" if label else ""))
            for label, args, named in calls
        ]
    return runs


def in_training(run: Run) -> Run:
    """Return the same call in training mode."""
    label = "the training forward" if run.method == FORWARD else f"{run.label} in training"
    if run.method == FORWARD and run.label:
        label += f" on {run.label}"
    return replace(run, training=True, label=label)


@contextmanager
def same_random_state() -> Iterator[None]:
    """Begin from the same random state whenever this is entered, and leave the caller's as it was."""
    own, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    with seeded(0):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(array)  # noqa: NPY002


class Undisturbed(TorchFunctionMode):
    """A training forward without its noise: nothing is dropped, and what is drawn is one number all over,
    so that a network with fewer channels draws what the one with all of them does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            args = (*args[:4], *(0.0 for _ in args[4:5]), *args[5:])
            kwargs |= {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
        result = func(*args, **kwargs)
        drawn = _DRAWN.get(name)
        return result if drawn is None else result.fill_(drawn)


def _check_heads(*operands: Any) -> None:
    """Refuse queries without keys: torch up to 2.11 divides by the number of key heads, which ends the
    process."""
    heads = [t.shape[-3] for t in operands if isinstance(t, Tensor) and t.dim() > 3]
    if heads and not all(heads):
        raise RuntimeError("attention without heads")


class Wide(TorchFunctionMode):
    """A network of narrower numbers computed in ``dtype``, its weights cast one by one as they are read, so
    that no copy of all of them is made. Where its code asks for a narrower dtype it gets this one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        bits = torch.finfo(dtype).bits
        narrower = [own for own in _FLOATS if torch.finfo(own).bits < bits]
        self.dtype, self.wider = dtype, dict.fromkeys(narrower, dtype)
        if bits == 64:
            self.wider |= {torch.complex64: torch.complex128}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", "").partition(".")[0], kwargs or {}
        if name == "__get__":
            result = func(*args, **kwargs)
            return self.wider.get(result, result) if isinstance(result, torch.dtype) else result
        if name in _METADATA:
            return func(*args, **kwargs)
        if name in _MADE:  # the numbers that the network itself would make, and may have kept
            return self._wide(func(*args, **kwargs))
        if name in _CASTS and func is getattr(Tensor, name, None):
            return func(*args, **kwargs) if args[0].is_complex() else args[0].to(self.dtype)
        written = (name.endswith("_") and not name.endswith("__")) or name.startswith(("__i", "__set"))
        first = args[:1] if written else ()  # what is written to stays the tensor that it is
        if name == "scaled_dot_product_attention":
            _check_heads(*args[:2])
        args = (*first, *map(self._wide, args[len(first) :]))
        return func(*args, **{k: v if k == "out" else self._wide(v) for k, v in kwargs.items()})

    def _wide(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(wider) if (wider := self.wider.get(value.dtype)) else value
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            parts = map(self._wide, value)
            return list(parts) if isinstance(value, list) else tuple(parts)
        if type(value) is dict:
            return {key: self._wide(part) for key, part in value.items()}
        return self.wider.get(value, value) if isinstance(value, torch.dtype) else value


def outputs_of(runs: Iterable[Run], model: nn.Module, dtype: torch.dtype) -> list[Any]:
    """Return what a model gives in all calls; an error carries a note of the label of the one it was raised
    in."""
    outputs = []
    for run in runs:
        try:
            outputs.append(run.computed_in(dtype, model))
        except Exception as error:
            error.add_note(run.label)
            raise
    return outputs


def widest(model: nn.Module, run: Run) -> torch.dtype:
    """Return float64 where a copy of the model runs in it, else float32."""
    work = copied(model)
    try:
        run.computed_in(torch.float64, work)
    except Exception:  # whatever a forward raises on numbers that it did not expect
        return torch.float32
    return torch.float64


class Seen(TorchDispatchMode):
    """Notes which tensors of a model its operators read, by canonical name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in reversed(list(all_tensors(model)))}
        self.read: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in _pytree.arg_tree_leaves(*args, **(kwargs or {})):
            if id(leaf) in self.names:
                self.read.add(self.names[id(leaf)])
        return func(*args, **(kwargs or {}))


def why_not(error: Exception) -> str:
    """Return what an error of somebody's forward says, with its kind, on one line."""
    return f"{type(error).__name__}: {first_line(error)}"
