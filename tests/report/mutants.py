"""JSON values changed at random: keys deleted, kinds swapped, nasty values, wherever they stand."""

import copy

NASTY = [
    None, True, False, 0, -1, 1.5, 2**63, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"),
    "", "x" * 5000, "0.5", "\x1b]0;title\x07", "[red]x[/red]", "</script><b>", "a\nb", "\ud800", "\u202eevil",
    "../../etc", "os:system", "$\\frac{$", [], {}, [[]], [None], {"name": "os:system"}, {"class": 1},
    {"\ud800": 1},
]  # fmt: skip
KEYS = ["extra", "class", "a b", "\x1b[2J", "\ud800", "deployment", "weights", "name"]


def mutated(rng, value):
    """Return a copy of a JSON value with one to three of its parts changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 3])):
        parents = [part for part in _parts(value) if part]
        if parents:
            _change(rng, rng.choice(parents))
    return value


def _parts(value):
    if isinstance(value, (list, dict)):
        yield value
        for part in value.values() if isinstance(value, dict) else value[:20]:
            yield from _parts(part)


def _change(rng, parent):
    key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    how = rng.randrange(6)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[rng.choice(KEYS)] = copy.deepcopy(rng.choice(NASTY))
    elif how == 1:
        parent.insert(key, copy.deepcopy(parent[key]))
    elif how == 2:
        parent[key] = [parent[key]]
    elif how == 3 and type(parent[key]) in (int, float):
        parent[key] *= rng.choice([-1, 0, 1000, 1e300])
    else:
        parent[key] = copy.deepcopy(rng.choice(NASTY))
