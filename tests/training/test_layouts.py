"""train.deterministic on a CPU: the same bits on any layout, and where that cannot hold, a sentence that says so."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from excite.console import Display
from excite.data import EvalLoader, TrainLoader, open_data
from excite.errors import ExciteError
from excite.files import sha256_of
from excite.ops.sync_norm import SyncBatchNorm, convert_sync_batchnorm
from excite.runtime.device import make_accelerator, one_thread
from excite.training.evaluation import _mean_loss
from excite.training.loop import train
from excite.training.setup import Run, set_up
from excite.training.shards import Shards, count_shards, draws, obstacle
from excite.training.step import train_step
from excite.training.stop import Interrupted
from excite.weights.locate import saved_steps, step_folder
from tests.training.jobs import run_job
from tests.training.small import small

SAME = ("train.deterministic=true", "train.device=cpu", "limit_train=96", "epochs=1")
#: (Threads, processes).
LAYOUTS = ((1, 1), (2, 1), (1, 2))


def trained(words: tuple[str, ...], out: str, threads: int, until: int | None = None) -> None:
    torch.set_num_threads(threads)
    try:
        train(small(*words), run_dir=out, quiet=True, until=until)
    except Interrupted:
        assert until is not None


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of what a run gives; equal weights but another header would be another digest, too."""
    last = step_folder(run, saved_steps(run)[-1])
    return {
        p.name if p.parent == run else f"last {p.name}": sha256_of(p)
        for p in (run / "model.safetensors", *last.glob("*.safetensors"), last / "state.pt")
    }


def results_of_layouts(words: tuple[str, ...], folder: Path, layouts=LAYOUTS) -> list[dict[str, str]]:
    found = []
    for threads, world in layouts:
        out = folder / f"{world}-processes-{threads}-threads"
        run_job(trained, world, words, str(out), threads)
        found.append(digests(out))
    return found


@pytest.mark.heavy
def test_weights_moving_average_and_state_are_the_same_files_on_any_layout(tmp_path):
    first, *others = results_of_layouts(SAME, tmp_path)
    assert len(first) == 4
    for other in others:
        assert other == first


@pytest.mark.heavy
def test_a_run_that_is_resumed_on_another_layout_is_the_same(tmp_path):
    words = (*SAME, "checkpoint.every_steps=1")
    run_job(trained, 1, words, str(tmp_path / "one"), 2)
    run_job(trained, 2, words, str(tmp_path / "other"), 1, 2)  # stopped after two of three steps
    assert saved_steps(tmp_path / "other")[-1] == 2
    run_job(trained, 1, words, str(tmp_path / "other"), 1)
    assert digests(tmp_path / "other") == digests(tmp_path / "one")


@pytest.mark.heavy
def test_without_it_layouts_differ(tmp_path):
    """Else the tests above would prove nothing."""
    words = ("train.device=cpu", "limit_train=96", "epochs=1", "sync_bn=true")
    one, two = results_of_layouts(words, tmp_path, ((1, 1), (1, 2)))
    assert one["model.safetensors"] != two["model.safetensors"]


