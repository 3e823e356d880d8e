"""What a run makes of a recipe's wishes: the scaled rate, frozen weights, another size in evaluation."""

import copy
import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from excite.console import Display
from excite.data import TrainLoader, open_data
from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.runtime import device
from excite.runtime.device import make_accelerator
from excite.training import loop, train
from excite.training.batch_parts import check_batch_norms, first_with_one_value, smallest_part
from excite.training.precision import settle_precision
from excite.training.reporting import record_evaluation
from excite.training.schedule import beyond_the_end
from excite.training.setup import make_model, set_up
from excite.training.step import train_step
from excite.twins import runner
from excite.weights.own import read_own
from tests.training.small import metrics, same, small

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
        ExciteError, match=r"data.eval_size \(24\) must equal data.image_size \(16\) for cifar_geresnet20_"
    ):
        set_up_on(small(*folder, *sizes, "model.name=cifar_geresnet20_theta"))
    for name in ("cifar_geresnet20_theta_minus", "cifar_seresnet20"):
        assert set_up_on(small(*folder, *sizes, f"model.name={name}")).preprocessing.image_size == 24


def test_frozen_random_weights_are_pointed_out():
    assert any(
        "train.freeze keeps randomly initialised weights frozen" in note
        for note in set_up_on(small("freeze=[conv1]")).notes
    )
    assert not set_up_on(small()).notes


def test_fine_tuning_needs_a_checkpoint(folder):
    recipe = load_recipe("folder-finetune-seresnet50", [folder[1], "device=cpu"])
    with pytest.raises(ExciteError, match=r"model\.safetensors"):
        set_up_on(recipe)


# --- batch norm with one value per channel ----------------------------------------------------------------------------

THETA = ["model.name=cifar_geresnet20_theta"]
DEEP = ["model.name=resnet18", "model.drop_path_rate=0.0"]  # 8 pixels end as a map of 1x1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*DEEP, "batch_size=1"],
            r"layer2.0.bn1 would .* \(train.batch_size=1\); use train.batch_size=2 or more, or a l",
        ),
        ([*DEEP, "batch_size=4", "grad_accumulation=4"], r"\(train.batch_size=4 shared by train.grad_accumulation=4\)"),
        ([*DEEP, "limit_train=1"], r"\(1 training images in 1 part\); use more training images"),
        ([*DEEP, "limit_train=5", "grad_accumulation=4"], r"\(5 training images in 4 part"),
        ([*THETA, "batch_size=1"], r"layer1.0.gate.gather.1 of its gate .*another gate or extent"),
        ([*THETA, "batch_size=2", "grad_accumulation=2", "fused=on"], "a smaller train.grad_accumulation"),
        # Frozen norms do not count, but those that thaw do.
        ([*DEEP, "batch_size=1", "freeze=[layer2, layer3, layer4]", "freeze_epochs=2"], r"layer2.0.bn1"),
        ([*DEEP, "batch_size=1", "sync_bn=true"], r"layer2.0.bn1"),  # nothing to synchronise with
    ],
)
def test_one_value_per_channel_is_refused_before_the_first_step(overrides, message):
    with pytest.raises(ExciteError, match=message):
        set_up_on(small(*overrides))


def test_one_value_per_channel_of_a_network_of_timms(timm):
    with pytest.raises(ExciteError, match="layer"):
        set_up_on(small("model.name=timm:resnet18", "model.drop_path_rate=0.0", "batch_size=1"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["batch_size=1"],  # maps of 2x2 and larger
        [*THETA, "batch_size=2"],
        [*DEEP, "batch_size=8", "grad_accumulation=4"],
        [*DEEP, "limit_train=5", "grad_accumulation=2"],  # 3 and 2
        [*DEEP, "batch_size=1", "freeze=[layer2, layer3, layer4]"],  # their norms use what they know
        [*DEEP, "batch_size=1", "freeze=[layer2, layer3, layer4]", "freeze_epochs=3"],  # to the end
        ["batch_size=1", "model.name=cifar_geresnet20_theta_minus"],
    ],
)
def test_what_has_more_than_one_value_is_not(overrides):
    run = set_up_on(small(*overrides))
    images, labels = next(run.train_loader.epoch(0))
    run.net.train()
    for norm in run.frozen_norms:
        norm.eval()
    loss, _ = train_step(run, images, labels)
    assert loss.isfinite()
    assert all(b.isfinite().all() for b in run.model.buffers())


