"""ONNX files: equal to torch at any batch size, int8 with its cost measured, refused with a reason."""

from __future__ import annotations

import logging
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import secateur as sc
from networks.drawn import Cancelling
from secateur.deploy import onnx as deployed
from secateur.deploy.onnx import export_onnx, run_onnx, session
from secateur.deploy.onnx_int8 import calibration
from secateur.errors import MissingExtraError, ModelError, NonFiniteError, StorageError
from secateur.models import build_model

ROWS = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
FAST = [("lenet-5", (1, 28, 28), {}), ("lenet-300-100", (1, 28, 28), {})]
SLOW = [
    ("convnet-25", (3, 25, 25), {}),
    ("vgg-16-bn", (3, 32, 32), {"width": 0.25}),
    ("resnet-20", (3, 32, 32), {}),
]
NETWORKS = [
    *(pytest.param(*case, id=case[0]) for case in FAST),
    *(pytest.param(*case, id=case[0], marks=pytest.mark.slow) for case in SLOW),
]


def images(number: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed))


def halved(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """The network that is left when every group has lost half of its units."""
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
    return sc.compact(net, x)[0]


def trained_statistics(net: nn.Module) -> nn.Module:
    """The network with running statistics that a folded norm must take in."""
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return net


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def off(net: nn.Module, path, x: torch.Tensor) -> float:
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    found = run_onnx(path, x)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class Fixed(nn.Module):
    """Its forward has a batch size of three written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 5)

    def forward(self, x):
        return self.line(x) + torch.ones(3, 5) if len(x) == 3 else self.line(x)


class NoOperator(Fixed):
    def forward(self, x):
        return torch.linalg.eigvals(self.line(x)[:, :, None] * torch.ones(1, 1, 5)).real


class Branches(Fixed):
    def forward(self, x):
        return self.line(x) if x.sum() > 0 else -self.line(x)


class Random(Fixed):
    def forward(self, x):
        return self.line(x) + torch.randn_like(self.line(x))


class Undefined(Fixed):
    def forward(self, x):
        return self.line(x) * float("nan")


class Logarithm(Fixed):
    """Takes positive numbers only."""

    def forward(self, x):
        return self.line(x.log())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, a, b, *, scale: float = 1.0):
        total = self.one(a) + scale * self.two(b)
        return {"total": total, "half": total / 2}


class Tied(nn.Module):
    """An embedding and two layers that share one square weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.line = nn.Embedding(16, 16), nn.Linear(16, 16)
        self.line.weight = self.embedding.weight

    def forward(self, tokens):
        return self.line(self.line(self.embedding(tokens)).relu().mean(1))


# -- float -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape", "options"), NETWORKS)
@pytest.mark.parametrize("compacted", [False, True], ids=["dense", "compacted"])
def test_a_file_computes_what_torch_does_at_any_batch_size(name, shape, options, compacted, tmp_path):
    net = trained_statistics(build_model(name, **options))
    net = halved(net, images(1, shape)) if compacted else net
    done = export_onnx(net, images(1, shape), tmp_path / "net.onnx")
    assert done.max_error < 1e-5
    assert done.batch_sizes == (1, 3)
    for number in (1, 7):
        assert off(net, done.path, images(number, shape, seed=number)) < 1e-5
    weights = sum(4 * p.numel() for p in net.parameters())
    assert done.bytes == done.path.stat().st_size < weights + 15_000
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    graph = onnx.load(done.path).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert not any(node.metadata_props for node in graph.node)


def test_a_masked_network_keeps_its_zeros(tmp_path):
    net = toy()
    sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    export_onnx(net, ROWS, tmp_path / "net.onnx")
    weights = {
        w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / "net.onnx").graph.initializer
    }
    assert (weights["0.weight"] == 0).sum() == 15
    assert off(net, tmp_path / "net.onnx", ROWS) < 1e-6


