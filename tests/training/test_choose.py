"""``excite train photos/``: the recipe that is chosen, what is said of it, and how many epochs fit into a time."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from excite.choices import parse_duration
from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import load_recipe
from excite.training import budget, choose, train
from excite.training.choose import choose_recipe, recipe_for
from excite.weights import hub
from excite.weights.layouts import TIMM_EFFICIENTNET_LITE
from excite.weights.pretrained import PRETRAINED, measured_speeds, pretrained_of

from .small import metrics, same, small, tensors

REPOSITORY = "timm/tf_efficientnet_lite0.in1k"


def photographs(folder, size=140, count=10):
    rng = np.random.default_rng(0)
    for name, colour in (("cat", 60), ("dog", 190)):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.clip(rng.normal(colour, 30, (size, size + 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture
def cut_off(tmp_path, monkeypatch):
    """A machine that reaches no hub, with a cache of its own."""
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(choose, "best_device", lambda: "cpu")


@pytest.fixture
def weights(cut_off):
    """Weights of timm's names where a user would have put them by hand."""
    place = hub.place_for(REPOSITORY) / "model.safetensors"
    place.parent.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(TIMM_EFFICIENTNET_LITE.write(create_model("efficientnet_lite0").state_dict()), place)
    return place


def test_a_folder_alone_is_fine_tuned_from_trained_weights(weights, tmp_path):
    said = []
    chosen = choose_recipe(str(photographs(tmp_path / "photos")), say=said.append)
    recipe = chosen.recipe
    assert (recipe.name, recipe.model.name) == ("folder-finetune-small", "efficientnet_lite0")
    assert recipe.train.init_from == "timm:tf_efficientnet_lite0.in1k"
    assert recipe.train.probe
    assert (recipe.data.image_size, recipe.train.epochs) == (224, choose.MOST)
    first, second = chosen.reasons
    assert "for a CPU and 13 training images of 2 classes" in first
    assert "74.8 % top-1 on ImageNet; first a linear probe, then fine-tuning" in second
    assert said == [
        "pretrained weights: timm:tf_efficientnet_lite0.in1k, 19 MB, downloaded unless they are in the cache ..."
    ]


def test_without_weights_it_is_from_scratch_and_said_with_what_to_expect(cut_off, tmp_path):
    chosen = choose_recipe(str(photographs(tmp_path / "photos")))
    assert chosen.recipe.name == "folder-small"
    assert chosen.recipe.train.init_from is None
    why, what = chosen.reasons
    assert why.startswith("no pretrained weights: ")
    assert f"copy it here as {hub.place_for(REPOSITORY) / 'model.safetensors'}" in why
    assert "from scratch" in what
    assert "expect far lower accuracy than with pretrained weights" in what


def test_what_the_user_says_goes_first(weights, tmp_path):
    photos = str(photographs(tmp_path / "photos"))
    recipe = choose_recipe(photos, ["epochs=3", "image_size=96", "lr=0.001"]).recipe
    assert (recipe.train.epochs, recipe.data.image_size, recipe.optimizer.lr) == (3, 96, 0.001)
    other = choose_recipe(photos, [f"init_from={weights}"])
    assert other.recipe.train.init_from == str(weights)
    assert "ImageNet" not in other.reasons[1]  # nobody knows what these are worth
    scratch = choose_recipe(photos, ["model.name=cifar_seresnet20", "image_size=32"])
    assert scratch.recipe.model.name == "cifar_seresnet20"
    assert scratch.recipe.train.init_from is None
    assert scratch.reasons[0].startswith("there are no pretrained weights for cifar_seresnet20")
    refused = choose_recipe(photos, ["init_from=null"])
    assert refused.recipe.train.init_from is None
    assert not refused.recipe.train.probe
    assert refused.reasons[0] == "no weights to start from (train.init_from=null)"
    with pytest.raises(ExciteError, match="unknown model"):
        choose_recipe(photos, ["model.name=nothing"])


