"""Predictions are those of the evaluation, and are read back only while they hold."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.trained import predictions as module
from excite.trained.accuracy import validate
from excite.trained.opened import open_trained
from excite.trained.predictions import FILE, Predictions, pictures, predict_all, predictions_of
from excite.weights.locate import run_folder
from tests.report.conftest import numbered
from tests.training.small import CLASSES


def test_they_give_what_validate_gives_even_under_a_launcher(run, monkeypatch):
    _, evaluation = validate(run)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: pytest.fail("asked for the other processes"))
    opened = open_trained(run)
    seen = []
    found = predict_all(opened, lambda done, total: seen.append((done, total)), batch_size=30)
    assert found.logits.shape == (100, 10)
    assert found.logits.dtype == np.float32
    assert 100 * found.right.mean() == evaluation.top1
    loss = F.cross_entropy(torch.from_numpy(found.logits), torch.from_numpy(found.labels))
    assert float(loss) == pytest.approx(evaluation.loss, rel=1e-5)
    assert np.array_equal(found.labels, opened.data.val.labels.numpy())  # in order
    assert seen == [(30, 100), (60, 100), (90, 100), (100, 100)]
    assert found.positions.tolist() == list(range(100))
    for position in (0, 7, 99):
        picture = pictures(opened, [position])[0]
        assert np.array_equal(picture[..., 0], opened.data.val.images[position, 0].numpy())


def test_a_name_says_where_the_image_is_in_its_source_whatever_the_order_here(run, sklearn):
    opened = open_trained(run)
    source = (sklearn.datasets.load_digits().images * 255 / 16).round().astype(np.uint8)
    for position in (0, 7, 99):
        picture = pictures(opened, [position])[0]
        assert np.array_equal(picture[..., 0], source[int(opened.name_of(position).removeprefix("#"))])


def test_what_is_stored_is_read_back_until_weights_data_or_precision_change(run, monkeypatch):
    opened = open_trained(run)
    made = predictions_of(opened)
    calls = []
    monkeypatch.setattr(module, "predict_all", lambda *a, **k: calls.append(1) or made)
    again = predictions_of(opened)
    assert not calls
    assert np.array_equal(again.logits, made.logits)
    arrays = {"logits": made.logits, "labels": made.labels, "positions": made.positions}
    assert dataclasses.replace(again, **arrays) == made
    changed = copy.copy(opened), copy.copy(opened)
    changed[0].weights = "other"
    changed[1]._opened = opened.recipe, dataclasses.replace(opened.data, fingerprint="other")
    for other in changed:
        predictions_of(other, keep=False)
    for overrides in (["data.crop_pct=0.9"], ["data.limit_val=50"]):
        predictions_of(open_trained(run, overrides), keep=False)
    predictions_of(open_trained(run, precision="bf16"), keep=False)
    assert len(calls) == 5
    (run / FILE).write_bytes(b"PK broken")
    predictions_of(opened, keep=False)
    assert len(calls) == 6
    (run / FILE).unlink()
    (run / FILE).mkdir()  # cannot be written: it is only a cache
    predictions_of(opened)
    assert len(calls) == 7


def test_nothing_stored_is_executed(tmp_path, made_up):
    p = made_up(5, 3)
    p = dataclasses.replace(p, names=("a/ü.png", "b\nc", "d", "e", ""))
    p.save(tmp_path / "p.npz")
    assert Predictions.read(tmp_path / "p.npz").names == p.names
    np.savez(tmp_path / "evil.npz", logits=np.array([print], dtype=object))
    assert Predictions.read(tmp_path / "evil.npz") is None
    assert Predictions.read(tmp_path / "none.npz") is None


def test_parts_that_do_not_fit_each_other_are_not_read(tmp_path, made_up):
    good = dataclasses.replace(made_up(4, 3), labels=np.array([0, 1, 2, 2]), preprocessing={"size": [8, 8]})
    path = tmp_path / "p.npz"

    def read(**changes):
        dataclasses.replace(good, **changes).save(path)
        return Predictions.read(path)

    found = read()
    for name in ("logits", "labels", "positions"):
        assert np.array_equal(getattr(found, name), getattr(good, name))
        assert getattr(found, name).dtype == getattr(good, name).dtype
    texts = ("names", "classes", "fingerprint", "weights", "precision", "preprocessing")
    assert [getattr(found, name) for name in texts] == [getattr(good, name) for name in texts]
    for changes in (
        {"logits": good.logits.astype(np.float64)},
        {"logits": good.logits[:3]},
        {"logits": good.logits[:, :2]},
        {"labels": good.labels.astype(np.int32)},
        {"labels": good.labels[:3]},
        {"labels": np.array([0, 1, 2, 3])},
        {"labels": np.array([0, 1, 2, -1])},
        {"positions": good.positions.astype(np.float64)},
        {"positions": good.positions[:, None]},
        {"positions": good.positions - 1},
        {"names": ("a", "b", "c")},
        {"classes": ("a", "b", 3)},
        {"fingerprint": None},
        {"weights": 1},
        {"precision": ["fp32"]},
    ):
        assert read(**changes) is None, changes
    with np.load(path) as stored:
        arrays = dict(stored)
    about = json.loads(arrays["about"].tobytes()) | {"precision": "fp32"}
    lists = {**about, "preprocessing": [1]}
    for other in ([about], "about", {**about, "more": 1}, {k: v for k, v in about.items() if k != "classes"}, lists):
        np.savez(path, **{**arrays, "about": np.frombuffer(json.dumps(other).encode(), np.uint8)})
        assert Predictions.read(path) is None, other
    np.savez(path, **{**arrays, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)})
    assert Predictions.read(path) is not None
    np.savez(path, **{name: array for name, array in arrays.items() if name != "labels"})
    assert Predictions.read(path) is None


def test_what_logits_that_are_not_finite_leave(made_up):
    p = made_up(6, 3)
    p.positions[:] += 10
    assert p.warning is None
    assert np.array_equal(p.answered().logits, p.logits)
    p.logits[2, 1], p.logits[4] = np.nan, np.inf
    p.logits[0] = [1e4, 1e4, -1e4]  # the first of equals; exp() of these alone would be infinite
    assert p.finite.tolist() == [True, True, False, True, False, True]
    assert (p.predicted[[0, 2, 4]].tolist(), p.right[[2, 4]].tolist()) == ([0, -1, -1], [False, False])
    assert p.warning.startswith("2 of 6 images have no finite logits, the first: #2")
    for temperature in (1.0, 2.5):
        expected = F.softmax(torch.from_numpy(p.logits).double() / temperature, 1).numpy()
        expected[[2, 4]] = np.nan
        assert np.allclose(p.probabilities(temperature), expected, rtol=1e-12, atol=0, equal_nan=True)
    assert np.array_equal(p.probabilities(), p.probabilities(1), equal_nan=True)
    rest = p.answered()
    assert (rest.names, rest.positions.tolist()) == (("#0", "#1", "#3", "#5"), [10, 11, 13, 15])
    assert np.array_equal(rest.logits, p.logits[[0, 1, 3, 5]])
    assert np.array_equal(rest.labels, p.labels[[0, 1, 3, 5]])
    assert (rest.weights, rest.classes) == (p.weights, p.classes)


def test_only_a_run_folder_on_this_machine_keeps_predictions(run, tmp_path):
    assert (run_folder(run), run_folder(str(run))) == (run, run)
    assert run_folder(run / "model.safetensors") is run_folder(tmp_path) is run_folder("s3://bucket/run") is None
    opened = open_trained(run, limits={"limit_val": 25})
    (run / FILE).unlink(missing_ok=True)
    made = predictions_of(opened, keep=False)
    assert len(made) == 25
    assert not (run / FILE).exists()
    assert np.array_equal(predictions_of(opened).logits, made.logits)
    assert (run / FILE).is_file()
    # The names of the classes may be other ones since, with the same weights and images.
    opened.predictor.classes = [f"new {name}" for name in opened.predictor.classes]
    assert predictions_of(opened).classes == tuple(f"new {name}" for name in CLASSES)


def test_they_are_made_in_the_precision_of_the_training_unless_another_is_asked_for(run, tmp_path):
    half = numbered(run, tmp_path / "half.safetensors", precision="bf16")
    found = {
        asked: predict_all(open_trained(half, limits={"limit_val": 5}, precision=asked))
        for asked in (None, "fp32", "bf16")
    }
    assert {asked: each.precision for asked, each in found.items()} == {None: "bf16", "fp32": "fp32", "bf16": "bf16"}
    assert np.array_equal(found[None].logits, found["bf16"].logits)
    assert not np.array_equal(found[None].logits, found["fp32"].logits)


@pytest.fixture
def folders(tmp_path):
    """Class folders of the network's classes, an image a class and part; and the words that make them the data."""
    for k in range(10):
        for part in ("train", "val"):
            folder = tmp_path / "images" / part / CLASSES[k]
            folder.mkdir(parents=True)
            Image.new("L", (9, 9), 25 * k).save(folder / f"{part}-ä.png")
    words = ["data.source=folder", f"data.root={tmp_path / 'images'}", "data.limit_val=null", "data.class_names=null"]
    return tmp_path / "images", [*words, "data.workers=0", "data.on_bad_val=skip"]


