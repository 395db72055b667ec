"""What a record says of itself, held against a plan: the project's own plans and the records that they left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from fourminutes.plan import Plan, load_plan
from fourminutes.record import Manifest, outdated_records, read_record, write_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["small", "proxy"])
def plan_path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan beside its records, in a folder that is the current one."""
    name = request.param
    path = tmp_path / f"{name}.yaml"
    shutil.copy(ROOT / "config" / "plans" / path.name, path)
    shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    monkeypatch.chdir(tmp_path)
    return path


def changed(path: Path, *keys: str, value: object) -> Plan:
    """The plan with one value changed, by its place."""
    raw = yaml.safe_load(path.read_text())
    block = raw
    for key in keys[:-1]:
        block = block.setdefault(key, {})
    block[keys[-1]] = value
    path.write_text(yaml.safe_dump(raw))
    return load_plan(path)


def trained(plan: Plan) -> set[Path]:
    return {*map(plan.run_record, plan.runs), *map(plan.sweep_record, plan.sweeps)}


def test_records_of_the_plan_as_it_is_are_not_outdated(plan_path: Path):
    assert trained(load_plan(plan_path))
    assert outdated_records(load_plan(plan_path)) == ()


def test_a_word_or_a_wait_makes_nothing_outdated(plan_path: Path):
    changed(plan_path, "description", value="Another sentence.")
    changed(plan_path, "report", "title", value="Another title")
    changed(plan_path, "defaults", "lost_after_s", value=11)
    plan = load_plan(plan_path)
    if plan.comm:
        plan = changed(plan_path, "comm", "lost_after_s", value=11)
    assert outdated_records(plan) == ()


def test_a_changed_default_outdates_all_that_was_trained_with_it(plan_path: Path):
    plan = changed(plan_path, "defaults", "label_smoothing", value=0.07)
    assert set(outdated_records(plan)) == trained(plan)


def test_other_pictures_outdate_all_that_was_trained_on_them(plan_path: Path):
    plan = load_plan(plan_path)
    manifest = read_record(plan.manifest, Manifest)
    write_record(plan.manifest, manifest.model_copy(update={"dataset_hash": "ab" * 32}))
    assert set(outdated_records(plan)) == trained(plan)


def test_another_recipe_of_the_data_outdates_the_manifest_and_what_was_trained(plan_path: Path):
    plan = load_plan(plan_path)
    assert plan.data is not None
    manifest = read_record(plan.manifest, Manifest)
    write_record(plan.manifest, manifest.model_copy(update={"folder": plan.data.folder.name}))
    assert outdated_records(plan) == ()
    plan = changed(plan_path, "data", "recipe", "seed", value=7)
    assert set(outdated_records(plan)) == {plan.manifest} | trained(plan)


def test_what_is_not_there_is_not_outdated(plan_path: Path):
    plan = load_plan(plan_path)
    plan.manifest.unlink()
    for path in trained(plan):
        path.unlink()
    assert outdated_records(plan) == ()


@pytest.mark.parametrize("plan_path", ["small"], indirect=True)
@pytest.mark.parametrize(
    ("block", "key", "value", "record"),
    [("comm", "repeats", 4, "comm.json"), ("scale", "world_sizes", [2], "scale.json")],
)
def test_other_measurements_outdate_their_own_record(plan_path: Path, block: str, key: str, value: object, record: str):
    plan = changed(plan_path, block, key, value=value)
    assert outdated_records(plan) == (plan.results / record,)
