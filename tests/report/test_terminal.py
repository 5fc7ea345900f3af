"""What a file says is shown on a terminal as letters, whatever it holds."""

import io

import pytest
from rich.console import Console
from sample import study

from secateur.report.terminal import print_table, progress
from secateur.text import printable

EVIL = "[red]x[/red] \x1b]0;title\x07\x1b[2J\r\u202egnp\u200b\x9b1m\ud800[/]"


def test_nothing_from_a_file_is_obeyed():
    results = study(EVIL)
    for trial in results["trials"]:
        trial["point"][EVIL] = EVIL
        trial["notes"] = [f"{EVIL}\nerror: a line that nobody wrote"]
    console = Console(file=io.StringIO(), width=400, force_terminal=True)
    print_table(results, console)
    said = console.file.getvalue()
    said.encode()
    shown = r"[red]x[/red] \x1b]0;title\x07\x1b[2J\r\u202egnp\u200b\x9b1m\ud800[/]"
    assert said.count(shown) >= 4
    assert "\nerror: " not in said
    assert not {"\x07", "\r", "\u202e", "\x9b"} & set(said)
    assert "\x1b]" not in said
    assert "\x1b[2J" not in said


@pytest.mark.parametrize("terminal", [False, True])
def test_a_trials_label_is_no_markup(terminal):
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    with progress(console, quiet=False) as reporter:
        reporter.trial(0, 2, EVIL)
        reporter.epoch(EVIL)
        if terminal:
            reporter.bar.refresh()
    said = console.file.getvalue()
    assert r"[red]x[/red] \x1b]0;title" in said
    assert "\x1b]0" not in said


def test_what_is_printable_stays_as_it_is():
    for text in ("", "Čao, 98 % ± 0.1", "漢字 😀", "a[b]c"):
        assert printable(text) is text
    assert printable("3\u202f000\xa0%") == "3 000 %"
    assert printable("a\nb\tc\x00", keep="\n\t") == "a\nb\tc\\x00"
