"""The code of how-to and migration pages runs, from top to bottom, and prints what stands beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs" / "migrate").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    """What another package alone can run stands under ``py``, and what runs here under ``python``."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert code or "<!-- script: " in text
    if "import torch_pruning" in code:
        pytest.importorskip("torch_pruning")
    exec(compile(code, page.name, "exec", dont_inherit=True), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_and_pictures_of_a_page_are_there(page):
    """``tests/test_example_scripts.py`` runs the scripts."""
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"<!-- script: (.*?) -->", text):
        assert (EXAMPLES / script).is_file(), script
    for picture in re.findall(r"!\[[^]]*\]\((.*?)\)", text):
        assert (page.parent / picture).is_file(), picture


def test_every_how_to_shows_a_script_and_what_it_printed():
    for page in PAGES:
        if page.parent.name == "howto":
            text = page.read_text(encoding="utf-8")
            assert "<!-- script: " in text, page
            assert "```text" in text, page


def test_the_commands_from_a_checkpoint_to_every_format(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "own_checkpoint.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mynets.py").write_text(blocks[0][1])
    np.save("x.npy", np.random.default_rng(0).standard_normal((60, 3, 12, 12)).astype(np.float32))
    space: dict[str, Any] = {}
    exec(blocks[0][1], space)
    torch.save({"model": space["make"]().state_dict()}, "net.pth")
    commands = [line.split() for kind, block in blocks if kind == "console" for line in block.splitlines()]
    assert [words[1] for words in commands[:-1]] == ["convert", "inspect", "shrink", "deploy"]
    others = sys.modules.pop("mynets", None)  # of another test's folder
    try:
        for words in commands[:-1]:
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, capsys.readouterr().err
    finally:
        sys.modules.pop("mynets", None)
        if others is not None:
            sys.modules["mynets"] = others
    subprocess.run([sys.executable, *commands[-1][1:]], check=True, timeout=60)
    small, wanted = space["make"](), np.load("y.npy")
    with torch.no_grad():
        found = sc.load(small, "small.safetensors").eval()(torch.from_numpy(np.load("x.npy")))
    assert np.allclose(found, wanted, atol=1e-4)


def test_llms_txt_is_as_llmstxt_org_says_and_its_pages_are_there():
    """A title, a quote that sums up, and sections of links."""
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# secateur\n\n> \S.*\n\n", text)
    assert len(text) < 6000
    links = re.findall(r"\]\((.*?)\)", text)
    assert {f"docs/{page.parent.name}/{page.name}" for page in PAGES} <= set(links)
    assert all((ROOT / link).is_file() for link in links)
