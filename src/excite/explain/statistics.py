"""Statistics of the scales in one pass over the images, with constant memory.

Notation: N images, K classes, C channels, H x W positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor

from excite.data.labels import several
from excite.errors import ExciteError
from excite.logits import finite
from excite.models.listening import listening, outer_gates
from excite.progress import Advance
from excite.trained.predictor import Predictor

#: Shares of the range below and above which a scale counts as saturated.
LOW, HIGH = 0.05, 0.95
#: A channel is constant if its largest and smallest scale differ by at most this.
CONSTANT_RANGE = 0.01
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
#: The histogram for quantiles and saturation has bins of 1/1000. Sigmoid gates lie in (0, 1), doubled ones and 1 + tanh
#: in (0, 2); a blended gate may leave this range, and values outside the histogram go into its first or last bin.
_FIRST, _LAST, _PER_UNIT = -1.0, 3.0, 1000

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]


class ScaleColumns(TypedDict):
    """Scalar statistics of a gate's scales, in the order of gates.csv; docs/explain.md explains them."""

    channels: int
    spatial: bool
    images: int
    mean: float
    sd_images: float
    sd_channels: float
    sd_positions: float | None
    range_top: float
    saturated_low: float
    saturated_high: float
    constant_share: float
    class_share: float | None
    class_share_by_chance: float | None


class Histogram(TypedDict):
    """``shares`` of the scales between consecutive ``edges``."""

    edges: list[float]
    shares: list[float]


class ScaleDetails(TypedDict):
    """Statistics of a gate's scales that are not columns of gates.csv.

    Attributes:
        not_finite: images without finite scales, which are left out of all numbers.
        quantiles: by share as text, such as "0.05".
        histogram: a coarse histogram.
        constant: numbers of the channels that are the same for all images.
        channel_mean, channel_sd: mean and standard deviation per channel.
    """

    not_finite: int
    quantiles: dict[str, float]
    histogram: Histogram
    constant: list[int]
    channel_mean: list[float]
    channel_sd: list[float]


class ScaleSummary(ScaleColumns, ScaleDetails):
    """A :class:`ScaleStatistics` as JSON."""


