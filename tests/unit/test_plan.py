"""What a plan accepts, what it refuses, and in which words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pytest
import yaml

from fourminutes.errors import UserError
from fourminutes.plan import Plan, ReducePlan, load_plan
from fourminutes.plan.schema import SCHEMA_FOLDER, documents

ROOT = Path(__file__).resolve().parents[2]

PLAN = """
name: small
data:
  dataset: small
  source: {kind: imagenet, path: archives}
defaults:
  epochs: 2
  model: {name: resnet50, width: 0.25}
runs:
  a: {model: {image_px: 64}}
  b: {epochs: 3}
"""


def read(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return load_plan(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("plan", sorted((ROOT / "config" / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_of_the_project_is_valid_by_model_and_by_schema(plan: Path):
    assert load_plan(plan).name == plan.stem
    schema = yaml.safe_load(documents()["plan.schema.json"])
    jsonschema.validate(yaml.safe_load(plan.read_text()) | {"runs": {}}, schema)


@pytest.mark.parametrize("name", sorted(documents()))
def test_the_generated_documents_are_those_of_the_models(name: str):
    assert (ROOT / SCHEMA_FOLDER / name).read_text() == documents()[name], "run `make schema`"


def test_defaults_lie_under_every_run_key_by_key(tmp_path: Path):
    plan = read(tmp_path, PLAN)
    assert (plan.runs["a"].model.width, plan.runs["a"].model.image_px, plan.runs["a"].epochs) == (0.25, 64, 2)
    assert (plan.runs["b"].model.image_px, plan.runs["b"].epochs) == (224, 3)


def test_an_unknown_key_is_named_with_the_likely_one(tmp_path: Path):
    line = refusal(tmp_path, PLAN.replace("epochs: 3", "epoch: 3"))
    assert "small.yaml: runs.b.epoch: unknown key; did you mean 'epochs'?" in line


def test_a_value_with_a_unit_written_into_it_is_refused_with_the_unit_expected(tmp_path: Path):
    line = refusal(tmp_path, PLAN.replace("epochs: 3", "reduce: {bucket_mib: 25MB}"))
    assert "runs.b.reduce.bucket_mib" in line
    assert "'25MB'" in line
    assert "in MiB" in line


def test_a_number_in_quotes_is_no_number(tmp_path: Path):
    assert "runs.b.epochs" in refusal(tmp_path, PLAN.replace("epochs: 3", "epochs: '3'"))


def test_a_global_batch_that_the_processes_cannot_share_is_refused_with_the_sum(tmp_path: Path):
    text = PLAN.replace("epochs: 3", "processes: 3\n    batch: {global_batch: 64, per_device: 8}").replace(
        "b: {processes", "b:\n    processes"
    )
    line = refusal(tmp_path, text.replace("8}}", "8}"))
    assert "runs.b" in line
    assert "8 x 3 = 24" in line


def test_a_missing_file_and_a_file_that_is_no_yaml_are_one_line_each(tmp_path: Path):
    with pytest.raises(UserError, match="no such file; a plan is expected"):
        load_plan(tmp_path / "none.yaml")
    assert "is not YAML" in refusal(tmp_path, "name: [")
    assert "is not a plan" in refusal(tmp_path, "- name")


def test_the_recipe_hash_follows_what_decides_the_bytes_and_nothing_else(tmp_path: Path):
    def folder(old: str, new: str) -> Path:
        data = read(tmp_path, PLAN.replace(old, new)).data
        assert data is not None
        return data.folder

    same = folder("", "")
    assert folder("path: archives", "path: elsewhere") == same
    assert folder("epochs: 2", "epochs: 4") == same
    assert folder("dataset: small", "dataset: small\n  shards: {train: 8}") != same
    assert folder("dataset: small", "dataset: small\n  recipe: {quality: 80}") != same


def test_a_run_without_data_is_refused(tmp_path: Path):
    assert "runs and sweeps need a data block" in refusal(tmp_path, "name: small\nruns: {a: {}}")


def test_a_runs_hash_follows_its_recipe_and_not_its_description(tmp_path: Path):
    def recipe_hash(new: str) -> str:
        return read(tmp_path, PLAN.replace("epochs: 3", new)).runs["b"].recipe_hash

    assert recipe_hash("epochs: 3, description: another") == recipe_hash("epochs: 3")
    assert recipe_hash("epochs: 4") != recipe_hash("epochs: 3")


def test_what_is_wrong_in_the_defaults_is_named_there(tmp_path: Path):
    assert "small.yaml: defaults.model.widht: unknown key" in refusal(tmp_path, PLAN.replace("width", "widht"))


def test_a_key_that_comes_twice_is_refused(tmp_path: Path):
    assert "key 'a' comes twice" in refusal(tmp_path, PLAN.replace("  b: {", "  a: {"))


def test_a_key_that_a_merge_brings_in_may_be_written_over(tmp_path: Path):
    plan = read(tmp_path, PLAN.replace("a: {", "a: &a {").replace("epochs: 3", "<<: *a, epochs: 3"))
    assert (plan.runs["b"].model.image_px, plan.runs["b"].epochs) == (64, 3)


def test_a_plan_by_another_name_than_its_files_is_refused(tmp_path: Path):
    assert "'other' is not the file's" in refusal(tmp_path, PLAN.replace("name: small", "name: other"))


def test_what_leaves_the_weights_as_they_are_leaves_the_hash(tmp_path: Path):
    same = "checkpoint: {every_steps: 7}, loader: {threads: 8}, lost_after_s: 30"
    text = PLAN.replace("epochs: 3", f"epochs: 3, {same}")
    assert read(tmp_path, text).runs["b"].recipe_hash == read(tmp_path, PLAN).runs["b"].recipe_hash


RING, SMALL = {"algorithm": "ring"}, {"algorithm": "hierarchical", "up_to_kib": 64}


@pytest.mark.parametrize(
    ("reduce", "said"),
    [
        ({"algorithm": "hybrid"}, "choices: hybrid needs them"),
        ({"algorithm": "ring", "choices": [RING]}, "no other algorithm has either"),
        ({"algorithm": "hybrid", "choices": [RING], "tuning": "tuning.json"}, "hybrid needs them, or a tuning"),
        ({"algorithm": "auto", "choices": [RING]}, "no other algorithm has either"),
        ({"algorithm": "hybrid", "choices": [SMALL]}, "be null in the last alone"),
        ({"algorithm": "hybrid", "choices": [RING, RING]}, "must rise from one to the next"),
        ({"algorithm": "hybrid", "choices": [SMALL, SMALL, RING]}, "must rise from one to the next"),
        ({"segments": [20]}, "only front_end flat fuses in segments"),
        ({"bucket_mib": math.inf}, "finite number"),
    ],
)
def test_a_reduction_that_cannot_be_is_refused(reduce, said):
    with pytest.raises(ValueError, match=said):
        ReducePlan.model_validate_json(json.dumps(reduce))


def test_a_hybrid_of_rising_sizes_is_taken():
    plan = ReducePlan.model_validate_json(json.dumps({"algorithm": "hybrid", "choices": [SMALL, RING]}))
    assert plan.algorithms == {"ring", "hierarchical"}
