"""Reading what containers are built from, by the rules of those who build them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

SECTIONS = {"arguments", "environment", "files", "help", "labels", "post", "runscript", "setup", "startscript", "test"}


@dataclass(frozen=True)
class Definition:
    """An Apptainer definition of one stage, with its arguments' defaults in their places."""

    header: dict[str, str]
    sections: dict[str, str]

    @property
    def copied(self) -> list[str]:
        """What comes from the host, by paths from the project's folder."""
        return [line.split()[0] for line in self.sections["files"].splitlines()]


def read_definition(text: str, **arguments: str) -> Definition:
    """A definition with these build arguments.

    Raises:
        AssertionError: it has a section that Apptainer does not know, or no such argument.
        KeyError: an argument has no value.
    """
    head, *parts = re.split(r"^%", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    sections = {name: body.rstrip() for name, _, body in (part.partition("\n") for part in parts)}
    assert len(sections) == len(parts), "a section is there twice"
    assert set(sections) <= SECTIONS
    defaults = dict(line.strip().split("=", 1) for line in sections.get("arguments", "").splitlines())
    assert set(arguments) <= set(defaults)

    def filled(text: str) -> str:
        return re.sub(r"{{\s*(\w+)\s*}}", lambda match: (defaults | arguments)[match[1]], text)

    header = dict(re.split(r":\s*", filled(line), maxsplit=1) for line in head.splitlines() if line)
    return Definition(header, {name: filled(body) for name, body in sections.items()})


def is_sent(path: str, ignore: str) -> bool:
    """Whether a file reaches Docker's builder past a .dockerignore: the last line that matches it decides."""
    lines = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    parts = Path(path).parts
    upwards = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    sent = True
    for line in lines:
        pattern = line.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        names = parts if anywhere != pattern else upwards
        if any(fnmatchcase(name, anywhere) for name in names):
            sent = line.startswith("!")
    return sent
