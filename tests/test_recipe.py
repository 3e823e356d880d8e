"""Recipes are complete, strict, and say what is wrong with a wrong one."""

import json

import jsonschema
import pytest
import yaml

from excite.errors import ExciteError
from excite.recipe import (
    Recipe,
    apply_overrides,
    is_override,
    json_schema,
    load_recipe,
    override_keys,
)
from tests.training.small import SMALL, small


def test_the_schema_refuses_an_unknown_key():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SMALL, "trian": {}}, json.loads(json_schema()))


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
        ("augment.repeats=3", r"train.batch_size \(32\) must be a multiple of augment.repeats \(3\)"),
        ("data.eval_size=16", "eval_size is only for source=folder: the images of digits all have the same size"),
        ("schedule.name=cosine-linear", "did you mean 'cosine_linear'"),
        ("train.loss=ce", "train.loss is 'ce'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(override, message):
    with pytest.raises(ExciteError, match=message):
        small(override)


# --- a training shorter than its warm-up ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "warm_up", "sentence"),
    [
        ("cifar10-seresnet110", ["epochs=4"], 0.1, "shortened from 5 of 200 epochs to 0.1 of 4"),
        ("cifar10-seresnet110", ["epochs=5"], 0.125, "shortened from 5 of 200 epochs to 0.125 of 5"),
        ("cifar10-seresnet110", ["epochs=6"], 5.0, None),
        ("digits-seresnet20", ["train.epochs=1", "seed=3"], 0.05, "shortened from 2 of 40 epochs to 0.05 of 1"),
        # A rate that changes once an epoch warms up for whole epochs.
        ("imagenet-seresnet50-100ep", ["epochs=2"], 0.0, "left out: 5 of 100 epochs is less than one of 2"),
        ("cifar10-seresnet110-tf", ["epochs=1"], 0.0, "left out: 1 of 160 epochs"),
        ("imagenet-seresnet50-100ep", ["epochs=2", "schedule.unit=step"], 0.1, "from 5 of 100 epochs to 0.1 of 2"),
        # Without a warm-up there is nothing to say.
        ("imagenet-seresnet18", ["epochs=1"], 0.0, None),
    ],
)
def test_a_warm_up_longer_than_the_run_is_shortened_in_proportion(name, overrides, warm_up, sentence):
    recipe = load_recipe(name, overrides)
    assert recipe.schedule.warmup_epochs == pytest.approx(warm_up)
    assert len(recipe.notes) == (sentence is not None)
    if sentence is not None:
        assert sentence in recipe.notes[0]
        assert "schedule.warmup_epochs=... sets it" in recipe.notes[0]


