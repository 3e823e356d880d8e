"""Predictions are those of the evaluation, and are read back only while they hold."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.inference import validate
from excite.report import predictions as module
from excite.report.predictions import FILE, Predictions, open_source, pictures, predict_all, predictions_of
from tests.report.conftest import CLASSES


def test_they_give_what_validate_gives_even_under_a_launcher(run, monkeypatch):
    _, evaluation = validate(run)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: pytest.fail("asked for the other processes"))
    opened = open_source(run)
    seen = []
    found = predict_all(opened, lambda done, total: seen.append((done, total)), batch_size=30)
    assert found.logits.shape == (100, 10)
    assert found.logits.dtype == np.float32
    assert 100 * found.right.mean() == evaluation.top1
    loss = F.cross_entropy(torch.from_numpy(found.logits), torch.from_numpy(found.labels))
    assert float(loss) == pytest.approx(evaluation.loss, rel=1e-5)
    assert np.array_equal(found.labels, opened.data.val.labels.numpy())  # in order
    assert seen == [(30, 100), (60, 100), (90, 100), (100, 100)]
    assert found.names[:2] == ("#0", "#1")
    picture = pictures(opened, ["#7"])[0]
    assert np.array_equal(picture[..., 0], opened.data.val.images[7, 0].numpy())
    with pytest.raises(ExciteError, match="no validation image has the name '#100'"):
        pictures(opened, ["#100"])


def test_what_is_stored_is_read_back_until_weights_data_or_precision_change(run, monkeypatch):
    opened = open_source(run)
    made = predictions_of(opened)
    calls = []
    monkeypatch.setattr(module, "predict_all", lambda *a, **k: calls.append(1) or made)
    again = predictions_of(opened)
    assert not calls
    assert np.array_equal(again.logits, made.logits)
    assert dataclasses.replace(again, logits=made.logits, labels=made.labels) == made
    for change in ({"weights": "other"}, {"data": dataclasses.replace(opened.data, fingerprint="other")}):
        predictions_of(dataclasses.replace(opened, **change), keep=False)
    for overrides in (["data.mean=[0.5]", "data.std=[0.5]"], ["data.limit_val=50"]):
        predictions_of(open_source(run, overrides), keep=False)
    predictions_of(open_source(run, precision="bf16"), keep=False)
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


def test_other_classes_are_a_sentence_and_files_go_by_their_paths(run, tmp_path):
    for k in range(10):
        for part in ("train", "val"):
            folder = tmp_path / "images" / part / CLASSES[k]
            folder.mkdir(parents=True)
            Image.new("L", (9, 9), 25 * k).save(folder / f"{part}-ä.png")
    words = ["data.source=folder", f"data.root={tmp_path / 'images'}", "data.mode=stream", "data.limit_val=null"]
    words.append("data.class_names=null")
    opened = open_source(run, [*words, "data.workers=0"])
    found = predict_all(opened)
    assert found.names[3] == "4/val-ä.png"
    assert pictures(opened, [found.names[3]])[0].shape == (8, 8, 1)
    (tmp_path / "images" / "val" / "8").rename(tmp_path / "images" / "val" / "x")
    (tmp_path / "images" / "train" / "8").rename(tmp_path / "images" / "train" / "x")
    with pytest.raises(ExciteError, match="the 10 classes of the data are not the 10 of"):
        open_source(run, words)
