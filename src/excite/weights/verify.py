"""Do two networks compute the same, and where do they part?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from excite.errors import ExciteError, first_line, nearest
from excite.models import Classifier
from excite.ops import spatial_mean
from excite.untrusted.npz import read_npz

#: Largest relative difference of float32 networks that count as the same.
TOLERANCE = 1e-4
INPUTS = ("input", "input_nhwc", "x", "images")
#: What others call the places of ``trace``.
ALIASES = {"maxpool": "pool0", "pool": "pool0", "conv1": "stem", "output": "logits", "out": "logits", "fc": "logits"}


class DifferenceRow(TypedDict):
    """A :class:`Difference` for tables and JSON; ``shape``: "1x64x56x56"."""

    place: str
    shape: str
    relative: float


@dataclass(frozen=True)
class Difference:
    """One place compared: the largest difference, over the largest value of the reference."""

    place: str
    shape: tuple[int, ...]
    relative: float

    def row(self) -> DifferenceRow:
        """For tables and JSON."""
        return {"place": self.place, "shape": "x".join(map(str, self.shape)), "relative": self.relative}


@dataclass(frozen=True)
class Reference:
    """What another system computed: an input (N, C, H, W), and outputs by place; ``skipped``: names of no place."""

    images: Tensor
    outputs: dict[str, Tensor]
    skipped: list[str]


@torch.no_grad()
def trace(model: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Every map on the way, in order: stem, pool0, layer1.0 ... layer1, layer2.0 ..., features, pooled, logits."""
    was_training = model.training
    model.eval()
    try:
        x = model.stem_map(images)
        places = {"stem": x}
        x = model.before_stages(x)
        if x is not places["stem"]:
            places["pool0"] = x
        for number, stage in enumerate(model.stages(), 1):
            for index, block in enumerate(stage):
                x = block(x)
                places[f"layer{number}.{index}"] = x
            places[f"layer{number}"] = x
        places["features"] = x = model.after_stages(x)
        places["pooled"] = spatial_mean(x)
        places["logits"] = model.forward_head(x)
    finally:
        model.train(was_training)
    return places


def differences(places: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[Difference]:
    """Compare what both have, in the order of ``places``; a reference may hold the first images of the batch only.

    Raises:
        ExciteError: nothing to compare, or shapes that cannot be.
    """
    found = []
    for place, mine in places.items():
        if place not in reference:
            continue
        theirs = reference[place]
        if mine.shape[1:] != theirs.shape[1:] or len(theirs) > len(mine):
            raise ExciteError(f"at {place} the network gives {tuple(mine.shape)}, the reference {tuple(theirs.shape)}")
        found.append(Difference(place, tuple(theirs.shape), relative_error(mine[: len(theirs)], theirs)))
    if not found:
        raise ExciteError(f"the reference has nothing to compare with: its places are {', '.join(reference) or 'none'}")
    return found


def relative_error(mine: Tensor, theirs: Tensor) -> float:
    """max |mine - theirs| / max |theirs|, in float64; infinite where either is not finite."""
    a, b = mine.double(), theirs.double()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    scale = b.abs().max().item()
    difference = (a - b).abs().max().item()
    return difference / scale if scale else (0.0 if difference == 0.0 else float("inf"))


def first_apart(found: list[Difference], tolerance: float = TOLERANCE) -> Difference | None:
    """The first place, on the way from image to logits, that differs by more than ``tolerance``."""
    return next((d for d in found if d.relative > tolerance), None)


def read_reference(path: str | Path) -> Reference:
    """An ``.npz`` with ``input`` (N, C, H, W) or ``input_nhwc``, ``logits`` (N, K), and outputs ``out_PLACE``.

    Raises:
        ExciteError: no such file, not one of numbers, or no input in it.
    """
    arrays = _read_npz(Path(path))
    name = next((key for key in INPUTS if key in arrays), None)
    if name is None:
        raise ExciteError(
            f"{path} has no input: one of {', '.join(INPUTS)} is needed beside {', '.join(arrays) or 'it'}"
        )
    images = _as_tensor(arrays.pop(name), name)
    if images.ndim != 4 or not len(images):
        raise ExciteError(
            f"{path}: {name} must be a batch of images, (N, C, H, W), and has the shape {tuple(images.shape)}"
        )
    outputs: dict[str, Tensor] = {}
    skipped = []
    for key, array in arrays.items():
        place = key.removeprefix("out_").removesuffix("_nhwc")
        place = ALIASES.get(place, "logits" if place.startswith("logits") else place)
        if array.dtype.kind != "f" or place in outputs:
            skipped.append(key)
        else:
            outputs[place] = _as_tensor(array, key)
    return Reference(images, outputs, skipped)


def _read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise ExciteError(f"{path} is one array; an .npz with input and logits is needed")
        return read_npz(path)
    except FileNotFoundError:
        raise ExciteError(f"there is no file {path} to verify with") from None
    except (OSError, ValueError) as error:
        raise ExciteError(f"{path} is no readable .npz of numbers: {first_line(error)}") from None


def _as_tensor(array: np.ndarray[Any, Any], key: str) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ExciteError(f"{key} holds {array.dtype}, not numbers")
    tensor = torch.from_numpy(np.ascontiguousarray(array)).float()
    return tensor.permute(0, 3, 1, 2).contiguous() if key.endswith("_nhwc") and tensor.ndim == 4 else tensor


def check_places(reference: Reference, model: Classifier, path: str | Path) -> None:
    """Raise ExciteError where an output belongs to no place of this network: it would go uncompared in silence."""
    with torch.device("cpu"):
        known = list(trace(model, reference.images[:1]))
    for place in reference.outputs:
        if place not in known:
            raise ExciteError(f"{path}: {place!r} is no place of {model.model_name}{nearest(place, known)}")
