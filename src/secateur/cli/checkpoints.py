"""The commands for a checkpoint of one's own, and for a finished trial: arguments in, calls out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import (
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
from secateur.errors import StorageError


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
) -> None:
    """Make a PyTorch checkpoint a safetensors file, without running what it holds."""
    from secateur.experiments.commands.convert import convert as converted

    typer.echo(converted(source, target, key=key, keep_prefix=keep_prefix))


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
    include: Annotated[
        list[str] | None, typer.Option(help="Only tensors (with --units groups) that match this pattern.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No tensor (group) that matches this pattern.")
    ] = None,
    data: Data = None,
    refit: Annotated[
        bool,
        typer.Option(help="With --units, what reads removed units is refitted on --data or --inputs."),
    ] = True,
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
    epochs: Annotated[int, typer.Option(help="Of fine-tuning, with --data.")] = 10,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    include: Annotated[list[str] | None, typer.Option(help="Only groups that match this pattern.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No group that matches this pattern.")] = None,
    round_to: Annotated[int, typer.Option(help="Every group keeps a multiple of this.")] = 1,
) -> None:
    """Make a network smaller: prune it to a goal, refit, fine-tune, prove, save, and compare with dense."""
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
            chosen={"include": include, "exclude": exclude, "round_to": round_to},
            on_step=lambda text: typer.echo(text, err=True),
        )
    )


def deploy(
    trial: Annotated[Path, typer.Argument(help="The folder of one finished trial: OUT/trials/<id>.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the files go [deploy in the trial's folder].")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Your own network, as for inspect: its module is imported, a trial's file names none."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Your own data set: package.module:function, or YAML with options.")
    ] = None,
) -> None:
    """Write a trial's network in every format, and measure each: bytes, load, latency, memory, accuracy."""
    from secateur.experiments.commands.deployment import deploy
    from secateur.experiments.results import check_writable, read_results
    from secateur.report.page import write_page
    from secateur.report.terminal import print_deployment

    given = {"model": named("--model", model), "data": named("--data", data)}
    deployment = deploy(trial, out, **given, on_step=typer.echo)
    print_deployment(deployment, console())
    study = trial.resolve().parent.parent
    if trial.resolve().parent.name == "trials" and (study / "results.json").is_file():
        try:
            check_writable(study)
        except StorageError as error:  # the table above is what was asked for
            typer.echo(f"no report: {error}", err=True)
        else:
            typer.echo(f"report: {write_page([read_results(study)], study / 'report.html')}")
