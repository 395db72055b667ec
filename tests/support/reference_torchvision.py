"""torchvision, which the tests hold our ResNet-50 against; nothing that we ship needs it."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

# Where torchvision's compiled half doesn't load, it still registers fake kernels for these two operators of it.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a schema lives as long as the library object that declared it


def import_torchvision() -> ModuleType:
    """torchvision; beside torch's CPU build, whose compiled half doesn't load, after its two operators are declared.

    Raises:
        ImportError: it isn't installed; `make setup` installs it.
        RuntimeError: it fails for any other reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in _SCHEMAS:
        _declared[0].define(schema)
    return importlib.import_module("torchvision")