def test_small_images_are_not_blown_up(weights, tmp_path):
    chosen = choose_recipe(str(photographs(tmp_path / "photos", size=40)))
    assert chosen.recipe.data.image_size == choose.SMALL_SIZE
    assert chosen.reasons[2] == "size: the shorter side of the images is about 40 pixels, so 128 is enough"


def test_an_accelerator_gets_the_larger_network(cut_off, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "best_device", lambda: "cuda")
    place = hub.place_for("timm/seresnet50.ra2_in1k") / "model.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not read here")
    chosen = choose_recipe(str(photographs(tmp_path / "photos")))
    assert (chosen.recipe.name, chosen.recipe.model.name) == ("folder-finetune-seresnet50", "seresnet50")
    assert "this machine's accelerator (cuda)" in chosen.reasons[0]
    assert chosen.recipe.train.probe


def test_many_images_are_seen_less_often():
    assert choose._epochs(20) == choose.MOST
    assert choose._epochs(1000) == 4
    assert choose._epochs(100_000) == choose.FEWEST


def test_a_folder_that_cannot_be_trained_on_is_told_as_ever(weights, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExciteError, match="no class folders"):
        choose_recipe(str(tmp_path / "empty"))


def test_every_pretrained_network_is_one_of_ours():
    assert len({each.model for each in PRETRAINED}) == len(PRETRAINED)
    for each in PRETRAINED:
        with torch.device("meta"):
            count = sum(p.numel() for p in create_model(each.model).parameters())
        assert count / 1e6 == pytest.approx(each.params_m, abs=0.02), each.model
        assert pretrained_of(each.model) is each
    assert pretrained_of("cifar_resnet20") is None
    assert load_recipe(choose.LARGE).model.name in {each.model for each in PRETRAINED}


@pytest.mark.peers
def test_timm_has_every_pretrained_network(timm):
    for each in PRETRAINED:
        name = each.source.removeprefix("timm:")
        assert timm.get_pretrained_cfg(name).hf_hub_id is not None, name
        assert timm.get_pretrained_cfg(name).tag == name.partition(".")[2]


@pytest.mark.heavy
def test_the_whole_way_by_the_folder_alone(weights, tmp_path, capsys):
    """Also from Python; the recipe in the run folder is a whole one, and trains the same again."""
    photos = photographs(tmp_path / "photos")
    results = train(photos, ["image_size=64", "epochs=1", "report.write=false"], out=tmp_path / "runs")
    assert results["recipe"] == "folder-finetune-small"
    assert [r["epoch"] for r in metrics(results["run"], "eval")] == [0, 1]
    assert "recipe folder-finetune-small" in capsys.readouterr().err
    again = train(results["run"], out=tmp_path / "again", quiet=True)
    assert same(tensors(results["run"]), tensors(again["run"]))


def test_a_job_that_is_started_again_keeps_the_recipe_that_was_chosen(cut_off, tmp_path):
    """Begun without weights; when they are there it is still that run."""
    photos, run = str(photographs(tmp_path / "photos")), tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe_for(photos, quiet=True).to_yaml())
    place = hub.place_for(REPOSITORY) / "model.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not read here")
    assert recipe_for(photos, quiet=True).name == "folder-finetune-small"
    assert recipe_for(photos, run_dir=run).name == "folder-small"


def test_it_is_quiet_where_that_is_asked(cut_off, tmp_path, capsys):
    photos = str(photographs(tmp_path / "photos"))
    recipe_for(photos, quiet=True)
    assert capsys.readouterr() == ("", "")
    recipe_for(photos)
    assert "recipe folder-small, from scratch" in capsys.readouterr().err


def test_a_run_folder_without_its_recipe_is_not_taken_for_images(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ExciteError) as error:
        train(resume=tmp_path / "run", quiet=True)
    assert "class folders" not in str(error.value)


def test_every_network_with_pretrained_weights_has_a_measured_speed():
    speeds = measured_speeds()["images_per_second"]
    assert speeds.keys() == {known.model for known in PRETRAINED}
    assert all(speed > 0 for speed in speeds.values())


