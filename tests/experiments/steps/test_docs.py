"""Pages that are printed from the code say what the code says."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_steps_is_that_of_the_classes():
    spec = importlib.util.spec_from_file_location("recipes_steps", DOCS / "recipes_steps.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run docs/recipes_steps.py"


def test_every_setting_says_what_it_is():
    from secateur.experiments.steps.table import STEPS
    from secateur.factories import named_function

    for kind, place in STEPS.items():
        made = named_function(place, ValueError)
        bare = [name for name, field in made.model_fields.items() if not field.description]
        assert bare == (["training"] if kind == "retrain" else []), kind
