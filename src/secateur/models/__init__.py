"""The sources' networks by name, a user's own as ``package.module:factory``, timm's and transformers'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import ModelError
from secateur.factories import function_of, made_by, need
from secateur.text import nearest

if TYPE_CHECKING:
    from torch import nn

MODELS = {
    "lenet-300-100": "secateur.models.lenet:lenet_300_100",
    "lenet-5": "secateur.models.lenet:lenet_5",
    "tabular-256": "secateur.models.mlp:tabular_256",
    "fashion-mlp": "secateur.models.mlp:fashion_mlp",
    "digits-mlp": "secateur.models.mlp:digits_mlp",
    "convnet-25": "secateur.models.convnet:convnet_25",
    "vgg-16-bn": "secateur.models.vgg:vgg_16_bn",
    "resnet-20": "secateur.models.resnet:resnet_20",
    "resnet-56": "secateur.models.resnet:resnet_56",
    "mlp": "secateur.models.mlp:mlp",
    "unet": "secateur.models.unet:unet",
    "llama": "secateur.models.language:llama",
    "gpt2": "secateur.models.language:gpt2",
    "mixtral": "secateur.models.language:mixtral",
}


TIMM = "timm:"


def build_model(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Build a network by its name, or by a factory of your own. The global random state is left as it was.

    Args:
        name: one of ``secateur list``, ``package.module:factory``, ``timm:NAME``, or a folder of
            transformers' ``save_pretrained``, which is read with its weights and runs no code of its own.
        seed: of the initial weights.
        **options: the factory's keyword arguments.

    Returns:
        The network: untrained, where its factory loads no weights.

    Raises:
        ModelError: for an unknown name or option, or a factory that gives no module.

    Example:
        >>> import secateur as sc
        >>> net = sc.build_model("lenet-300-100", seed=1)
        >>> sum(parameter.numel() for parameter in net.parameters())
        266610
    """
    import torch

    from secateur.running import seeded

    factory = _factory(name)
    with seeded(seed):
        model = made_by(name, factory, options, ModelError)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{name} gave a {type(model).__name__}; a factory returns a torch.nn.Module")
    return model


def is_folder(name: str) -> bool:
    """Whether what a network is named by is a folder of transformers."""
    return name not in MODELS and Path(name).is_dir()


def _factory(name: str) -> Callable[..., Any]:
    if is_folder(name):
        from secateur.pretrained.opening import from_pretrained

        return partial(from_pretrained, name)
    if name.startswith(TIMM):
        return partial(_timm_network, name.removeprefix(TIMM))
    if "/" in name and ":" not in name:
        raise ModelError(f"{name}: there is no such folder; one with a config.json is right")
    return function_of(name, MODELS, ModelError, "network")


def _timm_network(name: str, **options: Any) -> Any:
    """``timm.create_model``, which downloads nothing unless ``pretrained`` is asked for."""
    timm = need("timm", extra="timm")
    if not timm.is_model(name):
        raise ModelError(f"timm:{name}: timm has no such network{nearest(name, timm.list_models())}")
    return timm.create_model(name, **options)
