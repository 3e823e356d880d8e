"""The common interface of all classifiers. Notation: N images, C channels, H x W positions, K classes."""

import fnmatch
import re
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError, nearest
from excite.gates import Gate
from excite.gates.registry import GateTable
from excite.models.catalog import ModelArgs
from excite.models.checkpointing import Runner, run_checkpointed, run_plain
from excite.ops import spatial_mean
from excite.ops.boundaries import NotScriptable
from excite.ops.gated_norm import check_mode

#: The placements by order that are compared with all places, see :func:`placements`.
ORDERS = ("first", "last", "last2", "every2")
#: What :func:`by_order` takes.
_ORDER = re.compile(r"(first|last)([1-9]\d{0,3})?|every([1-9]\d{0,3})")


def by_order(pattern: str, places: Sequence[str]) -> list[str]:
    """The ``places`` that ``pattern`` selects by their order in the network: ``first``, ``first3``, ``last``,
    ``last2``, or ``every2`` (each second, from the first); none if it is not of this form."""
    match = _ORDER.fullmatch(pattern)
    if match is None:
        return []
    end, count, step = match.groups()
    if step:
        return list(places[:: int(step)])
    return list(places[: int(count or 1)] if end == "first" else places[-int(count or 1) :])


def placements(places: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> the places that it selects: "all", and each of :data:`ORDERS` that differs from those before it."""
    found = {"all": tuple(places)}
    for order in ORDERS:
        chosen = tuple(by_order(order, places))
        if chosen not in found.values():
            found[order] = chosen
    return found


def match_slots(pattern: str, slots: Sequence[str]) -> list[str]:
    """The ``slots`` that match ``pattern``: by their name, a shell pattern, the name of a module that holds them, or
    their order (:func:`by_order`).

    Raises:
        ExciteError: no slot matches.
    """
    hits = [s for s in slots if fnmatch.fnmatchcase(s, pattern) or fnmatch.fnmatchcase(s, f"{pattern}.*")]
    hits = hits or by_order(pattern, slots)
    if not hits:
        shown = f"{', '.join(slots[:3])} ... {slots[-1]}" if len(slots) > 4 else ", ".join(slots)
        raise ExciteError(
            f"no place for a gate matches {pattern!r}{nearest(pattern, slots)} (places: {shown}; or by their order: "
            "first, last2, every2)"
        )
    return hits


class FeatureInfo(TypedDict):
    """A map that a network can return, with timm's keys: its channels, its stride, and the module it comes from."""

    num_chs: int
    reduction: int
    module: str


class Stage(nn.Sequential):
    """A stage such as ``layer1``: blocks in sequence, each run with ``run``."""

    def forward(self, x: Tensor, run: Runner = run_plain) -> Tensor:
        for block in self:
            x = run(block, x)
        return x


class Classifier(NotScriptable):
    """Stem, stages ``layer1`` ..., optional last norm, then mean over positions, dropout and a dense layer ``fc``.

    A subclass calls ``super().__init__()``, builds ``fc`` with ``_finish`` and implements ``stem_map``, ``stages`` and,
    if needed, ``before_stages`` (pooling) and ``after_stages`` (a last norm).

    ``model(x)`` returns logits (N, K) for images x (N, in_chans, H, W), or with ``features_only`` the maps listed in
    ``feature_info``, finest first.
    """

    model_name: str
    #: JSON-serialisable arguments: ``create_model(model.model_name, **model.model_args)`` builds the same network.
    model_args: ModelArgs
    #: The gate's table with all its options; None for an ungated network.
    gate_spec: GateTable | None
    num_features: int
    num_classes: int
    in_chans: int
    image_size: tuple[int, int]
    feature_info: list[FeatureInfo]
    fc: nn.Module
    #: How batch norms, gates, additions and ReLUs run; changed by :meth:`set_fused`.
    fused: str = "auto"

    def __init__(self) -> None:
        super().__init__()
        self.model_name = type(self).__name__
        self.model_args = {}
        self.gate_spec = None
        self.out_indices: tuple[int, ...] | None = None
        self.grad_checkpointing = False

    def _finish(
        self,
        *,
        maps: Sequence[tuple[int, int, str]],
        num_classes: int,
        in_chans: int,
        image_size: tuple[int, int],
        drop_rate: float,
        fc_bias: bool = True,
    ) -> None:
        """``maps``: (channels, stride, module) of the stem's and each stage's output."""
        self.feature_info = [{"num_chs": c, "reduction": stride, "module": module} for c, stride, module in maps]
        self.num_features = maps[-1][0]
        self.in_chans = in_chans
        self.image_size = image_size
        self.drop_rate = drop_rate
        self.fc_bias = fc_bias
        self.fc = nn.Identity()
        self.reset_classifier(num_classes)

    # The body.

    def stem_map(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def before_stages(self, x: Tensor) -> Tensor:
        return x

    def stages(self) -> list[nn.Sequential]:
        raise NotImplementedError

    def after_stages(self, x: Tensor) -> Tensor:
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """The last map -> the dense layer's input: (N, C, H, W) -> (N, C)."""
        return spatial_mean(x)

    # The interface.

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) the model was built for."""
        return (self.in_chans, *self.image_size)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> the last map, (N, num_features, H', W')."""
        x = self.before_stages(self.stem_map(x))
        for stage in self.stages():
            x = self.run_stage(stage, x)
        return self.after_stages(x)

    def forward_intermediates(self, x: Tensor) -> list[Tensor]:
        """All maps of ``feature_info``: the stem's, then one per stage (the last one as in ``forward_features``)."""
        x = self.stem_map(x)
        maps = [x]
        x = self.before_stages(x)
        for stage in self.stages():
            x = self.run_stage(stage, x)
            maps.append(x)
        maps[-1] = self.after_stages(x)
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits (N, K), or with ``pre_logits`` the dense layer's input, (N, num_features)."""
        x = F.dropout(self.pooled(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.out_indices is not None:
            maps = self.forward_intermediates(x)
            return [maps[i] for i in self.out_indices]
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the dense layer by a fresh one for ``num_classes`` classes, on the same device and with the same
        dtype; 0 removes it. Raises ExciteError for a negative number."""
        if num_classes < 0:
            raise ExciteError(f"num_classes must be 0 (no classifier) or more, not {num_classes}")
        like = next(self.parameters(), None)
        place = {} if like is None else {"device": like.device, "dtype": like.dtype}
        self.num_classes = num_classes
        self.fc = (
            nn.Linear(self.num_features, num_classes, bias=self.fc_bias, **place) if num_classes else nn.Identity()
        )
        if self.model_args:
            self.model_args["num_classes"] = num_classes

    def select_features(self, out_indices: Sequence[int] | None) -> None:
        """Remove the classifier and make ``forward`` return a list of maps. Raises ExciteError for a wrong index."""
        count = len(self.feature_info)
        indices = tuple(range(count)) if out_indices is None else tuple(out_indices)
        if not indices or any(not isinstance(i, int) or not 0 <= i < count for i in indices):
            raise ExciteError(f"out_indices must be from 0 to {count - 1}, not {list(indices)}")
        self.reset_classifier(0)
        self.feature_info = [self.feature_info[i] for i in indices]
        self.out_indices = indices

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations: less memory, more time."""
        self.grad_checkpointing = enable

    def set_fused(self, fused: str) -> None:
        """Choose the two-pass form of norm + gate + addition + ReLU ("auto", "on", "plain") or the textbook form
        ("off").

        See :func:`excite.ops.norm_excite_residual`. Parameters, buffers and state_dict are the same in every form.

        Raises:
            ExciteError: ``fused`` is none of these.
        """
        check_mode(fused)
        for module in self.modules():
            if hasattr(type(module), "fused"):
                setattr(module, "fused", fused)  # noqa: B010 - nn.Module's attributes have no types

    def gate_slots(self) -> dict[str, nn.Module]:
        """Name -> module, for all modules with an attribute ``gate`` (a gate or None): usually one per block."""
        return {
            name: module
            for name, module in self.named_modules()
            if "gate" in {**vars(module), **module._modules} and not isinstance(module, Gate)
        }

    def keep_gates(self, patterns: Sequence[str]) -> None:
        """Remove the gates whose slots match none of the shell ``patterns``, in place. A parent's name matches, too.

        Raises:
            ExciteError: a pattern matches no slot.
        """
        slots = self.gate_slots()
        kept = {name for pattern in patterns for name in match_slots(pattern, list(slots))}
        for name, module in slots.items():
            if name not in kept:
                module.gate = None  # type: ignore[assignment]

    def run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        """``stage(x)``; with gradient checkpointing, every block is recomputed in the backward pass."""
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return stage(x)
        return stage(x, run=run_checkpointed) if isinstance(stage, Stage) else run_checkpointed(stage, x)
