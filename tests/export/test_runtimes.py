"""Every installed runtime is asked before an artefact is written, from the first call of new sessions."""

import numpy as np
import pytest
import torch

from excite.errors import ExciteError
from excite.export import export, formats, runtimes
from excite.inference import load
from excite.models.folding import FoldedClassifier
from tests.export.test_export import SIZE, checkpoint, needs


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """The fewest rounds: how fast the small network is, no test asks."""
    monkeypatch.setattr("excite.export.verify.TIMING_SECONDS", 0.0)


def wrong_in(which):
    """A runtime that gives nonsense in one call of each session, or for some images."""

    def open_in(runtime, path, threads):
        run, calls = formats.open_in(runtime, path, threads), []

        def broken(images):
            calls.append(images.shape)
            return run(images) * np.float32(1e30 if which(len(calls), images) else 1)

        return broken

    return open_in


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        (lambda call, images: call == 1, f"the first call of a new session, with 1 image of {SIZE} x {SIZE} pixels"),
        (lambda call, images: call == 2, "call 2 of a session"),
        (lambda call, images: len(images) == 3, f"with 3 images of {SIZE} x {SIZE}"),
        (lambda call, images: images.shape[2] > SIZE, "with 1 image of 13 x 19"),
        (lambda call, images: images.shape[2] < SIZE, "with 2 images of 17 x 5"),
    ],
)
def test_a_call_that_is_wrong_in_any_session_writes_nothing(tmp_path, monkeypatch, which, sentence):
    weights = checkpoint(tmp_path)
    monkeypatch.setattr(runtimes, "open_in", wrong_in(which))
    with pytest.raises(ExciteError, match=f"in torch .* disagrees with the PyTorch model: in .*{sentence}"):
        export(weights, "pt2", images=4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_who_was_asked_and_who_was_not_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.READERS, "pt2", ("torch", "a_runtime_of_tomorrow"))
    said = []
    result = export(checkpoint(tmp_path), "pt2", images=4, say=said.append)
    [found] = result["runtimes"]
    assert found["asked"] == [f"torch {torch.__version__}"]
    assert "not installed" in found["not_asked"]["a_runtime_of_tomorrow"]
    assert len(found["cases"]) == 4
    assert any("agrees in torch" in line and "first call" in line for line in said)
    assert any("was not run in a_runtime_of_tomorrow: not installed" in line for line in said)


def test_another_runtime_that_refuses_the_file_is_said_and_its_own_stops_it(tmp_path, monkeypatch):
    def refuse(refusing):
        def open_in(runtime, path, threads):
            if runtime == refusing:
                raise RuntimeError("no such operator")
            return formats.open_in("torch", path, threads)

        return open_in

    weights = checkpoint(tmp_path)
    monkeypatch.setitem(formats.READERS, "pt2", ("torch", "numpy"))
    monkeypatch.setattr(runtimes, "open_in", refuse("torch"))
    with pytest.raises(ExciteError, match="cannot open the artefact: RuntimeError: no such operator"):
        export(weights, "pt2", images=4)
    monkeypatch.setattr(runtimes, "open_in", refuse("numpy"))
    said = []
    export(weights, "pt2", images=4, say=said.append)
    assert any("was not run in numpy: it cannot open this file" in line for line in said)


def test_int8_is_held_to_its_own_first_call_and_to_the_other_runtimes():
    logits = np.array([[10.0, 0.0]], np.float32)
    case = runtimes.Case(np.zeros(1), logits, "1 image")

    def judge(own, other):
        calls = {name: [runtimes.Call(0, i, x) for i, x in enumerate(xs)] for name, xs in (("a", own), ("b", other))}
        return runtimes.judge_int8("int8", runtimes.Asked(calls), [case], 1e-3)

    assert judge([logits + 0.5] * 2, [logits + 1.4] * 2) == pytest.approx(0.09)
    with pytest.raises(ExciteError, match="int8 in a disagrees with its own first call: in call 2"):
        judge([logits, logits + 1], [logits] * 2)
    with pytest.raises(ExciteError, match="int8 in b disagrees with a: in the first call"):
        judge([logits] * 2, [logits + 2] * 2)
    with pytest.raises(ExciteError, match="int8 in b disagrees"):
        judge([logits] * 2, [logits * np.nan] * 2)


def test_pytorchs_side_is_timed_in_the_form_that_predict_runs(tmp_path, monkeypatch):
    timed = []

    def time(predictor, artefacts, samples, kind):
        timed.append(predictor.model)
        return {name: {1: 1.0, 16: 2.0} for name in ["", *artefacts]}

    monkeypatch.setattr("excite.export.verify._time", time)
    weights = checkpoint(tmp_path)
    result = export(weights, "pt2", images=4)
    assert isinstance(timed[0], FoldedClassifier)
    assert isinstance(load(weights, "cpu", "fp32", fold=None).model, FoldedClassifier)  # as the command loads it
    assert result["rows"][0]["what"] == "PyTorch fp32, folded"
    assert "batch norms folded on both sides" in result["timed"]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_first_call_is_right_in_every_runtime_that_is_here(tmp_path, format):
    needs(*formats._NEEDS[format])
    weights = checkpoint(tmp_path, in_chans=1)
    result = export(weights, format, images=4)
    [found] = result["runtimes"]
    here = {name for name in formats.READERS[format] if name not in found["not_asked"]}
    assert len(found["asked"]) == len(here) >= 1
    assert found["relative_difference"] < 1e-3
    if format == "onnx":
        import onnx

        graph = onnx.load(result["artefact"]).graph
        assert not [node.op_type for node in graph.node if node.op_type in ("If", "Loop", "Scan")]
    run = formats.open_artefact(format, tmp_path / f"model{formats.SUFFIX[format]}", 1)
    predictor = load(weights)
    rng = np.random.default_rng(0)
    for shape in ((1, 30000, 1, 1), (2, 1, 3000, 1), (1, 1, 1, 1)):  # strips: the middle is all that is seen
        image = np.repeat(rng.integers(0, 256, (shape[0], 1, 1, 1), dtype=np.uint8), shape[1] * shape[2], 1)
        ready = torch.from_numpy(image[:, :1].repeat(SIZE, 1).repeat(SIZE, 2)).permute(0, 3, 1, 2)
        got = run(image.reshape(shape))
        np.testing.assert_allclose(got, predictor.logits(ready).numpy(), rtol=1e-3, atol=1e-3, err_msg=str(shape))
