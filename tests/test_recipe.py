"""Recipes are complete, strict, and say what is wrong with a wrong one."""

import json

import jsonschema
import pytest
import yaml

from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import (
    Recipe,
    apply_overrides,
    json_schema,
    list_recipes,
    load_recipe,
    override_keys,
    parse_yaml,
    recipe_text,
)
from tests.training.small import SMALL, small

RECIPES = list_recipes()


def test_all_recipes_are_here():
    assert len(RECIPES) == 7


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_complete_commented_and_builds(name):
    text, _ = recipe_text(name)
    values = parse_yaml(text, name)
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model_dump(mode="json") == values  # every key is written out
    assert text.startswith(f"# {name}: ")
    for word in ("Command:", "Cost:", "Accuracy:", "Source:"):
        assert f"# {word}" in text
    create_model(recipe.model.name, in_chans=recipe.data.in_chans, image_size=recipe.data.image_size)


@pytest.mark.parametrize("name", RECIPES)
def test_the_schema_accepts_every_recipe(name):
    jsonschema.validate(parse_yaml(recipe_text(name)[0], name), json.loads(json_schema()))


def test_the_schema_refuses_an_unknown_key():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SMALL, "trian": {}}, json.loads(json_schema()))


def test_twins_differ_in_nothing_but_the_model():
    for plain, gated in (("cifar10-resnet20", "cifar10-seresnet20"), ("cifar10-resnet110", "cifar10-seresnet110")):
        a, b = (load_recipe(n).model_dump() for n in (plain, gated))
        for part in (a, b):
            del part["name"], part["model"]["name"]
        assert a == b


def test_yaml_round_trip():
    recipe = small("compile=off", "rand_augment={n: 2, m: 7.0}", "clip_grad_norm=1.0", "model.options={reduction: 8}")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert yaml.safe_load(recipe.to_yaml())["model"]["options"] == {"reduction": 8}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key 'train\.epoch' in an override; did you mean 'train\.epochs'\?"),
        ("epochz=3", "unknown key 'epochz' in an override; did you mean 'epochs'"),
        ("train.epochs=many", "train.epochs is 'many', but should be a valid integer"),
        ("train.epochs=1.5", "train.epochs is 1.5, but should be a valid integer"),
        ("train.epochs=0", "train.epochs is 0, but should be greater than or equal to 1"),
        ("schedule.name=cosin", r"schedule.name is 'cosin'; did you mean 'cosine'\? \(allowed: .*'linear'"),
        ("data.source=cifar", "data.source is 'cifar'; did you mean 'cifar10'"),
        ("nesterov=1", "optimizer.nesterov is 1, but should be a valid boolean"),
        ("train.loss_scale=fast", "train.loss_scale"),
        ("every_epochs=2", "is in several sections: write eval.every_epochs or checkpoint.every_epochs"),
        ("epochs", "is not of the form key=value"),
        ("augment.rand_augment={n: 1, k: 2}", r"unknown key 'augment.rand_augment.k' \(allowed: n, m\)"),
        ("schedule.warmup_epochs=3", r"schedule.warmup_epochs \(3\) must be below train.epochs \(3\)"),
        ("train.grad_accumulation=5", "must be a multiple of train.grad_accumulation"),
        ("augment.scale=[0.5]", "augment.scale"),
        ("train.epochs=", "train.epochs is None"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(override, message):
    with pytest.raises(ExciteError, match=message):
        small(override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "mine, line 1: not valid YAML"),
        ("name: a\nname: b", "mine, line 2: not valid YAML: the key 'name' is given twice"),
        ("- 1", "mine: a recipe is a mapping of sections, not list"),
        ("name: a", "mine: the key 'model' is missing; the key 'data' is missing; the key 'train' is missing"),
        ("name: a\nmodell: {}", "unknown key 'modell'; did you mean 'model'"),
    ],
)
def test_wrong_yaml_is_explained(text, message):
    with pytest.raises(ExciteError, match=message):
        Recipe.from_yaml(text, "mine")


def test_values_are_yaml_1_2():
    values = apply_overrides(SMALL, ["lr=1e-3", "compile=off", "optimizer.options={x: 2E+1}"])
    assert values["optimizer"]["lr"] == 0.001
    assert values["train"]["compile"] == "off"
    assert values["optimizer"]["options"] == {"x": 20.0}
    assert "optimizer" in SMALL  # the original is untouched
    assert SMALL["optimizer"]["lr"] == 0.05


def test_every_key_has_a_description_and_an_override():
    keys = override_keys()
    assert len(keys) == len(set(keys)) > 60
    for section in ("model", "data", "augment", "optimizer", "schedule", "train", "eval", "checkpoint", "log"):
        fields = Recipe.model_fields[section].annotation.model_fields
        assert all(f.description for f in fields.values()), section
        assert all(f"{section}.{name}" in keys for name in fields)


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ExciteError, match="did you mean 'digits-seresnet20'"):
        load_recipe("digits-resnet20")
    with pytest.raises(ExciteError, match="`excite recipes` lists"):
        load_recipe("/no/such/file")
