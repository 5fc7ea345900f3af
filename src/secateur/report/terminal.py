"""The result table and the progress of a study on a terminal, or as plain lines in a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from secateur.report.aggregate import groups_of, table_of


class Reporter(Protocol):
    """Hears of every trial that starts and every epoch that ends."""

    def trial(self, index: int, total: int, label: str) -> None: ...

    def epoch(self, text: str) -> None: ...


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """Print one row a point: means over seeds, the quoted figures labelled as quoted."""
    header, rows = table_of(groups_of(results))
    table = Table(
        title=Text(f"{results['recipe']}: test accuracy, mean ± std over seeds"), title_justify="left"
    )
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for note in dict.fromkeys(note for trial in results["trials"] for note in trial.get("notes", [])):
        console.print(Text(f"note: {note}"), style="yellow" if "emptied" in note else "dim")


@contextmanager
def progress(console: Console, quiet: bool) -> Iterator[Reporter]:
    """Yield what shows progress: bars on a terminal, a line a trial elsewhere, nothing if ``quiet``."""
    if quiet:
        yield _Silent()
    elif not console.is_terminal:
        yield _Lines(console)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[epoch]}", style="dim"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield _Bars(bar)


class _Silent:
    def trial(self, index: int, total: int, label: str) -> None:
        pass

    def epoch(self, text: str) -> None:
        pass


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console

    def trial(self, index: int, total: int, label: str) -> None:
        if index < total:
            self.console.print(Text(f"trial {index + 1}/{total}: {label}"))

    def epoch(self, text: str) -> None:
        pass


class _Bars:
    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("trials", total=None, epoch="")

    def trial(self, index: int, total: int, label: str) -> None:
        self.bar.update(self.task, total=total, completed=index, description=label)

    def epoch(self, text: str) -> None:
        self.bar.update(self.task, epoch=text)
