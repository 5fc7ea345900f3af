"""Networks of timm by name, and of transformers from a folder on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import MissingExtraError, ModelError
from secateur.storage import load_json
from secateur.text import first_line, nearest


def timm_network(name: str, **options: Any) -> nn.Module:
    """Return ``timm.create_model(name, **options)``, which downloads nothing unless ``pretrained`` is asked
    for. Raises ModelError for a name that timm does not know, and MissingExtraError without timm."""
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("timm", "timm") from error
    if not timm.is_model(name):
        raise ModelError(f"timm:{name}: timm has no such network{nearest(name, timm.list_models())}")
    return timm.create_model(name, **options)


def transformers_network(folder: str, **options: Any) -> nn.Module:
    """Return the network in a folder of ``save_pretrained`` with its weights, by the class that the
    ``architectures`` of its config.json name.

    No file but the folder's is read, none of its code runs, and its weights are safetensors. ``options``:
    those of ``from_pretrained``, like ``dtype``. Raises ModelError where the folder is none of these, and
    MissingExtraError without transformers.
    """
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise ModelError(f"{folder}: a folder without config.json; one of save_pretrained is right")
    config = load_json(place / "config.json")
    named = config.get("architectures") if isinstance(config, dict) else None
    if not (isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)):
        raise ModelError(f"{folder}/config.json: names no class; one in 'architectures' is right")
    if not [*place.glob("*.safetensors")]:
        held = next((path.name for path in place.glob("*.bin")), None)
        why = "holds no weights" if held is None else f"{held} may hold code"
        raise ModelError(f"{folder}: {why}; *.safetensors are right, as save_pretrained writes them")
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "transformers") from error
    found = getattr(transformers, named[0], None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(
            f"{folder}/config.json: {named[0]!a:.80} is no network of transformers "
            f"{transformers.__version__}; code that comes with a folder is not run"
        )
    try:
        loaded: Any = found.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, **options,
        )  # fmt: skip
    except Exception as error:  # whatever transformers raises, this line names the folder
        raise ModelError(f"{folder}: {type(error).__name__}: {first_line(error)}") from error
    network, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: its weights lack {missing[0]!r}, which {named[0]} has")
    return network
