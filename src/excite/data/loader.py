"""Batches for training and evaluation, from arrays on the device or from files decoded by threads or processes.

Shapes: N images, B images per batch on one rank, C channels that the network sees, H x W pixels of its
images.

There is no hidden state: which images make up a batch, and how each is cropped, is a pure function of
(seed, epoch, step, rank). A run that resumes in the middle of an epoch, or with another number of workers, gets the
same batches bit for bit. torch's global generators are never used.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import torch

from excite.data.augment import crop_and_resize, mirrored
from excite.data.config import AugmentConfig, DataConfig
from excite.data.decoder import Decoded, FileDecoder, Request, Rule
from excite.data.decoding_processes import ProcessBatches
from excite.data.decoding_threads import ThreadBatches, suit
from excite.data.geometry import box_ratio, random_boxes
from excite.data.images import ArrayImages, FileImages
from excite.data.sampler import ClassSampler, WeightSampler
from excite.data.watched import Watch
from excite.errors import ExciteError
from excite.runtime.device import one_thread
from excite.runtime.job import cores, local_world_size
from excite.runtime.waiting import waits

Batch = TypeVar("Batch")

# The first number of every seed: SeedSequence pads with zeros, so (seed, epoch) alone would equal (seed, epoch, 0).
# `excite.data.decoder` has 1, for the crops of files.
ORDER, ARRAY_CROP, FLIPS = 0, 2, 3

MAX_WORKERS = 16  # more would decode faster than one device trains, and each takes about 200 MB


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of `count` images for an epoch: int64 (N,), a pure function of (seed, epoch)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(count)


def default_workers() -> int:
    """One worker per core that this process may use, divided among the ranks of a machine."""
    return max(1, min(MAX_WORKERS, cores() // local_world_size()))


def workers_of(data: DataConfig) -> int:
    """Decoding workers of this process; 0: none, it decodes itself."""
    return default_workers() if data.workers is None else data.workers


def batches_of(decoder: FileDecoder, device: torch.device, persistent: bool) -> ProcessBatches | ThreadBatches:
    """Who decodes: threads or processes, or with ``data.workers=0`` the main process.

    Args:
        decoder: what they do.
        device: where the batches go.
        persistent: whether processes live on from one iteration to the next.
    """
    workers = workers_of(decoder.data)
    kind = decoder.data.worker_kind
    if workers and (kind == "thread" or (kind == "auto" and suit(decoder.files, workers))):
        return ThreadBatches(decoder, workers, device)
    return ProcessBatches(decoder, workers, device, persistent)


class _Loader:
    """Common base of both loaders: the images, the device, the waiting time and the list of broken files."""

    def __init__(
        self, images: ArrayImages | FileImages, batch_size: int, device: torch.device | str, data: DataConfig
    ) -> None:
        self.batch_size, self.device, self.data = batch_size, torch.device(device), data
        self.wait_seconds = 0.0  # running total of the time that the consumer has waited for batches
        self._bad: dict[str, str] = {}
        if isinstance(images, ArrayImages):
            pixels, labels = images.images.to(self.device), images.labels.to(self.device)
            images = ArrayImages(pixels, labels, images.names, images.weights)
        self.images = images

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(path, reason) of the broken files found so far, each path once."""
        return list(self._bad.items())

    def _pixels(self, arrays: ArrayImages, index: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W); a single stored grey channel is repeated without copying it."""
        return arrays.images.index_select(0, index).expand(-1, self.data.in_chans, -1, -1)

    def _checked(self, decoded: Decoded) -> Decoded:
        for path, reason in decoded.bad:
            self._bad.setdefault(path, reason)
        if decoded.fatal is not None:
            # Keep no reference to the error here: its traceback holds this frame, and such a cycle would leave the
            # workers to the garbage collector, which takes 5 s a loader to end them.
            error, decoded.fatal = decoded.fatal, None
            try:
                raise error
            finally:
                del error
        return decoded

    def _streamed(self, batches: Iterator[Decoded]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Send batches to the device, on a GPU one ahead of the one in use."""
        ahead: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        for decoded in map(self._checked, batches):
            pixels, labels, indices = (
                part.to(self.device, non_blocking=True) for part in (decoded.pixels, decoded.labels, decoded.indices)
            )
            moved = (pixels.permute(0, 3, 1, 2), labels, indices)  # a view: channels_last in memory
            if self.device.type != "cuda":
                yield moved
                continue
            if ahead is not None:
                yield ahead
            ahead = moved
        if ahead is not None:
            yield ahead

    def _timed(self, batches: Iterator[Batch], watch: Watch | None = None) -> Iterator[Batch]:
        doing, look = (lambda: "images in memory", None) if watch is None else (watch.doing, watch.look)
        while True:
            start = time.perf_counter()
            with waits.waiting(doing, look):
                batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class TrainLoader(_Loader):
    """Training batches of one rank.

    Batch k of an epoch is the k-th slice of B * world images of the epoch's order, dealt out to the ranks in turn. With
    `drop_last`, an incomplete last slice is dropped, unless it is the only one (fewer than B * world images). If it is
    kept, it is filled up from the beginning of the order so that every rank has the same number of images. With
    `augment.repeats` r (repeated augmentation: Hoffer et al., 2020; Berman et al., 2019), a slice holds B * world / r
    images, r copies each, and an epoch still has the same number of slices. With `data.sampler`, an epoch's order is
    that of `excite.data.sampler`, of as many images as the epoch's slices hold. Each image is cropped
    with its own generator, seeded by (seed, epoch, image number).

    Yields `images` uint8 (B, C, H, W) and `labels` int64 (B,) on the device. Of `augment`, only the random-resized crop
    and alternating flips are applied here; the rest is done by BatchAugment. Iterate over one epoch at a time.

    With `shards`, this rank stands for so many of a job of world * shards ranks: `rank`, `rank` + world and so on. It
    has their images in turn, and gives each exactly the same pixels as that job would.
    """

    def __init__(
        self,
        images: ArrayImages | FileImages,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augment: AugmentConfig,
        data_config: DataConfig,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        shards: int | None = None,
    ) -> None:
        super().__init__(images, batch_size, device, data_config)
        self.seed, self.augment, self.rank, self.world, self.shards = seed, augment, rank, world, shards
        self.drop_last = drop_last and len(images) >= batch_size * world
        self._files: ProcessBatches | ThreadBatches | None = None
        self._flips: torch.Tensor | None = None
        if augment.hflip_mode == "alternate":
            flips = np.random.default_rng((FLIPS, seed)).integers(0, 2, len(images), np.uint8)
            self._flips = torch.from_numpy(flips).to(self.device)
        self._sampler: ClassSampler | WeightSampler | None = None
        if data_config.sampler == "weights":
            if images.weights is None:
                raise ExciteError(
                    "data.sampler=weights needs a table with a column of weights (data.columns.weight), or shards "
                    "packed from one"
                )
            length = min(len(images), self.steps_per_epoch * self._distinct)
            self._sampler = WeightSampler(images.weights, seed, length)
        elif data_config.sampler is not None:
            labels = images.labels.cpu().numpy() if isinstance(images, ArrayImages) else images.labels
            length = min(len(images), self.steps_per_epoch * self._distinct)
            self._sampler = ClassSampler(labels, data_config.sampler, seed, length)

    @property
    def _distinct(self) -> int:
        """Images in a slice, not counting copies."""
        return math.ceil(self.batch_size * self.world / self.augment.repeats)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same on every rank."""
        steps = len(self.images) / (self.batch_size * self.world)
        return math.floor(steps) if self.drop_last else math.ceil(steps)

    def batch_indices(self, epoch: int, step: int) -> np.ndarray:
        """The images in batch `step` of `epoch` on this rank: positions in `images`, int64 (B,)."""
        return self._share(self._order(epoch), step) % len(self.images)

    def _order(self, epoch: int) -> np.ndarray:
        """The order of an epoch, including repeats: the k-th copy of image i has number k * N + i.

        Copies are as far apart as their batch allows, because mixup and CutMix mix neighbours.
        """
        count, repeats = len(self.images), self.augment.repeats
        order = epoch_order(count, self.seed, epoch) if self._sampler is None else self._sampler.order(epoch)
        if repeats == 1:
            return order
        slices = [order[step * self._distinct :][: self._distinct] for step in range(self.steps_per_epoch)]
        copies = [draws % count + (draws // count * repeats + k) * count for draws in slices for k in range(repeats)]
        return np.concatenate(copies)

    def _share(self, order: np.ndarray, step: int) -> np.ndarray:
        total = self.batch_size * self.world
        whole = order[step * total : (step + 1) * total]
        lacking = -len(whole) % (self.world * (self.shards or 1))
        return np.concatenate([whole, np.resize(order, lacking)])[self.rank :: self.world]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch from `start_step` on, the same as in an uninterrupted run.

        Raises BadImageError (with data.on_bad_train = "stop") or ExciteError (100 broken images in a row).
        """
        order = self._order(epoch)
        if isinstance(self.images, ArrayImages):
            return self._timed(self._from_arrays(self.images, order, epoch, start_step))
        if self._files is None:
            decoder = FileDecoder(self.images, self.data, self.augment, self.seed)
            self._files = batches_of(decoder, self.device, persistent=True)
        steps = range(start_step, self.steps_per_epoch)
        requests = [Request(epoch, self._share(order, step).tolist()) for step in steps]
        streamed = self._streamed(self._files.run(requests))
        flipped = ((self._flipped(pixels, index, epoch), labels) for pixels, labels, index in streamed)
        return self._timed(flipped, self._files.watch)

    def _flipped(self, pixels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """With alternating flips, the images as this epoch shows them."""
        if self._flips is None:
            return pixels
        return mirrored(pixels, (self._flips.index_select(0, index) != epoch % 2)[:, None])

    def _from_arrays(
        self, arrays: ArrayImages, order: np.ndarray, epoch: int, start_step: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        crops = self.augment.crop == "random_resized"
        for step in range(start_step, self.steps_per_epoch):
            share = torch.from_numpy(self._share(order, step))
            index = (share % len(arrays)).to(self.device, non_blocking=True)
            pixels = self._pixels(arrays, index)
            if crops:
                pixels = self._crop(pixels, epoch, step)
            yield self._flipped(pixels, index, epoch), arrays.labels.index_select(0, index)

    def _crop(self, pixels: torch.Tensor, epoch: int, step: int) -> torch.Tensor:
        """Random crops of this rank's batch, or of those that it stands for, each computed for itself."""
        size = self.data.training_size
        cropped, ratio = pixels.new_empty(*pixels.shape[:2], *size), box_ratio(self.augment.ratio, size)
        count = self.shards or 1
        for shard in range(count):
            rng = np.random.default_rng((ARRAY_CROP, self.seed, epoch, step, self.rank + self.world * shard))
            own = pixels[shard::count]
            height, width = own.shape[2:]
            boxes = random_boxes(rng, len(own), height, width, self.augment.scale, ratio)
            with nullcontext() if self.shards is None else one_thread():
                crops = crop_and_resize(own, boxes, size, self.data.interpolation)
            if count == 1:
                return crops
            cropped[shard::count] = crops
        return cropped


class EvalLoader(_Loader):
    """Evaluation batches of one rank: every image exactly once over all ranks, for any batch size.

    Yields pixels uint8 (B, C, H, W), labels int64 (B,) and positions in `images` int64 (B,), on the device. Rank r has
    images r, r + world, ...; ranks may differ by one image, and the last batch may be small. With `by_batch`, it has
    batches r, r + world, ... of those that a single rank would have, which are therefore the same in every job. Broken
    images follow data.on_bad_val (or data.on_bad_train with `rule` "train"): "stop" raises BadImagesError; with "skip",
    they are left out and listed in `bad`. With `margin`, files are larger than the network's images, as `tta=five`
    needs them; images in memory are not.
    """

    def __init__(
        self,
        images: ArrayImages | FileImages,
        *,
        batch_size: int,
        device: torch.device | str,
        data_config: DataConfig,
        rank: int = 0,
        world: int = 1,
        rule: Rule = "val",
        by_batch: bool = False,
        margin: bool = False,
    ) -> None:
        super().__init__(images, batch_size, device, data_config)
        self._rule: Rule = rule
        self._margin = margin
        positions = np.arange(len(images)) if by_batch else np.arange(rank, len(images), world)
        batches = [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]
        self._shares = batches[rank::world] if by_batch else batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        if isinstance(self.images, ArrayImages):
            return self._timed(self._from_arrays(self.images, self._shares))
        # Not persistent: between two evaluations, cores and memory belong to the training workers.
        decoder = FileDecoder(self.images, self.data, None, 0, self._rule, self._margin)
        files = batches_of(decoder, self.device, persistent=False)
        streamed = self._streamed(files.run([Request(0, share.tolist()) for share in self._shares]))
        return self._timed((batch for batch in streamed if len(batch[1])), files.watch)

    def _from_arrays(
        self, arrays: ArrayImages, shares: list[np.ndarray]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for share in shares:
            index = torch.from_numpy(share).to(self.device, non_blocking=True)
            yield self._pixels(arrays, index), arrays.labels.index_select(0, index), index
