"""The network of a command line opened, by whatever names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import ModelError, RecipeError
from secateur.experiments.plan import ModelSpec
from secateur.experiments.validation import validated
from secateur.experiments.yaml_lines import Located
from secateur.models import MODELS, TIMM, build_model
from secateur.running import run_once, shapes
from secateur.text import first_line
from secateur.training.checkpoint import load_network

Named = str | Mapping[str, Any]


def open_network(name: Named, weights: Path | None, *, trained: bool = False) -> tuple[nn.Module, bool]:
    """Build a network, by its name or a mapping of name and options, and fill it with ``weights``: a state
    dict, or what ``secateur.save`` wrote. Returns it, and whether it was the latter.

    What names a network is a name of ``secateur list``, ``package.module:factory``, a folder of transformers
    or ``timm:NAME``. A factory and a folder may bring weights of their own; ``trained``: others need
    ``weights``.

    Raises StorageError for a file of another kind, and ModelError for one of another network.
    """
    spec = model_spec(name)
    options = spec.model_extra or {}
    if trained and weights is None and _untrained(spec.name, options):
        raise RecipeError(f"--model {spec.name}: its weights are random; give trained ones with --weights")
    network = build_model(spec.name, **options)
    _check_changeable(network)
    if weights is None:
        return network, False
    check_sized(network)
    return network, load_network(weights, network)


def model_spec(name: Named) -> ModelSpec:
    """Return the network that ``--model`` names, and its options."""
    spec = described("--model", name, ModelSpec)
    if spec.weights is not None:
        raise RecipeError("--model: its weights are an option of their own: --weights")
    return spec


def _untrained(name: str, options: Mapping[str, Any]) -> bool:
    return name in MODELS or (name.startswith(TIMM) and not options.get("pretrained"))


def described(option: str, value: Any, kind: type[Any]) -> Any:
    """Return the specification that an option's name, or its mapping with a name, stands for."""
    raw = mapping_of(option, value)
    return validated(kind, raw, Located(raw, {}, option))


def mapping_of(option: str, value: Any) -> dict[str, Any]:
    """Return the mapping that an option's name, or its mapping, stands for."""
    if not isinstance(value, (str, Mapping)):
        raise RecipeError(f"{option} {value}: a name, or a mapping like {{name: ..., option: value}}")
    return {"name": value} if isinstance(value, str) else dict(value)


def check_sized(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"{type(network).__name__}: {name} has no shape before the first forward; "
                "run the network once in its factory"
            )


def _check_changeable(network: nn.Module) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not nn.parameter.is_lazy(tensor) and tensor.is_inference():
            raise ModelError(
                f"{type(network).__name__}: {name} was made in inference mode, so it cannot change; make the "
                "network outside torch.inference_mode(), or put clones of its tensors in their place"
            )


def check_runs(network: nn.Module, inputs: Any) -> None:
    """Raise ModelError where the network does not run on these inputs, whatever its forward raises."""
    name = type(network).__name__
    try:
        run_once(network, inputs)
    except Exception as error:
        said = str(error)
        if not isinstance(error, ModelError):
            why = f"{type(error).__name__}: {first_line(error)}"
            said = f"{name} does not run on example inputs {shapes(inputs)}: {why}"
        found = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        embeds = any(isinstance(module, nn.Embedding) for module in network.modules())
        if embeds and all(leaf.is_floating_point() for leaf in found):
            said += "; it has an embedding: are its inputs integers? --input-dtype int64"
        elif any(leaf.dtype == torch.float64 for leaf in found):
            said += "; numpy's numbers are float64: save them as float32, if the network is"
        raise ModelError(said) from error
