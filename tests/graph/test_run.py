"""Running a captured graph: whole, in part, with values replaced."""

import torch
from torch import nn

from networks.plain import mlp
from secateur.graph.capture import capture
from secateur.graph.run import Bound


def net() -> nn.Module:
    return mlp(4, 3, 2, seed=0).eval()


def bound_to(model, other=None):
    captured = capture(model, torch.randn(5, 4))
    return Bound(captured, model if other is None else other)


def position(graph, operator):
    return [i for i, node in enumerate(graph.nodes) if operator in str(node.target)]


def test_it_runs_as_far_as_needed_with_another_models_tensors():
    model, other, x = net(), net(), torch.randn(7, 4)
    with torch.no_grad():
        other[0].weight.mul_(2)
    graph = bound_to(model, other)
    (relu,) = position(graph, "relu")
    found = graph.values((x,), {}, {relu})
    assert list(found) == [relu]
    assert torch.equal(found[relu], other[1](other[0](x)))
    assert graph.seen((x,), {}, {graph.nodes[relu]}).keys() == {graph.nodes[relu]}


def test_a_value_takes_the_place_of_another():
    model = net()
    graph = bound_to(model)
    relu, last = position(graph, "relu")[0], position(graph, "linear")[1]
    ones = torch.ones(5, 3)
    found = graph.run(last, {relu: torch.zeros(5, 3)}, {relu: ones})
    assert torch.equal(found, model[2](ones))


def test_what_depends_on_the_input_and_what_is_fixed():
    graph = bound_to(net())
    assert {graph.nodes[i].op for i in graph.fixed} == {"placeholder"}
    assert len(graph.fixed) == 4
    assert graph.of_inputs.isdisjoint(graph.fixed)
    assert graph.of_inputs | graph.fixed.keys() == set(range(len(graph.nodes)))


def test_outputs_as_the_model_gives_them():
    class Several(nn.Module):
        def forward(self, x):
            return {"a": x + 1, "b": [x * 2]}

    model, x = Several(), torch.randn(2, 3)
    graph = Bound(capture(model, x), model)
    flat = graph.values((x,), {}, {len(graph.nodes) - 1})[len(graph.nodes) - 1]
    out = graph.rebuilt(list(flat))
    assert torch.equal(out["a"], x + 1)
    assert torch.equal(out["b"][0], x * 2)


class Written(nn.Module):
    """What it puts out was written by operators whose own results nobody reads."""

    def forward(self, x):
        out, rest = torch.zeros_like(x), torch.zeros_like(x)
        for t in range(x.shape[1]):
            out[:, t] = x[:, t] * 2
            rest.select(1, t).copy_(x[:, 0])
        return out + 1, rest


def test_what_is_written_into_a_value_in_part_belongs_to_it():
    graph, x = Bound(captured := capture(Written(), torch.randn(2, 3)), captured.model), torch.randn(2, 3)
    first, second = (
        next(i for i, n in enumerate(graph.nodes) if n.name == name) for name in captured.outputs
    )
    found = graph.values((x,), {}, {first, second})
    assert torch.equal(found[first], x * 2 + 1)
    assert torch.equal(found[second], x[:, :1].expand(2, 3))
