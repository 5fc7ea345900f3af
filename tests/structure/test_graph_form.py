"""``compact(..., form="graph")``: sizes written into a forward keep nothing; the graph is a file of data."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.small import SMALL
from secateur.deploy.onnx import run_onnx
from secateur.errors import ModelError, NonFiniteError, StorageError
from secateur.storage import digest_of, load_tensors, save_tensors


class Windowed(nn.Module):
    """Attention of four heads with a table of relative positions, every size a number."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("places", torch.randint(9, (5, 5)))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.qkv(x).view(-1, 5, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * 0.5 + self.table[self.places].view(5, 5, 4).permute(2, 0, 1)
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 5, 16))
        return self.head(x)


class Written(nn.Module):
    """A forward of convolutions with sizes written in: a split, a slice, a gate, a shuffle, groups."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 1, groups=4)
        self.norm, self.depth = nn.GroupNorm(6, 24), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.c, self.d = nn.Conv2d(24, 16, 1), nn.Linear(8 * 16, 10)
        self.e = nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.depth(F.relu(self.norm(self.b(x))))
        gate, value = self.c(x).split([8, 8], 1)
        x = value * gate.sigmoid() + torch.zeros(8, 1, 1)
        x = F.relu(self.d(x.reshape(-1, 128)))
        return self.e(torch.cat([x[:, :4], x[:, 4:10]], 1))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.shuffle = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1), nn.ChannelShuffle(3)

    def forward(self, x):
        return self.b(self.shuffle(F.relu(self.a(x))))


CASES = {
    "heads": (Windowed, (2, 5, 6)),
    "sizes": (Written, (2, 3, 4, 4)),
    "shuffle": (Shuffled, (2, 3, 4, 4)),
}


def _halved(name):
    torch.manual_seed(0)
    build, shape = CASES[name]
    net, x = build().eval(), torch.randn(shape)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, **_old_way())
    return net, x, structure


def _old_way():
    return {"removable_only": False}


@pytest.mark.parametrize("name", CASES)
def test_all_that_was_pruned_goes_out_of_the_graph(name):
    net, x, structure = _halved(name)
    before = copy.deepcopy(net.state_dict())
    small, proof = sc.compact(net, x, form="graph", structure=structure)
    assert isinstance(small, torch.fx.GraphModule)
    assert not proof.kept
    assert set(proof.removed) == set(structure.groups)
    assert proof.max_error < 1e-9
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    for batch in (1, 2, 7):
        rows = torch.randn(batch, *x.shape[1:])
        assert torch.allclose(small(rows), net(rows), atol=1e-5)
    assert {n for n, _ in small.named_parameters()} == {n for n, _ in net.named_parameters()}


def test_what_modules_must_keep_is_said_to_go_out_of_the_graph():
    net, x, structure = _halved("heads")
    _, proof = sc.compact(net, x, structure=structure)
    assert any("qkv" in name for name in proof.kept)
    assert "form='graph'" in repr(proof)


def test_a_graph_is_trained_and_masks_and_optimizers_follow():
    net, x, structure = _halved("heads")
    masks = sc.Masks.from_zeros(net) if hasattr(sc.Masks, "from_zeros") else None
    optimizer = torch.optim.Adam(net.parameters())
    net(x).sum().backward()
    optimizer.step()
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, removable_only=False)
    small, proof = sc.compact(net, x, form="graph", structure=structure, optimizer=optimizer, masks=masks)
    own = proof.optimizer
    assert {id(p) for g in own.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    loss = small(x).square().sum()
    loss.backward()
    own.step()
    assert small(x).square().sum() < loss


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_a_file_of_data(name, tmp_path):
    net, x, structure = _halved(name)
    small, _ = sc.compact(net, x, form="graph", structure=structure)
    file = tmp_path / "small.safetensors"
    sc.save(small, file)
    again = sc.load_graph(file)
    assert torch.equal(again(x), small(x))
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in small.named_parameters()}
    sc.save(again, tmp_path / "again.safetensors")
    assert torch.equal(sc.load_graph(tmp_path / "again.safetensors")(x), small(x))
    with pytest.raises(StorageError, match="load_graph"):
        sc.load(CASES[name][0](), file)


def test_a_graph_file_runs_nothing_but_operators_on_tensors(tmp_path):
    net, x, structure = _halved("sizes")
    small, _ = sc.compact(net, x, form="graph", structure=structure)
    file = tmp_path / "small.safetensors"
    sc.save(small, file)
    tensors, said = load_tensors(file)
    said.pop("sha256")
    for change in (
        {"target": "os.system", "args": ["touch x"], "kwargs": {"items": {}}},
        {"target": "aten.from_file.default", "args": ["/etc/passwd"], "kwargs": {"items": {}}},
        {"target": "builtins.eval", "args": ["1"], "kwargs": {"items": {}}},
        {"target": "prims.device_put.default", "args": [], "kwargs": {"items": {}}},
    ):
        nodes = [n if n["op"] != "call" else n | change for n in said["nodes"]]
        bad = json.loads(json.dumps({**said, "nodes": nodes}))
        save_tensors(file, tensors, {**bad, "sha256": digest_of(tensors, bad)})
        with pytest.raises(StorageError, match="graph is damaged"):
            sc.load_graph(file)
    for change in ({"parameters": 3}, {"nodes": "x"}, {"takes": {"eval": []}}, {"arguments": ["a b"]}):
        bad = {**said, **change}
        save_tensors(file, tensors, {**bad, "sha256": digest_of(tensors, bad)})
        with pytest.raises(StorageError):
            sc.load_graph(file)
    tensors["a.weight"][0] = float("nan")
    save_tensors(file, tensors, {**said, "sha256": digest_of(tensors, said)})
    with pytest.raises(NonFiniteError, match=r"a\.weight"):
        sc.load_graph(file)


def test_the_graph_says_what_it_cannot_do():
    net, x, structure = _halved("sizes")
    with pytest.raises(ModelError, match="'modules' or 'graph'"):
        sc.compact(net, x, form="fx")
    with pytest.raises(ModelError, match="forward alone"):
        sc.compact(net, x, form="graph", methods=("forward", "half"), structure=structure)

    class Reads(Written):
        def forward(self, x):
            return super().forward(x) if x.mean() > 100 else super().forward(x) * 2

    reads = Reads().eval()
    with pytest.raises(ModelError, match="as it ran on the example"):
        sc.compact(reads, x, form="graph")


def test_of_every_size_that_the_forward_takes_alone():
    class Fixed(Shuffled):
        def forward(self, x):
            return super().forward(x.view(2, 3, 4, 4))

    torch.manual_seed(0)
    net, x = Fixed().eval(), torch.randn(2, 3, 4, 4)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, **_old_way())
    small, proof = sc.compact(net, x, form="graph", structure=structure)
    assert any("shapes alone" in note for note in proof.notes)
    assert torch.allclose(small(x), net(x), atol=1e-5)


@pytest.mark.parametrize("network", [n for i, n in enumerate(SMALL) if i % 12 == 0], ids=lambda n: n.name)
def test_small_networks_as_graphs(network):
    torch.manual_seed(0)
    net, (args, kwargs) = network.build().eval(), network.inputs()
    structure = sc.trace(net, args, kwargs=kwargs)
    if not structure.groups or structure.captured.program is None:
        return
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, **_old_way())
    _, proof = sc.compact(net, args, kwargs=kwargs, form="graph", structure=structure)
    assert not proof.kept
    assert proof.max_error < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_deployed(name, tmp_path):
    net, x, structure = _halved(name)
    small, _ = sc.compact(net, x, form="graph", structure=structure)
    done = sc.export_onnx(small, x, tmp_path / "small.onnx")
    assert done.max_error < 1e-4
    output = run_onnx(tmp_path / "small.onnx", x)
    assert torch.allclose(torch.as_tensor(output), net(x), atol=1e-4)
    if name == "sizes":  # a program of numpy's keeps the batch first, and has no index
        sc.write_folder(small, x, tmp_path / "folder")  # which is run and compared before it is there
    fast, _ = sc.sparsify(small, x, engines=["scipy"], seconds=0.01)
    assert torch.allclose(fast(x), net(x), atol=1e-4)


# -- what a graph alone can lose -----------------------------------------------------------------------


class Responding(nn.Module):
    """A global response norm, with its eps written in."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(6, 20), nn.Linear(20, 6)
        self.scale, self.shift = nn.Parameter(torch.randn(20)), nn.Parameter(torch.randn(20))
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        h = F.gelu(self.wide(x))
        size = h.norm(dim=1, keepdim=True)
        h = h + self.scale * h * (size / (size.mean(-1, keepdim=True) + 1e-6)) + self.shift
        return self.last(x + self.narrow(h))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ByBatchNorm(nn.Conv2d):
    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def convolutions(kind):
    return nn.Sequential(
        *(kind(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), kind(8, 12, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )


GRAPHS_ALONE = {
    "response norm": (Responding, (2, 5, 6), 1),
    "standardised": (lambda: convolutions(Standardised), (2, 3, 6, 6), 2),
    "by batch norm": (lambda: convolutions(ByBatchNorm), (2, 3, 6, 6), 2),
}


@pytest.mark.parametrize("name", GRAPHS_ALONE)
def test_a_graph_loses_what_its_modules_would_count(name, tmp_path):
    torch.manual_seed(0)
    build, shape, number = GRAPHS_ALONE[name]
    net, x = build().eval(), torch.randn(shape)
    by_modules = sc.trace(net, x)
    structure = sc.trace(net, x, form="graph")
    assert len(structure.groups) - len(by_modules.groups) >= 1
    assert len(structure.groups) == number
    assert not structure.stays
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, x, form="graph", structure=structure)
    assert all(done == total // 2 for done, total in proof.removed.values())
    assert proof.max_error_randomised < 1e-9
    assert proof.max_error < 1e-6  # what is computed once is rounded
    more = torch.randn(5, *shape[1:])
    assert torch.allclose(small(more), net(more), atol=1e-5)
    sc.save(small, tmp_path / "small.safetensors")
    assert torch.equal(sc.load_graph(tmp_path / "small.safetensors")(more), small(more))
    again, _ = sc.compact(net, x, form="graph")  # traced for a graph by itself
    assert torch.equal(again(more), small(more))
    _, kept = sc.compact(net, x, structure=structure)
    assert len(kept.kept) >= 1


def test_a_mean_over_what_is_not_zero_freezes_it_in_a_graph_too():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x).sigmoid()
            return self.b(h / h.mean(-1, keepdim=True))

    structure = sc.trace(Mean(), torch.randn(2, 4), form="graph")
    assert not structure.groups
    with pytest.raises(ModelError, match="form is 'onnx'"):
        sc.trace(Mean(), torch.randn(2, 4), form="onnx")


class Averaging(nn.Module):
    """Sizes of the example stand in its graph: lengths, a factor, a mask that is not given."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, scale=1.0, mask=None):
        h = self.a(x).relu().sum(1) / x.shape[1] * scale
        return self.b(h if mask is None else h * mask)


def test_a_graph_says_what_it_was_made_for(tmp_path):
    torch.manual_seed(0)
    net, x = Averaging().eval(), torch.randn(2, 5, 4)
    net.b.bias.requires_grad_(False)
    small, _ = sc.compact(net, (x, 0.5, None), form="graph")
    sc.save(small, tmp_path / "small.safetensors")
    for graph in (small, copy.deepcopy(small), sc.load_graph(tmp_path / "small.safetensors")):
        more = torch.randn(7, 5, 4)
        assert torch.allclose(graph(more, 0.5, None), net(more, 0.5), atol=1e-6)
        for given, said in (
            ((torch.randn(2, 6, 4), 0.5, None), "x has 5 in dim 1 in this graph"),
            ((x, 0.4, None), "scale is 0.5"),
            ((x, 0.5, torch.ones(8)), "mask is None"),
        ):
            with pytest.raises(RuntimeError, match=said):
                graph(*given)
        assert [n for n, p in graph.named_parameters() if not p.requires_grad] == ["b.bias"]
