"""Importance before any training: what flows through a network by its weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree

from secateur.errors import CriterionError
from secateur.graph.names import canonical_parameters, unwrapped
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.targets import Targets
from secateur.running import as_written, call_model, failing
from secateur.shards import copied_whole, placed


@dataclass(frozen=True)
class SynFlow:
    """|w x gradient of the synaptic flow|: how much of what flows through the network goes through w.

    The flow is the sum of all outputs on inputs of ones, every parameter and buffer replaced by its absolute
    value. ``data`` gives the inputs their shape and nothing else. Meant for a network before training, in
    many steps of an ``Iterative`` schedule: at once it may cut a layer off.

    Source:
        Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow"
        (NeurIPS 2020).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> net[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
        >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
        >>> sc.SynFlow()(sc.find_targets(net), data=[torch.randn(4, 2)])["0.weight"]
        tensor([[2., 4.],
                [3., 0.]], dtype=torch.float64)
    """

    reads_data: ClassVar[bool] = False

    def __call__(self, targets: Targets, data: Batches | None = None, loss: Any = None) -> dict[str, Tensor]:
        if data is None:
            raise CriterionError("SynFlow needs data= for the shape of the inputs; pass one batch of any")
        work = copied_whole(unwrapped(targets.model)).eval().double()
        with torch.no_grad():
            for tensor in (*work.parameters(), *work.buffers()):
                if tensor.is_floating_point():  # a mask is no number
                    tensor.copy_(tensor.abs())
        parameters = canonical_parameters(work)
        weights = [parameters[name].requires_grad_(True) for name in targets]
        inputs = next((inputs for inputs, _ in batches(data, "SynFlow", work)), None)
        ones = _pytree.tree_map_only(Tensor, _ones, inputs)
        with as_written(), torch.enable_grad(), failing(work, ones, "inputs of ones"):
            outputs = _pytree.tree_leaves(call_model(work, ones))
            flow = sum(out.double().sum() for out in outputs if isinstance(out, Tensor) and out.requires_grad)
        if not isinstance(flow, Tensor) or not flow.isfinite():
            raise CriterionError(f"SynFlow: the flow is {flow}, which has no gradient")
        gradients = torch.autograd.grad(flow, weights, allow_unused=True)
        scores = {}
        for name, weight, gradient in zip(targets, weights, gradients, strict=True):
            if gradient is None:
                raise CriterionError(f"{name}: the outputs do not depend on it; exclude it")
            scores[name] = placed((weight.detach() * gradient).abs(), targets[name].weight)
        return scores


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor[:1], dtype=torch.float64) if tensor.is_floating_point() else tensor[:1]
