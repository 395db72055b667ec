"""What Snakemake would do, asked for and not done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")


def snakemake(*arguments: str, folder: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SNAKEMAKE, *arguments],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a fresh clone holds for Snakemake: no results, no history of earlier runs."""
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Snakefile", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "slurm").symlink_to("profiles/slurm")
    return tmp_path


def jobs(output: str) -> dict[str, int]:
    """The table of jobs that a dry run ends with."""
    table = output.split("Job stats:")[-1].split("Reasons:")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]], ids=["here", "slurm"])
def test_bare_snakemake_plans_the_demo(clone: Path, profile: list[str]):
    done = snakemake("-n", *profile, folder=clone)
    assert done.returncode == 0, done.stderr
    counted = jobs(done.stdout)
    assert (counted["synthesize"], counted["index"], counted["shard"], counted["manifest"]) == (1, 1, 10, 1)
    assert counted["train_run"] >= 4
    assert counted["report"] == 1


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]], ids=["here", "slurm"])
def test_the_full_set_is_planned_without_its_archives(clone: Path, profile: list[str]):
    done = snakemake("-n", *profile, "--config", "plan=ilsvrc2012", folder=clone)
    assert done.returncode == 0, done.stderr
    assert jobs(done.stdout)["shard"] == 1024 + 64


def test_the_plan_that_only_draws_runs_nothing_else(clone: Path):
    done = snakemake("-n", "--config", "plan=paper", folder=clone)
    assert done.returncode == 0, done.stderr
    assert jobs(done.stdout) == {"report": 1, "all": 1, "total": 2}


def test_each_figure_of_the_paper_is_a_target(clone: Path):
    done = snakemake("-n", "results/paper/figures/scalability.svg", "--config", "plan=paper", folder=clone)
    assert done.returncode == 0, done.stderr
    assert jobs(done.stdout)["report"] == 1


def test_a_missing_archive_is_one_clear_line_when_it_is_needed(clone: Path):
    done = snakemake("data", "--config", "plan=ilsvrc2012", folder=clone)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("fourminutes: ")]
    assert lines
    assert all("data/ILSVRC2012" in line and "image-net.org" in line for line in lines)
    assert "Traceback" not in done.stderr
    assert not list((clone / "data").rglob("*.parquet"))


def test_an_unknown_plan_is_one_line_that_names_those_there_are(clone: Path):
    done = snakemake("-n", "--config", "plan=none", folder=clone)
    assert done.returncode == 2
    assert "config/plans/none.yaml: no such plan; there are: demo, ilsvrc2012, paper, proxy" in done.stderr


def test_an_unknown_key_in_the_plan_is_one_line(clone: Path):
    plan = clone / "config" / "plans" / "demo.yaml"
    plan.write_text(plan.read_text().replace("epochs:", "epoch:", 1))
    done = snakemake("-n", folder=clone)
    assert done.returncode == 2
    assert "did you mean 'epochs'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("plan", ["demo", "ilsvrc2012", "paper"])
def test_lint_has_no_findings(plan: str):
    done = snakemake("--lint", "--config", f"plan={plan}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Congratulations" in done.stderr


def test_a_login_node_of_two_cores_does_not_cut_a_cluster_jobs_threads(clone: Path):
    plan = clone / "config" / "plans" / "ilsvrc2012.yaml"
    plan.write_text(plan.read_text().replace("threads: 4", "threads: 96"))
    target = "results/ilsvrc2012/runs/resnet50-lars-64k.json"
    done = snakemake("-n", target, "--profile", "slurm", "--config", "plan=ilsvrc2012", folder=clone)
    assert done.returncode == 0, done.stderr
    assert re.search(r"threads: 768\b", done.stdout)
    assert re.search(r"resources:.*nodes=4.*mpi=srun.*tasks_per_node=8.*cpus_per_task=96", done.stdout)
