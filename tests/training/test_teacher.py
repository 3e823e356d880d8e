"""Knowledge distillation: the loss, what the teacher sees, and that runs with a teacher are exact."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import excite
from excite.console import Display
from excite.data.preprocessing import normalize
from excite.errors import ExciteError
from excite.recipe import as_yaml
from excite.runtime.device import make_accelerator
from excite.training.loop import train
from excite.training.loss import ByClass, distillation, label_loss, training_loss
from excite.training.setup import set_up
from excite.training.stop import Interrupted
from excite.weights.own import read_own, save_weights
from tests.training.jobs import run_job
from tests.training.small import CLASSES, metrics, same, small, tensors
from tests.training.test_layouts import digests, results_of_layouts, trained

NAMES = f"data.class_names={as_yaml(CLASSES)}"
SHORT = ("train.device=cpu", "limit_train=96", "epochs=1", NAMES)


def with_teacher(source: Path, *words: str):
    return small(*SHORT, f"train.teacher={source}", *words)


def opened(source: Path, *words: str):
    recipe = with_teacher(source, *words)
    return set_up(recipe, Display(quiet=True), make_accelerator("cpu")).teacher


@pytest.fixture(scope="module")
def reversed_teacher(tiny, tmp_path_factory) -> Path:
    """The same network, its classes in the opposite order."""
    found = read_own(tiny.gated)
    found.tensors |= {k: v.flip(0) for k, v in found.tensors.items() if k.startswith("fc.")}
    path = tmp_path_factory.mktemp("reversed") / "model.safetensors"
    save_weights(path, found.tensors, {**found.meta, "classes": found.meta["classes"][::-1]})
    return path


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_divergence_at_a_temperature_times_its_square():
    generator = torch.Generator().manual_seed(0)
    mine, theirs = 3 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    mine.requires_grad_()
    for t in (1.0, 4.0):
        wanted = F.kl_div(F.log_softmax(mine / t, 1), F.softmax(theirs / t, 1), reduction="batchmean") * t * t
        found = distillation(mine, theirs, t)
        torch.testing.assert_close(found, wanted)
        grad = torch.autograd.grad(found, mine)[0]  # Hinton et al., equation 2, times T^2
        torch.testing.assert_close(grad, t * ((mine / t).softmax(1) - (theirs / t).softmax(1)) / 5)
        both = torch.stack([theirs, -theirs], -1).div(2 * t).softmax(-1)  # yes and no of each class
        answers = F.log_softmax(torch.stack([mine, -mine], -1) / (2 * t), -1)
        wanted = F.kl_div(answers, both, reduction="none").sum(-1).mean() * t * t
        torch.testing.assert_close(distillation(mine, theirs, t, several=True), wanted)
        for several in (False, True):
            assert float(distillation(theirs, theirs, t, several)) == pytest.approx(0, abs=1e-12)
    for several in (False, True):
        assert distillation(torch.tensor([[200.0, -200]]), torch.tensor([[-200.0, 200]]), 1.0, several).isfinite()


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal"])
def test_labels_have_the_rest_of_the_loss(loss):
    generator = torch.Generator().manual_seed(1)
    mine, theirs = torch.randn(2, 4, 3, generator=generator)
    labels, terms = torch.tensor([0, 2, 1, 1]), ByClass(torch.tensor([1.0, 2, 0.5]))
    config = with_teacher(Path("x"), f"train.loss={loss}", "distill_weight=0.3", "distill_temperature=2").train
    wanted = 0.7 * label_loss(mine, labels, config, terms) + 0.3 * distillation(mine, theirs, 2.0)
    torch.testing.assert_close(training_loss(mine, labels, config, terms, theirs), wanted)
    alone = config.model_copy(update={"distill_weight": 1.0})
    torch.testing.assert_close(training_loss(mine, labels, alone, terms, theirs), distillation(mine, theirs, 2.0))


# --- the teacher ------------------------------------------------------------------------------------------------------


def test_the_teacher_answers_as_ever_for_the_images_of_the_run(tiny, reversed_teacher):
    """Its own mean and standard deviation, its own size, the classes of the run."""
    pixels = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = excite.load(tiny.gated, "cpu")
    other = ("data.mean=[0.1]", "data.std=[0.7]")
    for source, words, said in (
        (tiny.gated, other, "normalised anew"),
        (reversed_teacher, other, "its answers were reordered"),
        (tiny.gated, (f"data.mean={list(plain.preprocessing.mean)}", f"data.std={list(plain.preprocessing.std)}"), ""),
    ):
        teacher = opened(source, *words)
        mean, std = ([0.1], [0.7]) if words == other else (plain.preprocessing.mean, plain.preprocessing.std)
        found = teacher.logits(normalize(pixels, mean, std))
        torch.testing.assert_close(found, plain.logits(pixels), rtol=1e-4, atol=1e-4)
        assert said in teacher.notes[0]
        assert ("normalised anew" in teacher.notes[0]) == (words == other)
        assert not found.requires_grad
    assert opened(tiny.gated).digest != opened(reversed_teacher).digest == opened(reversed_teacher).digest
    larger = opened(tiny.gated, "image_size=16", *other)
    assert "resized from 16x16 to 8x8" in larger.notes[0]
    even = torch.full((2, 1, 16, 16), 0.3)
    torch.testing.assert_close(larger.logits(even), opened(tiny.gated, *other).logits(even[:, :, :8, :8]))


def test_other_teachers_are_refused_in_a_sentence(tiny, tmp_path):
    with pytest.raises(ExciteError, match=r"has other classes \(10: .*\) than the data \(10: 0, .*\); give a"):
        opened(tiny.gated, "data.class_names=null")
    with pytest.raises(ExciteError, match=r"sees images of 1 channels, but data.in_chans=3: give data.in_chans=1"):
        opened(tiny.gated, "in_chans=3")
    with pytest.raises(ExciteError, match=r"was trained with train.logit_adjustment=0, so its answers contradict"):
        opened(tiny.gated, "logit_adjustment=1", "train.label_smoothing=0")
    with pytest.raises(ExciteError, match=r"train.distill_weight=0.9 needs a teacher: give train.teacher=RUN"):
        small("train.distill_weight=0.9")
    with pytest.raises(ExciteError, match="nowhere"):
        opened(tmp_path / "nowhere")


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_run_with_a_teacher_is_the_same_on_any_layout_and_resumed(tiny, tmp_path):
    words = ("train.deterministic=true", *SHORT, f"train.teacher={tiny.bare}", "checkpoint.every_steps=1")
    first, *others = results_of_layouts(words, tmp_path)
    assert others == [first, first]
    run_job(trained, 2, words, str(tmp_path / "stopped"), 1, 2)
    run_job(trained, 1, words, str(tmp_path / "stopped"), 1)
    assert digests(tmp_path / "stopped") == first
    run_job(trained, 1, words[:-2], str(tmp_path / "alone"), 1)
    assert digests(tmp_path / "alone")["model.safetensors"] != first["model.safetensors"]


def test_a_resumed_run_has_the_same_teacher_or_says_so(tiny, reversed_teacher, tmp_path):
    teacher, moved, run = tmp_path / "teacher", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(tiny.bare, teacher)
    with pytest.raises(Interrupted):
        train(with_teacher(teacher), run_dir=run, quiet=True, until=2)
    assert "M parameters, computed in each step" in (run / "log.txt").read_text()
    shutil.copytree(run, tmp_path / "moving")
    shutil.copy(reversed_teacher, teacher / "model.safetensors")
    with pytest.raises(ExciteError, match=r"cannot be resumed: its teacher .* has changed since it was started; bring"):
        train(resume=run, quiet=True)
    shutil.copytree(tiny.bare, moved)
    train(resume=tmp_path / "moving", overrides=[f"train.teacher={moved}"], quiet=True)
    assert "different run" not in (tmp_path / "moving" / "log.txt").read_text()
    train(with_teacher(moved), run_dir=tmp_path / "whole", quiet=True)
    assert same(tensors(tmp_path / "moving"), tensors(tmp_path / "whole"))
    assert [r["loss"] for r in metrics(tmp_path / "moving")] == [r["loss"] for r in metrics(tmp_path / "whole")]
    train(resume=run, overrides=[f"train.teacher={reversed_teacher}"], quiet=True)
    assert "different run" in (run / "log.txt").read_text()
