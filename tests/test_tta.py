"""Test-time augmentation: the views, their mean, and where it is used and said."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import excite
from excite.data import ArrayImages, DataConfig, EvalLoader, open_data
from excite.data.resize import eval_transform
from excite.data.views import WEIGHTS, centre, combined, margin_size, views, with_margin
from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.trained.images import measuring_loader
from excite.trained.opened import open_trained
from excite.training.evaluation import Evaluation


@pytest.fixture(scope="module")
def run(tiny):
    return tiny.gated


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """One that is larger than the network's 8 x 8 pixels, one that has them, and a wide one."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, shape in enumerate([(32, 32), (8, 8), (16, 40)]):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def mirrored(image: torch.Tensor, down: tuple[int, int], across: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), down, across], mode="reflect"))


def test_the_views_of_images_with_and_without_a_margin():
    images = torch.arange(2 * 3 * 18 * 27, dtype=torch.int32).remainder(251).to(torch.uint8).view(2, 3, 18, 27)
    same, mirror = views(images, "flip", (18, 27))
    assert torch.equal(same, images)
    assert torch.equal(mirror[:, :, :, 0], images[:, :, :, -1])
    found = views(images, "five", (16, 24))
    wanted = [(1, 2), (0, 0), (0, 3), (2, 0), (2, 3)]  # round(3 / 2) = 2, as in every centre crop
    assert all(torch.equal(v, images[:, :, t : t + 16, x : x + 24]) for v, (t, x) in zip(found, wanted, strict=True))
    plain = images[:, :, :16, :24]  # 18 x 27 with a margin
    wide = mirrored(plain, (1, 1), (2, 1))
    assert margin_size((16, 24)) == wide.shape[2:] == (18, 27)
    assert all(
        torch.equal(v, wide[:, :, t : t + 16, x : x + 24])
        for v, (t, x) in zip(views(plain, "five", (16, 24)), wanted, strict=True)
    )
    assert torch.equal(views(plain, "five", (16, 24))[0], plain)
    with pytest.raises(ExciteError, match="at least 7 x 7 pixels, not 6x6; use tta=flip"):
        views(images[:, :, :6, :6], "five", (6, 6))


def test_moved_views_and_what_they_count():
    images = torch.arange(2 * 3 * 70 * 9).remainder(251).to(torch.uint8).view(2, 3, 70, 9)
    wide = mirrored(images, (2, 2), (1, 1))  # 70 / 32 is 2, and at least a pixel
    seen = views(images, "shift", (70, 9))
    wanted = [images, wide[:, :, 4:, 2:], wide[:, :, :-4, :-2]]
    assert all(torch.equal(seen[2 * i], each) for i, each in enumerate(wanted))
    assert all(torch.equal(seen[2 * i + 1], each.flip(3)) for i, each in enumerate(wanted))
    assert torch.equal(views(images[:, :, :1, :1], "shift", (1, 1))[2], images[:, :, :1, :1])
    logits = [torch.randn(5, 4) for _ in range(6)]
    for several, chance in ((False, lambda x: x.softmax(1)), (True, torch.sigmoid)):
        mean = 0.25 * sum(map(chance, logits[:2])) + 0.125 * sum(map(chance, logits[2:]))
        assert torch.allclose(chance(combined(logits, several, WEIGHTS["shift"])), mean, atol=1e-6)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(64, 96), (24, 32), (7, 90)], ids=str)
