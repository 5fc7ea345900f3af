"""The same task by Torch-Pruning 1.6.1, as its README and its examples set it up.

Every group loses half of its channels by magnitude. What its README asks a reader to do by hand is
done here from the modules alone: layers whose channels reach an output are ignored, attention layers
are given their number of heads, and the sizes that its examples write back afterwards are written
back. With grouped queries whole heads go, as in its example for language models.

To know which entries went, all parameters are overwritten by their own positions once the importances
are computed; what the pruned network then holds are the positions that stayed. It is right when it
equals the network in which all other entries are zero. Where it differs from that, but equals a network
whose norms and whose fused attention's scale see the surviving channels alone, the reason says so: it
is wired right, and computes something else.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .judged import Case, Outcome, prepare, relative_error, tensors, verdict
from .zoo import Arguments, Network, Unavailable

TOLERANCE = 1e-6
ORDER = ("pass", "refused", "wrong", "fails")
BY_SCALE = "by norms' statistics or attention's scale alone"
ROOTS = [nn.modules.conv._ConvNd, nn.Linear, nn.LSTM]
PARTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    *((fused,) for fused in ("qkv", "qkv_proj", "query_key_value", "Wqkv", "c_attn", "in_proj")),
)
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
SHARED = ("num_key_value_heads", "num_kv_heads", "shared")


def peer(network: Network) -> Outcome:
    """Prune ``network`` by Torch-Pruning; of several ways to set it up, the best one counts."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise Unavailable("torch-pruning is not installed")
    warnings.simplefilter("ignore")
    found: list[Outcome] = []
    # it reads the autograd graph, which has other nodes in float32 and for attention written out
    for wide, eager in ((True, False), (False, False), (True, True)):
        if eager and not network.name.startswith("hf_"):
            continue
        try:
            found.append(attempt(network, wide, eager))
        except Unavailable:
            raise
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0]
            found.append(Outcome("fails", reason=f"{type(error).__name__}: {reason}"))
        if found[-1].status == "pass":
            break
    return min(found, key=lambda outcome: ORDER.index(outcome.status))


def attempt(network: Network, wide: bool, eager: bool) -> Outcome:
    case, untouched = prepare(network, wide), prepare(network, wide)
    if eager and hasattr(case.model, "set_attn_implementation"):
        for model in (case.model, untouched.model):
            model.set_attn_implementation("eager")
    model, masked = case.model, untouched.model
    before = sum(p.numel() for p in model.parameters())
    attentions = list(find_attentions(model))
    ignored = reaching_outputs(case)
    start = time.process_time()
    cut(case, attentions, ignored)
    seconds = time.process_time() - start
    try:
        kept = restore(model, masked)
    except UntraceableError as error:
        compare(model, model, case.draws)  # more often than not it cannot run, which says more
        return Outcome("wrong", 0.0, float("nan"), seconds, str(error))
    for attention, parts, _ in attentions:
        if parts:
            write_back(model, attention, parts)
    gone = 1 - sum(p.numel() for p in model.parameters()) / before
    error = compare(masked, model, case.draws)
    outcome = verdict(gone, error, max(TOLERANCE, case.tolerance), seconds)
    if outcome.status == "wrong":
        let_norms_see_survivors(masked, model, kept)
        with scale_of_survivors():
            if compare(masked, model, case.draws) <= max(TOLERANCE, case.tolerance):
                return Outcome("wrong", gone, error, seconds, f"{outcome.reason}, {BY_SCALE}")
    return outcome


def compare(masked: nn.Module, small: nn.Module, draws: list[Arguments]) -> float:
    with torch.no_grad():
        return max(relative_error(masked(*args, **kw), small(*args, **kw)) for args, kw in draws)


def run(model: nn.Module, arguments: Arguments) -> Any:
    return model(*arguments[0], **arguments[1])


def differentiable(out: Any) -> list[Tensor]:
    return [t for t in tensors(out) if t.grad_fn is not None]


def reaching_outputs(case: Case) -> list[nn.Module]:
    """Layers whose output channels come out of the network: "do not prune the final classifier"."""
    import torch_pruning

    outs: list[Tensor] = []

    def keep(out: Any) -> list[Tensor]:
        outs.extend(differentiable(out))
        return outs

    graph = torch_pruning.DependencyGraph().build_dependency(
        case.model, case.draws[0], forward_fn=run, output_transform=keep, verbose=False
    )
    makers = {out.grad_fn for out in outs}
    ignored = []
    for group in graph.get_all_groups(root_module_types=ROOTS):
        for dependency, _ in group:
            made_here = graph.is_out_channel_pruning_fn(dependency.handler)
            if made_here and dependency.target.grad_fn in makers:
                ignored.append(group[0].dep.target.module)
                break
    return ignored


