import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from networks.drawn import randn
from networks.small import SMALL
from secateur.graph import replay
from secateur.graph.compare import tensors_in
from secateur.graph.replay import Replay, flow_of, held, shown
from secateur.running import as_written, call_model


def layers_of(model, batch):
    """The paths of layers, as they first run, with how often each does."""
    calls = {}
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: calls.update({path: calls.get(path, 0) + 1}))
        for path, module in model.named_modules()
        if path and not list(module.children()) and list(module.parameters())
    ]
    call_model(model, batch)
    for hook in hooks:
        hook.remove()
    return calls


def same(one, two):
    pairs = zip(tensors_in(one), tensors_in(two), strict=True)
    return all(a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


@torch.no_grad()
def check(model, batches):
    """Each layer reads, and gives, in its turn what it does in a network that is run anew, while the weights
    of those before it change."""
    model = model.eval()
    with as_written():
        calls = layers_of(model, batches[0])
        again = Replay(model, flow_of(model, batches[0]))
        for path, number in calls.items():
            layer = model.get_submodule(path)
            for ended in (False, True):
                for index, batch in enumerate(batches):
                    wanted = shown(model, layer, batch, number, ended=ended)
                    assert same(again.calls(path, number, batch, index, ended=ended), wanted), path
            for parameter in layer.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(0.9)
        return again


@pytest.mark.parametrize("network", [n for i, n in enumerate(SMALL) if i % 5 == 0], ids=lambda n: n.name)
def test_whatever_the_network_each_layer_sees_what_it_does_in_a_run_of_everything(network):
    torch.manual_seed(0)
    model = network.build()
    batches = []
    for _ in range(2):
        args, kwargs = network.inputs()
        batches.append(args if not kwargs else {**kwargs} if not args else None)
    if None in batches:
        pytest.skip("its batches are no dict and no tuple")
    check(model, batches)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x, bias=None):
        bias = torch.full((6,), 0.1) if bias is None else bias
        h = F.relu(self.first(x), inplace=True)
        return {"x": x + self.second(h) + bias, "bias": bias}


class Passing(nn.Module):
    """The first block makes a bias that goes through all."""

    def __init__(self, depth=4):
        super().__init__()
        self.embedding, self.blocks = nn.Linear(5, 6), nn.ModuleList([Block() for _ in range(depth)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x, bias = self.embedding(x), None
        for block in self.blocks:
            output = block(x, bias=bias)
            x, bias = output["x"], output["bias"]
        return self.head(x)


class Keeping(nn.Module):
    """What a module keeps on itself is read later by another."""

    class Keeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x):
            self.kept = self.linear(x)
            return x * 2

    def __init__(self):
        super().__init__()
        self.keeper, self.between, self.last = self.Keeper(), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.between(self.keeper(x))
        return self.last(x + self.keeper.kept)


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)) for _ in range(3)])
        self.up = nn.ModuleList([nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True)) for _ in range(3)])

    def forward(self, x):
        seen = []
        for down in self.down:
            x = down(x)
            seen.append(x)
        for up in self.up:
            x = up(torch.cat([x, seen.pop()], -1))
        return x


class Aliased(nn.Module):
    """In-place operators, views, and a module that gives back what it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.same = nn.Conv1d(2, 4, 1), nn.ReLU(inplace=True), nn.Identity()
        self.flat, self.head, self.last = nn.Flatten(), nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x):
        h = self.conv(x)
        again = self.same(h)
        again += 1
        y = self.relu(h)
        flat = self.flat(y)
        out = self.head(flat)
        h.mul_(2)
        return out + self.last(flat)


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Passing, (3, 5)), (Keeping, (3, 5)), (Unet, (3, 4)), (Aliased, (2, 2, 3))],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_goes_around_modules_is_followed(build, shape):
    torch.manual_seed(0)
    assert check(build(), [randn(*shape).float(), randn(*shape).float() + 1]).flow is not None


class Counting(TorchDispatchMode):
    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_every_layer_is_computed_once_and_no_more_is_kept_than_is_read():
    torch.manual_seed(0)
    model, batches = Passing(depth=10).eval(), [torch.randn(3, 5), torch.randn(4, 5)]
    calls = layers_of(model, batches[0])
    again = Replay(model, flow_of(model, batches[0]))
    with Counting() as counting:
        for path, number in calls.items():
            for index, batch in enumerate(batches):
                again.calls(path, number, batch, index, ended=False)
    assert counting.products == len(batches) * (len(calls) - 1)  # the head itself is not run
    sizes = {path: replay._bytes(value) for path, value in again.stored[0].items()}
    assert sizes.pop("blocks.9") >= 4 * 3 * 6
    assert max(sizes.values()) <= 8  # empty tensors


class Deciding(nn.Module):
    """A positive batch runs its layer twice."""

    def __init__(self):
        super().__init__()
        self.twice, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.twice(x)
        return self.last(self.twice(h) if bool(x.mean() > 0) else h)


@torch.no_grad()
def test_a_batch_that_takes_another_way_is_run_as_it_is():
    torch.manual_seed(0)
    model, batches = Deciding().eval(), [torch.ones(2, 4), -torch.ones(2, 4), torch.ones(2, 4)]
    for first in (0, 1):
        again = Replay(model, flow_of(model, batches[first]))
        for path in ("twice", "last"):
            for index, batch in enumerate(batches):
                wanted = shown(model, model.get_submodule(path), batch, 1, ended=True)
                assert same(again.calls(path, 1, batch, index, ended=True), wanted)


def test_more_than_the_limit_is_not_kept(monkeypatch):
    monkeypatch.setattr(replay, "MEMORY", 500)
    assert held([torch.zeros(100)])
    assert not held([torch.zeros(100), torch.zeros(100)])
    torch.manual_seed(0)
    again = check(Passing(), [torch.randn(30, 5)])
    assert again.flow is None
    assert not again.stored


def test_a_network_is_left_with_its_own_forwards():
    model = Passing().eval()
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    check(model, [torch.randn(3, 5)])
    after = {path: dict(vars(module)) for path, module in model.named_modules()}
    assert before.keys() == after.keys()
    assert all(before[path].keys() == after[path].keys() for path in before)
