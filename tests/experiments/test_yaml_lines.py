"""What a recipe's text may be: plain values with lines, and limits that nothing gets past."""

import pytest
import yaml

from secateur.errors import RecipeError
from secateur.experiments import yaml_lines
from secateur.experiments.recipe import packaged_recipes
from secateur.experiments.yaml_lines import parse_yaml, plain_copy, read_yaml


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request, monkeypatch):
    """With the parser in C and with the one in Python, which stands in where there is none."""
    monkeypatch.setattr(yaml_lines, "_LOADER", getattr(yaml, request.param))


def test_packaged_recipes_are_read_as_yaml_reads_them(loader):
    for path in packaged_recipes().values():
        assert read_yaml(path).value == yaml.safe_load(path.read_text())


def test_plain_values_are_as_in_yaml_1_1(loader):
    text = "[1, -2, 0x10, 1_000, 1.5, 1.0e-3, 1e-3, true, no, null, ~, '1', \"a\", a b, 1:30, =, é]"
    assert parse_yaml(text, "f").value == [
        *(1, -2, 16, 1000, 1.5, 1e-3, "1e-3", True, False, None, None, "1", "a", "a b", 90, "=", "é")
    ]
    assert parse_yaml("", "f").value is None
    assert parse_yaml("# nothing\n", "f").value is None


def test_lines_of_parts_and_of_what_aliases_repeat(loader):
    located = parse_yaml("a: &x\n  b: [1,\n    2]\nc: *x\nd:\n- e: 1\n", "f")
    places = [("a",), ("a", "b"), ("a", "b", 1), ("c",), ("c", "b", 1), ("d", 0, "e"), ("d", 5, "e")]
    assert [located.where(place) for place in places] == [f"f line {n}" for n in (1, 2, 3, 4, 3, 6, 5)]
    assert located.where(("none",)) == located.where(()) == "f"


def test_an_alias_is_a_copy(loader):
    value = parse_yaml("a: &x {b: [1]}\nc: *x\nd: *x\n", "f").value
    value["c"]["b"].append(2)
    assert value == {"a": {"b": [1]}, "c": {"b": [1, 2]}, "d": {"b": [1]}}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]\n" for i in range(1, 10)
)
REFUSED = {
    "an alias bomb": (BOMB, r"line 5: more than 20,000 values, aliases counted as what they repeat"),
    "a deep tower of aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)),
        r"line \d+: lists and mappings nest more than 30 deep",
    ),
    "many values": ("a: [" + "1, " * 30_000 + "]", r"line 1: more than 20,000 values"),
    "deep lists": ("a: " + "[" * 90_000, r"line 1: lists and mappings nest more than 30 deep"),
    "deep mappings": ("{a: " * 40_000, r"line 1: lists and mappings nest more than 30 deep"),
    "deep blocks": ("- " * 50_000 + "1", r"line 1: lists and mappings nest more than 30 deep"),
    "a long file": ("a" * 300_000, r"^f: is longer than 200,000 characters"),
    "a long value": ("a: b\nc: " + "x" * 5000, r"line 2: a text of 5,000 characters; 4,000 at most"),
    "a date": ("a: 1\nb: 2026-01-02", r"line 2: 2026-01-02 is a date; put it in quotes"),
    "a time": ("a: 2026-01-02 10:00:00", r"line 1: 2026-01-02 10:00:00 is a date"),
    "no integer": ("a: !!int abc", r"line 1: not valid YAML: no tag like !!int is read"),
    "bytes": ("a: !!binary aGVsbG8=", r"line 1: .* no tag like !!binary"),
    "a set": ("a: !!set {b, c}", r"line 1: .* no tag like !!set"),
    "Python": (
        "a:\n  !!python/object/apply:os.system ['true']",
        r"line 2: .* no tag like !!python/object",
    ),
    "a tag of one's own": ("a: !x 1", r"line 1: .* no tag like !x"),
    "a merge key": ("a: &x {b: 1}\nc: {<<: *x}", r"line 2: << is a merge key, which is not read"),
    "a number as key": ("1: 2", r"line 1: the key 1 is not text; put it in quotes"),
    "a bool as key": ("on: 2", r"line 1: the key True is not text"),
    "a list as key": ("a: 1\n? [b]\n: 2", r"line 2: the key \[\] is not text"),
    "an empty key": ("? \n: 2", r"line 1: the key None is not text"),
    "NaN": ("a: .nan", r"line 1: nan is not a finite number"),
    "infinity": ("a: [1,\n -.inf]", r"line 2: -inf is not a finite number"),
    "a float beyond": ("a: 1.0e+999", r"line 1: inf is not a finite number"),
    "5,000 digits": ("a: " + "9" * 5_000, r"line 1: a text of 5,000 characters"),
    "3,000 digits": ("a: " + "9" * 3_000, r"line 1: a whole number with more than 63 bits"),
    "64 bits": (f"a: {2**63}", r"line 1: a whole number with more than 63 bits"),
    "half a number": ("a: 0x_", r"line 1: 0x_ is no number; put it in quotes if it is text"),
    "an anchor in itself": ("a: 1\nb: &x [*x]", r"line 2: the alias \*x stands within its own anchor"),
    "an anchor in its mapping": ("&x {a: {b: *x}}", r"line 1: the alias \*x stands within its own anchor"),
    "no anchor": ("a: *x", r"line 1: the alias \*x has no anchor before it"),
    "an anchor twice": ("a: &x 1\nb: &x 2", r"line 2: the anchor &x stands twice"),
    "a key twice": ("a: {b: 1,\n  b: 2}", r"line 2: key 'b' stands twice"),
    "two documents": ("a: 1\n---\nb: 2", r"line 2: a second document begins"),
    "NUL": ("a: 1\nb: \0", r"line 2: .* unprintable character, U\+0000"),
    "a byte order mark": ("\ufeffa: 1", r"line 1: .* unprintable character, U\+FEFF"),
    "text that turns": ("# a\u202eb\n", r"line 1: .* unprintable character, U\+202E"),
    "half a character": ("a: \ud800", r"line 1: .* unprintable character, U\+D800"),
    "an escape": ('a: 1\nb: "\\e[31m"', r"line 2: .* unprintable character, U\+001B"),
    "an escaped key": ('"a\\u202e": 1', r"line 1: .* unprintable character, U\+202E"),
    "a line end": ("a: |\n  x\n  y\n", r"line 1: .* unprintable character, U\+000A"),
    "an open list": ("a: [1,\n", r"line 2: not valid YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_its_line(case, loader):
    text, message = REFUSED[case]
    with pytest.raises(RecipeError, match=message) as caught:
        parse_yaml(text, "f")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a: é\n".encode("utf-16"), r"line 1: is not UTF-8 text; save it as UTF-8"),
        (b"a: 1\nb: \xff", r"line 2: is not UTF-8 text"),
        (b"a: 1\r\nb: \x01\r\n", r"line 2: .* unprintable character"),
        (b"x" * 300_000, r"is longer than"),
    ],
)
def test_files_that_are_no_text(tmp_path, data, message):
    path = tmp_path / "f.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(RecipeError, match=r"is not a file"):
        read_yaml(tmp_path)
    with pytest.raises(RecipeError, match=r"no such file"):
        read_yaml(tmp_path / "a\nb.yaml")
    for name in ("\0.yaml", "x" * 5_000 + ".yaml"):
        with pytest.raises(RecipeError, match=r"cannot be read") as caught:
            read_yaml(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1


def test_lines_end_as_on_windows(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1\r\nb:\t[2]\r\n")
    assert read_yaml(path).value == {"a": 1, "b": [2]}


def test_settings_from_python_hold_what_a_file_could():
    given = {"a": (1, 2.5, [True, None]), "b": {"c": "é"}}
    found = plain_copy(given, "s")
    assert found == {"a": [1, 2.5, [True, None]], "b": {"c": "é"}}
    assert found["b"] is not given["b"]
    loop: list = []
    loop.append(loop)
    wide = [0]
    for _ in range(25):
        wide = [wide, wide]
    for wrong in (
        float("nan"),
        10**400,
        b"x",
        object(),
        {1: 2},
        {"a\n": 1},
        "\x1b",
        {1, 2},
        loop,
        wide,
        "x" * 9_999,
    ):
        with pytest.raises(RecipeError, match=r"^s: ") as caught:
            plain_copy(wrong, "s")
        assert len(str(caught.value)) < 300
