"""What the tests of the report share: a small run, made-up predictions, and a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from excite import cli
from excite.trained.predictions import Predictions
from excite.trained.predictor import load
from excite.weights.own import save_weights


def numbered(run: Path, path: Path, **changes: object) -> Path:
    """The run's weights as ``excite convert`` writes those of a system that stores no names of classes."""
    stored = load(run, "cpu")
    meta = {
        **stored.meta,
        "classes": [str(number) for number in range(len(stored.classes))],
        "converted_from": {"source": "theirs.ckpt"},
    }
    save_weights(path, stored.model, {**meta, **changes})
    return path


@pytest.fixture(scope="session", autouse=True)
def short_timing() -> Iterator[None]:
    """The fewest rounds: how fast the small network is, no test asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("excite.report.build._TIMING_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def trained(tiny) -> Path:
    """A small gated network's run folder; copy it before a test that writes into it."""
    return tiny.gated


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def reported(trained, tmp_path_factory) -> Path:
    """A run with its report, made by the command."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("reported") / "run"))
    with pytest.raises(SystemExit) as ended:
        cli.app(["report", str(run)])
    assert ended.value.code == 0
    return run


@pytest.fixture
def made_up():
    """A function (images, classes, seed) -> Predictions that are right more often than not, one class being absent."""

    def make(images: int = 200, classes: int = 7, seed: int = 0) -> Predictions:
        rng = np.random.default_rng(seed)
        labels = rng.integers(classes - 1, size=images)
        logits = 2 * rng.standard_normal((images, classes)).astype(np.float32)
        logits[np.arange(images), labels] += 2.5
        names = tuple(f"#{i}" for i in range(images))
        positions = np.arange(images)
        return Predictions(
            logits, labels, positions, names, tuple(f"c{k}" for k in range(classes)), "data", "w", "fp32", {}
        )

    return make