@dataclass
class ScaleStatistics:
    """Running statistics of one gate's scales over images and classes; ``update`` adds a batch.

    If the gate scales positions, the scale of a channel in an image is the mean over positions. Means and sums of
    squared deviations are merged batch by batch in float64 (Chan, Golub, LeVeque 1983, "Algorithms for computing the
    sample variance"). Memory: 16 bytes per class and channel.

    Args:
        classes: K.
        amplitude: upper end of the gate's sigmoid.

    Attributes:
        count: (K,) images per class; with several labels, an image counts in each of its classes.
        mean: (K, C) mean scale, 0 for a class without images.
        squares: (K, C) sums of squared deviations from the class mean.
        least, most: (C,) extremes over images and positions.
        histogram: counts over all images, channels and positions, in bins of 1/1000 from -1 to 3.
        positions: mean over images and channels of the variance between the positions of a map.
        spatial: whether the gate scales positions.
        not_finite: number of images without finite scales, which are left out of all other numbers.
    """

    classes: int
    amplitude: float = 1.0
    count: Tensor = field(init=False)
    mean: Tensor = field(init=False)
    squares: Tensor = field(init=False)
    least: Tensor = field(init=False)
    most: Tensor = field(init=False)
    histogram: Tensor = field(init=False)
    positions: float = field(init=False, default=0.0)
    spatial: bool = field(init=False, default=False)
    not_finite: int = field(init=False, default=0)
    _together: "_Together | None" = field(init=False, default=None)  # with several labels an image

    def __post_init__(self) -> None:
        bins = round((_LAST - _FIRST) * _PER_UNIT)
        self.count = torch.zeros(self.classes, dtype=torch.float64)
        self.histogram = torch.zeros(bins, dtype=torch.float64)

    def update(self, scale: Tensor, labels: Tensor) -> None:
        """Add a batch: scales (N, C) or broadcastable maps (N, C or 1, H or 1, W or 1), and labels int64 (N,), or uint8
        (N, K) of images with several.

        Raises:
            ExciteError: the numbers of scales and labels differ.
        """
        scale, labels = scale.detach().float(), labels.cpu()
        if len(scale) != len(labels):
            raise ExciteError(
                f"a gate gave {len(scale)} scales for {len(labels)} images: it is applied to parts of images"
            )
        sound = scale.flatten(1).isfinite().all(1)
        if not bool(sound.all()):  # a single NaN would turn every mean into NaN
            self.not_finite += int((~sound).sum())
            scale, labels = scale[sound], labels[sound.cpu()]
            if not len(labels):
                return
        flat = scale.flatten(2) if scale.ndim > 2 else scale[:, :, None]
        channels = flat.shape[1]
        if not hasattr(self, "mean"):
            self.mean = torch.zeros(self.classes, channels, dtype=torch.float64)
            self.squares = torch.zeros_like(self.mean)
            self.least, self.most = torch.full((channels,), torch.inf), torch.full((channels,), -torch.inf)
        self.least = torch.minimum(self.least, flat.amin((0, 2)).cpu())
        self.most = torch.maximum(self.most, flat.amax((0, 2)).cpu())
        inside = flat.clamp(_FIRST, _LAST).cpu()
        self.histogram += torch.histc(inside, len(self.histogram), _FIRST, _LAST).double()
        if scale.ndim > 2:
            self.spatial = True
            share = len(labels) / (self.images + len(labels))
            self.positions += share * (float(flat.double().var(2, correction=0).mean()) - self.positions)
        self._merge(flat.double().mean(2).cpu(), labels)

    def _merge(self, values: Tensor, labels: Tensor) -> None:
        """Merge scales, float64 (N, C), into the class means and squares, each image in each of its classes."""
        images, classes = torch.arange(len(labels)), labels
        if several(labels):
            images, classes = labels.nonzero(as_tuple=True)
            self._together = self._together or _Together(self.classes, values)
            self._together.merge(values, labels.double())
        count = torch.bincount(classes, minlength=self.classes).double()
        own, scales = count.clamp(min=1)[:, None], values[images]
        mean = torch.zeros_like(self.mean).index_add_(0, classes, scales) / own
        squares = torch.zeros_like(self.mean).index_add_(0, classes, (scales - mean[classes]).square())
        total = self.count + count
        share = (count / total.clamp(min=1))[:, None]
        step = mean - self.mean
        self.squares += squares + step.square() * self.count[:, None] * share
        self.mean += step * share
        self.count = total

    @property
    def images(self) -> int:
        """The number of images in the statistics."""
        return int(self.count.sum()) if self._together is None else self._together.images

    @property
    def channels(self) -> int:
        """C; 1 for a gate that gives all channels the same scale."""
        self._check()
        return self.mean.shape[1]

    def overall_mean(self) -> Tensor:
        """(C,): the mean over all images, at which ``fixed_gates`` fixes the gate."""
        self._check()
        if self._together is not None:
            return self._together.mean
        return (self.count @ self.mean) / self.count.sum()

    def overall_sd(self) -> Tensor:
        """(C,): the standard deviation over all images (divisor N - 1; 0 for a single image)."""
        return (self._total() / max(1, self.images - 1)).sqrt()

    def _total(self) -> Tensor:
        """(C,): the sum of squared deviations from the mean over all images."""
        return self._between() + self.squares.sum(0) if self._together is None else self._together.squares

    def class_sd(self, k: int) -> Tensor:
        """(C,): the standard deviation over the images of class ``k`` (divisor N - 1; 0 for a single image)."""
        self._check()
        return (self.squares[k] / (self.count[k] - 1).clamp(min=1)).sqrt()

    def class_share(self) -> float | None:
        """Variance between class means / total variance, both summed over channels (eta squared).

        With several labels an image, it is what a linear regression on the labels explains (R squared), which is the
        same where each image has one label. None if nothing varies. If the scales do not depend on the class, its
        expected
        value is :meth:`chance_share`.
        """
        between = float(self._between().sum() if self._together is None else self._together.explained(self.count).sum())
        total = between + float(self.squares.sum()) if self._together is None else float(self._total().sum())
        # Rounding leaves a trace of variance in a constant gate.
        return between / total if total > 1e-12 * self.images * self.channels else None

    def chance_share(self) -> float | None:
        """The expected value of :meth:`class_share` if the scales do not depend on the class."""
        free = int((self.count > 0).sum()) - 1 if self._together is None else self._together.rank(self.count)
        return free / (self.images - 1) if self.images > 1 else None

    def _between(self) -> Tensor:
        return self.count @ (self.mean - self.overall_mean()).square()

    def ceiling(self) -> float:
        """The upper end of the range: the gate's amplitude, or 2 if scales exceed it (1 + tanh), or else their maximum.

        A scale above ``HIGH`` times this value counts as saturated.
        """
        self._check()
        most = float(self.most.max())
        return next((end for end in (self.amplitude, 2.0) if most <= end), most)

    def share_below(self, value: float) -> float:
        """The share of all scales below ``value``, which is rounded to 1/1000."""
        self._check()
        edge = min(max(round((value - _FIRST) * _PER_UNIT), 0), len(self.histogram))
        return float(self.histogram[:edge].sum() / self.histogram.sum())

    def quantiles(self, shares: Sequence[float] = QUANTILES) -> list[float]:
        """Quantiles over all images, channels and positions, to 1/1000; 0 and 1 give the exact extremes."""
        self._check()
        least, most = float(self.least.min()), float(self.most.max())
        running = self.histogram.cumsum(0)
        found = []
        for share in shares:
            edge = int(torch.searchsorted(running, share * running[-1]))
            middle = _FIRST + (min(edge, len(running) - 1) + 0.5) / _PER_UNIT
            found.append(least if share <= 0 else most if share >= 1 else min(max(middle, least), most))
        return found

    def coarse_histogram(self, bins: int = 40) -> tuple[list[float], list[float]]:
        """(``bins`` + 1 edges from 0, or a negative least scale, to the ceiling; the share of scales in each bin)."""
        self._check()
        low, high = min(0.0, float(self.least.min())), self.ceiling()
        edges = [low + (high - low) * i / bins for i in range(bins + 1)]
        below = [0.0, *(self.share_below(edge) for edge in edges[1:-1]), 1.0]
        return edges, [b - a for a, b in pairwise(below)]

    def constant_channels(self, tolerance: float = CONSTANT_RANGE) -> list[int]:
        """The channels whose largest and smallest scale differ by at most ``tolerance``."""
        self._check()
        return (self.most - self.least <= tolerance).nonzero().flatten().tolist()

    def to_dict(self) -> ScaleSummary:
        """A row of the table of gates, ready for JSON; see docs/explain.md for the columns."""
        ceiling = self.ceiling()
        edges, shares = self.coarse_histogram()
        constant = self.constant_channels()
        mean, sd = self.overall_mean(), self.overall_sd()
        return {
            "channels": self.channels,
            "spatial": self.spatial,
            "images": self.images,
            "not_finite": self.not_finite,
            "mean": float(mean.mean()),
            "sd_images": float(sd.square().mean().sqrt()),
            "sd_channels": float(mean.std(correction=0)),
            "sd_positions": self.positions**0.5 if self.spatial else None,
            "range_top": ceiling,
            "quantiles": dict(zip(map(str, QUANTILES), self.quantiles(), strict=True)),
            "histogram": {"edges": edges, "shares": shares},
            "saturated_low": self.share_below(LOW * ceiling),
            "saturated_high": 1 - self.share_below(HIGH * ceiling),
            "constant": constant,
            "constant_share": len(constant) / self.channels,
            "class_share": self.class_share(),
            "class_share_by_chance": self.chance_share(),
            "channel_mean": mean.tolist(),
            "channel_sd": sd.tolist(),
        }

    def _check(self) -> None:
        if not hasattr(self, "mean") and self.not_finite:
            raise ExciteError(
                f"a gate has no finite scale for any of the {self.not_finite:,} images: the network is broken, or its "
                "values overflow in a precision other than fp32"
            )
        if not hasattr(self, "mean"):
            raise ExciteError(
                "a gate was never called: there were no images, or the forward pass does not use the gate"
            )


