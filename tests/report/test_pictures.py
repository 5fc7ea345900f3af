import pytest
from PIL import Image
from sample import compacted, study

from secateur.errors import RecipeError
from secateur.report import pictures
from secateur.report.aggregate import all_groups
from secateur.report.figures import layers_plot
from secateur.report.pictures import write_pictures


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_every_plot_becomes_a_file(tmp_path, kind, start):
    paths = write_pictures([study()], tmp_path, kind)
    assert [p.name for p in paths][:2] == [
        f"accuracy-against-sparsity.{kind}",
        f"accuracy-against-compression-rate.{kind}",
    ]
    assert len(paths) == 6
    for path in paths:
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size > 5000


def test_every_front_is_a_picture(tmp_path):
    names = [path.name for path in write_pictures([compacted("a"), compacted("b")], tmp_path, "png")]
    assert names[2:5] == [f"pareto-front-by-{axis}.png" for axis in ("sparsity", "macs", "latency")]


def test_unknown_formats(tmp_path):
    with pytest.raises(RecipeError, match="--pictures gif: one of png, svg, pdf"):
        write_pictures([study()], tmp_path, "gif")


def test_names_are_no_formulas_and_no_paths(tmp_path, monkeypatch):
    """Nor does a matplotlibrc in the working folder make them TeX."""
    name = "$\\frac{$ \ud800 \x1b[2J/../x"
    study = compacted(name)
    for trial in study["trials"]:
        trial["config"]["data"]["name"] = f"{name}{'x' * 400}" if trial["seed"] else "b"
        trial["layers"] = [{"name": "$\\bad$", "sparsity": 0.5}]
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    monkeypatch.chdir(tmp_path)
    paths = write_pictures([study], tmp_path / "pictures", "svg")
    assert len(paths) > 5
    assert {path.parent for path in (tmp_path / "pictures").iterdir()} == {tmp_path / "pictures"}


def test_a_thousand_points_are_one_picture(tmp_path):
    plot = layers_plot(all_groups([compacted(sparsities=[i / 1000 for i in range(1, 401)], seeds=[0])]))
    plot["layout"]["height"] *= 100
    pictures._draw(plot, tmp_path / "map.png", "png")
    assert Image.open(tmp_path / "map.png").size == (8 * 150, 100 * 150)
