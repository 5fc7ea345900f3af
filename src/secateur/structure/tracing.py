"""``trace``: the units of a network, and which of them its modules can really lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from secateur.graph.capture import all_tensors
from secateur.structure.dead import Found
from secateur.structure.graph_form import graph_form
from secateur.structure.runs import Run
from secateur.structure.trial import Trial
from secateur.structure.units import Structure, analyse


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    heads: str = "whole",
    streams: bool = False,
    form: str = "modules",
) -> Structure:
    """Find the units of ``model`` (neurons, filters, channels, attention heads) by analysing its graph.

    The model is exported in eval mode on the example inputs, so units are those of that forward; where
    ``torch.export`` refuses it, what runs for the example is recorded, and the printed structure says so.
    A model on the meta device will do, of which nothing is tried. An operator that is not understood freezes
    what it touches and is named in ``protected``. When ``stays`` is first asked for, half of each group is
    tried in earnest on a copy: what breaks the forward is there, and ``prune`` leaves it alone. Networks of
    transformers run without their cache unless ``use_cache`` is among the inputs.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        kwargs: arguments by name beside ``example_inputs``.
        dynamic_shapes: passed on to ``torch.export``.
        heads: "whole", attention heads are units, with all queries that share a key; "dims", the same
            position of every head; or "queries", the same query of every shared key.
        streams: residual streams under a LayerNorm or an RMSNorm may lose channels too. They are protected
            unless asked for, because what is left is normalised anew: ``compact`` rescales the weight and the
            eps of an RMSNorm and makes each LayerNorm one that still divides by the full size, so that
            nothing changes but the size. Pass this structure to ``prune`` and to ``compact``.
        form: "modules", or "graph": what ``compact(..., form="graph")`` alone can take out is there too:
            channels under a mean of them (a response norm), inputs of standardised weights.

    Returns:
        The groups of units, and what is protected, and why.

    Raises:
        ModelError: where the model cannot be captured, or for ``heads`` or a ``form`` that there is not.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> sc.trace(net, torch.ones(1, 8))
        group   units  parameters a unit  MACs a unit         in
        0 -> 2     16                 13           12  3 tensors
        protected:
                  dim   stays                             because
        0.weight    1  8 of 8  combined with an unprunable tensor
        2.weight    0  4 of 4                        model output
    """
    structure = analyse(
        model,
        example_inputs,
        kwargs=kwargs,
        dynamic_shapes=dynamic_shapes,
        heads=heads,
        streams=streams,
        form=form,
    )
    return replace(structure, look=_staying)


def _staying(structure: Structure) -> dict[str, str]:
    """Return the groups whose removal breaks the forward, and how: half of each is tried on a copy, once."""
    captured, model = structure.captured, structure.model
    if any(tensor.is_meta for _, tensor in all_tensors(model)):
        return {}
    halves = {
        name: np.arange(len(group)) < len(group) // 2
        for name, group in structure.groups.items()
        if len(group) > 1
    }
    try:
        graph = graph_form(structure) if structure.walk.graph else None
        run = Run(captured.args, captured.kwargs)
        trial = Trial(model, structure, [run], Found(halves), graph, quick=True)
        return trial.search(halves).withdrawn
    except Exception:  # a forward that is random, or gives nothing to compare: its proof will say so
        return {}
