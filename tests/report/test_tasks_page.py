"""Recipes of other tasks from end to end, tiny: the score's own name stands everywhere."""

import re

import pytest
from rich.console import Console
from test_browser import chromium, look  # noqa: F401

from secateur.data.files import data_folder
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import run_study
from secateur.report.page import write_page
from secateur.report.terminal import print_table

TINY = {
    "regression": ("R2", {"train.epochs": 2, "retrain.epochs": 1}),
    "segmentation": ("mean IoU", {
        "data.train": 128, "data.test": 32, "data.validation": 32, "model.width": 4, "model.depth": 1,
        "train.epochs": 1, "refit.calibration": 32,
    }),
    "language": ("perplexity", {
        "data.train": 64, "data.context": 16, "data.validation": 20, "model.width": 16, "model.layers": 1,
        "model.ffn": 24, "train.epochs": 1, "refit.calibration": 32,
    }),
}  # fmt: skip
NEEDS = {"segmentation": ("mnist", "cifar10-images.tar.gz"), "language": ("tinyshakespeare",)}


def ran(name, out):
    """Return the tiny recipe, the score's name, and its results in ``out``; skip where its data are not."""
    folder = data_folder()
    for file in NEEDS.get(name, ()):
        if folder is None or not (folder / file).exists():
            pytest.skip(f"needs {file} in $SECATEUR_DATA")
    title, settings = TINY[name]
    recipe = load_recipe(name, {**settings, "measure": []}, seeds=[0])
    return recipe, title, run_study(recipe, out)


@pytest.mark.parametrize("name", TINY)
def test_a_recipe_says_its_own_score(name, tmp_path):
    recipe, title, results = ran(name, tmp_path)
    assert [trial["state"] for trial in results["trials"]] == ["finished"] * len(recipe.jobs)
    assert len(recipe.jobs) >= 10
    assert {trial["score"]["name"] for trial in results["trials"]} == {title}
    console = Console(width=200, record=True)
    print_table(results, console)
    printed = console.export_text()
    page = write_page([results], tmp_path / "report.html").read_text(encoding="utf-8")
    own = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    for text in ((tmp_path / "results.json").read_text(encoding="utf-8"), printed, own):
        assert title in text
        assert text.lower().count("accuracy") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_its_page_in_a_browser_has_the_score_on_the_axes(name, tmp_path, chromium):  # noqa: F811
    _, title, results = ran(name, tmp_path)
    seen = look(chromium, tmp_path, 1100, results)
    assert seen["complaints"] == []
    assert seen["drawn"]
    assert all(seen["drawn"])
    assert all(marks > 0 for marks in seen["marks"])
    assert any(title in said for said in seen["titles"])
    assert not [said for said in seen["titles"] if "accuracy" in said.lower()]
