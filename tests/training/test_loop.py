"""The training loop: what it computes, and how it stops when it must."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import excite
from excite.data import FileImages
from excite.errors import ExciteError
from excite.models import create_model
from excite.runtime.device import seed_everything
from excite.training import reporting, train
from excite.training.reporting import NonFiniteLoss
from excite.weights.locate import saved_steps, step_folder
from tests.training.small import metrics, same, small, tensors

# Without randomness and mixing, so that runs can be compared.
PLAIN = ["rotation=0.0", "mixup=0.0", "random_erasing=0.0", "drop_rate=0.0", "drop_path_rate=0.0", "ema_decay=0.0"]
PLAIN += ["augment.crop=none", "hflip=0.0", "epochs=2"]


def finish(out: Path, *overrides: str) -> Path:
    return Path(train(small(*overrides), out=out, quiet=True)["run"])


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in metrics(run)]


def test_the_same_recipe_gives_the_same_weights(tmp_path):
    a, b = finish(tmp_path), finish(tmp_path)
    assert same(tensors(a), tensors(b))
    assert a != b  # a new run folder each time


def test_golden_losses(tmp_path):
    """The losses of the small recipe, stored: the whole chain from data to optimiser is unchanged."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())
    assert losses(finish(tmp_path, "epochs=1")) == pytest.approx(golden["small"], rel=2e-3)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    """With batch norm frozen (its statistics are those of a part), two halves make one batch."""
    norms = ["train.freeze=['*bn*']", "optimizer.weight_decay=0.0"]
    whole = finish(tmp_path, *PLAIN, *norms)
    parts = finish(tmp_path, *PLAIN, *norms, "grad_accumulation=2")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


def test_checkpointed_blocks_give_the_same_training(tmp_path):
    usual, checkpointed = finish(tmp_path, *PLAIN), finish(tmp_path, *PLAIN, "grad_checkpointing=true")
    assert losses(checkpointed) == pytest.approx(losses(usual), rel=1e-5)


def test_frozen_parts_stay_bit_for_bit(tmp_path):
    run = finish(tmp_path, "train.freeze=[conv1, bn1, layer1*]")
    seed_everything(0)
    fresh = create_model("cifar_seresnet20", in_chans=1).state_dict()
    trained = tensors(run)
    for name, tensor in trained.items():
        if name.startswith(("conv1", "bn1", "layer1")):
            assert torch.equal(tensor, fresh[name]), name
    assert not torch.equal(trained["layer2.0.conv1.weight"], fresh["layer2.0.conv1.weight"])


