import textwrap

import pytest
from one_trial import plan_of
from recipes import HEAD, TINY

from secateur.experiments.recipe import load_recipe


@pytest.fixture
def tiny(tmp_path):
    """A recipe of four trials that run in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return lambda settings=None, seeds=None: load_recipe(str(path), settings, seeds)


@pytest.fixture
def write(tmp_path):
    """Write a recipe's text; return the path."""

    def writer(text):
        path = tmp_path / "mine.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return writer


@pytest.fixture
def plan(tmp_path):
    """The plan of one small trial with these steps."""
    return lambda steps: plan_of(tmp_path, HEAD + steps)
