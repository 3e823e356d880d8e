"""YAML, overrides and names that nobody writes by mistake: one short sentence each, at once."""

import random
import time

import pytest

from excite import recipe as recipe_module
from excite.errors import LONGEST_SHOWN, ExciteError
from excite.gates import create_gate, list_gates
from excite.models import create_model
from excite.recipe import LONGEST_NAME, Recipe, apply_overrides, load_recipe, parse_yaml, plain_name
from excite.twins.plan import load_plan, parse_gate
from excite.weights.header import Header, read_header
from tests.bounded import bounded
from tests.training.small import SMALL, small

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

#: What PyYAML raises over, or what it makes without end.
HARMFUL = {
    "a word as an integer": "a: !!int abc",
    "nothing as an integer": "a: !!int ''",
    "a word as a boolean": "a: !!bool maybe",
    "a word as a float": "a: !!float x",
    "a word as a date": "a: !!timestamp x",
    "a date that is none": "a: !!timestamp 2026-13-01",
    "bytes": "a: !!binary aGVsbG8=",
    "bytes that are none": "a: !!binary \u00e4",
    "a set": "a: !!set {x, y}",
    "pairs": "a: !!pairs [x: 1]",
    "an ordered mapping": "a: !!omap [x: 1]",
    "python": "a: !!python/object/apply:os.system [true]",
    "an unknown tag": "a: !thing x",
    "an integer of 5000 digits": f"a: {'9' * 5000}",
    "an integer of 30 digits": f"a: {'9' * 30}",
    "a hexadecimal one": f"a: 0x{'f' * 5000}",
    "a list as a key": "? [a]\n: 1",
    "a mapping as a key": "? {a: 1}\n: 1",
    "bytes as a key": "? !!binary aGVsbG8=\n: 1",
    "brackets": "[" * 50_000,
    "braces": "{a: " * 50_000,
    "dashes": "- " * 50_000,
    "whole brackets": "[" * 300 + "]" * 300,
    "indentation": "".join(f"{' ' * level}a:\n" for level in range(1000)),
    "a NUL": "a: \0",
    "a control character": "a: \x07",
    "a lone surrogate": "a: \udce9",
    "laughs": LAUGHS,
    "merges": MERGES,
    "itself": "a: &a [*a]",
    "itself in a mapping": "&a {a: *a}",
    "an alias of nothing": "a: *b",
    "two documents": "a: 1\n---\nb: 2",
    "a tab": "a:\n\t- 1",
    "a directive": "%YAML 3.0\n---\na: 1",
    "a tag that is not whole": "a: !<",
    "three million characters": "a: " + "x" * 3_000_000,
    "a key of a million letters twice": f"{'k' * 1000}: 1\n{'k' * 1000}: 2",
    "an escape": 'a: "\\xZZ"',
}


@pytest.mark.parametrize("what", HARMFUL)
def test_what_yaml_cannot_hold_is_one_sentence(what):
    before = time.perf_counter()
    with bounded(512, 60), pytest.raises(ExciteError, match=r"^mine(, line \d+)?: not valid YAML: ") as caught:
        parse_yaml(HARMFUL[what], "mine")
    assert time.perf_counter() - before < 50
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_more_values_than_any_recipe_has(monkeypatch):
    monkeypatch.setattr(recipe_module, "MOST_VALUES", 1000)
    with pytest.raises(ExciteError, match="it has more than 1,000 values"):
        parse_yaml("[" + "1," * 1001, "mine")  # before the end, which is wrong, too, is reached


@pytest.mark.parametrize("text", ["a: 2026-13-01", "a: 2026-01-01", "a: 2026-01-01T00:00:00Z"])
def test_dates_are_texts_as_in_yaml_1_2(text):
    assert parse_yaml(text, "mine") == {"a": text.removeprefix("a: ")}


def test_aliases_within_bounds_are_read():
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {x: *a}", "mine") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"x": [1, 2]},
    }
    names = [f"class {number}, a rather long name" for number in range(5_000)]
    assert parse_yaml(f"names: {names}", "mine")["names"] == names


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    for content, message in (
        (b"\xff\xfe\x00", "cannot be read as a recipe"),
        (b"name: \xe9", "cannot be read as a recipe"),
        (b"name: a\0b", r"the character U\+0000"),
        (b"", "a recipe is a mapping"),
        (b"\x89PNG\r\n", "cannot be read as a recipe"),
    ):
        path.write_bytes(content)
        with pytest.raises(ExciteError, match=message):
            load_recipe(str(path))
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with bounded(), pytest.raises(ExciteError, match="it has 1,099,511,627,776 bytes"):
        load_recipe(str(path))


LONG = "y" * 100_000


