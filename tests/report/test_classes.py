"""The class that lost most stands in every report on classes, the mean of its share right over the seeds."""

from sample import study

from secateur.report.aggregate import groups_of
from secateur.report.classes import lost_most
from secateur.report.page import page


def of_classes(*finals):
    return [
        {"name": name, "number": 50, "dense": 0.9, "final": final}
        for name, final in zip(("cat", "<dog>", "frog"), finals, strict=True)
    ]


def test_the_class_of_the_largest_drop_of_the_mean_over_seeds():
    results = study("s", sparsities=(0.5,), seeds=(0, 1))
    first, second = results["trials"]
    first["by_class"] = of_classes(0.9, 0.7, 0.5)  # the frog lost most with this seed alone
    second["by_class"] = of_classes(0.9, 0.5, 0.9)
    header, ((*_, name, number, dense, final, change),) = lost_most(groups_of(results))
    assert header[-5:] == ["class", "test examples", "dense %", "final %", "change"]
    assert (name, number, dense, final, change) == ("<dog>", "50", "90.00", "60.00", "-30.00")
    text = page([results])
    assert "The class that lost most" in text
    assert "&lt;dog&gt;" in text
    assert "<dog>" not in text


def test_without_classes_there_is_no_such_table():
    results = study("s")
    assert lost_most(groups_of(results)) is None
    assert "The class that lost most" not in page([results])
