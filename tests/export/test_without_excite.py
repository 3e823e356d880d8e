"""docs/without-excite.md: its blocks, as they stand, where ``import excite`` fails."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import Preprocessing
from excite.export import export, formats
from excite.models import create_model
from excite.runtime.environment import versions
from excite.trained.predictor import load
from excite.weights.conversion import convert_file
from excite.weights.own import save_weights
from tests.export.test_export import needs
from tests.training.small import small

PAGE = (Path(__file__).parents[2] / "docs" / "without-excite.md").read_text(encoding="utf-8")
BLOCKS = {
    title: block
    for section in PAGE.split("\n## ")[1:]
    for title in [section.partition("\n")[0]]
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}
#: In place of the page's seresnet50, whose export takes minutes.
NETWORK = "seresnet18"
FORMATS = {"PyTorch": "pt2", "ONNX Runtime": "onnx", "OpenVINO": "openvino"}


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """How fast it is, no test asks."""
    monkeypatch.setattr("excite.export.verify.TIMING_SECONDS", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``model.safetensors`` of a network whose batch norms are not the identity, and ``photo.jpg``."""
    folder = tmp_path_factory.mktemp("without")
    torch.manual_seed(0)
    model = create_model(NETWORK, num_classes=7, rd_divisor=8)  # whose narrow gates are as wide as timm's
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 64, 64))
        model.fc.weight.mul_(50)
    classes = [f"class {k}" for k in range(7)]
    preprocessing = Preprocessing(64, 0.875, "bicubic", (0.4, 0.5, 0.6), (0.3, 0.2, 0.25), 3).to_dict()
    recipe = small(f"model.name={NETWORK}").model_dump(mode="json")
    meta = {"model": {"name": NETWORK, "args": model.model_args}, "classes": classes, "recipe": recipe}
    meta |= {"preprocessing": preprocessing, "metrics": None, "step": 0, "epoch": 0.0, "precision": "fp32"}
    save_weights(folder / "model.safetensors", model.eval(), {**meta, "versions": versions()})
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    noise.save(folder / "photo.jpg")
    return folder


def test_the_page_has_a_block_of_few_lines_for_each():
    assert list(BLOCKS) == ["PyTorch", "timm", "ONNX Runtime", "OpenVINO"]
    for block in BLOCKS.values():
        imports, lines = block.strip().split("\n\n")
        assert all(line.startswith(("import ", "from ")) for line in imports.splitlines())
        assert len(lines.splitlines()) in (5, 6)
        assert "excite" not in imports


#: Before a block: from here on there is no excite. timm imports torchvision, which needs a hand beside a CPU build of
#: torch; a user's does not.
BLOCKED = "import sys\nfor name in list(sys.modules):\n    if name.startswith('excite'): sys.modules[name] = None\n"
BLOCKED += "sys.modules['excite'] = None\n"
WITH_TIMM = f"from excite.models.timm_models import import_timm\nimport_timm()\n{BLOCKED}"


def check(title: str, folder: Path, before: str = BLOCKED) -> None:
    """That a block finds class and logits of ``excite predict``'s network, where ``import excite`` fails."""
    predictor = load(folder / "model.safetensors", "cpu")
    logits = predictor.logits(predictor.preprocessing.load(folder / "photo.jpg")[None])[0]
    block = BLOCKS[title].replace("seresnet50", NETWORK)
    code = f"{before}{block}\nprint([float(value) for value in logits[0]])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, values = done.stdout.splitlines()[-2:]
    assert name == predictor.classes[int(logits.argmax())]
    assert json.loads(values) == pytest.approx(logits.tolist(), abs=1e-3 * float(logits.abs().max()))


@pytest.mark.heavy
@pytest.mark.parametrize("title", FORMATS)
def test_an_exported_file_says_what_predict_says(title, folder):
    needs(*formats.get(FORMATS[title]).needs)
    export(folder / "model.safetensors", FORMATS[title], images=4, force=True)
    check(title, folder)


@pytest.mark.heavy
def test_timm_says_what_predict_says(timm, folder):
    convert_file(folder / "model.safetensors", folder / f"{NETWORK}.pth", to="timm", force=True)
    check("timm", folder, WITH_TIMM)
