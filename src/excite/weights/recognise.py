"""Recognises a checkpoint's layout, and which of our models it is, from the names and shapes of its tensors."""

import inspect
import re
from collections.abc import Mapping
from typing import cast

from torch import Tensor

from excite.errors import ExciteError, nearest
from excite.gates.registry import GateTable
from excite.gates.squeeze_excite import squeeze_width
from excite.models.catalog import VARIANTS, ModelArgs, Variant, list_models
from excite.models.factory import builder
from excite.models.factory import model_options as options_of_model
from excite.size import plain_size
from excite.text import counted
from excite.weights.layouts import Anatomy, Layout, Settings, Source, listed
from excite.weights.prefixes import layout_of
from excite.weights.prefixes import unwrapped as unwrapped
from excite.weights.timms import network_of_timm

#: Options of a model that change what its tensors compute but not their shapes; and those of its batch norms.
SETTINGS = ("max_pool", "conv_padding", "stride_on", "gate_position", "bn_eps")
#: Rules for the squeeze width, the most common first: (reduction, rd_divisor).
SQUEEZES = tuple((reduction, divisor) for reduction in (16, 8, 4, 2, 32) for divisor in (None, 8))
#: Size from which MindSpore's GENet_Res50 halves a map before the gather; no other network does.
HALVE_FROM = 56
#: Our name for the stem of EfficientNet-Lite: one 3x3 with a stride, no pooling.
_LITE_STEM = "conv3"
_SHAPES = ("block", "layers", "widths", "stem", "stem_width", "groups", "base_width", "first_ratio", "down_kernel")
#: Arguments that a variant of our catalog may have for its tensors to identify it.
_TOLD = frozenset((*_SHAPES, "shortcut", "max_pool", "stride_on", "depth"))


def find_layout(source: Source, where: str) -> Layout:
    """The key map with a matching signature.

    Raises:
        ExciteError: there is none; the message names some of the tensors.
    """
    names = list(source.tensors)
    layout = layout_of(names)
    if layout is not None:
        return layout
    theirs = network_of_timm(source.tensors, [where])
    hint = "docs/weights.md lists the known sources"
    if theirs is not None:
        hint = f"it is timm's {theirs} (set model.name=timm:{theirs})"
    raise ExciteError(f"{where} has no network with known tensor names ({listed(names, 4)}); {hint}")


