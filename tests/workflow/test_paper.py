"""The paper's tables and figures as targets, made where neither torch nor DALI can be imported."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from support.clone import Clone, fresh_clone, planned_jobs

from fourminutes.plan import load_plan
from fourminutes.report.names import FIGURE_FORMATS, TABLE_FORMATS, figure_names, table_names

RESULTS = Path("results/paper")
#: Python reads this before anything else: an import of what it blocks fails.
BLOCKING = """
import sys


class Blocking:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "nvidia"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Blocking)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A fresh clone, and beside it the file that blocks the imports."""
    (tmp_path / "blocking").mkdir()
    (tmp_path / "blocking" / "sitecustomize.py").write_text(BLOCKING)
    (tmp_path / "clone").mkdir()
    return fresh_clone(tmp_path / "clone")


def without_torch(clone: Clone, *command: str) -> str:
    """Run a command that has to succeed without torch and DALI."""
    path = os.pathsep.join([str(clone.folder.parent / "blocking"), str(clone.folder / "src")])
    return clone.must(*command, PYTHONPATH=path)


def targets(clone: Clone) -> list[str]:
    """Every table and figure of the plan `paper`."""
    plan = load_plan(clone.folder / "config/plans/paper.yaml")
    figures = [f"figures/{name}.{form}" for name in figure_names(plan) for form in FIGURE_FORMATS]
    return [
        str(RESULTS / name)
        for name in [*figures, *(f"tables/{name}.{form}" for name in table_names(plan) for form in TABLE_FORMATS)]
    ]


def test_the_papers_tables_and_figures_are_made_without_torch_and_twice_alike(clone: Clone) -> None:
    with pytest.raises(AssertionError, match="torch is blocked"):
        without_torch(clone, sys.executable, "-c", "import torch")
    with pytest.raises(AssertionError, match="nvidia is blocked"):
        without_torch(clone, sys.executable, "-c", "import nvidia.dali")
    make = ("snakemake", str(RESULTS / "figures/ablations.svg"), "--config", "plan=paper", "--cores", "1")
    without_torch(clone, *make)
    wanted = targets(clone)
    assert {f"results/paper/figures/{name}.svg" for name in ("half-precision", "steps", "throughput")} <= set(wanted)
    first = {name: (clone.folder / name).read_bytes() for name in wanted}
    assert [name for name, content in first.items() if not content] == []
    shutil.rmtree(clone.folder / RESULTS)
    without_torch(clone, *make)
    assert [name for name, content in first.items() if (clone.folder / name).read_bytes() != content] == []


def test_every_figure_of_the_paper_is_a_target(clone: Clone) -> None:
    for name in targets(clone):
        if name.endswith(".svg"):
            planned = without_torch(clone, "snakemake", "-n", name, "--config", "plan=paper")
            assert planned_jobs(planned) == {"report": 1, "total": 1}, name