class _Together:
    """Running sums over all images for a linear regression of scales on labels: with several labels, or none, an image,
    they do not follow from those of the classes.

    Attributes:
        images: N.
        mean, squares: (C,) mean scale, and sum of squared deviations from it.
        pairs: (K, K) images that have both classes.
        products: (K, C) sums over the images of a class of their scales minus ``about``.
        about: (C,), near the mean, so that little is lost to rounding.
    """

    def __init__(self, classes: int, values: Tensor) -> None:
        """``values``: float64 (N, C), the scales of the first batch, which are not added."""
        self.images = 0
        self.about = values.mean(0)
        self.mean, self.squares = torch.zeros_like(self.about), torch.zeros_like(self.about)
        self.pairs = torch.zeros(classes, classes, dtype=torch.float64)
        self.products = torch.zeros(classes, len(self.about), dtype=torch.float64)

    def merge(self, values: Tensor, labels: Tensor) -> None:
        """Add a batch: scales (N, C) and labels (N, K), both float64."""
        self.pairs += labels.T @ labels
        self.products += labels.T @ (values - self.about)
        mean, total = values.mean(0), self.images + len(values)
        share, step = len(values) / total, mean - self.mean
        self.squares += (values - mean).square().sum(0) + step.square() * self.images * share
        self.mean = self.mean + step * share
        self.images = total

    def _centred(self, count: Tensor) -> Tensor:
        return self.pairs - torch.outer(count, count) / self.images

    def rank(self, count: Tensor) -> int:
        """How many coefficients the regression has, without the constant."""
        return int(torch.linalg.matrix_rank(self._centred(count), hermitian=True))

    def explained(self, count: Tensor) -> Tensor:
        """(C,): the sum of squares that the labels explain. ``count``: (K,) images of each class."""
        products = self.products - torch.outer(count, self.mean - self.about)
        inverse = torch.linalg.pinv(self._centred(count), hermitian=True)
        return (products * (inverse @ products)).sum(0)


