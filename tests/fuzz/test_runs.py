"""Run folders that somebody sent: each file damaged, and whatever reads them; a page, numbers, or one sentence."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from excite.compare import compare
from excite.compare.runs import read_run as read_compared
from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.report.build import _curves, report
from excite.report.build import read_run as read_reported
from excite.runtime.environment import read_environment
from excite.storage.runs import foreign_address, read_marker, uploads_to
from excite.trained.accuracy import validate
from excite.trained.opened import open_trained
from excite.trained.predictions import FILE, Predictions, predict_all
from excite.training import checkpoint as ckpt
from excite.training import train
from excite.training.results import read_results
from excite.training.run_folder import draw_curves, read_metrics
from excite.weights.locate import saved_steps, step_folder

from .harness import CASES, LONG, Case, Surface, check_sentence
from .mutations import boundary, changed, mutated

TEXTS = ("recipe.yaml", "results.json", "metrics.jsonl", "environment.json", "remote.json")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run with every file that one can have."""
    folder = tmp_path_factory.mktemp("sent") / "run"
    shutil.copytree(tiny.gated, folder)
    (folder / "remote.json").write_text(json.dumps({"url": "s3://somebody/elses", "fetched": True, "pending": 3}))
    predict_all(open_trained(str(folder))).save(folder / FILE)
    return folder


def _json(rng: random.Random, content: bytes) -> bytes:
    return json.dumps(changed(rng, json.loads(content)), ensure_ascii=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def _lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    for _ in range(rng.choice((1, 1, 3, 8))):
        at = rng.randrange(len(lines))
        lines[at] = rng.choice(
            (_json(rng, content.splitlines()[0]), json.dumps(boundary(rng)).encode(), lines[at - 1], b"")
        )
    return b"\n".join(lines)


def _yaml(rng: random.Random, content: bytes) -> bytes:
    values = changed(rng, yaml.safe_load(content))
    try:
        return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return json.dumps(values).encode()


STRUCTURES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "results.json": _json,
    "environment.json": _json,
    "remote.json": _json,
    "metrics.jsonl": _lines,
    "recipe.yaml": _yaml,
}


def spoil(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    change = STRUCTURES.get(path.name)
    spoilt = change(rng, content) if change is not None and rng.random() < 0.6 else mutated(rng, content, head=4000)
    path.unlink()  # a link to the file of the original run
    if rng.random() < 0.97:
        path.write_bytes(spoilt)


def linked(source: Path, folder: Path) -> Path:
    """A copy of a run whose files are links, so that a case costs little."""
    return Path(shutil.copytree(source, folder / "run", copy_function=lambda a, b: Path(b).symlink_to(a)))


def refused(reader: Callable[..., Any], *arguments: Any) -> str | None:
    """What a reader says against it; anything but a sentence is raised."""
    try:
        reader(*arguments)
    except ExciteError as error:
        check_sentence(error)
        return str(error)
    return None


def test_files(run):
    """The readers of each file, one by one: the others' damage does not matter to them."""

    def one(case: Case) -> None:
        folder = linked(run, case.folder)
        step = step_folder(folder, saved_steps(folder)[-1])
        name = case.rng.choice((*TEXTS, *TEXTS, FILE, "state.pt"))
        spoil(case.rng, step / name if name == "state.pt" else folder / name)
        slow = name == "recipe.yaml" or case.index % 10 == 0
        said = [refused(load_recipe, str(folder)) if slow else None]
        said += [refused(read_marker, folder), refused(uploads_to, folder)]
        said += [refused(foreign_address, folder), refused(read_results, folder / "results.json")]
        said += [
            refused(read_environment, folder / "environment.json"),
            refused(ckpt.load_state, step) if slow or name == "state.pt" else None,
        ]
        records = read_metrics(folder / "metrics.jsonl")
        assert all(isinstance(record, dict) for record in records)
        found = Predictions.read(folder / FILE)
        assert found is None or len(found) == len(found.labels)
        said.append(refused(lambda: _curves(read_reported(folder).files, "balanced")))
        if case.index % 20 == 0 and name == "metrics.jsonl":
            draw_curves(folder, "x", "balanced")
        if found is not None:
            assert uploads(folder) is None
        mine = {"recipe.yaml": said[0], "remote.json": said[1], "results.json": said[4], "state.pt": said[6]}
        if mine.get(name) is not None:
            raise ExciteError(mine[name])

    def uploads(folder: Path) -> str | None:
        try:
            return uploads_to(folder)  # an address that this user never gave is never used
        except ExciteError:
            return None

    surface = Surface("run files", seconds=20, megabytes=512)
    surface.run(one, test="test_runs.py::test_files")
    assert surface.refused > surface.cases // 10


def test_commands(run, tiny, monkeypatch, tmp_path):
    """What a user does with a run that somebody sent; each of these takes a second."""
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))
    monkeypatch.setattr("excite.runtime.environment.git_state", lambda: None)  # no program is started but git
    uses: dict[str, Callable[[Path], object]] = {
        "validate": lambda folder: validate(folder),
        "compare": lambda folder: compare([folder, tiny.bare]).to_html(),
        "read": lambda folder: read_compared(str(folder), "x"),
        "report": lambda folder: report(
            folder, ["report.robustness_images=2", "report.gate_images=2"], images=20, quick=True
        ),
        "resume": lambda folder: train(resume=folder, quiet=True),
        "more epochs": lambda folder: train(load_recipe(str(folder), ["train.epochs=3"]), resume=folder, quiet=True),
    }
    for use in uses.values():  # first with a whole run, unwatched: PyTorch and Matplotlib make their caches
        use(Path(shutil.copytree(run, tmp_path / "warm", dirs_exist_ok=True)))

    def one(case: Case) -> None:
        folder = Path(shutil.copytree(run, case.folder / "run"))
        names = [*TEXTS, FILE, "model.safetensors", "state.pt", "steps/model.safetensors", "steps/ema.safetensors"]
        for name in case.rng.sample(names, case.rng.choice((1, 1, 2))):
            steps = step_folder(folder, saved_steps(folder)[-1]) if saved_steps(folder) else folder
            path = steps / Path(name).name if name.startswith("steps/") or name == "state.pt" else folder / name
            if path.is_file():
                spoil(case.rng, path)
        if (folder / "results.json").is_file() and case.rng.random() < 0.3:
            (folder / "results.json").unlink()
        uses[case.rng.choice(list(uses))](folder)

    cases = CASES // 20 if LONG else CASES // 25
    writable = (tmp_path, Path("/tmp"), Path("/dev/shm"))
    Surface("run commands", seconds=120, megabytes=1500, cases=cases, writable=writable).run(
        one, test="test_runs.py::test_commands"
    )
