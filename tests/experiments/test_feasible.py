"""What a recipe names is looked up before anything is trained: in every point, method and step."""

import pytest
import torch

from secateur.errors import RecipeError, SecateurError
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import describe, run_study

RECIPE = """\
name: mine
data: {name: digits, validation: 200}
model: {name: digits-mlp}
train: {epochs: 1}
methods:
  zeros:
    steps: [{prune: {budget: {name: global, sparsity: 0.9}}}]
    sweep: {prune.budget.sparsity: [0.5, 0.9]}
  control:
    steps:
      - scratch: {width: 0.5}
seeds: [0, 1]
"""


@pytest.fixture
def load(tmp_path):
    def loader(*changes, **settings):
        text = RECIPE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "mine.yaml").write_text(text)
        return load_recipe(str(tmp_path / "mine.yaml"), settings)

    return loader


def test_an_option_that_the_last_method_alone_needs(load):
    """It once failed in the last trial, after all others had run."""
    with pytest.raises(RecipeError, match=r"mine.yaml line 11: digits-mlp has no option 'width'"):
        load()
    assert load(("width: 0.5", "model: {hidden: 32}"))
    assert load(("digits-mlp", "resnet-20"))  # it has one


CHANGES = [
    ("{width: 0.5}", "{model: {hiden: 32}}", r"line 11: .* no option 'hiden'; did you mean 'hidden'"),
    ("{width: 0.5}", "{model: {hidden: true}}", r"line 11: .*hidden is True; it is a whole number"),
    ("{width: 0.5}", "{model: {hidden: 10000000000}}", r"line 11: .*hidden is 10000000000"),
    ("{width: 0.5}", "{model: {weights: x}}", r"line 11: weights: from scratch, a network has none"),
    ("{width: 0.5}", "{model: {name: lenet}}", r"line 11: unknown network 'lenet'"),
    ("{width: 0.5}", "{model: {name: 5}}", r"line 11: the network's name is 5"),
    ("{name: digits-mlp}", "{name: lenet}", r"line 3: unknown network 'lenet'; did you mean 'lenet-5'"),
    ("{name: digits-mlp}", "{name: digits-mlp, seed: 3}", r"line 3: digits-mlp has no option 'seed'"),
    ("{name: digits-mlp}", "{name: vgg-16-bn, width: 1000}", r"line 3: .*width is 1000; it is a number from"),
    ("{name: digits-mlp}", "{name: lenet-300-100, hidden: [3]}", r"line 3: .*hidden is \[3\]"),
    (
        "{name: digits-mlp}",
        "{name: digits-mlp, weights: no.safetensors}",
        r"line 3: .*no.safetensors: no such",
    ),
    ("name: digits, ", "name: digit, ", r"line 2: unknown data set 'digit'; did you mean 'digits'"),
    ("name: digits, ", "name: digits, size: 3, ", r"line 2: digits has no option 'size'"),
    ("name: digits, ", "name: npz, ", r"line 2: npz needs the option 'path'"),
    (
        "{prune: {",
        "{prune: {include: [layer.0], ",
        r"line 7: pattern 'layer.0' matches nothing; did you",
    ),
    ("{prune: {", "{prune: {exclude: [conv*], ", r"line 7: pattern 'conv\*' matches nothing"),
    ("{name: global, sparsity: 0.9}", "{name: per_layer, sparsity: {fc1: 0.5}}", r"pattern 'fc1' matches"),
    (
        "{prune: {",
        "{prune: {units: true, criterion: bn_scale, ",
        r"line 7: its criterion reads the scales of",
    ),
    ("seeds: [0, 1]", "device: cuda", r"line 12: device is cuda, and torch finds no CUDA device"),
]


@pytest.mark.parametrize(("old", "new", "message"), CHANGES, ids=[new for _, new, _ in CHANGES])
def test_what_is_not_there_names_its_line(load, monkeypatch, old, new, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    right = () if "width: 0.5" in old else (("width: 0.5", "model: {classes: 10}"),)
    sweep = (("    sweep: {prune.budget.sparsity: [0.5, 0.9]}\n", ""),) if "per_layer" in new else ()
    with pytest.raises(RecipeError, match=message) as caught:
        load((old, new), *right, *sweep)
    assert "\n" not in str(caught.value)


def test_points_of_the_sweep_have_networks_of_their_own(load):
    points = "prune.budget.sparsity: [0.5, 0.9]", "model.hidden: [32, 0]"
    with pytest.raises(RecipeError, match=r"hidden is 0; it is a whole number"):
        load(points, ("width: 0.5", "model: {hidden: 9}"))


FACTORY = """
from torch import nn
built = []
def net(hidden=8):
    built.append(hidden)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, 10))
"""


def test_ones_own_factory_is_run_with_the_recipe_and_not_when_it_is_read(load, tmp_path, monkeypatch):
    (tmp_path / "own_factory_of_a_recipe.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load(("digits-mlp", "own_factory_of_a_recipe:net"))
    import own_factory_of_a_recipe

    assert own_factory_of_a_recipe.built == []
    for run in (run_study, describe):
        with pytest.raises(SecateurError, match="own_factory_of_a_recipe:net has no option 'width'"):
            run(recipe, tmp_path / "out")
    assert not list(tmp_path.glob("out/trials/*"))
    assert not list(tmp_path.glob("dense/*"))
