"""Batches for training and evaluation, from arrays on the device or from files decoded by worker processes.

Shapes: N images, B images per batch on one rank, C channels that the network sees, H x W pixels of its
images.

There is no hidden state: which images make up a batch, and how each is cropped, is a pure function of
(seed, epoch, step, rank). A run that resumes in the middle of an epoch, or with another number of workers, gets the
same batches bit for bit. torch's global generators are never used.
"""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from excite.children import safe_children
from excite.data.augment import crop_and_resize
from excite.data.config import AugmentConfig, DataConfig
from excite.data.decode import (
    BadImageError,
    BadImagesError,
    box_ratio,
    eval_transform,
    open_picture,
    random_boxes,
    random_resized_crop,
    reading,
)
from excite.data.images import ArrayImages, FileImages, label_tensor
from excite.data.sampler import ClassSampler, WeightSampler
from excite.data.views import margin_size, with_margin
from excite.data.watched import Beats, LoaderFailed, Watch, WatchedLoader, keep_quiet_at_crashes, sharing
from excite.data.worker_context import worker_context
from excite.errors import ExciteError
from excite.runtime.device import one_thread
from excite.runtime.job import cores, local_world_size
from excite.runtime.waiting import waits

Batch = TypeVar("Batch")
#: Which rule applies to broken images: `data.on_bad_train` or `data.on_bad_val`.
Rule = Literal["train", "val"]

# The first number of every seed: SeedSequence pads with zeros, so (seed, epoch) alone would equal (seed, epoch, 0).
ORDER, FILE_CROP, ARRAY_CROP = 0, 1, 2

MAX_WORKERS = 16  # more would decode faster than one device trains, and each takes about 200 MB
TRIES = 100  # broken images in a row after which training stops even with "skip"


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of `count` images for an epoch: int64 (N,), a pure function of (seed, epoch)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(count)


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
        self.beats = Beats(0)  # replaced by that of the workers

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
        pixels = np.empty((len(request.indices), *self.shape, self.data.in_chans), dtype=np.uint8)
        used: list[int] = []
        bad: list[tuple[str, str]] = []
        fatal: ExciteError | None = None
        for index in request.indices:
            tries = TRIES if self.augment is not None and not self.stop else 1
            for candidate in range(index, index + tries):
                candidate %= len(self.files)
                try:
                    with self.beats.reading(candidate):
                        place = pixels[len(used)]
                        done = self._decode(candidate, index, request.epoch, place)
                        if done is not place:
                            place[:] = done
                    used.append(candidate)
                    break
                except BadImageError as error:
                    bad.append((error.path, error.reason))
                    fatal = BadImagesError([(error.path, error.reason)], self.key) if self.stop else None
            else:
                if tries == TRIES:
                    fatal = ExciteError(
                        f"{TRIES} training images in a row cannot be read; the last one: {': '.join(bad[-1])}"
                    )
            if fatal is not None:
                break
        labels = label_tensor(self.files.labels, used)
        return Decoded(torch.from_numpy(pixels[: len(used)]), labels, torch.tensor(used, dtype=torch.int64), bad, fatal)

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


class _Plan(Sampler[Request]):
    """The requests of the next iteration. Persistent workers keep their copy of the dataset, so whatever changes from
    epoch to epoch must be part of the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _start_worker(_: int) -> None:
    """Make a worker end if, and only if, the main process asks it to or has ended.

    Ctrl-C reaches the whole process group, but the main process saves first and then ends its workers itself. If the
    main process is killed, torch's workers would live forever: they watch their parent, but with forkserver that is the
    server, which in turn waits for the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_quiet_at_crashes()
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)


def _unchanged(decoded: Any) -> Any:
    """With batch_size=None, the DataLoader would otherwise convert what the decoder returns."""
    return decoded


def default_workers() -> int:
    """One worker per core that this process may use, divided among the ranks of a machine."""
    return max(1, min(MAX_WORKERS, cores() // local_world_size()))


class _FileBatches:
    """Streams requests through worker processes that live as long as this object (if `persistent`)."""

    def __init__(self, decoder: FileDecoder, device: torch.device, persistent: bool) -> None:
        self.decoder, self.plan = decoder, _Plan()
        workers = default_workers() if decoder.data.workers is None else decoder.data.workers
        decoder.beats = Beats(workers)
        batch_key = "eval.batch_size" if decoder.augment is None else "train.batch_size"
        self.watch = Watch(decoder.beats, workers, decoder.files.paths.__getitem__, batch_key)
        self.loader = WatchedLoader(
            decoder,
            watch=self.watch,
            batch_size=None,
            sampler=self.plan,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context=worker_context() if workers else None,
            persistent_workers=persistent and workers > 0,
            generator=torch.Generator(),  # otherwise every epoch would draw a number from the global generator
        )

    def run(self, requests: list[Request]) -> Iterator[Decoded]:
        """The answers, in order. Raises LoaderFailed if a worker dies or gets nowhere."""
        self.plan.requests = requests
        # The workers, and the server that they are forked from, start here.
        starting = sharing("the decoding workers could not be started")
        with safe_children(), waits.waiting(self.watch.doing, self.watch.look), starting:
            return iter(self.loader)


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
    is applied here; the rest is done by BatchAugment. Iterate over one epoch at a time.

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
        self._files: _FileBatches | None = None
        self._sampler: ClassSampler | WeightSampler | None = None
        if data_config.sampler == "weights":
            if images.weights is None:
                raise ExciteError("data.sampler=weights needs a table with a column of weights (data.columns.weight)")
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
            self._files = _FileBatches(decoder, self.device, persistent=True)
        steps = range(start_step, self.steps_per_epoch)
        requests = [Request(epoch, self._share(order, step).tolist()) for step in steps]
        streamed = self._streamed(self._files.run(requests))
        return self._timed(((pixels, labels) for pixels, labels, _ in streamed), self._files.watch)

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
            yield pixels, arrays.labels.index_select(0, index)

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
        files = _FileBatches(decoder, self.device, persistent=False)
        streamed = self._streamed(files.run([Request(0, share.tolist()) for share in self._shares]))
        return self._timed((batch for batch in streamed if len(batch[1])), files.watch)

    def _from_arrays(
        self, arrays: ArrayImages, shares: list[np.ndarray]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for share in shares:
            index = torch.from_numpy(share).to(self.device, non_blocking=True)
            yield self._pixels(arrays, index), arrays.labels.index_select(0, index), index
