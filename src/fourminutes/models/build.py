"""From the plan's model block to a network."""

from __future__ import annotations

import torch
from torch import nn

from fourminutes.models.alexnet import AlexNet, AlexNetBN
from fourminutes.models.resnet import ResNet, resnet50, resnet_small
from fourminutes.plan import ModelPlan


def build_model(plan: ModelPlan, class_count: int, *, seed: int) -> nn.Module:
    """The network of `plan` on the CPU, in training mode, float32 and channels_last.

    It takes pictures of shape (batch, 3, image_px, image_px) to logits of shape (batch, class_count). The same plan,
    class count and seed give the same weights, bit for bit, and torch's own random state is left as it was.

    Raises:
        UserError: the architecture has no form for inputs of that size.
    """
    # On "meta" no weight exists yet: each is drawn once, from our generator, not first from torch's global one.
    with torch.device("meta"):
        network = _network(plan, class_count)
    network.to_empty(device="cpu")
    network.initialize(torch.Generator().manual_seed(seed))
    return nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)


def _network(plan: ModelPlan, class_count: int) -> AlexNet | ResNet:
    match plan.name:
        case "alexnet":
            return AlexNet(class_count, width=plan.width, image_px=plan.image_px, dropout=plan.dropout)
        case "alexnet_bn":
            return AlexNetBN(
                class_count,
                bn_after_pool5=plan.bn_after_pool5,
                width=plan.width,
                image_px=plan.image_px,
                dropout=plan.dropout,
            )
        case "resnet50":
            return resnet50(class_count, width=plan.width, image_px=plan.image_px)
        case "resnet_small":
            return resnet_small(class_count, width=plan.width, stem_stride=plan.stem_stride or 1)
