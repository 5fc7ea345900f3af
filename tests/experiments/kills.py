"""Trials that are killed in the middle of every writing of their state, one after the other."""

from secateur.experiments import state as states


class Killed(BaseException):
    pass


def killed_at_every_write(monkeypatch, run):
    """Call ``run`` again and again until it ends; return (its result, how often it was killed)."""
    real, number, kills = states.save_json, 0, 0

    def half(*args, **kwargs):
        nonlocal number
        number += 1
        if number % 2:
            raise Killed
        real(*args, **kwargs)

    monkeypatch.setattr(states, "save_json", half)
    while True:
        try:
            return run(), kills
        except Killed:
            kills += 1
