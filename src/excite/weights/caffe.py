"""Reads Caffe's ``.caffemodel`` files, without Caffe.

Format: NetParameter of caffe/src/caffe/proto/caffe.proto, in both forms: ``layer`` (LayerParameter) and the older
``layers`` (V1LayerParameter). A layer's blobs become the tensors ``LAYER.0``, ``LAYER.1`` ..., as float32 (or float64)
with the shape in the file; in older files, every blob has four dimensions, (1, 1, 1, C) for a bias.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from excite.errors import ExciteError
from excite.untrusted.raw import Damaged, as_tensor
from excite.weights.stored import Stored
from excite.weights.wire import BYTES, FIXED32, FIXED64, Field, fields, packed_ints

FORMAT = "Caffe model"

_V1_LAYERS, _LAYER = 2, 100


class Layer(TypedDict):
    """A layer. ``params``: its messages by name, with the fields in ``SETTINGS``; ``blobs``: names of tensors."""

    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    params: dict[str, Mapping[str, Any]]
    blobs: list[str]


class _Form(NamedTuple):
    """Field numbers of one form of a layer."""

    name: int
    type: int
    bottom: int
    top: int
    blobs: int
    params: dict[int, str]


_NEW = _Form(
    name=1,
    type=2,
    bottom=3,
    top=4,
    blobs=7,
    params={
        106: "convolution_param",
        108: "dropout_param",
        110: "eltwise_param",
        117: "inner_product_param",
        121: "pooling_param",
        139: "batch_norm_param",
        142: "scale_param",
    },
)
_V1 = _Form(
    name=4,
    type=5,
    bottom=2,
    top=3,
    blobs=6,
    params={
        10: "convolution_param",
        12: "dropout_param",
        24: "eltwise_param",
        17: "inner_product_param",
        19: "pooling_param",
    },
)

#: V1LayerParameter.LayerType -> the current name of the layer
V1_TYPES = {
    1: "Accuracy",
    2: "BNLL",
    3: "Concat",
    4: "Convolution",
    5: "Data",
    6: "Dropout",
    7: "EuclideanLoss",
    8: "Flatten",
    9: "HDF5Data",
    10: "HDF5Output",
    11: "Im2col",
    12: "ImageData",
    13: "InfogainLoss",
    14: "InnerProduct",
    15: "LRN",
    16: "MultinomialLogisticLoss",
    17: "Pooling",
    18: "ReLU",
    19: "Sigmoid",
    20: "Softmax",
    21: "SoftmaxWithLoss",
    22: "Split",
    23: "TanH",
    24: "WindowData",
    25: "Eltwise",
    26: "Power",
    27: "SigmoidCrossEntropyLoss",
    28: "HingeLoss",
    29: "MemoryData",
    30: "ArgMax",
    31: "Threshold",
    32: "DummyData",
    33: "Slice",
    34: "MVN",
    35: "AbsVal",
    36: "Silence",
    37: "ContrastiveLoss",
    38: "Exp",
    39: "Deconvolution",
}


def _float(field: Field) -> float:
    return struct.unpack("<f", field.as_fixed(FIXED32)[-4:])[0]


_Reader = Callable[[Field], Any]
_INT: _Reader = Field.as_int


def _bool(field: Field) -> bool:
    return bool(field.as_int())


#: Settings that affect what a network computes: message -> field -> (name, reader, whether it may be repeated)
SETTINGS: dict[str, dict[int, tuple[str, _Reader, bool]]] = {
    "convolution_param": {
        1: ("num_output", _INT, False),
        2: ("bias_term", _bool, False),
        3: ("pad", _INT, True),
        4: ("kernel_size", _INT, True),
        5: ("group", _INT, False),
        6: ("stride", _INT, True),
        9: ("pad_h", _INT, False),
        10: ("pad_w", _INT, False),
        11: ("kernel_h", _INT, False),
        12: ("kernel_w", _INT, False),
        13: ("stride_h", _INT, False),
        14: ("stride_w", _INT, False),
        18: ("dilation", _INT, True),
    },
    "dropout_param": {1: ("dropout_ratio", _float, False)},
    "eltwise_param": {1: ("operation", _INT, False)},
    "inner_product_param": {1: ("num_output", _INT, False), 2: ("bias_term", _bool, False)},
    "pooling_param": {
        1: ("pool", _INT, False),
        2: ("kernel_size", _INT, False),
        3: ("stride", _INT, False),
        4: ("pad", _INT, False),
        5: ("kernel_h", _INT, False),
        6: ("kernel_w", _INT, False),
        7: ("stride_h", _INT, False),
        8: ("stride_w", _INT, False),
        9: ("pad_h", _INT, False),
        10: ("pad_w", _INT, False),
        12: ("global_pooling", _bool, False),
    },
    "batch_norm_param": {
        1: ("use_global_stats", _bool, False),
        2: ("moving_average_fraction", _float, False),
        3: ("eps", _float, False),
    },
    "scale_param": {1: ("axis", _INT, False), 2: ("num_axes", _INT, False), 4: ("bias_term", _bool, False)},
}


def looks_like(data: memoryview) -> bool:
    """Whether the first long enough message of a protobuf file is a layer with a name."""
    try:
        for field in fields(data):
            if field.number in (_V1_LAYERS, _LAYER):
                form = _NEW if field.number == _LAYER else _V1
                return any(inner.number == form.name and inner.as_text() for inner in fields(field.as_bytes()))
    except Damaged:
        pass
    return False


def read(path: Path, data: memoryview) -> Stored:
    """Read a network's blobs; ``metadata["layers"]`` has its layers in order.

    Raises:
        ExciteError: it has layers of the oldest form (V0), or none with weights.
        Damaged: sizes are inconsistent.
    """
    tensors: dict[str, Tensor] = {}
    layers: list[Layer] = []
    name = ""
    for field in fields(data):
        if field.number == 1:
            name = field.as_text()
        elif field.number in (_V1_LAYERS, _LAYER):
            layer, blobs = _layer(path, field.as_bytes(), _NEW if field.number == _LAYER else _V1)
            again = [key for key in blobs if key in tensors]
            if again:
                raise Damaged(f"{again[0]!r} is there twice")
            layers.append(layer)
            tensors |= blobs
    return Stored(FORMAT, path, tensors, {"name": name, "layers": layers})


def _layer(path: Path, message: memoryview, form: _Form) -> tuple[Layer, dict[str, Tensor]]:
    layer: Layer = {"name": "", "type": "", "bottoms": [], "tops": [], "params": {}, "blobs": []}
    blobs = []
    for field in fields(message):
        if form is _V1 and field.number == 1 and field.wire == BYTES:
            raise ExciteError(f"{path} has layers in Caffe's oldest format: run upgrade_net_proto_binary on it first")
        if field.number == form.name:
            layer["name"] = field.as_text()
        elif field.number == form.type:
            layer["type"] = field.as_text() if form is _NEW else V1_TYPES.get(field.as_int(), str(field.as_int()))
        elif field.number == form.bottom:
            layer["bottoms"].append(field.as_text())
        elif field.number == form.top:
            layer["tops"].append(field.as_text())
        elif field.number == form.blobs:
            blobs.append(field.as_bytes())
        elif field.number in form.params:
            param = form.params[field.number]
            layer["params"][param] = _settings(SETTINGS[param], field.as_bytes())
    layer["blobs"] = [f"{layer['name']}.{index}" for index in range(len(blobs))]
    return layer, {key: _blob(key, blob) for key, blob in zip(layer["blobs"], blobs, strict=True)}


def _settings(table: dict[int, tuple[str, _Reader, bool]], message: memoryview) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for field in fields(message):
        if field.number not in table:
            continue
        key, reader, several = table[field.number]
        if not several:
            settings[key] = reader(field)
        elif field.wire == BYTES:
            settings.setdefault(key, []).extend(packed_ints(field.as_bytes()))
        else:
            settings.setdefault(key, []).append(reader(field))
    return settings


def _blob(key: str, message: memoryview) -> Tensor:
    """A BlobProto: ``shape`` or four old sizes, and ``data`` or ``double_data``, packed or not; ``diff`` is ignored."""
    four: dict[int, int] = {}
    shape: list[int] | None = None
    parts: dict[int, list[memoryview]] = {5: [], 8: []}
    for field in fields(message):
        if field.number in (1, 2, 3, 4):
            four[field.number] = field.as_int()
        elif field.number == 7:
            shape = list(_sizes(field.as_bytes()))
        elif field.number in parts:
            fixed = FIXED32 if field.number == 5 else FIXED64
            parts[field.number].append(field.as_bytes() if field.wire == BYTES else field.as_fixed(fixed))
    if parts[5] and parts[8]:
        raise Damaged(f"{key!r} has its numbers twice")
    if four or shape is None:  # as in Blob::FromProto
        shape = [four.get(number, 0) for number in (1, 2, 3, 4)]
    dtype = torch.float64 if parts[8] else torch.float32
    return as_tensor(key, dtype, shape, b"".join(parts[8] or parts[5]))


def _sizes(message: memoryview) -> Iterator[int]:
    for field in fields(message):
        if field.number == 1 and field.wire == BYTES:
            yield from packed_ints(field.as_bytes())
        elif field.number == 1:
            yield field.as_int()
