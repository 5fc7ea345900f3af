"""What the matrices inside a recurrent layer multiply: its steps, computed again layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

_KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


def rows_read(module: nn.Module, leaf: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return what the weight ``leaf`` of a recurrent layer or cell multiplies in one call, as rows: what the
    layer under it puts out, or its own state of the step before."""
    given = dict(zip(("input", "hx"), args, strict=False)) | dict(kwargs)
    inputs, state = given["input"], given.get("hx")
    if isinstance(module, nn.RNNCellBase):
        if leaf == "weight_ih":
            return inputs.reshape(-1, inputs.shape[-1])
        state = state[0] if isinstance(state, (tuple, list)) else state
        if state is None:
            state = inputs.new_zeros(*inputs.shape[:-1], module.hidden_size)
        return state.reshape(-1, state.shape[-1])
    assert isinstance(module, nn.RNNBase)
    layer = int(leaf.removesuffix("_reverse").rpartition("_l")[2])
    states: list[Tensor] = [state] if isinstance(state, Tensor) else [*(state or ())]
    if not isinstance(inputs, PackedSequence):
        if inputs.dim() == 2:
            inputs, states = inputs[:, None], [part[:, None] for part in states]
        elif module.batch_first:
            inputs = inputs.transpose(0, 1)
    for number in range(layer):
        inputs = _layer(module, number, inputs, states)
    if leaf.startswith("weight_ih"):
        values = inputs.data if isinstance(inputs, PackedSequence) else inputs
        return values.reshape(-1, values.shape[-1])
    own = _layer(module, layer, inputs, states)
    backwards = leaf.endswith("_reverse")
    return _before(module, own, states, layer, backwards)


def _layer(module: nn.RNNBase, number: int, inputs: Any, states: list[Tensor]) -> Any:
    """Return what one of a recurrent module's layers puts out, in both directions, time first."""
    ways = 2 if module.bidirectional else 1
    options: dict[str, Any] = {"bias": module.bias, "bidirectional": module.bidirectional, "device": "meta"}
    if module.proj_size:
        options["proj_size"] = module.proj_size
    if module.mode == "RNN_RELU":
        options["nonlinearity"] = "relu"
    width = (inputs.data if isinstance(inputs, PackedSequence) else inputs).shape[-1]
    single = _KINDS[module.mode](width, module.hidden_size, **options)
    for leaf in list(single._parameters):
        setattr(single, leaf, getattr(module, leaf.replace("_l0", f"_l{number}")))
    states = [part[ways * number : ways * (number + 1)] for part in states]
    hx = None if not states else states[0] if len(states) == 1 else tuple(states)
    return single.to(inputs.data.dtype)(inputs, hx)[0]


def _before(module: nn.RNNBase, outputs: Any, states: list[Tensor], layer: int, backwards: bool) -> Tensor:
    """Return as rows the state before each step of a layer that put these outputs out."""
    ways = 2 if module.bidirectional else 1
    if isinstance(outputs, PackedSequence):
        outputs, lengths = pad_packed_sequence(outputs)
    else:
        lengths = torch.full((outputs.shape[1],), len(outputs))
    own = outputs.chunk(ways, -1)[int(backwards)]
    first = states[0][ways * layer + int(backwards)] if states else torch.zeros_like(own[0])
    real = torch.arange(len(own))[:, None] < lengths
    if backwards:
        later = torch.cat([own[1:], own[:1]])
        last = (torch.arange(len(own))[:, None] == lengths - 1).to(own.device)
        before = torch.where(last[..., None], first, later)
    else:
        before = torch.cat([first[None], own[:-1]])
    return before[real.to(own.device)]
