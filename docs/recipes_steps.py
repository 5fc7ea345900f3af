"""Write recipes_steps.md, the page of every kind of step with its settings, from the classes themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from secateur.errors import RecipeError
from secateur.experiments.choices import spelled
from secateur.experiments.steps.table import STEPS
from secateur.factories import named_function
from secateur.training.settings import Training

PAGE = Path(__file__).with_suffix(".md")
HEAD = """\
# The steps of a recipe

Each step of a recipe has one key, its kind, and under it the settings below. `id`, beside the kind, is the
name that `--set` and a sweep address it by; without one it is the kind, or the name of your own class.
(`docs/recipes_steps.py` writes this page.)

A step of your own is a class that derives from `sc.Step`, and its kind is `package.module:Class`; a
criterion, budget, shrinkage or schedule of your own is a dataclass, and its `name` is that too. They are
imported when the recipe is read, from the working folder too, and so is what a step imports while it runs;
what the others need they import at the top of their modules. The content of a module is part of the trial's
name: after a change it runs again.

```yaml
steps:
  - mysteps:Shrink: {factor: 0.5}
  - prune: {criterion: {name: "mysteps:Largest", power: 2.0}, budget: {name: uniform, sparsity: 0.5}}
```

```python
from dataclasses import dataclass

import secateur as sc


class Shrink(sc.Step):
    factor: float = 0.5

    def run(self, work, id):
        for weight in work.state.model.parameters():
            weight.data *= self.factor


@dataclass(frozen=True)
class Largest:
    power: float = 1.0

    def __call__(self, targets, data=None, loss=None):
        return {name: -(target.weight.detach().abs() ** self.power) for name, target in targets.items()}
```

`work.state` holds the network and what has been done to it; `work.train` trains it with the zeros held and
resumes after a kill, `work.cut` notes a pruning, `work.replace` a smaller network. A field of the type
`secateur.experiments.fields.Real` also takes `1e-3`, which YAML reads as text.
"""
TRAINING = """
## The settings of a training

What `train` of the recipe does not say has these values; what a step's training does not say is as in
`train`.

| setting | default |
| --- | --- |
"""


def page() -> str:
    """Return the page as it has to be."""
    settings = [f"| `{field.name}` | {_yaml(field.default)} |\n" for field in dataclasses.fields(Training)]
    return HEAD + "".join(_section(kind) for kind in STEPS) + TRAINING + "".join(settings)


def _section(kind: str) -> str:
    made: Any = named_function(STEPS[kind], RecipeError)
    lines = [f"\n## `{kind}`\n\n{' '.join(made.__doc__.split())}\n"]
    rows = [_row(name, field) for name, field in made.model_fields.items() if field.description]
    if rows:
        lines.append("\n| setting | default | what it is |\n| --- | --- | --- |\n")
    return "".join([*lines, *rows])


def _row(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else _yaml(field.default)
    return f"| `{name}` | {default} | {field.description} |\n"


def _yaml(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        value = spelled(type(value).__name__)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return f"`{text.strip().removesuffix('...').strip()}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
