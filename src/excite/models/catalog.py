"""All variants by name. Pure data without torch, so that ``excite models`` and shell completion are fast."""

import fnmatch
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from excite.errors import ExciteError, nearest, shown

if TYPE_CHECKING:
    from excite.gates.registry import GateTable

#: Keyword arguments of ``create_model`` or of a network's constructor, JSON-serialisable. They depend on the network
#: (timm's models have their own); whoever takes them checks them.
ModelArgs = dict[str, Any]


class Defaults(TypedDict, total=False):
    num_classes: int
    image_size: int
    drop_rate: float


class Variant(TypedDict):
    """A network of the catalog.

    Attributes:
        family: selects the builder and the options that it allows.
        arch: arguments of the builder.
        gate: the gate's table; None for an ungated network.
        defaults: defaults that differ from those of ``create_model``.
    """

    family: Literal["resnet", "cifar_resnet", "preresnet", "tf_seresnet", "efficientnet_lite", "fastnet"]
    arch: ModelArgs
    gate: "GateTable | None"
    defaults: Defaults


_SE = {"name": "se"}
_GE_VARIANTS = ("theta_minus", "theta", "theta_plus")


def _imagenet(block: str, layers: tuple[int, ...], **arch: Any) -> Variant:
    return {"family": "resnet", "arch": {"block": block, "layers": layers, **arch}, "gate": None, "defaults": {}}


def _cifar(block: str, units: int, **arch: Any) -> Variant:
    """Three stages of ``units`` blocks for 32x32 images and 10 classes."""
    arch = {"block": block, "layers": (units,) * 3, "widths": (16, 32, 64), "stem": "cifar", "stem_width": 16, **arch}
    return {
        "family": "preresnet" if block.startswith("pre") else "cifar_resnet",
        "arch": arch,
        "gate": None,
        "defaults": {"num_classes": 10, "image_size": 32},
    }


def _fastnet(widths: tuple[int, ...], depth: int) -> Variant:
    """Three groups of ``depth`` convolutions for 32x32 images and 10 classes."""
    arch = {"widths": widths, "depth": depth}
    return {"family": "fastnet", "arch": arch, "gate": None, "defaults": {"num_classes": 10, "image_size": 32}}


def _plain() -> dict[str, Variant]:
    """The ungated networks, keyed by the part of their name that "se" and "ge" are prefixed to."""
    nets = {
        "resnet18": _imagenet("basic", (2, 2, 2, 2)),
        "resnet34": _imagenet("basic", (3, 4, 6, 3)),
        "resnet50": _imagenet("bottleneck", (3, 4, 6, 3)),
        "resnet101": _imagenet("bottleneck", (3, 4, 23, 3)),
        "resnet152": _imagenet("bottleneck", (3, 8, 36, 3)),
        "resnext26_32x4d": _imagenet("bottleneck", (2, 2, 2, 2), groups=32, base_width=4),
        "resnext50_32x4d": _imagenet("bottleneck", (3, 4, 6, 3), groups=32, base_width=4),
        "resnext101_32x4d": _imagenet("bottleneck", (3, 4, 23, 3), groups=32, base_width=4),
    }
    for depth in (20, 32, 44, 56, 110):
        nets[f"cifar_resnet{depth}"] = _cifar("basic", (depth - 2) // 6, shortcut="pad")
    for depth in (110, 164):
        nets[f"cifar_preresnet{depth}"] = _cifar("pre_bottleneck", (depth - 2) // 9)
    nets["cifar_wrn16_8"] = _cifar("pre_basic", 2, widths=(128, 256, 512))
    # By their number of convolutions: those of airbench94, and of airbench96_faster.
    nets["cifar_fastnet7"] = _fastnet((64, 256, 256), 2)
    nets["cifar_fastnet10"] = _fastnet((128, 384, 512), 3)
    return nets


def _gated(name: str, prefix: str) -> str:
    """seresnet50 from resnet50, cifar_seresnet20 from cifar_resnet20, se_efficientnet_lite0 from efficientnet_lite0."""
    if name.startswith("efficientnet"):
        return f"{prefix}_{name}"
    return f"cifar_{prefix}{name.removeprefix('cifar_')}" if name.startswith("cifar_") else prefix + name


def _catalog() -> dict[str, Variant]:
    variants: dict[str, Variant] = {}
    for name, net in _plain().items():
        variants[name] = net
        variants[_gated(name, "se")] = {**net, "gate": _SE}
        for kind in _GE_VARIANTS:
            variants[f"{_gated(name, 'ge')}_{kind}"] = {**net, "gate": {"name": "ge", "variant": kind}}
    # Lite0: widths and depths of the paper's table 1; stem and head have the same width at every scale.
    lite: Variant = {
        "family": "efficientnet_lite",
        "arch": {"layers": (1, 2, 2, 3, 3, 4, 1), "widths": (16, 24, 40, 80, 112, 192, 320)},
        "gate": None,
        "defaults": {"drop_rate": 0.2},
    }
    variants["efficientnet_lite0"] = lite
    variants["se_efficientnet_lite0"] = {**lite, "gate": _SE}
    for kind in _GE_VARIANTS:
        variants[f"ge_efficientnet_lite0_{kind}"] = {**lite, "gate": {"name": "ge", "variant": kind}}
    # As in Caffe and Cadene's PyTorch port: half-width first convolution, 64 groups, ceil-mode pooling.
    senet154 = _imagenet("bottleneck", (3, 8, 36, 3), groups=64, base_width=4, first_ratio=0.5)
    senet154["arch"] |= {"stem": "conv3x3x3", "stem_width": 128, "max_pool": "ceil", "down_kernel": 3}
    variants["senet154"] = {**senet154, "gate": _SE, "defaults": {"drop_rate": 0.2}}
    for depth in (50, 101):  # ResNeXt's widths and groups, as in table 1 of the SKNet paper
        net = variants[f"resnext{depth}_32x4d"]
        variants[f"sknet{depth}"] = {**net, "arch": {**net["arch"], "block_conv": "sk"}}
    variants["cifar_seresnet110_tf"] = {
        "family": "tf_seresnet",
        "arch": {"depth": 110},
        "gate": {"name": "se", "bias": False},
        "defaults": {"num_classes": 10, "image_size": 32},
    }
    return variants


VARIANTS: dict[str, Variant] = _catalog()


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern (``*``, ``?``, ``[...]``), sorted."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


def get_variant(name: str) -> Variant:
    """A variant's table. Raises ExciteError for an unknown name, with the nearest known one."""
    if name not in VARIANTS:
        raise ExciteError(f"unknown model {shown(name)}{nearest(name, VARIANTS)} ('excite models' lists all)")
    return VARIANTS[name]
