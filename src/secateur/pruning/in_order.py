"""Layers pruned one after the other, each by what it reads once those before it are pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur.copying import copied, fresh
from secateur.errors import CriterionError
from secateur.graph.names import canonical_parameters, unwrapped
from secateur.graph.replay import Replay, flow_of, held
from secateur.pruning.batches import Batches, batches
from secateur.pruning.calibration import never_ran, readers_of, rms_over
from secateur.pruning.capabilities import name_of
from secateur.pruning.criteria import check_telling
from secateur.pruning.ranks import Peers
from secateur.pruning.selection import AnyCut, Scores
from secateur.pruning.targets import Targets
from secateur.running import as_written, call_model, failing


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
        self.read = partial(batches, data, who, self.work, empty=peers.number > 1)
        with as_written():
            self.calls = self._calls(who)
            self.held = held(inputs for inputs, _ in self.read())
            self.replay = Replay(self.work, flow_of(self.work, self.held[0]) if self.held else None)
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
            for index, batch in enumerate(self.held or (inputs for inputs, _ in self.read())):
                for args, kwargs, _ in self.replay.calls(path, self.calls[path], batch, index, ended=False):
                    found = self.readers[name].squares(args, kwargs)
                    if found is not None:
                        total, count = total + found[0].cpu(), count + found[1]
        told = self.peers.gather((total, count))
        number = sum(count for _, count in told)
        if not number:
            raise never_ran(name)
        return torch.stack([total for total, count in told if count]).sum(0) / number

    @torch.no_grad()
    def _calls(self, who: str) -> Mapping[str, int]:
        """Return how often each layer runs in a forward, on any rank, in the order in which they run."""
        most: Counter[str] = Counter()
        now: Counter[str] = Counter()
        read = 0
        modules = {self.paths[name]: reader.module for name, reader in self.readers.items()}
        with ExitStack() as hooks:
            for path, module in modules.items():
                hook = partial(lambda path, *_: now.update([path]), path)
                hooks.enter_context(module.register_forward_pre_hook(hook))
            for inputs, _ in self.read():
                now.clear()
                read += 1
                with failing(self.work, inputs, "a batch of data="):
                    call_model(self.work, fresh(inputs))
                most |= now
                if len(most) == len(modules):
                    break
        told = self.peers.gather((read, most))
        if not any(number for number, _ in told):
            raise CriterionError(f"{who} was given data without a single batch")
        everywhere: Counter[str] = Counter()
        for _, calls in told:
            everywhere |= calls
        for name, path in self.paths.items():
            if path not in everywhere:
                raise never_ran(name)
        return everywhere
