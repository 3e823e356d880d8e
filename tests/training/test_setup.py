"""What a run makes of a recipe's wishes: the scaled rate, frozen weights, another size in evaluation."""

from pathlib import Path

import pytest
from PIL import Image

from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.training import train
from excite.training.device import make_accelerator
from excite.training.display import Display
from excite.training.setup import set_up
from tests.training.small import metrics, small

LINE = "train.scale_lr_to: batch 32 -> 64, learning rate 0.05 -> 0.1"


def finish(tmp_path, *overrides):
    quick = ["epochs=1", "limit_train=128", "limit_val=20", "warmup_epochs=0", "schedule.name=constant"]
    return Path(train(small(*quick, *overrides), out=tmp_path, quiet=True)["run"])


def test_a_scaled_run_says_so_and_is_not_scaled_again_on_resuming(tmp_path):
    run = finish(tmp_path, "scale_lr_to=64")
    assert (run / "log.txt").read_text().count(LINE) == 1
    assert {r["lr"] for r in metrics(run)} == {0.1}
    assert metrics(run)[-1]["step"] == 2  # 128 images
    written = load_recipe(str(run))
    assert (written.train.batch_size, written.train.scale_lr_to, written.optimizer.lr) == (64, None, 0.1)
    train(written, resume=run, quiet=True)
    assert (run / "log.txt").read_text().count("scale_lr_to") == 1
    again = finish(tmp_path / "again", "scale_lr_to=64")
    assert (again / "recipe.yaml").read_text() == (run / "recipe.yaml").read_text()


def test_a_run_is_not_scaled_unless_asked(tmp_path):
    run = finish(tmp_path, "batch_size=64")
    assert "scale_lr_to" not in (run / "log.txt").read_text()
    assert {r["lr"] for r in metrics(run)} == {0.05}


def set_up_on(recipe):
    return set_up(recipe, Display(quiet=True), make_accelerator("cpu"))


@pytest.fixture
def folder(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40), (50 * i, 0, 0)).save(tmp_path / "images" / label / f"{i}.png")
    return ["data.source=folder", f"data.root={tmp_path / 'images'}", "limit_train=", "limit_val=", "batch_size=4"]


def test_gates_of_one_size_are_not_evaluated_at_another(folder):
    sizes = ["image_size=16", "eval_size=24"]
    with pytest.raises(
        ExciteError, match=r"data.eval_size \(24\) must be data.image_size \(16\) for cifar_geresnet20_"
    ):
        set_up_on(small(*folder, *sizes, "model.name=cifar_geresnet20_theta"))
    for name in ("cifar_geresnet20_theta_minus", "cifar_seresnet20"):
        assert set_up_on(small(*folder, *sizes, f"model.name={name}")).preprocessing.image_size == 24


def test_frozen_random_weights_are_pointed_out():
    assert any("train.freeze keeps random weights" in note for note in set_up_on(small("freeze=[conv1]")).notes)
    assert not set_up_on(small()).notes


def test_fine_tuning_needs_a_checkpoint(folder):
    recipe = load_recipe("folder-finetune-seresnet50", [folder[1], "device=cpu"])
    with pytest.raises(ExciteError, match=r"model\.safetensors"):
        set_up_on(recipe)