def collect_scales(
    predictor: Predictor,
    batches: Batches,
    progress: Advance | None = None,
    total: int = 0,
    without: list[int] | None = None,
) -> dict[str, ScaleStatistics]:
    """Run images through a network once and collect statistics of the scales of its gates.

    Args:
        predictor: a network from ``excite.load``.
        batches: uint8 images (N, C, H, W), labels (see ``ScaleStatistics.update``), positions (N,), as from
        ``EvalLoader``.
        progress: called with (images done, ``total``) after each batch.
        total: number of images, for ``progress``.
        without: a list to which the positions of images without finite logits are added.

    Returns:
        Gate name -> its statistics.

    Raises:
        ExciteError: the network has no gates, or there are no images.
    """
    gates = outer_gates(predictor.model)
    found = {name: ScaleStatistics(len(predictor.classes), gate.amplitude) for name, gate in gates.items()}
    labels: Tensor = torch.empty(0)
    done = 0

    def listen(name: str, scale: Tensor) -> None:
        found[name].update(scale, labels)

    with listening(predictor.model, listen):
        for images, labels, positions in batches:
            sound = finite(predictor.logits(images))
            if without is not None:
                without += positions[~sound.to(positions.device)].tolist()
            done += len(labels)
            if progress is not None:
                progress(done, total)
    for statistics in found.values():
        statistics.channels  # noqa: B018 - raises if a gate was never called
    return found
