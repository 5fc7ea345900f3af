"""A pruned network taught by the one it came from: its outputs, chosen features, or layer by layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from secateur.copying import copied, fresh
from secateur.errors import CriterionError, ModelError, NonFiniteError, SecateurWarning
from secateur.graph.names import unwrapped
from secateur.methods.adapters import adapted
from secateur.numeric import is_real, is_whole
from secateur.pruning.batches import Batches, batches
from secateur.pruning.masks import Masks
from secateur.pruning.targets import sparsity
from secateur.running import as_written, call_model, failing, seeded, shapes
from secateur.task.base import Task
from secateur.task.built_in import classification
from secateur.text import nearest

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Distilled:
    """How a network came nearer to its teacher; printed it is a line for all that was taught.

    Attributes:
        losses: by what was taught ("outputs", or the path of a module) the mean loss of each epoch: of the
            outputs the task's divergence, of features the squared difference over the teacher's own square.

    Example:
        >>> import secateur as sc
        >>> sc.Distilled({"outputs": (0.5, 0.25)})
        outputs: 0.5 -> 0.25
    """

    losses: dict[str, tuple[float, ...]]

    def __repr__(self) -> str:
        named = {name or "the network": of for name, of in self.losses.items()}
        return "\n".join(f"{name}: {' -> '.join(f'{v:.3g}' for v in of)}" for name, of in named.items())


def distill(
    model: nn.Module,
    teacher: nn.Module,
    data: Batches,
    *,
    outputs: float = 1.0,
    labels: float = 0.0,
    features: Sequence[str] = (),
    layer_by_layer: bool = False,
    temperature: float = 2.0,
    task: Task | None = None,
    epochs: int = 1,
    optimizer: MakeOptimizer | None = None,
    masks: Masks | None = None,
    rank: int | None = None,
) -> Distilled:
    """Train ``model`` in place towards what ``teacher``, such as the dense network, gives on the same inputs.

    No labels are needed, and an error leaves the model as it was: a copy is trained. Features whose channels
    differ in number are compared through a linear map that is trained along and thrown away. One block of a
    network is taught alone by ``outputs=0, features=[""]``: what it gives, on the inputs of the block.

    With a ``rank`` each Linear weight W becomes (W + B A) * mask, of which B and A are trained, with biases
    and norms, and merged at the end: few numbers to train, and as sparse as before.

    Args:
        model: the network, pruned or already smaller.
        teacher: the network that it learns from, which is not changed.
        data: batches of inputs or (inputs, labels) that can be read ``epochs`` times.
        outputs: the weight of the outputs' divergence; 0 leaves them out.
        labels: the weight of the task's own loss on the labels; 0 needs none.
        features: paths of modules whose outputs are matched too, each with weight 1; "" is the network, its
            ``logits`` or first tensor.
        layer_by_layer: each of ``features`` is trained alone, one after the other, on what the trained ones
            before it give; outputs and labels play no part.
        temperature: of the outputs' divergence (Hinton et al. 2015).
        task: whose divergence and loss they are; default classification.
        epochs: how often the data are read; layer by layer, for each of them.
        optimizer: makes an optimizer of parameters; default AdamW with a learning rate of 1e-4.
        masks: zeros that are held meanwhile; without them those of single weights are lost, with a warning.
        rank: of low-rank adapters that are trained instead of all weights; weights used twice (a tied head)
            have none.

    Returns:
        The losses.

    Raises:
        ModelError: for a module that is not there, or outputs that cannot be compared.
        CriterionError: for data that cannot be read so often, or that lack labels; for settings that teach
            nothing.
        NonFiniteError: where a loss stops being a number.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Romero et al., "FitNets", 2015;
        adapters that keep the mask: Zimmer et al., "PERP", 2023.

    Example:
        >>> import torch, secateur as sc
        >>> dense = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        >>> x = torch.randn(256, 8)
        >>> small, proof = sc.prune_to(dense, x[:2], parameters=0.5)
        >>> make = lambda parameters: torch.optim.Adam(parameters, 0.01)
        >>> found = sc.distill(small, dense, x.split(32), epochs=5, optimizer=make)
        >>> found.losses["outputs"][-1] < found.losses["outputs"][0] / 2
        True
    """
    model, teacher = unwrapped(model), unwrapped(teacher)
    _check(outputs, labels, temperature, epochs, features, layer_by_layer, rank)
    for network in (model, teacher):
        for path in features:
            _module(network, path)
    if iter(data) is data and (epochs > 1 or (layer_by_layer and len(features) > 1)):
        raise CriterionError("data is an iterator, which can be read once; a list of batches is right")
    task = classification() if task is None else task
    make = optimizer or partial(AdamW, lr=1e-4)
    work = copied(model)
    bound = None if masks is None else masks.bind(work)
    taught = nullcontext(bound) if rank is None else adapted(work, rank, bound)
    with as_written(), torch.enable_grad(), taught as left:
        lesson = _Lesson(work, copied(teacher).eval(), data, epochs, make, left)
        if layer_by_layer:
            losses = {path: lesson.layer(path) for path in features}
        else:
            losses = lesson.whole(outputs, labels, features, task, temperature)
    lost = sparsity(model) - sparsity(work)
    if masks is None and lost > 0:
        warnings.warn(
            f"{lost:.1%} of the weights were zero and are not any more; pass masks= to hold them",
            SecateurWarning,
            stacklevel=2,
        )
    model.load_state_dict(work.state_dict())
    return Distilled(losses)


def _check(
    outputs: float,
    labels: float,
    temperature: float,
    epochs: int,
    features: Sequence[str],
    layers: bool,
    rank: int | None,
) -> None:
    for name, weight in (("outputs", outputs), ("labels", labels)):
        if not is_real(weight) or weight < 0:
            raise CriterionError(f"{name} is {weight!r}; it is a weight from 0")
    if not is_real(temperature) or temperature <= 0:
        raise CriterionError(f"temperature is {temperature!r}; it is a positive number")
    if not is_whole(epochs) or epochs < 1:
        raise CriterionError(f"epochs is {epochs!r}; it counts from 1")
    if rank is not None and (not is_whole(rank) or rank < 1):
        raise CriterionError(f"rank is {rank!r}; it counts from 1")
    if isinstance(features, str):
        raise CriterionError(f"features is {features!r}; it is a list of paths: [{features!r}]")
    if layers and not features:
        raise CriterionError("layer_by_layer: name the modules, in their order, in features=")
    if not (outputs or features or labels):
        raise CriterionError("nothing is taught: give outputs= or labels= a weight, or name features=")


def _module(network: nn.Module, path: str) -> nn.Module:
    modules = dict(network.named_modules())
    if path not in modules:
        raise ModelError(f"{type(network).__name__} has no module {path!r}{nearest(path, modules)}")
    return modules[path]


class _Reached(Exception):
    """Ends a forward that has come to the last module that is looked at."""


@dataclass(frozen=True)
class _Lesson:
    """A network and its teacher, and how the one is trained on what the other gives."""

    model: nn.Module
    teacher: nn.Module
    data: Batches
    epochs: int
    make: MakeOptimizer
    masks: Masks | None

    def whole(
        self, outputs: float, labels: float, features: Sequence[str], task: Task, temperature: float
    ) -> dict[str, tuple[float, ...]]:
        """Train all parameters on outputs, labels and features together."""
        maps = nn.ModuleDict()
        self.model.train()

        def parts(inputs: Any, own: Any) -> Iterator[tuple[str, float, Tensor]]:
            with torch.no_grad(), _looking(self.teacher, features) as wanted:
                aim = call_model(self.teacher, inputs)
            with _looking(self.model, features) as seen:
                found = call_model(self.model, inputs)
            if outputs:
                yield "outputs", outputs, task.divergence(found, aim, temperature, own)
            for path in features:
                yield path, 1.0, _difference(path, seen[path], wanted[path], maps)
            if labels:
                if own is None:
                    raise CriterionError("labels has a weight, and the batches have no labels")
                yield "labels", labels, task.loss(found, own)

        return self._trained(self.model, parts, maps)

    def layer(self, path: str) -> tuple[float, ...]:
        """Train one module alone."""
        module, maps = _module(self.model, path), nn.ModuleDict()
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ModelError(f"{path}: has no parameter that is trained")
        self.model.eval()
        module.train()

        def parts(inputs: Any, own: Any) -> Iterator[tuple[str, float, Tensor]]:
            del own
            with torch.no_grad(), _looking(self.teacher, [path], stop=True) as wanted:
                call_model(self.teacher, inputs)
            with _looking(self.model, [path], stop=True) as seen:
                call_model(self.model, inputs)
            yield path, 1.0, _difference(path, seen[path], wanted[path], maps)

        return self._trained(module, parts, maps)[path]

    def _trained(self, part: nn.Module, parts: Callable[..., Any], maps: nn.ModuleDict) -> Any:
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        optimizer, along, losses = self.make(trained), None, dict[str, list[float]]()
        with self.masks.held(optimizer) if self.masks is not None else nullcontext():
            for epoch in range(self.epochs):
                sums: dict[str, float] = {}
                number = 0
                for inputs, own in batches(self.data, "distill", self.model):
                    number += 1
                    with failing(self.model, inputs, "a batch of data="):
                        found = list(parts(fresh(inputs), own))
                    if along is None and len(maps):
                        along = AdamW(maps.parameters(), lr=1e-2)
                    total = torch.stack([weight * loss for _, weight, loss in found]).sum()
                    if not math.isfinite(float(total.detach())):
                        raise NonFiniteError(f"the loss became {float(total.detach())} in epoch {epoch + 1}")
                    both = [each for each in (optimizer, along) if each is not None]
                    for each in both:
                        each.zero_grad(set_to_none=True)
                    total.backward()
                    for each in both:
                        each.step()
                    for name, _, loss in found:
                        sums[name] = sums.get(name, 0.0) + float(loss.detach())
                for name, of in sums.items():
                    losses.setdefault(name, []).append(of / number)
        return {name: tuple(of) for name, of in losses.items()}


@contextmanager
def _looking(network: nn.Module, paths: Sequence[str], *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Yield what the modules at ``paths`` put out, once the network has run; with ``stop`` no further."""
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, args: Any, output: Any, *, path: str) -> None:
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        first = getattr(first, "last_hidden_state", getattr(first, "logits", first))
        if not isinstance(first, Tensor):
            raise ModelError(f"{path}: puts out {shapes(output)[:200]}; a tensor first is right")
        seen[path] = first
        if stop and len(seen) == len(paths):
            raise _Reached

    with ExitStack() as stack:
        for path in paths:
            hook = _module(network, path).register_forward_hook(partial(note, path=path))
            stack.callback(hook.remove)
        stack.enter_context(suppress(_Reached))
        yield seen
    missing = [path for path in paths if path not in seen]
    if missing:
        raise ModelError(f"{missing[0]}: does not run on the data; name another module in features=")


def _difference(path: str, found: Tensor, wanted: Tensor, maps: nn.ModuleDict) -> Tensor:
    """Return the squared difference over the teacher's own square; where the channels of the two differ in
    number, through a linear map of theirs in ``maps``."""
    if found.shape != wanted.shape:
        dims = [d for d, (a, b) in enumerate(zip(found.shape, wanted.shape, strict=False)) if a != b]
        if found.dim() != wanted.dim() or len(dims) != 1:
            raise ModelError(
                f"{path}: gives {tuple(found.shape)}, and the teacher's {tuple(wanted.shape)}; shapes that "
                "differ in one dim at most can be compared"
            )
        (dim,) = dims
        key = path.replace(".", "/") or "/"
        if key not in maps:
            with seeded(0):
                maps[key] = nn.Linear(found.shape[dim], wanted.shape[dim]).to(found)
        found = maps[key](found.movedim(dim, -1)).movedim(-1, dim)
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)