@pytest.mark.parametrize(
    ("images", "batch", "parts"), [(100, 8, 4), (5, 8, 4), (5, 8, 2), (7, 64, 3), (1, 2, 1), (9, 9, 9)]
)
def test_the_smallest_part_is_that_of_the_loop(images, batch, parts):
    recipe = small(f"limit_train={images}")
    data = open_data(recipe.data, recipe.augment)
    loader = TrainLoader(
        data.train, batch_size=batch, seed=0, device="cpu", augment=recipe.augment, data_config=recipe.data
    )
    sizes = [len(part) for x, _ in loader.epoch(0) for part in x.chunk(parts)]  # as train_step has it
    assert smallest_part(loader, parts) == min(sizes)


def test_the_first_norm_with_one_value_is_named_and_the_network_stays_as_it_is():
    layers = {"wide": nn.BatchNorm2d(3), "drop": nn.Dropout(), "pool": nn.AdaptiveAvgPool2d(1)}
    layers |= {"one": nn.BatchNorm2d(3), "flat": nn.Flatten(), "last": nn.BatchNorm1d(3)}
    model = nn.Sequential(OrderedDict(layers)).eval()
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for image, frozen, name in [
        ((3, 4, 5), (), "one"),
        ((3, 1, 2), (), "one"),
        ((3, 1, 1), (), "wide"),
        ((3, 4, 5), {"one"}, "last"),
        ((3, 4, 5), {"one", "last"}, None),
    ]:
        assert first_with_one_value(model, image, frozen) == name
    assert torch.equal(torch.get_rng_state(), stream)  # dropout drew from another
    assert not any(m.training or m._forward_pre_hooks for m in model.modules())
    assert same(model.state_dict(), before)


def test_a_share_of_one_image_is_refused_without_synchronised_norms():
    for words in ([], ["sync_bn=true"], ["limit_train=3"]):
        recipe = small(*DEEP, "batch_size=4", "grad_accumulation=2", *words)
        data = open_data(recipe.data, recipe.augment)
        loader = TrainLoader(
            data.train, batch_size=2, seed=0, device="cpu", augment=recipe.augment, data_config=recipe.data, world=2
        )
        model, _ = make_model(recipe, data)
        if "sync_bn=true" in words:
            check_batch_norms(model, recipe, loader, [])
            continue
        shared = (
            r"\(train.batch_size=4 shared by 2 processes and train.grad_accumulation=2\); use train.batch_size=8 or"
        )
        if words:
            shared = r"\(3 training images in 4 parts\); use more training images"
        with pytest.raises(ExciteError, match=rf"{shared} .*, or fewer devices, or train.sync_bn=true"):
            check_batch_norms(model, recipe, loader, [])


# --- what comes after the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["schedule.name=multistep", "milestones=[1, 3, 9]"],
            "schedule.milestones 3, 9 come after the end (train.epochs=3)",
        ),
        (["schedule.name=multistep", "milestones=[30, 60]"], "the rate never drops"),
        (["schedule.name=step"], "schedule.step_epochs=30 comes after the end (train.epochs=3): the rate never drops"),
        (["freeze=[conv1]", "freeze_epochs=3"], "the parameters in train.freeze stay frozen to the end"),
        (["epochs=1", "warmup_epochs=0.25", "schedule.name=multistep", "milestones=[2]"], "the rate never drops"),
    ],
)
def test_what_comes_after_the_end_is_said(overrides, sentence):
    assert any(sentence in note for note in set_up_on(small(*overrides)).notes)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["milestones=[30]"],  # of another schedule
        ["schedule.name=multistep", "milestones=[1, 2]"],
        ["schedule.name=step", "step_epochs=2"],
        ["freeze=[conv1]", "freeze_epochs=2"],
        ["freeze=[conv1]"],
        ["freeze_epochs=5"],
    ],
)
def test_what_comes_before_it_is_not(overrides):
    assert beyond_the_end(small(*overrides)) == []


def test_a_shortened_warm_up_is_said_in_the_log(tmp_path):
    words = ["epochs=1", "limit_train=64", "limit_val=20", "report.write=false", "checkpoint.every_minutes="]
    run = Path(train("digits-seresnet20", words, out=tmp_path, quiet=True)["run"])
    assert "the warm-up is shortened from 2 of 40 epochs to 0.05 of 1" in (run / "log.txt").read_text()
    assert load_recipe(str(run)).schedule.warmup_epochs == 0.05


# --- fp16 of a recipe on a CPU ----------------------------------------------------------------------------------------


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """A recipe as if it came with the package: small, and in fp16 with a fixed loss scale, as MindCV's are."""
    import excite.data.digits  # noqa: F401  it finds its images by what is changed here, when it is imported

    own = tmp_path / "shipped" / "recipes"
    own.mkdir(parents=True)
    quick = ["epochs=2", "limit_train=64", "limit_val=20", "ema_decay=0"]
    values = small(*quick, "precision=fp16", "loss_scale=1024.0").to_yaml()
    (own / "source.yaml").write_text(values.replace("name: small\n", "name: source\n"))
    monkeypatch.setattr("excite.recipe.resources.files", lambda package: own.parent)
    return "source"


