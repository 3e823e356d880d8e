"""No Python process that the package starts takes a file of the current folder for a module."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import excite
from excite.children import python_command, safe_children
from tests.training.small import SMALL, small

SOURCES = Path(excite.__file__).parent
#: As the installed command does it: a script that lies elsewhere, without -P.
COMMAND = "from excite.cli import main\nmain()\n"


@pytest.fixture
def trap(tmp_path) -> Path:
    """A folder with a file of the name of every module of the standard library; each tells when it is run."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in sys.stdlib_module_names - set(sys.builtin_module_names):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + '\\n')\n")
    return folder


def run(trap: Path, *words: object) -> str:
    """The command in the trap folder; every process of it must have left the files there alone."""
    script = trap.parent / "excite-command.py"
    script.write_text(COMMAND)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(command, cwd=trap, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (trap.parent / "ran").exists(), (trap.parent / "ran").read_text()
    return done.stdout


def test_the_trap_works(trap, monkeypatch):
    """Without -P the first import takes the file."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # a command that ran in this process before has set it
    subprocess.run([sys.executable, "-c", "import colorsys"], cwd=trap, capture_output=True)
    assert "colorsys" in (trap.parent / "ran").read_text()
    (trap.parent / "ran").unlink()
    subprocess.run(python_command("-c", "import colorsys"), cwd=trap, check=True)
    with safe_children():
        subprocess.run([sys.executable, "-c", "import colorsys"], cwd=trap, check=True)
    assert not (trap.parent / "ran").exists()
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.slow
def test_workers_that_decode_images_and_processes_of_a_training(trap):
    """``data.workers`` are forked from a server, ``train.devices`` are started by torch's launcher."""
    for part, name in [(part, name) for part in ("train", "val") for name in "ab"]:
        folder = trap.parent / "images" / part / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = {"source": "folder", "root": str(trap.parent / "images"), "mode": "stream", "workers": 1}
    recipe = small().from_dict({**SMALL, "data": {**data, "image_size": 8, "in_chans": 1}})
    (trap.parent / "small.yaml").write_text(recipe.to_yaml())
    words = ["epochs=1", "batch_size=4", "train.devices=2", "warmup_epochs=0", "report.write=false"]
    run(trap, "train", trap.parent / "small.yaml", "--out", trap.parent / "runs", *words)
    assert list((trap.parent / "runs").glob("*/results.json"))


@pytest.mark.heavy
def test_measurements_of_bench(trap):
    assert "img/s" in run(trap, "bench", "cifar_resnet20", "--batch", 2, "--image-size", 8, "--rounds", 1, "--steps", 2)


def test_python_m_excite_forgets_the_current_folder(trap):
    """What Python itself imports to find the module is not ours to choose; everything after it is."""
    for file in trap.iterdir():
        if file.stem not in ("json", "csv", "email", "zipfile", "argparse", "decimal", "shlex", "tempfile"):
            file.unlink()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    command = [sys.executable, "-m", "excite", "recipes"]
    done = subprocess.run(command, cwd=trap, env=environment, capture_output=True, text=True)
    assert "digits-seresnet20" in done.stdout, done.stderr
    assert not (trap.parent / "ran").exists(), (trap.parent / "ran").read_text()


def test_every_python_process_is_started_in_one_way():
    """Whoever names the interpreter uses the options, too (MindSpore's may be too old for them: by the variable)."""
    allowed = {"children.py": 1, "training/launch.py": 1, "bench/runner.py": 1, "bench/mindspore_worker.py": 1}
    found = {
        path.relative_to(SOURCES).as_posix(): len(re.findall(r"sys\.executable", path.read_text()))
        for path in SOURCES.rglob("*.py")
    }
    assert {path: count for path, count in found.items() if count} == allowed
    assert "(*python_options()," in (SOURCES / "training/launch.py").read_text()
    assert "**SAFE_PATH" in (SOURCES / "bench/runner.py").read_text()
