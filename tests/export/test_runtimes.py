"""Every installed runtime is asked before an artefact is written, from the first call of new sessions."""

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from excite.errors import ExciteError
from excite.export import export, formats, runtimes, verify
from excite.export.deployable import Deployable
from excite.export.formats import pt2
from excite.export.images import random_samples
from excite.export.sessions import open_in
from excite.models import create_model
from excite.models.folding import FoldedClassifier, fold
from excite.trained.predictor import load
from tests.export.test_export import SIZE, checkpoint, needs


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """The fewest rounds: how fast the small network is, no test asks."""
    monkeypatch.setattr("excite.export.verify.TIMING_SECONDS", 0.0)


def sessions_of_a_model(predictor, which=lambda call, images: False):
    """Sessions of a runtime that gives nonsense in the calls that ``which`` names (number in its session, images)."""
    deployable = Deployable(predictor.model, predictor.preprocessing, "uint8")

    def sessions_of(runtime, path, threads):
        if runtime == "numpy":
            raise RuntimeError("no such operator")

        def session():
            calls = []

            def run(images):
                calls.append(images.shape)
                nonsense = np.float32(1e30 if which(len(calls), images) else 1)
                with torch.no_grad():
                    return deployable(torch.from_numpy(images)).numpy() * nonsense

            return run

        return session

    return sessions_of


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        (lambda call, images: call == 1, f"the first call of a new session, with 1 image of {SIZE} x {SIZE} pixels"),
        (lambda call, images: call == 2, "call 2 of a session"),
        (lambda call, images: call > 2 and len(images) == 2, "call 6 of a session, with 2 images of 17 x 5"),
        (lambda call, images: len(images) == 3, f"with 3 images of {SIZE} x {SIZE}"),
        (lambda call, images: images.shape[2] > SIZE, "with 1 image of 13 x 19"),
        (lambda call, images: images.shape[2] < SIZE, "with 2 images of 17 x 5"),
    ],
)
def test_a_call_that_is_wrong_in_any_session_is_found(tmp_path, monkeypatch, which, sentence):
    predictor = load(checkpoint(tmp_path), "cpu", "fp32")
    cases = runtimes.make_cases(predictor, "uint8")
    monkeypatch.setattr(runtimes, "sessions_of", sessions_of_a_model(predictor))
    assert runtimes.judge_fp32("it", runtimes.ask("pt2", tmp_path, cases, 1, 0), cases, 1e-3) < 1e-5
    monkeypatch.setattr(runtimes, "sessions_of", sessions_of_a_model(predictor, which))
    with pytest.raises(ExciteError, match=f"it in torch .* disagrees with the PyTorch model: in .*{sentence}"):
        runtimes.judge_fp32("it", runtimes.ask("pt2", tmp_path, cases, 1, 0), cases, 1e-3)


@pytest.mark.heavy
def test_one_wrong_first_call_and_nothing_is_written(tmp_path, monkeypatch):
    weights = checkpoint(tmp_path)
    predictor = load(weights, "cpu", "fp32")
    monkeypatch.setattr(runtimes, "sessions_of", sessions_of_a_model(predictor, lambda call, images: call == 1))
    with pytest.raises(ExciteError, match=r"in the first call of a new session.*nothing was written"):
        export(weights, "pt2", images=4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def read_by(monkeypatch, readers):
    monkeypatch.setattr(pt2, "FORMAT", replace(pt2.FORMAT, readers=readers))


@pytest.mark.parametrize("name", formats.MODULES)
def test_a_format_has_all_that_it_needs(name):
    chosen = formats.get(name)
    assert (chosen.name, chosen.suffix[0]) == (name, ".")
    assert set(chosen.readers) <= {"torch", "onnxruntime", "openvino", "onnx"}
    assert chosen.files(Path("net" + chosen.suffix))[-1] == Path("net" + chosen.suffix)


@pytest.mark.slow  # it writes a whole artefact
def test_a_toy_format_is_a_module_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "toy", ModuleType("toy"))
    sys.modules["toy"].FORMAT = replace(pt2.FORMAT, name="toy", suffix=".toy")
    monkeypatch.setitem(formats.MODULES, "toy", "toy")
    result = export(checkpoint(tmp_path), "toy", images=4)
    assert Path(result["artefact"]) == tmp_path / "model.toy"
    assert (result["format"], result["runtime"].split()[0]) == ("toy", "torch")
    with pytest.raises(ExciteError, match="--int8 is only available in the formats onnx and openvino, not in toy"):
        export(tmp_path / "model.safetensors", "toy", int8=True)


@pytest.mark.heavy
def test_who_was_asked_and_who_was_not_is_said(tmp_path, monkeypatch):
    read_by(monkeypatch, ("torch", "a_runtime_of_tomorrow"))
    said = []
    result = export(checkpoint(tmp_path), "pt2", images=4, say=said.append)
    [found] = result["runtimes"]
    assert found["asked"] == [f"torch {metadata.version('torch')}"]
    assert "not installed" in found["not_asked"]["a_runtime_of_tomorrow"]
    assert len(found["cases"]) == 4
    assert any("agrees in torch" in line and "first call" in line for line in said)
    assert any("was not run in a_runtime_of_tomorrow: not installed" in line for line in said)
    assert result["rows"][0]["what"] == "PyTorch fp32, folded"
    assert "batch norms folded on both sides" in result["timed"]


