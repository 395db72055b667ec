"""AlexNet, and its form with batch norm: the network that the paper trains in four minutes."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import Generator, nn

from fourminutes.models.initialize import start_convolutions, start_linear, start_norms
from fourminutes.plan.shapes import alexnet_stem, pool5_px, scaled

NORM_EPSILON = 1e-4  # as in the Caffe model
POOLED = (1, 2, 5)  # stages that end in max-pooling


class AlexNet(nn.Sequential):
    """AlexNet in a single tower, without local response norms, and with a batch norm in the stages that are named.

    Shapes at width 1, for 224 or 227 px (channels x height x width)::

        conv1 11x11/4   96 x 55 x 55   (56 x 56 at 227 px)    relu1  pool1  norm1    96 x 27 x 27
        conv2  5x5     256 x 27 x 27                          relu2  pool2  norm2   256 x 13 x 13
        conv3  3x3     384 x 13 x 13                          relu3         norm3   384 x 13 x 13
        conv4  3x3     384 x 13 x 13                          relu4         norm4   384 x 13 x 13
        conv5  3x3     256 x 13 x 13                          relu5  pool5  norm5   256 x  6 x  6
        fc6   9216 → 4096    fc7   4096 → 4096    fc8   4096 → classes

    That is 62,378,344 parameters in 16 tensors for 1,000 classes, and two tensors more with every norm, its γ and its
    β. Dropout is on fc6 and fc7.

    A smaller input gets a smaller first convolution, of lower stride: the largest of `ALEXNET_STEMS` that leaves pool5
    at least 3 x 3. With the full stride, pool5 would be a single pixel at 64 px, so that norm5 had only one value a
    channel and image, and would no longer be the layer that is studied. At 128, 64 and 32 px pool5 is 3 x 3.

    Args:
        class_count: number of logits.
        norms: numbers of the stages that end in a batch norm.
        width: factor on the number of channels and of hidden units.
        image_px: side of the square input.
        dropout: share of fc6's and fc7's units that are left out in training.

    Raises:
        UserError: no stem leaves pool5 that large.
    """

    def __init__(
        self,
        class_count: int,
        *,
        norms: Collection[int] = (),
        width: float = 1.0,
        image_px: int = 224,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        stem = alexnet_stem(image_px)
        c1, c2, c3, hidden = (scaled(channels, width) for channels in (96, 256, 384, 4096))
        convolutions = (
            nn.Conv2d(3, c1, stem.kernel, stem.stride, stem.padding),
            nn.Conv2d(c1, c2, kernel_size=5, padding=2),
            nn.Conv2d(c2, c3, kernel_size=3, padding=1),
            nn.Conv2d(c3, c3, kernel_size=3, padding=1),
            nn.Conv2d(c3, c2, kernel_size=3, padding=1),
        )
        for number, convolution in enumerate(convolutions, start=1):
            self._add_stage(number, convolution, norm=number in norms)
        self.flatten = nn.Flatten()
        self.fc6 = nn.Linear(c2 * pool5_px(stem, image_px) ** 2, hidden)
        self.relu6, self.drop6 = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.fc7 = nn.Linear(hidden, hidden)
        self.relu7, self.drop7 = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.fc8 = nn.Linear(hidden, class_count)

    def initialize(self, generator: Generator) -> None:
        """Draw all weights: convolutions by He's rule, fc6 and fc7 as the Caffe model does, fc8 with σ = 0.01.

        The Caffe model has σ = 0.005 and biases of 0.1 in fc6 and fc7; fc8's σ is our choice. Where the network is
        narrower or its input smaller, σ grows as 1/√fan-in, so that the outputs spread as in the full network.
        """
        start_convolutions(self, generator)
        start_norms(self)
        start_linear(self.fc6, generator, sigma=0.005 * math.sqrt(9216 / self.fc6.in_features), bias=0.1)
        start_linear(self.fc7, generator, sigma=0.005 * math.sqrt(4096 / self.fc7.in_features), bias=0.1)
        start_linear(self.fc8, generator, sigma=0.01 * math.sqrt(4096 / self.fc8.in_features))

    def _add_stage(self, number: int, convolution: nn.Conv2d, *, norm: bool) -> None:
        self.add_module(f"conv{number}", convolution)
        self.add_module(f"relu{number}", nn.ReLU(inplace=True))
        if number in POOLED:
            self.add_module(f"pool{number}", nn.MaxPool2d(kernel_size=3, stride=2))
        if norm:
            self.add_module(f"norm{number}", nn.BatchNorm2d(convolution.out_channels, eps=NORM_EPSILON))


class AlexNetBN(AlexNet):
    """AlexNet with batch norms: 62,381,096 parameters in 26 tensors for 1,000 classes at width 1.

    norm1 to norm4 stand where NVIDIA's Caffe model has them. norm5, between pool5 and fc6, is the addition that the
    paper calls BN5: pool5's output drifts and widens over the training of a large batch. Without norm5 there are
    62,380,584 parameters in 24 tensors.

    Args:
        class_count: number of logits.
        bn_after_pool5: whether norm5 is there.
        width: factor on the number of channels and of hidden units.
        image_px: side of the square input.
        dropout: share of fc6's and fc7's units that are left out in training.

    Raises:
        UserError: the input is too small; see `AlexNet`.
    """

    def __init__(
        self,
        class_count: int,
        *,
        bn_after_pool5: bool = True,
        width: float = 1.0,
        image_px: int = 224,
        dropout: float = 0.5,
    ) -> None:
        norms = (1, 2, 3, 4, 5) if bn_after_pool5 else (1, 2, 3, 4)
        super().__init__(class_count, norms=norms, width=width, image_px=image_px, dropout=dropout)
