"""``profile``: everything that can be measured of one network, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from secateur.copying import copied
from secateur.measure.latency import time_inference
from secateur.measure.macs import count_macs
from secateur.measure.memory import measure_average_memory, measure_peak_memory
from secateur.measure.size import bytes_dense, bytes_sparse, count_nonzero, count_parameters
from secateur.text import table


@dataclass(frozen=True)
class LayerProfile:
    """One parameter tensor: its layer's kind, shape, entries, non-zeros and dense multiply-adds."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    nonzero: int
    macs: int

    @property
    def sparsity(self) -> float:
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Profile:
    """What a network costs. Sizes in bytes, times in milliseconds (median, and the quartiles as
    ``latency_spread_ms``), multiply-adds of one pass over the example inputs."""

    parameters: int
    nonzero: int
    macs: int
    macs_effective: int
    bytes_dense: int
    bytes_sparse: int
    latency_ms: float
    latency_spread_ms: tuple[float, float]
    latency_dense_ms: float | None
    threads: int
    peak_memory_mb: float | None
    average_memory_mb: float
    layers: tuple[LayerProfile, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        dense = "" if self.latency_dense_ms is None else f", dense {self.latency_dense_ms:.3f} ms"
        low, high = self.latency_spread_ms
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        peak = "unknown here" if self.peak_memory_mb is None else f"{self.peak_memory_mb:.2f} MB"
        return (
            f"{format_layers(self.layers)}\n"
            f"multiply-adds {self.macs:,}, effective {self.macs_effective:,}\n"
            f"bytes {self.bytes_dense:,} dense, {self.bytes_sparse:,} sparse with indices\n"
            f"latency {self.latency_ms:.3f} ms ({low:.3f} to {high:.3f}, {threads}){dense}\n"
            f"peak memory {peak}, on average {self.average_memory_mb:.2f} MB"
        )


def profile(
    model: nn.Module,
    example_inputs: Any,
    *,
    dense: nn.Module | None = None,
    seconds: float = 0.5,
    threads: int | None = None,
) -> Profile:
    """Measure ``model`` on its example inputs: sizes, multiply-adds, latency and memory.

    What runs are copies. Inputs lie on the model's device.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple, or a dict of keyword arguments.
        dense: the network before pruning, timed in turn with this one.
        seconds: about how long it is timed.
        threads: torch's; default: as many as it has.

    Returns:
        The figures, bytes and milliseconds among them, and a row for each parameter; printed they are a
        table. ``macs`` are dense multiply-adds of one pass, ``macs_effective`` those of weights that are not
        zero.

    Raises:
        ModelError: where the model cannot be copied, or does not run on them.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> _ = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
        >>> found = sc.profile(net, torch.randn(1, 8), seconds=0.01)
        >>> found.parameters, found.nonzero, found.macs, found.macs_effective
        (212, 68, 192, 48)
        >>> found.bytes_dense, found.latency_ms > 0
        (848, True)
    """
    model = copied(model)
    macs = count_macs(model, example_inputs)
    models = {"model": model} | ({"dense": dense} if dense is not None else {})
    timings = time_inference(models, example_inputs, seconds=seconds, threads=threads)
    mine = timings["model"]
    peak = measure_peak_memory(model, example_inputs)
    return Profile(
        parameters=count_parameters(model),
        nonzero=count_nonzero(model),
        macs=macs.dense,
        macs_effective=macs.effective,
        bytes_dense=bytes_dense(model),
        bytes_sparse=bytes_sparse(model),
        latency_ms=mine.median * 1e3,
        latency_spread_ms=(mine.low * 1e3, mine.high * 1e3),
        latency_dense_ms=timings["dense"].median * 1e3 if dense is not None else None,
        threads=mine.threads,
        peak_memory_mb=None if peak is None else peak / 1e6,
        average_memory_mb=measure_average_memory(model, example_inputs) / 1e6,
        layers=layer_profiles(model, macs.weights),
    )


def layer_profiles(model: nn.Module, macs: dict[str, int] | None = None) -> tuple[LayerProfile, ...]:
    """Return one row for each parameter, with its multiply-adds where ``macs`` has some by its name."""
    modules = dict(model.named_modules())
    return tuple(
        LayerProfile(
            name=name,
            kind=type(modules[name.rpartition(".")[0]]).__name__,
            shape=tuple(parameter.shape),
            parameters=parameter.numel(),
            nonzero=int(torch.count_nonzero(parameter.detach())),
            macs=(macs or {}).get(name, 0),
        )
        for name, parameter in model.named_parameters()
    )


def format_layers(layers: Sequence[LayerProfile]) -> str:
    """Return a table of layers with their totals."""
    rows = [("tensor", "layer", "shape", "parameters", "non-zero", "sparsity", "MACs")]
    for layer in layers:
        counts = (f"{layer.parameters:,}", f"{layer.nonzero:,}", f"{layer.sparsity:.2%}", f"{layer.macs:,}")
        rows.append((layer.name, layer.kind, "x".join(map(str, layer.shape)), *counts))
    lines = table(rows, words=3)
    parameters, nonzero = sum(x.parameters for x in layers), sum(x.nonzero for x in layers)
    rate = parameters / max(1, nonzero)
    return "\n".join([*lines, f"parameters {parameters:,}, non-zero {nonzero:,} (compression {rate:.2f}x)"])
