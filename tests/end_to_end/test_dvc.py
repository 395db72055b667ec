"""DVC as the record: data and results in a second clone, and what a user of DVC does there."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from support.clone import READY, Clone, fresh_clone, planned_jobs, second_clone, wait_until

from fourminutes.plan import Plan, load_plan
from fourminutes.record import RunRecord, Session, SweepRecord, read_record

MINI = """
# Neither collectives nor predictions.
name: mini
data:
  dataset: mini
  source: {kind: synthetic, classes: 4, train_per_class: 16, val_per_class: 4, side_px: 40}
  shards: {train: 2, val: 1}
  max_broken_percent: 20
defaults:
  epochs: 2
  model: {name: resnet_small, image_px: 32, width: 0.25}
  loader: {threads: 1, chunk_images: 16}
  schedule: {base_rate: 0.1}
  optimizer: {kind: sgd}
  batch: {global_batch: 16, per_device: 16}
"""
RUNS = """
runs:
  run-a: {epochs: 2}
  run-b: {}
"""
# As the proxy: no runs at all.
SWEEPS = """
tuning: {points: 3, budget: 3, tune_images: 8, final_seeds: 1}
sweeps:
  arm: {start: 0.1, run: {epochs: 1}}
"""
LONG = """
runs:
  run-a: {epochs: 100, checkpoint: {every_steps: 3}}
"""
UP_TO_DATE = "Data and pipelines are up to date."
NOTHING = "Nothing to be done"


@dataclass(frozen=True)
class Remote:
    """Where DVC pushes to."""

    url: str
    options: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)

    def add_to(self, clone: Clone, name: str = "kept") -> None:
        clone.must("dvc", "remote", "add", "--local", "--default", name, self.url)
        for option, value in self.options.items():
            clone.must("dvc", "remote", "modify", "--local", name, option, value)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The plan `mini` run under DVC, its results committed, its shards handed to DVC."""
    clone = with_plan(fresh_clone(tmp_path_factory.mktemp("first")), "mini", MINI + RUNS)
    clone.must("dvc", "repro")
    clone.must("dvc", "add", str(data_folder(clone)))
    clone.commit()
    return clone


