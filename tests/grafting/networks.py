"""Networks of other people, small: residual ones in the styles that there are, and some that have no residual."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BottleneckInPlace(nn.Module):
    """torchvision's: in-place ReLU, in-place addition, projection where the shape changes."""

    def __init__(self, c: int, out: int, stride: int = 1) -> None:
        super().__init__()
        mid = out // 4
        self.conv1, self.bn1 = nn.Conv2d(c, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or c != out:
            self.downsample = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TorchvisionStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BottleneckInPlace(16, 32), BottleneckInPlace(32, 32))
        self.layer2 = nn.Sequential(BottleneckInPlace(32, 64, 2), BottleneckInPlace(64, 64))
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Functional(nn.Module):
    """No block modules: one forward pass that adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.a, self.b = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.norm = nn.GroupNorm(4, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        x = x + 0.5 * F.dropout(self.b(F.gelu(self.a(self.norm(x)))), 0.1, self.training)
        return self.head(x.mean((2, 3)))


class InvertedResiduals(nn.Module):
    """MobileNetV2's: the branch ends in a norm without activation; blocks that change the shape have no shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.ModuleList([self._block(8, 8, 1), self._block(8, 16, 2), self._block(16, 16, 1)])
        self.head = nn.Linear(16, 5)

    def _block(self, c: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c, 4 * c, 1), nn.BatchNorm2d(4 * c), nn.ReLU6(inplace=True),
            nn.Conv2d(4 * c, 4 * c, 3, stride, 1, groups=4 * c), nn.BatchNorm2d(4 * c), nn.ReLU6(inplace=True),
            nn.Conv2d(4 * c, out, 1), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = block(x)
            x = x + y if y.shape == x.shape else y
        return self.head(x.mean((2, 3)))


class ChannelsLastBlocks(nn.Module):
    """ConvNeXt's: dense layers over (N, H, W, C), a learnt factor per channel, then the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.dwconv = nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm = nn.LayerNorm(12)
        self.pwconv1, self.pwconv2 = nn.Linear(12, 48), nn.Linear(48, 12)
        self.gamma = nn.Parameter(torch.full((12,), 0.5))
        self.drop_path = nn.Identity()
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        x = x + self.drop_path(y.permute(0, 3, 1, 2))
        return self.head(x.mean((-2, -1)))


class Untraceable(nn.Module):
    """What torch.fx cannot follow: a decision that looks at the shape of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = TorchvisionStyle()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and x.shape[0] > 0 and float(x.shape[2]) > 0.5 * x.shape[3]:
            return self.body(x)
        return self.body(x.transpose(2, 3))


class DataDependent(nn.Module):
    """What neither torch.fx nor torch.export can follow: a decision that looks at the values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = TorchvisionStyle()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if x.sum() > 0 else -x)


class Plain(nn.Sequential):
    """VGG's kind: no residuals, three map sizes."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 8), (8, 8), None, (8, 16), (16, 16), None, (16, 24)]
        for pair in widths:
            if pair is None:
                self.append(nn.MaxPool2d(2))
            else:
                self.append(nn.Conv2d(*pair, 3, padding=1)).append(nn.BatchNorm2d(pair[1])).append(
                    nn.ReLU(inplace=True)
                )
        self.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(24, 5))


@dataclass
class Output:
    """What Hugging Face's models return."""

    logits: Tensor
    hidden_states: Tensor | None = None


class HuggingFaceStyle(nn.Module):
    """A configuration that says the image size, keyword arguments, an object as output, SE in the block's middle."""

    class Config:
        image_size = 16
        num_channels = 3

    class Squeeze(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.pooler = nn.AdaptiveAvgPool2d(1)
            self.attention = nn.Sequential(nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.attention(self.pooler(x))

    class Layer(nn.Module):
        def __init__(self, c: int, gated: bool) -> None:
            super().__init__()
            middle = HuggingFaceStyle.Squeeze(c) if gated else nn.Identity()
            self.layer = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), middle, nn.Conv2d(c, c, 1))

        def forward(self, hidden: Tensor) -> Tensor:
            return F.relu(self.layer(hidden) + hidden)

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        self.embedder = nn.Conv2d(3, 16, 3, padding=1)
        self.stages = nn.ModuleList([self.Layer(16, gated=True), self.Layer(16, gated=False)])
        self.classifier = nn.Linear(16, 5)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> Output:
        hidden = self.embedder(pixel_values)
        for stage in self.stages:
            hidden = stage(hidden)
        return Output(self.classifier(hidden.mean((2, 3))), hidden if output_hidden_states else None)


class Parallel(nn.Module):
    """Two convolutions side by side, added: neither is a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 5, 1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.a(x) + self.b(x)).mean((2, 3))


class UsedTwice(nn.Module):
    """What the branch ends in goes elsewhere, too, where a gate would be felt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.branch(x)
        return (x + y).mean((2, 3)), y


class InPlaceStatements(nn.Module):
    """Maps that are overwritten by statements without a name for their result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm_a(self.a(x))
        y.add_(x)
        F.relu_(y)
        z = self.norm_b(self.b(y))
        torch.Tensor.add_(z, y)
        return self.head(F.relu(z).mean((2, 3)))


class Tokens(nn.Module):
    """A transformer's: residual additions of sequences, no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norm, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.mlp(self.norm(x))
        return self.head(x.mean(1))


class ReadsWeights(nn.Module):
    """Uses a convolution's weights without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.inner(x) if not hasattr(self.inner, "gate") else F.conv2d(x, self.inner.weight, padding=1)
        return (x + y).mean((2, 3))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms that do something in evaluation, too."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)
    return model.eval()
