"""Exports compute what the model does, say where they came from, and are not there when they do not."""

import hashlib
import itertools
import json
import os
import shutil
import signal
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import Preprocessing
from excite.errors import ExciteError
from excite.export import export, formats, sessions
from excite.export.build import _put_in_place, _target
from excite.export.formats.base import OPSET
from excite.export.images import open_samples, prepare, random_samples
from excite.export.sessions import open_in, openvino_core
from excite.export.verify import compare_logits as compare
from excite.gates import list_gates
from excite.models import create_model
from excite.owners import remove_leftovers
from excite.runtime.environment import versions
from excite.trained.opened import Opened, open_trained
from excite.trained.predictor import load
from excite.weights.own import save_weights
from tests.training.small import small

SIZE = 8
GATES = [*list_gates(), {"name": "ge", "variant": "theta"}, {"name": "ge", "variant": "theta_plus"}, None]


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """The fewest rounds: how fast the small network is, no test asks."""
    monkeypatch.setattr("excite.export.verify.TIMING_SECONDS", 0.0)


def needs(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (pip install 'excite[export]')")


def checkpoint(folder: Path, gate: object = "se", seed: int = 0, **options: object) -> Path:
    """A tiny network with batch norms that are not the identity, for the digits."""
    torch.manual_seed(seed)
    args = {"num_classes": 10, "in_chans": 1, "image_size": SIZE, "gate": gate, **options}
    model = create_model("cifar_resnet20", **args)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 1, SIZE, SIZE))
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    recipe = small("model.name=" + model.model_name).model_dump(mode="json")
    preprocessing = Preprocessing(SIZE, 0.875, "bicubic", (0.4,), (0.3,), 1).to_dict()
    meta = {"model": {"name": model.model_name, "args": model.model_args}, "classes": [str(k) for k in range(10)]}
    meta |= {"preprocessing": preprocessing, "recipe": recipe, "metrics": None, "step": 0, "epoch": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "model.safetensors", model.eval(), {**meta, "precision": "fp32", "versions": versions()})
    return folder / "model.safetensors"


