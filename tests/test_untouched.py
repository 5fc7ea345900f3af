"""Nothing given ever changes: what a forward keeps for itself stays as it was, whichever function runs it.

Seven ways in which forwards keep things, in networks that never ran, ran at another shape, or ran at this
one, and every public function that takes a network.
"""

from __future__ import annotations

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from networks.keeping import DATA, GRIDS, IDIOMS, LENGTH, OTHER, Net, X, built, cached_grid, grid
from secateur.copying import copied
from secateur.errors import ModelError
from secateur.methods import constraints

# -- every public function that takes a network --------------------------------------------------------


def pruned(net: nn.Module) -> nn.Module:
    """Half of the first layer's channels are zero, as pruning leaves them."""
    with torch.no_grad():
        for parameter in (net.a.weight, net.a.bias, net.norm.weight, net.norm.bias):
            parameter[:4] = 0
        net.b.weight[:, :4] = 0
    return net


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)


def small_step(net: nn.Module, *rest: Any) -> None:
    sgd(net).step()


def score(net: nn.Module) -> tuple[float, float]:
    """An evaluation that does not run the network: what that keeps is the caller's affair."""
    return float(net.b.weight.detach().abs().sum()), 0.0


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


def pruning(criterion: Any, budget: Any = None, **options: Any) -> Callable[[nn.Module, Path], Any]:
    def run(net: nn.Module, folder: Path) -> Any:
        structure = sc.trace(net, X) if options.get("structure") else None
        data = {"data": DATA, "loss": loss} if options.get("loss") else {"data": DATA}
        return sc.prune(net, criterion, budget or sc.Uniform(0.5), structure=structure, **data)

    return run


def gradual(net: nn.Module, folder: Path) -> None:
    for _ in sc.gradually(net, sc.Wanda(), sc.Uniform(0.5), sc.Iterative(2), data=DATA):
        pass


def during(net: nn.Module, folder: Path) -> None:
    optimizer = sgd(net)
    with sc.during(optimizer, net, sc.Magnitude(), sc.Uniform(0.5), sc.OneShot(), every=1):
        optimizer.step()
        optimizer.step()


def masks(net: nn.Module, folder: Path) -> None:
    made = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    made.apply(net)
    made.bind(net).check()


def refit(net: nn.Module, folder: Path) -> None:
    dense = copied(net)
    structure = sc.trace(net, X)
    before = Snapshot(dense)
    sc.reconstruct(pruned(net), dense, structure, DATA)
    assert before.changes(dense) == []


def moved_along(net: nn.Module, folder: Path) -> None:
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    sc.sparsegpt(net, sc.Uniform(0.5), DATA)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(before[name])  # what it is for


def recalibrated(net: nn.Module, folder: Path) -> None:
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    sc.recalibrate(net, DATA)
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            buffer.copy_(before[name])  # what it is for


def taught(net: nn.Module, folder: Path) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    sc.distill(net, copied(net), DATA)
    sc.distill(net, copied(net), DATA, rank=2)
    net.load_state_dict(before)  # what it is for


def constrained(net: nn.Module, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constraints, "_PROBES", 2)  # every one of them does the same
        sc.prune_to(net, X, macs=0.7)


def saved(net: nn.Module, folder: Path) -> None:
    sc.save(net, folder / "net.safetensors")


def loaded(net: nn.Module, folder: Path) -> None:
    sc.save(net, folder / "net.safetensors")
    sc.load(net, folder / "net.safetensors")


def refused_as_none_of_transformers(net: nn.Module, folder: Path) -> None:
    with pytest.raises(ModelError, match="no model of transformers"):
        sc.save_pretrained(net, folder / "folder", X)


def without_experts(net: nn.Module, folder: Path) -> None:
    with pytest.raises(ModelError, match="no mixture"):
        sc.remove_experts(net, X, {"keep": [0]})


def scored_experts(net: nn.Module, folder: Path) -> None:
    with pytest.raises(ModelError, match="no mixture"):
        sc.score_experts(net, DATA)


def shallower(net: nn.Module, folder: Path) -> None:
    with pytest.raises(ModelError, match="no chain of blocks"):
        sc.block_influence(net, DATA)
    with pytest.raises(ModelError, match="no block"):
        sc.drop_blocks(net, X, ["b"])


def unpacked(net: nn.Module, folder: Path) -> None:
    sc.pack(net, folder / "net.secateur")
    sc.unpack(net, folder / "net.secateur")


