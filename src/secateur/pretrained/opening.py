"""A folder of ``save_pretrained`` opened: data alone, none of its code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import ModelError, SecateurWarning, StorageError
from secateur.factories import need
from secateur.numeric import is_whole
from secateur.pretrained.plan import FORMAT
from secateur.pretrained.writing import PLAN
from secateur.storage import as_path, load_json
from secateur.structure.replaced.two_layers import TwoLayers
from secateur.text import first_line

_OWN = {"local_files_only", "trust_remote_code", "use_safetensors", "output_loading_info"}
_OWN |= {"ignore_mismatched_sizes"}


def from_pretrained(folder: str | Path, **options: Any) -> Any:
    """Open a folder that ``save_pretrained`` or transformers wrote, as small as it was written, in eval mode.

    It reads data (safetensors) and runs none of the folder's code: the class is transformers' own, by the
    name that stands in ``config.json``.

    Args:
        folder: the folder, on this machine.
        **options: further ones of transformers' ``from_pretrained``, like ``dtype``.

    Returns:
        A model of transformers, of the dtype that it was written in.

    Raises:
        StorageError: for a folder that is none of these, or damaged.
        ModelError: for a class that transformers has not.

    Example:
        >>> import tempfile, transformers, secateur as sc
        >>> config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)
        >>> model = transformers.GPT2LMHeadModel(config)
        >>> ids = {"input_ids": model.dummy_inputs["input_ids"]}
        >>> small, _ = sc.prune_to(model, ids, parameters=0.7)
        >>> written = sc.save_pretrained(small, tempfile.mkdtemp() + "/small")
        >>> written.remote_code  # fewer heads of the same size: no GPT-2 says so
        True
        >>> sc.from_pretrained(written.folder).num_parameters() == small.num_parameters()
        True
    """
    path = as_path(folder)
    kind = class_of(path)
    if not [*path.glob("*.safetensors")]:
        held = next((file.name for file in path.glob("*.bin")), None)
        why = "holds no weights" if held is None else f"{held} may hold code"
        raise StorageError(f"{path}: {why}; *.safetensors are right, as save_pretrained writes them")
    plan = plan_in(path, kind) if (path / PLAN).exists() else None
    opened = kind if plan is None else _narrowed(kind)
    if strange := sorted(options.keys() & _OWN):
        raise ModelError(f"{strange[0]}= is not yours to choose: a folder is read as data, from this machine")
    own = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    own |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # which is an error below
    try:
        model, said = opened.from_pretrained(path, **{"dtype": "auto", **options}, **own)
    except Exception as error:  # whatever transformers raises, this line names the folder
        raise StorageError(
            f"{path}: cannot be opened: {type(error).__name__}: {first_line(error)}"
        ) from error
    wrong = {"missing_keys": "lack {}, which {} has", "mismatched_keys": "have {} of another size than {}"}
    if plan is not None:
        wrong["unexpected_keys"] = "hold {}, which {} has not"
    for what, text in wrong.items():
        if names := sorted(name if isinstance(name, str) else name[0] for name in said.get(what, ())):
            raise StorageError(f"{path}: its weights {text.format(repr(names[0]), kind.__name__)}")
    if left := sorted(map(str, said.get("unexpected_keys", ()))):
        warnings.warn(
            f"{path}: {len(left)} tensors are read by nothing in a {kind.__name__}: {left[0]}, ...",
            SecateurWarning,
            stacklevel=2,
        )
    if plan is not None:
        model.__class__ = kind
        del model.secateur_plan
        _two_layers(model, plan)
    return model


def narrowed(model: Any, plan: dict[str, Any]) -> Any:
    """Return the model of a configuration as small as a plan says; it is changed."""
    from secateur.pretrained.modeling_secateur import narrow

    narrow(model, plan)
    _two_layers(model, plan)
    return model


def _two_layers(model: Any, plan: dict[str, Any]) -> None:
    for name in plan["ranks"]:
        model.get_submodule(name).__class__ = TwoLayers


def class_of(path: Path) -> Any:
    """Return the class of transformers that a folder's config.json names."""
    if not (path / "config.json").is_file():
        raise StorageError(f"{path}: a folder without config.json; one of save_pretrained is right")
    said = load_json(path / "config.json")
    named = said.get("architectures") if isinstance(said, dict) else None
    if not (isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)):
        raise StorageError(f"{path}/config.json: names no class; one in 'architectures' is right")
    transformers = need("transformers", extra="transformers")
    kind = getattr(transformers, named[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ModelError(
            f"{path}/config.json: {named[0]!a:.80} is no network of transformers {transformers.__version__}; "
            "code that comes with a folder is not run"
        )
    return kind


def _narrowed(kind: Any) -> Any:
    from secateur.pretrained.modeling_secateur import Narrowed

    return type(kind.__name__, (Narrowed, kind), {"__module__": __name__})


def plan_in(path: Path, kind: type[nn.Module]) -> dict[str, Any]:
    """Return the plan of a folder for a class, checked."""
    plan = load_json(path / PLAN)
    fields = {"shapes": dict, "tied": dict, "modules": dict, "removed": dict, "ranks": dict, "buffers": list}
    if not isinstance(plan, dict) or plan.get("secateur") != FORMAT or plan.get("class") != kind.__name__:
        raise StorageError(f"{path / PLAN}: is no plan of a {kind.__name__}")
    good = all(isinstance(plan.get(name), kind) for name, kind in fields.items())
    good = good and all(
        isinstance(shape, list) and all(is_whole(n) and 0 <= n < 2**40 for n in shape)
        for shape in plan["shapes"].values()
    )
    good = good and all(isinstance(sizes, dict) for sizes in plan["modules"].values())
    good = good and all(is_whole(rank) and rank >= 1 for rank in plan["ranks"].values())
    good = good and all(isinstance(text, str) for name in ("tied", "removed") for text in plan[name].values())
    good = good and all(_is_size(value) for sizes in plan["modules"].values() for value in sizes.values())
    if not good:
        raise StorageError(f"{path / PLAN}: is damaged")
    return plan


def _is_size(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) < 64 and all(map(_is_size, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)
