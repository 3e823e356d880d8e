"""Key maps: rows that map our modules to theirs, and the settings that names and shapes do not show.

A row is a pair of templates. ``{s}`` is the stage counted from 1, ``{b}`` the block in it from 0, and ``{i}`` a layer
in the block from 1, always in our counting; ``{s+1}`` or ``{i-1}`` on their side means that they count differently.
Because a row is a pair rather than a function, the same table can read and write a foreign checkpoint.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

from torch import Tensor

from excite.data.stored import KnownPreprocessing
from excite.errors import ExciteError
from excite.gates.registry import GateTable
from excite.weights.stored import Metadata

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Evaluation as in torchvision, Cadene and by the SE authors: shorter side 256, centre crop 224.
BILINEAR: KnownPreprocessing = {
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
}
BICUBIC: KnownPreprocessing = {**BILINEAR, "interpolation": "bicubic"}
#: CIFAR-10's training images, seen whole.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR: KnownPreprocessing = {"crop_pct": 1.0, "mean": CIFAR10_MEAN, "std": CIFAR10_STD}

_SLOT = re.compile(r"\{([sbi])([+-]\d+)?\}")


@dataclass(frozen=True)
class Leaf:
    """A tensor of a module: our name, their name, and the order of its axes (a key of ``AXES``)."""

    ours: str
    theirs: str
    axes: str = "same"


def _to_matrix(x: Tensor) -> Tensor:
    """(O, I, 1, 1) or (O, I) -> (O, I)."""
    return x[:, :, 0, 0] if x.ndim == 4 and x.shape[2:] == (1, 1) else x


#: What happens to a tensor's axes: (on reading, on writing).
AXES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "same": (lambda x: x, lambda x: x),
    # A gate's dense layers that are 1x1 convolutions in their network; both forms are read.
    "1x1": (_to_matrix, lambda x: x[:, :, None, None]),
    # TensorFlow: height, width, in, out.
    "hwio": (lambda x: x.permute(3, 2, 0, 1) if x.ndim == 4 else x, lambda x: x.permute(2, 3, 1, 0)),
    # TensorFlow: in, out.
    "io": (lambda x: x.t() if x.ndim == 2 else x, lambda x: x.t()),
}


@dataclass(frozen=True)
class Row:
    """``ours`` is the module that they call ``theirs``; ``kind`` determines its tensors (a key of the leaves)."""

    ours: str
    theirs: str
    kind: str


_TORCH_NORM = tuple(Leaf(n, n) for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))
#: How PyTorch names the tensors of each kind of module; gates as 1x1 convolutions or dense layers.
TORCH_LEAVES: Mapping[str, tuple[Leaf, ...]] = {
    "conv": (Leaf("weight", "weight"),),
    "norm": _TORCH_NORM,
    "dense": (Leaf("weight", "weight"), Leaf("bias", "bias")),
    "gate": (Leaf("weight", "weight", "1x1"), Leaf("bias", "bias")),
}
#: The same with MindSpore's names of a batch norm's tensors.
MINDSPORE_LEAVES: Mapping[str, tuple[Leaf, ...]] = {
    **TORCH_LEAVES,
    "norm": (
        Leaf("weight", "gamma"),
        Leaf("bias", "beta"),
        Leaf("running_mean", "moving_mean"),
        Leaf("running_var", "moving_variance"),
    ),
}


def block_rows(prefix: str = "layer{s}.{b}", downsample: str = "downsample") -> tuple[Row, ...]:
    """Convolutions, norms and projection of a residual block, named as in torchvision."""
    return (
        Row("layer{s}.{b}.conv{i}", f"{prefix}.conv{{i}}", "conv"),
        Row("layer{s}.{b}.bn{i}", f"{prefix}.bn{{i}}", "norm"),
        Row("layer{s}.{b}.downsample.0", f"{prefix}.{downsample}.0", "conv"),
        Row("layer{s}.{b}.downsample.1", f"{prefix}.{downsample}.1", "norm"),
    )


def gate_rows(first: str, second: str) -> tuple[Row, ...]:
    """The two layers of an SE gate, by their names inside a block."""
    return (
        Row("layer{s}.{b}.gate.fc1", f"layer{{s}}.{{b}}.{first}", "gate"),
        Row("layer{s}.{b}.gate.fc2", f"layer{{s}}.{{b}}.{second}", "gate"),
    )


def stem_rows(*theirs: str) -> tuple[Row, ...]:
    """A stem of one convolution and its norm (two names), or of three (six names, in order)."""
    ours = ("conv1", "bn1") if len(theirs) == 2 else ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")
    kinds = ("conv", "norm") * (len(ours) // 2)
    return tuple(Row(o, t, k) for o, t, k in zip(ours, theirs, kinds, strict=True))


@dataclass(frozen=True)
class Anatomy:
    """The architecture of a network, derived from the shapes of its tensors under our names.

    Attributes:
        family: "resnet" or "tf_seresnet".
        block: "basic" or "bottleneck".
        layers: number of blocks in each stage.
        widths: planes of each stage, as in ``excite.models.ResNet``.
        stem: "conv7", "conv3x3x3" or "cifar".
        stem_width: channels of the stem.
        groups, base_width, first_ratio, down_kernel, shortcut: as in ``excite.models.ResNet``.
        in_chans: channels of the images.
        num_classes: 0 if there is no classifier.
        gate: the gate's table with the options that differ from the defaults, or None.
        image_size: (height, width), if a gate's kernels show it.
    """

    family: str
    block: str
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    stem: str
    stem_width: int
    groups: int
    base_width: int
    first_ratio: float
    down_kernel: int
    shortcut: str
    in_chans: int
    num_classes: int
    gate: GateTable | None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Choice:
    """Which of a file's tensors belong to the network, if not all do.

    Attributes:
        prefix: the prefix of their names; "" for all of them.
        beside: other prefix, such as "criterion.", or single name -> number of tensors.
        head: where the classifier was found, if not with the rest.
    """

    prefix: str = ""
    beside: Mapping[str, int] = field(default_factory=dict)
    head: str = ""

    def sentence(self) -> str:
        """A sentence for the user; empty if there was nothing to choose."""
        if not self.beside and not self.head:
            return ""
        parts = [f"used: {self.prefix}*"] if self.prefix else []
        if self.head:
            parts.append(f"its classifier: {self.head}*")
        if self.beside:
            names = (f"{name}* ({count})" if name.endswith(".") else name for name, count in self.beside.items())
            parts.append(f"not used: {listed(names)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Source:
    """The tensors of a checkpoint without wrappers in their names, and the file's other information."""

    tensors: dict[str, Tensor]
    metadata: Metadata
    choice: Choice = Choice()


