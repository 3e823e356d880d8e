"""ModelZoo-TensorFlow's SE-ResNet-110, whose variables are numbered in the order of their creation."""

import re
from collections.abc import Iterator

from torch import Tensor

from excite.errors import ExciteError
from excite.weights.layouts.base import BILINEAR, CIFAR, Anatomy, Layout, Leaf, Row, Settings, Source

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STAGES = 3


def units(blocks: int) -> Iterator[tuple[str, bool]]:
    """Every gated convolution in the reference's order, as (our name, whether a batch norm precedes it).

    The stem normalises the image. The very first unit has no norm. Projections are last in their block and have none.
    """
    yield "stem", True
    for stage in range(1, STAGES + 1):
        for block in range(blocks):
            place = f"layer{stage}.{block}"
            yield f"{place}.unit1", (stage, block) != (1, 0)
            yield f"{place}.unit2", True
            yield f"{place}.unit3", True
            if block == 0:
                yield f"{place}.downsample", False


def variables(blocks: int) -> dict[str, str]:
    """Their scope -> our module. TensorFlow numbers scopes of the same kind in order, the first without a number."""
    made = {"conv2d": 0, "BatchNorm": 0, "dense": 0}
    names: dict[str, str] = {}

    def make(kind: str, ours: str) -> None:
        number = made[kind]
        made[kind] += 1
        names[f"{kind}_{number}" if number else kind] = ours

    for unit, norm in units(blocks):
        if norm:
            make("BatchNorm", f"{unit}.bn")
        make("conv2d", f"{unit}.conv")
        make("dense", f"{unit}.gate.fc1")
        make("dense", f"{unit}.gate.fc2")
    make("BatchNorm", "norm")
    make("dense", "fc")
    return names


def _by_place(source: Source) -> dict[str, Tensor]:
    """``conv2d_7/kernel`` -> ``layer1.1.unit2.conv.kernel``; the number of convolutions gives the depth."""
    convolutions = sum(bool(re.fullmatch(r"conv2d(_\d+)?/kernel", name)) for name in source.tensors)
    blocks, rest = divmod(convolutions - 1 - STAGES, 3 * STAGES)
    if rest or blocks < 1:
        raise ExciteError(
            f"a checkpoint with TensorFlow's numbering and {convolutions} convolutions is not an SE-ResNet of depth "
            f"9n + 2, which has 9n + {1 + STAGES} convolutions"
        )
    places = variables(blocks)
    renamed: dict[str, Tensor] = {}
    for name, tensor in source.tensors.items():
        scope, slash, leaf = name.partition("/")
        known = scope in places and slash and "/" not in leaf
        renamed[f"{places[scope]}.{leaf}" if known else name] = tensor
    return renamed


def _options(anatomy: Anatomy, source: Source) -> Settings:
    """No other settings apply: this network has fixed strides, no pooling and a fixed position of its gates."""
    return {"bn_eps": 1e-3, "bn_momentum": 0.1, "identity": False}


_UNITS = tuple(f"layer{{s}}.{{b}}.{unit}" for unit in ("unit1", "unit2", "unit3", "downsample"))

TENSORFLOW = Layout(
    key="tensorflow",
    title="the variables of ModelZoo-TensorFlow's SE-ResNet in their order",
    signature=(r"^conv2d/kernel$", r"^BatchNorm/gamma$", r"^dense/kernel$"),
    rows=(
        *(
            Row(f"{unit}.{part}", f"{unit}.{part}", kind)
            for unit in ("stem", *_UNITS)
            for part, kind in (("bn", "norm"), ("conv", "conv"), ("gate.fc1", "dense"), ("gate.fc2", "dense"))
        ),
        Row("norm", "norm", "norm"),
        Row("fc", "fc", "dense"),
    ),
    leaves={
        "conv": (Leaf("weight", "kernel", "hwio"), Leaf("bias", "bias")),
        "dense": (Leaf("weight", "kernel", "io"), Leaf("bias", "bias")),
        "norm": (
            Leaf("weight", "gamma"),
            Leaf("bias", "beta"),
            Leaf("running_mean", "moving_mean"),
            Leaf("running_var", "moving_variance"),
        ),
    },
    ignored=(r"/Momentum$", r"/(biased|local_step)$", r"^(global_step|loss_scale.*|.*good_steps|Variable(_\d+)?)$"),
    options=_options,
    # The reference standardises each test image by its own mean and standard deviation; we do not.
    preprocessing={**BILINEAR, **CIFAR},
    classes=CIFAR10_CLASSES,
    prepare=_by_place,
    source="ModelZoo-TensorFlow SE-ResNet-110, its checkpoints as TensorFlow 2.21 writes them",
)
