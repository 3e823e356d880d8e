"""A recipe that trains in seconds and uses everything that draws random numbers."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from excite.recipe import Recipe, apply_overrides, as_yaml

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "cifar_seresnet20", "drop_rate": 0.1, "drop_path_rate": 0.1},
    "data": {
        "source": "digits",
        "image_size": 8,
        "in_chans": 1,
        "crop_pct": 1.0,
        "limit_train": 200,
        "limit_val": 100,
    },
    "augment": {"crop": "pad", "pad": 1, "rotation": 10.0, "mixup": 0.2, "random_erasing": 0.2},
    "optimizer": {"lr": 0.05, "nesterov": True, "decay_norm_and_bias": False},
    "schedule": {"warmup_epochs": 0.5},
    "train": {"epochs": 3, "batch_size": 32, "ema_decay": 0.9, "label_smoothing": 0.1, "precision": "fp32"},
    "checkpoint": {"every_steps": 2},
    "log": {"every_steps": 1},
    "report": {"write": False},
}


def small(*overrides: str) -> Recipe:
    """The small recipe with changes."""
    return Recipe.from_dict(apply_overrides(SMALL, list(overrides)))


class Tiny(NamedTuple):
    """Run folders that many tests read; copy one before a test that writes into it."""

    gated: Path
    bare: Path


#: Of the digits: no valid formula of Matplotlib's, one that is markup, one in another script. Sorted, as folders are.
CLASSES = ["$x^$", *"2345678", "<i>9", "二"]


def make_tiny(folder: Path) -> None:
    """Train what :class:`Tiny` names, in ``gated/`` and ``bare/``."""
    from excite.training import train

    words = ("report.robustness_images=20", "report.gate_images=20", f"data.class_names={as_yaml(CLASSES)}")
    common = ("train.epochs=2", "mixup=0.0", *words)
    aside = folder.with_name(f"{folder.name}.part")
    train(small(*common), out=aside / "gated", quiet=True)
    train(small(*common, "model.name=cifar_resnet20", "name=bare"), out=aside / "bare", quiet=True)
    aside.rename(folder)


def tensors(run: str | Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """The tensors of the last checkpoint of a run."""
    from safetensors.torch import load_file

    return load_file(sorted(Path(run).glob("checkpoints/step-*"))[-1] / name)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(run: str | Path, kind: str = "train") -> list[dict[str, Any]]:
    """The records of one kind in ``metrics.jsonl``."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]
