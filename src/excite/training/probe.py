"""A linear probe: the best linear classifier on the features that a frozen, pretrained network computes.

It takes seconds, is hard to beat with few images, and is the best start for fine-tuning: the large first gradients of a
randomly initialised head would damage good features (Kumar et al., arXiv 2202.10054, "LP-FT").

Notation: N images, D features, K classes.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from excite.console import format_seconds
from excite.data import ArrayImages, EvalLoader
from excite.data.images import FileImages
from excite.data.labels import rarest
from excite.data.packed import Member
from excite.data.sources import balanced_beginning
from excite.errors import ExciteError
from excite.files import cache_folder, written_aside
from excite.logits import hits
from excite.models.timm_models import classifier_name
from excite.training.evaluation import logits_of
from excite.training.setup import Run
from excite.weights.digest import read_safetensors, write_safetensors

#: L2 penalties to compare, from the strongest; each fit starts from the previous solution.
STRENGTHS = tuple(10.0 ** (-power / 2) for power in range(11))
FOLDS = 5
#: Most images used to choose the penalty, and to fit the classifier (class-balanced).
MOST_COMPARED, MOST_FITTED = 2000, 20_000
#: Number of cached feature files to keep, the most recently used ones.
KEPT = 10


@dataclass(frozen=True)
class Probe:
    """A linear layer for the raw features.

    Attributes:
        weight, bias: (K, D) and (K,), float64.
        strength: L2 penalty, for features of mean 0 and root mean square 1: loss + strength / 2 * |weight|^2.
        accuracy: in cross-validation, percent; None if no class has two images.
        images: number of images used for the fit.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    accuracy: float | None
    images: int


def fit_probe(features: Tensor, labels: Tensor, classes: int, seed: int = 0) -> Probe:
    """Fit multinomial logistic regression; cross-validation chooses the L2 penalty by the loss on the held-out images.

    Args:
        features: (N, D), floating.
        labels: (N,) int64, below ``classes``; or (N, K), 1 for each class that an image has: then each class gets a
            logistic regression of its own.
        classes: K.
        seed: of the folds.
    """
    x = features.double()
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt().clamp_min(1e-12)
    x = (x - mean) / scale
    # With fewer images than features the weights are combinations of the images: the same solution with fewer numbers.
    if len(x) < x.shape[1]:
        left, sizes, right = torch.linalg.svd(x, full_matrices=False)
        x, back = left * sizes, right
    else:
        back = torch.eye(x.shape[1], dtype=x.dtype)
    strength, accuracy = _choose_strength(x, labels, classes, seed)
    start = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype)
    weights = _fit(x, labels, strength, start)
    weight = weights[:, :-1] @ back / scale
    return Probe(weight, weights[:, -1] - weight @ mean, strength, accuracy, len(x))