@pytest.fixture(scope="module")
def folder_remote(first: Clone, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    """A folder to which the first clone has pushed."""
    remote = Remote(str(tmp_path_factory.mktemp("remote")))
    remote.add_to(first)
    first.must("dvc", "push")
    return remote


@pytest.fixture
def s3() -> Iterator[Remote]:
    """An empty bucket of an S3 server on this machine."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    connection = HTTPConnection(host, port)
    connection.request("PUT", "/bucket")
    assert connection.getresponse().status == 200
    connection.close()
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    yield Remote("s3://bucket/four-minutes", {"endpointurl": f"http://{host}:{port}"}, keys | {"NO_PROXY": host})
    server.stop()


@pytest.fixture
def second(first: Clone, folder_remote: Remote, tmp_path: Path) -> Clone:
    """A second clone that has pulled, by DVC's own command."""
    clone = second_clone(first, tmp_path / "second")
    folder_remote.add_to(clone)
    clone.must("dvc", "pull")
    return clone


# --- pushed and pulled ----------------------------------------------------------------------------------------------


def test_a_second_clone_pulls_from_a_folder_and_has_nothing_to_do(first: Clone, folder_remote: Remote, tmp_path: Path):
    assert_pulled_whole(first, folder_remote, tmp_path)


def test_a_second_clone_pulls_from_s3_and_has_nothing_to_do(first: Clone, s3: Remote, tmp_path: Path):
    s3.add_to(first, "s3")
    first.must("dvc", "push", "--remote", "s3", **s3.environ)
    assert_pulled_whole(first, s3, tmp_path)


def assert_pulled_whole(first: Clone, remote: Remote, folder: Path) -> None:
    clone = second_clone(first, folder / "pulling")
    remote.add_to(clone)
    assert not (clone.folder / data_folder(clone)).exists()
    make(clone, "pull", **remote.environ)
    for path in (results(first), first.folder / data_folder(first)):
        assert contents(clone.folder / path.relative_to(first.folder)) == contents(path) != {}
    assert_idle(clone)


def test_after_make_pull_no_order_of_times_makes_anything_again(second: Clone):
    date_backwards(second)
    assert "report" in dry_run(second), "times in this order don't fool Snakemake"
    make(second, "pull")
    assert_idle(second)


def test_a_pull_that_lacks_a_file_fails_and_declares_nothing(first: Clone, folder_remote: Remote, tmp_path: Path):
    clone = second_clone(first, tmp_path / "second")
    shard = first.folder / data_folder(first) / "train-00001-of-00002.tar"
    copy = tmp_path / "remote"
    shutil.copytree(folder_remote.url, copy)
    digest = hashlib.md5(shard.read_bytes()).hexdigest()
    (copy / "files" / "md5" / digest[:2] / digest[2:]).unlink()
    Remote(str(copy)).add_to(clone)

    done = clone.run("make", "pull", "-o", READY)
    assert done.returncode != 0
    assert "failed to pull" in done.stderr
    assert_nothing_declared(clone)
    assert dry_run(clone, "data")["shard"] >= 1


def test_shards_that_were_not_pulled_are_not_declared_to_be_there(second: Clone):
    shards = second.folder / data_folder(second)
    gone = sorted(shards.glob("train-00001-*"))
    for path in [*gone, shards.with_suffix(".dvc")]:
        path.unlink()
    make(second, "pull")
    assert dry_run(second) == {}
    planned = dry_run(second, "data")
    assert planned["shard"] == 1


def test_results_of_other_settings_are_not_declared_up_to_date(second: Clone):
    shorten(second, "run-a")
    assert "config/plans/mini.yaml" in refused_pull(second)


def test_results_that_lack_a_record_are_not_declared_up_to_date(second: Clone):
    record_of(second, "run-a").unlink()
    assert "results/mini" in refused_pull(second)


def refused_pull(clone: Clone) -> str:
    """What `make pull` says where it declares nothing."""
    done = clone.run("make", "pull", "-o", READY)
    assert done.returncode != 0
    assert "`dvc repro` makes what is missing or outdated" in done.stderr
    assert_nothing_declared(clone)
    return done.stdout


def assert_nothing_declared(clone: Clone) -> None:
    assert not any(clone.folder.glob(".snakemake/metadata/*"))


# --- repro ----------------------------------------------------------------------------------------------------------


def test_a_changed_recipe_reruns_its_run_alone_even_where_snakemake_remembers_nothing(second: Clone):
    before = {run: read_record(record_of(second, run), RunRecord) for run in ("run-a", "run-b")}
    shorten(second, "run-a")
    printed = second.must("dvc", "repro")
    assert planned_jobs(printed) | {"train_run": 1, "report": 1, "all": 1, "total": 3} == planned_jobs(printed)
    assert "Stage 'paper' didn't change, skipping" in printed
    assert len(read_record(record_of(second, "run-a"), RunRecord).epochs) == 1
    assert read_record(record_of(second, "run-b"), RunRecord) == before["run-b"]
    assert [row["run"] for row in course(second)] == ["run-a", "run-b", "run-b"]
    assert_idle(second)


def test_a_comment_and_the_readme_rerun_nothing(second: Clone):
    make(second, "pull")
    for name, comment in {"config/plans/mini.yaml": "# ", "config/recipes.yaml": "# ", "README.md": ""}.items():
        with (second.folder / name).open("a") as file:
            file.write(f"\n{comment}Another word.\n")
    assert_idle(second)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_training_interrupted_under_dvc_goes_on_from_its_checkpoint(tmp_path: Path, number: signal.Signals):
    clone = with_plan(fresh_clone(tmp_path), "mini", MINI + LONG)
    stop_after_first_checkpoint(clone, number)
    assert not record_of(clone, "run-a").exists()
    if number == signal.SIGKILL:
        refused = clone.run("dvc", "repro", "results")
        assert refused.returncode != 0
        assert "--unlock" in refused.stdout + refused.stderr
        clone.must("snakemake", "--unlock")
    clone.must("dvc", "repro", "results")
    sessions: tuple[Session, ...] = read_record(record_of(clone, "run-a"), RunRecord).sessions
    assert len(sessions) == 2
    assert sessions[1].from_step > 0
    assert sessions[1].ended == "finished"


def stop_after_first_checkpoint(clone: Clone, number: signal.Signals) -> None:
    """Start `dvc repro`, and signal every process of it in mid-training."""
    dvc = clone.start("dvc", "repro", "results")
    try:
        wait_until(dvc, lambda: any(clone.folder.glob("work/mini/run-a-*/step-*/complete.json")))
        os.killpg(dvc.pid, number)
        assert dvc.wait(timeout=120) != 0
    finally:
        if dvc.poll() is None:
            os.killpg(dvc.pid, signal.SIGKILL)
            dvc.wait()


# --- metrics, plots, experiments ------------------------------------------------------------------------------------


def test_metrics_and_plots_show_every_run(second: Clone):
    shown = json.loads(second.must("dvc", "metrics", "show", "--json"))
    runs = shown[""]["data"]["results/mini/metrics.json"]["data"]["runs"]
    final = read_record(record_of(second, "run-a"), RunRecord).final
    assert list(runs) == ["run-a", "run-b"]
    assert runs["run-a"]["top1_percent"] == pytest.approx(final.top1_percent)
    assert runs["run-a"]["train_loss"] == pytest.approx(final.train_loss, rel=1e-5)

    page = Path(second.must("dvc", "plots", "show").strip().removeprefix("file://")).read_text()
    specs = {spec["title"]: spec for spec in map(json.loads, re.findall(r"var spec = (\{.*\});", page))}
    assert list(specs) == ["Top-1 accuracy by epoch", "Training loss by epoch"]
    points = specs["Top-1 accuracy by epoch"]["data"]["values"]
    assert [(point["run"], point["epoch"]) for point in points] == [
        ("run-a", "1"),
        ("run-a", "2"),
        ("run-b", "1"),
        ("run-b", "2"),
    ]
    assert [float(point["top1_percent"]) for point in points] == [float(row["top1_percent"]) for row in course(second)]


def test_an_experiment_with_another_value_shows_in_the_metrics_and_can_be_left_again(second: Clone):
    make(second, "pull")
    second.must("dvc", "exp", "run", "--name", "short", "--set-param", "config/plans/mini.yaml:runs.run-a.epochs=1")
    changes = metrics_diff(second, "HEAD", "workspace")
    assert {"runs.run-a.train_loss", "runs.run-a.wall_s"} <= changes.keys()
    assert not any(name.startswith("runs.run-b") for name in changes)
    assert metrics_diff(second, "HEAD", "short") == changes
    assert "run-a.epochs" in second.must("dvc", "exp", "show", "--only-changed", "--csv")

    # Back to the commit: what Snakemake remembers is the experiment.
    subprocess.run(["git", "checkout", "-q", "."], cwd=second.folder, check=True)
    make(second, "checkout")
    assert metrics_diff(second, "HEAD", "workspace") == {}
    assert_idle(second)


def test_an_experiment_aside_takes_shards_and_other_runs_from_dvc(second: Clone):
    before = contents(results(second))
    override = "config/plans/mini.yaml:+runs.run-b.epochs=1"  # `+`, since the plan has no such key yet
    printed = second.must("dvc", "exp", "run", "--temp", "--name", "aside", "--set-param", override)
    assert planned_jobs(printed)["train_run"] == 1
    assert "shard" not in planned_jobs(printed)
    assert all(name.startswith("runs.run-b") for name in metrics_diff(second, "HEAD", "aside"))
    assert contents(results(second)) == before


def test_a_plan_of_sweeps_alone_is_an_experiment_that_takes_over_what_is_there(second: Clone):
    with_plan(second, "arms", MINI + SWEEPS, chosen="mini")
    second.must("snakemake", "--config", "plan=arms")
    ledger = second.folder / "results" / "arms" / "sweeps" / "arm.json"
    before = ledger.read_bytes()
    second.must("dvc", "exp", "run", "--name", "arms", "--set-param", "plan=arms")
    assert ledger.read_bytes() == before
    shown = json.loads(second.must("dvc", "metrics", "show", "--json"))
    sweeps = shown[""]["data"]["results/arms/metrics.json"]["data"]["sweeps"]
    assert sweeps["arm"]["value"] == pytest.approx(read_record(ledger, SweepRecord).chosen)
    assert UP_TO_DATE in second.must("dvc", "repro")
    second.must("dvc", "plots", "show")


# --- what the tests above have in common ----------------------------------------------------------------------------


def with_plan(clone: Clone, name: str, text: str, chosen: str | None = None) -> Clone:
    """The clone with one more plan, committed; params.yaml names it, or `chosen`."""
    (clone.folder / "config" / "plans" / f"{name}.yaml").write_text(text.replace("name: mini", f"name: {name}"))
    (clone.folder / "params.yaml").write_text(f"plan: {chosen or name}\n")
    clone.commit()
    return clone


def plan_of(clone: Clone) -> Plan:
    return load_plan(clone.folder / "config" / "plans" / "mini.yaml")


def results(clone: Clone) -> Path:
    return clone.folder / "results" / "mini"


def data_folder(clone: Clone) -> Path:
    """Relative to the clone, as a user gives it."""
    data = plan_of(clone).data
    assert data is not None
    return data.folder


def record_of(clone: Clone, run: str) -> Path:
    return clone.folder / plan_of(clone).run_record(run)


def course(clone: Clone) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((results(clone) / "epochs.csv").read_text())))


