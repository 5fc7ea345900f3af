"""Recipes and settings as no one should write them: a recipe, or one line that says what is wrong."""

import copy
import random
import re
import resource
import time

import pytest
import yaml

from secateur.cli import _settings
from secateur.errors import RecipeError, SecateurError
from secateur.experiments.recipe import Recipe, load_recipe, packaged_recipes

NASTY = [
    None, True, False, 0, -1, 1, 2, 10**9, 2**63, 10**400, -0.0, 0.5, 1e300, float("nan"), float("inf"), "",
    "x", "1e-3", "1", "true", "..", "../x", "/x", "a\nb", "\u202e", "\x00", "é", "\ud800", "x" * 5000, [],
    [[]], [1, 2], [True], {}, {"name": 1}, {"name": "global"}, {"a": {"b": {}}}, {"": 1}, {"name": "soft"},
    "magnitude", "uniform", "seeds", "package.module:factory", list(range(300)), [0.1] * 50,
]  # fmt: skip
TOKENS = [
    "[", "]", "{", "}", ":", ": ", "- ", "&a ", "*a", "<<: ", "!!int ", "!!python/name:os.system ", "? ", "|",
    ">", "'", '"', "#", "\n", "\t", "  ", ",", "%", "@", "`", "\x00", "\ufeff", "\u2028", "---\n", "...\n",
    "~", ".nan", "2020-01-01", "9" * 500, "[" * 100, "true", "1e999", "\\", "=",
]  # fmt: skip


class Mutator:
    """Draws broken recipes and settings; its state is the generator and the files that it starts from."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.texts = {name: path.read_text() for name, path in packaged_recipes().items()}
        self.values = {name: yaml.safe_load(text) for name, text in self.texts.items()}

    def text(self):
        text = self.random.choice(list(self.texts.values()))
        for _ in range(self.random.randint(1, 4)):
            text = self.random.choice([self.spliced, self.shuffled, self.renamed, self.aliased])(text)
        return text

    def spliced(self, text):
        """A piece cut out, and a token or another piece in its place."""
        start = self.random.randrange(len(text))
        end = min(len(text), start + self.random.choice([0, 0, 1, 2, 8, 60]))
        middle = self.random.choice(TOKENS)
        if self.random.random() < 0.2:
            other = self.random.choice(list(self.texts.values()))
            middle = other[self.random.randrange(len(other)) :][:60]
        return text[:start] + middle + text[end:]

    def shuffled(self, text):
        lines = text.splitlines(keepends=True)
        for _ in range(self.random.randint(1, 3)):
            i, j = self.random.randrange(len(lines)), self.random.randrange(len(lines))
            lines[i : i + 1] = self.random.choice([[], [lines[i], lines[i]], [lines[j]]])
            lines = lines or ["\n"]
        return "".join(lines)

    def renamed(self, text):
        words = re.findall(r"\w+", text)
        return text.replace(self.random.choice(words), self.random.choice([*words, "x", "0"]), 1)

    def aliased(self, text):
        values = list(re.finditer(r"(?<=: )[^\s,{}\[\]]+", text))
        if len(values) < 2:
            return text
        first, second = sorted(self.random.sample(values, 2), key=lambda m: m.start())
        anchored = text[: first.start()] + "&z " + text[first.start() : second.start()]
        return anchored + "*z" + text[second.end() :]

    def document(self):
        """A whole document in which some parts were replaced, removed, renamed or moved, as text."""
        value = copy.deepcopy(self.random.choice(list(self.values.values())))
        for _ in range(self.random.randint(1, 3)):
            holder, key = self.place(value)
            action = self.random.random()
            if action < 0.6:
                holder[key] = copy.deepcopy(self.random.choice(NASTY))
            elif action < 0.75:
                del holder[key]
            elif isinstance(holder, dict):
                holder[self.random.choice(["x", "name", "id", "seeds", 1, None])] = holder.pop(key)
            else:
                holder.append(holder[key])
        return yaml.dump(value, allow_unicode=self.random.random() < 0.5, sort_keys=False)

    def place(self, value):
        places = []
        todo = [value]
        while todo:
            holder = todo.pop()
            for key in holder if isinstance(holder, dict) else range(len(holder)):
                places.append((holder, key))
                if isinstance(holder[key], (dict, list)) and holder[key]:
                    todo.append(holder[key])
        return self.random.choice(places) if places else ([0], 0)

    def setting(self):
        name = self.random.choice(list(self.values))
        _, key = self.place(self.values[name])
        steps = [
            "prune",
            "retrain",
            "train",
            "model",
            "data",
            "seeds",
            "sweep",
            "methods",
            "steps",
            "",
            str(key),
        ]
        leaves = [
            "budget",
            "sparsity",
            "name",
            "epochs",
            "lr",
            "schedule",
            "steps",
            "0",
            "",
            "x",
            "é",
            "criterion",
        ]
        parts = [self.random.choice(steps), *self.random.choices(leaves, k=self.random.randint(0, 3))]
        value = self.random.choice([*TOKENS, "1", "0.5", "[1, 2]", "{name: global, sparsity: 0.5}", "x"])
        if self.random.random() < 0.5:
            value = yaml.dump(self.random.choice(NASTY), default_flow_style=True)
        return name, ".".join(parts) + self.random.choice(["=", "=", "=", "", "=="]) + value


def outcome(load):
    """What became of one input, and how long it took: a recipe, or an error that is one line."""
    start = time.process_time()
    found: Recipe | SecateurError
    try:
        found = load()
    except SecateurError as error:
        found = error
    seconds = time.process_time() - start
    if not isinstance(found, Recipe):
        assert "\n" not in str(found)
        assert len(str(found)) < 2_000
    return found, seconds


def tried(seed, number, folder):
    """Load ``number`` inputs and return how many were recipes, and the longest time that one took."""
    mutator, path, recipes, longest = Mutator(seed), folder / "mutated.yaml", 0, 0.0
    for index in range(number):
        if index % 3 == 2:
            name, pair = mutator.setting()
            given = (name, pair)
            found, seconds = outcome(lambda: load_recipe(name, _settings([pair])))  # noqa: B023
        else:
            given = mutator.text() if index % 3 else mutator.document()
            path.write_text(given, encoding="utf-8", errors="surrogatepass")
            found, seconds = outcome(lambda: load_recipe(str(path)))
        recipes += isinstance(found, Recipe)
        if seconds > longest:
            longest = seconds
            print(f"{seconds:.3f} s: {given!r:.300}: {found!r:.200}")
    return recipes, longest


def test_every_mutation_is_a_recipe_or_one_line(tmp_path):
    recipes, _ = tried(0, 1500, tmp_path)
    assert 50 < recipes < 1400  # both ends are reached


@pytest.mark.slow
def test_fifty_thousand_mutations_in_little_memory(tmp_path):
    recipes, longest = tried(1, 50_000, tmp_path)
    assert recipes
    print(f"{recipes} recipes, longest {longest:.2f} s")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1_500_000


@pytest.mark.parametrize("pair", ["a..b=1", ".a=1", "a.=1", "=1", "retrain", "retrain.=1", "x" * 5000 + "=1"])
def test_odd_keys(pair):
    with pytest.raises(RecipeError, match=r"^--set"):
        load_recipe("quickstart", _settings([pair]))