def _choose_strength(x: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[float, float | None]:
    """(the strength with the smallest loss on held-out images, its accuracy on them in percent)."""
    some = torch.from_numpy(balanced_beginning(labels.numpy(), MOST_COMPARED, seed))
    x, labels = x[some], labels[some]
    fold = _folds(labels, seed)
    if int(fold.max()) < 1:  # one image per class: nothing can be held out
        return STRENGTHS[len(STRENGTHS) // 2], None
    losses, right = torch.zeros(len(STRENGTHS)), torch.zeros(len(STRENGTHS))
    for k in range(int(fold.max()) + 1):
        kept, out = fold != k, fold == k
        weights = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype)
        for i, strength in enumerate(STRENGTHS):
            weights = _fit(x[kept], labels[kept], strength, weights)
            logits = x[out] @ weights[:, :-1].T + weights[:, -1]
            losses[i] += _loss(logits, labels[out]) * int(out.sum())
            right[i] += hits(logits, labels[out]).sum()
    best = int(losses.argmin())
    return STRENGTHS[best], 100 * float(right[best]) / len(labels)


def _folds(labels: Tensor, seed: int) -> Tensor:
    """(N,) fold numbers; the images of each class (the rarest of several) are distributed over the folds in turn."""
    labels = torch.from_numpy(rarest(labels.numpy()))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty(len(labels), dtype=torch.int64)
    count = min(FOLDS, int(labels.bincount().max()))
    fold[order] = torch.arange(len(labels)) % count
    return fold


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over images of the cross-entropy; of several labels, of the binary cross-entropies, added up."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    wanted = labels.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1).mean()


def _fit(x: Tensor, labels: Tensor, strength: float, start: Tensor) -> Tensor:
    """(K, D + 1) weights, the bias last, from ``start``; the bias is not penalised."""
    weights = start.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = x @ weights[:, :-1].T + weights[:, -1]
        loss = _loss(logits, labels) + strength / 2 * weights[:, :-1].square().sum()
        loss.backward()
        return loss

    solver.step(cast(Any, closure))
    return weights.detach()


# --- in a run -------------------------------------------------------------------------------------------------------


def start_from_probe(run: Run) -> None:
    """Fit a probe on the training images and use it as the head, also of the moving average; all processes call it.

    Raises:
        ExciteError: the network does not end in a linear layer.
    """
    name = classifier_name(run.model)
    head = dict(run.model.named_modules()).get(name)
    if not isinstance(head, nn.Linear):
        raise ExciteError(
            f"train.probe: {run.model.model_name} does not end in a linear layer, which the probe would replace; type "
            "train.probe=false"
        )
    begun = time.perf_counter()
    train = run.data.train
    known = train.labels.cpu().numpy() if isinstance(train, ArrayImages) else train.labels
    labels = torch.as_tensor(np.asarray(known), dtype=torch.int64)
    chosen = balanced_beginning(labels.numpy(), MOST_FITTED, run.recipe.train.seed)
    some = "" if len(chosen) == len(labels) else f" (class-balanced, of {len(labels):,})"
    run.display.message(f"linear probe: reading the features of {len(chosen):,} training images{some} ...")
    found, cached = _features(run, head, chosen)
    parts: list[Any] = [None]
    if found is not None:
        features, places = found
        probe = fit_probe(features, labels[torch.from_numpy(chosen)][places], head.out_features, run.recipe.train.seed)
        parts = [(probe.weight, probe.bias if head.bias is not None else None)]
        _tell(run, probe, time.perf_counter() - begun, cached)
    if run.accelerator.num_processes > 1:
        broadcast_object_list(parts)
    weight, bias = parts[0]
    for network in (run.model, *([] if run.ema is None else [run.ema.module])):
        own = cast(nn.Linear, network.get_submodule(name))
        with torch.no_grad():
            own.weight.copy_(weight)
            if bias is not None:
                own.bias.copy_(bias)
    if run.lookahead is not None:
        run.lookahead.restart(run.model)


def _tell(run: Run, probe: Probe, seconds: float, cached: bool) -> None:
    what = "have their likeliest class right" if run.recipe.data.task == "multilabel" else "right"
    judged = "" if probe.accuracy is None else f", {probe.accuracy:.1f} % {what} in cross-validation"
    where = " (the features were cached)" if cached else ""
    train = run.recipe.train
    corrected = train.class_weights or train.logit_adjustment or train.loss == "focal" or run.recipe.data.sampler
    plain = "; by plain cross-entropy: what the recipe does for rare classes begins after it" if corrected else ""
    run.display.message(
        f"linear probe: fitted to {probe.images:,} images in {format_seconds(seconds)}{where}; L2 penalty "
        f"{probe.strength:.2g}{judged}{plain}"
    )


def _features(run: Run, head: nn.Linear, chosen: np.ndarray) -> tuple[tuple[Tensor, Tensor] | None, bool]:
    """On the first process, (features (M, D) of the images that can be read, their places in ``chosen``), else None;
    and whether they were in the cache."""
    main, images = run.accelerator.is_main_process, run.data.train.take(chosen)
    kept = _kept_at(run, images) if main else None
    found = [None if kept is None else _read(kept, len(chosen))]
    known = [found[0] is not None]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(known)
    if known[0]:
        return found[0], True
    features, places = _compute(run, head, images)
    if run.accelerator.num_processes > 1:
        shares = gather_object([(features, places)])
        features, places = (torch.cat([share[i] for share in shares]) for i in (0, 1))
    order = places.argsort()
    if not main:
        return None, False
    features, places = features[order], places[order]
    if kept is not None:
        _keep(kept, features, places)
    return (features, places), False


def _compute(run: Run, head: nn.Linear, images: ArrayImages | FileImages) -> tuple[Tensor, Tensor]:
    """This process's share: (M, D) float32 and (M,) positions, on the CPU."""
    loader = EvalLoader(
        images,
        batch_size=run.recipe.eval.batch_size,
        device=run.device,
        data_config=run.recipe.data,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
        rule="train",
        by_batch=run.shards is not None,
    )
    seen: list[Tensor] = []
    rows, places = [torch.empty(0, head.in_features)], [torch.empty(0, dtype=torch.int64)]
    was_training = run.model.training
    run.model.eval()
    with _heard(head, seen), torch.no_grad():
        for batch, _, positions in loader:
            layout = run.recipe.train.channels_last
            logits_of(run.model, batch, run.preprocessing, run.device, run.precision, layout)
            rows.append(seen.pop().float().cpu())
            places.append(positions.cpu())
    run.model.train(was_training)
    return torch.cat(rows), torch.cat(places)


@contextmanager
def _heard(head: nn.Linear, seen: list[Tensor]) -> Iterator[None]:
    """Append the inputs of the head to ``seen``."""
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


# --- cached features --------------------------------------------------------------------------------------------


def _kept_at(run: Run, images: ArrayImages | FileImages) -> Path | None:
    """The cache file for the features of these images by this network; None if the images are not on this machine."""
    digest = hashlib.sha256(repr((run.model.model_name, run.preprocessing.to_dict(), run.precision)).encode())
    head = f"{classifier_name(run.model)}."
    for name, tensor in run.model.state_dict().items():
        if not name.startswith(head):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(images, ArrayImages):
        digest.update(images.images.cpu().numpy().tobytes())
    else:
        try:
            for i, path in enumerate(images.paths):
                source = images.source(i)
                found = os.stat(source.file.path if isinstance(source, Member) else source)
                digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:  # not on this machine
            return None
    return cache_folder() / "features" / f"{digest.hexdigest()[:32]}.safetensors"


def _read(path: Path, most: int) -> tuple[Tensor, Tensor] | None:
    try:
        stored, _ = read_safetensors(path)
        features, places = stored["features"], stored["places"]
        os.utime(path)
    except (OSError, KeyError, ExciteError):  # missing or damaged: computed again
        return None
    sound = features.ndim == 2 and len(features) == len(places) <= most and bool(features.isfinite().all())
    return (features, places) if sound else None


def _keep(path: Path, features: Tensor, places: Tensor) -> None:
    """Save the features and delete the least recently used ones; a full disk does not stop the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            write_safetensors(aside, {"features": features.contiguous(), "places": places.contiguous()}, {})
        for old in sorted(path.parent.glob("*.safetensors"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, SafetensorError, ExciteError):
        return
