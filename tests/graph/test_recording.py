"""What torch.export refuses is captured as it ran, and says what is true of the example alone."""

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from networks.small.values import BranchOnMean, LogsANumber, RowsByMask, SortsInNumpy
from secateur.deploy.program.export import program_of
from secateur.graph.capture import capture
from secateur.graph.run import Bound


def test_a_recording_names_parameters_modules_and_constants():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 8)
            self.scale = torch.full((8,), 2.0)  # no buffer
            self.register_buffer("shift", torch.ones(8))
            self.tied = self.a

        def forward(self, x, flag=True, more=None):
            h = self.tied(x) * self.scale + self.shift
            assert h.sum() < 1e9
            with torch.no_grad():
                return {"y": h * 3 if flag else h, "n": 4, "none": more}

    net = Net().eval()
    captured = capture(net, torch.ones(5, 4), {"flag": True})
    assert captured.program is None
    assert sorted(captured.tensors.values()) == ["a.bias", "a.weight", "shift"]
    assert captured.buffers == {"shift"}
    assert [tuple(t.shape) for t in captured.constants.values()] == [(8,)]
    assert len(captured.inputs) == 2  # one that is no tensor too
    linear = next(n for n in captured.graph.nodes if "linear" in n.name)
    assert [path for path, _ in linear.meta["nn_module_stack"].values()] in (["", "a"], ["", "tied"])
    assert not any("grad_enabled" in str(n.target) for n in captured.graph.nodes)
    bound = Bound(captured, net)
    x = torch.randn(5, 4)
    end = next(iter(captured.graph.find_nodes(op="output")))
    found = bound.rebuilt(
        bound.run(bound.at[end], bound.values((x,), {"flag": True}, bound.inputs_of(bound.at[end])))
    )
    assert torch.equal(found["y"], net(x)["y"])
    assert found["n"] == 4
    assert found["none"] is None


def test_numbers_that_python_reads_freeze_what_they_are_read_from():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

        def forward(self, x):
            h = self.first(x).relu()
            return self.last(self.second(h * float(np.abs(h.numpy()).max())).relu())

    structure = sc.trace(Reads(), torch.randn(4, 6))
    assert list(structure.groups) == ["second -> last"]
    reasons = {p.name: p.reason for p in structure.protected}
    assert reasons["first.weight"] in ("its numbers are read by Python", "combined with an unprunable tensor")
    assert "its numbers are read by Python" in {p.reason for p in structure.protected}


def test_structure_and_proof_say_what_was_specialised():
    net, x = BranchOnMean(), torch.randn(8, 6)
    structure = sc.trace(net, x)
    assert "as it ran on the example inputs, because torch.export refuses it" in repr(structure)
    assert "read from tensors in its own forward" in repr(structure)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    _, proof = sc.compact(net, x, examples=[-x])
    assert any("give examples= that do" in note for note in proof.notes)


def test_modes_that_a_forward_enters_are_no_operators():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                h = self.first(x).relu()
            return self.last(h.float() * 2 if h.sum() > 0 else h.float())

    captured = capture(Mixed(), torch.randn(4, 6))
    assert captured.refused
    assert all(
        isinstance(n.target, torch._ops.OpOverload) for n in captured.graph.nodes if n.op == "call_function"
    )
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", [BranchOnMean, LogsANumber, RowsByMask, SortsInNumpy])
def test_nothing_is_printed(kind, capfd):
    sc.trace(kind(), torch.randn(8, 6))
    assert capfd.readouterr() == ("", "")


def test_a_forward_that_cannot_run_alone_says_both_reasons():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(4, 4), []

        def forward(self, x):
            if float(self.layer(x).sum()) > 1e9 or torch.fx.experimental.proxy_tensor.get_proxy_mode():
                raise ValueError("no tracing here")
            return self.layer(x)

    with pytest.raises(
        sc.ModelError, match=r"Fails cannot be captured .* neither by torch.export \(.*\) nor as"
    ):
        sc.trace(Fails(), torch.ones(1, 4))


def test_a_path_of_the_example_is_no_program():
    with pytest.raises(sc.ModelError, match="cannot be a program: analysed as it ran"):
        program_of(BranchOnMean().eval(), torch.randn(8, 6))


def test_the_given_network_is_left_alone():
    net = SortsInNumpy()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in net.modules()]
    sc.trace(net, torch.randn(8, 6))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training
    assert hooks == [len(m._forward_hooks) for m in net.modules()]