FOLDER = ("data.source=folder", "limit_train=", "limit_val=", "in_chans=3", "image_size=24", "crop=random_resized")
VARIANTS = {
    "more of both": ("train.shards=8",),
    "bf16": ("train.precision=bf16",),
    "fp16": ("train.precision=fp16",),
    "accumulation and clipping": ("grad_accumulation=2", "optimizer.clip_grad_norm=1.0"),
    "lamb, CutMix": ("optimizer.name=lamb", "augment.cutmix=1.0"),
    "fewer images than a batch": ("limit_train=29",),
    "a batch of 20": ("batch_size=20",),
    "crops of arrays": ("crop=random_resized", "augment.repeats=2"),
    "gather-excite": ("model.name=cifar_geresnet20_theta_plus",),
    "no fused operators": ("model.fused=off", "train.channels_last=false"),
    "frozen norms": ("train.freeze=[conv1, norms]",),
    "gradient checkpointing": ("grad_checkpointing=true", "model.drop_rate=0", "model.drop_path_rate=0"),
    "sixteen shards": ("train.shards=16",),
    "files": (*FOLDER, "data.workers=0"),
    "files, workers": (*FOLDER, "data.workers=2", "augment.rand_augment={n: 2, m: 9}", "augment.rotation=0"),
    "rare classes": (*FOLDER, "data.workers=1", "data.sampler=sqrt", "class_weights=[1, 2, 4]", "eval.metric=auroc"),
    "several labels": (*FOLDER, "data.source=table", "task=multilabel", "loss=asymmetric", "augment.cutmix=1.0"),
    "SE-ResNet-18": (*FOLDER, "data.workers=1", "model.name=seresnet18"),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder, noise = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for label, fewer in zip("abc", (0, 8, 15), strict=True):
        for part, count in (("train", 30 - fewer), ("val", 9)):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")
    images = sorted(folder.rglob("*.png"))
    rows = [f"{p.relative_to(folder)},{p.parent.name}{'|a' * (i % 2)},{p.parts[-3]}" for i, p in enumerate(images)]
    (folder / "labels.csv").write_text("\n".join(["path,label,part", *rows]) + "\n")
    return folder


#: Those that CI trains; `make test-slow` has all.
OFTEN = (
    "more of both",
    "bf16",
    "accumulation and clipping",
    "crops of arrays",
    "gather-excite",
    "files, workers",
    "rare classes",
)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.variation) for name in VARIANTS]
)
def test_every_kind_of_training_is_the_same_on_any_layout(name, photographs, tmp_path):
    words = (*SAME, *VARIANTS[name])
    if VARIANTS[name][: len(FOLDER)] == FOLDER:
        root = photographs / "labels.csv" if "data.source=table" in words else photographs
        words = (*words, f"data.root={root}")
    layouts = ((8, 1), (1, 4), (2, 2), (1, 8)) if name == "more of both" else LAYOUTS
    first, *others = results_of_layouts(words, tmp_path, layouts)
    for other in others:
        assert other == first


@pytest.mark.heavy
def test_the_number_of_workers_changes_no_weight(photographs, tmp_path):
    found = []
    for workers in (0, 1, 3):  # the recipe in the header of model.safetensors differs
        words = (*SAME, *FOLDER, f"data.root={photographs}", f"data.workers={workers}")
        run_job(trained, 1, words, str(tmp_path / str(workers)), 1)
        found.append(digests(tmp_path / str(workers))["last state.pt"])
    assert len(set(found)) == 1


# --- what is computed -------------------------------------------------------------------------------------------------

#: Nothing is random, so a step is a function of the images alone.
CALM = ("mixup=0", "rotation=0", "random_erasing=0", "crop=none", "hflip=0", "drop_rate=0", "drop_path_rate=0")


def made(*words: str) -> Run:
    return set_up(small("train.device=cpu", *CALM, *words), Display(quiet=True), make_accelerator("cpu"))


