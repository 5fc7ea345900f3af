"""Peak memory of one inference, in a process of its own."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import nn

from secateur.copying import copied
from secateur.measure.resident import begin_peak, peak
from secateur.measure.size import bytes_dense
from secateur.running import call_model, forward_once


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
