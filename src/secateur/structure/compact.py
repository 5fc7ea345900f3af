"""``compact``: a new, really smaller model, proved equal to the one given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.copying import copied
from secateur.errors import ModelError, NonFiniteError
from secateur.graph.capture import all_tensors, module_of
from secateur.graph.names import unwrapped
from secateur.measure.macs import count_macs
from secateur.measure.size import count_parameters
from secateur.running import run_once
from secateur.structure.attributes import changed_sizes
from secateur.structure.dead import find_dead
from secateur.structure.following import Follower, Trainers
from secateur.structure.graph_form import graph_form
from secateur.structure.other_forwards import follow
from secateur.structure.proof import Proof, untraced
from secateur.structure.runs import FORWARD, Methods, runs_of
from secateur.structure.stated import restate
from secateur.structure.surgery import removed_by
from secateur.structure.trial import Trial
from secateur.structure.units import FORMS, Structure, analyse


def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    examples: Sequence[Any] = (),
    methods: Methods = ("forward",),
    optimizer: Any = None,
    scheduler: Any = None,
    masks: Follower | None = None,
    structure: Structure | None = None,
    form: str = "modules",
) -> tuple[nn.Module, Proof]:
    """Remove every unit that is dead, unread or constant, and prove that nothing else changed.

    Units are dead whatever made them so: structured masks, unstructured ones that emptied a row or all
    columns of a neuron, or training. Constant outputs are folded into the next bias where that is exact. The
    given model never changes.

    Every call is compared in eval mode, and in training mode (batch norms in eval mode, nothing dropped)
    where it runs so; a unit whose removal breaks one of them stays. Where a ``forward`` has sizes written
    into it that no attribute explains, the units concerned stay (their zeros too) and ``proof.kept`` says so.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        kwargs: arguments by name beside ``example_inputs``.
        examples: more inputs, each as ``example_inputs``, for paths that those do not take.
        methods: names of methods that are called on all of them, or a mapping from a name to the inputs of
            its own.
        optimizer: one that trains ``model``, or a list; its like for the small model, with momentum and
            Adam's moments cut to size, is ``proof.optimizer``.
        scheduler: of that optimizer; its like is ``proof.scheduler``.
        masks: masks (or a ``secateur.Sharing``) held on ``model``; the same for the small model are
            ``proof.masks``.
        structure: a ``secateur.trace`` of this model, to save time, or because it was made with
            ``streams=True``.
        form: "modules", a model of the same class; or "graph", a ``torch.fx.GraphModule`` of the captured
            forward, which no size written into a ``forward`` keeps from losing anything. It has the same
            names of parameters, takes batches of any size where the model does, and runs in eval mode alone.

    Returns:
        A new model, and a ``Proof``. ``proof.notes`` says what was not compared,
        ``proof.unseen`` which parameters of a size that was cut no call has read.

    Raises:
        ModelError: where the model cannot be captured, copied or run, or where the small one is not equal and
            no such withdrawal mends it.
        NonFiniteError: for a NaN or an infinity in the weights or the outputs.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> x = torch.randn(2, 8)
        >>> _ = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
        >>> small, proof = sc.compact(net, x)
        >>> small
        Sequential(
          (0): Linear(in_features=8, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=4, bias=True)
        )
        >>> torch.allclose(small(x), net(x), atol=1e-6)
        True
    """
    model = unwrapped(model)
    runs = runs_of(model, example_inputs, kwargs, examples, methods)
    if structure is not None and (not isinstance(structure, Structure) or structure.model is not model):
        raise ModelError(f"structure= {untraced(structure)}")
    if form not in FORMS:
        raise ModelError(f"form is {form!r}; it is 'modules' or 'graph'")
    if form == "graph" and (other := [run.label for run in runs if run.method != FORWARD]):
        raise ModelError(f"form='graph' is of the forward alone, without {other[0]}")
    if meta := next((name for name, tensor in all_tensors(model) if tensor.is_meta), None):
        raise ModelError(f"{meta} is on the meta device, without values; nothing can be compared")
    _check_no_nan(model)
    args, named = runs[0].args, runs[0].kwargs
    run_once(model, args, kwargs=named)
    structure = structure or analyse(model, args, kwargs=named, form=form)
    found = find_dead(copied(model).eval(), structure)
    graph = graph_form(structure) if form == "graph" else None
    trial = Trial(model, structure, runs, found, graph)
    stays = structure.known_to_stay if structure.walk.graph == (graph is not None) else {}
    done = trial.search({name: units for name, units in found.pruned.items() if name not in stays})
    pruned, changes, small = done.pruned, done.changes, done.small
    withdrawn = done.withdrawn | {name: why for name, why in stays.items() if found.pruned[name].any()}
    for name, module in small.named_modules() if graph is None else ():
        module.training = module_of(model, name).training
    if graph is not None:
        trial.notes.append(graph.note)
    elif withdrawn and structure.captured.program is not None:
        trial.notes.append("form='graph' has no sizes written into a forward, and may remove what is kept")
    found.kept.update(withdrawn)
    removed = removed_by(structure, pruned)
    stated = restate(model, small, runs[0]) if graph is None else []
    if graph is None:
        stated += follow(model, small, runs[0], changed_sizes(structure, removed))
    randomised = trial.prove_randomised(pruned, changes)
    trainers = Trainers(model, optimizer, scheduler).follow(small, removed)
    proof = Proof(
        inputs=len(trial.runs),
        dtype=str(trial.dtype).removeprefix("torch."),
        max_error=done.error,
        max_error_randomised=randomised,
        removed={n: (int(g.sum()), len(g)) for n, g in pruned.items() if g.any()},
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(count_macs(model, args, named).dense, count_macs(small, args, named).dense),
        kept=found.kept,
        folded=len(found.constants_of(pruned)),
        changed=(*map(str, changes), *stated),
        pruned=pruned,
        units={name: len(group) for name, group in structure.groups.items()},
        optimizer=trainers.optimizer,
        scheduler=trainers.scheduler,
        masks=None if masks is None else masks.follow(small, removed),
        notes=(*structure.captured.notes, *trial.notes, *_compiled(model), *trainers.notes),
        unseen=trial.unseen(removed),
    )
    return small, proof


def _compiled(model: nn.Module) -> list[str]:
    names = [name for name, module in model.named_modules() if "_orig_mod" in module._modules]
    return [f"{name} is compiled, and its copy is not; compile the small network anew" for name in names]


def _check_no_nan(model: nn.Module) -> None:
    """A NaN in a weight makes outputs NaN, which would be equal whatever is removed."""
    for name, tensor in all_tensors(model):
        parameter = isinstance(tensor, nn.Parameter)
        if tensor.is_floating_point() and (tensor.isnan().any() or (parameter and tensor.isinf().any())):
            raise NonFiniteError(f"{name}: holds a NaN or an infinity; nothing can be proved of its network")