# --- the cost, and a time to fit into -------------------------------------------------------------------------------


def test_the_cost_is_told_after_a_few_steps(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(budget, "WORTH_TELLING", 1e9)
    train(small("mixup=0.0"), out=tmp_path)
    assert "cost: " not in capsys.readouterr().out
    monkeypatch.setattr(budget, "WORTH_TELLING", 0.0)
    train(small("mixup=0.0"), out=tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cost: ")]
    assert len(told) == 1
    assert re.fullmatch(r"cost: about \S+ per epoch, \S+ for the rest of the training \(without evaluation\)", told[0])


def test_as_many_epochs_as_fit(tmp_path, monkeypatch):
    """By numbers in place of what is measured: 6 steps of 2 s and 100 images of 0.01 s an epoch."""
    monkeypatch.setattr(budget, "_time_steps", lambda run, step: 2.0)
    monkeypatch.setattr(budget, "_time_evaluation", lambda run: 0.01)
    run = Path(train(small(), out=tmp_path, time_limit=36.0, quiet=True)["run"])
    recipe = load_recipe(str(run))
    assert recipe.train.epochs == 2  # of 13 s each, in 0.9 of 36 less what was spent before
    assert recipe.schedule.warmup_epochs == 0.5
    assert metrics(run, "eval")[-1]["epoch"] == 2
    run = Path(train(small(), out=tmp_path, time_limit=1.0, quiet=True)["run"])
    assert load_recipe(str(run)).train.epochs == 1
    assert load_recipe(str(run)).schedule.warmup_epochs == 0.25
    assert "more than the remaining time; training one epoch anyway" in (run / "log.txt").read_text()


def test_a_job_that_is_started_again_keeps_the_epochs_that_fitted(tmp_path, monkeypatch):
    """Also where other epochs would fit now, and without a word: it is the same run."""
    monkeypatch.setattr(budget, "_time_evaluation", lambda run: 0.01)
    monkeypatch.setattr(budget, "_time_steps", lambda run, step: 2.0)
    run = tmp_path / "run"
    train(small(), run_dir=run, time_limit=36.0, quiet=True)
    for folder in sorted(run.glob("checkpoints/step-*"))[1:]:
        shutil.rmtree(folder)
    (run / "results.json").unlink()
    monkeypatch.setattr(budget, "_time_steps", lambda run, step: pytest.fail("it was measured again"))
    train(small(), run_dir=run, time_limit=36.0, quiet=True)
    assert load_recipe(str(run)).train.epochs == 2
    assert metrics(run, "eval")[-1]["epoch"] == 2
    assert not [*run.glob("recipe-until-*")]


def test_what_was_measured_leaves_no_trace(tmp_path, monkeypatch):
    """The same weights as a run of so many epochs that nothing was measured for."""
    plain = train(small("epochs=2"), out=tmp_path / "plain", quiet=True)
    measure, looked = budget._time_steps, []

    def steps(run, step):
        looked.append(measure(run, step))
        return 1.0

    monkeypatch.setattr(budget, "_time_steps", steps)
    monkeypatch.setattr(budget, "_with_epochs", lambda recipe, epochs: recipe.replaced("train.epochs", 2, "two"))
    fitted = train(small("epochs=9"), out=tmp_path / "fitted", time_limit=60.0, quiet=True)
    assert looked[0] > 0
    assert same(tensors(plain["run"]), tensors(fitted["run"]))
    assert same(tensors(plain["run"], "ema.safetensors"), tensors(fitted["run"], "ema.safetensors"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400), (" 2M ", 120)]
)
def test_times(text, seconds):
    assert parse_duration(text, "--time") == seconds


@pytest.mark.parametrize("text", ["20", "", "0m", "m", "20 minutes", "1m2h", "-5m", "1e3s"])
def test_what_is_no_time(text):
    with pytest.raises(ExciteError, match=r"--time is .* it takes a duration such as 90s, 20m or 1h30m") as error:
        parse_duration(text, "--time")
    assert ("--time 20m" in str(error.value)) == (text == "20")