def test_another_runtime_that_refuses_the_file_is_said_and_its_own_stops_it(tmp_path, monkeypatch):
    predictor = load(checkpoint(tmp_path), "cpu", "fp32")
    cases = runtimes.make_cases(predictor, "uint8")
    monkeypatch.setattr(runtimes, "sessions_of", sessions_of_a_model(predictor))
    read_by(monkeypatch, ("numpy", "torch"))
    with pytest.raises(ExciteError, match="cannot open the artefact: RuntimeError: no such operator"):
        runtimes.ask("pt2", tmp_path, cases, 1, 0)
    read_by(monkeypatch, ("torch", "numpy"))
    asked = runtimes.ask("pt2", tmp_path, cases, 1, 0)
    assert list(asked.calls) == [f"torch {metadata.version('torch')}"]
    assert "it cannot open this file" in asked.left_out["numpy"]


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


def test_pytorchs_side_is_timed_in_the_form_that_predict_runs(tmp_path):
    weights = checkpoint(tmp_path)
    timed = load(weights, "cpu", "fp32").as_predicting().model
    assert type(timed) is type(load(weights, "cpu", "fp32", fold=None).model) is FoldedClassifier


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_first_call_is_right_in_every_runtime_that_is_here(tmp_path, format):
    needs(*formats.get(format).needs)
    weights = checkpoint(tmp_path, in_chans=1)
    result = export(weights, format, images=4)
    [found] = result["runtimes"]
    here = {name for name in formats.get(format).readers if name not in found["not_asked"]}
    assert len(found["asked"]) == len(here) >= 1
    assert found["relative_difference"] < 1e-3
    if format == "onnx":
        import onnx

        graph = onnx.load(result["artefact"]).graph
        assert not [node.op_type for node in graph.node if node.op_type in ("If", "Loop", "Scan")]
    run = open_in(formats.get(format).runtime, tmp_path / f"model{formats.get(format).suffix}", 1)
    predictor = load(weights)
    rng = np.random.default_rng(0)
    for shape in ((1, 30000, 1, 1), (2, 1, 3000, 1), (1, 1, 1, 1)):  # strips: the middle is all that is seen
        image = np.repeat(rng.integers(0, 256, (shape[0], 1, 1, 1), dtype=np.uint8), shape[1] * shape[2], 1)
        ready = torch.from_numpy(image[:, :1].repeat(SIZE, 1).repeat(SIZE, 2)).permute(0, 3, 1, 2)
        got = run(image.reshape(shape))
        np.testing.assert_allclose(got, predictor.logits(ready).numpy(), rtol=1e-3, atol=1e-3, err_msg=str(shape))


SIGNALLED = """
import faulthandler, signal, subprocess, sys
from pathlib import Path
import openvino
from openvino import opset13
from excite.export.images import random_samples
from excite.export.sessions import open_in

x = opset13.parameter([1, 8], name="x")
openvino.save_model(openvino.Model([opset13.relu(x)], [x]), sys.argv[1])
faulthandler.enable()  # signal handlers have a stack of their own now
signal.signal(signal.SIGCHLD, lambda *_: None)  # as torch's DataLoader does
first, second = (open_in("openvino", Path(sys.argv[1]), 1) for _ in range(2))
del first
del second
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""


@pytest.mark.heavy
def test_a_signal_after_two_sessions_of_openvino_does_not_end_the_process(tmp_path):
    """Of two objects ``openvino.Core`` the second leaves signal handlers on a stack that is gone."""
    needs(*formats.get("openvino").needs)
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "model.xml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_nobody_pays_for_the_threads_of_another_runtime(tmp_path, monkeypatch):
    """A pass after one of the artefact's takes 50 s longer here, as threads that still spin make it."""
    now, last = [0.0], ["network"]

    def pass_of(who, seconds):
        def one(*_):
            now[0] += seconds + (50.0 if last[0] != who else 0.0)
            last[0] = who

        return one

    monkeypatch.setattr("excite.runtime.timing.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(verify, "reference_logits", pass_of("network", 2.0))
    predictor = load(checkpoint(tmp_path), "cpu", "fp32")
    samples = random_samples(predictor.preprocessing)
    found = verify._time(predictor, {"artefact": pass_of("artefact", 1.0)}, samples, "uint8")
    assert found == {"": {1: 2000.0, 16: 2000.0}, "artefact": {1: 1000.0, 16: 1000.0}}


def test_a_gelu_behind_a_pooling_is_the_same_everywhere(tmp_path):
    """OpenVINO 2026.4 computes a GELU before the MaxPool that it follows, which is another function, because GELU falls
    below -0.75; graphs of the fast networks avoid the pair."""
    needs("onnx", "onnxruntime", "openvino")
    import onnxruntime
    import openvino

    torch.manual_seed(0)
    model = create_model("cifar_fastnet7", width=0.25, image_size=33).eval()
    with torch.no_grad():
        for stage in model.stages():
            stage[0].conv1.weight.mul_(10)  # so that there are windows from far below -0.75 to just above it
    x, path = torch.randn(2, 3, 33, 33), str(tmp_path / "model.onnx")
    folded = fold(model, portable=True)
    torch.onnx.export(folded, (x,), path, dynamo=False, opset_version=17, input_names=["x"])
    found = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})[0]
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for logits in (found, compiled({"x": x.numpy()})[0]):
        assert torch.allclose(torch.from_numpy(logits), folded(x), atol=1e-4 * float(folded(x).abs().max()))
