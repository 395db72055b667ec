"""The recipes: complete, as their sources have them, and laid between a plan's defaults and a run's own values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlperf_logging
import pytest
import yaml

from fourminutes.errors import UserError
from fourminutes.optim import rate_at
from fourminutes.plan import Plan, RunPlan, load_plan
from fourminutes.plan.recipes import RECIPES, read_recipes

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(yaml.safe_load((ROOT / RECIPES).read_text()))
TRAIN_IMAGES = 1_281_167

DATA: dict[str, Any] = {"dataset": "small", "source": {"kind": "imagenet", "path": "archives"}}
# What no recipe has: whatever of it is found in a run that names one has leaked.
ODD_DEFAULTS: dict[str, Any] = {
    "epochs": 7,
    "label_smoothing": 0.7,
    "model": {"name": "resnet_small", "width": 0.7, "image_px": 77},
    "optimizer": {
        "kind": "sgd",
        "variant": "paper",
        "trust_coefficient": 0.7,
        "epsilon": 0.7,
        "decay_in_denominator": False,
        "momentum": 0.7,
        "nesterov": True,
        "weight_decay": 0.7,
        "no_decay": ["bias"],
        "no_adaptation": ["norm"],
    },
    "schedule": {
        "base_rate": 0.7,
        "base_batch": 7,
        "warmup_epochs": 0.7,
        "warmup_rate": 0.7,
        "decay": "multistep",
        "power": 7,
        "milestones": [0.7],
        "milestone_factor": 0.7,
        "end_rate": 0.7,
    },
    "batch": {"global_batch": 77, "per_device": 7, "bn_span": 7},
    "loader": {"min_area_percent": 77, "flip": False},
}
OF_SGD = {"kind", "momentum", "nesterov", "weight_decay", "no_decay"}
SMALL = {"source": "a table", "certainty": "derived", "run": {"epochs": 5, "model": {"width": 0.5}}}


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one small recipe."""
    monkeypatch.chdir(tmp_path)
    write_recipes(small=SMALL)
    return tmp_path


def write_recipes(**recipes: Any) -> None:
    RECIPES.parent.mkdir(exist_ok=True)
    RECIPES.write_text(yaml.safe_dump(recipes))


def read(folder: Path, **blocks: Any) -> Plan:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"name": "plan", "data": DATA, **blocks}))
    return load_plan(path)


def run_with(folder: Path, own: dict[str, Any], defaults: dict[str, Any] | None = None) -> RunPlan:
    return read(folder, defaults=defaults or {}, runs={"a": own}).runs["a"]


def refusal(folder: Path, **blocks: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, **blocks)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def what_decides(run: RunPlan) -> dict[str, Any]:
    """What a recipe is there to say, without what its optimizer and its schedule don't look at."""
    optimizer = run.optimizer.model_dump(include=OF_SGD if run.optimizer.kind == "sgd" else None)
    if run.optimizer.variant == "paper":
        optimizer.pop("momentum_correction", None)
    steps = range(run.epochs * 100)
    return {
        **run.model_dump(include={"epochs", "label_smoothing", "model", "batch", "loader"}),
        "optimizer": optimizer,
        "rates": [rate_at(run.rates, (step + 0.5) / 100, run.epochs) for step in steps],
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_makes_a_run_and_lets_no_default_in(name: str, tmp_path: Path) -> None:
    alone = run_with(tmp_path, {"recipe": name})
    assert what_decides(run_with(tmp_path, {"recipe": name}, ODD_DEFAULTS)) == what_decides(alone)


def test_the_recipes_say_where_they_were_read() -> None:
    recipes = read_recipes()
    assert sorted(recipes) == NAMES
    assert {name for name in recipes if "unconfirmed" in recipes[name].certainty} == {
        "paper-alexnet-64k",
        "paper-resnet50-64k",
        "goyal-8k",
    }


@pytest.mark.parametrize("batch", [4096, 8192, 32768, 65536])
def test_mlperfs_recipes_are_its_reference_convergence_points(batch: int, tmp_path: Path) -> None:
    package = Path(mlperf_logging.__file__).parent
    points = json.loads((package / "rcp_checker" / "training_4.0.0" / "rcps_resnet.json").read_text())
    point = points[f"resnet_ref_{batch}"]["Hyperparams"]
    run = run_with(tmp_path, {"recipe": f"mlperf-{batch // 1024}k"})
    assert run.batch.global_batch == batch
    assert run.rates.base_rate == point["opt_base_learning_rate"]
    assert run.rates.warmup_epochs == point["opt_learning_rate_warmup_epochs"]
    assert run.optimizer.momentum == point["opt_momentum"]
    assert run.optimizer.weight_decay == point["opt_weight_decay"]
    assert run.batch.per_device * run.batch.bn_span == point["model_bn_span"]
    decay_epochs = point["opt_learning_rate_decay_steps"] * batch / TRAIN_IMAGES
    assert run.epochs - run.rates.warmup_epochs == pytest.approx(decay_epochs, abs=0.1)


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "rate", "kind"),
    [
        ("paper-alexnet-64k", 95, 65_536, 45, "lars"),
        ("paper-resnet50-64k", 90, 65_536, 24.699, "lars"),
        ("goyal-8k", 90, 8_192, 3.2, "sgd"),
        ("you-32k", 100, 32_768, 32, "lars"),
        ("resnet50-256", 90, 256, 0.256, "sgd"),
        ("alexnet-512", 100, 512, 0.08, "sgd"),
    ],
)
def test_the_other_recipes_have_the_batch_and_the_rate_of_their_source(
    name: str, epochs: int, batch: int, rate: float, kind: str, tmp_path: Path
) -> None:
    run = run_with(tmp_path, {"recipe": name})
    assert (run.epochs, run.batch.global_batch, run.optimizer.kind) == (epochs, batch, kind)
    assert run.rates.base_rate == pytest.approx(rate)


