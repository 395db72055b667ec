"""Reading YAML as it is written; whatever is wrong with a file becomes one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fourminutes.errors import UserError


def read_mapping(path: Path, what: str) -> dict[Any, Any]:
    """The mapping that the YAML file at `path` holds; `what` is what it should be, such as ``a plan``.

    Raises:
        UserError: the file is missing, is not YAML, is no mapping, or holds a key twice.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {what} is expected") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: is not {what}; that is a mapping, of lines such as 'name: value'")
    return raw


_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeys(yaml.SafeLoader):
    """YAML as it is, but for keys that come twice: the first would be lost without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse the second key of a name, as written: what `<<` brings in may be written over."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} comes twice", key.start_mark)
            seen.add(key.value)
        return node
