"""The teacher of a run (``train.teacher``): a trained network whose answers the network learns, too.

It sees the very same images as its student, cropped, augmented and mixed ("consistent teaching": Beyer et al., arXiv
2106.05237, section 3.1), in eval mode and without gradients. Shapes: B images, C channels, H x W pixels, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.data import DataSets, Preprocessing
from excite.data.folder import some
from excite.errors import ExciteError
from excite.files import to_json
from excite.recipe import Recipe
from excite.runtime.device import DTYPES, choose_precision
from excite.size import by_text
from excite.training.precision import set_norm_precision
from excite.weights.checkpoint import only_numbers_classes, read_checkpoint
from excite.weights.digest import content_digest
from excite.weights.header import several_labels
from excite.weights.locate import locate
from excite.weights.own import build_network, load_into


class Teacher:
    """A trained network that answers for the augmented images of a run.

    Attributes:
        digest: SHA-256 of its weights, classes and preprocessing.
        notes: a sentence for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Preprocessing,
        given: tuple[Sequence[float], Sequence[float]],
        device: torch.device,
        precision: str,
        rows: Sequence[int] | None,
        digest: str,
        notes: list[str],
    ) -> None:
        """
        Args:
            model: the network, in eval mode, on the device.
            own: the preprocessing that it was trained with.
            given: mean and standard deviation that the images of the run are normalised with, (C,) each.
            device: where the images are.
            precision: "fp32", "bf16" or "fp16".
            rows: the position of each class of the run among its logits; None: the same order.
            digest, notes: see the attributes.
        """
        self._model, self._size, self._device, self._precision = model, own.size, device, precision
        self._rows = None if rows is None else torch.tensor(rows, device=device)
        self._change: tuple[Tensor, Tensor] | None = None
        if (tuple(own.mean), tuple(own.std)) != tuple(tuple(each) for each in given):
            mean, std, mine, spread = (
                torch.tensor(each, dtype=torch.float64).view(-1, 1, 1) for each in (*given, own.mean, own.std)
            )
            self._change = (std / spread).float().to(device), ((mean - mine) / spread).float().to(device)
        self.digest, self.notes = digest, notes

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Augmented images (B, C, H, W), normalised as in the run -> float32 logits (B, K) in the run's class order."""
        if self._change is not None:
            images = torch.addcmul(self._change[1], images, self._change[0])
        if tuple(images.shape[2:]) != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", align_corners=False, antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        # The cache of autocast is shared by all threads of a process.
        cached = {"enabled": self._precision != "fp32", "cache_enabled": False}
        with torch.autocast(self._device.type, DTYPES[self._precision], **cached):
            answers = self._model(images).float()
        return answers if self._rows is None else answers[:, self._rows]


def open_teacher(recipe: Recipe, data: DataSets, device: torch.device) -> Teacher:
    """The teacher of a recipe with ``train.teacher``.

    Raises:
        ExciteError: there is no such network, or it has other classes, channels or another task.
    """
    config, source = recipe.train, str(recipe.train.teacher)
    checkpoint = read_checkpoint(locate(source))
    meta = checkpoint.meta
    own = Preprocessing.from_dict(meta["preprocessing"])
    if own.in_chans != recipe.data.in_chans:
        raise ExciteError(
            f"train.teacher={source} sees images of {own.in_chans} channels, but data.in_chans={recipe.data.in_chans}: "
            f"give data.in_chans={own.in_chans} or another teacher"
        )
    if several_labels(meta) != (recipe.data.task == "multilabel"):
        raise ExciteError(
            f"train.teacher={source} was trained with data.task={meta['recipe']['data'].get('task', 'classes')}, not "
            f"{recipe.data.task}: give a teacher with the same task"
        )
    adjusted = meta["recipe"]["train"].get("logit_adjustment", 0.0)
    if adjusted != config.logit_adjustment:
        raise ExciteError(
            f"train.teacher={source} was trained with train.logit_adjustment={adjusted:g}, so its answers contradict "
            f"train.logit_adjustment={config.logit_adjustment:g}; give the teacher's"
        )
    rows, ordered = _rows_of(source, meta["classes"], data.classes, only_numbers_classes(meta))
    model = build_network(checkpoint.path, meta["model"], checkpoint.tensors)
    load_into(model, checkpoint)
    texts = {"classes": to_json(meta["classes"]), "preprocessing": to_json(own.to_dict())}
    digest = content_digest(model.state_dict(), texts)
    precision = choose_precision(config.precision, device, model)
    model.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_norm_precision(model, meta["recipe"]["train"].get("norm_precision", "auto"), precision)
    count = sum(p.numel() for p in model.parameters())
    told = [
        f"teacher    {source}: {meta['model']['name']}, {count / 1e6:.2f} M parameters, computed in each step, too; "
        f"the loss is {1 - config.distill_weight:g} x that of the labels + {config.distill_weight:g} x distance from "
        f"its answers at temperature {config.distill_temperature:g}"
    ]
    given = (data.mean, data.std)
    told += ["the images are normalised anew with its own mean and standard deviation"] * (
        (tuple(own.mean), tuple(own.std)) != (tuple(data.mean), tuple(data.std))
    )
    sizes = [size for _, size in recipe.train.sizes()] or [recipe.data.training_size]
    if any(size != own.size for size in sizes):
        told.append(f"it gets the images resized from {', '.join(map(by_text, sizes))} to {by_text(own.size)}")
    note = "; ".join([*told, *([ordered] if ordered else [])])
    return Teacher(model, own, given, device, precision, rows, digest, [note])


def _rows_of(source: str, theirs: list[str], ours: list[str], nameless: bool) -> tuple[list[int] | None, str]:
    """Where among the teacher's classes each of the run's is (None: in the same place), and a clause for the user.

    Raises:
        ExciteError: these are other classes.
    """
    if theirs == ours:
        return None, ""
    if nameless and len(theirs) == len(ours):
        return None, "it has no class names, so its classes are taken to be these in order"
    if sorted(theirs) != sorted(ours):
        raise ExciteError(
            f"train.teacher={source} has other classes ({len(theirs)}: {some(theirs)}) than the data ({len(ours)}: "
            f"{some(ours)}); give a teacher that was trained on these classes"
        )
    return [theirs.index(name) for name in ours], "its classes are in another order, so its answers were reordered"