def test_nothing_of_the_model_changes_and_nothing_is_printed(tmp_path, capfd, caplog):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5)
    )
    net[1].eval()
    net(images(2, (3, 6, 6))).sum().backward()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    state = torch.random.get_rng_state()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*treespec", category=FutureWarning)
        export_onnx(net, images(2, (3, 6, 6)), tmp_path / "net.onnx")
        export_onnx(net, images(2, (3, 6, 6)), tmp_path / "net.onnx", int8=True, data=[images(9, (3, 6, 6))])
    assert net.training
    assert not net[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_several_inputs_outputs_and_keywords(tmp_path):
    net, example = TwoInputs(), {"b": torch.randn(2, 3), "a": torch.randn(2, 6)}
    done = export_onnx(net, example, tmp_path / "net.onnx", kwargs={"scale": 2.0})
    assert done.batch_sizes == (2, 1)
    more = {"a": torch.randn(5, 6), "b": torch.randn(5, 3)}
    with torch.no_grad():
        expected = net(**more, scale=2.0)
    for found in (run_onnx(done.path, more), run_onnx(done.path, (more["b"], more["a"]))):
        np.testing.assert_allclose(found[0], expected["total"], atol=1e-5)
        np.testing.assert_allclose(found[1], expected["half"], atol=1e-5)
    with pytest.raises(ModelError, match=r"takes the inputs b, a; given: b, a, number 3"):
        run_onnx(done.path, (more["b"], more["a"], more["a"]))
    with pytest.raises(ModelError, match=r"does not run it on .*'a': \(\(5, 7\), 'float32'\)"):
        run_onnx(done.path, {"a": torch.randn(5, 7), "b": more["b"]})
    both = (more["a"], more["b"])
    for batch in ((both, torch.zeros(5)), both):  # with labels, and the two inputs alone
        small = export_onnx(net, both, tmp_path / "int8.onnx", int8=True, data=[batch])
        assert small.layers == (2, 2)


def test_a_network_that_rounds_much_is_written_by_what_it_rounds_itself(tmp_path):
    net, x = Cancelling(512), images(2, (512,))
    done = export_onnx(net, x, tmp_path / "net.onnx")
    assert done.rounding > 1e-5
    assert done.tolerance == pytest.approx(min(16 * done.rounding, 0.01))
    assert 0 < done.max_error <= done.tolerance
    assert f"up to {done.tolerance:.1e} is right, itself off by {done.rounding:.1e} in float32" in repr(done)
    with pytest.raises(ModelError, match=r"\(up to 1.0e-09 is right\); nothing was written"):
        export_onnx(net, x, tmp_path / "strict.onnx", tolerance=1e-9)
    assert not (tmp_path / "strict.onnx").exists()
    plain = export_onnx(toy(), ROWS, tmp_path / "plain.onnx")
    assert plain.tolerance == 1e-4
    assert plain.rounding < 1e-6


def test_a_network_that_takes_some_numbers_only_is_checked_on_those(tmp_path):
    assert export_onnx(Logarithm(), ROWS[:1].abs(), tmp_path / "net.onnx").max_error < 1e-5


def test_a_session_computes_on_one_thread_unless_told(tmp_path):
    export_onnx(toy(), ROWS, tmp_path / "net.onnx")
    options = session(tmp_path / "net.onnx").get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert session(tmp_path / "net.onnx", threads=2).get_session_options().intra_op_num_threads == 2


def test_the_opset_is_the_one_asked_for(tmp_path):
    export_onnx(toy(), ROWS, tmp_path / "net.onnx", opset=18)
    assert [o.version for o in onnx.load(tmp_path / "net.onnx").opset_import if not o.domain] == [18]
    with pytest.raises(ModelError, match=r"cannot be written in opset 12; it stays in \d+"):
        export_onnx(toy(), ROWS, tmp_path / "old.onnx", opset=12)
    assert not (tmp_path / "old.onnx").exists()


# -- int8 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape", "options"), NETWORKS)
@pytest.mark.parametrize("compacted", [False, True], ids=["dense", "compacted"])
def test_int8_is_a_quarter_as_large_and_its_error_is_the_one_reported(
    name, shape, options, compacted, tmp_path
):
    net = trained_statistics(build_model(name, **options))
    net = halved(net, images(1, shape)) if compacted else net
    data = [(images(16, shape, seed=i), torch.zeros(16)) for i in range(3)]
    done = export_onnx(net, images(1, shape), tmp_path / "net.onnx", int8=True, data=iter(data))
    weights = sum(4 * p.numel() for p in net.parameters())
    assert done.bytes < 0.27 * weights + 50_000  # scales, zero points and the names of all their nodes
    assert done.layers is not None
    assert done.layers[0] == done.layers[1]
    assert done.inputs == 48
    assert 1e-5 < done.max_error < 0.1
    assert done.max_error == pytest.approx(max(off(net, done.path, x) for x, _ in data), rel=1e-4)
    with torch.no_grad():
        same = [run_onnx(done.path, x).argmax(1) == net(x).argmax(1).numpy() for x, _ in data]
    assert done.agreement == np.concatenate(same).mean()
    assert f"top-1 the same for {done.agreement:.2%}" in repr(done)


def test_weights_are_int8_with_a_scale_for_each_output_channel(tmp_path):
    net = toy()
    with torch.no_grad():
        net[0].weight[0] *= 100
    export_onnx(net, ROWS, tmp_path / "net.onnx", int8=True, data=[ROWS])
    stored = {
        w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / "net.onnx").graph.initializer
    }
    quantised = [w for w in stored.values() if w.dtype == np.int8 and w.ndim == 2]
    assert sorted(w.shape for w in quantised) == [(5, 3), (6, 5)]
    assert all((np.abs(w).max(0) == 127).all() for w in quantised)
    export_onnx(net, ROWS, tmp_path / "net.onnx", int8=True, data=[ROWS], reduce_range=True)
    stored = [onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / "net.onnx").graph.initializer]
    assert max(np.abs(w).max() for w in stored if w.dtype == np.int8 and w.ndim == 2) == 64


