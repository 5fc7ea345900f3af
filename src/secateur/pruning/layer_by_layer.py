"""A network run up to one layer after another, as it is by then, on the same batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from torch import nn

from secateur.copying import fresh
from secateur.errors import CriterionError
from secateur.graph.replay import Replay, Seen, flow_of, held
from secateur.pruning.batches import Batches, batches
from secateur.pruning.ranks import Peers
from secateur.running import call_model, failing


class OfModule(Protocol):
    """What is known of a layer, whose module it says."""

    @property
    def module(self) -> nn.Module: ...


def calls_of(
    model: nn.Module, layers: Mapping[str, OfModule], data: Batches | None, who: str, peers: Peers
) -> Mapping[str, int]:
    """Return how often each layer runs in a forward, of any rank, in the order in which they run."""
    most: Counter[str] = Counter()
    now: Counter[str] = Counter()
    read = 0
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = partial(lambda name, *_: now.update([name]), name)
            hooks.enter_context(layer.module.register_forward_pre_hook(hook))
        for inputs, _ in batches(data, who, model, empty=peers.number > 1):
            now.clear()
            read += 1
            with failing(model, inputs, "a batch of data="):
                call_model(model, fresh(inputs))
            most |= now
            if len(most) == len(layers):
                break
    told = peers.gather((read, most))
    if not any(number for number, _ in told):
        raise CriterionError(f"{who} was given data without a single batch")
    everywhere: Counter[str] = Counter()
    for _, calls in told:
        everywhere |= calls
    return everywhere


class LayerByLayer:
    """The batches, and a copy of the network that runs on them up to one layer after another.

    What comes before a layer is computed once.
    """

    def __init__(self, network: nn.Module, data: Batches | None, who: str, peers: Peers) -> None:
        self.read = partial(batches, data, who, network, empty=peers.number > 1)
        self.held = held(inputs for inputs, _ in self.read())
        self.replay = Replay(network, flow_of(network, self.held[0]) if self.held else None)

    def calls(self, path: str, number: int) -> Iterator[Seen]:
        """Yield the first ``number`` calls of the layer at ``path`` on each batch, without their outputs."""
        for index, batch in enumerate(self.held or (inputs for inputs, _ in self.read())):
            yield from self.replay.calls(path, number, batch, index, ended=False)
