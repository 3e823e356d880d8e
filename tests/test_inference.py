"""What was trained, used in its folded form: the same predictions, and a way back."""

import json

import pytest
import torch
from PIL import Image

import excite
from excite.models import FoldedClassifier


@pytest.fixture(scope="module")
def run(tiny):
    return tiny.gated


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        pixels = torch.randint(0, 256, (8, 8), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


def tops(predictor, photos):
    found = list(predictor.predict(sorted(photos.iterdir()), top_k=10, batch_size=2))
    return torch.tensor([[dict(p.top)[name] for name in predictor.classes] for p in found], dtype=torch.float64)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_predictions_change_by_rounding_only(run, photos, precision, limit):
    plain, folded = (excite.load(run, "cpu", precision, fold=fold) for fold in (False, True))
    assert isinstance(folded.model, FoldedClassifier)
    assert not isinstance(plain.model, FoldedClassifier)
    assert isinstance(excite.load(run, "cpu", precision, fold=None).model, FoldedClassifier)
    assert (tops(folded, photos) - tops(plain, photos)).abs().max() < limit


def test_validate(run):
    _, plain = excite.validate(run, device="cpu")
    predictor, folded = excite.validate(run, device="cpu", fold=None)
    assert isinstance(predictor.model, FoldedClassifier)
    assert (folded.top1, folded.confusion) == (plain.top1, plain.confusion)
    assert folded.loss == pytest.approx(plain.loss, rel=1e-5)
    predictor, _ = excite.validate(run, device="cpu", precision="bf16", fold=None)
    assert not isinstance(predictor.model, FoldedClassifier)  # the numbers are those of the training
    predictor, _ = excite.validate(run, device="cpu", precision="bf16", fold=True)
    assert isinstance(predictor.model, FoldedClassifier)


@pytest.mark.parametrize("words", [[], ["--no-fold"], ["--fold", "--precision", "bf16"]], ids=str)
def test_the_command_folds_unless_told_otherwise(run, photos, words, monkeypatch, capsys):
    from excite.cli import app
    from excite.trained import classify

    made = []
    load = classify.load
    monkeypatch.setattr(classify, "load", lambda *args: made.append(load(*args)) or made[-1])
    app(["predict", str(run), str(photos), "--device", "cpu", "--json", "-k", "1", *words], standalone_mode=False)
    assert len(json.loads(capsys.readouterr().out)) == 5
    assert isinstance(made[0].model, FoldedClassifier) is ("--no-fold" not in words)
    assert made[0].precision == ("bf16" if words[1:] else "fp32")
