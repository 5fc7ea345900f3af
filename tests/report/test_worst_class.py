from sample import study

from secateur.report.aggregate import all_groups
from secateur.report.page import page
from secateur.report.worst_class import worst_class_table


def with_classes(*by_seed):
    """A study of one point whose seeds have these (dense, pruned) accuracies of cat and of dog."""
    results = study("animals", [0.5], range(len(by_seed)))
    for trial, (cat, dog) in zip(results["trials"], by_seed, strict=True):
        rows = [("<b>cat", 40, *cat), ("dog", 60, *dog)]
        trial["by_class"] = [{"name": n, "number": k, "dense": a, "pruned": b} for n, k, a, b in rows]
    return results


def test_the_class_that_lost_most_over_the_seeds():
    """Of the first seed alone it would be the dog, by 0.1 to 0.05; over both the cat lost 0.125."""
    results = with_classes(((0.9, 0.85), (0.8, 0.7)), ((0.9, 0.7), (0.8, 0.8)))
    _, rows = worst_class_table(all_groups([results]))
    assert [row[1:6] for row in rows] == [["<b>cat", "40", "90.00 ± 0.00", "77.50 ± 10.61", "-12.50"]]
    assert rows[0][6] == "-1.45"  # all classes: 98 % dense, 96.5 and 96.6 retrained


def test_a_class_that_gained_is_named_where_all_did():
    _, rows = worst_class_table(all_groups([with_classes(((0.5, 0.75), (0.5, 0.6)))]))
    assert rows[0][1] == "dog"
    assert rows[0][5] == "+10.00"


def test_studies_of_earlier_versions_say_nothing():
    assert worst_class_table(all_groups([study()]))[1] == []
    assert "lost most" not in page([study()])


def test_the_page_has_the_table_with_names_escaped():
    text = page([with_classes(((0.9, 0.8), (0.9, 0.9)))])
    assert "The class that lost most" in text
    assert "&lt;b&gt;cat" in text