@pytest.fixture(params=["bf16", "fp32"])
def best(request, monkeypatch):
    """What "auto" means on the CPU, which has no fp16."""
    monkeypatch.setattr(device, "_cpu_has", lambda precision: precision == request.param)
    return request.param


def test_a_recipes_fp16_is_what_the_cpu_is_good_at(shipped, best, tmp_path):
    results = train(shipped, out=tmp_path / "runs", quiet=True)
    run = Path(results["run"])
    log = (run / "log.txt").read_text()
    assert log.count(f"{best} in place of the recipe's fp16, which this CPU has no instructions for") == 1
    assert "(measured 7 to 11 times as slow as fp32, see docs/precision.md); train.precision=fp16 keeps it" in log
    assert "emulated" not in log
    assert "loss scale" not in log
    assert results["precision"] == json.loads((run / "environment.json").read_text())["precision"] == best
    assert results["skipped_steps"] == 0
    assert {r["loss_scale"] for r in metrics(run)} == {None}
    weights = read_own(run)
    assert (weights.meta["precision"], weights.meta["recipe"]["train"]["precision"]) == (best, best)
    assert load_recipe(str(run)).train.precision == best


def test_the_users_own_fp16_stays_and_is_said_to_be_slow(shipped, best, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(load_recipe(shipped).to_yaml())
    for recipe in (load_recipe(shipped, ["precision=fp16"]), load_recipe(str(own))):
        run = set_up_on(recipe)
        assert (run.precision, run.recipe.train.precision) == ("fp16", "fp16")
        (note,) = [n for n in run.notes if "fp16" in n]
        assert "fp16 is emulated on this CPU: measured 7 to 11 times as slow as fp32" in note
        assert note.endswith(f"(docs/precision.md); type train.precision={best}")


def test_fp16_stays_where_the_cpu_has_it(shipped, monkeypatch):
    monkeypatch.setattr(device, "_cpu_has", lambda precision: True)
    run = set_up_on(load_recipe(shipped))
    assert run.precision == "fp16"
    assert not any("fp16" in note for note in run.notes)


def test_other_devices_keep_the_recipes_precision(shipped, best):
    recipe = load_recipe(shipped)
    for kind in ("cuda", "npu", "xpu", "mps"):
        assert settle_precision(recipe, torch.device(kind) if kind != "npu" else SimpleNamespace(type="npu")) is recipe


def stopped_after_one_epoch(recipe, folder, monkeypatch):
    """A run folder in the middle of its recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "record_evaluation", _stop_at_epoch_two)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run_dir=folder, quiet=True)


def _stop_at_epoch_two(run, *args):
    if run.step > run.steps_per_epoch:
        raise KeyboardInterrupt
    return record_evaluation(run, *args)


@pytest.mark.parametrize(("begun", "words"), [("fp16", ["precision=fp16"]), ("fp32", ["precision=fp32"])])
def test_a_run_stays_in_the_precision_that_it_was_begun_in(shipped, begun, words, tmp_path, monkeypatch):
    """Begun in the user's word or on another machine; gone on with by the shipped recipe's name on this CPU."""
    monkeypatch.setattr(device, "_cpu_has", lambda precision: precision == "bf16")
    for how in ("run_dir", "resume"):
        folder = tmp_path / how
        stopped_after_one_epoch(load_recipe(shipped, words), folder, monkeypatch)
        results = train(shipped, **{how: folder}, quiet=True)
        assert results["precision"] == begun
        assert load_recipe(str(folder)).train.precision == begun
        assert "the recipe has changed" not in (folder / "log.txt").read_text()
    assert train(shipped, ["precision=bf16"], run_dir=tmp_path / "new", quiet=True)["precision"] == "bf16"


def test_an_experiment_of_twins_is_in_one_precision(shipped, best, tmp_path):
    said = []
    show = SimpleNamespace(message=said.append)
    _, plan = _plan_of(shipped, tmp_path / "twins", show)
    assert plan.recipe.train.precision == best
    assert any("in place of the recipe's fp16" in line for line in said)
    plan.save(tmp_path / "twins")
    with pytest.MonkeyPatch.context() as patch:  # another machine goes on with it
        patch.setattr(device, "_cpu_has", lambda precision: True)
        assert _plan_of(shipped, tmp_path / "twins", show)[1].recipe.train.precision == best


def _plan_of(name, folder, display):
    folder.mkdir(exist_ok=True)
    folder, recipe = runner._resolve(name, [], folder, None, display)
    return folder, runner.make_plan(folder, recipe, ["none", "se"], 1)
