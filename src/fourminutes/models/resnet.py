"""Residual networks: ResNet-50 as it is trained today, and a small one for proxies."""

from __future__ import annotations

from collections import OrderedDict

from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, relu

from fourminutes.models.initialize import start_convolutions, start_linear, start_norms
from fourminutes.plan.shapes import ResNetStem, resnet50_stem, scaled


class BasicBlock(nn.Module):
    """y = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), with two 3x3 convolutions.

    Takes (batch, channels_in, h, w) to (batch, channels, h/stride, w/stride).
    """

    expansion = 1  # output channels for each of `channels`

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, channels, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, kernel=3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(channels_in, channels * self.expansion, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm just before the sum."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """The block's output; shapes as above."""
        branch = relu(self.bn1(self.conv1(x)), inplace=True)
        branch = self.bn2(self.conv2(branch))
        return relu(branch + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """y = relu(branch(x) + shortcut(x)), where the branch narrows (1x1), convolves (3x3) and widens fourfold (1x1).

    Takes (batch, channels_in, h, w) to (batch, 4 x channels, h/stride, w/stride). The stride is in the 3x3 convolution
    ("v1.5"), so that no input is skipped over, as it is with the stride in the first 1x1 of the first version.
    """

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, channels, kernel=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, channels * self.expansion, kernel=1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = _shortcut(channels_in, channels * self.expansion, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm just before the sum."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """The block's output; shapes as above."""
        branch = relu(self.bn1(self.conv1(x)), inplace=True)
        branch = relu(self.bn2(self.conv2(branch)), inplace=True)
        branch = self.bn3(self.conv3(branch))
        return relu(branch + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Sequential):
    """Stem, stages of residual blocks, average over the picture, one linear layer.

    Each stage after the first halves the resolution. The names of the parts, and with them the state dict's keys, are
    torchvision's: conv1, bn1, layer1.0.conv1, …, fc.

    Args:
        block: kind of the blocks.
        stem: what comes before the first stage.
        depths: number of blocks of each stage.
        channels: of each stage's blocks, before their expansion; the stem makes as many as the first has.
        class_count: number of logits.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        stem: ResNetStem,
        depths: tuple[int, ...],
        channels: tuple[int, ...],
        class_count: int,
    ) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv1"] = _conv(3, channels[0], kernel=stem.kernel, stride=stem.stride)
        parts["bn1"] = nn.BatchNorm2d(channels[0])
        parts["relu"] = nn.ReLU(inplace=True)
        if stem.pool:
            parts["maxpool"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels_in = channels[0]
        for number, (depth, width) in enumerate(zip(depths, channels, strict=True), start=1):
            parts[f"layer{number}"] = _stage(block, depth, channels_in, width, stride=1 if number == 1 else 2)
            channels_in = width * block.expansion
        parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["fc"] = nn.Linear(channels_in, class_count)
        super().__init__(parts)

    def initialize(self, generator: Generator) -> None:
        """Draw all weights: convolutions by He's rule, the linear layer from N(0, 0.01²).

        The last batch norm of every block starts with γ = 0, so that the block at first passes on its shortcut alone
        (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        """
        start_convolutions(self, generator)
        start_norms(self)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)
            elif isinstance(module, nn.Linear):
                start_linear(module, generator, sigma=0.01)


def resnet50(class_count: int, *, width: float = 1.0, image_px: int = 224) -> ResNet:
    """ResNet-50 v1.5: 25,557,032 parameters in 161 tensors for 1,000 classes at width 1.

    Shapes at 224 px (channels x height x width): stem 64 x 56 x 56, then the stages 256 x 56 x 56, 512 x 28 x 28,
    1024 x 14 x 14 and 2048 x 7 x 7.

    At 224 px the stem divides the resolution by 4 and the stages by 8 more, which leaves a single pixel of 32 px. So
    below 112 px the stem doesn't pool, and below 56 px its convolution has no stride either: the last stage is 4 x 4 at
    112, 64 and 32 px. The parameters are the same at every size.
    """
    channels = tuple(scaled(each, width) for each in (64, 128, 256, 512))
    return ResNet(Bottleneck, resnet50_stem(image_px), (3, 4, 6, 3), channels, class_count)


def resnet_small(class_count: int, *, width: float = 1.0, stem_stride: int = 1) -> ResNet:
    """Three stages of one basic block: 78,042 parameters in 29 tensors for 10 classes at width 1.

    Made for pictures of about 32 px, for which the shapes are 16 x 32 x 32, 32 x 16 x 16 and 64 x 8 x 8; it takes any
    size. A stem of stride 2 halves their sides, and so does with a quarter of the arithmetic; the parameters stay.
    """
    channels = tuple(scaled(each, width) for each in (16, 32, 64))
    return ResNet(BasicBlock, ResNetStem(kernel=3, stride=stem_stride, pool=False), (1, 1, 1), channels, class_count)


def _stage(block: type[BasicBlock | Bottleneck], depth: int, channels_in: int, channels: int, stride: int) -> nn.Module:
    """`depth` blocks, of which the first has the stride and changes the number of channels."""
    first = block(channels_in, channels, stride)
    rest = (block(channels * block.expansion, channels, stride=1) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module | None:
    """A 1x1 convolution with batch norm where the shape changes; None where the input can be added as it is."""
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(_conv(channels_in, channels_out, kernel=1, stride=stride), nn.BatchNorm2d(channels_out))


class _StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride: the same without a stride, on the pixels that the stride hits.

    Torch 2.13's kernel for the weight's gradient of the former writes beyond its memory on CPUs with AVX-512, with 8
    channels and 64 pixels, and crashes sooner or later.
    """

    def forward(self, x: Tensor) -> Tensor:
        across, down = self.stride
        return conv2d(x[:, :, ::across, ::down], self.weight)


def _conv(channels_in: int, channels_out: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the picture's size up to the stride; the batch norm after it makes a bias idle."""
    if kernel == 1 and stride > 1 and channels_in <= 8:
        return _StridedPointwise(channels_in, channels_out, kernel, stride, bias=False)
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
