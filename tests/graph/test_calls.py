"""A node of a captured graph read as a call."""

import torch
from torch import nn

from secateur.graph.calls import Call
from secateur.graph.capture import capture


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 3))

    def forward(self, x):
        return self.inner(x).softmax(dim=-1)


def calls(model, *inputs):
    nodes = capture(model, inputs).graph.nodes
    return [Call(node) for node in nodes if node.op == "call_function"]


def test_arguments_go_by_the_names_of_the_schema_with_its_defaults():
    linear, softmax = calls(Net(), torch.randn(2, 4))
    assert linear.operator is torch.ops.aten.linear
    assert list(linear.arguments) == ["input", "weight", "bias"]
    assert softmax.arguments["dim"] == -1
    assert softmax.arguments["dtype"] is None
    assert softmax.arguments["self"] is linear.node


def test_values_take_the_place_of_nodes_also_inside_lists():
    cat = calls(Cat(), torch.randn(2, 4))[-1]
    assert cat.with_values(lambda node: 7)["tensors"] == [7, 7]
    one = torch.ones(2, 4)
    assert cat.run(lambda node: one).shape == (4, 4)


class Cat(nn.Module):
    def forward(self, x):
        return torch.cat([x, x])


def test_the_modules_around_a_call_innermost_first():
    linear, softmax = calls(Net(), torch.randn(2, 4))
    assert linear.modules == ("inner.0", "inner", "")
    assert softmax.modules == ("",)


class Checked(nn.Module):
    def forward(self, x):
        torch._assert_async((x * 0 == 0).all())
        return x.double()


def test_what_only_checks_is_no_reader():
    found = calls(Checked(), torch.randn(3))
    checks = [call for call in found if call.checks]
    assert checks
    assert not any(user in call.readers for call in found for user in (check.node for check in checks))


def test_names_in_messages_say_whose_operator_it_is():
    linear, _ = calls(Net(), torch.randn(2, 4))
    assert linear.name == "linear"
    placeholder = Call(linear.arguments["weight"])
    assert (placeholder.name, placeholder.schema, placeholder.arguments) == ("placeholder", None, {})


class InPlace(nn.Module):
    def forward(self, x):
        return (x + 1).relu_()


def test_in_place_operators_say_so():
    add, relu = calls(InPlace(), torch.randn(3))
    assert (add.in_place, relu.in_place) == (False, True)
    assert relu.shape == (3,)
