"""Lets the trainer be imported where DALI is not installed: its loader names DALI's parts when it is imported.

To be called before anything of `fourminutes.train` or `fourminutes.data` is imported. Nothing is simulated: the parts
are None, so that whoever tries to read shards with them fails at once.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_PARTS = {
    "nvidia.dali": ("Pipeline", "fn", "types"),
    "nvidia.dali.plugin": (),
    "nvidia.dali.plugin.base_iterator": ("LastBatchPolicy",),
    "nvidia.dali.plugin.pytorch": ("DALIGenericIterator",),
}


def fill_in_for_dali() -> str:
    """Why DALI cannot be used, and empty modules in its place; an empty text where it can."""
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        _add_empty_modules()
        return str(error)
    return ""


def _add_empty_modules() -> None:
    try:
        importlib.import_module("nvidia")  # other packages may live there
    except ImportError:
        sys.modules["nvidia"] = ModuleType("nvidia")
    for name, parts in _PARTS.items():
        module = ModuleType(name)
        vars(module).update(dict.fromkeys(parts))
        sys.modules[name] = module
