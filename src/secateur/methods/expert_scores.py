"""How much each expert of a mixture gives: what the mixture's output loses without it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.copying import copied, fresh
from secateur.errors import BudgetError, CriterionError, ModelError, NonFiniteError
from secateur.graph.capture import tensor_of
from secateur.graph.compare import tensors_in
from secateur.graph.names import unwrapped
from secateur.numeric import is_whole
from secateur.pruning.batches import Batches, batches
from secateur.pruning.budgets import check_share
from secateur.pruning.ranks import together
from secateur.running import as_written, call_model, failing
from secateur.structure.experts import Mixture, find_experts


@torch.no_grad()
def score_experts(
    model: nn.Module, data: Batches, *, by: Literal["reap", "frequency"] = "reap"
) -> dict[str, Tensor]:
    """Return one score for each expert of each mixture, low ones to go first: what ``remove_experts`` takes.

    What expert e gives a token, gate_e(x) f_e(x), is what the mixture's output there loses when the expert's
    own tensors are zero; the tokens for which that is anything are those routed to it. So no part of a
    network has to be known. A copy of it runs once, and each mixture once more for each of its experts, in
    float32 at least.

    Args:
        model: the network.
        data: batches of inputs or (inputs, labels).
        by: "reap", the mean over an expert's tokens of the L2 norm of what it gives them; or "frequency",
            the share of all tokens that are routed to it.

    Returns:
        By path of a mixture, as ``find_experts`` gives it, a float64 tensor of as many scores as experts; an
        expert that no token is routed to has 0.

    Raises:
        CriterionError: for another ``by``, or data without a batch.
        ModelError: for a network without a mixture of experts, or one whose outputs are random.
        NonFiniteError: for a NaN or an infinity in a mixture's output.

    Source:
        Lasby et al., "REAP the Experts", 2025.

    Example:
        >>> import torch, secateur as sc
        >>> class Mixture(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate = torch.nn.Linear(2, 2, bias=False)
        ...         self.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(2))
        ...
        ...     def forward(self, x):
        ...         weight, chosen = self.gate(x).softmax(-1).max(-1)
        ...         every = torch.stack([expert(x) for expert in self.experts], 1)
        ...         return every[torch.arange(len(x)), chosen]
        >>> net = Mixture()
        >>> net.gate.weight.data = torch.eye(2)
        >>> net.experts[0].weight.data, net.experts[1].weight.data = torch.eye(2), 5 * torch.eye(2)
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
        >>> sc.score_experts(net, [x])[""]
        tensor([ 3., 10.], dtype=torch.float64)
        >>> sc.score_experts(net, [x], by="frequency")[""]
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    if by not in ("reap", "frequency"):
        raise CriterionError(f"by is {by!r}; it is 'reap' or 'frequency'")
    model = unwrapped(model)
    with together(model) as peers:
        work = copied(model).eval()
        read = batches(data, "score_experts", work, empty=peers.number > 1)
        watched = {}
        for number, (inputs, _) in enumerate(read):
            if number == 0:
                watched = _watched(work, inputs)
            with as_written(), failing(work, inputs, "a batch of data="):
                call_model(work, fresh(inputs))
        told = peers.gather({path: one.told for path, one in watched.items()})
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(itertools.chain(*told)):
        own = [sums[path] for sums in told if path in sums]
        norms, routed, tokens = (torch.stack(parts).sum(0) for parts in zip(*own, strict=True))
        found[path] = norms / routed.clamp(min=1) if by == "reap" else routed / tokens
    if not found:
        raise CriterionError("score_experts was given data without a single batch")
    return found


