"""Latency of one inference, networks interleaved so that a machine's drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.measure.running import call_model, evaluating, run_once


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
    run is synchronised.
    """
    before = torch.get_num_threads()
    times: dict[str, list[float]] = {name: [] for name in models}
    cuda = any(p.is_cuda for model in models.values() for p in model.parameters())
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        used = torch.get_num_threads()
        for model in models.values():
            run_once(model, example_inputs)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            for model in models.values():
                stack.enter_context(evaluating(model))
            for _ in range(warmup):
                for model in models.values():
                    call_model(model, example_inputs)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
                for name, model in models.items():
                    times[name].append(_time_once(model, example_inputs, cuda))
    finally:
        torch.set_num_threads(before)
    return {name: _summary(values, used) for name, values in times.items()}


def _time_once(model: nn.Module, inputs: Any, cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call_model(model, inputs)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _summary(values: list[float], threads: int) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high, len(values), threads)
