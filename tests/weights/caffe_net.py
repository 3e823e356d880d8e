"""The SE authors' Caffe nets for the tests: layers as in their prototxt files, a writer, a float64 evaluation.

Nothing here is shared with the package: protobuf's wire format is written by hand, and the net is evaluated layer by
layer from its own list of bottoms and tops, as Caffe would.
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

MEAN_BGR = (104.0, 117.0, 123.0)
PIXELS = 100.0  # about the standard deviation behind the first convolution, whose input is not normalised


@dataclass
class Layer:
    name: str
    type: str
    bottoms: list[str]
    top: str
    blobs: list[torch.Tensor] = field(default_factory=list)
    settings: dict[str, int] = field(default_factory=dict)


class Builder:
    """Collects layers; ``random`` gives weights that neither vanish nor explode."""

    def __init__(self, seed, factor):
        self.layers = []
        self.rng = torch.Generator().manual_seed(seed)
        self.factor = factor

    def random(self, *shape, low=None, high=None):
        if low is not None:
            return torch.rand(*shape, generator=self.rng) * (high - low) + low
        fan = shape[1] * shape[2] * shape[3] if len(shape) == 4 else shape[-1]
        return torch.randn(*shape, generator=self.rng) * (2 / fan) ** 0.5

    def add(self, *args, **kwargs):
        self.layers.append(Layer(*args, **kwargs))
        return self.layers[-1].top

    def conv(self, name, bottom, channels, out, kernel, stride=1, group=1, bias=False):
        blobs = [self.random(out, channels // group, kernel, kernel)]
        blobs += [self.random(out, low=-0.5, high=0.5)] if bias else []
        settings = {"kernel": kernel, "stride": stride, "pad": kernel // 2, "group": group}
        return self.add(name, "Convolution", [bottom], name, blobs, settings)

    def norm(self, top, channels, spread=1.0, gain=1.0):
        """In place, as two layers; the sums are means and variances times the divisor; ``spread``: of what comes in.

        ``gain`` scales what goes out: below 1 at a branch's end, so that the maps of a deep net do not grow.
        """
        f = self.factor
        sums = [self.random(channels, low=-0.2, high=0.2), self.random(channels, low=0.5, high=1.5) * spread]
        sums = [blob * f * spread for blob in sums]
        self.add(f"{top}/bn", "BatchNorm", [top], top, [*sums, torch.tensor([f])])
        scale = [self.random(channels, low=0.5, high=1.5) * gain, self.random(channels, low=-0.2, high=0.2)]
        self.add(f"{top}/bn/scale", "Scale", [top], top, scale)

    def relu(self, name, top):
        self.add(name, "ReLU", [top], top)


def build(layers, planes, width, *, groups=1, senet154=False, stem=64, classes=5, seed=0, factor=999.98236):
    """The nets of hujie-frank/SENet: ``width`` are the channels of the first stage's 3x3, doubled in every stage."""
    net = Builder(seed, factor)
    if senet154:
        channels, x = 3, "data"
        for name, out, stride in (("1_1/3x3_s2", stem // 2, 2), ("1_2/3x3", stem // 2, 1), ("1_3/3x3", stem, 1)):
            x = net.conv(f"conv{name}", x, channels, out, 3, stride)
            net.norm(x, out, PIXELS if channels == 3 else 1.0)
            net.relu(f"conv{name.replace('/', '/relu_')}", x)
            channels = out
    else:
        x = net.conv("conv1/7x7_s2", "data", 3, stem, 7, 2)
        net.norm(x, stem, PIXELS)
        net.relu("conv1/relu_7x7_s2", x)
    x = net.add("pool1/3x3_s2", "Pooling", [x], "pool1/3x3_s2", [], {"kernel": 3, "stride": 2})
    channels = stem
    for stage, count in enumerate(layers):
        middle, out = width * 2**stage, planes * 4 * 2**stage
        for block in range(1, count + 1):
            stride = 2 if stage and block == 1 else 1
            x = _block(net, f"conv{stage + 2}_{block}", x, channels, middle, out, stride, groups, senet154)
            channels = out
    x = net.add("pool5/7x7_s1", "Pooling", [x], "pool5/7x7_s1", [], {"global": 1})
    weights = [net.random(classes, channels), net.random(classes, low=-0.5, high=0.5)]
    net.add("classifier", "InnerProduct", [x], "classifier", weights)
    return net.layers


def _block(net, name, x, channels, middle, out, stride, groups, senet154):
    on_first = groups == 1
    first = middle // 2 if senet154 else middle
    y = net.conv(f"{name}_1x1_reduce", x, channels, first, 1, stride if on_first else 1)
    net.norm(y, first)
    net.relu(f"{y}/relu", y)
    y = net.conv(f"{name}_3x3", y, first, middle, 3, 1 if on_first else stride, groups)
    net.norm(y, middle)
    net.relu(f"{y}/relu", y)
    y = net.conv(f"{name}_1x1_increase", y, middle, out, 1)
    net.norm(y, out, gain=0.2)
    s = net.add(f"{name}_global_pool", "Pooling", [y], f"{name}_global_pool", [], {"global": 1})
    s = net.conv(f"{name}_1x1_down", s, out, out // 16, 1, bias=True)
    net.relu(f"{s}/relu", s)
    s = net.conv(f"{name}_1x1_up", s, out // 16, out, 1, bias=True)
    net.add(f"{name}_prob", "Sigmoid", [s], s)
    if channels != out or stride > 1:
        shortcut = net.conv(f"{name}_1x1_proj", x, channels, out, 3 if senet154 and stride > 1 else 1, stride)
        net.norm(shortcut, out)
    else:
        shortcut = x
    top = net.add(name, "Axpy", [s, y, shortcut], name)
    net.relu(f"{name}/relu", top)
    return top


def evaluate(layers, rgb):
    """RGB images (N, 3, H, W) of 0 to 255 -> every top in float64, by its last writer."""
    tops = {"data": rgb.double().flip(1) - torch.tensor(MEAN_BGR, dtype=torch.float64).view(1, 3, 1, 1)}
    for layer in layers:
        inputs = [tops[bottom] for bottom in layer.bottoms]
        tops[layer.top] = _run(layer, inputs, [blob.double() for blob in layer.blobs])
    return tops


def _run(layer, inputs, blobs):
    x, settings = inputs[0], layer.settings
    match layer.type:
        case "Convolution":
            bias = blobs[1] if len(blobs) > 1 else None
            return F.conv2d(x, blobs[0], bias, settings["stride"], settings["pad"], 1, settings["group"])
        case "BatchNorm":
            mean, variance = (blob / blobs[2] for blob in blobs[:2])
            return (x - mean.view(1, -1, 1, 1)) / torch.sqrt(variance + 1e-5).view(1, -1, 1, 1)
        case "Scale":
            return x * blobs[0].view(1, -1, 1, 1) + blobs[1].view(1, -1, 1, 1)
        case "ReLU":
            return x.clamp(min=0)
        case "Sigmoid":
            return 1 / (1 + torch.exp(-x))
        case "Axpy":
            return inputs[0] * inputs[1] + inputs[2]
        case "Pooling" if "global" in settings:
            return x.mean((2, 3), keepdim=True)
        case "Pooling":
            return F.max_pool2d(x, settings["kernel"], settings["stride"], ceil_mode=True)
        case "InnerProduct":
            return x.flatten(1) @ blobs[0].T + blobs[1]
    raise AssertionError(layer.type)


def write(path, layers):
    path.write_bytes(_bytes(1, b"SE-ResNet") + b"".join(_bytes(100, _layer(layer)) for layer in layers))


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field_number, value):
    return _varint(field_number << 3) + _varint(value)


def _bytes(field_number, value):
    return _varint(field_number << 3 | 2) + _varint(len(value)) + value


def _layer(layer):
    parts = [_bytes(1, layer.name.encode()), _bytes(2, layer.type.encode())]
    parts += [_bytes(3, bottom.encode()) for bottom in layer.bottoms] + [_bytes(4, layer.top.encode())]
    parts += [_bytes(7, _blob(blob)) for blob in layer.blobs]
    if layer.type == "Convolution":
        s = layer.settings
        parts.append(_bytes(106, _number(4, s["kernel"]) + _number(5, s["group"]) + _number(6, s["stride"])))
    return b"".join(parts)


def _blob(blob):
    values = blob.contiguous().numpy().astype("<f4").tobytes()
    shape = b"".join(_number(1, size) for size in blob.shape)
    return _bytes(5, values) + _bytes(7, shape)
