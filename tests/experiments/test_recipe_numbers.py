"""Every number of a recipe is one, every bool is one, and none is beyond what it counts."""

import pytest
import yaml
from recipes import KINDS

from secateur.errors import RecipeError
from secateur.experiments.recipe import load_recipe


def places(value, path=()):
    """Yield the path of every number and bool in a document."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))
    elif isinstance(value, (bool, int, float)):
        yield path


def kinds_with(path, value):
    document = yaml.safe_load(KINDS)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return yaml.safe_dump(document, sort_keys=False)


@pytest.mark.parametrize(
    "path", list(places(yaml.safe_load(KINDS))), ids=lambda path: ".".join(map(str, path))
)
def test_every_number_is_one_and_every_bool(write, path):
    """`sparsity: true` once pruned everything, and `threads: 100000000` ended in a segmentation fault."""
    right = yaml.safe_load(KINDS)
    for key in path:
        right = right[key]
    wrong = [10**18, -(10**18), "1", "x", [1], {"a": 1}]
    wrong += [0.5, 1, "true"] if isinstance(right, bool) else [True, False]
    if not isinstance(right, float):
        wrong.append("1e-1")
    if (
        path[-1] in ["lr", "penalty", "ridge", "sensitivity", "a", "clip", "threshold", "seed", "min_kept"]
        or "rates" in path
    ):
        wrong.remove(10**18)  # of any size
    if path[-1] == "seed":
        wrong.remove(-(10**18))
    if path[0] == "seeds":
        wrong = [True, -1, 2**63, "1", 0.5, None]
    if path == ("data", "validation"):  # too many is said when the data are loaded; a share is right too
        wrong = [value for value in wrong if value not in (10**18, "1e-1")]
    load_recipe(write(KINDS))
    for value in wrong:
        with pytest.raises(RecipeError) as caught:
            load_recipe(write(kinds_with(path, value)))
        assert "\n" not in str(caught.value), value


def test_the_number_that_yaml_reads_as_text(write):
    recipe = load_recipe(
        write(KINDS.replace("lr: 1.0e-3", "lr: 1e-3").replace("penalty: 0.1", "penalty: 1E+2"))
    )
    assert recipe.plans[0].train.lr == 1e-3
    assert next(p for p in recipe.plans if p.method == "selection").steps[0].settings.penalty == 100.0
    for text in ("1e999", "nan", "inf", "1_0e1", " 1e1", "0x1e1", "1e1e1"):
        with pytest.raises(RecipeError, match=r"line 4: lr is"):
            load_recipe(write(KINDS.replace("lr: 1.0e-3", f"lr: '{text}'")))
