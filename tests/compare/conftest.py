"""What the tests of comparing share: made-up runs, and two small trained ones."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from excite.compare.runs import Run
from excite.recipe import load_recipe
from excite.trained.predictions import Predictions

CLASSES = ("cat", "dog", "owl")


def made_up(label: str, logits: np.ndarray, labels: np.ndarray, **changes: Any) -> Run:
    """A run with these logits (N, K) for images of these classes; ``changes`` go to its predictions or to itself."""
    classes = changes.pop("classes", CLASSES)
    predictions = Predictions(
        logits=logits.astype(np.float32),
        labels=labels,
        positions=changes.pop("positions", np.arange(len(labels))),
        names=changes.pop("names", tuple(f"#{i}" for i in range(len(labels)))),
        classes=classes,
        fingerprint=changes.pop("fingerprint", "the same"),
        weights=label,
        precision="fp32",
        preprocessing={},
    )
    recipe = load_recipe("digits-seresnet20", changes.pop("overrides", [])).model_dump(mode="json")
    values: dict[str, Any] = {
        "source": f"runs/{label}",
        "meta": {"model": {"name": "cifar_resnet20", "args": {}}, "metrics": None, "precision": "fp32"},
        "gate": None,
        "params": 1000,
        "gmacs": 0.01,
        "body": frozenset(),
        "weights": label,
        "recipe": recipe,
        "predictions": predictions,
    }
    return Run(label=label, **{**values, **changes})


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    """True classes of 200 images."""
    return np.random.default_rng(0).integers(0, 3, 200)


@pytest.fixture(scope="session")
def three(labels) -> list[Run]:
    """Three made-up runs, better and better."""
    rng, truth = np.random.default_rng(1), np.eye(3)[labels]
    return [
        made_up(name, s * truth + rng.normal(size=(200, 3)), labels) for name, s in (("a", 1), ("b", 1.3), ("c", 3))
    ]


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> tuple[Path, Path]:
    """Run folders of a small network without gates and of its gated twin; comparing keeps their predictions in them."""
    out = tmp_path_factory.mktemp("compare")
    bare, gated = (Path(shutil.copytree(run, out / run.name)) for run in (tiny.bare, tiny.gated))
    return bare, gated
