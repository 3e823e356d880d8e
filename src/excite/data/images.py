"""The two forms of a set of labelled images: one array, or files.

Shapes: N images, C channels, H x W pixels.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from excite.data.decode import as_picture
from excite.data.geometry import Fit, Interpolation
from excite.data.labels import rarest, several
from excite.data.labels import take as take_labels
from excite.data.packed import Member, Packed
from excite.data.pixels import FULL_WHITE
from excite.data.resize import eval_transform
from excite.data.room import room_for
from excite.size import as_size


@dataclass
class ArrayImages:
    """Images in memory: `images` uint8 (N, C, H, W), with C = 1 for grey sources, and `labels` int64 (N,), or uint8
    (N, K) of images with several.

    `names` are for display: those of the files, as in `FileImages`, else "#" and the position in the source from 0.
    `weights` are those of `FileImages`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str] = field(default_factory=list)
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.names = self.names or [f"#{position}" for position in range(len(self.labels))]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> "ArrayImages":
        """The images at these positions, in this order."""
        chosen = torch.from_numpy(index)
        pixels = room_for((len(index), *self.images.shape[1:]))
        torch.index_select(self.images, 0, chosen, out=pixels)
        weights = None if self.weights is None else self.weights[index]
        return ArrayImages(pixels, self.labels[chosen], [self.names[i] for i in index], weights)

    def digests(self) -> list[bytes]:
        """A 16-byte digest of each image's pixels and label."""
        pixels, labels = self.images.contiguous().numpy(), self.labels.numpy()
        return [
            hashlib.blake2b(image.tobytes() + _label_bytes(label), digest_size=16).digest()
            for image, label in zip(pixels, labels, strict=True)
        ]

    def canonical(self) -> "ArrayImages":
        """The same images ordered by digest, so that a run does not depend on the order in which they are stored."""
        digests = self.digests()
        return self.take(np.array(sorted(range(len(self)), key=digests.__getitem__), dtype=np.int64))


def _label_bytes(label: np.ndarray) -> bytes:
    return label.tobytes() if label.ndim else int(label).to_bytes(8, "little")


def label_tensor(labels: list[int] | np.ndarray, index: Sequence[int]) -> torch.Tensor:
    """The labels at these positions: int64 (B,), or uint8 (B, K) of images with several."""
    if several(labels):
        return torch.from_numpy(np.ascontiguousarray(np.asarray(labels)[list(index)]))
    return torch.tensor([labels[i] for i in index], dtype=torch.int64)


@dataclass
class FileImages:
    """Images on disk, decoded when a batch needs them.

    Attributes:
        paths: the path of each; of one inside a larger file, the path of that file and its name in it.
        labels: class numbers; or uint8 (N, K), see :mod:`excite.data.labels`.
        white: the white level of images with 16 bits per channel.
        packed: where the images are, if they are inside larger files.
        weights: float64 (N,), how often training draws each (``data.sampler=weights``), if the source says so.
    """

    paths: list[str]
    labels: list[int] | np.ndarray
    white: int = FULL_WHITE
    packed: Packed | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def source(self, position: int) -> str | Member:
        """What :func:`~excite.data.decode.load_image` reads an image from."""
        path = self.paths[position]
        return path if self.packed is None else self.packed.member(position, path)

    @property
    def names(self) -> list[str]:
        """Names for display: paths relative to their common folder. Bytes that are not UTF-8 become U+FFFD."""
        root = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        relative = (os.path.relpath(path, root) for path in self.paths)
        return [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in relative]

    def take(self, index: np.ndarray) -> "FileImages":
        """The images at these positions, in this order."""
        packed = None if self.packed is None else self.packed.take(index)
        paths, labels = [self.paths[i] for i in index], take_labels(self.labels, index)
        return FileImages(paths, labels, self.white, packed, None if self.weights is None else self.weights[index])


#: Pixels that are computed with at a time: NumPy and PyTorch take eight bytes and more for each.
CHUNK = 1 << 20


def _few(images: torch.Tensor) -> int:
    """So many images have about ``CHUNK`` pixels."""
    return max(1, CHUNK // max(1, images[:1].numel()))


def luma(images: torch.Tensor) -> torch.Tensor:
    """RGB to grey, exactly as in Pillow (ITU-R 601): uint8 (N, 3, H, W) -> uint8 (N, 1, H, W)."""
    out = room_for((len(images), 1, *images.shape[2:]))
    count = _few(images)
    for chunk, target in zip(images.split(count), out.split(count), strict=True):
        red, green, blue = chunk.to(torch.int32).unbind(1)
        target[:, 0] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return out


def fitted(
    images: torch.Tensor, size: int | Sequence[int], crop_pct: float, interpolation: Interpolation, fit: Fit = "crop"
) -> torch.Tensor:
    """Bring arrays to a size as files are (`eval_transform`): uint8 (N, C, h, w) -> uint8 (N, C, H, W)."""
    wanted = as_size(size)
    if tuple(images.shape[-2:]) == wanted:
        return images

    def one(image: torch.Tensor) -> torch.Tensor:
        done = eval_transform(as_picture(image.permute(1, 2, 0).numpy()), wanted, crop_pct, interpolation, fit)
        return torch.from_numpy(done).permute(2, 0, 1)

    out = room_for((*images.shape[:2], *wanted))
    for image, target in zip(images, out, strict=True):
        target.copy_(one(image))
    return out


def channel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation, in 0..1, of uint8 (N, C, H, W); exact for any order of the images."""
    value = np.arange(256)
    mean, std = [], []
    count = _few(images)
    for channel in range(images.shape[1]):
        counts = sum(np.bincount(part[:, channel].numpy().ravel(), minlength=256) for part in images.split(count))
        centre = (counts * value).sum() / np.sum(counts)
        mean.append(float(centre / 255))
        # A constant channel would divide by zero; one grey level is the smallest difference in 8 bits.
        std.append(float(max(1.0, np.sqrt((counts * (value - centre) ** 2).sum() / np.sum(counts))) / 255))
    return mean, std


def balanced_order(labels: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """A seeded order of all positions, every prefix of which is class-balanced (as far as the classes reach)."""
    labels = rarest(labels)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # position of an image within its class, in shuffled order
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def stratified_split(labels: Sequence[int] | np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A seeded, stratified split: positions for training and for validation, ascending.

    The validation part has round(N * fraction) images (at least 1, at most N - 1), allotted to the classes by largest
    remainder. A class keeps one image for training if at all possible.
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    total = min(max(1, round(len(labels) * fraction)), len(labels) - 1)
    classes, counts = np.unique(labels, return_counts=True)
    quota = counts * (total / len(labels))
    take = np.minimum(np.floor(quota).astype(np.int64), counts - 1)
    remainder_order = np.lexsort((rng.permutation(len(classes)), take - quota))
    spare = np.array([counts - 1, counts])  # first leave every class an image; only then take whole classes
    for room in spare:
        while take.sum() < total and (take < room).any():
            open_classes = remainder_order[(take < room)[remainder_order]]
            take[open_classes[: total - take.sum()]] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for label, count in zip(classes, take, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
