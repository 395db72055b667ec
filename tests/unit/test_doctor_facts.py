"""What the doctor makes of what Slurm, the driver, torch and a plan say, without any of them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from fourminutes import __version__
from fourminutes.doctor.cluster import cluster_findings
from fourminutes.doctor.devices import Gpu, parse_gpus
from fourminutes.doctor.finding import Finding, Findings
from fourminutes.doctor.jobs import Here, job_findings
from fourminutes.doctor.needs import Job, checkpoint_bytes, images_of, parameters_of
from fourminutes.doctor.probe import Examiner, ask, look_at_all
from fourminutes.doctor.profile import Profile, read_profile
from fourminutes.doctor.shared import heard, node_findings
from fourminutes.doctor.slurm import Cluster, parse_config, parse_gres, parse_minutes, parse_nodes
from fourminutes.doctor.software import torch_findings, unlike_lock
from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan, RunPlan, find_plan, load_plan

ROOT = Path(__file__).resolve().parents[2]

# As Slurm 22.05 writes it: a node in two partitions is listed in each.
NODES = """\
n1|urgent|idle|4|64000|gpu:2|1:00:00|1-2|up|0/4/0/4|none
n1|main*|idle|4|64000|gpu:2|1-00:00:00|1-infinite|up|0/4/0/4|none
n2|urgent|down*|4|64000|gpu:2|1:00:00|1-2|up|0/0/4/4|Not responding
n2|main*|down*|4|64000|gpu:2|1-00:00:00|1-infinite|up|0/0/4/4|Not responding
n3|main*|mixed|4|64000|gpu:2|1-00:00:00|1-infinite|up|2/2/0/4|none
n4|main*|drained|4|64000|gpu:2|1-00:00:00|1-infinite|up|0/0/4/4|a disk | is broken
"""
GPU = Gpu("NVIDIA A100-SXM4-80GB", "580.65.06", 81920, (8, 0))
TORCH = {
    "version": "2.13.0",
    "cuda": "13.0",
    "gpus": [{"name": GPU.name, "capability": [8, 0]}],
    "architectures": ["sm_75", "sm_80", "sm_120"],
}


def cluster(nodes: str = NODES, *, accounting: bool = False, **config: str) -> Cluster:
    return Cluster("slurm 22.05.8", config, parse_nodes(nodes), accounting=accounting, complaint="")


def marks(findings: list[Finding], subject: str) -> list[str]:
    return [finding.mark for finding in findings if finding.subject == subject]


# --- Slurm ------------------------------------------------------------------------------------------------------------


def test_nodes_are_read_by_partition():
    urgent, main = parse_nodes(NODES)
    assert (urgent.name, urgent.is_default, urgent.limit_min, urgent.max_nodes) == ("urgent", False, 60, 2)
    assert (main.name, main.is_default, main.limit_min, main.max_nodes) == ("main", True, 1440, None)
    assert [(node.name, node.works, node.is_idle) for node in main.nodes] == [
        ("n1", True, True),
        ("n2", False, False),
        ("n3", True, False),
        ("n4", False, False),
    ]
    assert (main.nodes[2].idle_cpus, main.nodes[3].reason, main.nodes[0].reason) == (2, "a disk | is broken", "")


@pytest.mark.parametrize("state", ["idle", "allocated", "mixed-", "completing", "idle~", "planned", "reserved"])
def test_nodes_that_take_jobs_work(state):
    (partition,) = parse_nodes(f"n1|main*|{state}|4|64000|(null)|infinite|1-infinite|up|0/4/0/4|none")
    assert partition.nodes[0].works
    assert partition.limit_min is None


@pytest.mark.parametrize("state", ["down", "down*", "idle*", "drained", "draining", "drained*", "failing", "maint"])
def test_nodes_that_take_none_do_not(state):
    (partition,) = parse_nodes(f"n1|main*|{state}|4|64000+|(null)|infinite|1-infinite|up|0/4/0/4|none")
    assert not partition.nodes[0].works
    assert not partition.nodes[0].is_idle


@pytest.mark.parametrize("listing", ["", "\n", "sinfo: error\n", "a|b|c\n"])
def test_what_is_no_listing_has_no_partitions(listing):
    assert parse_nodes(listing) == ()


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu", 1),
        ("gpu:a100:8", 8),
        ("gpu:h100:4(S:0-1),nvme:1", 4),
        ("nvme:3,gpu:a100:2(S:0),gpu:v100:1(S:1)", 3),
        ("gpumem:80", 0),
    ],
)
def test_gpus_are_counted_in_generic_resources(gres, count):
    assert parse_gres(gres) == count


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", None), ("30:00", 30), ("1:00:00", 60), ("2-12:00:00", 3600), ("0:30", 0.5), ("n/a", None)],
)
def test_time_limits_are_minutes(limit, minutes):
    assert parse_minutes(limit) == minutes


def test_config_is_read_by_key():
    text = "Configuration data as of 2026-11-27T06:00:00\nClusterName             = four\nSLURM_VERSION = 22.05.8\n\n"
    assert parse_config(text) == {"ClusterName": "four", "SLURM_VERSION": "22.05.8"}


def test_down_and_drained_nodes_are_named_with_their_reason():
    findings = cluster_findings(cluster(JobRequeue="1"), Profile(), ())
    assert marks(findings, "node n2") == marks(findings, "node n4") == ["warn"]
    assert next(each for each in findings if each.subject == "node n4").found == "drained: a disk | is broken"
    assert marks(findings, "node n1") == []
    assert marks(findings, "requeueing") == ["ok"]


@pytest.mark.parametrize(
    ("by_profile", "by_cluster", "mark"),
    [(None, "1", "ok"), (None, "0", "note"), (True, "0", "ok"), (False, "1", "note")],
)
def test_whether_jobs_start_again_is_the_profiles_to_say_and_else_the_clusters(by_profile, by_cluster, mark):
    findings = cluster_findings(cluster(JobRequeue=by_cluster), Profile(requeue=by_profile), ())
    assert marks(findings, "requeueing") == [mark]


@pytest.mark.parametrize(
    ("line", "requeue"), [("slurm-requeue: true", True), ("slurm-no-requeue: true", False), ("jobs: 64", None)]
)
def test_the_profile_says_whether_jobs_start_again(tmp_path, line, requeue):
    (tmp_path / "profiles" / "slurm").mkdir(parents=True)
    (tmp_path / "profiles" / "slurm" / "profile.yaml").write_text(f"{line}\n")
    assert read_profile(tmp_path).requeue is requeue


def test_without_accounting_the_profile_must_ask_squeue():
    assert marks(cluster_findings(cluster(), Profile(), ()), "accounting") == ["warn"]
    assert marks(cluster_findings(cluster(), Profile("squeue"), ()), "accounting") == ["ok"]
    assert marks(cluster_findings(cluster(), read_profile(ROOT), ()), "accounting") == ["ok"]
    assert marks(cluster_findings(cluster(accounting=True), Profile(), ()), "accounting") == ["ok"]


def test_a_partition_that_is_not_there_is_missing_for_a_plan_of_several_nodes():
    profile = Profile(default={"slurm_partition": "'gpu'"})
    (alone,) = [each for each in cluster_findings(cluster(), profile, ()) if each.subject == "profile"]
    assert (alone.mark, alone.found) == ("warn", "no partition gpu; there are: urgent, main")
    several = cluster_findings(cluster(), profile, (Job("run", "train_run", 2, 4, 1),))
    assert marks(several, "profile") == ["missing"]


def answers(node: str, token: str, *, ahead_s: float = 0, write: str = "", version: str = __version__) -> list[str]:
    said = {"time": f"{time.time() + ahead_s:.6f}", "read 0": token, "write 0": write, "version": version}
    return [f"{node}|{question}|{answer}\n" for question, answer in said.items()]


def heard_findings(lines: list[str], place: Path) -> dict[str, Finding]:
    return {each.subject: each for each in node_findings(heard(lines), [(Path("/data"), place)], "token", "missing")}


def test_nodes_that_share_all_are_told_in_a_line_each(tmp_path: Path):
    for node in ("n1", "n2"):
        (tmp_path / node).write_text("token")
    found = heard_findings([*answers("n1", "token"), *answers("n2", "token")], tmp_path)
    assert {each.mark for each in found.values()} == {"ok"}
    assert found["shared"].found == "/data: read and written from 2 nodes and from here"


@pytest.mark.parametrize(
    ("lines", "written", "subject", "mark", "words"),
    [
        (answers("n1", "head: cannot open"), True, "shared", "missing", "cannot read what is written here"),
        (answers("n1", "token", write="Read-only file system"), False, "shared", "missing", "cannot write (Read-only"),
        (answers("n1", "token"), False, "shared", "missing", "n1 writes what is not seen here"),
        (answers("n1", "token", ahead_s=-3600), True, "clocks", "warn", "s behind this machine"),
        (answers("n1", "token", ahead_s=3600), True, "clocks", "warn", "s ahead of this machine"),
        (answers("n1", "token", version="sh: not found"), True, "environment", "missing", "on n1: sh: not found"),
        (["n1|time|no number\n", "srun: a line of its own\n"], True, "environment", "missing", "no answer"),
    ],
)
def test_what_a_node_does_not_share_is_named(tmp_path: Path, lines, written, subject, mark, words):
    if written:
        (tmp_path / "n1").write_text("token")
    found = heard_findings(lines, tmp_path)[subject]
    assert (found.mark, words in found.found) == (mark, True), found.found
    assert found.to_do


# --- jobs -------------------------------------------------------------------------------------------------------------


def job(nodes: int = 1, per_node: int = 1, cores: int = 1) -> Job:
    return Job("a-run", "train_run", nodes, per_node, cores)


@pytest.mark.parametrize(
    ("wanted", "profile", "mark", "words"),
    [
        (job(), Profile(), "ok", "could start in partition main at once"),
        (job(2, 2), Profile(), "ok", "could start in partition main at once"),
        (job(2, 4), Profile(), "note", "waits for nodes in partition main"),
        (Job("a-run", "train_run", 2, 4, 1, gpus=4), Profile(), "missing", "0 have 4 CPUs and 0.0 GiB and 4 GPUs"),
        (job(3, 2), Profile(), "missing", "of its 4 nodes 4 have 2 CPUs and 0.0 GiB, and 2 of those work"),
        (job(2, 8), Profile(), "missing", "of its 4 nodes 0 have 8 CPUs"),
        (job(2), Profile(default={"mem_mb_per_cpu": 90_000}), "missing", "of its 4 nodes 0 have 1 CPUs and 87.9 GiB"),
        (job(2), Profile(default={"runtime": 3000}), "missing", "its runtime of 2.08 days is over the 24 h there"),
        (job(3), Profile(default={"slurm_partition": "urgent"}), "missing", "a job may have 2 nodes"),
        (
            job(2),
            Profile(of_rule={"train_run": {"slurm_extra": "'--gpus-per-node=4'"}}),
            "missing",
            "1 CPUs and 0.0 GiB and 4 GPUs",
        ),
        (job(2), Profile(of_rule={"train_run": {"slurm_extra": "'--gpus-per-node=2'"}}), "note", "waits for nodes"),
    ],
)
def test_a_job_fits_into_its_partition_now_later_or_never(wanted, profile, mark, words):
    (finding,) = job_findings((wanted,), Here(2, 0), cluster(), profile)
    assert finding.mark == mark
    assert words in finding.found
    assert (finding.to_do is None) == (mark in ("ok", "note"))


@pytest.mark.parametrize(
    ("wanted", "here", "mark", "words"),
    [
        (job(1, 2), Here(2, 0), "ok", "runs here"),
        (job(1, 4), Here(2, 0), "warn", "take turns on 2 cores"),
        (Job("a-run", "train_run", 1, 1, 1, gpus=1), Here(2, 0), "missing", "not here, with 0 GPUs"),
        (job(1, 4), Here(64, 2), "missing", "not here, with 2 GPUs"),
        (job(1, 2), Here(64, 2), "ok", "runs here"),
        (job(2, 2), Here(64, 8), "missing", "not here, on one node"),
    ],
)
def test_without_slurm_a_job_needs_this_machine(wanted, here, mark, words):
    (finding,) = job_findings((wanted,), here, None, Profile())
    assert (finding.mark, words in finding.found) == (mark, True)


def test_what_slurm_would_never_start_is_worth_a_warning_where_it_runs_here():
    profile = Profile(default={"runtime": 3000})
    (finding,) = job_findings((job(),), Here(2, 0), cluster(), profile)
    assert (finding.mark, "lower runtime" in finding.to_do) == ("warn", True)


def test_the_profile_is_read_as_snakemake_reads_it(tmp_path: Path):
    path = tmp_path / "profiles" / "slurm" / "profile.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "slurm-status-command: squeue\ndefault-resources: [\"slurm_partition='gpu'\", runtime=120, mem_mb=4000]\n"
        "set-resources:\n  train_run: {slurm_extra: \"'--gpus-per-node=a100:8 --exclusive'\", runtime: 720, "
        "mem_mb_per_cpu: 2000}\n"
    )
    profile = read_profile(tmp_path)
    assert (profile.status_command, profile.resource("sweep", "slurm_partition")) == ("squeue", "gpu")
    assert (profile.number("sweep", "runtime"), profile.number("train_run", "runtime")) == (120, 720)
    assert (profile.gpus_per_node("sweep"), profile.gpus_per_node("train_run")) == (None, 8)
    assert profile.memory_mb("sweep", 10) == 4000
    assert profile.memory_mb("train_run", 10) == 20_000
    with pytest.raises(UserError, match="no such file"):
        read_profile(tmp_path / "elsewhere")


# --- software and devices ---------------------------------------------------------------------------------------------


def test_gpus_are_read_with_and_without_their_capability():
    listing = "NVIDIA A100-SXM4-80GB, 580.65.06, 81920, 8.0\nTesla P40, 470.1, [N/A]\n"
    assert parse_gpus(listing) == (GPU, Gpu("Tesla P40", "470.1", None, None))


def test_builds_that_go_together_are_not_mentioned():
    assert torch_findings(TORCH, (GPU,), dali_cuda="130") == []
    assert torch_findings(TORCH | {"cuda": None, "gpus": [], "architectures": []}, (), dali_cuda="130") == []


@pytest.mark.parametrize(
    ("change", "gpu", "dali", "mark", "words"),
    [
        ({"cuda": None, "gpus": []}, GPU, "130", "warn", "a build for CPUs, beside 1 GPUs"),
        ({}, GPU, "120", "warn", "DALI is built for CUDA 12, torch for CUDA 13.0"),
        ({}, Gpu(GPU.name, "550.54", 1, (8, 0)), "130", "missing", "driver 550.54 is older than 580"),
        (
            {"gpus": [{"name": "P40", "capability": [6, 1]}]},
            Gpu("P40", "580.1", 1, (6, 1)),
            "130",
            "missing",
            "P40 has capability 6.1",
        ),
        (
            {"gpus": [{"name": "V100", "capability": [7, 0]}]},
            Gpu("V100", "580.1", 1, None),
            "130",
            "missing",
            "built from 7.5 on",
        ),
        ({"gpus": []}, GPU, "130", "warn", "torch sees 0 of the 1 GPUs"),
    ],
)
def test_builds_that_do_not_go_together_are_named(change, gpu, dali, mark, words):
    (finding,) = torch_findings(TORCH | change, (gpu,), dali)
    assert (finding.mark, words in finding.found) == (mark, True)
    assert finding.to_do


def test_only_versions_other_than_locked_are_told():
    lock = "# comment\nnumpy==2.4.6\ntorch==2.13.0\nPyYAML==6.0.3\nzc.lockfile==4.0\n"
    installed = {"numpy": "2.4.5", "torch": "2.13.0+cpu", "pyyaml": "6.0.3"}
    assert unlike_lock(lock, installed) == ["numpy 2.4.5 (locked 2.4.6)", "zc.lockfile missing (locked 4.0)"]


# --- what a plan needs ------------------------------------------------------------------------------------------------


def test_a_plans_images_are_known_before_they_are_there(monkeypatch):
    monkeypatch.chdir(ROOT)
    plans = {name: load_plan(find_plan(name)) for name in ("ilsvrc2012", "demo", "small", "paper")}
    assert images_of(plans["ilsvrc2012"]) == {"train": 1_281_167, "val": 50_000}
    assert images_of(plans["demo"]) == {"train": 1600, "val": 400}
    assert images_of(plans["small"]) is None
    assert images_of(plans["paper"]) is None


@pytest.mark.parametrize(
    ("name", "classes"), [("alexnet", 1000), ("alexnet_bn", 1000), ("resnet50", 1000), ("resnet_small", 10)]
)
def test_the_known_sizes_of_networks_are_theirs(name, classes):
    plan = ModelPlan(name=name)
    assert parameters_of(plan) == sum(each.numel() for each in build_model(plan, classes, seed=0).parameters())


def test_checkpoints_are_weights_and_momentum_of_all_that_are_kept():
    assert checkpoint_bytes(RunPlan(), 1000) == 4000 * (2 * (2 + 2) + 2)


# --- looking ----------------------------------------------------------------------------------------------------------


def seen(found: str) -> list[Finding]:
    findings = Findings("devices")
    findings.add("ok", "CPU", found)
    return findings.all


def hang() -> list[Finding]:
    reading, _ = os.pipe()
    os.read(reading, 1)
    return []


def break_off() -> list[Finding]:
    raise ValueError("of no\nuse")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns where there are threads
def test_a_look_that_hangs_dies_or_breaks_is_a_finding_beside_the_others():
    found = list(
        look_at_all(
            [
                Examiner("slurm", hang, limit_s=0.2),
                Examiner("devices", lambda: seen("4 cores")),
                Examiner("archives", break_off),
                Examiner("duration", lambda: os._exit(9)),
            ]
        )
    )
    assert [(each.group, each.mark) for each in found] == [
        ("slurm", "warn"),
        ("devices", "ok"),
        ("archives", "missing"),
        ("duration", "warn"),
    ]
    assert "no answer within 0.2 s" in found[0].found
    assert found[2].found == "could not be looked at: ValueError: of no use"


def test_the_doctor_itself_imports_neither_torch_nor_dali():
    program = "import sys, fourminutes.doctor.examine; print({'torch', 'nvidia.dali'} & sys.modules.keys())"
    assert ask(sys.executable, "-c", program, limit_s=60).stdout == "set()\n"


def test_a_command_that_is_not_there_or_hangs_is_an_answer():
    assert "No such file" in ask("no-such-command").complaint
    assert "no answer within 0.2 s" in ask("tail", "-f", "/dev/null", limit_s=0.2).complaint
    assert ask("sh", "-c", "echo no >&2; exit 3").complaint == "no"
