from sample import study

from secateur.report.aggregate import groups_of
from secateur.report.checklist import checklist


def check(*studies):
    groups = [group for s in studies for group in groups_of(s)]
    return {point.number: point for point in checklist(studies, groups)}


def test_there_are_twenty_points_in_order():
    assert list(check(study())) == list(range(1, 21))


def test_answers_come_from_the_data():
    points = check(study())
    assert points[1].kept is True
    assert points[2].kept is True
    assert points[6].kept is False  # no latency was measured
    assert points[8].kept is False  # two sparsities
    assert points[9].kept is False
    assert "2 seeds" in points[9].why
    assert points[13].kept is True
    assert "1 epochs on average" in points[13].why
    assert points[20].kept is True


def test_changing_the_data_changes_the_answer():
    many = study(sparsities=(0.1, 0.5, 0.8, 0.9, 0.95), seeds=(0, 1, 2))
    for trial in many["trials"]:
        trial["metrics"]["latency_ms"] = 1.0
        trial["metrics"]["score_retrained"] -= trial["metrics"]["sparsity"] / 2
    steps = many["trials"][0]["config"]["steps"]
    steps.append({"prune": {"criterion": {"name": "random"}, "budget": {"name": "magnitude_ratios"}}})
    control = dict(many["trials"][1], config={"data": {"name": "digits"}, "steps": [{"scratch": {}}]})
    many["trials"].append(control | {"layers": [], "epochs": {"dense": 2, "retrain": 3}})
    points = check(many)
    assert all(points[number].kept for number in (6, 8, 9, 10, 11))
    many["trials"][-1]["epochs"] = {"dense": 2, "retrain": 9}
    assert check(many)[11].kept is False  # three times the training is no control
    many["trials"][0]["metrics"]["score_dense"] = 0.5  # another dense network for one method
    assert check(many)[2].kept is False
    many["environment"]["commit"] = None
    assert check(many)[18].kept is False
    many["source"] = ""
    assert check(many)[20].kept is False


def test_what_does_not_apply():
    plain = study(sparsities=(0.5,))
    plain["reference"] = []
    for trial in plain["trials"]:
        trial["metrics"]["score_retrained"] = None
    points = check(plain)
    assert points[13].kept is None
    assert points[19].kept is None
    assert points[20].kept is None
