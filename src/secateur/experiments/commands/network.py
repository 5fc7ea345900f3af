"""One's own checkpoint on the command line: look at it, or prune it, without a recipe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError, RecipeError, SecateurWarning
from secateur.experiments.dense import calibration_batches, load_dataset
from secateur.experiments.plan import DataSpec, ModelSpec
from secateur.experiments.steps.prune import Prune
from secateur.experiments.validation import validated
from secateur.experiments.yaml_lines import Located
from secateur.measure.summary import Profile, format_layers, layer_profiles, profile
from secateur.models import build_model
from secateur.pruning.prune import prune
from secateur.running import run_once, shapes
from secateur.structure.compact import compact
from secateur.structure.saved import save
from secateur.structure.tracing import trace
from secateur.structure.units import FORMS, Structure
from secateur.text import first_line, nearest, shown, table
from secateur.training.checkpoint import load_network, save_weights

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
_MOST_NUMBERS = 2**27  # of one batch: half a gigabyte in float32
Named = str | Mapping[str, Any]


def inspect_model(
    name: Named, weights: Path | None, input_shape: tuple[int, ...] | None, input_dtype: str | None = None
) -> str:
    """Return the layer table of a network; with an input shape, its whole profile."""
    dtype = _dtype(input_shape, input_dtype)
    model, _ = open_network(name, weights)
    if input_shape is None:
        _check_sized(model)
        return format_layers(layer_profiles(model))
    inputs = example_inputs(model, input_shape, dtype)
    _check_runs(model, inputs)
    return repr(profile(model, inputs))


def open_network(name: Named, weights: Path | None) -> tuple[nn.Module, bool]:
    """Build a network, by its name or a mapping of name and options, and fill it with ``weights``: a state
    dict, or what ``secateur.save`` wrote. Returns it, and whether it was the latter.

    Raises StorageError for a file of another kind, and ModelError for one of another network.
    """
    spec = described("--model", name, ModelSpec)
    if spec.weights is not None:
        raise RecipeError("--model: its weights are an option of their own: --weights")
    network = build_model(spec.name, **(spec.model_extra or {}))
    _check_changeable(network)
    if weights is None:
        return network, False
    _check_sized(network)
    return network, load_network(weights, network)


def example_inputs(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return one batch of normal numbers, or of integers that every embedding of the network has a row
    for (zeros where it has none); the same on every call."""
    text = shown(",".join(map(str, shape)))
    if math.prod(shape) > _MOST_NUMBERS:
        raise RecipeError(
            f"--input-shape {text}: no such tensor can be made: over {_MOST_NUMBERS:,} numbers are too many"
        )
    generator = torch.Generator().manual_seed(0)
    try:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        rows = [m.num_embeddings for m in network.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        return torch.randint(0, min(rows, default=1), shape, generator=generator).to(dtype)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise RecipeError(f"--input-shape {text}: no such tensor can be made: {first_line(error)}") from error


def prune_checkpoint(
    *,
    model: Named,
    weights: Path,
    out: Path,
    step: Mapping[str, Any],
    sparsity: float | None = None,
    removing: bool = False,
    input_shape: tuple[int, ...] | None = None,
    input_dtype: str | None = None,
    data: Named | None = None,
    masks_out: Path | None = None,
    graph: bool = False,
) -> str:
    """Prune the checkpoint ``weights`` of ``model`` into ``out`` and return what was done as text.

    ``step``: the settings of a recipe's ``prune`` step; what is None is left to its default, which for
    whole units is l2_norm and a uniform budget. Units that it prunes are removed for real, as is with
    ``removing`` whatever single weights left dead: then ``out`` is a file of ``secateur.save``, and so
    are the masks those of the smaller network. ``data``, or a batch of ``input_shape``, is what the network
    runs on for that. With ``graph`` they are removed from its graph.
    """
    spec = _prune_spec(step, sparsity)
    removing = removing or spec.units
    dtype = _dtype(input_shape, input_dtype)
    if removing and input_shape is None and data is None:
        raise RecipeError(
            f"{'--units' if spec.units else '--compact'} runs the network: "
            "give --input-shape, like 1,3,32,32, or --data"
        )
    if input_shape is not None and not removing:
        raise RecipeError("--input-shape: nothing runs the network here; it goes with --units or --compact")
    if graph and not removing:
        raise RecipeError("--graph: nothing is removed here; it goes with --units or --compact")
    form = FORMS[1] if graph else FORMS[0]
    _check_files(weights, out, masks_out)
    dataset = None if data is None else load_dataset(described("--data", data, DataSpec))
    network, reshaped = open_network(model, weights)
    inputs = before = None
    if input_shape is not None:
        inputs = example_inputs(network, input_shape, dtype)
    elif removing and dataset is not None:
        inputs = dataset.validation.inputs[:2]
    if inputs is not None:
        _check_runs(network, inputs)
        before = profile(network, inputs)
    structure = _units(network, inputs, form) if spec.units else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)  # the masks' notes say the same in the table
        masks = prune(
            network,
            spec.criterion,
            spec.budget,
            shrinkage=None if spec.units else spec.shrinkage,
            data=_no_data(type(spec.criterion).__name__)
            if dataset is None
            else calibration_batches(dataset.train, spec.calibration, seed=0),
            include=spec.include,
            exclude=spec.exclude,
            structure=structure,
            round_to=spec.round_to,
            min_kept=spec.min_kept,
        )
    said = [repr(masks)]
    if before is not None:
        small, proof = compact(network, inputs, masks=masks, structure=structure, form=form)
        # A zero takes as long as any number: the masked network's latency is that of before.
        said += [repr(proof), _side_by_side(before, profile(small, inputs, dense=network))]
        network, masks = small, proof.masks
    if removing or reshaped:
        save(network, out)
        said.append(
            f"open it: secateur.load_graph({str(out)!r})"
            if graph
            else f"load it into the network at its full size: secateur.load(network, {str(out)!r})"
        )
    else:
        save_weights(out, network)
    if masks_out is not None:
        masks.save(masks_out)
    return "\n\n".join(said)


