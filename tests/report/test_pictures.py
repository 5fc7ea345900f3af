import pytest
from sample import compacted, study

from secateur.errors import RecipeError
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