def selection(net: nn.Module, folder: Path) -> None:
    selected = sc.StructureSelection(net, X, blocks=False)
    next(iter(selected.factors.values()))[:4] = 0
    selected.fold()


def slimmed(net: nn.Module, folder: Path) -> None:
    optimizer = sgd(net)
    with sc.slimming(optimizer, net):
        optimizer.step()


def branches(net: nn.Module, folder: Path) -> None:
    sc.BranchAnnealing(net, X, data=DATA).fold()


def annealed(net: nn.Module, folder: Path) -> None:
    made = sc.BranchAnnealing(net, X, start="random")
    sc.anneal_branches(made, lambda *_: None, lambda network: (0.5, 1.0), sc.Annealing(sc.Descent(step=0.5)))


def shared(net: nn.Module, folder: Path) -> None:
    sharing = sc.share_weights(net, values=4)
    sharing.apply(net)
    sharing.check()


def exported(net: nn.Module, folder: Path) -> None:
    sc.export_onnx(net, X, folder / "int8.onnx", int8=True, data=DATA)


def moved(net: nn.Module, folder: Path) -> None:
    optimizer = sgd(net)
    with sc.Movement().watching(optimizer, net):
        optimizer.step()


def regrown(net: nn.Module, folder: Path) -> None:
    sc.regrow(sc.prune(net, sc.Magnitude(), sc.Uniform(0.5)), data=DATA, loss=loss)


READS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "find_targets": lambda net, folder: sc.find_targets(net),
    "sparsity": lambda net, folder: sc.sparsity(net, copied(net)),
    "trace": lambda net, folder: sc.trace(net, X),
    "Structure": lambda net, folder: repr(sc.trace(net, X)),
    "compact": lambda net, folder: sc.compact(net, X, optimizer=sgd(net)),
    "compact as a graph": lambda net, folder: sc.compact(net, X, form="graph"),
    "find_experts": lambda net, folder: sc.find_experts(net, X),
    "remove_experts": without_experts,
    "score_experts": scored_experts,
    "block_influence": shallower,
    "drop_blocks": shallower,
    "save": saved,
    "save_pretrained": refused_as_none_of_transformers,
    "pack": lambda net, folder: sc.pack(net, folder / "net.secateur"),
    "sparsify": lambda net, folder: sc.sparsify(net, X, seconds=0.001),
    "profile": lambda net, folder: sc.profile(net, X, dense=net, seconds=0.001),
    "low_rank": lambda net, folder: sc.low_rank(net, X, share=0.5, include="b"),
    "VariationalDropout": lambda net, folder: sc.VariationalDropout(net, 10, include="b").fold(),
    "sensitivity": lambda net, folder: sc.sensitivity(
        net, score, criterion=sc.Wanda(), levels=(0.5,), data=DATA
    ),
}
WRITES: dict[str, Callable[[nn.Module, Path], Any]] = {
    "prune": pruning(sc.Magnitude()),
    "prune: Wanda": pruning(sc.Wanda()),
    "prune: Wanda in running order": pruning(sc.Wanda(sequential=True)),
    "prune: Taylor": pruning(sc.Taylor(), loss=True),
    "prune: Fisher": pruning(sc.Fisher(), loss=True),
    "prune: ActivationNorm": pruning(sc.ActivationNorm(), structure=True),
    "prune: L2Norm": pruning(sc.L2Norm(), structure=True),
    "prune: SynFlow": pruning(sc.SynFlow()),
    "prune: FPGM": pruning(sc.FPGM(), structure=True),
    "prune: Reconstruction": pruning(sc.Reconstruction(), structure=True),
    "evaluate": lambda net, folder: sc.evaluate(net, DATA),
    "regrow": regrown,
    "Movement": moved,
    "gradually": gradual,
    "during": during,
    "Masks": masks,
    "load": loaded,
    "unpack": unpacked,
    "reconstruct": refit,
    "slimming": slimmed,
    "share_weights": shared,
    "Sharing": shared,
}
# These take seconds: one network with all idioms at once.
SLOW: dict[str, Callable[[nn.Module, Path], Any]] = {
    "recalibrate": recalibrated,
    "sparsegpt": moved_along,
    "distill": taught,
    "prune_to": constrained,
    "prune_greedily": lambda net, folder: sc.prune_greedily(net, X, DATA, parameters=0.8),
    "StructureSelection": selection,
    "L0Gates": lambda net, folder: sc.L0Gates(net, X).fold(),
    "BranchAnnealing": branches,
    "anneal_branches": annealed,
    "write_folder": lambda net, folder: sc.write_folder(net, X, folder / "out"),
    "export_onnx": exported,
}