def test_the_centre_of_an_image_with_its_margin_is_what_evaluation_sees(fit, crop_pct, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image, size = Image.fromarray(pixels), (24, 32)
    wide = with_margin(image, size, crop_pct, "bicubic", fit)
    assert wide.shape == (*margin_size(size, crop_pct, fit), 3)
    seen = centre(torch.from_numpy(wide).permute(2, 0, 1), size).permute(1, 2, 0).numpy()
    plain = eval_transform(image, size, crop_pct, "bicubic", fit)
    assert np.array_equal(seen, plain)


def test_probabilities_are_averaged_and_not_logits():
    logits = [
        torch.tensor([[9.0, 0, 0], [1, 2, 3], [80, -80, 0]]),
        torch.tensor([[0.0, 5, 0], [3, 2, 1], [-80, 80, 0]]),
    ]
    exact = [each.double() for each in logits]
    assert torch.allclose(combined(logits, False).double().exp(), (exact[0].softmax(1) + exact[1].softmax(1)) / 2)
    mean = (exact[0].sigmoid() + exact[1].sigmoid()) / 2
    assert torch.allclose(combined(logits, True).double(), mean.logit(), atol=1e-5)
    logits[1][1, 0] = torch.nan
    for several in (False, True):
        assert combined(logits, several).isfinite().all(1).tolist() == [True, False, True]


def test_validate_gives_the_accuracy_of_the_mean_probabilities_whatever_the_batch_size(run):
    for tta in ("flip", "five", "shift"):
        predictor, found = excite.validate(run, device="cpu", tta=tta, batch_size=7)
        _, other = excite.validate(run, device="cpu", tta=tta)
        assert isinstance(found, Evaluation)
        assert found.confusion == other.confusion
        assert found.loss == pytest.approx(other.loss, rel=1e-6)
        opened = open_trained(run, device="cpu", precision="fp32")
        shares, labels = [], []
        for images, true, _ in opened.batches():
            seen = [opened.predictor.logits(v).double().softmax(1) for v in views(images, tta, (8, 8))]
            if tta == "shift":  # what is not moved counts twice
                seen = [*seen[:2], *seen]
            shares.append(torch.stack(seen).mean(0))
            labels.append(true)
        share, label = torch.cat(shares), torch.cat(labels)
        assert found.loss == pytest.approx(torch.nn.functional.nll_loss(share.log(), label).item(), rel=1e-4)
        assert found.top1 == pytest.approx(100 * (share.argmax(1) == label).double().mean().item())
        assert found.tta == predictor.tta == tta
        assert found.title.endswith(f"tta={tta}")
        assert f"tta={tta}" in found.notes[0]
    assert excite.validate(run, device="cpu").evaluation.tta is None


def test_predict_takes_the_views_out_of_the_whole_image(run, photos):
    plain, five = excite.load(run, "cpu"), excite.load(run, "cpu", tta="five")
    p = plain.preprocessing
    found = five(photos, top_k=10, batch_size=2)
    for path, each in zip(sorted(photos.iterdir()), found, strict=True):
        pixels = p.load(str(path), margin=True)
        assert pixels.shape == (1, 9, 9)
        seen = torch.cat([pixels[None, :, t : t + 8, x : x + 8] for t, x in [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1)]])
        mean = plain.logits(seen).softmax(1).mean(0)
        wanted = {name: float(mean[k]) for k, name in enumerate(plain.classes)}
        assert dict(each.top) == pytest.approx(wanted, rel=1e-4)
        assert each.pixels.shape == (8, 8, 1)
    same = excite.predict(run, photos, top_k=10, device="cpu", tta="five", fold=False)
    for mine, each in zip(same, found, strict=True):
        assert dict(mine.top) == pytest.approx(dict(each.top), rel=1e-4)


def test_files_come_with_their_margin_and_images_in_memory_as_they_are(photos, tmp_path):
    for i, path in enumerate(sorted(photos.iterdir())):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    words = ["data.source=folder", f"data.root={tmp_path}", "in_chans=1", "image_size=8", "data.mode=stream"]
    recipe = load_recipe("digits-seresnet20", [*words, "workers=0"])
    data = open_data(recipe.data, recipe.augment)
    shapes = {b[0].shape[1:] for b in measuring_loader(data, recipe, torch.device("cpu"), margin=True, train=True)}
    assert shapes == {(1, 9, 9)}
    arrays = ArrayImages(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    config = DataConfig(source="digits", image_size=8, in_chans=1)
    loader = EvalLoader(arrays, batch_size=2, device="cpu", data_config=config, margin=True)
    assert {b[0].shape[1:] for b in loader} == {(1, 8, 8)}


def test_the_commands_say_that_they_used_it(run, photos, capsys):
    from excite.cli import app

    app(["validate", str(run), "--tta", "flip", "--device", "cpu", "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert said["tta"] == "flip"
    assert said["notes"][0].startswith("test-time augmentation (tta=flip): the mean softmax probabilities of 2 views")
    app(["predict", str(run), str(photos), "--tta", "five", "--device", "cpu"], standalone_mode=False)
    said = capsys.readouterr()
    assert "mean softmax probabilities of 5 views" in said.out + said.err
    with pytest.raises(ExciteError, match=r"--tta is 'ten' \(allowed: flip, five, shift\)"):
        app(["validate", str(run), "--tta", "ten"], standalone_mode=False)
    with pytest.raises(ExciteError, match="tta is 'ten'"):
        excite.load(run, tta="ten")