def test_files_go_by_their_paths_streamed_and_in_memory(run, folders):
    root, words = folders
    (root / "val" / "5" / "broken.png").write_bytes(b"no image")
    found = {}
    for mode in ("stream", "memory"):
        opened = open_trained(run, [*words, f"data.mode={mode}"])
        found[mode] = predict_all(opened)
        assert sorted(found[mode].names) == sorted(f"{name}/val-ä.png" for name in CLASSES)
        for name, label, picture in zip(
            found[mode].names, found[mode].labels, pictures(opened, found[mode].positions.tolist()), strict=True
        ):
            assert name.split("/")[0] == CLASSES[label]
            assert (picture == 25 * label).all()
    order = [found["memory"].names.index(name) for name in found["stream"].names]
    assert np.array_equal(found["memory"].logits.argmax(1)[order], found["stream"].logits.argmax(1))
    few = [
        predict_all(open_trained(run, [*words, f"data.mode={mode}"], limits={"limit_val": 5})).names for mode in found
    ]
    assert sorted(few[0]) == sorted(few[1])


def test_renamed_files_are_not_called_by_their_old_names(run, folders):
    """In memory the fingerprint is of the pixels, which are the same."""
    root, words = folders
    words = [*words, "data.mode=memory"]
    before = predictions_of(open_trained(run, words))
    (root / "val" / "3" / "val-ä.png").rename(root / "val" / "3" / "other.png")
    opened = open_trained(run, words)
    assert opened.data.fingerprint == before.fingerprint
    after = predictions_of(opened)
    assert set(after.names) - set(before.names) == {"3/other.png"}
    assert np.array_equal(after.logits, before.logits)


