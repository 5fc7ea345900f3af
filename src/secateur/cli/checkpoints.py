"""The commands for a checkpoint of one's own, and for a finished trial: arguments in, calls out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import (
    Alike,
    Data,
    InputDtype,
    Inputs,
    InputShape,
    Model,
    Task,
    Weights,
    console,
    named,
    shape,
)
from secateur.errors import RecipeError, StorageError


def inspect(
    model: Model,
    weights: Weights = None,
    input_shape: InputShape = None,
    input_dtype: InputDtype = None,
    inputs: Inputs = None,
) -> None:
    """Print a network's layers: shapes, parameters, non-zeros and sparsity; on an input its whole cost."""
    from secateur.experiments.commands.network import inspect_model

    typer.echo(inspect_model(named("--model", model), weights, shape(input_shape), input_dtype, inputs))


def convert(
    source: Annotated[Path, typer.Argument(help="A file of torch.save: .pth, .pt, .ckpt, .bin.")],
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    key: Annotated[
        str | None, typer.Option(help="The part that holds the weights, like ema/module [the usual one].")
    ] = None,
    keep_prefix: Annotated[
        bool, typer.Option("--keep-prefix", help="Leave what stands before every name, like 'model.'.")
    ] = False,
    strip: Annotated[
        str | None,
        typer.Option(help="What else stands before every name, like 'student.model.'.", metavar="PREFIX"),
    ] = None,
    drop: Annotated[
        list[str],
        typer.Option(
            help="Leave out tensors so named, like 'loss.*': the network has none.", metavar="PATTERN"
        ),
    ] = [],  # noqa: B006
    dtype: Annotated[
        str | None, typer.Option(help="What half precision, say, becomes: float32.", metavar="DTYPE")
    ] = None,
) -> None:
    """Make a PyTorch checkpoint a safetensors file, without running what it holds."""
    from secateur.experiments.commands.convert import convert as converted

    given = {"key": key, "keep_prefix": keep_prefix, "strip": strip, "drop": drop, "dtype": dtype}
    typer.echo(converted(source, target, **given))


def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Where the pruned network goes.")],
    weights: Weights = None,
    criterion: Annotated[
        str | None, typer.Option(help="A criterion's name [magnitude; with --units l2_norm].")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="A budget's name, or YAML: {name: std, sensitivity: 1.5} [global; with --units uniform]."
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="The share of weights to zero; with --units, of units to remove.")
    ] = None,
    shrinkage: Annotated[
        str, typer.Option(help="hard, soft, or YAML: {name: trimmed, upper: 0.99}.")
    ] = "hard",
    units: Annotated[
        bool,
        typer.Option("--units", help="Whole neurons, filters and heads go, and are removed for real."),
    ] = False,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Remove for real what the zeros left dead; --units always does."),
    ] = False,
    graph: Annotated[
        bool,
        typer.Option(
            "--graph", help="Removed from its graph: no size written into its forward is in the way."
        ),
    ] = False,
    input_shape: InputShape = None,
    input_dtype: InputDtype = None,
    inputs: Inputs = None,
    round_to: Annotated[int, typer.Option(help="Of units, every group keeps a multiple of this.")] = 1,
    min_kept: Annotated[int, typer.Option(help="Of units, every group keeps at least this many.")] = 1,
    alike: Alike = False,
    include: Annotated[
        list[str] | None, typer.Option(help="Only tensors (with --units groups) that match this pattern.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No tensor (group) that matches this pattern.")
    ] = None,
    data: Data = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            help="With --units: whether what reads removed units is refitted on --data or --inputs [it is]."
        ),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Where the masks of the network in --out go too.")
    ] = None,
) -> None:
    """Prune a checkpoint of your own, without a recipe."""
    from secateur.experiments.commands.network import prune_checkpoint

    result = prune_checkpoint(
        model=named("--model", model),
        weights=weights,
        out=out,
        step={
            "criterion": named("--criterion", criterion),
            "budget": named("--budget", budget),
            "shrinkage": named("--shrinkage", shrinkage),
            "units": units,
            "round_to": round_to,
            "min_kept": min_kept,
            "alike": alike,
            "include": include,
            "exclude": exclude,
        },
        sparsity=sparsity,
        removing=compact,
        input_shape=shape(input_shape),
        input_dtype=input_dtype,
        inputs=inputs,
        data=named("--data", data),
        masks_out=masks,
        graph=graph,
        refit=refit,
    )
    typer.echo(result)


def shrink(
    model: Model,
    out: Annotated[Path, typer.Option(help="Where the small network goes: a file of secateur.save.")],
    weights: Weights = None,
    macs: Annotated[
        float | None, typer.Option(help="The share of its multiply-adds that may be left.")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="The share of its parameters that may be left.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="What one example may take, in milliseconds, measured here.")
    ] = None,
    data: Data = None,
    inputs: Inputs = None,
    task: Task = None,
    epochs: Annotated[
        int, typer.Option(help="Of training: on labels of --data, else towards the dense network's outputs.")
    ] = 10,
    lr: Annotated[
        float | None, typer.Option(help="Adam's learning rate [1e-3 on labels, 1e-4 without].")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only groups that match this pattern.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No group that matches this pattern.")] = None,
    round_to: Annotated[int, typer.Option(help="Every group keeps a multiple of this.")] = 1,
    alike: Alike = False,
) -> None:
    """Make a network smaller: prune it to a goal, refit, prove, train, save, and compare with dense."""
    from secateur.experiments.commands.shrinking import shrink_checkpoint

    typer.echo(
        shrink_checkpoint(
            model=named("--model", model),
            weights=weights,
            out=out,
            goals={"macs": macs, "parameters": parameters, "latency_ms": latency_ms},
            data=named("--data", data),
            inputs=inputs,
            task=named("--task", task),
            epochs=epochs,
            lr=lr,
            chosen={"include": include, "exclude": exclude, "round_to": round_to, "alike": alike},
            on_step=lambda text: typer.echo(text, err=True),
        )
    )


def deploy(
    source: Annotated[
        Path,
        typer.Argument(
            help="The folder of one finished trial (OUT/trials/<id>), a safetensors file, or a folder of "
            "transformers."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the files go [of a trial: deploy in its folder].")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What builds the network, as for inspect: a file names no code of its own."),
    ] = None,
    data: Data = None,
    inputs: Inputs = None,
    input_shape: InputShape = None,
    input_dtype: InputDtype = None,
    task: Task = None,
) -> None:
    """Write a network in every format, and measure each: bytes, load, latency, memory, agreement, score."""
    from secateur.experiments.commands.deployment import deploy, deploy_checkpoint
    from secateur.report.terminal import print_deployment

    given = {"model": named("--model", model), "data": named("--data", data)}
    own = {"inputs": inputs, "input_shape": shape(input_shape), "input_dtype": input_dtype}
    own |= {"task": named("--task", task)}
    if source.is_file() or (source / "config.json").is_file():
        if out is None:
            raise RecipeError("deploy: where do the files go? name a folder with --out")
        print_deployment(deploy_checkpoint(source, out, **given, **own, on_step=typer.echo), console())
        return
    if (strange := next((name for name, value in own.items() if value is not None), None)) is not None:
        option = f"--{strange.replace('_', '-')}"
        raise RecipeError(
            f"{option}: a trial brings its own; it goes with a file, or a folder of transformers"
        )
    print_deployment(deploy(source, out, **given, on_step=typer.echo), console())
    _write_report(source.resolve())


def _write_report(trial: Path) -> None:
    """Write the report of a trial's study anew, with what has been measured in it."""
    from secateur.experiments.results import check_writable, read_results
    from secateur.report.page import write_page

    study = trial.parent.parent
    if trial.parent.name == "trials" and (study / "results.json").is_file():
        try:
            check_writable(study)
        except StorageError as error:  # the table above is what was asked for
            typer.echo(f"no report: {error}", err=True)
        else:
            typer.echo(f"report: {write_page([read_results(study)], study / 'report.html')}")