@pytest.mark.parametrize(
    "override",
    [
        f"train.epochs={LONG}",
        f"train.{LONG}=1",
        f"{LONG}=1",
        LONG,
        f"name={LONG}",
        f"schedule.name={LONG}",
        f"train.epochs=[{'1,' * 5000}]",
        f"model={{{LONG}: 1}}",
        f"augment.scale=[{'1.5,' * 5000}]",
        f"data.std=[{'-1.0,' * 5000}]",
        f"train.freeze={{a: {LONG}}}",
        f"model.name.{LONG}=1",
        f"data.root.{'x.' * 5000}y=1",
        f"optimizer={{{', '.join(f'k{n}: 1' for n in range(2000))}}}",
    ],
    ids=lambda text: text[:20],
)
def test_messages_repeat_little_of_what_was_given(override):
    with bounded(256, 60), pytest.raises(ExciteError) as caught:
        small(override)
    assert len(str(caught.value)) < 2500
    longest = max(str(caught.value).split(), key=len)
    assert len(longest) <= LONGEST_SHOWN + 20
    assert "y" * (LONGEST_SHOWN + 1) not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.root.x=1", "data.root is {'x': 1}, but should be a valid string"),
        ("model.name.x=1", "model.name.x cannot be set: model.name is 'cifar_seresnet20', not a mapping"),
        ("train.epochs.x.y=1", "train.epochs.x.y cannot be set: train.epochs is 3, not a mapping; give train.epochs="),
        ("train=3", "train is a section, not a key: give one of its keys, as in train.epochs=VALUE"),
        ("name=a/b", "name is 'a/b', but it becomes a folder name"),
        ("name=../x", "becomes a folder name"),
        ("name=.hidden", "becomes a folder name"),
        ("name=-x", "becomes a folder name"),
        ('name=" x"', "becomes a folder name"),
        ("name=", "name is None, but should be a valid string"),
        ('name=""', "name is '', but it becomes"),
        ('name="a\\e[31m"', "name is 'a.x1b.31m', but it becomes"),
        ('name="a\\u202eb"', "becomes a folder name"),
        ("name=a\\b", "becomes a folder name"),
        (f"name={'x' * (LONGEST_NAME + 1)}", "at most 100 printable characters"),
        ("optimizer.lr=.inf", "optimizer.lr is inf, but should be a finite number"),
        ("optimizer.lr=.nan", "optimizer.lr is nan, but should be a finite number"),
        ("train.epochs=9999999999", "train.epochs is 9999999999, but should be less than"),
        ("model.options={reduction: .nan}", "the gate 'se': reduction is nan|not valid|finite"),
    ],
)  # fmt: skip
def test_overrides_that_fit_nowhere(override, message):
    def use() -> None:
        recipe = small(override)
        create_model(recipe.model.name, **recipe.model.options)

    with pytest.raises(ExciteError, match=message):
        use()


def test_a_section_that_is_no_mapping():
    for value in (3, "x", [1]):
        with pytest.raises(ExciteError, match=r"train\.epochs cannot be set: train is .*, not a mapping"):
            apply_overrides({**SMALL, "train": value}, ["epochs=1"])


def test_names_that_former_versions_took_are_mended_where_weights_are_read():
    assert plain_name("a/b") == "a-b"
    assert plain_name("../..") == "recipe"
    assert plain_name("x" * 500) == "x" * LONGEST_NAME
    for name in ("digits-seresnet20", "Größe 3", "a+b.c_d", "数据"):
        assert Recipe.from_dict({**SMALL, "name": name}).name == name == plain_name(name)
    assert Header.model_fields.keys() >= {"recipe"}
    with pytest.raises(ExciteError, match="its header is damaged"):
        read_header("{}", "x")


@pytest.mark.parametrize("gate", list_gates())
def test_options_of_gates_are_of_their_types(gate):
    for value in ("abc", "[1]", "{a: 1}", "1.5", "-1", "0", "null", "9" * 12, "!!int x", "'" + "y" * 1000 + "'"):
        for option in ("reduction", "bias", "kernel_size", "extent", "variant", "identity", "gamma", "min_width"):
            try:
                create_gate({"name": gate, option: parse_yaml(value, "x")}, 64, feature_size=(8, 8))
            except ExciteError as error:
                assert len(str(error)) < 400, error  # noqa: PT017 - it may as well be fine


@pytest.mark.parametrize(
    "label", ["se:reduction=abc", "se:reduction=[1]", "se:reduction=0", "x" * 5000, "se:" + "y" * 5000]
)
def test_labels_of_twins(label):
    with pytest.raises(ExciteError) as caught:
        parse_gate(label)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": "x"},
        {"num_classes": -1},
        {"in_chans": 0},
        {"in_chans": "3"},
        {"image_size": "x"},
        {"image_size": [1, 2, 3]},
        {"image_size": 0},
        {"drop_rate": "x"},
        {"drop_rate": float("nan")},
        {"bn_eps": [1]},
        {"stem": 3},
        {"shortcut": ["x"]},
        {"gate": 3},
        {"gate": {"name": 3}},
        {"gate": {"name": "se", "reduction": None}},
        {"gate_at": [3]},
        {"block_conv": {"name": "sk", "x": 1}},
        {"out_indices": [0]},
    ],
    ids=str,
)
def test_options_of_networks_are_of_their_types(options):
    with pytest.raises(ExciteError):
        create_model("cifar_seresnet20", **options)


def test_a_damaged_plan_of_twins(tmp_path):
    from excite.twins.plan import PLAN, Plan

    Plan(small(), ("none", "se"), (0, 1)).save(tmp_path)
    assert load_plan(tmp_path) == Plan(small(), ("none", "se"), (0, 1))
    text = (tmp_path / PLAN).read_text()
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        at = rng.randrange(len(text))
        new = (
            text[:at]
            + rng.choice(("", "9" * 30, '"', "null", "[", "{}", "\x00", "NaN"))
            + text[at + rng.randrange(12) :]
        )
        (tmp_path / PLAN).write_text(new)
        try:
            load_plan(tmp_path)
        except ExciteError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 - a change of a number in it is fine
    assert refused > 100