def test_the_preprocessing_told_is_the_one_predicted_with(run):
    """Other images have another mean; the network goes on with that of its training."""
    own, other = (open_trained(run, words) for words in ([], ["data.mean=[0.5]", "data.std=[0.5]"]))
    found = [predict_all(each) for each in (own, other)]
    assert found[1].preprocessing == found[0].preprocessing == own.predictor.preprocessing.to_dict()
    assert np.array_equal(found[0].logits, found[1].logits)


def test_files_of_an_older_format_are_made_anew(run, monkeypatch):
    made = predictions_of(open_trained(run))
    assert Predictions.read(run / FILE).names == made.names
    monkeypatch.setattr(module, "FORMAT_VERSION", module.FORMAT_VERSION - 1)
    made.save(run / FILE)
    monkeypatch.undo()
    assert Predictions.read(run / FILE) is None


def test_a_network_that_numbers_its_classes_has_those_of_the_data(run, tmp_path):
    opened = open_trained(numbered(run, tmp_path / "theirs.safetensors"))
    found = predict_all(opened)
    assert found.classes == tuple(CLASSES)
    assert np.array_equal(found.logits, predict_all(open_trained(run)).logits)
    with pytest.raises(ExciteError, match=r"the data has classes that .*ours.safetensors does not know: "):
        _ = open_trained(numbered(run, tmp_path / "ours.safetensors", classes=list("abcdefghij"))).data


def test_other_classes_are_a_sentence(run, folders):
    root, words = folders
    for part in ("val", "train"):
        (root / part / "8").rename(root / part / "x")
    with pytest.raises(ExciteError, match=r"the data has classes that .* does not know: x; give data"):
        _ = open_trained(run, words).data