def dissect(tensors: Mapping[str, Tensor], where: str) -> Anatomy:
    """The architecture of the network with these tensors, under our names.

    Raises:
        ExciteError: the stem or the blocks are missing, or have shapes that no ResNet has.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers = _layers(shapes, where)
    head = shapes.get("fc.weight", (0, 0))
    if len(head) != 2:
        raise ExciteError(f"{where}: its classifier has the shape {head}, not (classes, features)")
    classes = head[0]
    if "stem.conv.weight" in shapes:
        stem = shapes["stem.conv.weight"]
        if len(stem) != 4:
            raise ExciteError(f"{where}: its first convolution has the shape {stem}")
        gate = _squeeze_excite(shapes, "stem.gate")
        return Anatomy("tf_seresnet", "", layers, (), "cifar", stem[0], 1, 64, 1.0, 1, "conv", stem[1], classes, gate)
    if "conv2.weight" in shapes:
        return _efficientnet_lite(shapes, layers, classes, where)
    stem_kind, stem_width, in_chans = _stem(shapes, where)
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    groups, base_width, first_ratio, widths = _widths(shapes, block, len(layers), where)
    down = [shape for name, shape in shapes.items() if name.endswith(".downsample.0.weight") and len(shape) == 4]
    return Anatomy(
        family="resnet",
        block=block,
        layers=layers,
        widths=widths,
        stem=stem_kind,
        stem_width=stem_width,
        groups=groups,
        base_width=base_width,
        first_ratio=first_ratio,
        down_kernel=max((shape[-1] for shape in down), default=1),
        shortcut="conv" if down else "pad",
        in_chans=in_chans,
        num_classes=classes,
        gate=_gate(shapes),
        image_size=_image_size(shapes, stem_kind),
    )


def _efficientnet_lite(
    shapes: Mapping[str, tuple[int, ...]], layers: tuple[int, ...], classes: int, where: str
) -> Anatomy:
    """A network of inverted residuals, which has a convolution after its last block."""
    ends = [
        max((n for n in shapes if re.fullmatch(rf"layer{s + 1}\.0\.conv\d\.weight", n)), default="")
        for s in range(len(layers))
    ]
    stem = shapes.get("conv1.weight", ())
    if not all(ends) or len(stem) != 4 or any(len(shapes[end]) != 4 for end in ends):
        raise ExciteError(f"{where}: a convolution of the stem or of a stage is missing, or is not 4-dimensional")
    widths = tuple(shapes[end][0] for end in ends)
    size, kind = _image_size(shapes, _LITE_STEM), "inverted residual"
    return Anatomy(
        "efficientnet_lite",
        kind,
        layers,
        widths,
        _LITE_STEM,
        stem[0],
        1,
        64,
        1.0,
        1,
        "pad",
        stem[1],
        classes,
        _gate(shapes),
        size,
    )


def _layers(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[int, ...]:
    """Number of blocks in each stage. A gap in the numbering is an error."""
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        match = re.match(r"layer(\d+)\.(\d+)\.", name)
        if match:
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = tuple(len(blocks[stage]) for stage in sorted(blocks))
    whole = sorted(blocks) == list(range(1, len(blocks) + 1)) and all(
        numbers == set(range(len(numbers))) for numbers in blocks.values()
    )
    if not whole or not counts:
        raise ExciteError(f"{where}: the numbering of its blocks has a gap, so part of the network is missing")
    return counts


def _stem(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[str, int, int]:
    """(kind, channels, channels of the images)."""
    if "conv1.6.weight" in shapes and "conv1.0.weight" in shapes:
        return "conv3x3x3", shapes["conv1.6.weight"][0], shapes["conv1.0.weight"][1]
    shape = shapes.get("conv1.weight", ())
    if len(shape) == 4 and shape[-2:] in ((7, 7), (3, 3)):
        return ("conv7" if shape[-1] == 7 else "cifar"), shape[0], shape[1]
    raise ExciteError(f"{where}: its first convolution is missing or has the shape {shape}, not 7x7 or 3x3")


def _widths(
    shapes: Mapping[str, tuple[int, ...]], block: str, stages: int, where: str
) -> tuple[int, int, float, tuple[int, ...]]:
    """(groups, base width, ratio of the first convolution, planes of each stage)."""
    last = "conv3" if block == "bottleneck" else "conv2"
    firsts = [
        tuple(shapes.get(f"layer{s}.0.{part}.weight", ()) for part in ("conv1", "conv2", last))
        for s in range(1, stages + 1)
    ]
    if any(len(shape) != 4 or not all(shape) for three in firsts for shape in three):
        raise ExciteError(f"{where}: a convolution in the first block of a stage is missing, or is not 4-dimensional")
    expansion = 4 if block == "bottleneck" else 1
    planes = tuple(three[2][0] // expansion for three in firsts)
    if block == "basic":
        return 1, 64, 1.0, planes
    conv1, conv2, _ = firsts[0]
    groups = conv1[0] // max(conv2[1], 1)
    base = 64 * conv2[0] // max(planes[0] * groups, 1)
    return groups, base, conv1[0] / conv2[0], planes


def _gate(shapes: Mapping[str, tuple[int, ...]]) -> GateTable | None:
    """The gate's table with what differs from its defaults. "ge" without parameters cannot be detected."""
    if not any(".gate." in name for name in shapes):
        return None
    if "layer1.0.gate.gather.0.weight" in shapes:
        plus = "layer1.0.gate.fc1.weight" in shapes
        kernel = shapes["layer1.0.gate.gather.0.weight"]
        convolutions = sum(bool(re.fullmatch(r"layer1\.0\.gate\.gather\.\d+\.weight", n)) for n in shapes) // 2
        local: GateTable = {} if kernel[-1:] > (3,) and convolutions == 1 else {"extent": 2**convolutions}
        if _halves(kernel):
            local = {"halve_from": HALVE_FROM}
        squeeze = _squeeze_excite(shapes, "layer1.0.gate") if plus else {"name": "se"}
        return {**squeeze, "name": "ge", "variant": "theta_plus" if plus else "theta", **local}
    return _squeeze_excite(shapes, "layer1.0.gate")


