"""Sparse variational dropout: noise on every weight, trained; weights that are mostly noise go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.copying import copied
from secateur.errors import BudgetError, TargetError
from secateur.graph.names import canonical_modules, unwrapped
from secateur.pruning.budgets import check_value
from secateur.pruning.holding import Level, Optimizers, around_steps, innermost, updated_by
from secateur.pruning.masks import Masks
from secateur.pruning.targets import find_targets

K1, K2, K3 = 0.63576, 1.87320, 1.48695  # of the paper's approximation of the divergence
_WIDEST = 8.0  # of log alpha


def divergence(log_alpha: Tensor) -> Tensor:
    """Return the divergence of each weight's posterior from a log-uniform prior, without its constant."""
    return K1 + 0.5 * F.softplus(-log_alpha) - K1 * torch.sigmoid(K2 + K3 * log_alpha)


class _Noisy(nn.Module):
    """A layer with normal weights: the mean the layer's own, the variance exp(log_variance)."""

    def __init__(
        self, layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, start: float, cut: float
    ) -> None:
        super().__init__()
        self.layer, self.cut = layer, cut
        self.log_variance = nn.Parameter(torch.full_like(layer.weight, start))

    @property
    def log_alpha(self) -> Tensor:
        """The logarithm of each weight's variance over its square."""
        return (self.log_variance - (self.layer.weight.square() + 1e-12).log()).clamp(-_WIDEST, _WIDEST)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._product(x, self.layer.weight * (self.log_alpha < self.cut), self.layer.bias)
        mean = self.layer(x)
        variance = self._product(x.square(), self.log_variance.exp(), None)
        return mean + (variance.clamp_min(0) + 1e-8).sqrt() * torch.randn_like(mean)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)


class VariationalDropout:
    """Gaussian noise of its own on every weight, whose size is trained with the weight; weights that are
    mostly noise go. Train ``network`` in any loop, its optimizer stepping inside ``trained``, then ``fold``.

    The loss that is minimised is the caller's, a mean over examples, plus ``scale`` / ``examples`` times the
    sum of all divergences from a log-uniform prior. In eval mode ``network`` is without noise, and without
    the weights that would go.

    Args:
        model: the network; a copy of it is trained.
        examples: how many the training set has.
        scale: of the divergence, from 0; 1 is the variational bound. Begin with less where much dies early.
        cut: the logarithm of alpha, variance over square, from which a weight goes.
        start: the logarithm of each variance at first.
        include: name patterns of layers or weights, as in ``secateur.prune``.
        exclude: name patterns of those left out.

    Raises:
        BudgetError: for an impossible number.
        TargetError: where there is no Linear or Conv layer of its own weight.

    Source:
        Molchanov et al., "Variational Dropout Sparsifies Deep Neural Networks" (ICML 2017).

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> noisy = sc.VariationalDropout(model, examples=32, start=-3.0)
        >>> optimizer = torch.optim.Adam(noisy.network.parameters(), lr=0.05)
        >>> with noisy.trained(optimizer) as network:
        ...     for _ in range(60):
        ...         optimizer.zero_grad()
        ...         network(torch.randn(32, 8)).square().mean().backward()
        ...         optimizer.step()
        >>> network, masks = noisy.fold()
        >>> masks.sparsity > 0.5
        True
    """

    def __init__(
        self,
        model: nn.Module,
        examples: int,
        *,
        scale: float = 1.0,
        cut: float = 3.0,
        start: float = -10.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        check_value("scale", scale)
        if not examples >= 1:
            raise BudgetError(f"examples is {examples!r}; it is the size of the training set, from 1")
        self.network = copied(unwrapped(model))
        self.weight = scale / examples
        uses = Counter(p for _, m in canonical_modules(self.network) for p in m._parameters.values())
        chosen = {target.module for target in find_targets(self.network, include, exclude).values()}
        self.layers: dict[str, _Noisy] = {}
        for name, module in list(canonical_modules(self.network)):
            plain = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
            if name and module in chosen and plain and uses[module._parameters.get("weight")] == 1:
                layer: Any = module
                self.layers[name] = _Noisy(layer, start, cut).train(module.training)
                self.network.set_submodule(name, self.layers[name])
        if not self.layers:
            raise TargetError(f"{type(model).__name__} has no Linear or Conv layer whose weight is its own")

    @property
    def log_alphas(self) -> Mapping[str, Tensor]:
        """By layer the logarithm of each weight's variance over its square."""
        return {name: layer.log_alpha.detach() for name, layer in self.layers.items()}

    @contextmanager
    def trained(self, optimizer: Optimizers) -> Iterator[nn.Module]:
        """Add the divergence's gradient to those of weights and variances before each step of ``optimizer``.

        Args:
            optimizer: one that trains ``network``, or a list.

        Returns:
            A context manager that gives ``network``.

        Raises:
            TargetError: where the optimizer does not train the variances.
        """
        levels = innermost(optimizer)
        if not {id(layer.log_variance) for layer in self.layers.values()} <= updated_by(levels):
            raise TargetError("the optimizer does not train the variances; make it from network.parameters()")

        def penalise(level: Level, by_closure: bool) -> None:
            mine, factor = updated_by([level]), getattr(level.optimizer, "grad_scale", None)
            for layer in self.layers.values():
                tensors = [layer.log_variance, layer.layer.weight]
                with torch.enable_grad():
                    gradients = torch.autograd.grad(divergence(layer.log_alpha).sum(), tensors)
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    if id(tensor) in mine and tensor.grad is not None:
                        tensor.grad += self.weight * (1.0 if factor is None else factor) * gradient

        with around_steps(levels, gradients=penalise):
            yield self.network

    @torch.no_grad()
    def fold(self) -> tuple[nn.Module, Masks]:
        """Return the network without noise, an ordinary one of the model's class, and the masks of the
        weights that went, already zero there. What was trained is not changed.

        Returns:
            The network and its masks.
        """
        work = copied(self.network)
        kept = {}
        for name, layer in self.layers.items():
            noisy: Any = work.get_submodule(name)
            kept[f"{name}.weight"] = layer.log_alpha < layer.cut
            work.set_submodule(name, noisy.layer)
        return work, Masks(work, kept).apply()