@pytest.mark.parametrize("int8", [True, "dynamic"])
def test_tied_weights_stay_right_in_int8(int8, tmp_path):
    tokens = torch.randint(0, 16, (32, 5), generator=torch.Generator().manual_seed(0))
    done = export_onnx(Tied(), tokens[:2], tmp_path / "net.onnx", int8=int8, data=[tokens])
    assert done.max_error < 0.03
    assert done.layers == (2, 2)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def test_layers_whose_weights_the_export_computes_count_too(tmp_path):
    """Those of an LSTM are put together from torch's, in the file."""
    x = torch.randn(20, 7, 6)
    done = export_onnx(Tagger(), x[:2], tmp_path / "net.onnx", int8=True, data=[x])
    assert done.layers == (1, 3)
    assert export_onnx(Tagger(), x[:2], tmp_path / "dynamic.onnx", int8="dynamic").layers == (3, 3)


def test_dynamic_int8_needs_no_data_and_leaves_convolutions(tmp_path):
    done = export_onnx(toy(), ROWS, tmp_path / "net.onnx", int8="dynamic")
    assert (done.int8, done.agreement, done.layers) == (True, None, (2, 2))
    assert done.max_error < 0.03
    with pytest.raises(ModelError, match=r"none of its 1 layers .* without data; pass int8=True and data="):
        export_onnx(nn.Conv2d(3, 4, 3), images(2, (3, 6, 6)), tmp_path / "no.onnx", int8="dynamic")


