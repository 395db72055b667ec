"""The doctor on a real cluster: all well, and with a node down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.clone import Clone, fresh_clone

QUESTION = ("fourminutes", "doctor", "--json", "--plan", "config/plans/demo.yaml")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return fresh_clone(tmp_path)


def findings(clone: Clone, *, status: int) -> list[dict[str, str]]:
    done = clone.run(*QUESTION)
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)["findings"]


def told(found: list[dict[str, str]], group: str, subject: str) -> list[tuple[str, str]]:
    return [(each["mark"], each["found"]) for each in found if (each["group"], each["subject"]) == (group, subject)]


def test_on_a_healthy_cluster_nothing_is_missing_and_all_nodes_share_files_and_time(idle_cluster, clone: Clone):
    found = findings(clone, status=0)
    ((mark, words),) = told(found, "slurm", "Slurm")
    assert (mark, words.endswith("the controller answers")) == ("ok", True)
    nodes = len(idle_cluster.nodes)
    assert told(found, "shared files", "clocks") == [("ok", f"{nodes} nodes within 2 s of this machine")]
    assert [mark for mark, _ in told(found, "shared files", "shared")] == ["ok"]
    assert all(f"from {nodes} nodes" in words for _, words in told(found, "shared files", "shared"))
    assert [mark for mark, _ in told(found, "shared files", "environment")] == ["ok"]
    assert not [each for each in found if each["subject"].startswith("node ")]
    assert all("could start in partition" in each["found"] for each in found if each["group"] == "jobs")
    assert not list(clone.folder.rglob(".fourminutes-doctor-*"))


def test_a_node_that_is_down_is_named_and_the_others_are_still_asked(idle_cluster, clone: Clone):
    down = idle_cluster.nodes[-1]
    idle_cluster.down(down)
    try:
        found = findings(clone, status=0)
    finally:
        idle_cluster.up(down)
    ((mark, words),) = told(found, "slurm", f"node {down}")
    assert mark == "warn"
    assert "*" in words or "down" in words
    others = len(idle_cluster.nodes) - 1
    assert told(found, "shared files", "clocks") == [("ok", f"{others} nodes within 2 s of this machine")]


def test_a_plan_that_needs_more_than_the_nodes_have_cannot_be_run(idle_cluster, clone: Clone):
    plan = clone.folder / "config" / "plans" / "demo.yaml"
    text = plan.read_text()
    plan.write_text(text.replace("comm:\n  processes: 4", "comm:\n  processes: 2000\n  processes_per_node: 1000"))
    found = findings(clone, status=2)
    ((mark, words),) = told(found, "jobs", "comm bench")
    assert mark == "missing"
    assert f"of its {len(idle_cluster.nodes)} nodes 0 have 1000 CPUs" in words


def test_a_partition_that_is_not_there_is_told_with_those_that_are(idle_cluster, clone: Clone):
    profile = clone.folder / "profiles" / "slurm" / "profile.yaml"
    profile.write_text(profile.read_text().replace("# slurm_partition: \"'gpu'\"", "slurm_partition: \"'nowhere'\""))
    found = findings(clone, status=0)
    ((mark, words),) = told(found, "slurm", "profile")
    assert mark == "warn"
    assert words.startswith("no partition nowhere; there are: ")