def _halves(kernel: tuple[int, ...]) -> bool:
    """Whether a gather starts with a dense convolution, which halves the map; all others are depth-wise."""
    return len(kernel) == 4 and kernel[1] > 1


def _squeeze_excite(shapes: Mapping[str, tuple[int, ...]], first: str) -> GateTable:
    """Reduction, rounding and bias of the first rule that gives the widths of all gates."""
    widths = {s[1]: s[0] for name, s in shapes.items() if name.endswith("gate.fc1.weight") and len(s) >= 2}
    table: GateTable = {"name": "se"}
    if f"{first}.fc1.bias" not in shapes:
        table["bias"] = False
    for reduction, divisor in SQUEEZES:
        if all(squeeze_width(channels, reduction, divisor) == width for channels, width in widths.items()):
            table |= {"reduction": reduction} if reduction != SQUEEZES[0][0] else {}
            return table | ({"rd_divisor": divisor} if divisor else {})
    shown = ", ".join(f"{channels} -> {width}" for channels, width in sorted(widths.items()))
    raise ExciteError(f"the squeeze widths {shown} follow no known rule (channels / reduction, rounded or not)")


def _image_size(shapes: Mapping[str, tuple[int, ...]], stem: str) -> tuple[int, int] | None:
    """The size of the images, if a gate has a gather kernel of the size of its map; else None."""
    kernel = shapes.get("layer1.0.gate.gather.0.weight")
    stride = {"cifar": 1, _LITE_STEM: 2}.get(stem, 4)
    if kernel is not None and _halves(kernel):
        kernel, stride = shapes.get("layer1.0.gate.gather.2.weight"), 2 * stride
    if kernel is None or len(kernel) != 4 or kernel[-1] <= 3:
        return None
    return kernel[-2] * stride, kernel[-1] * stride


def model_name(anatomy: Anatomy, where: str) -> str:
    """The name in our catalog.

    Raises:
        ExciteError: we have no such network; the message describes it and names our closest one.
    """
    for name, variant in VARIANTS.items():
        if _is(anatomy, variant):
            return name
    close = nearest(_guess(anatomy), list_models())
    raise ExciteError(f"{where} is {in_words(anatomy)}; excite has no such model{close}")


#: Family of the catalog -> what its tensors are recognised as; those of the others are not.
_FAMILIES = {
    **dict.fromkeys(("resnet", "cifar_resnet", "preresnet"), "resnet"),
    "tf_seresnet": "tf_seresnet",
    "efficientnet_lite": "efficientnet_lite",
}


def _is(anatomy: Anatomy, variant: Variant) -> bool:
    gate = None if anatomy.gate is None else (anatomy.gate["name"], anatomy.gate.get("variant"))
    table = variant["gate"]
    if gate != (None if table is None else (table["name"], table.get("variant"))):
        return False
    arch = variant["arch"]
    if not set(arch) <= _TOLD:  # a network with parts that are not detected here
        return False
    if anatomy.family != _FAMILIES.get(variant["family"]):
        return False
    if anatomy.family == "efficientnet_lite":
        made_of = {"layers": anatomy.layers, "widths": anatomy.widths, "stem_width": anatomy.stem_width}
        return {"stem_width": 32, **arch} == made_of
    if anatomy.family == "tf_seresnet":
        return len(set(anatomy.layers)) == 1
    stem = arch.get("stem", "conv7")
    shortcut_fits = stem == "cifar" or anatomy.shortcut == arch.get("shortcut", "conv")
    return shortcut_fits and (
        arch["block"] == anatomy.block
        and tuple(arch["layers"]) == anatomy.layers
        and tuple(arch.get("widths", (64, 128, 256, 512))) == anatomy.widths
        and (stem == anatomy.stem or "cifar" not in (stem, anatomy.stem))
        and arch.get("stem_width", 64) == anatomy.stem_width
        and arch.get("groups", 1) == anatomy.groups
        and arch.get("base_width", 64) == anatomy.base_width
        and arch.get("first_ratio", 1.0) == anatomy.first_ratio
    )


def _guess(anatomy: Anatomy) -> str:
    depth = 2 + sum(anatomy.layers) * (3 if anatomy.block == "bottleneck" else 2)
    kind = "resnet" if anatomy.groups == 1 else "resnext"
    tail = "" if anatomy.groups == 1 else f"_{anatomy.groups}x{anatomy.base_width}d"
    return f"{'' if anatomy.gate is None else anatomy.gate['name']}{kind}{depth}{tail}"