def test_init_from_another_number_of_classes(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for k, name in enumerate(("dark", "light", "middle")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(12):
                Image.new("L", (8, 8), 40 + 90 * k + i).save(tmp_path / "images" / part / name / f"{i}.png")
    first = finish(tmp_path / "first")
    data = ["data.source=folder", f"data.root={tmp_path / 'images'}", "limit_train=null", "limit_val=null"]
    run = finish(tmp_path / "second", *data, f"init_from={first}", "train.batch_size=12")
    assert "all but fc.weight, fc.bias" in (run / "log.txt").read_text()
    model = excite.load(run)
    assert model.classes == ["dark", "light", "middle"]
    assert len(next(iter(model.predict([tmp_path / "images/val/dark/0.png"]))).top) == 3


def test_a_diverging_run_names_step_rate_and_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss) as caught:
        train(small(*PLAIN, "lr=1e30", "schedule.name=constant", "warmup_epochs=0.0"), out=tmp_path, quiet=True)
    run = next(tmp_path.iterdir())
    message = str(caught.value)
    assert "learning rate 1e+30" in message
    assert "the loss is nan at step" in message or "not all values in" in message
    steps = saved_steps(run)
    if steps:
        assert str(step_folder(run, steps[-1])) in message
        assert all(t.isfinite().all() for t in tensors(run).values())
    else:
        assert "there is no earlier checkpoint" in message


def test_divergence_after_a_checkpoint_names_that_checkpoint(tmp_path, monkeypatch):
    from excite.training import loop

    real = loop.train_step

    def poisoned(run, images, labels):
        loss, correct = real(run, images, labels)
        return (loss * float("nan") if run.step == 6 else loss), correct

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan at step 7 .*last good checkpoint is .*step-00000006"):
        train(small(), out=tmp_path, quiet=True)


def test_fp16_counts_and_shows_skipped_steps(tmp_path):
    """A first loss scale far too large: steps are skipped until it has halved often enough, then training goes on."""
    run = finish(tmp_path, *PLAIN, "precision=fp16", "loss_scale_init=1099511627776.0")
    records = metrics(run)
    assert records[0]["skipped_steps"] == 1
    assert records[-1]["skipped_steps"] >= 5
    assert records[-1]["loss_scale"] == 2.0**40 / 2 ** records[-1]["skipped_steps"]
    assert f"{records[-1]['skipped_steps']} skipped" in (run / "log.txt").read_text()
    results = json.loads((run / "results.json").read_text())
    assert results["skipped_steps"] == records[-1]["skipped_steps"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_fp32(tmp_path, precision):
    exact = losses(finish(tmp_path, *PLAIN))
    low = losses(finish(tmp_path, *PLAIN, f"precision={precision}", "loss_scale=128.0"))
    assert low == pytest.approx(exact, rel=0.05)
    assert low != exact


@pytest.mark.heavy
def test_broken_training_images_are_skipped_counted_and_listed(tmp_path, cifar):
    import shutil

    shutil.copytree(cifar["folder"], tmp_path / "images")
    broken = sorted((tmp_path / "images" / "train" / "cat").iterdir())[:3]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    for mode, crop in (("memory", "pad"), ("stream", "random_resized")):
        words = ["data.source=folder", f"data.root={tmp_path / 'images'}", "in_chans=3", f"augment.crop={crop}"]
        run = finish(tmp_path / mode, *words, "limit_train=null", f"data.mode={mode}", "data.workers=0", "epochs=1")
        listed = (run / "bad_images.txt").read_text()
        assert all(str(path) in listed for path in broken)
        assert json.loads((run / "results.json").read_text())["bad_images"] == 3
    with pytest.raises(ExciteError, match=str(broken[0].name)):
        finish(tmp_path / "stop", *words, "limit_train=null", "data.on_bad_train=stop", "data.workers=0")


@pytest.mark.heavy
def test_pickles_and_class_folders_give_the_same_training(tmp_path, cifar):
    """The run depends on the images, not on how they are stored."""
    common = [
        "in_chans=3",
        "data.image_size=32",
        "limit_train=null",
        "limit_val=null",
        "train.batch_size=100",
        "epochs=1",
    ]
    pickled = finish(tmp_path, *common, "data.source=cifar10", f"data.root={cifar['batches']}")
    folder = finish(tmp_path, *common, "data.source=folder", f"data.root={cifar['folder']}")
    assert same(tensors(pickled), tensors(folder))
    assert metrics(pickled, "eval") == metrics(folder, "eval")


def test_tensorboard_on_request(tmp_path):
    run = finish(tmp_path, "epochs=1", "tensorboard=true")
    assert list((run / "tensorboard").glob("events.*"))


def test_python_interface(tmp_path):
    results = excite.train(
        "digits-seresnet20", ["epochs=1", "limit_train=64", "warmup_epochs=0"], out=tmp_path, quiet=True
    )
    _, evaluation = excite.validate(results["run"])
    assert evaluation.top1 == results["top1"]
    assert excite.load(results["run"]).classes == [str(d) for d in range(10)]


@pytest.mark.parametrize(("waited", "told"), [(0.04, False), (0.5, True)])
def test_a_training_that_waits_for_images_says_so_once_with_what_to_do(monkeypatch, waited, told):
    monkeypatch.setattr(reporting, "cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    said = []
    recipe = small("data.source=folder", "data.root=my photos", "data.mode=stream", "in_chans=3", "data.workers=2")
    run = SimpleNamespace(
        recipe=recipe,
        data=SimpleNamespace(train=FileImages(["a.jpg"], [0])),
        display=SimpleNamespace(message=said.append),
        folder=Path("runs/r"),
    )
    clock = reporting.Clock()
    for _ in range(10):
        reporting._say_waiting(run, clock, 10.0, waited)
    assert (
        said
        == [
            "training waited 50 % of the last 30 s for images: use more workers (data.workers=8, now 2) or decode them "
            "once (data.mode=memory) or make the files smaller, once (excite data pack 'my photos' SHARDS --size 10); "
            "what takes how long: excite bench --data runs/r"
        ]
        * told
    )
