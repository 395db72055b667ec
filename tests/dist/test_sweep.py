"""A sweep on the miniature data set: every trial in the ledger, the same budget for each, nothing made twice."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from training import DATA, RUN, Bench, made_bench, signal_after_step

from fourminutes.errors import Interrupted, UserError
from fourminutes.plan import Plan, load_plan
from fourminutes.record import SweepRecord, read_record
from fourminutes.train import run_sweep

STEPS = 5  # of a trial: one epoch
TUNING = {"points": 3, "budget": 4, "factor": 4, "tune_images": 9, "final_seeds": 2}
TRIAL = RUN | {"epochs": 1, "schedule": {"base_rate": 1.0}, "batch": {"global_batch": 16, "per_device": 8}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("sweep")) as made:
        yield made


def sweep_plan(bench: Bench, name: str, *, tuning: dict[str, Any] = TUNING, **changes: Any) -> Plan:
    """A plan of a tuned sweep, and of one that takes its rate over at twice the batch."""
    doubled = TRIAL | {"batch": {"global_batch": 32, "per_device": 8}}
    raw = {
        "name": name,
        "data": DATA,
        "tuning": tuning,
        "sweeps": {
            "tuned": {"start": 0.5, "run": TRIAL} | changes,
            "doubled": {"scaled_from": "tuned", "run": doubled},
        },
    }
    bench.path(name).write_text(yaml.safe_dump(raw))
    plan = load_plan(bench.path(name))
    plan.manifest.parent.mkdir(parents=True, exist_ok=True)
    plan.manifest.write_text(bench.manifest.model_dump_json())
    return plan


def made(plan: Plan, name: str = "tuned") -> SweepRecord:
    ledger = run_sweep(plan, name)
    assert ledger is not None
    assert ledger == read_record(plan.sweep_record(name), SweepRecord)
    return ledger


@pytest.fixture(scope="module")
def undisturbed(bench) -> SweepRecord:
    return made(sweep_plan(bench, "undisturbed"))


def without_times(ledger: SweepRecord) -> list[dict[str, Any]]:
    return [trial.model_dump(exclude={"wall_s"}) for trial in ledger.trials]


def test_the_ledger_holds_every_trial(undisturbed):
    purposes = [trial.purpose for trial in undisturbed.trials]
    assert purposes == ["tune"] * 4 + ["final"] * 2
    assert [trial.value for trial in undisturbed.trials[:3]] == [0.5, 2, 8]
    finals = undisturbed.trials[4:]
    assert {trial.value for trial in finals} == {undisturbed.chosen}
    assert [trial.seed for trial in finals] == [0, 1]
    assert undisturbed.val_images == 19
    assert undisturbed.steps_per_epoch == STEPS
    # 19 bits and a zero to fill the last digit
    assert all(len(trial.hits) == 5 and int(trial.hits, 16) % 2 == 0 for trial in undisturbed.trials)


def test_a_stopped_sweep_goes_on_after_its_last_finished_trial(bench, undisturbed):
    plan = sweep_plan(bench, "stopped")
    with signal_after_step(2 * STEPS + 2, signal.SIGTERM), pytest.raises(Interrupted, match="finished trials are kept"):
        run_sweep(plan, "tuned")
    assert not plan.sweep_record("tuned").exists()
    kept = read_record(plan.sweep_ledger("tuned"), SweepRecord).trials
    assert len(kept) == 2
    ledger = made(plan)
    assert ledger.trials[:2] == kept
    assert without_times(ledger) == without_times(undisturbed)


def test_a_start_that_adds_no_trial_leaves_the_record_of_where_they_were_made(bench):
    """Snakemake removes a job's outputs first: the growing ledger has to tell."""
    plan = sweep_plan(bench, "kept-as-made")
    made(plan)
    ledger = json.loads(plan.sweep_ledger("tuned").read_text())
    ledger["provenance"]["written"] = "2026-01-01T00:00:00+00:00"
    plan.sweep_ledger("tuned").write_text(json.dumps(ledger))
    plan.sweep_record("tuned").unlink()
    assert made(plan).provenance.written == "2026-01-01T00:00:00+00:00"
    larger = sweep_plan(bench, "kept-as-made", tuning=TUNING | {"final_seeds": 3})
    assert made(larger).provenance.written != "2026-01-01T00:00:00+00:00"


def test_a_larger_budget_adds_trials_and_repeats_none(bench, undisturbed):
    before = made(sweep_plan(bench, "larger"))
    after = made(sweep_plan(bench, "larger", tuning=TUNING | {"final_seeds": 3}))
    assert after.trials[:-1] == before.trials
    assert (after.trials[-1].purpose, after.trials[-1].seed) == ("final", 2)