def in_words(anatomy: Anatomy) -> str:
    """The anatomy in words: "a network of (3, 4, 6, 3) bottleneck blocks with SE ..."."""
    words = [f"a network of ({', '.join(map(str, anatomy.layers))}) {anatomy.block or 'gated bottleneck'} blocks"]
    if anatomy.widths:
        words.append(f"of {', '.join(map(str, anatomy.widths))} planes")
    if anatomy.groups > 1 or anatomy.base_width != 64:
        words.append(f"in {counted(anatomy.groups, 'group')} of base width {anatomy.base_width}")
    words.append("without gates" if anatomy.gate is None else f"with the gate {anatomy.gate['name']}")
    return " ".join([*words, f"and a {anatomy.stem} stem of {anatomy.stem_width} channels"])


def settings_of(name: str) -> Settings:
    """The ``SETTINGS`` of a network of ours, with its default values."""
    variant = VARIANTS[name]
    defaults = inspect.signature(builder(variant).__init__).parameters
    known = options_of_model(name)
    own = {key: variant["arch"].get(key, defaults[key].default) for key in SETTINGS if key in known}
    return cast(Settings, own)


def unsaid(name: str, anatomy: Anatomy, extra: Settings) -> Settings:
    """Settings of this network that a layout does not give, with the network's own values."""
    own = settings_of(name).items()
    return cast(Settings, {k: v for k, v in own if k not in extra and k not in _idle(anatomy)})


def _idle(anatomy: Anatomy) -> set[str]:
    """Settings of parts that the network does not have."""
    if anatomy.family == "efficientnet_lite":
        return {"gate_position"} if anatomy.gate is None else set()
    idle = {"max_pool"} if anatomy.stem == "cifar" else set()
    idle |= {"stride_on"} if anatomy.block == "basic" else set()
    return idle | ({"gate_position"} if anatomy.gate is None else set())


def model_options(name: str, anatomy: Anatomy, extra: Settings) -> ModelArgs:
    """Options of ``create_model(name, ...)`` that give the network of the checkpoint; only those that are needed.

    Args:
        name: name of the network.
        anatomy: what the shapes show.
        extra: what the layout gives.
    """
    variant = VARIANTS[name]
    defaults = variant["defaults"]
    options: ModelArgs = {"num_classes": anatomy.num_classes}
    if anatomy.in_chans != 3:
        options["in_chans"] = anatomy.in_chans
    if anatomy.image_size is not None and set(anatomy.image_size) != {defaults.get("image_size", 224)}:
        options["image_size"] = plain_size(anatomy.image_size)
    if anatomy.family == "tf_seresnet" and anatomy.layers[0] * 9 + 2 != variant["arch"]["depth"]:
        options["depth"] = anatomy.layers[0] * 9 + 2
    if anatomy.family == "resnet":
        for key, default in (("stem", "conv7"), ("down_kernel", 1)):
            if getattr(anatomy, key) != variant["arch"].get(key, default):
                options[key] = getattr(anatomy, key)
    if anatomy.stem == "cifar" and anatomy.shortcut != variant["arch"].get("shortcut", "conv"):
        options["shortcut"] = anatomy.shortcut
    own = dict(variant["gate"] or {})
    for key, value in (anatomy.gate or {}).items():
        if own.get(key) != value:
            options["gate_bias" if key == "bias" else key] = value
    if own.get("bias") is False and "bias" not in (anatomy.gate or {}):
        options["gate_bias"] = True
    return options | _said(name, anatomy, extra)


def _said(name: str, anatomy: Anatomy, extra: Settings) -> ModelArgs:
    """What a layout gives, without the network's defaults and without settings for parts that it does not have."""
    arch, own = VARIANTS[name]["arch"], settings_of(name)
    defaults = inspect.signature(builder(VARIANTS[name]).__init__).parameters
    said = {k: v for k, v in extra.items() if k in defaults and k not in _idle(anatomy)}
    if anatomy.family == "tf_seresnet":
        return {key: value for key, value in said.items() if arch.get(key) != value}
    return {key: value for key, value in said.items() if own.get(key, defaults[key].default) != value}
