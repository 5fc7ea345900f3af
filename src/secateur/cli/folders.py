"""The commands for folders of large models: arguments in, calls out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.options import integers
from secateur.errors import BudgetError
from secateur.text import nearest

if TYPE_CHECKING:
    from secateur.large.pruning import Told

Text = Annotated[
    Path | None,
    typer.Option(help="A file of text, which the folder's tokenizer reads, or a .npy of tokens."),
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that came with the folder.")
]


def prune_folder(
    source: Annotated[Path, typer.Argument(help="A folder of transformers: config.json and safetensors.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it appears when it is complete.")],
    method: Annotated[
        str | None, typer.Option(help="How weights are zeroed: wanda, sparsegpt or magnitude.")
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="The share of them that goes.")] = None,
    nm: Annotated[
        str | None, typer.Option("--nm", help="Or N of every M inputs of an output stay: 2:4.")
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            help="What is compared: network (magnitude's default), layer (sparsegpt's), row (wanda's)."
        ),
    ] = None,
    units: Annotated[float, typer.Option(help="The share of heads and neurons that are removed.")] = 0.0,
    experts: Annotated[
        float, typer.Option(help="The share of each mixture's experts that are removed.")
    ] = 0.0,
    blocks: Annotated[float, typer.Option(help="The share of whole blocks that are removed.")] = 0.0,
    blocks_by: Annotated[str, typer.Option(help="influence, or perplexity without each.")] = "influence",
    experts_by: Annotated[str, typer.Option(help="reap or frequency.")] = "reap",
    parameters: Annotated[
        float | None, typer.Option(help="Instead of --units, the share of all parameters that may be left.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Or the bytes: weights and --context x --batch keys and values: 5GB.")
    ] = None,
    context: Annotated[int, typer.Option(help="Of --memory, the tokens of a sequence.")] = 4096,
    batch: Annotated[int, typer.Option(help="Of --memory, the sequences.")] = 1,
    text: Text = None,
    sequences: Annotated[int, typer.Option(help="Windows of the text that are read.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the places in the text.")] = 0,
    refit: Annotated[bool, typer.Option(help="Whether what reads removed units is refitted.")] = True,
    recover: Annotated[
        int, typer.Option(help="How often the text is read to train each block towards what it was.")
    ] = 0,
    rank: Annotated[
        int | None, typer.Option(help="Of adapters that are trained then instead of all weights.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only weights that match this pattern.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No weights that match this pattern.")] = None,
    ram_limit: Annotated[
        str | None, typer.Option(help="What this may take beside the pages of files: 8GB.")
    ] = None,
    proof: Annotated[bool, typer.Option(help="Open what was written in another process.")] = True,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Prune a folder of transformers to another one, block by block; asked again, it goes on."""
    from secateur.large.fitting import bytes_of
    from secateur.large.pruning import prune_folder as pruned
    from secateur.large.ranks import Ranks, joined

    criterion, budget = _weights(method, sparsity, nm, per)
    with joined(), _bar() as tell:
        first = Ranks.here().first
        found = pruned(
            source, out, criterion, budget, text=text, blocks=blocks, blocks_by=blocks_by, experts=experts,
            experts_by=experts_by, units=units, parameters=parameters, memory=memory, context=context,
            batch=batch, refit=refit, recover=recover, rank=rank, include=include, exclude=exclude,
            sequences=sequences, length=length, seed=seed, proof=proof, on_step=tell,
            ram_limit=None if ram_limit is None else bytes_of(ram_limit, "--ram-limit"),
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    if first:
        typer.echo(found)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder of transformers.")],
    text: Annotated[Path, typer.Option(help="A file of text, or a .npy of tokens: the test split.")],
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another folder, for a line of its own: the dense network.")
    ] = None,
    contexts: Annotated[str, typer.Option("--context", help="Lengths of windows: 512, or 256,1024.")] = "512",
    windows: Annotated[int | None, typer.Option(help="Windows that are read, from the start [all].")] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Measure tokens a second too: loads the whole network.")
    ] = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Measure the perplexity of a folder's language model on a text, block by block."""
    from secateur.large.evaluating import evaluate_folder

    lines: list[str] = []
    for one in (*(beside or []), folder):
        with _bar() as tell:
            found = evaluate_folder(
                one, text, contexts=integers("--context", contexts), windows_read=windows, speed=speed,
                trust_remote_code=trust_remote_code, on_step=tell,
            )  # fmt: skip
        lines += repr(found).splitlines()[len(lines) > 0 :]
    for line in lines:
        typer.echo(line)


def _weights(method: str | None, sparsity: float | None, nm: str | None, per: str | None) -> tuple[Any, Any]:
    """Return the criterion and the budget that the options say; none where no weights are to go."""
    from secateur.methods.sparsegpt import sparsegpt
    from secateur.pruning.budgets import NM, Global, Uniform
    from secateur.pruning.criteria import Magnitude, Wanda

    methods = {
        "wanda": (Wanda(), "row"),
        "sparsegpt": (sparsegpt, "layer"),
        "magnitude": (Magnitude(), "network"),
    }
    if method is None:
        if (sparsity, nm, per) != (None, None, None):
            raise BudgetError("--method is missing: wanda, sparsegpt or magnitude")
        return None, None
    if method not in methods:
        raise BudgetError(
            f"--method {method!r}: is no method{nearest(method, methods)}: {', '.join(methods)}"
        )
    if (sparsity is None) == (nm is None):
        raise BudgetError(f"--method {method}: give --sparsity, a share, or --nm, like 2:4")
    criterion, usual = methods[method]
    if nm is not None:
        keep, colon, of = nm.partition(":")
        if not (colon and keep.isdigit() and of.isdigit()):
            raise BudgetError(f"--nm {nm!r}: write it as 2:4, two of every four stay")
        return criterion, NM(int(keep), int(of))
    assert sparsity is not None
    budgets = {
        "network": lambda: Global(sparsity),
        "layer": lambda: Uniform(sparsity),
        "row": lambda: Uniform(sparsity, per="row"),
    }
    scope = per or usual
    if scope not in budgets:
        raise BudgetError(f"--per {scope!r}: is one of {', '.join(budgets)}")
    return criterion, budgets[scope]()


@contextmanager
def _bar() -> Iterator[Told]:
    """Show how far the work is, and an estimate of what is left, on the terminal's error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening", total=None)

        def tell(done: int, number: int, what: str) -> None:
            progress.update(task, completed=done, total=number, description=what)

        yield tell
