"""A torchvision that does not load, as its wheels beside a CPU build of torch, stops nothing that does not need it."""

import subprocess
import sys

import pytest

PROGRAM = """
from excite.errors import ExciteError
import excite.inference, excite.report.build  # torchmetrics imports torchvision where it is
from excite.models import create_model
try:
    create_model("timm:resnet18")
except ExciteError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "fails", ["operator torchvision::nms does not exist", "operator torchvision::roi_align does not exist", "no libpng"]
)
def test_a_broken_torchvision_is_a_sentence_of_timm_alone(tmp_path, fails):
    for name, text in (("torchvision", f"raise RuntimeError({fails!r})"), ("timm", "import torchvision")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    environment = {"PATH": "", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(f"because torchvision, which it needs, does not load: {fails}")