def test_a_larger_grid_keeps_the_trials_whose_turn_has_not_come_again(bench):
    """One more tuning trial comes before the final ones; stopped after it, those are still there."""
    before = made(sweep_plan(bench, "kept"))
    plan = sweep_plan(bench, "kept", tuning=TUNING | {"budget": 6})
    with signal_after_step(STEPS + 2, signal.SIGTERM), pytest.raises(Interrupted):
        run_sweep(plan, "tuned")
    after = read_record(plan.sweep_ledger("tuned"), SweepRecord).trials
    assert len(after) == len(before.trials) + 1
    assert all(trial in after for trial in before.trials)


def test_a_value_that_the_grid_would_reach_too_late_is_refused_at_once(bench):
    with pytest.raises(UserError, match=r"optimizer\.momentum cannot be 1\.6"):
        run_sweep(sweep_plan(bench, "late", key="optimizer.momentum", start=0.1), "tuned")


def test_trials_of_another_recipe_are_made_again(bench):
    before = made(sweep_plan(bench, "changed"))
    after = made(sweep_plan(bench, "changed", run=TRIAL | {"label_smoothing": 0.0}))
    assert not {trial.settings_hash for trial in before.trials} & {trial.settings_hash for trial in after.trials}


def test_a_ledger_from_before_a_plan_had_some_key_is_gone_on_with(bench):
    """What was trained then is what its default trains now, though hashes of settings differ."""
    plan = sweep_plan(bench, "older")
    made(plan)
    written = json.loads(plan.sweep_record("tuned").read_text())
    del written["settings"]["cuda_graph"]
    for number, trial in enumerate(written["trials"]):
        trial["settings_hash"], trial["wall_s"] = "of then", float(number)
    plan.sweep_record("tuned").write_text(json.dumps(written))
    plan.sweep_ledger("tuned").unlink()
    assert [trial.wall_s for trial in made(plan).trials] == list(range(6))


def test_a_rate_is_taken_over_in_proportion_to_the_batch(bench, undisturbed):
    ledger = made(sweep_plan(bench, "undisturbed"), "doubled")
    assert undisturbed.chosen is not None
    assert ledger.chosen == 2 * undisturbed.chosen
    assert ledger.chosen_from == "tuned"
    assert [trial.purpose for trial in ledger.trials] == ["final"] * 2


def test_a_rate_that_is_not_tuned_yet_cannot_be_taken_over(bench):
    with pytest.raises(
        UserError, match=r"results/early/sweeps/tuned\.json: no such record yet; make the sweep 'tuned' first"
    ):
        run_sweep(sweep_plan(bench, "early"), "doubled")


def test_a_trial_that_diverges_is_in_the_ledger_without_a_hit(bench):
    run = TRIAL | {"optimizer": {"kind": "sgd"}, "max_skipped_steps": 2}
    ledger = made(sweep_plan(bench, "diverged", start=1e28, run=run))
    assert all(trial.diverged and int(trial.hits, 16) == 0 for trial in ledger.trials)
    assert {trial.train_loss for trial in ledger.trials} == {None}


def test_any_key_can_be_swept(bench):
    ledger = made(sweep_plan(bench, "momentum", key="optimizer.momentum", start=0.01))
    assert [trial.value for trial in ledger.trials[:3]] == [0.01, 0.04, 0.16]


def test_a_grid_does_not_grow_beyond_what_a_run_can_have(bench):
    """Global batches from 8, which one forward pass takes, to 64: 128 is more than there are pictures."""
    tuning = TUNING | {"points": 3, "budget": 6, "factor": 2}
    ledger = made(sweep_plan(bench, "bounded", key="batch.global_batch", start=16, tuning=tuning))
    tuned = [trial for trial in ledger.trials if trial.purpose == "tune"]
    assert len(tuned) == 6
    assert {trial.value for trial in tuned} <= {8, 16, 32, 64}


def test_half_precision_says_what_it_flushes(bench):
    ledger = made(sweep_plan(bench, "half", run=TRIAL | {"precision": "half-lars"}))
    assert all(trial.flushed_percent is not None and 0 <= trial.flushed_percent <= 100 for trial in ledger.trials)


def test_an_unknown_sweep_and_too_many_tuning_pictures_are_refused(bench):
    with pytest.raises(UserError, match="has no sweep 'tunde'; it has: doubled, tuned"):
        run_sweep(sweep_plan(bench, "unknown"), "tunde")
    with pytest.raises(UserError, match=r"tune_images 19 leaves none of the 19"):
        run_sweep(sweep_plan(bench, "greedy", tuning=TUNING | {"tune_images": 19}), "tuned")


def test_the_ledger_grows_outside_of_the_results(bench):
    """Snakemake deletes the outputs of a job that is interrupted."""
    assert not sweep_plan(bench, "paths").sweep_ledger("tuned").is_relative_to("results")