class Settings(TypedDict, total=False):
    """Options of a network that change what it computes but not the shapes of its tensors.

    Attributes:
        max_pool, conv_padding, stride_on, gate_position, bn_eps, bn_momentum: as in ``excite.models.ResNet``.
        identity: whether the gates' sigmoids are doubled, as in our gates that started as the identity.
    """

    max_pool: str
    conv_padding: str
    stride_on: str
    gate_position: str
    bn_eps: float
    bn_momentum: float
    identity: bool


def settings(
    *, max_pool: str, conv_padding: str, stride_on: str, gate_position: str, bn_eps: float, identity: bool
) -> Settings:
    """The settings of a ResNet that its tensors do not show. None has a default: a layout must give each of them."""
    return {
        "max_pool": max_pool,
        "conv_padding": conv_padding,
        "stride_on": stride_on,
        "gate_position": gate_position,
        "bn_eps": bn_eps,
        "identity": identity,
    }


#: torchvision's ResNet and everything that builds on it: padded pooling, the stride of bottlenecks on the 3x3.
PLAIN = settings(
    max_pool="pad1",
    conv_padding="symmetric",
    stride_on="conv2",
    gate_position="standard",
    bn_eps=1e-5,
    identity=False,
)


def plain_options(anatomy: Anatomy, source: Source) -> Settings:
    """As in torchvision."""
    return PLAIN.copy()


