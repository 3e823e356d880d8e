"""Decodes batches of image files: what happens to one image, and how the answers become a batch.

Which images make up a batch is a matter of :mod:`excite.data.loader`; who decodes them, of
:mod:`excite.data.decoding_threads` and :mod:`excite.data.decoding_processes`.

Shapes: N images, B images per batch, C channels that the network sees, H x W pixels of its images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from excite.data import jpeg
from excite.data.bands import COLOURS
from excite.data.config import AugmentConfig, DataConfig
from excite.data.crew import AT_ONCE
from excite.data.decode import BadImageError, BadImagesError, open_picture, reading
from excite.data.images import FileImages, label_tensor
from excite.data.resize import eval_transform, random_resized_crop
from excite.data.views import margin_size, with_margin
from excite.data.watched import Beats, LoaderFailed, sharing
from excite.errors import ExciteError
from excite.size import as_size

#: Which rule applies to broken images: `data.on_bad_train` or `data.on_bad_val`.
Rule = Literal["train", "val"]

FILE_CROP = 1  # the first number of every seed, see excite.data.loader
TRIES = 100  # broken images in a row after which training stops even with "skip"


@dataclass(frozen=True)
class Request:
    """A batch for a worker to decode; the epoch seeds the crops."""

    epoch: int
    indices: list[int]


@dataclass
class Decoded:
    """A worker's answer: pixels uint8 (B, H, W, C), labels and indices int64 (B,), and the broken files."""

    pixels: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    bad: list[tuple[str, str]]
    fatal: ExciteError | None = None  # stops the run

    def share(self) -> None:
        """Move the tensors to shared memory, from which the main process takes them. Raises RuntimeError or OSError."""
        for tensor in (self.pixels, self.labels, self.indices):
            tensor.share_memory_()

    def pin_memory(self) -> "Decoded":
        """Called by the DataLoader if the device is a GPU."""
        return Decoded(
            self.pixels.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), self.bad, self.fatal
        )


@dataclass
class Outcome:
    """What became of one image: its position in the set, or that of the one in its place; None if there is none."""

    used: int | None
    bad: list[tuple[str, str]] = field(default_factory=list)
    fatal: ExciteError | None = None


