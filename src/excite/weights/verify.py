"""Compares the outputs of two networks, and finds the first place where they differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from excite.errors import ExciteError, first_line, nearest
from excite.models import Classifier
from excite.untrusted.npz import read_npz

#: Largest relative difference at which float32 networks count as the same.
TOLERANCE = 1e-4
INPUTS = ("input", "input_nhwc", "x", "images")
#: Other names for the places of ``trace``.
ALIASES = {"maxpool": "pool0", "pool": "pool0", "conv1": "stem", "output": "logits", "out": "logits", "fc": "logits"}


class DifferenceRow(TypedDict):
    """A :class:`Difference` for tables and JSON; ``shape`` is like "1x64x56x56"."""

    place: str
    shape: str
    relative: float


@dataclass(frozen=True)
class Difference:
    """The comparison at one place: the largest difference, relative to the largest value of the reference."""

    place: str
    shape: tuple[int, ...]
    relative: float

    def row(self) -> DifferenceRow:
        """The values for tables and JSON."""
        return {"place": self.place, "shape": "x".join(map(str, self.shape)), "relative": self.relative}


@dataclass(frozen=True)
class Reference:
    """What another system computed: an input (N, C, H, W) and outputs by place; ``skipped`` names match no place."""

    images: Tensor
    outputs: dict[str, Tensor]
    skipped: list[str]


@torch.no_grad()
def trace(model: Classifier, images: Tensor) -> dict[str, Tensor]:
    """All intermediate maps in order: stem, pool0, layer1.0 ... layer1, layer2.0 ..., features, pooled, logits."""
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
        places["pooled"] = model.pooled(x)
        places["logits"] = model.forward_head(x)
    finally:
        model.train(was_training)
    return places


def differences(places: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[Difference]:
    """Compare what both have, in the order of ``places``. A reference may only hold the first images of the batch.

    Raises:
        ExciteError: there is nothing to compare, or shapes differ.
    """
    found = []
    for place, mine in places.items():
        if place not in reference:
            continue
        theirs = reference[place]
        if mine.shape[1:] != theirs.shape[1:] or len(theirs) > len(mine):
            raise ExciteError(
                f"at {place} the network has the shape {tuple(mine.shape)}, the reference {tuple(theirs.shape)}"
            )
        found.append(Difference(place, tuple(theirs.shape), relative_error(mine[: len(theirs)], theirs)))
    if not found:
        raise ExciteError(f"the reference has nothing to compare: its places are {', '.join(reference) or 'none'}")
    return found


def relative_error(mine: Tensor, theirs: Tensor) -> float:
    """max |mine - theirs| / max |theirs|, in float64; infinite if either is not finite."""
    a, b = mine.double(), theirs.double()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    scale = b.abs().max().item()
    difference = (a - b).abs().max().item()
    return difference / scale if scale else (0.0 if difference == 0.0 else float("inf"))


def first_apart(found: list[Difference], tolerance: float = TOLERANCE) -> Difference | None:
    """The first place from image to logits that differs by more than ``tolerance``."""
    return next((d for d in found if d.relative > tolerance), None)


def read_reference(path: str | Path) -> Reference:
    """Read an ``.npz`` with ``input`` (N, C, H, W) or ``input_nhwc``, ``logits`` (N, K), and outputs ``out_PLACE``.

    Raises:
        ExciteError: there is no such file, it does not hold numbers, or it has no input.
    """
    arrays = _read_npz(Path(path))
    name = next((key for key in INPUTS if key in arrays), None)
    if name is None:
        raise ExciteError(
            f"{path} has no input: it needs one of {', '.join(INPUTS)} besides {', '.join(arrays) or 'the outputs'}"
        )
    images = _as_tensor(arrays.pop(name), name)
    if images.ndim != 4 or not len(images):
        raise ExciteError(
            f"{path}: {name} must be a batch of images (N, C, H, W), but has the shape {tuple(images.shape)}"
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
                raise ExciteError(f"{path} is a single array; give an .npz with input and logits")
        return read_npz(path)
    except FileNotFoundError:
        raise ExciteError(f"there is no file {path} to verify with") from None
    except (OSError, ValueError) as error:
        raise ExciteError(f"{path} is not a readable .npz of numbers: {first_line(error)}") from None


def _as_tensor(array: np.ndarray[Any, Any], key: str) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ExciteError(f"{key} holds {array.dtype}, not numbers")
    tensor = torch.from_numpy(np.ascontiguousarray(array)).float()
    return tensor.permute(0, 3, 1, 2).contiguous() if key.endswith("_nhwc") and tensor.ndim == 4 else tensor


def check_places(reference: Reference, model: Classifier, path: str | Path) -> None:
    """Raise ExciteError if an output matches no place of this network, since it would silently not be compared."""
    with torch.device("cpu"):
        known = list(trace(model, reference.images[:1]))
    for place in reference.outputs:
        if place not in known:
            raise ExciteError(f"{path}: {model.model_name} has no place {place!r}{nearest(place, known)}")
