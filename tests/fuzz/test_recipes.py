"""Recipes and overrides: one that is accepted trains a step, or is refused before it; each in one sentence."""

import json
import math
import random
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from excite.console import Display
from excite.errors import ExciteError
from excite.ops import native
from excite.recipe import (
    Recipe,
    is_plain_name,
    load_recipe,
    override_keys,
    override_values,
)
from excite.runtime.device import make_accelerator
from excite.training.setup import set_up
from excite.training.step import train_step
from tests.training.small import SMALL

from .harness import CASES, LONG, SEED, Case, Surface, check_sentence, found
from .mutations import BOUNDARIES, boundary, changed, mutated

#: Images per class of the folder that recipes are tried on.
PER_CLASS = 6
#: Values that ask for more than a test can give: they are set up at length elsewhere, or not at all.
_MOST_PIXELS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of small images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for index in range(PER_CLASS):
            Image.fromarray(rng.integers(0, 256, (9, 10, 3), np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def bases(folder) -> list[dict[str, Any]]:
    """Recipes on the digits and on a folder: every key written out."""
    small = {**SMALL, "train": {**SMALL["train"], "batch_size": 8}}
    data = {"source": "folder", "root": str(folder), "image_size": 8, "val_fraction": 0.5, "mode": "memory"}
    both = (small, {**small, "data": data, "augment": {}})
    return [Recipe.from_dict(values).model_dump(mode="json") for values in both]


@pytest.fixture(scope="module")
def accelerator():
    """A step of training first, before anything is watched: it builds the kernels, and makes folders for PyTorch."""
    made = make_accelerator("cpu")
    native.available()
    trains(Recipe.from_dict(SMALL), made)
    return made


def check_recipe(recipe: Recipe) -> None:
    """What must hold of every recipe: its text gives it back, and its name can be a folder's."""
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_yaml(recipe.to_yaml(changes_only=True)) == recipe
    assert is_plain_name(recipe.run_name)
    scaled, note = recipe.scaled()
    assert scaled.train.scale_lr_to is None
    assert (note is None) == (recipe.train.scale_lr_to is None)


def too_much(recipe: Recipe) -> bool:
    """Whether a test machine would need minutes for one step of it, or other processes."""
    data, config = recipe.data, recipe.train
    sizes = max(*data.evaluation_size, *(math.ceil(side / data.crop_pct) for side in data.training_size))
    return (
        sizes > _MOST_PIXELS
        or config.devices != 1
        or config.compile != "off"
        or (data.source == "folder" and data.mode == "stream" and data.workers != 0)
        or recipe.model.name.startswith("timm:")
    )


def trains(recipe: Recipe, accelerator: Any) -> None:
    """Set it up and take a step, as a run does. Raises ExciteError where the recipe cannot be carried out."""
    recipe = recipe.scaled()[0]
    if too_much(recipe):
        return
    run = set_up(recipe, Display(quiet=True), accelerator)
    images, labels = next(iter(run.train_loader.epoch(0)))
    loss, correct = train_step(run, images, labels)
    assert loss.shape == correct.shape == ()
    images, _, *_ = next(iter(run.eval_loader))
    with torch.no_grad():
        logits = run.evaluated.eval()(run.preprocessing.normalize(images))
    assert logits.shape == (len(images), len(run.data.classes))


def values_for(key: str) -> list[Any]:
    """Boundary values, and the key's own choices."""
    sizes = [[9, 5], [1, 30], [30, 1], [4096, 1], [0, 8]] if key in ("data.image_size", "data.eval_size") else []
    return [*BOUNDARIES, *sizes, *(yaml.safe_load(word) for word in override_values(key))]


#: Every key with every value, in an order that mixes both; a run of few cases takes a part of them, by its seed.
SINGLY = [(key, value) for key in override_keys() for value in values_for(key)]
random.Random(0).shuffle(SINGLY)


def accepted(rng: random.Random, base: Recipe) -> tuple[str, Any]:
    """A key and a value of these that a recipe takes, alone: pairs of others are refused before they meet."""
    while True:
        key, value = rng.choice(SINGLY)
        with suppress(ExciteError):
            base.changed({key: value})
            return key, value


def overridden(rng: random.Random, index: int, base: dict[str, Any]) -> Recipe:
    """One key at its boundary, or two, or any part of the recipe changed."""
    kind = index % 4
    if kind < 2:
        key, value = SINGLY[(index // 2) % len(SINGLY)]
        pairs = {key: value}
    elif kind == 2:
        pairs = dict(accepted(rng, Recipe.from_dict(base)) for _ in range(rng.choice((2, 2, 3, 5))))
    else:
        return Recipe.from_dict(changed(rng, base))
    return Recipe.from_dict(base).changed(pairs)


def test_every_key(bases, accelerator, tmp_path, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))

    trained: list[int] = []

    def one(case: Case) -> None:
        recipe = overridden(case.rng, case.index, case.rng.choice(bases))
        check_recipe(recipe)
        if case.expensive or len(trained) <= case.index // 30:  # or where most of those were refused
            trains(recipe, accelerator)
            trained.append(case.index)

    surface = Surface("recipes", seconds=60, megabytes=1024, one_line=False, writable=(tmp_path,))
    surface.run(one, test="test_recipes.py::test_every_key")
    assert surface.refused > surface.cases // 8
    assert len(trained) > surface.cases // 40


def test_texts():
    """Files and overrides as somebody types them: damaged YAML, odd characters, odd keys."""
    texts = [file.read_text("utf-8") for file in sorted((resources.files("excite") / "recipes").iterdir())]
    keys = override_keys()

    def word(rng: random.Random) -> str:
        key = rng.choice(keys)
        key = rng.choice((key, key, key.split(".")[1], key[:-1], key.upper(), key + ".x", "", "x"))
        value = rng.choice(
            (str(boundary(rng))[:300], json.dumps(boundary(rng), ensure_ascii=False)[:300], "[", "{a", "!!int x", "*a")
        )
        return rng.choice((f"{key}={value}", f"{key}={value}", key, f"={value}"))

    def one(case: Case) -> None:
        text = case.rng.choice(texts).encode()
        path = case.file("recipe.yaml", mutated(case.rng, text) if case.rng.random() < 0.6 else text)
        words = [word(case.rng) for _ in range(case.rng.choice((0, 1, 1, 2, 5)))]
        check_recipe(load_recipe(str(path), words))

    surface = Surface("recipe texts", seconds=20, one_line=False)
    surface.run(one, test="test_recipes.py::test_texts")
    assert surface.refused > surface.cases // 4


#: Anything that YAML or a Python caller can hold; hypothesis makes what fails as small as it can.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(BOUNDARIES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_KNOWN = st.sampled_from(override_keys())
#: Keys as they are, and with something below them.
KEYS = _KNOWN | st.builds("{}.{}".format, _KNOWN, st.text(max_size=8))
_SOME = settings(
    max_examples=CASES if LONG else CASES // 4, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@seed(SEED)
@_SOME
@given(st.dictionaries(KEYS, ANYTHING, min_size=1, max_size=3))
def test_any_values(bases, values):
    """Values that nobody thought of, up to a recipe that is accepted."""
    try:
        recipe = Recipe.from_dict(bases[0]).changed(values)
    except ExciteError as error:
        check_sentence(error, one_line=False)
    else:
        check_recipe(recipe)


@pytest.mark.parametrize("path", found("recipes"), ids=lambda path: path.name)
def test_corpus(path, bases, accelerator, tmp_path, monkeypatch):
    """Overrides that were found, on both recipes."""
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))

    def one(case: Case) -> None:
        recipe = Recipe.from_dict(bases[case.index]).changed(yaml.safe_load(path.read_text("utf-8")))
        check_recipe(recipe)
        trains(recipe, accelerator)

    surface = Surface("recipes", seconds=60, megabytes=1024, one_line=False, cases=2, writable=(tmp_path,))
    surface.run(one, test=f"test_recipes.py::test_corpus[{path.name}]")
    assert surface.refused == 2
