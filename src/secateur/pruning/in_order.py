"""Layers pruned one after the other, each by what it reads once those before it are pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur.copying import copied
from secateur.errors import CriterionError
from secateur.graph.names import canonical_parameters, unwrapped
from secateur.pruning.batches import Batches
from secateur.pruning.calibration import never_ran, readers_of, rms_over
from secateur.pruning.capabilities import name_of
from secateur.pruning.criteria import check_telling
from secateur.pruning.layer_by_layer import LayerByLayer, calls_of
from secateur.pruning.ranks import Peers
from secateur.pruning.selection import AnyCut, Scores
from secateur.pruning.targets import Targets
from secateur.running import as_written


def cuts_in_order(
    criterion: Any,
    budget: Any,
    targets: Targets,
    data: Batches | None,
    earlier: Mapping[str, Tensor],
    peers: Peers,
) -> tuple[dict[str, AnyCut], dict[str, Tensor]]:
    """Return by name the cut of each target, and what it takes; a layer's scores are first read when all
    layers before it are cut in a copy of the network.

    ``earlier``: what is masked already, by name.
    """
    who = name_of(criterion)
    if isinstance(data, Iterator):
        raise CriterionError(f"{who} in running order reads data several times; pass a list of batches")
    inputs = _Inputs(targets, data, earlier, who, peers)

    def rows(name: str, part: slice) -> Tensor:
        return criterion.of_input(targets[name].weight.detach(), inputs.rms(name))(part)

    scores = {
        name: Scores(name, tuple(t.weight.shape), partial(rows, name), earlier.get(name), t.input_dim)
        for name in inputs.order
        for t in (targets[name],)
    }
    cuts: dict[str, AnyCut] = {}
    pruned: dict[str, Tensor] = {}
    for name, cut in budget.one_by_one(scores):
        cuts[name], pruned[name] = cut, cut.pruned(scores[name])
        inputs.zero(name, pruned[name])
    check_telling(criterion, list(scores.values()), data, None)
    return cuts, pruned


class _Inputs:
    """A copy of the network in which layers are pruned in running ``order``, and what each reads by then."""

    def __init__(
        self,
        targets: Targets,
        data: Batches | None,
        earlier: Mapping[str, Tensor],
        who: str,
        peers: Peers,
    ) -> None:
        self.targets, self.peers = targets, peers
        self.work = copied(unwrapped(targets.model)).eval()
        self.weights = canonical_parameters(self.work)
        for name, masked in earlier.items():
            self.zero(name, masked)
        self.readers = readers_of(targets, self.work)
        paths = {module: path for path, module in self.work.named_modules()}
        self.paths = {name: paths[reader.module] for name, reader in self.readers.items()}
        layers = {self.paths[name]: reader for name, reader in self.readers.items()}
        with as_written():
            self.calls = calls_of(self.work, layers, data, who, peers)
            self.run = LayerByLayer(self.work, data, who, peers)
        for name, path in self.paths.items():
            if path not in self.calls:
                raise never_ran(name)
        self.order = sorted(targets, key=lambda name: list(self.calls).index(self.paths[name]))
        self.found: dict[str, Tensor] = {}

    def zero(self, name: str, pruned: Tensor) -> None:
        self.weights[name].masked_fill_(pruned, 0)

    def rms(self, name: str) -> Tensor:
        """Return the rms of the input of a target by channel, shaped to broadcast over its weight."""
        if name not in self.found:
            self.found[name] = rms_over(self.targets[name], self._mean_square(name))
        return self.found[name]

    @torch.no_grad()
    def _mean_square(self, name: str) -> Tensor:
        path, total, count = self.paths[name], torch.zeros((), dtype=torch.float64), 0
        with as_written():
            for args, kwargs, _ in self.run.calls(path, self.calls[path]):
                found = self.readers[name].squares(args, kwargs)
                if found is not None:
                    total, count = total + found[0].cpu(), count + found[1]
        told = self.peers.gather((total, count))
        number = sum(count for _, count in told)
        if not number:
            raise never_ran(name)
        return torch.stack([total for total, count in told if count]).sum(0) / number
