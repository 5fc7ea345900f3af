"""One's own checkpoint on the command line: look at it, or prune it, without a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur.data.dataset import rows_of
from secateur.errors import ModelError, RecipeError, SecateurWarning
from secateur.experiments.commands.agreeing import agreement
from secateur.experiments.commands.examples import (
    Examples,
    chooses,
    dataset_named,
    dtype_of,
    examples_of,
    no_data,
)
from secateur.experiments.commands.opening import (
    Named,
    check_runs,
    check_sized,
    mapping_of,
    open_network,
)
from secateur.experiments.steps.prune import Prune
from secateur.experiments.validation import validated
from secateur.experiments.yaml_lines import Located
from secateur.measure.summary import Profile, format_layers, layer_profiles, profile
from secateur.methods.reconstruction import reconstruct
from secateur.pruning.masks import Masks
from secateur.pruning.prune import prune
from secateur.structure.compact import compact
from secateur.structure.saved import save
from secateur.structure.tracing import trace
from secateur.structure.units import FORMS, Structure
from secateur.text import shown, table
from secateur.training.checkpoint import save_weights

FITTED = 4096  # examples that a refit reads
MEASURED = "multiply-adds, latency and memory"


def inspect_model(
    name: Named,
    weights: Path | None,
    input_shape: tuple[int, ...] | None = None,
    input_dtype: str | None = None,
    inputs: Path | None = None,
) -> str:
    """Return the layer table of a network; with an input shape or a file of inputs, its whole profile."""
    check_one_of({"--input-shape": input_shape, "--inputs": inputs})
    dtype_of(input_shape, input_dtype)
    model, _ = open_network(name, weights)
    if input_shape is None and inputs is None:
        check_sized(model)
        return format_layers(layer_profiles(model))
    given = examples_of(model, input_shape=input_shape, input_dtype=input_dtype, inputs=inputs)
    check_runs(model, given.example)
    example, what = given.measured(model)
    return f"{profile(model, example)!r}\n{MEASURED}: {what}"


def check_one_of(options: Mapping[str, Any]) -> None:
    """Refuse options of which one says what the other does."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise RecipeError(f"{given[0]} and {given[1]} exclude each other: both say what the network runs on")


def prune_checkpoint(
    *,
    model: Named,
    weights: Path | None,
    out: Path,
    step: Mapping[str, Any],
    sparsity: float | None = None,
    removing: bool = False,
    input_shape: tuple[int, ...] | None = None,
    input_dtype: str | None = None,
    inputs: Path | None = None,
    data: Named | None = None,
    masks_out: Path | None = None,
    graph: bool = False,
    refit: bool | None = None,
) -> str:
    """Prune the checkpoint ``weights`` of ``model`` into ``out`` and return what was done as text.

    ``step``: the settings of a recipe's ``prune`` step; what is None is left to its default, which for
    whole units is l2_norm and a uniform budget. Units that it prunes are removed for real, as is with
    ``removing`` whatever single weights left dead: then ``out`` is a file of ``secateur.save``, and so
    are the masks those of the smaller network. ``data``, the file ``inputs``, or a batch of ``input_shape``,
    is what the network runs on for that. With ``graph`` they are removed from its graph.

    Where there are examples, the layers that read removed units are refitted on some of them, unless
    ``refit`` is False, and the text says how far the result agrees with the network given on others. Without
    whole units, or examples to refit on, ``refit`` is left out.
    """
    spec = _prune_spec(step, sparsity)
    removing = removing or spec.units
    check_one_of({"--input-shape": input_shape, "--inputs": inputs})
    check_one_of({"--inputs": inputs, "--data": data})
    dtype_of(input_shape, input_dtype)
    if removing and input_shape is None and data is None and inputs is None:
        raise RecipeError(
            f"{'--units' if spec.units else '--compact'} runs the network: "
            "give --input-shape, like 1,3,32,32, --inputs or --data"
        )
    if input_shape is not None and not removing:
        raise RecipeError("--input-shape: nothing runs the network here; it goes with --units or --compact")
    if graph and not removing:
        raise RecipeError("--graph: nothing is removed here; it goes with --units or --compact")
    if refit is not None and not spec.units:
        option = "--refit" if refit else "--no-refit"
        raise RecipeError(
            f"{option}: single weights are pruned, and nothing is refitted; it goes with --units"
        )
    if refit and data is None and inputs is None:
        raise RecipeError("--refit reads examples: give --data, or a file of them as --inputs")
    form = FORMS[1] if graph else FORMS[0]
    check_files({"--weights": weights}, {"--out": out, "--masks": masks_out})
    dataset = dataset_named(data)
    network, reshaped = open_network(model, weights, trained=True)
    given = before = example = None
    what = ""
    if not (input_shape is None and inputs is None and dataset is None):
        given = examples_of(
            network, input_shape=input_shape, input_dtype=input_dtype, inputs=inputs, data=dataset
        )
        check_runs(network, given.example)
    dense = deepcopy(network) if given is not None and given.real else None
    if removing and given is not None:
        example, what = given.measured(network)
        before = profile(network, example)
    structure = _units(network, given.example, form) if spec.units and given is not None else None
    masks = _masks(network, spec, given, structure)
    said = [repr(masks)]
    if refit is not False and dense is not None and given is not None and structure is not None:
        said.append(refitted(network, dense, structure, given, masks))
    if before is not None and given is not None:
        small, proof = compact(network, given.example, masks=masks, structure=structure, form=form)
        # A zero takes as long as any number: the masked network's latency is that of before.
        after = profile(small, example, dense=network)
        proof = replace(proof, macs=(before.macs, after.macs))  # of what the table is of
        said += [repr(proof), side_by_side(before, after, what)]
        network, masks = small, proof.masks
    if dense is not None and given is not None:
        agrees = agreement(dense, network, given.held())
        agrees = agrees if chooses(None, given.dataset) else replace(agrees, same=None)
        said.append(f"agreement with the dense network: {agrees}")
    elif spec.units:
        said.append(
            "neither refitted nor compared with the dense network: that takes --data, or examples as --inputs"
        )
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


