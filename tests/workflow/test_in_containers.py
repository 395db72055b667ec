"""Where a rule's commands run with `--software-deployment-method apptainer`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.clone import ROOT, Clone, fresh_clone

APPTAINER = ["--software-deployment-method", "apptainer", "--apptainer-args", "--bind /scratch"]
# Writes its arguments down, a line each, and then enters: a place where nothing but `fourminutes` is the image's own.
PROGRAM = """#!/bin/bash
if [ "$1" = --version ]; then echo apptainer version 1.3.0; exit; fi
line="$*"; echo "${{line//$'\\n'/ }}" >> {log}
while [ "$1" != containers/four-minutes.sif ]; do shift; done
PATH={image}:/usr/bin:/bin exec "${{@:2}}"
"""
INSIDE = """#!/bin/sh
echo "inside: $*" >> {log}
exit 3
"""


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return fresh_clone(tmp_path / "clone")


def asked_of_apptainer(clone: Clone, target: str) -> list[str]:
    """What Apptainer was called with, and what then ran inside, to make a target; which fails there."""
    folder, image, log = (clone.folder.parent / name for name in ("bin", "image", "log"))
    for place, name, text in ((folder, "apptainer", PROGRAM), (image, "fourminutes", INSIDE)):
        place.mkdir()
        (place / name).write_text(text.format(log=log, image=image))
        (place / name).chmod(0o755)
    (clone.folder / "containers" / "four-minutes.sif").touch()
    path = os.pathsep.join([f"{ROOT}/.venv/bin", str(folder), os.environ["PATH"]])
    done = clone.run("snakemake", target, *APPTAINER, PATH=path)
    assert done.returncode != 0
    return log.read_text().splitlines()


def test_a_rules_command_is_the_images_and_not_the_hosts(clone: Clone):
    around, inside = asked_of_apptainer(clone, "data")
    assert around.startswith(f"exec --home {clone.folder} --bind /scratch ")
    assert inside.startswith("inside: data synthesize ")


def test_a_launchs_processes_enter_one_by_one_from_the_host(clone: Clone):
    called = asked_of_apptainer(clone, "results/demo/comm.json")
    here = clone.folder
    line = f"exec --nv --bind {here} --pwd {here} --bind /scratch containers/four-minutes.sif fourminutes comm bench "
    assert sum(entry.startswith(line) for entry in called) == 4
    assert sum(entry.startswith("inside: comm bench ") for entry in called) == 4
    assert len(called) == 8