def test_a_warm_up_is_shortened_wherever_the_recipe_is_from(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(small("warmup_epochs=2.5").to_yaml())
    for recipe in (load_recipe(str(file), ["epochs=1"]), load_recipe(str(file)).changed(["epochs=1"])):
        assert recipe.schedule.warmup_epochs == pytest.approx(2.5 / 3, rel=1e-5)
        assert "shortened from 2.5 of 3 epochs to 0.833333 of 1" in recipe.notes[0]
    assert load_recipe(str(file)).notes == ()


def test_a_warm_up_that_was_typed_beside_the_epochs_stays_an_error():
    for words in (["epochs=2", "warmup_epochs=2"], ["schedule.warmup_epochs=7", "train.epochs=3"]):
        with pytest.raises(
            ExciteError, match=r"warmup_epochs \(\d\) must be below train.epochs .*warmup_epochs=0 turns it off"
        ):
            load_recipe("cifar10-seresnet110", words)
    with pytest.raises(ExciteError, match=r"train.epochs is 'two'"):
        load_recipe("cifar10-seresnet110", ["epochs=two"])


def test_a_file_that_contradicts_itself_stays_an_error(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(small("warmup_epochs=2").to_yaml().replace("warmup_epochs: 2", "warmup_epochs: 9"))
    for words in ([], ["epochs=2"]):
        with pytest.raises(ExciteError, match=r"schedule.warmup_epochs \(9\) must be below"):
            load_recipe(str(file), words)


# --- whose word a value is --------------------------------------------------------------------------------------------


def test_what_the_user_said_himself_is_known(tmp_path):
    key = "train.precision"
    assert not load_recipe("imagenet-seresnet18").is_own(key)
    assert not load_recipe("imagenet-seresnet18", ["epochs=3", "scale_lr_to=64"]).scaled()[0].is_own(key)
    assert load_recipe("imagenet-seresnet18", ["precision=fp16"]).is_own(key)
    assert load_recipe("imagenet-seresnet18").changed(["train.precision=fp16"]).is_own(key)
    file = tmp_path / "mine.yaml"
    file.write_text(load_recipe("imagenet-seresnet18").to_yaml())
    assert load_recipe(str(file)).is_own(key)
    assert small().is_own(key)
    sent = load_recipe("cifar10-seresnet110", ["epochs=2"])
    arrived = Recipe.from_yaml(sent.to_yaml()).with_origin(**json.loads(json.dumps(sent.origin())))
    assert (arrived.notes, arrived.origin()) == (sent.notes, sent.origin())


def test_another_network_is_part_of_the_run_folders_name(tmp_path):
    assert load_recipe("folder-small", ["epochs=3"]).run_name == "folder-small"
    assert load_recipe("folder-small", ["model.name=seresnet18"]).run_name == "folder-small"  # what it has anyway
    assert load_recipe("folder-small", ["name=mine"]).run_name == "mine"
    other = load_recipe("folder-small", ["model.name=timm:resnet10t", "scale_lr_to=64"])
    assert other.run_name == other.scaled()[0].run_name == other.changed(["epochs=3"]).run_name
    assert other.run_name == "folder-small-timm-resnet10t"
    assert other.name == "folder-small"  # what `excite train` takes, and reports name
    file = tmp_path / "mine.yaml"
    file.write_text(small().to_yaml())
    assert load_recipe(str(file)).run_name == "small"
    assert load_recipe(str(file), ["model.name=cifar_resnet20"]).run_name == "small-cifar_resnet20"
    long = load_recipe(str(file), [f"name={'x' * 100}", "model.name=cifar_resnet20"]).run_name
    assert long == f"{'x' * 85}-cifar_resnet20"


def test_recipes_are_equal_that_say_the_same():
    one = load_recipe("digits-seresnet20", ["epochs=1"])
    other = Recipe.from_yaml(one.to_yaml())
    assert one.notes
    assert not other.notes
    assert one == other
    assert one != load_recipe("digits-seresnet20")


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


# --- scale_lr_to: linear scaling of the rates to another batch; the small recipe has batch 32 and rate 0.05 ---------


def rates(recipe):
    return recipe.optimizer.lr, recipe.schedule.warmup_lr, recipe.schedule.end_lr


def test_without_scale_lr_to_the_rate_is_as_written_whatever_the_batch():
    for recipe in (small(), small("batch_size=256"), small("batch_size=256", "scale_lr_to=")):
        assert recipe.scaled() == (recipe, None)
        assert recipe.optimizer.lr == 0.05


@pytest.mark.parametrize("asked", [["scale_lr_to=256"], ["batch_size=256", "scale_lr_to=256"]], ids=" ".join)
@pytest.mark.parametrize("turned", [False, True])
def test_scale_lr_to_multiplies_every_rate_by_the_ratio_of_the_batches(asked, turned):
    asked = asked[::-1] if turned else asked
    recipe, note = small("warmup_lr=0.001", "end_lr=0.002", *asked).scaled()
    assert recipe.train.batch_size == 256
    assert rates(recipe) == pytest.approx((0.4, 0.008, 0.016))
    assert note == (
        "train.scale_lr_to: batch 32 -> 256, learning rate 0.05 -> 0.4, warm-up from 0.001 -> 0.008, end 0.002 -> 0.016"
    )


def test_scaling_counts_from_the_batch_that_the_rate_in_force_is_for():
    assert small("lr=0.1", "scale_lr_to=64").scaled()[0].optimizer.lr == pytest.approx(0.2)
    recipe, _ = small("scale_lr_to=64").scaled()
    assert recipe.scaled() == (recipe, None)  # as a run folder's recipe is: not scaled again
    again = Recipe.from_dict(apply_overrides(recipe.model_dump(mode="json"), ["scale_lr_to=16"]))
    assert again.scaled()[0].optimizer.lr == pytest.approx(0.025)


def test_the_batch_of_the_recipe_is_nothing_to_scale_to():
    recipe, note = small("scale_lr_to=32").scaled()
    assert recipe == small()
    assert note == "train.scale_lr_to: batch 32 -> 32, learning rate 0.05 -> 0.05"


def test_two_batches_contradict_each_other():
    with pytest.raises(
        ExciteError, match=r"batch_size=64 and train.scale_lr_to=256 contradict each other.*recipe's 32"
    ):
        small("batch_size=64", "scale_lr_to=256")
    with pytest.raises(ExciteError, match="multiple of train"):
        small("grad_accumulation=4", "scale_lr_to=30").scaled()


def test_words_with_an_equals_sign_are_overrides_unless_they_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run=1").touch()
    words = ["data.root=/a/b", "run=1", "runs/lr=0.1", "run", "x=" + "y" * 5000]  # the last is too long for a path
    assert [is_override(word) for word in words] == [True, False, False, False, True]


@pytest.mark.parametrize("what", ["run", "run/", "run/recipe.yaml"])
def test_a_recipe_may_be_at_an_address(tmp_path, what):
    """As a run folder in a bucket is; tests/storage trains to a real one."""
    pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'excite[test]'")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(small("epochs=7").to_yaml())
    assert load_recipe(f"file://{tmp_path}/{what}") == small("epochs=7")
    with pytest.raises(ExciteError, match="there is no recipe, file or run folder 'file:///nowhere'"):
        load_recipe("file:///nowhere")
