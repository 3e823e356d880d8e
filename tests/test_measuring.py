"""Which images a trained network is measured on, from end to end: three parts, other folders, other classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import excite
from excite.cli import app
from excite.errors import ExciteError
from excite.trained.classes import check_order
from excite.training import train
from excite.training.run_folder import read_metrics
from tests.training.small import small

CLASSES = ("cat", "dog", "owl")


def fill(root: Path, count: int, classes=CLASSES, first: int = 0) -> Path:
    """Noise whose mean tells the class: learnable in a few steps."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            rng = np.random.default_rng((CLASSES.index(name) if name in CLASSES else 9, first + i))
            pixels = rng.integers(60 * k, 60 * k + 100, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXCITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for first, (name, count) in enumerate((("train", 20), ("Valid", 6), ("test", 9))):
        fill(root / name, count, first=100 * first)
    return root


def recipe(root: Path, *overrides: str):
    folder = ["data.source=folder", f"data.root={root}", "data.limit_train=null", "data.limit_val=null"]
    return small(*folder, "epochs=2", "batch_size=16", *overrides)


@pytest.fixture(scope="module")
def results(photos, tmp_path_factory):
    return train(recipe(photos), out=tmp_path_factory.mktemp("runs"), quiet=True)


def test_the_test_part_is_measured_once_at_the_end(results):
    run = Path(results["run"])
    kinds = [record["kind"] for record in read_metrics(run / "metrics.jsonl")]
    assert kinds.count("test") == 1
    assert kinds[-1] == "test"
    assert (results["images"], results["test_images"]) == (18, 27)
    _, val = excite.validate(run, device="cpu")
    _, test = excite.validate(run, ["data.part=test"], device="cpu")
    assert (val.images, val.top1) == (18, results["top1"])
    assert (test.images, test.top1, test.measured) == (27, results["test_top1"], "test")
    assert "test images (measured once, with the weights of epoch " in (run / "log.txt").read_text()
    assert len((run / "validation_files.txt").read_text().splitlines()) == 18
    _, trained = excite.validate(run, ["data.part=train"], device="cpu")
    assert trained.images == 60
    assert any("the network was trained on 60 of these 60 images" in note for note in trained.notes)


def test_other_folders_are_measured_whole_and_classes_are_told_by_name(results, tmp_path):
    run = results["run"]
    _, flat = excite.validate(run, [f"data.root={fill(tmp_path / 'flat', 10, first=500)}"], device="cpu")
    assert (flat.images, flat.measured) == (30, "all")
    _, whole = excite.validate(run, ["data.root=" + str(fill(tmp_path / "some", 10, first=500))], device="cpu")
    fill(tmp_path / "few", 10, ("owl",), first=500)
    predictor, few = excite.validate(run, [f"data.root={tmp_path / 'few'}"], device="cpu")
    assert few.images == 10
    assert [sum(row) for row in few.confusion] == [0, 0, 10]  # numbered as the network numbers them
    assert predictor.classes == list(CLASSES)
    assert any("the data have 1 of the network's 3 classes; missing: cat, dog" in note for note in few.notes)
    assert whole.confusion == flat.confusion
    fill(tmp_path / "other" / "test", 4, ("dog", "owl", "owls"))
    with pytest.raises(ExciteError, match=r"does not know: owls; did you mean 'owl'"):
        excite.validate(run, [f"data.root={tmp_path / 'other'}"], device="cpu")


@pytest.mark.heavy
def test_commands_say_what_they_measure(results, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = results["run"]
    flat = fill(tmp_path / "flat", 4, first=900)

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert f"measured: all images of {flat}, 12 of 12 images" in said("validate", run, f"data.root={flat}")
    assert "measured: the test part, 27 of 27 images" in said("validate", run, "data.part=test")
    found = json.loads(CliRunner().invoke(app, ["validate", run, "data.part=test", "--json"]).stdout)
    assert (found["measured"], found["images"]) == ("test", 27)
    explained = ("--no-timing", "--ablation", "off", "--out", "explained")
    assert "27 of 27 images" in said("explain", run, "data.part=test", *explained)
    report = said("report", run, "data.part=test", "--quick", "--out", "test.html")
    assert "27 images (test)" in report
    page = (tmp_path / "test.html").read_text()
    assert "27 test images" in page
    assert "Measured: the test part, 27 of 27 images." in page
    pruned = said("prune", run, "data.part=test")
    assert "27 of 27 images" in pruned


def test_one_rule_for_broken_images(results, photos, tmp_path):
    run = results["run"]
    flat = fill(tmp_path / "flat", 4, first=900)
    broken = flat / "dog" / "001.png"
    broken.write_bytes(broken.read_bytes()[:70])
    for mode in ("memory", "stream"):
        words = [f"data.root={flat}", f"data.mode={mode}", "data.workers=0"]
        with pytest.raises(ExciteError, match=r"dog/001\.png.*skip them with data\.on_bad_val=skip"):
            excite.validate(run, words, device="cpu")
        _, found = excite.validate(run, [*words, "data.on_bad_val=skip"], device="cpu")
        assert found.images == 11
        assert any("1 images could not be read and were left out" in note for note in found.notes)


def test_orders_that_differ_are_asked_for():
    numbered = {"classes": ["0", "1", "2"], "converted_from": {"format": "timm"}}
    with pytest.raises(ExciteError, match=r"1, 10, 2 or 1, 2, 10.*data\.class_order=natural \(timm\)"):
        check_order(numbered, ["1", "10", "2"], None, "x.pth")
    check_order(numbered, ["1", "10", "2"], "natural", "x.pth")
    check_order(numbered, ["1", "2", "3"], None, "x.pth")
    check_order({"classes": ["1", "10", "2"]}, ["1", "10", "2"], None, "own.safetensors")


def test_test_images_alone_choose_nothing(tmp_path):
    for first, (name, count) in enumerate((("train", 12), ("test", 6))):
        fill(tmp_path / "photos" / name, count, first=100 * first)
    watched = train(recipe(tmp_path / "photos", "data.val_from=test"), out=tmp_path / "runs", quiet=True)
    assert watched["measured"] == "test"
    assert watched["best_epoch"] == 2  # the last one, whatever the numbers say
    assert watched["test_top1"] is None
    log = (Path(watched["run"]) / "log.txt").read_text()
    assert "best so far" not in log
    assert "nothing is chosen by it" in log
    with pytest.raises(ExciteError, match=r"data\.part=test is only for measuring"):
        train(recipe(tmp_path / "photos", "data.part=test"), out=tmp_path / "runs", quiet=True)


def test_a_root_that_the_source_does_not_read_is_refused(tmp_path):
    """It was taken for the digits' own images, measured, and said to be the folder."""
    with pytest.raises(ExciteError, match=r"data\.root=.* is not used by data\.source=digits, .* data\.source=folder"):
        train(small("epochs=1", f"data.root={tmp_path}"), out=tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []
