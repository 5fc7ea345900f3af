"""Recipes that are wrong: one line that names the line and what would be right."""

import pytest
from recipes import KINDS, RECIPE

from secateur.errors import RecipeError
from secateur.experiments.recipe import load_recipe

BAD = {
    "a point twice": (RECIPE.replace("[0.5, 0.9]", "[0.5, 0.5]"), r"line 8: the point .* stands twice"),
    "an empty sweep": (RECIPE.replace("[0.5, 0.9]", "[]"), r"line 8: the sweep of mine has no point"),
    "soft with another criterion": (
        RECIPE.replace("criterion: magnitude, budget", "shrinkage: soft, budget"),
        r"line 6: Soft reads the size of the weights, so it goes with Magnitude alone",
    ),
    "trimmed with a count": (
        RECIPE.replace("criterion: magnitude, budget", "shrinkage: trimmed, budget").replace(
            ", prune.criterion: [magnitude, random]", ""
        ),
        r"line 6: Trimmed goes with a value budget",
    ),
    "std with another criterion": (
        RECIPE.replace("name: global, sparsity", "name: std, sensitivity").replace(
            "prune.budget.sparsity: [0.5, 0.9]", "prune.budget.sensitivity: [0.5]"
        ),
        r"line 6: Std reads the size of the weights, so it goes with Magnitude alone",
    ),
    "a schedule without training": (
        RECIPE.replace("sparsity: 0.9}}", "sparsity: 0.9}, schedule: {name: cubic, steps: 3}}"),
        r"line 6: lacks 'retrain'",
    ),
    "momentum over one": (RECIPE.replace("batch_size: 64", "momentum: 4"), r"line 4: momentum is 4"),
    "unknown top-level key": (
        RECIPE + "sedes: [1]\n",
        r"mine.yaml line 10: unknown key 'sedes'; did you mean 'seeds'",
    ),
    "unknown training key": (
        RECIPE.replace("batch_size: 64", "epoch: 3"),
        r"mine.yaml line 4: unknown key 'epoch'; did you mean 'epochs'",
    ),
    "unknown step": (
        RECIPE.replace("- retrain", "- retrian"),
        r"mine.yaml line 7: unknown step 'retrian'; did you mean 'retrain'",
    ),
    "unknown key of a step": (
        RECIPE.replace("criterion: magnitude, budget", "critereon: magnitude, budget"),
        r"mine.yaml line 6: unknown key 'critereon'; did you mean 'criterion'",
    ),
    "unknown criterion": (
        RECIPE.replace("[magnitude, random]", "[magnitude, magnitud]"),
        r"line 6: criterion: unknown name 'magnitud'; did you mean 'magnitude'",
    ),
    "unknown budget": (
        RECIPE.replace("name: global", "name: globl"),
        r"line 6: budget: unknown name 'globl'; did you mean 'global'",
    ),
    "unknown setting of a budget": (
        RECIPE.replace("{name: global, sparsity: 0.9}", "{name: global, sparsity: 0.9, min_keep: 3}"),
        r"budget global: unknown setting 'min_keep'; did you mean 'min_kept'",
    ),
    "budget without its amount": (
        RECIPE.replace("{name: global, sparsity: 0.9}", "{name: std}").replace(
            "sweep: {prune.budget.sparsity: [0.5, 0.9], prune.criterion: [magnitude, random]}\n", ""
        ),
        r"budget std: lacks 'sensitivity'",
    ),
    "sparsity over one": (
        RECIPE.replace("[0.5, 0.9]", "[0.5, 90]"),
        r"budget global: sparsity is 90; it is a share between 0 and 1",
    ),
    "sweep of an unknown step": (
        RECIPE.replace("prune.budget.sparsity: [", "cut.budget.sparsity: ["),
        r"line 8: sweep cut.budget.sparsity: 'cut' is neither a step nor a key of the recipe",
    ),
    "wrong type": (
        RECIPE.replace("epochs: 2", "epochs: many"),
        r"line 4: epochs is 'many'; it is a whole number from 0",
    ),
    "negative epochs": (RECIPE.replace("epochs: 3", "epochs: -3"), r"line 7: .*epochs is -3"),
    "no model": (RECIPE.replace("model: {name: digits-mlp}\n", ""), r"lacks 'model'"),
    "no steps": (RECIPE[: RECIPE.index("steps:")], r"give either steps or methods"),
    "a seed twice": (RECIPE.replace("[0, 1]\n", "[1, 1]\n"), r"line 9: a seed stands twice"),
    "no seed": (RECIPE.replace("seeds: [0, 1]", "seeds: []"), r"line 9: seeds is \[\]"),
    "a key twice": (RECIPE + "name: again\n", r"line 10: key 'name' stands twice"),
    "broken YAML": (RECIPE.replace("[0, 1]\n", "[0, 1\n"), r"mine.yaml line \d+: not valid YAML"),
    "a list": ("- 1\n- 2\n", r"a recipe is a mapping"),
    "two steps with one id": (
        RECIPE.replace("sweep", "  - retrain: {epochs: 1}\nsweep"),
        r"two steps have the id 'retrain'",
    ),
    "a step with two kinds": (
        RECIPE.replace("  - retrain: {epochs: 3}", "  - retrain: {epochs: 3}\n    prune: {}"),
        r"a step has one key, its kind",
    ),
    "schedule past the budget": (
        RECIPE.replace(
            "budget: {name: global, sparsity: 0.9}}",
            "budget: {name: global, sparsity: 0.9}, "
            "schedule: {name: cubic, steps: 3, initial: 0.95, retrain: {epochs: 1}}}",
        ),
        r"begins at 0.95, past the budget",
    ),
    "python tags": ("name: !!python/object/apply:os.system ['true']\n", r"not valid YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_recipes_name_the_line(case, write):
    text, message = BAD[case]
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(text))
    assert "\n" not in str(caught.value)


def test_unknown_recipes_and_files():
    with pytest.raises(RecipeError, match="unknown recipe 'quikstart'; did you mean 'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(RecipeError, match=r"nothere.yaml: no such file"):
        load_recipe("nothere.yaml")


def test_sizes_are_counted_before_anything_is_laid_out(write):
    many = ", ".join(f"prune.x{i}: &v {list(range(39))}" if not i else f"prune.x{i}: *v" for i in range(5))
    sweep = RECIPE[RECIPE.index("sweep") : RECIPE.index("seeds")]
    with pytest.raises(RecipeError, match=r"line 8: the sweep has 90,224,199 points; 10,000 at most"):
        load_recipe(write(RECIPE.replace(sweep, f"sweep: {{{many}}}\n")))
    grids = "sweep: [" + ", ".join([f"{{{many}}}".replace("&v ", "")] * 1) + "]\n"
    with pytest.raises(RecipeError, match=r"line 8: the sweep has 90,224,199 points"):
        load_recipe(write(RECIPE.replace(sweep, grids.replace("*v", str(list(range(39)))))))
    settings = {"sweep": {"prune.budget.sparsity": [round(0.01 * i, 2) for i in range(50)]}}
    with pytest.raises(RecipeError, match=r"8,000 seeds are 400,000 trials; 100,000 at most"):
        load_recipe(write(RECIPE), settings, seeds=range(8_000))
    with pytest.raises(RecipeError, match=r"should have at most 10000 items"):
        load_recipe(write(RECIPE), seeds=range(10_001))
    with pytest.raises(RecipeError, match=r"600,000 points with 2 seeds are 1,200,000 trials"):
        load_recipe(write(RECIPE), {"sampler": "tpe", "trials": 600_000})


def test_settings_without_effect_are_said(write):
    with pytest.raises(RecipeError, match=r"--set prune.criterion: every point of the sweep sets it"):
        load_recipe(write(RECIPE), {"prune.criterion": "random"})
    with pytest.raises(RecipeError, match=r"the sweep of mine has no point"):
        load_recipe(write(RECIPE), {"sweep": []})
    with pytest.raises(RecipeError, match=r"trials: a grid runs every point"):
        load_recipe(write(RECIPE), {"trials": 5})
    with pytest.raises(RecipeError, match=r"line 7: temperature does nothing without distill"):
        load_recipe(write(RECIPE.replace("{epochs: 3}", "{epochs: 3, temperature: 2.0}")))
    with pytest.raises(RecipeError, match=r"line 4: temperature does nothing without a step"):
        load_recipe(write(RECIPE.replace("{epochs: 2", "{temperature: 2.0, epochs: 2")))
    shared = RECIPE.replace("{epochs: 2", "{temperature: 2.0, epochs: 2").replace(
        "{epochs: 3", "{distill: 0.5"
    )
    assert load_recipe(write(shared)).plans[0].steps[1].settings.training.temperature == 2.0


STEPS = [
    ("- compact:", "- compact: false", "compact is False; it is a mapping of settings"),
    ("- compact:", "- compact: 0", "compact is 0; it is a mapping of settings"),
    ("- compact:", "- compact: []", r"compact is \[\]; it is a mapping of settings"),
    ("- compact:", "- {id: 5, compact: }", "id is '5'; it is a text without dots"),
    ("- compact:", "- {id: a.b, compact: }", "id is 'a.b'"),
    ("- compact:", "- {id: '', compact: }", "id is ''"),
    ("- compact:", "- {id: train, compact: }", "id is 'train'"),
    ("- compact:", "- {id: dense, compact: }", "id is 'dense'"),
    ("- compact:", "- {id: x}", "a step has one key, its kind"),
    ("- compact:", "- [compact]", "steps.2 is|a step has one key"),
    ("train: {epochs: 2, ", "train: false  # {", "train is False"),
]


@pytest.mark.parametrize(("old", "new", "message"), STEPS, ids=[new for _, new, _ in STEPS])
def test_steps_that_are_none(write, old, new, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(KINDS.replace(old, new)))


def test_settings_and_paths_from_python(write):
    path = write(RECIPE)
    for settings in ({5: 1}, {"a\nb": 1}, {"train.lr": object()}, {"train.lr": float("nan")}, {"seeds": {0}}):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, settings)
        assert "\n" not in str(caught.value)
    for seeds in ([True], [-1], [2**63], ["1"], [0.5], [float("nan")], [0, 0], []):
        with pytest.raises(RecipeError, match="seed"):
            load_recipe(path, seeds=seeds)
    for name in ("", "a\nb", "\0.yaml", "x" * 10_000, "x" * 10_000 + ".yaml", "."):
        with pytest.raises(RecipeError) as caught:
            load_recipe(name)
        assert "\n" not in str(caught.value)