@pytest.mark.parametrize("name", ["paper-alexnet-64k", "paper-resnet50-64k"])
def test_the_papers_recipes_hold_what_is_confirmed_of_it(name: str, tmp_path: Path) -> None:
    run = run_with(tmp_path, {"recipe": name})
    assert (run.precision, run.reduce.wire, run.optimizer.no_decay) == ("half", "fp16", ("bias", "norm"))


def test_the_rule_of_linear_scaling_follows_a_batch_that_a_run_changes(tmp_path: Path) -> None:
    run = run_with(tmp_path, {"recipe": "goyal-8k", "batch": {"global_batch": 1024}})
    assert run.rates.base_rate == pytest.approx(0.4)


def test_a_recipe_lies_on_the_defaults_and_below_the_runs_own_values(clone: Path) -> None:
    defaults = {"epochs": 3, "seed": 3, "model": {"width": 0.25, "image_px": 64}}
    run = run_with(clone, {"recipe": "small", "model": {"image_px": 32}}, defaults)
    assert (run.epochs, run.seed, run.model.width, run.model.image_px) == (5, 3, 0.5, 32)
    assert run_with(clone, {"recipe": "small", "epochs": 4}, defaults).epochs == 4


def test_the_defaults_may_name_a_recipe_and_a_run_another_or_none(clone: Path) -> None:
    write_recipes(small=SMALL, other=SMALL | {"run": {"epochs": 6}})
    defaults = {"recipe": "small", "epochs": 3}
    assert [run_with(clone, own, defaults).epochs for own in ({}, {"recipe": "other"}, {"recipe": None})] == [5, 6, 3]


def test_defaults_and_recipe_lie_under_the_run_of_a_sweep_too(clone: Path) -> None:
    sweep = {"run": {"recipe": "small", "model": {"image_px": 32}}, "start": 0.1}
    plan = read(clone, defaults={"epochs": 3, "seed": 3}, sweeps={"arm": sweep}, tuning={"tune_images": 10})
    run = plan.sweeps["arm"].run
    assert (run.epochs, run.seed, run.model.width, run.model.image_px) == (5, 3, 0.5, 32)


def test_a_run_by_recipe_is_the_same_run_as_with_its_values_written_out(clone: Path) -> None:
    assert run_with(clone, {"recipe": "small"}).recipe_hash == run_with(clone, SMALL["run"]).recipe_hash


def test_without_a_recipe_the_file_is_not_needed(clone: Path) -> None:
    RECIPES.unlink()
    assert run_with(clone, {"epochs": 4}).epochs == 4
    assert "recipes.yaml: no such file" in refusal(clone, runs={"a": {"recipe": "small"}})


def test_an_unknown_recipe_is_one_line_with_the_likely_one_or_all_of_them(clone: Path) -> None:
    likely = refusal(clone, runs={"a": {"recipe": "smal"}})
    assert "plan.yaml: runs.a.recipe: 'smal' is no recipe of config/recipes.yaml; did you mean 'small'?" in likely
    assert "runs.a.recipe: 'goyal' is no recipe of config/recipes.yaml; there are: small" in refusal(
        clone, runs={"a": {"recipe": "goyal"}}
    )
    assert "plan.yaml: defaults.recipe: 'x'" in refusal(clone, defaults={"recipe": "x"}, runs={"a": {}})
    assert "plan.yaml: sweeps.arm.run.recipe: 'x'" in refusal(
        clone, sweeps={"arm": {"run": {"recipe": "x"}, "start": 1}}, tuning={"tune_images": 10}
    )
    assert "plan.yaml: runs.a.recipe: input should be a valid string" in refusal(clone, runs={"a": {"recipe": 8}})


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"run": {"epoch": 5}}, "config/recipes.yaml: small.run.epoch: unknown key; did you mean 'epochs'?"),
        ({"run": {"batch": {"per_device": "8"}}}, "config/recipes.yaml: small.run.batch.per_device: input should be"),
        ({"run": {"recipe": "small"}}, "config/recipes.yaml: small: run.recipe: a recipe has none of its own"),
        ({"source": ""}, "config/recipes.yaml: small.source: string should have at least 1 character"),
        ({"certainty": "likely"}, "config/recipes.yaml: small.certainty: input should be 'confirmed', 'derived' or"),
        ({"sure": True}, "config/recipes.yaml: small.sure: unknown key"),
    ],
    ids=["unknown key of a run", "wrong type", "recipe in a recipe", "no source", "unknown certainty", "unknown key"],
)
def test_what_is_wrong_in_a_recipe_is_named_there(clone: Path, changed: dict[str, Any], line: str) -> None:
    write_recipes(small=SMALL | changed)
    assert refusal(clone, runs={"a": {"recipe": "small"}}).startswith(line)


def test_what_is_wrong_around_a_recipe_is_named_where_it_is_written(clone: Path) -> None:
    named = {"recipe": "small"}
    assert "plan.yaml: defaults.model.widht:" in refusal(clone, defaults={"model": {"widht": 1}}, runs={"a": named})
    assert "plan.yaml: runs.a.model.width:" in refusal(clone, runs={"a": named | {"model": {"width": 9}}})
    assert "plan.yaml: runs.a: batch.global_batch 7" in refusal(
        clone, runs={"a": named | {"batch": {"global_batch": 7}}}
    )
    arm = {"run": named | {"epochs": 0}, "start": 1}
    assert "plan.yaml: sweeps.arm.run.epochs:" in refusal(clone, sweeps={"arm": arm}, tuning={"tune_images": 10})
