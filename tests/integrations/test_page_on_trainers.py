"""The page on trainers runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    code = "\n".join(blocks)
    exec(compile(code, "trainers.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    said = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert len(said) == 5
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    assert printed == said
    assert {path.name for path in Path("runs/checkpoint-20").iterdir()} >= {
        "masks.safetensors",
        "pruning.json",
    }