def shorten(clone: Clone, run: str) -> None:
    """Another recipe for one run."""
    plan = clone.folder / "config" / "plans" / "mini.yaml"
    plan.write_text(plan.read_text().replace(f"{run}: {{epochs: 2}}", f"{run}: {{epochs: 1}}"))
    assert plan_of(clone).runs[run].epochs == 1


def make(clone: Clone, target: str, **environ: str) -> None:
    clone.must("make", target, "-o", READY, **environ)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dry_run(clone: Clone, *targets: str) -> dict[str, int]:
    """The jobs that Snakemake would run now, by rule."""
    return planned_jobs(clone.must("snakemake", *targets, "-n"))


def assert_idle(clone: Clone) -> None:
    """Nothing is to be done, by Snakemake nor by DVC."""
    for target in ([], ["data"]):
        assert NOTHING in clone.must("snakemake", *target)
    assert UP_TO_DATE in clone.must("dvc", "repro")


def date_backwards(clone: Clone) -> None:
    """Give every file a time before that of the files it is made from."""
    plan = plan_of(clone)
    records = [plan.manifest, *map(plan.run_record, plan.runs)]
    drawn = [path for path in results(clone).rglob("*") if path.relative_to(clone.folder) not in records]
    shards = sorted((clone.folder / data_folder(clone)).iterdir(), key=lambda path: path.name == "index.parquet")
    now = time.time()
    for age_s, path in enumerate(reversed([*drawn, *map(clone.folder.joinpath, reversed(records)), *shards])):
        os.utime(path, (now - age_s, now - age_s))


def metrics_diff(clone: Clone, old: str, new: str) -> dict[str, object]:
    """The metrics that differ between two revisions, by name."""
    shown = json.loads(clone.must("dvc", "metrics", "diff", "--json", old, new))
    return {name: change for changes in shown.values() for name, change in changes.items()}