@dataclass(frozen=True)
class Layout:
    """How a family of sources names and orders its tensors.

    Attributes:
        key: short name.
        title: name for display, such as "MindCV's names".
        signature: patterns; the layout is recognised if each of them matches some name.
        rows: the key map.
        leaves: names of a module's tensors, for each kind of row.
        ignored: patterns of stored names that are not part of the network (optimiser state ...).
        refused: pattern -> why a checkpoint with such a name cannot be loaded.
        options: the settings that neither names nor shapes show: all of :func:`settings`, or those that its networks
            have. For those left out, the network's defaults are used, and the user gets a note.
        preprocessing: preprocessing of their images.
        classes: class names, if every classifier with that number of classes has the same.
        prepare: rewrites tensors that a table of names cannot express.
        silent_gate: the gate's table to assume if a checkpoint has no tensors of a gate: a gate without parameters.
        source: where this was read.
    """

    key: str
    title: str
    signature: tuple[str, ...]
    rows: tuple[Row, ...]
    options: Callable[[Anatomy, Source], Settings]
    preprocessing: KnownPreprocessing
    leaves: Mapping[str, tuple[Leaf, ...]] = field(default_factory=lambda: TORCH_LEAVES)
    ignored: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    prepare: Callable[[Source], dict[str, Tensor]] | None = None
    silent_gate: GateTable | None = None
    source: str = ""

    @cached_property
    def _reading(self) -> "_Patterns":
        return self._patterns("theirs")

    @cached_property
    def _writing(self) -> "_Patterns":
        return self._patterns("ours")

    def _patterns(self, side: str) -> "_Patterns":
        found: _Patterns = {}
        for row in self.rows:
            for leaf in self.leaves[row.kind]:
                pattern = _pattern(getattr(row, side), getattr(leaf, side))
                found.setdefault(getattr(leaf, side), []).append((pattern, row, leaf))
        return found

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether a checkpoint with these names has this layout."""
        names = list(names)
        return all(any(re.search(pattern, name) for name in names) for pattern in self.signature)

    def read(self, source: Source) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
        """Translate: (our name -> tensor with our axes, our name -> their name, their names that match no row).

        Raises:
            ExciteError: the checkpoint is of a refused kind, or two of its tensors map to the same one of ours.
        """
        for pattern, why in self.refused.items():
            found = next((name for name in source.tensors if re.search(pattern, name)), None)
            if found is not None:
                raise ExciteError(f"this checkpoint has {found!r}: {why}")
        tensors = source.tensors if self.prepare is None else self.prepare(source)
        ours: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        unknown: list[str] = []
        for name, tensor in tensors.items():
            if any(re.search(pattern, name) for pattern in self.ignored):
                continue
            translated = _translate(name, self._reading, "ours")
            if translated is None:
                unknown.append(name)
                continue
            own, leaf = translated
            if own in ours:
                raise ExciteError(f"the tensors {origin[own]!r} and {name!r} both map to {own!r}")
            ours[own], origin[own] = AXES[leaf.axes][0](tensor), name
        return ours, origin, unknown

    def write(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of ``read``. Raises ExciteError with the names that this layout has no place for."""
        theirs: dict[str, Tensor] = {}
        homeless: list[str] = []
        for name, tensor in ours.items():
            translated = _translate(name, self._writing, "theirs")
            if translated is None:
                homeless.append(name)
                continue
            other, leaf = translated
            theirs[other] = AXES[leaf.axes][1](tensor).contiguous()
        if homeless:
            raise ExciteError(f"with {self.title}, there is no place for {listed(homeless)}")
        return theirs


#: Name of a tensor in its module -> the rows that have such a tensor.
_Patterns = dict[str, list[tuple[re.Pattern[str], Row, Leaf]]]


def _translate(name: str, patterns: _Patterns, to: str) -> tuple[str, Leaf] | None:
    for pattern, row, leaf in patterns.get(name.rpartition(".")[2], ()):
        match = pattern.fullmatch(name)
        if match is not None:
            start, end = (row.theirs, row.ours) if to == "ours" else (row.ours, row.theirs)
            numbers = _numbers(match, start)
            filled = _SLOT.sub(lambda slot: str(numbers[slot[1]] + int(slot[2] or 0)), end)  # noqa: B023
            return f"{filled}.{getattr(leaf, to)}", leaf
    return None


def _numbers(match: re.Match[str], template: str) -> dict[str, int]:
    """The numbers in a matched template, in our counting."""
    return {letter: int(match[letter]) - int(offset or 0) for letter, offset in _SLOT.findall(template)}


def _pattern(template: str, leaf: str) -> re.Pattern[str]:
    """A template and a leaf as a regular expression with groups s, b and i."""
    literal = _SLOT.split(template)
    text = "".join(
        re.escape(part) if k % 3 == 0 else f"(?P<{part}>0|[1-9][0-9]*)" if k % 3 == 1 else ""
        for k, part in enumerate(literal)
        if part is not None
    )
    return re.compile(rf"{text}\.{re.escape(leaf)}")


def listed(names: Iterable[str], most: int = 6) -> str:
    """``3: a, b, c``, truncated after ``most`` names."""
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"
