"""Writes a checkpoint with MindSpore itself, of a network that computes what its GENet_Res50 does, and its outputs.

Written from what that network computes and how its tensors are called, not from its code. Random weights and moving
statistics. See README.md; needs mindspore (2.10, with numpy 1), which excite does not. The network's input is
``numpy.random.default_rng(1).normal(0, 1, (2, 3, 224, 224))``.

    python make.py OUT EXTRA MLP WIDTH DEPTHS      (EXTRA, MLP: 0 or 1; the real network is 64 3,4,6,3)
"""

import sys

import mindspore as ms
import numpy as np
from mindspore import nn, ops

out, image = sys.argv[1], 224
extra, mlp = sys.argv[2] == "1", sys.argv[3] == "1"
width, depths = int(sys.argv[4]), [int(n) for n in sys.argv[5].split(",")]
ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")


def cba(cin, cout, kernel, stride, relu):
    return nn.Conv2dBnAct(cin, cout, kernel, stride, "same", has_bn=True, activation="relu" if relu else None)


class Unit(nn.Cell):
    def __init__(self, cin, cout, stride, side):
        super().__init__()
        mid = cout // 4
        self.conv1, self.conv2 = cba(cin, mid, 1, 1, True), cba(mid, mid, 3, stride, True)
        self.conv3 = cba(mid, cout, 1, 1, False)
        self.down_layer = cba(cin, cout, 1, stride, False) if stride > 1 or cin != cout else None
        if extra:
            gather = []
            if side >= 56:
                gather += [nn.Conv2d(cout, cout, 3, 2, "same"), nn.BatchNorm2d(cout)]
                side //= 2
            gather += [nn.Conv2d(cout, cout, side, 1, "pad", 0, group=cout), nn.BatchNorm2d(cout)]
            self.downop = nn.SequentialCell(gather)
        if mlp:
            layers = [nn.Conv2d(cout, cout // 16, 1), nn.ReLU(), nn.Conv2d(cout // 16, cout, 1)]
            self.mlpLayer = nn.SequentialCell(layers)

    def construct(self, x):
        y = self.conv3(self.conv2(self.conv1(x)))
        gate = self.downop(y) if extra else ops.mean(y, (2, 3), True)
        if mlp:
            gate = self.mlpLayer(gate)
        short = x if self.down_layer is None else self.down_layer(x)
        return ops.relu(y * ops.sigmoid(gate) + short)


class Net(nn.Cell):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, "same")
        self.bn1 = nn.BatchNorm2d(width, eps=1e-4, momentum=0.95)
        self.maxpool = nn.MaxPool2d(3, 2, "same")
        cin, side = width, image // 4
        for s, depth in enumerate(depths):
            cout, units = width * 4 * 2**s, []
            if s:
                side //= 2
            for b in range(depth):
                units.append(Unit(cin, cout, 2 if s and not b else 1, side))
                cin = cout
            setattr(self, f"layer{s + 1}", nn.SequentialCell(units))
        self.end_point = nn.Dense(cin, classes)

    def construct(self, x):
        x = self.maxpool(ops.relu(self.bn1(self.conv1(x))))
        maps = []
        for s in range(len(depths)):
            x = getattr(self, f"layer{s + 1}")(x)
            maps.append(x)
        return self.end_point(ops.mean(x, (2, 3))), maps


def scale(name):
    """Of a convolution's weights: large maps would saturate the deep gates, and rounding errors flip them."""
    return 0.05 if name == "conv1.weight" else 0.3 if ".downop." in name else 1


net = Net(10)
rng = np.random.default_rng(0)
for p in net.get_parameters():
    shape = p.shape
    if p.name.endswith("moving_variance"):
        value = rng.uniform(0.5, 1.5, shape) * (1e-3 if p.name.startswith("bn1.") else 1)  # a small one shows epsilon
    elif p.name.endswith("gamma"):
        value = rng.uniform(0.5, 1.5, shape) * (0.3 if ".conv3." in p.name else 1)  # else deep gates saturate
    elif p.name.endswith(("beta", "moving_mean", "bias")):
        value = rng.normal(0, 0.2, shape) * (0.03 if p.name.startswith("bn1.") else 1)
    else:
        value = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape) * (
            0.05 if p.name == "conv1.weight" else 0.3 if ".downop." in p.name else 1
        )
    p.set_data(ms.Tensor(value.astype(np.float32)))
net.set_train(False)
x = np.random.default_rng(1).normal(0, 1, (2, 3, image, image)).astype(np.float32)
logits, maps = net(ms.Tensor(x))
ms.save_checkpoint(net, f"{out}.ckpt")
maps = {f"out_layer{s + 1}": m.asnumpy()[:1] for s, m in enumerate(maps)} if width == 64 else {}
given = {"input": x} if width == 64 else {}
np.savez(f"{out}.npz", **given, logits=logits.asnumpy(), **maps)
