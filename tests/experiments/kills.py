"""Trials that are killed at every manifest, or after epochs, one time after the other."""

from secateur.experiments import claim as claims
from secateur.experiments import resumed


class Killed(BaseException):
    pass


def killed_at_every_write(monkeypatch, run):
    """Call ``run`` again and again until it ends; return (its result, how often it was killed)."""
    real, number, kills = claims.save_json, 0, 0

    def half(*args, **kwargs):
        nonlocal number
        number += 1
        if number % 2:
            raise Killed
        real(*args, **kwargs)

    monkeypatch.setattr(claims, "save_json", half)
    while True:
        try:
            return run(), kills
        except Killed:
            kills += 1


def killed_after_epochs(monkeypatch, run, every=1):
    """Call ``run`` again and again until it ends, killed after each ``every``-th epoch that is saved; return
    (its result, how often it was killed, how many epochs were saved)."""
    real, number, kills = resumed.write_snapshot, 0, 0

    def killed_after(*args, **kwargs):
        nonlocal number
        number += 1
        real(*args, **kwargs)
        if number % every == 0:
            raise Killed

    monkeypatch.setattr(resumed, "write_snapshot", killed_after)
    while True:
        try:
            return run(), kills, number
        except Killed:
            kills += 1