def weakest_experts(scores: Mapping[str, Tensor], share: float, *, groups: int = 1) -> dict[str, list[int]]:
    """Return the numbers of the experts with the lowest scores, the same share of each mixture.

    round(share x experts) go, half to even, and of equal scores the first. A router that chooses among groups
    of experts (DeepSeek's ``n_group``) needs as many in each: name their number, and each loses its own.

    Args:
        scores: by path of a mixture one score an expert, as ``score_experts`` gives them.
        share: of the experts of each mixture, or of each group, from 0 and under 1.
        groups: how many groups of consecutive experts there are in each mixture.

    Returns:
        By path the numbers of the experts that go, for ``remove_experts``, which says where fewer would be
        left than the router chooses.

    Raises:
        BudgetError: for what is no such share, or would take all; for groups that are not of one size.

    Example:
        >>> import torch, secateur as sc
        >>> scores = {"layers.0.mlp": torch.tensor([0.5, 0.1, 0.9, 0.8])}
        >>> sc.weakest_experts(scores, 0.5)
        {'layers.0.mlp': [0, 1]}
        >>> sc.weakest_experts(scores, 0.5, groups=2)
        {'layers.0.mlp': [1, 3]}
    """
    check_share("share", share)
    found: dict[str, list[int]] = {}
    for path, of in scores.items():
        number = len(of)
        if not (is_whole(groups) and groups >= 1 and number % groups == 0):
            raise BudgetError(f"{path!r}: {number} experts are not in {groups!r} groups of one size")
        by_group = of.detach().cpu().reshape(groups, -1)
        gone = round(share * by_group.shape[1])
        if gone == by_group.shape[1]:
            raise BudgetError(f"{path!r}: {share} of {gone} experts are all of them; some stay")
        first = torch.arange(0, number, by_group.shape[1])[:, None]
        found[path] = sorted((by_group.argsort(dim=1, stable=True)[:, :gone] + first).flatten().tolist())
    return found


def _watched(work: nn.Module, inputs: Any) -> dict[str, _Losses]:
    """Watch the mixtures of a copy of the network, found on the inputs of a batch."""
    mixtures = find_experts(work, inputs)
    if not mixtures:
        raise ModelError(f"{type(work).__name__} has no mixture of experts; find_experts says what is one")
    return {path: _Losses(work, mixture) for path, mixture in mixtures.items()}


@dataclass
class _Losses:
    """Sums of what the output of one mixture loses without each of its experts, over all calls of it."""

    work: nn.Module
    mixture: Mixture
    norms: Tensor = field(init=False)
    routed: Tensor = field(init=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.norms, self.routed = torch.zeros(2, self.mixture.experts, dtype=torch.float64)
        module: Any = self.work.get_submodule(self.mixture.path)
        given: list[Any] = []  # as it was: a forward may change what it is called with
        module.register_forward_pre_hook(lambda _, *call: given.append(_cloned(call)), with_kwargs=True)
        module.register_forward_hook(lambda module, *_: self._add(module, *given.pop()))

    @property
    def told(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.norms, self.routed, torch.tensor(self.tokens)

    def _add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with _wide(module):
            call = _pytree.tree_map_only(Tensor, _widened, (args, kwargs))
            whole = self._output(module, call)
            if not whole.isfinite().all():
                raise NonFiniteError(f"{self.mixture.path!r}: its output holds a NaN or an infinity")
            if not torch.equal(whole, self._output(module, call)):
                raise ModelError(f"{self.mixture.path!r}: its outputs are random, also in eval mode")
            self.tokens += len(whole)
            for expert in range(self.mixture.experts):
                with _zeroed(self._of(expert)):
                    lost = whole - self._output(module, call)
                self.norms[expert] += lost.double().norm(dim=1).sum().cpu()
                self.routed[expert] += lost.count_nonzero(1).count_nonzero().cpu()

    def _output(self, module: nn.Module, call: Any) -> Tensor:
        """Return the first tensor that the mixture gives, a row a token."""
        args, kwargs = _cloned(call)
        first = next(iter(tensors_in(module.forward(*args, **kwargs))))
        return first.reshape(-1, first.shape[-1])

    def _of(self, expert: int) -> list[Tensor]:
        """Return the tensors of one expert, those in a stack as views."""
        lists = [list(self.work.get_submodule(path).children())[expert] for path in self.mixture.lists]
        stacked = [tensor_of(self.work, name).data[expert] for name in self.mixture.stacks]
        return stacked + [parameter.data for own in lists for parameter in own.parameters()]


def _cloned(value: Any) -> Any:
    return _pytree.tree_map_only(Tensor, Tensor.clone, value)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


@contextmanager
def _wide(module: nn.Module) -> Iterator[None]:
    """Put float32 in the place of fewer bits in a module: differences of rounded outputs say little."""
    before = {tensor: tensor.data for tensor in (*module.parameters(), *module.buffers())}
    try:
        for tensor in before:
            tensor.data = _widened(tensor.data)
        yield
    finally:
        for tensor, data in before.items():
            tensor.data = data


@contextmanager
def _zeroed(tensors: Iterable[Tensor]) -> Iterator[None]:
    before = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        for tensor, _ in before:
            tensor.zero_()
        yield
    finally:
        for tensor, old in before:
            tensor.copy_(old)
