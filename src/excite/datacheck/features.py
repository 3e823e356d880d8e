"""Features of the images that labels and outliers are judged by: a network's, or a few fixed ones of colour and form.

Shapes: N images, D features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from excite.data.ahead import decoded_batches
from excite.datacheck.copies import layout
from excite.datacheck.items import Items
from excite.datacheck.kept import Arrays, kept, place_of
from excite.datacheck.look import Looks
from excite.progress import Progress, silent
from excite.runtime.device import DTYPES
from excite.runtime.rows import Rows
from excite.trained.predictor import Predictor

_BATCH = 128


@dataclass(frozen=True)
class Features:
    """What is known of each readable image.

    Attributes:
        values: float32 (N, D), a row for each item; zeros for unreadable ones.
        logits: float32 (N, K) of the run's network, or None without a run.
        source: what they are, for people.
    """

    values: np.ndarray
    logits: np.ndarray | None
    source: str


def fixed_features(looks: Looks) -> Features:
    """Edges by place and direction, and coarse brightness and colour: N x 209, from the 32 x 32 pictures.

    They know little of what a picture shows; a trained network's features are far better.
    """
    values = np.zeros((len(looks.rows), 209), np.float32)
    good = looks.good
    some = looks.rows[good]
    dark = some["grey"].reshape(len(some), -1).astype(np.float32)
    brightness = np.stack([dark.mean(1), dark.std(1)], 1) / 64
    values[good] = np.concatenate(
        [some["edges"].astype(np.float32), 3 * layout(some).numpy(), brightness, some["mean"] / 64, _shape(some)], 1
    )
    return Features(values, None, "colours and edges of 32 x 32 pixels")


def _shape(rows: np.ndarray) -> np.ndarray:
    """float32 (N, 7): nothing of size or file goes in, which has a check of its own; colour differences do."""
    colour = rows["colour"].astype(np.float32).reshape(len(rows), 2, -1)
    light = rows["grey"].astype(np.float32)
    halves = np.stack([light[:, :16].mean((1, 2)), light[:, 16:].mean((1, 2)), light[:, 8:24, 8:24].mean((1, 2))], 1)
    return np.concatenate([colour.mean(2) / 32, colour.std(2) / 16, halves / 64], 1)


def network_features(
    predictor: Predictor, weights: str, items: Items, looks: Looks, source: str, progress: Progress = silent
) -> Features:
    """The input of a network's last layer, and its logits, for every readable image; kept in the cache folder.

    Args:
        predictor: the network.
        weights: digest of its weights, for the cache.
        items: the images.
        looks: what was seen of them.
        source: what to call the features.
        progress: called during the work.

    Raises:
        BadImageError: an image that could be read can no longer be.
    """
    preprocessing = predictor.preprocessing
    good: Sequence[int] = looks.good.tolist()

    def load(item: int) -> Tensor:
        return preprocessing.load(items.source(item), items.max_pixels)

    def run() -> Arrays:
        inner, outer = Rows(), Rows()
        beside = predictor.device.type != "cpu"
        for batch in decoded_batches(good, load, _BATCH, path_of=items.path, beside=beside):
            before, after = _both(predictor, torch.stack([pixels for _, pixels in batch]))
            inner.add(before)
            outer.add(after)
            progress("running the network", len(inner), len(good))
        return {"values": _spread(inner.all(), looks), "logits": _spread(outer.all(), looks)}

    key = f"{weights}\0{preprocessing}\0{predictor.precision}\0".encode() + looks.rows["key"].tobytes()
    found = kept(place_of(items, "features"), key, run)
    return Features(found["values"], found["logits"], source)


def _spread(rows: np.ndarray, looks: Looks) -> np.ndarray:
    """Rows of the readable images -> rows of all images, zeros for the others."""
    out = np.zeros((len(looks.rows), rows.shape[1]), np.float32)
    out[looks.good] = rows
    return out


@torch.inference_mode()
def _both(predictor: Predictor, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed uint8 images (B, C, S, S) -> the input of the last layer (B, D) and the logits (B, K), float32."""
    x = predictor.preprocessing.normalize(images.to(predictor.device)).contiguous(memory_format=torch.channels_last)
    precision = predictor.precision
    model: nn.Module = predictor.model
    with torch.autocast(predictor.device.type, DTYPES[precision], enabled=precision != "fp32"):
        maps = model.forward_features(x)  # type: ignore[operator]
        before = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        after = model.forward_head(maps)  # type: ignore[operator]
    return before.float().flatten(1).cpu().numpy(), after.float().cpu().numpy()
