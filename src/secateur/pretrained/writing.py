"""A network of transformers that was made smaller, written as a folder that opens again."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.copying import copied
from secateur.deploy.folder import replacing_folder
from secateur.errors import ModelError, StorageError
from secateur.factories import need
from secateur.graph.capture import all_tensors
from secateur.graph.compare import difference, tensors_in
from secateur.graph.names import unwrapped
from secateur.pretrained.auto_classes import auto_class_of
from secateur.pretrained.config_search import find_config
from secateur.pretrained.inputs import inputs_of
from secateur.pretrained.opened_anew import off_anew
from secateur.pretrained.plan import plan_of
from secateur.pretrained.skeleton import skeleton
from secateur.running import arguments, forward_once
from secateur.storage import as_path, save_json

CLOSE = 1e-5
MODULE, PLAN = "modeling_secateur", "secateur.json"
_TOKENIZERS = ("*token*", "vocab*", "merges.txt", "*.model", "*processor_config.json", "chat_template*")


@dataclass(frozen=True)
class WrittenFolder:
    """What ``save_pretrained`` wrote, and what opens it.

    Attributes:
        folder: where it lies.
        opened_by: the auto class of transformers, or the class itself where none has it.
        remote_code: whether that needs ``trust_remote_code=True``; ``secateur.from_pretrained`` never does.
        changed: by name what the configuration says now, (before, now); empty with ``remote_code``.
        max_error: the largest difference, relative to the largest output, when another process had opened it
            with transformers alone; None with ``proof=False``.
        files: by name how many bytes.

    Example:
        >>> from secateur.pretrained.writing import WrittenFolder
        >>> WrittenFolder("small", "AutoModelForCausalLM", False, {"intermediate_size": (96, 48)}, 0.0, {})
        small: 0 files, 0 bytes; opened by AutoModelForCausalLM
        config.json says intermediate_size 48 (was 96)
        opened in another process by transformers alone: outputs equal to 0.0e+00
    """

    folder: Path
    opened_by: str
    remote_code: bool
    changed: Mapping[str, tuple[Any, Any]]
    max_error: float | None
    files: Mapping[str, int]

    def __repr__(self) -> str:
        how = (
            " with trust_remote_code=True, and by secateur.from_pretrained without"
            if self.remote_code
            else ""
        )
        lines = [
            f"{self.folder}: {len(self.files)} files, {sum(self.files.values()):,} bytes; "
            f"opened by {self.opened_by}{how}"
        ]
        if self.changed:
            said = ", ".join(f"{name} {new} (was {old})" for name, (old, new) in self.changed.items())
            lines.append(f"config.json says {said}")
        elif self.remote_code:
            lines.append(f"no configuration says its sizes: {PLAN} does, which {MODULE}.py reads")
        if self.max_error is None:
            lines.append("not opened again: proof=False")
        else:
            lines.append(
                f"opened in another process by transformers alone: outputs equal to {self.max_error:.1e}"
            )
        return "\n".join(lines)


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    example_inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    max_shard_size: str | int = "5GB",
    proof: bool = True,
) -> WrittenFolder:
    """Write a network of transformers that was made smaller to a folder that opens again, weights as
    safetensors, and open it in another process with transformers alone to compare its outputs.

    Where a configuration can say the sizes (every block cut alike, fewer experts), the folder is a stock one:
    the auto class of its configuration opens it. Else the stock configuration stands beside ``secateur.json``
    and a short ``modeling_secateur.py``, which the auto class opens with ``trust_remote_code=True``.
    ``secateur.from_pretrained`` opens both, and runs no code of the folder.

    Args:
        model: the network, as ``compact``, ``prune_to`` or ``remove_experts`` return it; not changed.
        folder: a new or empty folder; it appears under its name when it is complete.
        example_inputs: what outputs are compared on: a tensor, a tuple or list of arguments, or a dict of
            them by name (default: drawn as the configuration says).
        kwargs: arguments by name beside ``example_inputs``.
        tokenizer: a tokenizer or processor that is written along, or a folder that its files are copied from.
        max_shard_size: the largest file of weights, "5GB" say, or a number of bytes.
        proof: open the folder in another process and compare.

    Returns:
        What was written, what opens it, and how far its outputs are from the network's.

    Raises:
        ModelError: for what is no network of transformers, lies on several devices, is quantised or bears
            adapters, or where the folder does not give its outputs; nothing is left then.
        StorageError: for a folder that holds something.

    Example:
        >>> import tempfile, transformers, secateur as sc
        >>> sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4))
        >>> ids = {"input_ids": model.dummy_inputs["input_ids"]}
        >>> structure = sc.trace(model, ids)
        >>> _ = sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure, alike=True)
        >>> small, _ = sc.compact(model, ids, structure=structure)
        >>> sc.save_pretrained(small, tempfile.mkdtemp() + "/small").changed  # doctest: +ELLIPSIS
        {'num_attention_heads': (4, 2), ...'intermediate_size': (48, 24)}
    """
    target = as_path(folder)
    _check_free(target)
    model = unwrapped(model)
    _check_model(model)
    args, named = arguments(inputs_of(model) if example_inputs is None else example_inputs, kwargs)
    inputs = _moved((args, named))
    work = copied(model).to("cpu", torch.float32)
    expected = forward_once(work, *_called(inputs))

    def same(config: Any) -> bool:
        return _off(work, config, expected, inputs) <= CLOSE

    found = find_config(work, same)
    config, settings = found or (copy.deepcopy(model.config), ())  # type: ignore[arg-type]
    plan = None if found else plan_of(work, config)
    auto = auto_class_of(model)
    auto = auto if found or auto.startswith("Auto") else "AutoModel"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target) as made:
        _write(model, made, config, plan, auto, max_shard_size)
        _write_tokenizer(tokenizer, made)
        off = off_anew(made, auto, plan is not None, inputs, tensors_in(expected)) if proof else None
        if off is not None and off > CLOSE:
            raise ModelError(
                f"{type(model).__name__} gives other outputs when {auto} opens what was written, off by "
                f"{off:.1e}; nothing is kept of it"
            )
    return WrittenFolder(
        target,
        auto,
        plan is not None,
        {s.name: (s.old, s.new) for s in settings},
        off,
        {path.name: path.stat().st_size for path in sorted(target.iterdir())},
    )


def _off(work: Any, config: Any, expected: Any, inputs: Any) -> float:
    """Return how far the model that a configuration builds is from ``work``, with its weights."""
    try:
        fresh = skeleton(type(work), config, dtype=torch.float32)
        fresh.load_state_dict(work.state_dict(), assign=True)
        fresh.tie_weights()
        found = forward_once(fresh, *_called(inputs))
    except (ModelError, RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return float("inf")
    return difference(expected, found)


def _called(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Any]:
    """All arguments as ``forward_once`` takes them."""
    args, named = inputs
    return (args if args else named,)


def _moved(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _moved(part) for name, part in value.items()}
    return type(value)(map(_moved, value)) if type(value) in (list, tuple) else value


def _check_free(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StorageError(f"{target} is no folder; name a new one")
    if target.exists() and (found := sorted(path.name for path in target.iterdir())):
        raise StorageError(f"{target} holds {found[0]!r}; name a new folder")


def _check_model(model: Any) -> None:
    name = type(model).__name__
    if not isinstance(model, need("transformers", extra="transformers").PreTrainedModel):
        adapters = (
            "; merge its adapters first: model.merge_and_unload()" if hasattr(model, "peft_config") else ""
        )
        instead = adapters or "; secateur.save(model, file) writes any network"
        raise ModelError(f"{name} is no model of transformers{instead}")
    if not type(model).__module__.startswith("transformers."):
        raise ModelError(
            f"{name} is a class of one's own, which no auto class builds; secateur.save writes it"
        )
    peft = any(type(module).__module__.startswith("peft.") for module in model.modules())
    if peft or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{name} bears adapters; merge or remove them first")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(f"{name} is quantised; write it first, and quantise what opens")
    devices = {str(tensor.device) for _, tensor in all_tensors(model)}
    if len(devices) > 1 or devices == {"meta"}:
        raise ModelError(
            f"{name} lies on {', '.join(sorted(devices))}; bring it to one device with its values"
        )


def _write(
    model: Any, made: Path, config: Any, plan: dict[str, Any] | None, auto: str, max_shard_size: str | int
) -> None:
    state = model.state_dict()
    if plan is not None:
        buffers = dict(all_tensors(model))
        state |= {name: buffers[name] for name in plan["buffers"]}
    with _saying(model, config):
        # Of others' classes transformers turns no names of old checkpoints into those of today.
        model.save_pretrained(
            made, state_dict=state, max_shard_size=max_shard_size, save_original_format=plan is None
        )
    if plan is not None:
        write_plan(made, plan, auto, type(model), config)


def write_plan(made: Path, plan: dict[str, Any], auto: str, kind: type, config: Any) -> None:
    """Write a plan beside a stock configuration, and the module that reads it, which ``auto_map`` names."""
    config.auto_map = {auto: f"{MODULE}.{kind.__name__}"}
    config.save_pretrained(made)
    save_json(made / PLAN, plan)
    code = (files("secateur.pretrained") / f"{MODULE}.py").read_text(encoding="utf-8")
    (made / f"{MODULE}.py").write_text(code + _CLASS.format(kind=kind.__name__), encoding="utf-8")


_CLASS = '''

import transformers  # noqa: E402


class {kind}(Narrowed, transformers.{kind}):
    """As large as ``secateur.json`` says."""
'''


@contextmanager
def _saying(model: Any, config: Any) -> Iterator[None]:
    """Let a model say another configuration while it is written, which changes it."""
    before = model.config
    model.config = config
    try:
        yield
    finally:
        model.config = before


def _write_tokenizer(tokenizer: Any, made: Path) -> None:
    if tokenizer is None:
        return
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(made)
        return
    source = as_path(tokenizer)
    found = {path for pattern in _TOKENIZERS for path in source.glob(pattern) if path.is_file()}
    if not found:
        raise StorageError(f"{source} holds no files of a tokenizer or processor")
    for path in found:
        shutil.copyfile(path, made / path.name)
