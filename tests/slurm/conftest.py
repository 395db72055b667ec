"""A Slurm of four nodes, and clones whose user has filled in the profile for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import cluster as local_cluster
from support import steps
from support.clone import Clone, fresh_clone
from support.cluster import Cluster, NoCluster

#: What tests change in the profile: they don't wait. That there is no accounting it finds out by itself.
SITE = {
    "slurm-init-seconds-before-status-checks: 20": "slurm-init-seconds-before-status-checks: 2",
    "latency-wait: 60": "latency-wait: 10",
}


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """The cluster, brought up for the tests, and taken away again; one that is up already stays."""
    os.environ.pop("SLURM_CONF", None)  # of another Slurm
    was_up = local_cluster.find() is not None
    try:
        made = local_cluster.up()
    except NoCluster as error:
        if os.environ.get("CI"):
            pytest.fail(f"in CI there must be a cluster: {error}")
        pytest.skip(str(error))
    yield made
    if not was_up:
        local_cluster.down()


@pytest.fixture
def idle_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with nothing on it, before and after."""
    _clear(cluster)
    yield cluster
    _clear(cluster)


def _clear(cluster: Cluster) -> None:
    cluster.cancel_all()
    for node in cluster.nodes:
        if cluster.state(node).startswith("down"):
            cluster.up(node)
    cluster.wait_until_idle()


def clone_for_the_site(folder: Path) -> Clone:
    """A fresh clone whose user has filled in the profile."""
    clone = fresh_clone(folder)
    profile = clone.folder / "profiles" / "slurm" / "profile.yaml"
    text = profile.read_text()
    for line, own in SITE.items():
        assert line in text
        text = text.replace(line, own)
    profile.write_text(text)
    return clone


@pytest.fixture(scope="session")
def site_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """Makes such a clone, in a folder of the given name."""
    return lambda name: clone_for_the_site(tmp_path_factory.mktemp(name))


def copied(clone: Clone, folder: Path) -> Clone:
    """The clone as it is, a second time."""
    shutil.copytree(clone.folder, folder, symlinks=True, dirs_exist_ok=True)
    return Clone(folder)


@pytest.fixture(scope="package")
def prepared(cluster: Cluster, site_clone: Callable[[str], Clone]) -> Clone:
    """A clone with `steps`' shards made."""
    clone = site_clone("prepared")
    (clone.folder / "config" / "plans" / "steps.yaml").write_text(steps.PLAN)
    done = clone.run("snakemake", "data", "--config", "plan=steps")
    assert done.returncode == 0, done.stderr
    return clone


@pytest.fixture(scope="package")
def undisturbed(prepared: Clone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The records of the runs as this machine alone trains them, with as many processes, and nothing disturbs them."""
    clone = copied(prepared, tmp_path_factory.mktemp("undisturbed"))
    for run in ("short", "long"):
        line = f"fourminutes launch --processes 2 -- fourminutes train --plan config/plans/steps.yaml --run {run}"
        done = clone.run(*line.split())
        assert done.returncode == 0, done.stderr
    return {run: steps.record_of(clone, run) for run in ("short", "long")}