def described(option: str, value: Any, kind: type[Any]) -> Any:
    """Return the specification that an option's name, or its mapping with a name, stands for."""
    raw = _mapping(option, value)
    return validated(kind, raw, Located(raw, {}, option))


def _mapping(option: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, (str, Mapping)):
        raise RecipeError(f"{option} {value}: a name, or a mapping like {{name: ..., option: value}}")
    return {"name": value} if isinstance(value, str) else dict(value)


def _prune_spec(step: Mapping[str, Any], sparsity: float | None) -> Prune:
    """Return the validated ``prune`` step that the options of the command line amount to."""
    given = {name: value for name, value in step.items() if value is not None}
    usual = {"criterion": "l2_norm", "budget": "uniform"} if given.get("units") else {"budget": "global"}
    raw: dict[str, Any] = usual | given
    for kind in ("criterion", "budget", "shrinkage"):
        if kind in raw:
            raw[kind] = _mapping(f"--{kind}", raw[kind])
    budget = raw["budget"]
    if sparsity is not None:
        budget["sparsity"] = sparsity
    if budget in ({"name": "global"}, {"name": "uniform"}):
        raise RecipeError(
            "how much should go? give --sparsity 0.9, or --budget '{name: threshold, threshold: 0.1}'"
        )
    try:
        return validated(Prune, raw, Located(raw, {}, "secateur prune"))
    except RecipeError as error:
        # What is a recipe's key and an argument in Python is an option here.
        asked = "pass structure=trace(model, example_inputs), or units: true in a recipe"
        raise RecipeError(str(error).replace(asked, "add --units")) from error


def _no_data(criterion: str) -> Iterator[Any]:
    """Batches that are not there: a criterion that reads them hears which option would give them."""
    raise RecipeError(f"{criterion} reads data: name a data set with --data")
    yield


def _units(network: nn.Module, inputs: Any, form: str) -> Structure:
    """Return the units of a network; where there are none, the error says what protects them."""
    structure = trace(network, inputs, form=form)
    if not structure.groups:
        reasons = [f"{p.name} dim {p.dim}: {p.reason}" for p in structure.protected[:3]]
        raise ModelError(
            f"{type(network).__name__} has no whole unit that can go" + "".join(f"; {r}" for r in reasons)
        )
    return structure


def _check_sized(network: nn.Module) -> None:
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


def _dtype(shape: tuple[int, ...] | None, name: str | None) -> torch.dtype:
    if name is not None and name not in _DTYPES:
        raise RecipeError(f"--input-dtype {name}: no such dtype{nearest(name, _DTYPES)}")
    if name is not None and shape is None:
        raise RecipeError(f"--input-dtype {name}: the dtype of which inputs? give --input-shape too")
    return getattr(torch, name or "float32")


def _check_runs(network: nn.Module, inputs: Tensor) -> None:
    """Raise ModelError where the network does not run on these inputs, whatever its forward raises."""
    name = type(network).__name__
    try:
        run_once(network, inputs)
    except Exception as error:
        said = str(error)
        if not isinstance(error, ModelError):
            why = f"{type(error).__name__}: {first_line(error)}"
            said = f"{name} does not run on example inputs {shapes(inputs)}: {why}"
        embeds = any(isinstance(module, nn.Embedding) for module in network.modules())
        if embeds and inputs.is_floating_point():
            said += "; it has an embedding: are its inputs integers? --input-dtype int64"
        raise ModelError(said) from error


def _check_files(weights: Path, out: Path, masks_out: Path | None) -> None:
    """Refuse, before anything is computed, places where no file can be written or one would be lost."""
    taken = {"--weights": weights}
    for option, path in (("--out", out), ("--masks", masks_out)):
        if path is None:
            continue
        if path.exists() and not path.is_file():
            what = "a folder; give a file in it" if path.is_dir() else "not a file"
            raise RecipeError(f"{option} {shown(path)}: is {what}")
        for folder in path.parents:
            if folder.exists() and not folder.is_dir():
                raise RecipeError(f"{option} {shown(path)}: {folder} is a file, not a folder")
        for other, file in taken.items():
            if path.resolve() == file.resolve() or (path.exists() and file.exists() and path.samefile(file)):
                raise RecipeError(f"{option} {shown(path)}: is the file of {other}; give it one of its own")
        taken[option] = path


def _side_by_side(before: Profile, after: Profile) -> str:
    """Return what two networks cost as a table; ``after`` timed both, in turn."""

    def peak(profile: Profile) -> str:
        return "unknown here" if profile.peak_memory_mb is None else f"{profile.peak_memory_mb:.2f}"

    rows = [
        ("", "before", "after"),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("non-zero", f"{before.nonzero:,}", f"{after.nonzero:,}"),
        ("multiply-adds", f"{before.macs:,}", f"{after.macs:,}"),
        ("bytes", f"{before.bytes_dense:,}", f"{after.bytes_dense:,}"),
        ("latency, ms", f"{after.latency_dense_ms:.3f}", f"{after.latency_ms:.3f}"),
        ("peak memory, MB", peak(before), peak(after)),
        ("average memory, MB", f"{before.average_memory_mb:.2f}", f"{after.average_memory_mb:.2f}"),
    ]
    return "\n".join(table(rows, words=1))