def photos(folder: Path, count: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    samples = random_samples(Preprocessing(SIZE, 0.875, "bicubic", (0.4,), (0.3,), 1))
    for i in range(count):
        Image.fromarray(samples.read(i)[:, :, 0]).save(folder / f"{i}.png")
    return folder


@pytest.mark.heavy
def test_pt2_of_a_run_agrees_and_says_where_it_came_from(tmp_path):
    weights = checkpoint(tmp_path)
    result = export(weights, "pt2", images=40)
    assert result["artefact"] == str(tmp_path / "model.pt2")
    model, artefact = result["rows"]
    assert artefact["relative_difference"] < result["tolerance"]
    assert artefact["top1"] == model["top1"]  # the digits are labelled
    assert "validation images" in result["images"]
    extra = {"excite.json": ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    meta = json.loads(extra["excite.json"])
    assert meta["classes"] == [str(k) for k in range(10)]
    assert meta["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert meta["recipe"]["name"] == "small"
    assert (meta["precision"], meta["quantisation"]) == ("fp32", None)
    predictor = load(weights)
    for shape in ((1, SIZE, SIZE, 1), (1, 20, 11, 1), (5, 9, 30, 1)):  # batches and sizes it was not traced with
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        ready = torch.from_numpy(np.stack([prepare(i, predictor.preprocessing) for i in images])).permute(0, 3, 1, 2)
        torch.testing.assert_close(module(torch.from_numpy(images)), predictor.logits(ready), rtol=1e-4, atol=1e-5)


def test_a_broken_export_fails_and_leaves_what_was_there(tmp_path, monkeypatch):
    weights, out = checkpoint(tmp_path), tmp_path / "out" / "model.pt2"
    out.parent.mkdir()
    out.write_text("before")
    opened = sessions.open_in

    def open_broken(*arguments):
        run = opened(*arguments)
        return lambda images: run(images) * np.float32(1.01)

    monkeypatch.setattr("excite.export.build.open_in", open_broken)
    with pytest.raises(ExciteError, match="disagrees with the PyTorch model"):
        export(weights, "pt2", out=out, input="float", images=20, force=True)
    assert [p.name for p in out.parent.iterdir()] == ["model.pt2"]
    assert out.read_text() == "before"


def test_what_the_exporter_cannot_write_is_one_sentence(tmp_path, monkeypatch):
    def fails(self):
        raise RuntimeError("no such operator\nand a page of graphs")

    monkeypatch.setattr("excite.export.deployable.Deployable.trace", fails)
    sentence = (
        r"^this network cannot be written in the format pt2 \(RuntimeError: no such operator\); nothing was written"
    )
    with pytest.raises(ExciteError, match=sentence):
        export(checkpoint(tmp_path), "pt2", images=4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_is_not_finite_never_agrees():
    a = np.ones((2, 3), np.float32)
    assert compare(a, a).relative == 0
    assert not compare(a, a * np.nan).relative <= 1e9
    assert not compare(a, a[:, :2]).relative <= 1e9


def test_a_pair_of_files_is_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text("old")
    real = os.replace

    def fail_for_xml(a, b):
        if Path(b) == tmp_path / "m.xml" and Path(a).parent.name == "final":
            raise OSError(5, "broken")
        real(a, b)

    monkeypatch.setattr(os, "replace", fail_for_xml)

    def write_both():
        with _put_in_place(tmp_path / "m.xml", formats.get("openvino")) as aside:
            aside.write_text("new")
            aside.with_suffix(".bin").write_text("new")

    with pytest.raises(ExciteError, match=r"m\.xml could not be written"):
        write_both()
    assert sorted((p.name, p.read_text()) for p in tmp_path.iterdir()) == [("m.bin", "old"), ("m.xml", "old")]


def graph(folder: Path, values: np.ndarray) -> Path:
    """An OpenVINO graph that multiplies its input by ``values``, and adds their sum."""
    import openvino
    from openvino import opset13 as ops

    given = ops.parameter([1, *values.shape], np.float32)
    result = ops.add(ops.multiply(given, ops.constant(values)), ops.constant(values.sum(keepdims=True)))
    folder.mkdir()
    openvino.save_model(openvino.Model([result], [given]), folder / "m.xml", compress_to_fp16=False)
    return folder / "m.xml"


def answer(path: Path) -> list[float]:
    compiled = openvino_core().compile_model(openvino_core().read_model(path), "CPU")
    given = np.ones(compiled.inputs[0].shape, np.float32)
    return next(iter(compiled(given).values())).ravel().tolist()


def replaced_and_killed(new: Path, target: Path, at: int, before: bool) -> bool:
    """Whether a process that replaces the artefact was killed before or after its ``at``-th change of a name."""
    child = os.fork()
    if child == 0:
        real, calls = os.replace, itertools.count()

        def replace(a, b):
            number = next(calls)
            if number == at and before:
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace
        with _put_in_place(target, formats.get("openvino")) as aside:
            for suffix in (".bin", ".xml"):
                shutil.copy(new.with_suffix(suffix), aside.with_suffix(suffix))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(("old_size", "new_size"), [(3, 3), (3000, 7), (7, 3000)])
def test_a_kill_leaves_the_old_pair_of_files_or_the_new_one(tmp_path, old_size, new_size):
    """Its two files cannot be replaced in one step: at every step they belong together."""
    needs("openvino")
    old = graph(tmp_path / "old", np.arange(1, old_size + 1, dtype=np.float32))
    new = graph(tmp_path / "new", -np.arange(1, new_size + 1, dtype=np.float32) / 2)
    wanted, found = [answer(old), answer(new)], []
    for at, before in itertools.product(range(9), (True, False)):
        place = tmp_path / f"{at}{before}"
        shutil.copytree(old.parent, place)
        was_killed = replaced_and_killed(new, place / "m.xml", at, before)
        found.append(wanted.index(answer(place / "m.xml")))
        assert bool(remove_leftovers(place)) == was_killed  # by the next command
        assert sorted(p.name for p in place.iterdir()) == ["m.bin", "m.xml"]
        if not was_killed:
            assert (place / "m.bin").read_bytes() == new.with_suffix(".bin").read_bytes()
            break
    assert found == sorted(found)
    assert (at, found[0], found[-1]) == (5, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "onx"}, "did you mean 'onnx'"),
        ({"format": "pt2", "int8": True}, "--int8 is only available in the formats onnx and openvino, not in pt2"),
        ({"format": "pt2", "calibrate": "x"}, "needs no calibration"),
        ({"format": "pt2", "out": "model.onnx"}, "must end in .pt2"),
        ({"format": "pt2", "input": "int8"}, "--input is 'int8'.*allowed: uint8, float"),
        ({"format": "pt2", "verify": "/nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, arguments, sentence):
    with pytest.raises(ExciteError, match=sentence):
        export(checkpoint(tmp_path), **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("format", "out", "sentence"),
    [("pt2", "file/model.pt2", "is not a folder"), ("openvino", "m/model.xml", r"model\.bin is a folder")],
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path, monkeypatch, format, out, sentence):
    weights = checkpoint(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "m" / "model.bin").mkdir(parents=True)
    monkeypatch.setattr("excite.export.build.check", lambda name, int8: None)  # whether OpenVINO is installed
    monkeypatch.setattr("excite.export.build.read_checkpoint", lambda *a: pytest.fail("the network was loaded first"))
    with pytest.raises(ExciteError, match=sentence):
        export(weights, format, out=tmp_path / out, force=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_network_at_a_hub_is_exported_to_the_current_folder():
    assert _target(Path("hf:someone/some-net"), formats.get("onnx"), True, None, False) == Path("some-net.int8.onnx")


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    weights = checkpoint(tmp_path)
    (tmp_path / "model.pt2").write_text("mine")
    with pytest.raises(ExciteError, match="already exists"):
        export(weights, "pt2")
    assert (tmp_path / "model.pt2").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, OPSET])
def test_onnx_takes_any_number_of_images_of_any_size(tmp_path, opset):
    needs(*formats.get("onnx").needs)
    import onnx

    weights = checkpoint(tmp_path)
    path = export(weights, "onnx", images=20, opset=opset)["artefact"]
    onnx.checker.check_model(path, full_check=True)
    assert [entry.version for entry in onnx.load(path).opset_import if not entry.domain] == [opset]
    predictor, run = load(weights), open_in("onnxruntime", Path(path), 1)
    for count, height, width in [(n, *size) for n in (1, 7) for size in ((SIZE, SIZE), (20, 33), (300, 200))]:
        images = np.random.default_rng(count).integers(0, 256, (count, height, width, 1), dtype=np.uint8)
        ready = torch.from_numpy(np.stack([prepare(i, predictor.preprocessing) for i in images])).permute(0, 3, 1, 2)
        wanted = predictor.logits(ready).numpy()
        np.testing.assert_allclose(run(images), wanted, rtol=1e-4, atol=1e-5, err_msg=f"{count} x {height} x {width}")


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2"])
def test_every_gate_exports(tmp_path, gate, format):
    needs(*formats.get(format).needs)
    result = export(checkpoint(tmp_path, gate), format, input="float", images=20)
    assert result["rows"][1]["agreement"] == 100


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_leaves_the_gates_in_float_unless_told_otherwise(tmp_path, format):
    needs(*formats.get(format).needs, *(["nncf"] if format == "openvino" else []))
    weights, found = checkpoint(tmp_path), {}
    for name, options in {"float": {}, "int8": {"int8_gates": True}}.items():
        out = tmp_path / f"{name}{formats.get(format).suffix}"
        result = export(weights, format, out=out, int8=True, max_drop=100, images=50, **options)
        assert [row["written"] for row in result["rows"]] == [False, False, name == "float", name == "int8"]
        assert result["rows"][2]["largest_difference"] != result["rows"][3]["largest_difference"]
        found[name] = quantised_gate_inputs(format, Path(result["artefact"]))
        check_int8_metadata(format, out, weights, {"float": "float32", "int8": "int8"}[name])
    assert found["float"] == 0
    assert found["int8"] > 0


def check_int8_metadata(format: str, path: Path, weights: Path, gates: str) -> None:
    """An int8 artefact, read back, tells itself from the float32 one and says how it was made."""
    meta = stored_metadata(format, path)
    about = meta["quantisation"]
    tool = {"onnx": "onnxruntime", "openvino": "nncf"}[format]
    assert meta["precision"] == "int8"
    assert meta["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (about["tool"], about["version"], about["gates"]) == (tool, metadata.version(tool), gates)
    assert about["layers"][{"onnx": "Conv", "openvino": "Convolution"}[format]] >= 19  # of a ResNet-20
    product = {"onnx": "Mul", "openvino": "Multiply"}[format]  # with the scale
    assert (product in about["layers"]) == (gates == "int8")
    opened = open_trained(weights, train=True)
    predictor = opened.predictor
    samples, _ = open_samples(opened, None, "train")
    samples = samples.take(300)
    pixels = b"".join(prepare(samples.read(i), predictor.preprocessing).tobytes() for i in range(len(samples)))
    wanted = {"images": samples.name, "count": len(samples), "sha256": hashlib.sha256(pixels).hexdigest()}
    assert about["calibration"] == wanted


def stored_metadata(format: str, path: Path) -> dict:
    if format == "onnx":
        import onnxruntime

        return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["excite"])
    return json.loads(openvino_core().read_model(path).get_rt_info(["excite"]).astype(str))


def quantised_gate_inputs(format: str, path: Path) -> int:
    """How many nodes of gates are fed by a (de)quantisation of a gate's own weights or results.

    In ONNX Runtime an int8 convolution gives int8, so that a gate in float squeezes a dequantised map.
    """
    if format == "onnx":
        import onnx

        nodes = onnx.load(path).graph.node
        makes = {output: node for node in nodes for output in node.output}

        def own(name: str) -> bool:
            if name not in makes or makes[name].op_type != "DequantizeLinear":
                return False
            quantise = makes.get(makes[name].input[0])  # weights are stored quantised
            source = None if quantise is None else makes.get(quantise.input[0])
            return quantise is None or (source is not None and source.name.startswith("gate_scale/"))

        return sum(node.name.startswith("gate_scale/") and any(map(own, node.input)) for node in nodes)
    ops = openvino_core().read_model(path).get_ops()
    return sum("FakeQuantize" in op.get_type_name() and "gate_scale/" in op.get_friendly_name() for op in ops)


@pytest.mark.parametrize("numbered", [True, False])
def test_folders_are_the_classes_of_a_network_that_only_numbers_them(tmp_path, numbered):
    for name, count in (("dogs", 2), ("cats", 1)):
        photos(tmp_path / "val" / name, count)
    (tmp_path / "val" / ".thumbnails").mkdir()
    classes = ["0", "1"] if numbered else ["dogs", "cats"]
    preprocessing = Preprocessing(SIZE, 0.875, "bicubic", (0.4,), (0.3,), 1).to_dict()
    meta = {"classes": classes, "converted_from": {"format": "torchvision"}, "preprocessing": preprocessing}

    def opened(meta: dict) -> Opened:
        header = {**meta, "recipe": {"data": {"source": "folder"}}}
        return Opened(None, SimpleNamespace(meta=header, preprocessing=Preprocessing.from_dict(preprocessing)))

    samples, _ = open_samples(opened(meta), str(tmp_path), "val")
    assert samples.labels == ([0, 1, 1] if numbered else [1, 0, 0])
    three = {**meta, "classes": ["0", "1", "2"]}
    assert open_samples(opened(three), str(tmp_path), "val")[0].labels is None
