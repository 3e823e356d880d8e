"""The SE authors' Caffe nets (SE-ResNet, SE-ResNeXt, SENet-154), with the layer names of their public prototxt files.

Their batch norm is two layers: ``NAME/bn`` (sums of means and variances, and the number to divide them by) and
``NAME/bn/scale``. Their images are BGR, 0 to 255, minus (104, 117, 123); ours are RGB, 0 to 1, normalised. Channel
order and scale are folded into the first convolution. The mean is recorded in the preprocessing, because an image is
padded with zeros after the mean is subtracted, which no bias of a convolution can express.
"""

import re

import torch
from torch import Tensor

from excite.errors import ExciteError
from excite.weights.layouts.base import BILINEAR, IMAGENET_STD, Anatomy, Layout, Row, Settings, Source, stem_rows
from excite.weights.layouts.cadene import caffe_options

#: "mean_value" of the prototxt files, red first.
MEAN_RGB = (123.0, 117.0, 104.0)
_FIRST = re.compile(r"conv1/7x7_s2|conv1_1/3x3_s2")
_BLOB = re.compile(r"(?P<layer>.+)\.(?P<index>\d+)")


def layer_blobs(tensors: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Layer name -> its blobs in order, from tensors named LAYER.0, LAYER.1 ..."""
    layers: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _BLOB.fullmatch(name)
        layer, index = (match["layer"], int(match["index"])) if match else (name, 0)
        layers.setdefault(layer, {})[index] = tensor
    return {layer: [blobs[i] for i in sorted(blobs)] for layer, blobs in layers.items()}


def _as_modules(source: Source) -> dict[str, Tensor]:
    """Blobs as tensors of modules, with statistics divided and the first convolution adapted to our images."""
    modules: dict[str, Tensor] = {}
    for layer, blobs in layer_blobs(source.tensors).items():
        if layer.endswith("/bn"):
            modules |= _statistics(layer, blobs)
        elif layer.endswith("/bn/scale"):
            modules |= _named(layer.removesuffix("/scale"), blobs)
        elif _FIRST.fullmatch(layer):
            modules[f"{layer}.weight"] = _for_our_images(blobs[0])
        elif layer == "classifier":  # old files write (1, 1, K, C)
            modules |= _named(layer, [blobs[0].reshape(blobs[0].shape[-2:]), *blobs[1:]])
        else:
            modules |= _named(layer, blobs)
    return modules


def _named(module: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    values = [blobs[0], *(blob.flatten() for blob in blobs[1:])]
    if module.endswith("/bn"):
        values[0] = values[0].flatten()
    named = {f"{module}.{leaf}": blob for leaf, blob in zip(("weight", "bias"), values, strict=False)}
    return named | {f"{module}.{k}": blob for k, blob in enumerate(values) if k > 1}  # which no row knows


def _statistics(layer: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    if len(blobs) != 3 or blobs[2].numel() != 1:
        raise ExciteError(
            f"the batch norm {layer!r} has {len(blobs)} blobs, not three (mean, variance and their divisor)"
        )
    divisor = float(blobs[2])
    factor = 0.0 if divisor == 0.0 else 1.0 / divisor
    names = ("running_mean", "running_var")
    return {
        f"{layer}.{name}": (blob.flatten().double() * factor).to(blob.dtype)
        for name, blob in zip(names, blobs, strict=False)
    }


def _for_our_images(weight: Tensor) -> Tensor:
    """(O, 3, k, k) over BGR 0..255 -> the same function of RGB in units of ImageNet's standard deviation."""
    if weight.ndim != 4 or weight.shape[1] != 3:
        raise ExciteError(f"the first convolution has the shape {tuple(weight.shape)}, which is not for colour images")
    unit = torch.tensor(IMAGENET_STD, dtype=torch.float64) * 255
    return (weight.flip(1).double() * unit.view(1, 3, 1, 1)).to(weight.dtype)


def _options(anatomy: Anatomy, source: Source) -> Settings:
    """As Cadene's, unless the file gives strides and epsilon itself (some only hold blobs)."""
    options = caffe_options(anatomy, source)
    params = {layer["name"]: layer["params"] for layer in source.metadata.get("layers", ())}
    strides = params.get("conv3_1_1x1_reduce", {}).get("convolution_param", {})
    if strides:
        options["stride_on"] = "conv1" if max(strides.get("stride") or [strides.get("stride_h", 1)]) > 1 else "conv2"
    epsilons = {p["batch_norm_param"]["eps"] for p in params.values() if "eps" in p.get("batch_norm_param", {})}
    if len(epsilons) > 1:
        raise ExciteError(f"its batch norms have different epsilons ({sorted(epsilons)}), but ours share one")
    return options | ({"bn_eps": float(f"{epsilons.pop():.6g}")} if epsilons else {})


_BLOCK = "conv{s+1}_{b+1}"
_STEM = ("conv1_1/3x3_s2", "conv1_2/3x3", "conv1_3/3x3")
_PARTS = (("conv1", "bn1", "1x1_reduce"), ("conv2", "bn2", "3x3"), ("conv3", "bn3", "1x1_increase"))
_PROJECTION = ("downsample.0", "downsample.1", "1x1_proj")

CAFFE = Layout(
    key="caffe",
    title="the layers of the SE authors' Caffe nets",
    signature=(r"^conv2_1_1x1_reduce", r"^conv2_1_1x1_down", r"^conv1(/7x7_s2|_1/3x3_s2)"),
    rows=(
        *stem_rows("conv1/7x7_s2", "conv1/7x7_s2/bn"),
        *stem_rows(*(f"{part}{end}" for part in _STEM for end in ("", "/bn"))),
        *(
            row
            for conv, norm, theirs in (*_PARTS, _PROJECTION)
            for row in (
                Row(f"layer{{s}}.{{b}}.{conv}", f"{_BLOCK}_{theirs}", "conv"),
                Row(f"layer{{s}}.{{b}}.{norm}", f"{_BLOCK}_{theirs}/bn", "norm"),
            )
        ),
        Row("layer{s}.{b}.gate.fc1", f"{_BLOCK}_1x1_down", "gate"),
        Row("layer{s}.{b}.gate.fc2", f"{_BLOCK}_1x1_up", "gate"),
        Row("fc", "classifier", "dense"),
    ),
    options=_options,
    preprocessing={**BILINEAR, "mean": tuple(m / 255 for m in MEAN_RGB)},
    prepare=_as_modules,
    source="hujie-frank/SENet, models/*.prototxt",
)
