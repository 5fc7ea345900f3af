"""Batch norms' running statistics taken anew, from what a pruned network now computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.copying import copied, fresh
from secateur.errors import NonFiniteError, TargetError
from secateur.graph.names import canonical_modules, unwrapped
from secateur.pruning.calibration import Batches, batches
from secateur.running import as_written, call_model, failing


@torch.no_grad()
def recalibrate(model: nn.Module, data: Batches) -> list[str]:
    """Give every batch norm of ``model``, in place, the mean statistics of what it reads on ``data``.

    Pruned layers put out other means and variances than those that their norms remember; taking them anew
    wins back much of the accuracy without any training. A copy runs, in eval mode but for its norms, and an
    error leaves the model as it was; each batch counts alike.

    Args:
        model: the network, pruned or compacted.
        data: batches of inputs or (inputs, labels) from the training split, read once.

    Returns:
        The paths of the norms that have new statistics.

    Raises:
        TargetError: where no norm keeps statistics.
        ModelError, CriterionError: where the model does not run on the data, or there is none.
        NonFiniteError: for statistics that are no numbers; nothing is changed.

    Source:
        Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", 2020.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> sc.recalibrate(net, [torch.randn(16, 1, 8, 8) for _ in range(4)])
        ['1']
    """
    model = unwrapped(model)
    work = copied(model).eval()
    norms: dict[str, Any] = {path: norm for path, norm in canonical_modules(work) if _keeps(norm)}
    if not norms:
        raise TargetError(f"{type(model).__name__} has no norm that keeps running statistics")
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with as_written():
        for inputs, _ in batches(data, "recalibrate", model):
            with failing(work, inputs, "a batch of data="):
                call_model(work, fresh(inputs))
    own = dict(canonical_modules(model))
    found = {path: norm for path, norm in norms.items() if int(norm.num_batches_tracked or 0)}
    for path, norm in found.items():
        if not all(b.isfinite().all() for b in (norm.running_mean, norm.running_var) if b is not None):
            raise NonFiniteError(f"{path}: what it reads on the data has no finite mean and variance")
    for path, norm in found.items():
        for name, buffer in norm.named_buffers(recurse=False):
            own[path].get_buffer(name).copy_(buffer)
    return list(found)


def _keeps(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.track_running_stats and module.running_mean is not None
