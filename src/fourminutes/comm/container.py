"""A process inside an Apptainer image, for a launcher outside of it: Slurm's commands are the host's and stay there."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from fourminutes.errors import UserError


def in_container(
    command: Sequence[str], image: str, arguments: str = "", *, which: Callable[[str], str | None] = shutil.which
) -> list[str]:
    """The command line that runs `command` in `image`, in this folder, with the host's NVIDIA driver if it has one.

    `srun` starts its processes on the hosts, even where it is called in a container, so that each of them has to enter
    one by itself: ``srun ... apptainer exec IMAGE COMMAND``. Outside of a terminal Apptainer passes signals on.

    Args:
        command: what the process runs, as the image has it.
        image: an image's file, or an address that Apptainer knows, such as ``docker://...``.
        arguments: more options of ``apptainer exec``, in the shell's words: ``--bind /scratch``.
        which: finds a program on this machine.

    Raises:
        UserError: there is no such image, neither Apptainer nor Singularity, or a quote that is never closed.
    """
    if "://" not in image and not Path(image).exists():
        raise UserError(f"{image}: no such image; `apptainer build {image} containers/four-minutes.def` makes one")
    program = next((name for name in ("apptainer", "singularity") if which(name)), None)
    if program is None:
        raise UserError(f"{image}: neither apptainer nor singularity is here; is its module loaded?")
    try:
        own = shlex.split(arguments)
    except ValueError as error:
        raise UserError(f"arguments of {program} exec: {arguments}: {error}") from error
    here = str(Path.cwd())
    return [program, "exec", "--nv", "--bind", here, "--pwd", here, *own, image, *command]
