import pytest
from tiny_recipe import TINY

from secateur.experiments.recipe import load_recipe


@pytest.fixture
def tiny(tmp_path):
    """A recipe of four trials that run in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return lambda settings=None, seeds=None: load_recipe(str(path), settings, seeds)