def cut(case: Case, attentions: list[Any], ignored: list[nn.Module]) -> None:
    """Run the pruner; afterwards the parameters hold positions, not weights."""
    import torch_pruning

    heads = {part: number for _, _, numbers in attentions for part, number in numbers.items()}
    grouped = any(len(set(numbers.values())) > 1 for _, _, numbers in attentions)
    pruner = torch_pruning.pruner.BasePruner(
        case.model,
        case.draws[0],
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        num_heads=heads,
        prune_num_heads=grouped,
        prune_head_dims=not grouped,
        head_pruning_ratio=0.5 if grouped else 0.0,
        forward_fn=run,
        output_transform=differentiable,
    )
    groups = pruner.step(interactive=True)
    first = next(groups, None)
    with torch.no_grad():
        for tensor in (*case.model.parameters(), *statistics(case.model).values()):
            tensor.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape))
    if first is not None:
        first.prune()
    for group in groups:
        group.prune()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


def named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | statistics(model)


class UntraceableError(Exception):
    """A pruned parameter does not hold positions of the one it came from."""


@torch.no_grad()
def restore(small: nn.Module, masked: nn.Module) -> dict[str, Tensor]:
    """Put the weights back into ``small``, zero what it lost in ``masked``; say what stayed, by name."""
    original, positions = named(masked), {}
    for name, tensor in named(small).items():
        place = tensor.detach().round().long().clone()
        fits = name in original and bool((place == tensor).all()) and place.numel() == place.unique().numel()
        if not fits or (place.numel() and int(place.max()) >= original[name].numel()):
            raise UntraceableError(f"the pruned {name!r} cannot be traced back to the original")
        positions[name] = place
    kept = {}
    for name, tensor in named(small).items():
        old = original[name].detach()
        tensor.copy_(old.flatten()[positions[name]])
        stayed = torch.zeros(old.numel(), dtype=torch.bool)
        stayed[positions[name].flatten()] = True
        kept[name] = stayed.view(old.shape)
        owner, _, last = name.rpartition(".")
        # a new parameter for each name, since pruning unties weights too
        new = nn.Parameter(old * kept[name]) if isinstance(original[name], nn.Parameter) else old * kept[name]
        setattr(masked.get_submodule(owner), last, new)
    return kept


def let_norms_see_survivors(masked: nn.Module, small: nn.Module, kept: dict[str, Tensor]) -> None:
    """Have norms over channels run as in ``small``, their results scattered to the old places."""
    for name, module in masked.named_modules():
        stayed = kept.get(f"{name}.weight")
        if stayed is None or stayed.ndim != 1 or bool(stayed.all()) or "Norm" not in type(module).__name__:
            continue
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            axis = 1 if isinstance(module, nn.GroupNorm) else -1
            module.forward = partial(scattered, small.get_submodule(name), stayed.nonzero()[:, 0], axis)


def scattered(norm: nn.Module, index: Tensor, axis: int, x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_copy(axis, index, norm(x.index_select(axis, index)))


@contextmanager
def scale_of_survivors() -> Iterator[None]:
    """Have attention without a scale of its own count only positions at which queries are not all zero."""
    attend, fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()

    def counting(query: Tensor, *args: Any, scale: float | None = None, **kwargs: Any) -> Tensor:
        size = int((query != 0).flatten(0, -2).any(0).sum())
        return attend(query, *args, scale=scale or max(size, 1) ** -0.5, **kwargs)

    torch.backends.mha.set_fastpath_enabled(False)
    F.scaled_dot_product_attention = counting
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attend
        torch.backends.mha.set_fastpath_enabled(fast)


def find_attentions(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear], dict[nn.Module, int]]]:
    """Attention modules by the names of their layers: each with these and the heads of each."""
    config = getattr(model, "config", None)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            yield module, [], {module: module.num_heads}
            continue
        heads = number(module, HEADS) or number(getattr(module, "config", config), HEADS)
        shared = number(module, SHARED) or number(getattr(module, "config", config), SHARED) or heads
        for names in PARTS:
            parts = [getattr(module, name, None) for name in names]
            if heads and shared and all(isinstance(part, nn.Linear) for part in parts):
                counts = [heads] if len(parts) == 1 else [heads, shared, shared]
                yield module, parts, dict(zip(parts, counts, strict=True))
                break


def number(owner: Any, names: tuple[str, ...]) -> int | None:
    return next((n for n in (getattr(owner, name, None) for name in names) if isinstance(n, int)), None)


def write_back(model: nn.Module, attention: nn.Module, parts: list[nn.Linear]) -> None:
    """The sizes that Torch-Pruning's examples for ViT, BERT and Llama set after pruning."""
    heads = number(attention, HEADS) or number(getattr(model, "config", None), HEADS) or 1
    width = parts[0].out_features // (3 if len(parts) == 1 else 1)
    grouped = len(parts) == 3 and parts[1].out_features != parts[0].out_features
    size = number(attention, ("head_dim",))
    if grouped and size:
        left, shared = width // size, parts[1].out_features // size
        for name, value in (*((n, left) for n in HEADS), ("num_key_value_groups", left // max(shared, 1))):
            if isinstance(getattr(attention, name, None), int):
                setattr(attention, name, value)
        return
    sizes = dict.fromkeys(
        ("attention_head_size", "head_dim", "head_size", "key_value_proj_dim"), width // heads
    )
    for name, value in (sizes | {"all_head_size": width, "inner_dim": width}).items():
        if isinstance(getattr(attention, name, None), int):
            setattr(attention, name, value)
