"""Recurrent layers and cells in a program, whichever way the batch lies."""

from __future__ import annotations

import pytest
import torch
from programs import check, ops
from torch import nn

from networks.drawn import numbers
from networks.parts import After
from secateur.deploy.program.export import program_of
from secateur.errors import ModelError

KINDS = [nn.LSTM, nn.GRU, nn.RNN]
OPTIONS = [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}]


def hidden(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The states after the last step, (layers x directions, batch, size)."""
    states = layer(x)[1]
    return states[0] if isinstance(states, tuple) else states


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_batch_first(kind, options):
    layer = kind(4, 5, batch_first=True, **options)
    program = check(lambda m, x: m.r(x)[0], 7, 4, r=layer)
    directions = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    name = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[kind]
    assert ops(program).count(name) == directions
    check(lambda m, x: hidden(m.r, x)[-1], 7, 4, r=layer)
    check(lambda m, x: torch.cat([*hidden(m.r, x)], 1), 1, 4, r=layer)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_first(kind, options):
    layer, size = kind(4, 5, **options), 10 if options.get("bidirectional") else 5
    check(lambda m, x: m.r(x.transpose(0, 1))[0].transpose(0, 1), 7, 4, r=layer)
    check(lambda m, x: m.g(m.r(x.transpose(0, 1))[0].relu()).mean(0), 7, 4, r=layer, g=nn.Linear(size, 3))
    check(lambda m, x: m.r(x.transpose(0, 1))[0][-1] * 2, 7, 4, r=layer)


def test_a_relu_instead_of_a_tangent():
    layer = nn.RNN(4, 5, nonlinearity="relu", batch_first=True)
    assert "rnn_relu" in ops(check(lambda m, x: m.r(x)[0], 7, 4, r=layer))


def test_cells_are_put_out_where_they_are_read():
    layer = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
    program = check(lambda m, x: m.r(x)[1][1].permute(1, 0, 2).flatten(1), 7, 4, r=layer)
    assert [node["cells"] for node in program.graph["nodes"] if node["op"] == "lstm"] == [True, True]
    program = check(lambda m, x: m.r(x)[0], 7, 4, r=layer)
    assert [node["cells"] for node in program.graph["nodes"] if node["op"] == "lstm"] == [False, False]


def test_states_that_are_given():
    def computed(m, x):
        state = m.f(x[:, 0]).unsqueeze(0)
        return m.r(x, (state, torch.zeros_like(state)))[0]

    check(computed, 7, 4, r=nn.LSTM(4, 5, batch_first=True), f=nn.Linear(4, 5))
    check(
        lambda m, x: m.r(x, torch.arange(10.0).view(2, 1, 5).expand(2, len(x), 5).contiguous() / 9)[0],
        *(7, 4),
        r=nn.GRU(4, 5, batch_first=True, bidirectional=True),
    )
    check(
        lambda m, x: m.r(x, torch.zeros(1, len(x), 5))[0],
        *(7, 4),
        r=nn.GRU(4, 5, batch_first=True),
    )


def test_a_state_given_from_outside():
    model = After(lambda m, x, h: m.r(x, h.unsqueeze(0))[0], r=nn.GRU(4, 5, batch_first=True))
    program = program_of(model, (numbers(2, 7, 4), numbers(2, 5)))
    assert ops(program).count("gru") == 1


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind):
    def steps(m, x):
        state = m.r(x[:, 0])
        for at in (1, 2):
            state = m.r(x[:, at], state)
        return state[0] + state[1] if isinstance(state, tuple) else state

    check(steps, 3, 4, r=kind(4, 5))


def test_projections_are_refused():
    model = After(lambda m, x: m.r(x)[0], r=nn.LSTM(4, 5, batch_first=True, proj_size=3))
    with pytest.raises(ModelError, match=r"lstm\.input in module 'r' projects its states \(proj_size\)"):
        program_of(model, numbers(2, 7, 4))


def test_a_batch_that_is_taken_for_steps_is_refused():
    with pytest.raises(ModelError, match="moves the batch"):
        program_of(After(lambda m, x: m.r(x)[0], r=nn.GRU(4, 5)), numbers(2, 7, 4))