def takes_a_network(function: Any) -> bool:
    called = [function]
    if inspect.isclass(function):
        called += [value for name, value in vars(function).items() if name[0] != "_" and callable(value)]
    for one in called:
        with suppress(ValueError):
            kinds = [str(p.annotation) for p in inspect.signature(one).parameters.values()]
            if any("Module" in kind and "type[" not in kind for kind in kinds):
                return True
    return False


def test_every_public_function_that_takes_a_network_is_here():
    public = {name for name in sc.PUBLIC if takes_a_network(getattr(sc, name))}
    assert public <= {name.partition(":")[0] for name in (*READS, *WRITES, *SLOW)}


# -- what is compared ----------------------------------------------------------------------------------


class Snapshot:
    """What a network holds, by where: every attribute, item of a container and field of a plain object."""

    def __init__(self, net: nn.Module, values: bool = True) -> None:
        self.values = values
        self.found = dict(self._walk("", net, set()))

    def _walk(self, path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Tensor):
            parameter = isinstance(value, nn.Parameter)
            numbers = value.detach().clone() if self.values or not parameter else None
            yield path, (value, type(value), value.requires_grad, value.is_inference(), numbers)
            if value.is_leaf and value.grad is not None:
                slope = value.grad.clone() if self.values else None
                yield f"{path}.grad", (value.grad, type(value.grad), False, False, slope)
            return
        if isinstance(value, (int, float, str, bool, torch.Size, type(None))):
            yield path, value
            return
        yield path, (value, type(value))
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, dict):
            inside = {f"[{key!r}]": part for key, part in value.items()}
        elif isinstance(value, (list, tuple, deque)):
            inside = {f"[{number}]": part for number, part in enumerate(value)}
        else:
            inside = {f".{name}": part for name, part in getattr(value, "__dict__", {}).items()}
        for name, part in inside.items():
            yield from self._walk(path + name, part, seen)

    def changes(self, net: nn.Module) -> list[str]:
        now = Snapshot(net, self.values).found
        lost = [f"lost {path}" for path in self.found.keys() - now.keys()]
        new = [f"new {path}" for path in now.keys() - self.found.keys()]
        both = self.found.keys() & now.keys()
        return sorted(lost + new + [path for path in both if not same(self.found[path], now[path])])


def same(before: Any, after: Any) -> bool:
    if not isinstance(before, tuple) or isinstance(before, torch.Size):
        return type(before) is type(after) and before == after
    *_, numbers = before
    if isinstance(before[0], Tensor) and isinstance(numbers, Tensor):
        return before[0] is after[0] and before[1:4] == after[1:4] and torch.equal(numbers, after[4])
    return before[0] is after[0] and before[1:] == after[1:]


def check_caches() -> None:
    """What networks share for good is real, and can be trained through."""
    shared_grids = [*GRIDS.items(), *((n, cached_grid(n)) for n in (LENGTH, OTHER))]
    for length, tensor in shared_grids:
        assert type(tensor) is Tensor
        assert not tensor.is_inference()
        assert torch.equal(tensor, grid(length))


CASES = [(name, idiom.__name__, (idiom,)) for name in (*READS, *WRITES) for idiom in IDIOMS] + [
    (name, "all", IDIOMS) for name in SLOW
]


@pytest.mark.parametrize("state", ["never run", "run at another shape", "run at this shape"])
@pytest.mark.parametrize(
    ("name", "idioms"),
    [pytest.param(name, idioms, id=f"{name}-{kind}") for name, kind, idioms in CASES],
)
def test_nothing_but_what_is_asked_for_changes(name, idioms, state, tmp_path):
    net = built(idioms, state)
    writes = name in WRITES
    dense = copied_for_comparison(net)
    before = Snapshot(net, values=not writes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (READS | WRITES | SLOW)[name](net, tmp_path)
    changes = before.changes(net)
    if name in ("load", "unpack"):  # their tensors are new
        changes = [place for place in changes if "['keep']" in place and "_buffers" not in place]
    assert changes == []
    check_caches()
    if writes:
        dense.load_state_dict(net.state_dict())
    x = X.clone()
    assert torch.equal(net.eval()(x), dense.eval()(x))
    net(x).sum().backward()  # nothing that it keeps is in the way of training


def copied_for_comparison(net: nn.Module) -> nn.Module:
    """A network of its own with the same weights, which has never run."""
    made = Net(*(type(module) for module in net.keep))
    made.load_state_dict(net.state_dict())
    return made