def test_a_network_of_zeros_can_be_int8(tmp_path):
    net = toy()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
    assert export_onnx(net, ROWS, tmp_path / "net.onnx", int8=True, data=[ROWS]).max_error < 0.01


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (Fixed(), ModelError, r"at some batch sizes only \(batch = 3\); .* write x.size\(0\)"),
        (NoOperator(), ModelError, r"NoOperator cannot be written as ONNX: .*linalg_eig"),
        (Branches(), ModelError, r"Branches cannot be captured by torch.export"),
        (Random(), ModelError, r"Random: with a batch of 1, output '.*' is off by .*nothing was written"),
        (Undefined(), NonFiniteError, r"Undefined gives NaN on the example inputs"),
        (toy().bfloat16(), ModelError, r"its 0.weight is bfloat16.*\.float\(\)"),
    ],
    ids=["batch", "operator", "capture", "random", "nan", "half"],
)
def test_a_network_that_cannot_be_exported_is_one_error(net, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(net, ROWS[:1], tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": True}, r"int8=True needs calibration data: pass data="),
        ({"int8": "static"}, r"int8='static'; True, False or 'dynamic'"),
        ({"data": [ROWS]}, r"data= calibrates int8; pass int8=True with it"),
        ({"example_inputs": torch.randn(2, 5)}, r"does not run on example inputs \(\(2, 5\)"),
        ({"example_inputs": torch.randn(0, 6)}, r"hold no tensor whose first dim is a batch"),
        ({"example_inputs": None}, r"hold no tensor whose first dim is a batch"),
        ({"tolerance": 0}, r"tolerance=0; a positive share of the largest output is right"),
        ({"tolerance": True}, r"tolerance=True; a positive share"),
        ({"model": 3}, r"model is 3; it is a network, an instance of torch.nn.Module"),
    ],
)
def test_wrong_arguments_are_named(options, message, tmp_path):
    given = {"model": toy(), "example_inputs": ROWS, "path": tmp_path / "net.onnx"} | options
    with pytest.raises(ModelError, match=message):
        export_onnx(**given)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ModelError, r"without a single batch"),
        (ROWS, ModelError, r"given a Tensor as data; pass batches"),
        ([torch.randn(3, 9)], ModelError, r"does not run on a batch of data= \(3, 9\)"),
        ([ROWS * float("nan")], NonFiniteError, r"NaN on a batch of data="),
    ],
    ids=["empty", "tensor", "shape", "nan"],
)
def test_wrong_calibration_data_are_named(data, error, message):
    with pytest.raises(error, match=message):
        list(calibration(toy(), data, lambda inputs: {}, {}))


def test_no_file_is_left_where_calibration_fails(tmp_path):
    with pytest.raises(NonFiniteError):
        export_onnx(toy(), ROWS, tmp_path / "net.onnx", int8=True, data=[ROWS, ROWS * float("nan")])
    assert not list(tmp_path.iterdir())


def test_a_network_without_layers_is_not_int8(tmp_path):
    with pytest.raises(ModelError, match=r"ReLU has no layer with float32 weights"):
        export_onnx(nn.ReLU(), ROWS, tmp_path / "net.onnx", int8=True, data=[ROWS])


def test_a_path_that_cannot_be_written_is_refused_before_the_export(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match=r"cannot be written, since .*file is a file, not a folder"):
        export_onnx(toy(), ROWS, tmp_path / "file" / "deeper" / "net.onnx")
    with pytest.raises(StorageError, match=r"is a folder; give the file to write"):
        export_onnx(toy(), ROWS, tmp_path)
    with pytest.raises(StorageError, match="no such file"):
        session(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="onnxruntime cannot load"):
        run_onnx(tmp_path / "file", ROWS)


def test_over_two_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(deployed, "_LARGEST", 200)
    with pytest.raises(ModelError, match=r"holds .* GB of weights; one ONNX file holds under 2 GB"):
        export_onnx(toy(), ROWS, tmp_path / "net.onnx")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtraError, match=rf"'{package}' is not installed.*secateur\[onnx\]"):
                export_onnx(toy(), ROWS, tmp_path / "net.onnx")
