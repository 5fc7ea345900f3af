"""Memory of one inference: its peak, in a process of its own, and its average over the time that it takes."""

from __future__ import annotations

import os
import sys
import weakref
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.copying import copied
from secateur.measure.resident import begin_peak, peak
from secateur.measure.size import bytes_dense
from secateur.running import call_model, forward_once

_PASSES = 5  # whose median is an average


def measure_peak_memory(model: nn.Module, example_inputs: Any) -> float | None:
    """Return the bytes that one inference needs: parameters, buffers, and the most that the
    forward pass adds to them, on one thread.

    On Linux a forked child runs the pass and reads its own peak, so nothing else in this process
    counts. On CUDA the allocator's own peak is read. Elsewhere None: there is no such reading.
    A copy runs; raises ModelError where the model cannot be copied or does not run.
    """
    work = copied(model)
    if any(p.is_cuda for p in model.parameters()):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        forward_once(work, example_inputs)
        torch.cuda.synchronize()
        return float(bytes_dense(model) + torch.cuda.max_memory_allocated() - before)
    forward_once(work, example_inputs)  # errors belong to this process, and it warms up
    added = _added_in_child(work, example_inputs) if sys.platform == "linux" else None
    return None if added is None else float(bytes_dense(model) + added)


def measure_average_memory(model: nn.Module, example_inputs: Any) -> float:
    """Return the bytes that one inference holds on average over its time: parameters, buffers, and the
    tensors that the forward pass makes, each for as long as it lives.

    What an operator takes for itself while it runs is in the peak and not in here. A copy runs; raises
    ModelError where the model cannot be copied or does not run.
    """
    work = copied(model)
    forward_once(work, example_inputs, _Alive())  # warms up
    averages = []
    for _ in range(_PASSES):
        alive = _Alive()
        forward_once(work, example_inputs, alive)
        averages.append(alive.average())
    return bytes_dense(model) + median(averages)


class _Alive(TorchDispatchMode):
    """Keeps the bytes that tensors made under it hold now, and their integral over time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.integral, self.known = 0, 0.0, weakref.WeakSet[torch.UntypedStorage]()
        self.begun = self.last = 0.0

    def __enter__(self) -> Any:
        self.begun = self.last = perf_counter()
        return super().__enter__()

    def average(self) -> float:
        return self.integral / max(self.last - self.begun, 1e-9)

    def change(self, by: int) -> None:
        now = perf_counter()
        self.integral += self.bytes * (now - self.last)
        self.bytes, self.last = self.bytes + by, now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = set(_storages((args, kwargs)))
        self.change(0)
        begun = self.last
        result = func(*args, **(kwargs or {}))
        self.change(0)
        for storage in _storages(result):
            if storage not in given and storage not in self.known:
                self.known.add(storage)
                self.integral += storage.nbytes() * (self.last - begun)  # it was there while it was filled
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.change, -storage.nbytes())
        return result


def _storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]


def _added_in_child(work: nn.Module, example_inputs: Any) -> int | None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing here may return into the parent's code
        try:
            os.close(read)
            torch.set_num_threads(1)  # the parent's thread pool does not survive a fork
            with torch.no_grad():
                call_model(work, example_inputs)  # touches the code pages, which would count otherwise
                before = begin_peak()
                call_model(work, example_inputs)
            os.write(write, str(max(0, peak() - before)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        answer = file.read()
    os.waitpid(child, 0)
    return int(answer) if answer else None
