"""Names in recipes are names of folders and stand on terminals."""

import pytest
from recipes import RECIPE

from secateur.errors import RecipeError
from secateur.experiments.recipe import load_recipe

NAMES = [
    "../x", "/tmp/x", "a/b", "a\\\\b", "C:x", "..", ".", ".x", "", " x", "x ", "x.", "NUL", "con.txt", "com1",
    "dense", "a*", "what?", "é" * 60, "x\\n", "x\\u202ey", "x\\0",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_a_folder_in_the_folder_of_runs(write, name):
    with pytest.raises(RecipeError, match=r"mine.yaml line 1: ") as caught:
        load_recipe(write(RECIPE.replace("name: mine", f'name: "{name}"')))
    assert str(caught.value).isprintable()
    with pytest.raises(RecipeError):
        load_recipe(write(RECIPE), {"name": name.encode().decode("unicode_escape")})


def test_names_of_every_language(write):
    for name in ("élagage", "剪枝", "a b", "pruning-2.1_x", "%#"):
        assert load_recipe(write(RECIPE), {"name": name}).name == name


MARKED = """\
name: mine
description: "of%s"
source: "from%s"
data: {name: digits}
model: {name: digits-mlp}
methods:
  "first%s":
    steps:
      - {id: "cut%s", prune: {budget: {name: uniform, sparsity: 0.5}}}
"""


@pytest.mark.parametrize("mark", ["\\n", "\\e[2J", "\\u202e", "\\u2066", "\\x7f", "\\u2028", "\\ufeff"])
def test_unprintable_characters_are_refused_wherever_they_are_printed(write, mark):
    assert load_recipe(write(MARKED % ((" é",) * 4))).plans[0].method == "first é"
    for place, line in enumerate((2, 3, 7, 9)):
        marks = [mark if index == place else "" for index in range(4)]
        with pytest.raises(RecipeError, match=rf"mine.yaml line {line}: .* unprintable") as caught:
            load_recipe(write(MARKED % tuple(marks)))
        assert str(caught.value).isprintable()
