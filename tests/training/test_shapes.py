"""Networks for images that are not square: trained, resumed, measured, exported and asked, all with the same pixels."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from excite.data.resize import PADDING
from excite.errors import ExciteError
from excite.export import export, sessions
from excite.recipe import Recipe
from excite.trained.opened import open_trained
from excite.trained.predictor import load
from excite.training import train
from excite.training.results import Results
from excite.training.stop import Interrupted
from excite.weights.own import read_own
from tests.training.small import same, small, tensors

#: Height x width, also of the gates' kernels: theta_plus with global extent has one for each map.
SIZE = (10, 18)


@pytest.fixture
def bands(tmp_path) -> Path:
    """Five bands of 12 bits in files of 16; the class is the band that is brightest."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("red", "infrared")):
        (tmp_path / "bands" / name).mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 2000, (int(rng.integers(8, 20)), int(rng.integers(8, 20)), 5), dtype=np.uint16)
            pixels[..., 4 * number] += 2000
            options = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib" if i % 2 else None}
            tifffile.imwrite(tmp_path / "bands" / name / f"{i}.tif", pixels, **options)
    return tmp_path / "bands"


@pytest.fixture
def wide(tmp_path) -> Path:
    """Images of many shapes, none of them the wanted one; the class is the brighter half."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("left", "right")):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for i in range(16):
            height, width = int(rng.integers(5, 30)), int(rng.integers(6, 60))
            pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
            pixels[:, slice(0, width // 2) if number == 0 else slice(width // 2, None)] += 100
            Image.fromarray(pixels).save(tmp_path / "wide" / name / f"{i}.png")
    return tmp_path / "wide"


def recipe_for(root: Path, *words: str) -> Recipe:
    """Gates with kernels, every augmentation of the small recipe."""
    return small(
        "data.source=folder",
        f"data.root={root}",
        f"data.image_size=[{SIZE[0]}, {SIZE[1]}]",
        "data.fit=letterbox",
        "data.in_chans=3",
        "data.val_fraction=0.5",
        "data.limit_train=null",
        "data.limit_val=null",
        "model.name=cifar_geresnet20_theta_plus",
        "augment.cutmix=0.5",
        "augment.cutout=3",
        "train.batch_size=8",
        "train.epochs=2",
        *words,
    )


def trained(root: Path, out: Path, *words: str, **how: object) -> Results:
    return train(recipe_for(root, *words), out=out, quiet=True, **how)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_letterboxed_run_is_resumed_bit_for_bit(wide, tmp_path, mode):
    words = (f"data.mode={mode}", "data.workers=0")
    whole = trained(wide, tmp_path / "whole", *words)
    with pytest.raises(Interrupted):
        trained(wide, tmp_path / "begun", *words, until=3)
    (begun,) = (tmp_path / "begun").iterdir()
    resumed = train(None, resume=begun, quiet=True)
    assert same(tensors(whole["run"]), tensors(resumed["run"]))


@pytest.mark.heavy
def test_a_letterboxed_network_sees_the_same_pixels_everywhere(wide, tmp_path, monkeypatch):
    whole = trained(wide, tmp_path, "train.epochs=1")
    assert whole["resolution"] == "10x18"
    header = read_own(Path(whole["run"]) / "model.safetensors").meta["preprocessing"]
    assert (header["image_size"], header["fit"]) == ([10, 18], "letterbox")
    opened = open_trained(whole["run"])
    assert opened.evaluate().top1 == whole["top1"]

    predictor = load(whole["run"])
    files = sorted(str(path) for path in wide.rglob("*.png"))
    pixels = torch.stack([predictor.preprocessing.load(path) for path in files])
    assert pixels.shape[1:] == (3, *SIZE)
    tall = pixels[[min(Image.open(path).size) == Image.open(path).width for path in files]]
    assert (tall[..., 0] == PADDING).all()  # a tall image has grey on its sides
    logits = predictor.logits(pixels).numpy()

    monkeypatch.setattr("excite.export.verify.TIMING_SECONDS", 0.0)
    artefact = tmp_path / "wide.onnx"
    export(whole["run"], "onnx", out=artefact)
    run = sessions.open_in("onnxruntime", artefact, 1)
    found = np.concatenate([run(np.asarray(Image.open(path))[None]) for path in files])
    np.testing.assert_allclose(found, logits, atol=1e-3 * max(1.0, np.abs(logits).max()))
    answers = [answer.top[0][0] for answer in predictor(files)]
    assert answers == [predictor.classes[k] for k in found.argmax(1)]


def test_another_size_and_fit_start_from_a_run_and_are_said(wide, tmp_path):
    source = trained(wide, tmp_path / "source", "train.epochs=1", "model.name=cifar_seresnet20")["run"]
    words = ("train.epochs=1", "model.name=cifar_seresnet20", f"init_from={source}", "data.fit=stretch")
    run = trained(wide, tmp_path, *words, "data.image_size=[12, 9]")["run"]
    said = (Path(run) / "log.txt").read_text()
    assert (
        "the network was trained with data.fit=letterbox, data.image_size=[10, 18]; this recipe has stretch, [12, 9]"
        in said
    )
    assert '"data.fit=letterbox" "data.image_size=[10, 18]"' in said


def test_what_a_fit_does_not_use_is_said_and_what_it_contradicts_is_refused(wide, tmp_path):
    with pytest.raises(ExciteError, match=r"data.fit=letterbox pads images, but augment.crop=random_resized trains on"):
        trained(wide, tmp_path, "augment.crop=random_resized")
    words = ("augment.crop=random_resized", "data.fit=stretch", "data.crop_pct=0.9", "train.epochs=1")
    run = trained(wide, tmp_path, *words)["run"]
    said = (Path(run) / "log.txt").read_text()
    assert "data.crop_pct=0.9 is not used: data.fit=stretch crops nothing" in said
    assert "data.fit=stretch is for evaluation: augment.crop=random_resized cuts parts out of the images" in said


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_five_bands_of_16_bits_are_resumed_bit_for_bit(bands, tmp_path, mode):
    words = ("data.in_chans=5", f"data.mode={mode}", "data.workers=0", "data.image_size=10", "data.fit=crop")
    whole = trained(bands, tmp_path / "whole", *words)
    with pytest.raises(Interrupted):
        trained(bands, tmp_path / "begun", *words, until=3)
    (begun,) = (tmp_path / "begun").iterdir()
    resumed = train(None, resume=begun, quiet=True)
    assert same(tensors(whole["run"]), tensors(resumed["run"]))


@pytest.mark.heavy
def test_five_bands_of_16_bits_are_the_same_numbers_everywhere(bands, tmp_path, monkeypatch):
    words = ("train.epochs=1", "model.name=cifar_seresnet20", "data.in_chans=5", "data.image_size=[9, 12]")
    run = trained(bands, tmp_path, *words)
    said = (Path(run["run"]) / "log.txt").read_text()
    assert "5 x 9 x 12 (letterbox)" in said
    assert "using 4095 as white" in said
    meta = read_own(Path(run["run"]) / "model.safetensors").meta["preprocessing"]
    assert (meta["in_chans"], len(meta["mean"]), meta["white"]) == (5, 5, 4095)
    assert open_trained(run["run"]).evaluate().top1 == run["top1"]

    predictor = load(run["run"])
    files = sorted(str(path) for path in bands.rglob("*.tif"))
    logits = predictor.logits(torch.stack([predictor.preprocessing.load(path) for path in files])).numpy()
    arrays = [tifffile.imread(path) for path in files]
    assert [a.top for a in predictor(arrays)] == [a.top for a in predictor(files)]

    monkeypatch.setattr("excite.export.verify.TIMING_SECONDS", 0.0)
    artefact = tmp_path / "bands.onnx"
    export(run["run"], "onnx", out=artefact)
    session = sessions.open_in("onnxruntime", artefact, 1)
    eight = [np.floor(np.minimum(pixels, 4095) * (255 / 4095) + 0.5).astype(np.uint8) for pixels in arrays]
    found = np.concatenate([session(pixels[None]) for pixels in eight])
    np.testing.assert_allclose(found, logits, atol=1e-3 * max(1.0, np.abs(logits).max()))


def test_a_network_for_colours_starts_one_for_bands(bands, wide, tmp_path):
    words = ("train.epochs=1", "model.name=cifar_seresnet20", "data.image_size=10", "data.fit=crop")
    source = trained(wide, tmp_path / "source", *words)["run"]
    run = trained(bands, tmp_path, *words, "data.in_chans=5", f"init_from={source}", "optimizer.lr=1e-12")["run"]
    assert "conv1.weight is repeated for images of 5 channels, multiplied by 3/5" in (Path(run) / "log.txt").read_text()
    colours = read_own(Path(source) / "model.safetensors").tensors["conv1.weight"]
    five = tensors(run)["conv1.weight"]
    torch.testing.assert_close(five, torch.cat([colours] * 2, 1)[:, :5] * 3 / 5)
    said = read_own(Path(run) / "model.safetensors").meta["preprocessing"]
    assert len(said["mean"]) == 5  # of these images: three channels say nothing about five
