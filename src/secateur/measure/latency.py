"""Latency of one inference, networks interleaved so that a machine's drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.copying import copied, fresh
from secateur.running import arguments, forward_once, uncached


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one forward pass: ``median``, first and third quartile, how many runs,
    and the number of torch ``threads``."""

    median: float
    low: float
    high: float
    runs: int
    threads: int


def time_inference(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    seconds: float = 1.0,
    warmup: int = 3,
    threads: int | None = None,
) -> dict[str, Timing]:
    """Time one forward pass of each model on the same inputs, in turn, for about ``seconds`` in all.

    ``threads``: torch's intra-op threads while it measures (default: as they are). On CUDA every
    run is synchronised. Copies run, in eval mode; ModelError where a model cannot be copied or does not run.
    """
    before = torch.get_num_threads()
    cuda = any(p.is_cuda for model in models.values() for p in model.parameters())
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        works = {name: copied(model) for name, model in models.items()}
        for work in works.values():
            # What a forward keeps for good is made here, and never in inference mode.
            forward_once(work, example_inputs)
        calls = {name: partial(_call, work, fresh(example_inputs), cuda) for name, work in works.items()}
        with torch.inference_mode(), ExitStack() as plain:  # once for all: looking for caches takes time too
            for work in works.values():
                plain.enter_context(uncached(work))
            return time_calls(calls, seconds=seconds, warmup=warmup, threads=torch.get_num_threads())
    finally:
        torch.set_num_threads(before)


def time_calls(
    calls: Mapping[str, Callable[[], Any]], *, seconds: float = 1.0, warmup: int = 3, threads: int = 1
) -> dict[str, Timing]:
    """Time calls in turn, five rounds at least, for about ``seconds`` in all; ``threads`` is how many each
    takes, which is noted and not set."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup):
        for call in calls.values():
            call()
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {n: Timing(median, low, high, rounds, threads) for n, (low, median, high) in quartiles.items()}


def _call(model: nn.Module, inputs: Any, cuda: bool) -> None:
    args, kwargs = arguments(inputs)
    model(*args, **kwargs)
    if cuda:
        torch.cuda.synchronize()