@pytest.mark.parametrize("words", [(), ("grad_accumulation=2",), ("model.fused=off",)])
def test_shards_compute_what_the_whole_batch_gives(words):
    """Norms over the whole batch, the mean of the loss, all gradients; only rounding differs."""
    runs = [made(*words, *more) for more in ((), ("deterministic=true", "shards=8"))]
    for run in runs:
        run.net.train()
    images, labels = next(runs[0].train_loader.epoch(0))
    (loss, right), (loss8, right8) = (train_step(run, images, labels) for run in runs)
    assert float(right8) == float(right)
    torch.testing.assert_close(loss8, loss, rtol=1e-5, atol=0)
    other = runs[1].model.state_dict()
    for name, values in runs[0].model.state_dict().items():
        torch.testing.assert_close(
            other[name], values, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert runs[1].shards is not None
    assert sum(isinstance(m, SyncBatchNorm) for m in runs[1].model.modules()) == 19


class Odd(nn.Module):
    """A network with an unused layer, which draws numbers or leaves out a norm, as told."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.bn = nn.BatchNorm2d(3)
        self.fc, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != "skips" or float(x.mean()) > 0:
            x = self.bn(x)
        x = x.mean((2, 3))
        if self.kind == "dropout":
            x = F.dropout(x, 0.5, self.training)
        if self.kind == "rand_like":
            x = x * torch.rand_like(x)
        return self.fc(x)


def shards_of(kind: str, count: int = 4) -> tuple[Shards, nn.Module]:
    model = convert_sync_batchnorm(Odd(kind).train(), native=False)
    return Shards(model, count, Accelerator(cpu=True), random=kind in ("dropout", "rand_like")), model


def states(count: int) -> list[Tensor]:
    return [torch.Generator().manual_seed(i).get_state() for i in range(count)]


def backward_of(shards: Shards, x: Tensor) -> Tensor:
    parts = shards.cut(x)

    def work(net: nn.Module, index: int) -> Tensor:
        loss = net(parts[index]).square().mean() / shards.count
        loss.backward()
        return loss.detach()[None]

    with one_thread():
        return shards.backward(work, states(shards.count))


def test_gradients_and_numbers_are_sums_and_an_unused_parameter_has_none():
    torch.manual_seed(0)
    shards, model = shards_of("plain")
    x = torch.randn(16, 3, 5, 5)
    total = backward_of(shards, x)
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert grads["unused.weight"] is None
    plain = Odd("plain").train()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "running" not in k and "num" not in k}, strict=False
    )
    loss = plain(x).square().mean()
    loss.backward()
    torch.testing.assert_close(total[0], loss.detach())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.bn.running_var, plain.bn.running_var)


def test_dropout_depends_on_the_shard_alone():
    torch.manual_seed(0)
    shards, model = shards_of("dropout")
    x = torch.randn(16, 3, 5, 5)
    first = backward_of(shards, x)
    weights = model.fc.weight.grad.clone()
    shards._threads, before = 1, torch.get_rng_state()
    model.zero_grad(set_to_none=True)
    assert torch.equal(backward_of(shards, x), first)
    assert torch.equal(model.fc.weight.grad, weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_drawn_behind_its_back_end_the_run():
    shards, _ = shards_of("rand_like")
    if "generator" in torch.ops.aten.rand_like.overloads():  # newer versions of PyTorch let us give it one
        backward_of(shards, torch.randn(8, 3, 4, 4))
        return
    with pytest.raises(ExciteError, match=r"train\.deterministic: the network drew random numbers"):
        backward_of(shards, torch.randn(8, 3, 4, 4))


def test_an_error_in_one_shard_is_raised_and_the_others_do_not_wait():
    shards, model = shards_of("plain")
    parts = shards.cut(torch.randn(8, 3, 4, 4))

    def work(net: nn.Module, index: int) -> Tensor:
        if index == 2:
            raise ValueError("shard 2")
        return net(parts[index]).sum().detach()[None]

    with pytest.raises(ValueError, match="shard 2"):
        shards.backward(work, states(4))
    model.zero_grad()
    assert torch.isfinite(backward_of(shards, torch.randn(8, 3, 4, 4))).all()  # it can go on


def test_shards_that_leave_out_norms_are_not_waited_for():
    shards, _ = shards_of("skips")
    x = torch.ones(8, 3, 4, 4)
    x[3::4] = -1
    with pytest.raises(ExciteError, match="did not all run the same norms"):
        backward_of(shards, x)


def test_threads_that_the_system_refuses_are_one_sentence(monkeypatch):
    shards, _ = shards_of("plain")
    real, started = threading.Thread.start, []

    def start(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ExciteError, match="the system refused to start 4 threads"):
        backward_of(shards, torch.randn(8, 3, 4, 4))
    for thread in started:
        thread.join()


def test_whether_a_network_draws_is_found_out_without_a_trace():
    drawing, plain, before = Odd("dropout"), Odd("plain"), torch.get_rng_state()
    assert draws(drawing, (3, 4, 4))
    assert not draws(plain, (3, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_what_is_promised_is_said():
    run = made("deterministic=true")
    promise = "the same weights with any number of threads and workers, and 1, 2, 4 processes (steps in 4 shards)"
    assert f"deterministic: {promise}" in run.notes
    assert not any("deterministic" in note for note in made().notes)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train.compile=default",), "train.compile=default chooses the order of sums"),
        (
            ("norm_precision=same", "precision=bf16"),
            "train.norm_precision=same cannot be computed over several parts of a batch",
        ),
        (("grad_checkpointing=true", "drop_rate=0.1"), "train.grad_checkpointing computes dropout twice"),
    ],
)
def test_where_it_cannot_hold_that_is_said(words, sentence):
    run = made("deterministic=true", *words)
    assert run.shards is None
    assert (
        f"deterministic: other numbers of processes or threads may give other weights, because {sentence}" in run.notes
    )


class WithActivation(nn.BatchNorm2d):
    """Like timm's norms."""


def test_obstacles_that_need_other_networks_or_more_processes():
    recipe, image = small("deterministic=true"), (3, 4, 4)
    norms = nn.Sequential(WithActivation(3))
    assert (
        obstacle(recipe, norms, 1, image)
        == "norms of type WithActivation cannot be computed over several parts of a batch"
    )
    assert obstacle(small("deterministic=true", "shards=1"), norms, 1, image) is None
    assert obstacle(recipe, Odd("dropout"), 3, image) == "there are 3 processes, not 1, 2, 4 (train.shards=4)"
    assert obstacle(recipe, Odd("dropout"), 4, image) is None


def test_the_number_of_shards_only_depends_on_the_recipe():
    sizes = {32: 4, 20: 4, 6: 2, 25: 1}
    assert {size: count_shards(small(f"batch_size={size}")) for size in sizes} == sizes
    assert count_shards(small("grad_accumulation=16")) == 2
    assert count_shards(small("shards=16")) == 16
    with pytest.raises(ExciteError, match="must be a power of 2"):
        small("train.shards=6")
    with pytest.raises(ExciteError, match=r"train.batch_size \(20\) must be a multiple of train.shards \(8\)"):
        small("train.shards=8", "batch_size=20")


# --- loaders ----------------------------------------------------------------------------------------------------------


def test_a_rank_that_stands_for_several_has_their_images():
    recipe = small("crop=random_resized", "limit_train=45", "data.image_size=12")
    images = open_data(recipe.data, recipe.augment).train

    def loader(rank: int, world: int, shards: int | None) -> TrainLoader:
        own = {"seed": 3, "device": "cpu", "augment": recipe.augment, "data_config": recipe.data}
        return TrainLoader(images, batch_size=16 // world, rank=rank, world=world, shards=shards, **own)

    whole = list(loader(0, 1, 4).epoch(1))
    assert len(whole) == 2
    for rank in range(4):
        for (pixels, labels), (own, true) in zip(whole, loader(rank, 4, 1).epoch(1), strict=True):
            assert torch.equal(pixels[rank::4], own)
            assert torch.equal(labels[rank::4], true)


def test_by_batch_every_job_has_the_same_batches():
    recipe = small("limit_val=50")
    images = open_data(recipe.data, recipe.augment).val
    own = {"batch_size": 8, "device": "cpu", "data_config": recipe.data, "by_batch": True}
    one = [tuple(index.tolist()) for _, _, index in EvalLoader(images, **own)]
    three = [tuple(i.tolist()) for rank in range(3) for _, _, i in EvalLoader(images, rank=rank, world=3, **own)]
    assert sorted(three) == one
    assert [i for batch in one for i in batch] == list(range(50))


def test_losses_are_added_in_the_order_of_the_data():
    rows = [torch.tensor([i, loss, 1.0], dtype=torch.float64) for i, loss in ((2, 1e16), (0, 1.0), (1, -1e16))]
    assert _mean_loss(rows) == (1.0 - 1e16 + 1e16) / 3
    assert _mean_loss([]) != _mean_loss([])  # NaN
