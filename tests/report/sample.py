"""A study's results made by hand: two sparsities, two seeds, names that would break a careless page."""


def compacted(name="compacted", sparsities=(0.3, 0.6, 0.9), seeds=(0, 1)):
    """A study whose networks are really smaller: their MACs fall with the sparsity, their latency half as
    fast, and their accuracy the faster the more is gone."""
    results = study(name, sparsities, seeds)
    for trial in results["trials"]:
        left = 1 - trial["requested"]["sparsity"]
        trial["metrics"] |= {
            "macs": round(50_000 * left),
            "macs_dense": 50_000,
            "latency_ms": (2 + trial["seed"]) * (0.5 + left / 2),
            "latency_dense_ms": 2.0 + trial["seed"],
            "score_retrained": 0.99 - 0.02 / left / 10,
        }
    return results


def halved(sparsities=(0.5,), seeds=(0, 1), **metrics):
    """A study whose networks have half the parameters of the dense ones, none of them zero."""
    results = compacted("halved", sparsities, seeds)
    for trial in results["trials"]:
        trial["metrics"] |= {"parameters": 5000, "nonzero": 5000, "compression_rate": 2.0, **metrics}
    return results


def study(name="<b>evil</b> & co", sparsities=(0.5, 0.9), seeds=(0, 1)):
    trials = [
        {
            "id": f"{round(1000 * s)}{seed}",
            "method": name,
            "state": "finished",
            "point": {"prune.budget.sparsity": s, "prune.criterion": "</script><script>alert(1)</script>"},
            "seed": seed,
            "requested": {"sparsity": s},
            "metrics": {
                "sparsity": s,
                "compression_rate": 1 / (1 - s),
                "score_dense": 0.98,
                "score_dense_validation": 0.98,
                "score_pruned": 0.9 - s / 10,
                "score_retrained": 0.97 - s / 100 + seed / 1000,
                "parameters": 1000,
                "nonzero": round(1000 * (1 - s)),
            },
            "layers": [{"name": "fc<1>", "sparsity": s}],
            "curves": {
                "dense": [{"validation_score": 0.9}, {"validation_score": 0.95}],
                "retrain": [{"validation_score": 0.96}],
            },
            "epochs": {"dense": 2, "retrain": 1},
            "classes": 10,
            "score": {"name": "accuracy", "unit": "%", "higher_is_better": True, "example": "image"},
            "config": {
                "data": {"name": "digits"},
                "model": {"name": "digits-mlp", "hidden": 8},
                "steps": [{"prune": {"criterion": "magnitude", "budget": {"name": "global", "sparsity": s}}}],
            },
            "notes": ["fc<1> is emptied"],
        }
        for s in sparsities
        for seed in seeds
    ]
    return {
        "schema": 2,
        "recipe": name,
        "description": "d <i>",
        "source": "s",
        "text": "name: <x>\ndata: {name: digits}\n",
        "environment": {"torch": "<2>", "machine": "m", "commit": "c"},
        "trials": trials,
        "reference": [{"prune.budget.sparsity": 0.5, "score_retrained": 0.961}],
    }
