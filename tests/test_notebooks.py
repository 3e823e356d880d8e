"""The notebooks of docs/notebooks/: kept without outputs, and run by Jupyter on tiny data."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest

from excite.recipe import load_recipe
from tests.conftest import absent
from tests.training.small import SMALL, small

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FAST = {"report": {"write": True, "robustness_images": 10, "gate_images": 10}}


@pytest.fixture(scope="module")
def jupyter(peers):
    """nbclient and a kernel, where `make test-peers` puts them."""
    folder = Path(peers, "notebooks") if peers else None
    if folder is not None and folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        import ipykernel  # noqa: F401
        import nbclient
        import nbformat
    except ImportError as error:
        absent(error, peers)
    return nbclient, nbformat, folder


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["compare-gates", "photographs"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_its_recipe_loads(path):
    cells = cells_of(path)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))
    [parameters] = [cell for cell in code if cell["metadata"].get("tags") == ["parameters"]]
    values: dict = {}
    exec("".join(parameters["source"]), values)
    load_recipe(values["recipe"], values["changes"])


def run_notebook(name: str, parameters: str, jupyter, folder: Path, monkeypatch) -> list:
    """The cells with what they gave, after ``parameters`` took the place of the notebook's own."""
    nbclient, nbformat, extra = jupyter
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = parameters
    places = [str(ROOT / "src"), *([str(extra)] if extra else []), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pages_of(cell) -> list[str]:
    return [output["data"]["text/html"] for output in cell.outputs if "text/html" in output.get("data", {})]


def printed(cell, stream: str = "stdout") -> str:
    return "".join(
        output["text"] for output in cell.outputs if output.output_type == "stream" and output.name == stream
    )


def check_one_display(cell, trainings: int) -> None:
    """A training is one display with curve and bar, whose last state stays; the report's bar is taken away again."""
    pictures = [page for page in pages_of(cell) if page]
    assert len(pictures) == trainings
    for page in pictures:
        assert page.count("<svg ") == 2  # loss and accuracy
        assert "100 %" in page
        assert "0:00:00 left" in page
    assert "run folder" in printed(cell)
    assert "img/s" not in printed(cell)  # no line for each record beside the display
    assert "validation loss" not in printed(cell)
    assert "starting" not in printed(cell)  # nor a terminal's bar
    assert printed(cell, "stderr") == ""


@pytest.mark.heavy
def test_from_photographs_to_onnx(jupyter, tmp_path, monkeypatch):
    from PIL import Image

    from excite.data import open_data

    images, labels = (lambda part: (part.images, part.labels))(open_data(small().data).train)
    for i in range(60):
        place = tmp_path / "photos" / f"digit {int(labels[i])}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i, 0].numpy()).resize((24, 20)).save(place / f"{i}.png")
    data = {"source": "folder", "image_size": 16, "in_chans": 1, "val_fraction": 0.3}
    (tmp_path / "small.yaml").write_text(json.dumps({**SMALL, **FAST, "data": data}))
    parameters = 'photos, recipe, changes = "photos", "small.yaml", {"epochs": 2, "mixup": 0.0}'
    _, training, model, called, report, export, ran = run_notebook(
        "photographs", parameters, jupyter, tmp_path, monkeypatch
    )
    check_one_display(training, 1)
    assert "cifar_seresnet20" in pages_of(model)[0]
    assert pages_of(called)[0].count("<img ") == 12
    assert "report.html" in pages_of(report)[-1]
    assert (tmp_path / "report.html").is_file()
    assert "onnx fp32" in export.outputs[-1]["data"]["text/plain"]
    name, answer = ast.literal_eval(ran.outputs[-1]["data"]["text/plain"])
    [run] = (tmp_path / "runs").iterdir()
    from excite import load

    photo = next(path for path in sorted((tmp_path / "photos").rglob("*")) if path.is_file())
    assert (name, answer) == (photo.name, load(run)(photo)[0].top[0][0])


@pytest.mark.heavy
def test_comparing_gates(jupyter, tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(json.dumps({**SMALL, **FAST}))
    parameters = 'recipe, changes, gates = "small.yaml", {"epochs": 2, "mixup": 0.0}, ["none", "se"]'
    _, recipe, training, comparison, explanation = run_notebook(
        "compare-gates", parameters, jupyter, tmp_path, monkeypatch
    )
    assert "cifar_seresnet20" in pages_of(recipe)[0]
    check_one_display(training, 2)
    assert "McNemar" in pages_of(comparison)[-1]
    assert (tmp_path / "gates.html").is_file()
    assert "layer1.0.gate" in pages_of(explanation)[-1]
