"""A torchvision that does not load, as its wheels beside a CPU build of torch, stops nothing that does not need it."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

PROGRAM = """
from excite.errors import ExciteError
import excite.trained.accuracy, excite.report.build  # torchmetrics imports torchvision where it is
from excite.models import create_model
try:
    create_model("timm:resnet18")
except ExciteError as error:
    print(error)
"""


FAILURES = ["operator torchvision::nms does not exist", "operator torchvision::roi_align does not exist", "no libpng"]


def run(folder, fails, program):
    for name, text in (("torchvision", f"raise RuntimeError({fails!r})"), ("timm", "import torchvision")):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    environment = {"PATH": "", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="a real torchvision is installed here, too")
@pytest.mark.parametrize("fails", [FAILURES[0], *(pytest.param(f, marks=pytest.mark.slow) for f in FAILURES[1:])])
@pytest.mark.heavy
def test_a_broken_torchvision_is_a_sentence_of_timm_alone(tmp_path, fails):
    done = run(tmp_path, fails, PROGRAM)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(f"because torchvision, which it needs, does not load ({fails})")


@pytest.mark.heavy
def test_one_that_is_installed_is_a_sentence_for_all(tmp_path):
    """torchmetrics believes the installer's files and imports it."""
    about = tmp_path / "torchvision-0.99.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    program = "import sys; from excite.cli import main; sys.argv = ['excite', 'train', 'digits-seresnet20']; main()"
    done = run(tmp_path, "no libpng", program)
    assert done.returncode == 1
    assert "torchvision is installed and does not load (no libpng): repair it, or uninstall it" in " ".join(
        done.stderr.split()
    )
    assert "Traceback" not in done.stderr
