"""Small convolutional networks that learn fast, with any gate.

Notation: N images, C channels, H x W positions.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates import GateSpec, create_gate
from excite.models.activation import activation
from excite.models.base import Classifier, Stage
from excite.models.blocks import BlockOptions, ResidualBlock
from excite.models.resnet import check_choices, check_rates, set_batch_norms
from excite.ops.boundaries import is_plain, is_symbolic
from excite.size import Size, as_size

#: Factor of the first weights of the dense layer, whose input, maxima over positions, is large.
HEAD_SCALE = 1 / 9
#: Added to the variances of the patches that whiten the images (Jordan, arXiv 2404.00498, section 3.2).
WHITENING_EPS = 5e-4


class ConvGroup(ResidualBlock):
    """3x3, max pooling to a half, norm, activation; then ``depth - 1`` times 3x3, norm, activation.

    With a depth of 3, the last two convolutions have a shortcut. The gate is after the last norm, before the shortcut
    is added and the activation (position "standard" of :class:`~excite.models.blocks.ResidualBlock`), or at the end.
    """

    def __init__(self, in_channels: int, channels: int, depth: int, in_size: Size, options: BlockOptions) -> None:
        super().__init__(options, 0.0)
        self.depth = depth
        self.out_size: Size = (in_size[0] // 2, in_size[1] // 2)
        if min(self.out_size) < 1:
            raise ExciteError("images are too small for this network: it halves them three times, so 17 x 17 at least")
        self.pool = nn.MaxPool2d(2)
        for i in range(1, depth + 1):
            self.add_module(f"conv{i}", _conv(in_channels if i == 1 else channels, channels))
            self.add_module(f"bn{i}", nn.BatchNorm2d(channels))
        if options.gate is not None:
            self.gate = create_gate(options.gate, channels, feature_size=self.out_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self._activate(self.pool(self._first(x)), self.get_submodule("bn1"))
        y = x
        for i in range(2, self.depth):
            y = self._activate(self.get_submodule(f"conv{i}")(y), self.get_submodule(f"bn{i}"))
        last, norm = self.get_submodule(f"conv{self.depth}"), self.get_submodule(f"bn{self.depth}")
        return self._leave(last(y), norm, x if self.depth > 2 else None)

    def _first(self, x: Tensor) -> Tensor:
        """The first convolution, in training without the last row and column of a map with odd sides, which the pooling
        leaves out: a tenth of all the network's operations at 32 x 32. Everything that is pooled is the same."""
        conv = self.get_submodule("conv1")
        if not self.training or is_symbolic(x) or not is_plain(conv, nn.Conv2d):
            return conv(x)
        height, width = x.shape[2:]
        if height % 2 == 0 and width % 2 == 0:
            return conv(x)
        return F.conv2d(F.pad(x, (1, 1 - width % 2, 1, 1 - height % 2)), cast(nn.Conv2d, conv).weight)


class FastNet(Classifier):
    """The networks of the CIFAR-10 speed records (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU",
    arXiv 2404.00498, sections 3.1 and 3.2), with any gate.

    A 2x2 convolution whitens the images (:meth:`start_from_images`); three groups of 3x3 convolutions follow, each of
    which begins with the identity on its first channels; the maximum over positions goes into a dense layer. With
    images of 32 x 32, the maps are 31, 15, 7 and 3 wide. (The published networks multiply the logits by 1/9; here, the
    dense layer starts with a ninth of its weights, and the recipe gives it 1/81 of the learning rate, which is the
    same.)

    Arguments that are also options of ``create_model``:

    - ``gate``, ``gate_position``: one at the end of each group, before its last activation ("standard") or after it
      ("post").
    - ``width``: factor of the groups' channels, which are rounded to multiples of 8.
    - ``act_layer``, ``bn_eps``, ``bn_momentum``, ``drop_rate``, ``image_size``: as in
      :class:`excite.models.resnet.ResNet`.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depth: int = 2,
        width: float = 1.0,
        gate: GateSpec | None = None,
        gate_position: str = "standard",
        act_layer: str = "gelu",
        bn_eps: float = 1e-12,
        bn_momentum: float = 0.4,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        image_size: int | Sequence[int] = 32,
    ) -> None:
        super().__init__()
        check_choices(fast_gate_position=gate_position)
        check_rates(drop_rate=drop_rate)
        if drop_path_rate:
            raise ExciteError("this network has no stochastic depth: leave model.drop_path_rate at 0")
        image_shape = as_size(image_size)
        self.conv1 = nn.Conv2d(in_chans, 2 * in_chans * 4, 2)
        self.act1 = activation(act_layer)
        options = BlockOptions(gate, gate_position, act_layer=act_layer)
        size: Size = (image_shape[0] - 1, image_shape[1] - 1)
        channels, maps = self.conv1.out_channels, [(self.conv1.out_channels, 1, "act1")]
        if not 0 < width <= 16:
            raise ExciteError(f"width is a factor above 0 and at most 16, not {width!r}")
        for i, full in enumerate(widths, start=1):
            wide = max(8, round(full * width / 8) * 8)
            group = ConvGroup(channels, wide, depth, size, options)
            self.add_module(f"layer{i}", Stage(group))
            channels, size = wide, group.out_size
            maps.append((channels, 2**i, f"layer{i}"))
        self.num_stages = len(widths)
        self._finish(
            maps=maps,
            num_classes=num_classes,
            in_chans=in_chans,
            image_size=image_shape,
            drop_rate=drop_rate,
            fc_bias=False,
        )
        set_batch_norms(self, bn_eps, bn_momentum)

    def stem_map(self, x: Tensor) -> Tensor:
        return self.act1(self.conv1(x))

    def stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{i + 1}") for i in range(self.num_stages)]  # type: ignore[misc]

    def pooled(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))

    def reset_classifier(self, num_classes: int) -> None:
        """See :meth:`Classifier.reset_classifier`."""
        super().reset_classifier(num_classes)
        if isinstance(self.fc, nn.Linear):
            with torch.no_grad():
                self.fc.weight.mul_(HEAD_SCALE)

    @torch.no_grad()
    def start_from_images(self, images: Iterable[Tensor]) -> None:
        """Set the first convolution so that its output for these images is white: the principal directions of their
        2 x 2 patches, each divided by its standard deviation, and the same with the opposite sign.

        Args:
            images: batches of float32 (B, C, H, W), normalised; if there are none, nothing changes.
        """
        weight = self.conv1.weight
        products, count = torch.zeros(weight[0].numel(), weight[0].numel(), dtype=torch.float64), 0
        for batch in images:
            flat = F.unfold(batch.cpu(), self.conv1.kernel_size).transpose(1, 2).flatten(0, 1).double()
            products += flat.T @ flat
            count += len(flat)
        if not count:
            return
        variances, directions = torch.linalg.eigh(products / count)
        scaled = (directions / (variances + WHITENING_EPS).sqrt()).T.flip(0)
        weight.copy_(torch.cat([scaled, -scaled]).view(weight.shape))


def _conv(in_channels: int, channels: int) -> nn.Conv2d:
    """3x3 without bias, which starts as the identity on as many channels as it can."""
    layer = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    if not layer.weight.is_meta:
        with torch.no_grad():
            nn.init.dirac_(layer.weight[:in_channels])
    return layer