class FileDecoder(Dataset[Decoded]):
    """Decodes whole batches, in a worker or in the main process: `decoder[request]`.

    Without `augment`, the evaluation transform is applied, and with "skip" a broken image is left out. With it,
    training crops are made, and with "skip" a broken image is replaced by the next good one in the order of files.
    With `margin`, the evaluation transform keeps what the views of `tta=five` need (see `excite.data.views`).
    Errors are returned as values: raised in a worker, they would reach the user wrapped in two tracebacks.
    """

    def __init__(
        self,
        files: FileImages,
        data: DataConfig,
        augment: AugmentConfig | None,
        seed: int,
        rule: Rule | None = None,
        margin: bool = False,
    ) -> None:
        self.files, self.data, self.augment, self.seed, self.margin = files, data, augment, seed, margin
        self.size = data.evaluation_size if augment is None else data.training_size
        self.shape = margin_size(self.size, data.crop_pct, data.fit) if margin else self.size
        rule = rule or ("val" if augment is None else "train")
        self.key = f"data.on_bad_{rule}"
        self.stop = (data.on_bad_val if rule == "val" else data.on_bad_train) == "stop"
        self.batch_key = "eval.batch_size" if augment is None else "train.batch_size"
        self.beats = Beats(0)  # replaced by that of the workers
        self._not_for_kernels: np.ndarray | None = None  # bool (N,): images that others must read
        self.crops: jpeg.RandomCrops | None = None
        if augment is not None and augment.crop == "random_resized" and data.in_chans in COLOURS:
            size, cubic = as_size(self.size), data.interpolation == "bicubic"
            self.crops = jpeg.RandomCrops(augment.scale, augment.ratio, size, cubic, data.in_chans, data.max_pixels)

    def __getitem__(self, request: Request) -> Decoded:
        decoded = self._decoded(request)
        if get_worker_info() is not None:
            # Now, not in the thread that sends it: there a refusal is lost, and the main process waits for ever.
            try:
                with sharing():
                    decoded.share()
            except LoaderFailed as error:
                nothing = torch.empty(0, dtype=torch.int64)
                return Decoded(nothing, nothing, nothing, decoded.bad, error)
        return decoded

    def _decoded(self, request: Request) -> Decoded:
        pixels = self.room(request)
        outcomes: list[Outcome] = []
        count = len(request.indices)
        for first in range(0, count, AT_ONCE):
            outcomes += self.fill(request, range(first, min(first + AT_ONCE, count)), pixels)
            if outcomes[-1].fatal is not None:
                break
        return self.together(pixels, outcomes)

    def room(self, request: Request, pinned: bool = False) -> torch.Tensor:
        """Where the pixels of a batch go: uint8 (B, H, W, C)."""
        return torch.empty(
            (len(request.indices), *self.shape, self.data.in_chans), dtype=torch.uint8, pin_memory=pinned
        )

    def fill(self, request: Request, positions: range, pixels: torch.Tensor) -> list[Outcome]:
        """Decode some images of a batch, one after the other, into their places, until one stops the run. Safe in
        several threads at once."""
        done = self._by_kernel(request, positions, pixels)
        outcomes = []
        for position, is_done in zip(positions, done, strict=True):
            if is_done:
                outcomes.append(Outcome(request.indices[position] % len(self.files)))
                continue
            outcomes.append(self._fill_one(request, position, pixels))
            if outcomes[-1].fatal is not None:
                break
        return outcomes

    def _by_kernel(self, request: Request, positions: range, pixels: torch.Tensor) -> list[bool]:
        """Let the kernels read what they can, and say which that is."""
        asked = [request.indices[position] for position in positions]
        if self.crops is None or not asked or max(asked) >= 1 << 32 or not jpeg.available():
            return [False] * len(asked)
        numbers = [index % len(self.files) for index in asked]
        if self._not_for_kernels is None:
            self._not_for_kernels = np.zeros(len(self.files), bool)
        before = self._not_for_kernels[numbers]
        if before.all():
            return [False] * len(asked)
        sources = [None if left else self.files.source(n) for n, left in zip(numbers, before.tolist(), strict=True)]
        out = pixels[positions.start : positions.stop].numpy()
        seed = (FILE_CROP, self.seed, request.epoch)
        done = self.crops.read(sources, seed, asked, out, self.beats.own, numbers)
        self._not_for_kernels[numbers] = ~done  # other formats, EXIF and so on are not opened in vain once more
        return done.tolist()

    def _fill_one(self, request: Request, position: int, pixels: torch.Tensor) -> Outcome:
        """Decode one image of a batch into its place."""
        index, place = request.indices[position], pixels[position].numpy()
        tries = TRIES if self.augment is not None and not self.stop else 1
        bad: list[tuple[str, str]] = []
        for candidate in range(index, index + tries):
            candidate %= len(self.files)
            try:
                with self.beats.reading(candidate):
                    done = self._decode(candidate, index, request.epoch, place)
            except BadImageError as error:
                bad.append((error.path, error.reason))
                if self.stop:
                    return Outcome(None, bad, BadImagesError(bad, self.key))
                continue
            if done is not place:
                place[:] = done
            return Outcome(candidate, bad)
        if tries == 1:
            return Outcome(None, bad)
        last = ": ".join(bad[-1])
        return Outcome(None, bad, ExciteError(f"{TRIES} training images in a row cannot be read; the last one: {last}"))

    def together(self, pixels: torch.Tensor, outcomes: Sequence[Outcome]) -> Decoded:
        """A batch of all images that could be read, up to the first error that stops the run."""
        used: list[int] = []
        places: list[int] = []
        bad: list[tuple[str, str]] = []
        fatal = None
        for place, outcome in enumerate(outcomes):
            bad += outcome.bad
            if outcome.used is not None:
                used.append(outcome.used)
                places.append(place)
            if outcome.fatal is not None:
                fatal = outcome.fatal
                break
        if len(places) < len(pixels):
            pixels = pixels[places]
        labels = label_tensor(self.files.labels, used)
        return Decoded(pixels, labels, torch.tensor(used, dtype=torch.int64), bad, fatal)

    def _decode(self, index: int, asked: int, epoch: int, out: np.ndarray) -> np.ndarray:
        """The pixels of an image, perhaps in `out`."""
        data, augment = self.data, self.augment
        path, white = self.files.source(index), self.files.white
        with reading(path):
            if augment is None or augment.crop != "random_resized":
                image = open_picture(path, data.in_chans, data.max_pixels, white)
                fit = with_margin if self.margin else eval_transform
                return fit(image, self.size, data.crop_pct, data.interpolation, data.fit)
            image = open_picture(path, data.in_chans, data.max_pixels, white)
            rng = np.random.default_rng((FILE_CROP, self.seed, epoch, asked))
            return random_resized_crop(image, rng, augment.scale, augment.ratio, self.size, data.interpolation, out)
