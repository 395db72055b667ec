"""What Snakemake would do, asked for and not done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.clone import Clone, fresh_clone, planned_jobs


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A fresh clone: no results, no history of earlier runs."""
    return fresh_clone(tmp_path)


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]], ids=["here", "slurm"])
def test_bare_snakemake_plans_the_demo(clone: Clone, profile: list[str]):
    done = clone.run("snakemake", "-n", *profile)
    assert done.returncode == 0, done.stderr
    counted = planned_jobs(done.stdout)
    assert (counted["synthesize"], counted["index"], counted["shard"], counted["manifest"]) == (1, 1, 10, 1)
    assert counted["train_run"] >= 4
    assert counted["measure_scaling"] == 2
    assert counted["report"] == 1


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]], ids=["here", "slurm"])
def test_the_full_set_is_planned_without_its_archives(clone: Clone, profile: list[str]):
    done = clone.run("snakemake", "-n", *profile, "--config", "plan=ilsvrc2012")
    assert done.returncode == 0, done.stderr
    counted = planned_jobs(done.stdout)
    assert counted["shard"] == 1024 + 64
    # It would take a cluster's time that nobody asked for.
    assert "measure_scaling" not in counted


def test_a_plans_resplit_reaches_the_index(clone: Clone):
    plan = clone.folder / "config" / "plans" / "demo.yaml"
    plan.write_text(
        plan.read_text().replace("  dataset: demo\n", "  dataset: demo\n  resplit: {train: 1500, val: 450}\n")
    )
    done = clone.run("snakemake", "data", "-n", "-p", "--config", "plan=demo")
    assert done.returncode == 0, done.stderr
    assert re.search(r"data index .*index\.parquet .*--resplit 1500:450 --resplit-seed 0 ", done.stdout)


@pytest.mark.parametrize(("kind", "shards"), [("synthetic", 0), ("real", 10)])
def test_a_series_needs_the_shards_only_where_its_input_is_real(clone: Clone, kind: str, shards: int):
    plan = clone.folder / "config" / "plans" / "demo.yaml"
    plan.write_text(plan.read_text().replace("    input: synthetic\n", f"    input: {kind}\n"))
    done = clone.run("snakemake", "-n", "-p", "results/demo/scaling/alexnet-weak-2.json")
    assert done.returncode == 0, done.stderr
    counted = planned_jobs(done.stdout)
    assert (counted["measure_scaling"], counted.get("shard", 0)) == (1, shards)
    started = "fourminutes launch --processes 2 --per-node 2 --threads 2 -- fourminutes scale measure"
    assert f"{started} --plan config/plans/demo.yaml --series alexnet-weak --processes 2 --out " in done.stdout


def test_the_plan_that_only_draws_runs_nothing_else(clone: Clone):
    done = clone.run("snakemake", "-n", "--config", "plan=paper")
    assert done.returncode == 0, done.stderr
    assert planned_jobs(done.stdout) == {"report": 1, "all": 1, "total": 2}


def test_each_figure_of_the_paper_is_a_target(clone: Clone):
    done = clone.run("snakemake", "-n", "results/paper/figures/scalability.svg", "--config", "plan=paper")
    assert done.returncode == 0, done.stderr
    assert planned_jobs(done.stdout)["report"] == 1


def test_a_missing_archive_is_one_clear_line_when_it_is_needed(clone: Clone):
    done = clone.run("snakemake", "data", "--config", "plan=ilsvrc2012")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("fourminutes: ")]
    assert lines
    assert all("data/ILSVRC2012" in line and "image-net.org" in line for line in lines)
    assert "Traceback" not in done.stderr
    assert not list((clone.folder / "data").rglob("*.parquet"))


def test_an_unknown_plan_is_one_line_that_names_those_there_are(clone: Clone):
    done = clone.run("snakemake", "-n", "--config", "plan=none")
    assert done.returncode == 2
    assert "config/plans/none.yaml: no such plan; there are: demo, ilsvrc2012, paper, proxy" in done.stderr


def test_an_unknown_key_in_the_plan_is_one_line(clone: Clone):
    plan = clone.folder / "config" / "plans" / "demo.yaml"
    plan.write_text(plan.read_text().replace("epochs:", "epoch:", 1))
    done = clone.run("snakemake", "-n")
    assert done.returncode == 2
    assert "did you mean 'epochs'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("plan", ["demo", "ilsvrc2012", "paper"])
def test_lint_has_no_findings(clone: Clone, plan: str):
    done = clone.run("snakemake", "--lint", "--config", f"plan={plan}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Congratulations" in done.stderr


def test_a_login_node_of_two_cores_does_not_cut_a_cluster_jobs_threads(clone: Clone):
    plan = clone.folder / "config" / "plans" / "ilsvrc2012.yaml"
    plan.write_text(plan.read_text().replace("threads: 4", "threads: 96"))
    target = "results/ilsvrc2012/runs/resnet50-lars-64k.json"
    done = clone.run("snakemake", "-n", target, "--profile", "slurm", "--config", "plan=ilsvrc2012")
    assert done.returncode == 0, done.stderr
    assert re.search(r"threads: 768\b", done.stdout)  # 8 processes of 96; each has 6 more cores to decode with
    assert re.search(r"resources:.*nodes=4.*mpi=srun.*tasks_per_node=8.*cpus_per_task=102", done.stdout)


def test_drawing_only_makes_no_record_and_waits_for_none(clone: Clone):
    done = clone.run("snakemake", "-n", "results/demo/report.html", "--config", "plan=demo", "draw_only=true")
    assert done.returncode == 0, done.stderr
    assert planned_jobs(done.stdout) == {"report": 1, "total": 1}