def _masks(network: nn.Module, spec: Prune, given: Examples | None, structure: Structure | None) -> Masks:
    data = given.fitting(spec.calibration) if given is not None else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)  # the masks' notes say the same in the table
        return prune(
            network,
            spec.criterion,
            spec.budget,
            shrinkage=None if spec.units else spec.shrinkage,
            data=data or no_data(type(spec.criterion).__name__),
            include=spec.include,
            exclude=spec.exclude,
            structure=structure,
            round_to=spec.round_to,
            min_kept=spec.min_kept,
            alike=spec.alike,
        )


def refitted(
    network: nn.Module, dense: nn.Module, structure: Structure, given: Examples, masks: Masks | None = None
) -> str:
    """Refit in place what reads lost units, and return how near it came as text."""
    batches = given.fitting(FITTED)
    if not batches:
        return "not refitted: one example alone is kept to compare; give more"
    done = reconstruct(network, dense, structure, batches, masks=masks)
    return f"refitted on {sum(rows_of(inputs) for inputs, _ in batches):,} examples:\n{done}"


def _prune_spec(step: Mapping[str, Any], sparsity: float | None) -> Prune:
    """Return the validated ``prune`` step that the options of the command line amount to."""
    given = {name: value for name, value in step.items() if value is not None}
    usual = {"criterion": "l2_norm", "budget": "uniform"} if given.get("units") else {"budget": "global"}
    raw: dict[str, Any] = usual | given
    for kind in ("criterion", "budget", "shrinkage"):
        if kind in raw:
            raw[kind] = mapping_of(f"--{kind}", raw[kind])
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


def _units(network: nn.Module, inputs: Any, form: str) -> Structure:
    """Return the units of a network; where there are none, the error says what protects them."""
    structure = trace(network, inputs, form=form)
    if not structure.groups:
        reasons = [f"{p.name} dim {p.dim}: {p.reason}" for p in structure.protected[:3]]
        raise ModelError(
            f"{type(network).__name__} has no whole unit that can go" + "".join(f"; {r}" for r in reasons)
        )
    return structure


def check_files(read: Mapping[str, Path | None], written: Mapping[str, Path | None]) -> None:
    """Refuse, before anything is computed, places where no file can be written or one would be lost."""
    taken = {option: path for option, path in read.items() if path is not None}
    for option, path in written.items():
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


def side_by_side(
    before: Profile,
    after: Profile,
    what: str,
    heads: tuple[str, str] = ("before", "after"),
    more: Sequence[tuple[str, str, str]] = (),
) -> str:
    """Return what two networks cost, and ``more`` of them, as a table and ``what`` it is of; ``after`` timed
    both, in turn."""

    def peak(profile: Profile) -> str:
        return "unknown here" if profile.peak_memory_mb is None else f"{profile.peak_memory_mb:.2f}"

    rows = [
        ("", *heads),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("non-zero", f"{before.nonzero:,}", f"{after.nonzero:,}"),
        ("multiply-adds", f"{before.macs:,}", f"{after.macs:,}"),
        ("bytes", f"{before.bytes_dense:,}", f"{after.bytes_dense:,}"),
        ("latency, ms", f"{after.latency_dense_ms:.3f}", f"{after.latency_ms:.3f}"),
        ("peak memory, MB", peak(before), peak(after)),
        ("average memory, MB", f"{before.average_memory_mb:.2f}", f"{after.average_memory_mb:.2f}"),
        *more,
    ]
    threads = "one thread" if after.threads == 1 else f"{after.threads} threads"
    return "\n".join([*table(rows, words=1), f"{MEASURED}: {what}, on {threads}"])
