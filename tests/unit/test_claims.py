"""What sweeps say of claims: the verdicts, and what is shown of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweep_records import (
    ARMS,
    CLAIMS,
    IMAGES,
    TUNING,
    arm_record,
    diverged_trial,
    hits_of,
    plan_blocks,
    record_arms,
    sweep_record,
    sweep_settings,
    trial,
)

from fourminutes.errors import UserError
from fourminutes.plan import BatchPlan, ClaimPlan, Plan
from fourminutes.record import SweepRecord, packed_hits, write_record
from fourminutes.report import drawing, make_report
from fourminutes.report.arms import Arm, family, read_arms
from fourminutes.report.bootstrap import Estimate, Interval
from fourminutes.report.claims import (
    Comparison,
    Judgement,
    Verdict,
    claim_verdict,
    difference_verdict,
    paired_difference,
)
from fourminutes.report.evidence import gather
from fourminutes.report.figures import BUILDERS
from fourminutes.report.summary import lines
from fourminutes.report.table import Table
from fourminutes.report.tables_claims import claims_table, ledger_table, sweeps_table

REPORTED = IMAGES - TUNING.tune_images


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(claims: dict[str, Any] | None = None) -> Plan:
    raw = {
        "name": "made",
        "data": {"dataset": "made", "source": {"kind": "synthetic"}},
        **plan_blocks(claims),
    }
    return Plan.model_validate_json(json.dumps(raw))


# --- verdicts -------------------------------------------------------------------------------------------------------


def claim(kind: str, margin_points: float) -> ClaimPlan:
    comparisons = [{"arm": "a", "against": "b"}]
    raw = {"statement": "It is so.", "kind": kind, "margin_points": margin_points, "comparisons": comparisons}
    return ClaimPlan.model_validate_json(json.dumps(raw))


@pytest.mark.parametrize(
    ("margin", "low", "high", "verdict"),
    [
        (2, 2.1, 4, "supported"),
        (2, 2, 4, "unresolved"),  # the lower end is the margin itself, and no more
        (2, -1, 2.1, "unresolved"),
        (2, 1, 2, "refuted"),
        (2, -5, -3, "refuted"),
        (0, 0.1, 1, "supported"),
        (0, -1, 1, "unresolved"),
        (0, 0, 0, "refuted"),  # the same in every trial
    ],
)
def test_a_gain_is_judged_by_the_95_percent_interval(margin, low, high, verdict):
    found = Estimate((low + high) / 2, 1, Interval(low, high), Interval(low, high))
    assert difference_verdict(claim("gains", margin), found) == verdict


@pytest.mark.parametrize(
    ("interval_90", "interval_95", "verdict"),
    [
        ((-0.5, 0.5), (-0.6, 0.6), "supported"),
        ((0.2, 0.9), (0.1, 1.1), "supported"),  # two one-sided tests at 5 % look at the 90 % interval
        ((-0.9, -0.2), (-1.1, -0.1), "supported"),
        ((0.2, 1), (0.1, 1.1), "unresolved"),
        ((-3, 3), (-4, 4), "unresolved"),
        ((1.1, 2), (0.9, 2.2), "unresolved"),
        ((1.2, 2), (1.1, 2.2), "refuted"),
        ((-2, -1.2), (-2.2, -1.1), "refuted"),
        ((1.1, 2), (1, 2.2), "unresolved"),
        ((0, 0), (0, 0), "supported"),
    ],
)
def test_equality_is_judged_by_both_intervals(interval_90, interval_95, verdict):
    found = Estimate(sum(interval_95) / 2, 1, Interval(*interval_90), Interval(*interval_95))
    assert difference_verdict(claim("equals", 1), found) == verdict


@pytest.mark.parametrize(
    ("kind", "margin", "asked"),
    [
        ("gains", 0, "better"),
        ("gains", 1, "more than 1 point better"),
        ("gains", 2, "more than 2 points better"),
        ("equals", 1.5, "within ±1.5 points"),
    ],
)
def test_what_a_claim_asks_is_said_in_words(kind, margin, asked):
    assert Judgement("a", claim(kind, margin), ()).asked == asked


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["supported"], "supported"),
        (["supported", "does not apply"], "supported"),
        (["supported", "unresolved"], "unresolved"),
        (["supported", "refuted"], "refuted"),
        (["unresolved", "refuted", "not tested"], "refuted"),
        (["supported", "not tested"], "not tested"),
        (["unresolved", "not tested"], "not tested"),
        (["does not apply", "does not apply"], "does not apply"),
        (["does not apply", "not tested"], "not tested"),
    ],
)
def test_a_claim_holds_if_all_that_counts_holds(verdicts, whole):
    assert claim_verdict([Verdict(verdict) for verdict in verdicts]) == whole


# --- from records ---------------------------------------------------------------------------------------------------


def judged(plan: Plan, name: str) -> Comparison:
    """The only comparison of a claim."""
    (comparison,) = next(each for each in gather(plan).judgements if each.name == name).comparisons
    return comparison


def test_the_difference_is_that_of_the_reported_pictures_and_the_plan_is_borne_out():
    plan = plan_of()
    record_arms(plan)
    gains = judged(plan, "lars-holds")
    assert gains.difference is not None
    assert gains.difference.mean == pytest.approx(100 * (149 + 150 + 147 + 155 - 100 - 104 - 98 - 102) / 4 / REPORTED)
    assert (gains.verdict, gains.seeds) == ("supported", 4)
    assert judged(plan, "half-equals").verdict == "supported"
    assert {each.name: each.verdict for each in gather(plan).judgements} == {
        "lars-holds": "supported",
        "half-equals": "supported",
    }


def test_pictures_that_chose_the_value_count_in_no_accuracy():
    plan = plan_of()
    record = sweep_record("sgd-64", [hits_of(50, 0)] * 4, sweep_settings())
    write_record(plan.sweep_record("sgd-64"), record)
    (arm,) = gather(plan).arms
    assert arm.accuracy is not None
    assert (arm.accuracy.mean, arm.tune_percent(record.trials[-1])) == (0, 100)


def test_seeds_are_paired_whatever_order_they_were_made_in():
    first = [hits_of(0, count) for count in (10, 50, 90, 130)]
    arm = arm_of(sweep_record("a", first, sweep_settings()))
    backwards = [trial("final", 0.2, seed, first[seed]) for seed in (3, 2, 1, 0)]
    difference = paired_difference(arm, arm_of(sweep_record("b", backwards, sweep_settings())))
    assert (difference.mean, difference.standard_error) == (0, 0)


def arm_of(record: SweepRecord) -> Arm:
    return Arm(record.sweep, Path(f"{record.sweep}.json"), record, outdated=False)


@pytest.mark.parametrize(
    ("lost_points", "verdict"), [(24, "supported"), (25, "does not apply")], ids=["lost enough", "lost too little"]
)
def test_a_comparison_that_needs_a_loss_counts_only_where_there_is_one(lost_points, verdict):
    claims = json.loads(json.dumps({"lars-holds": CLAIMS["lars-holds"]}))
    claims["lars-holds"]["comparisons"][0]["only_if"]["points"] = lost_points
    plan = plan_of(claims)
    record_arms(plan)
    # 151 of 201 right on average, against 101.
    comparison = judged(plan, "lars-holds")
    assert comparison.verdict == verdict
    assert "sgd-512 lost 24.9 points to sgd-64" in comparison.remarks
    assert gather(plan).judgements[0].verdict == verdict


@pytest.mark.parametrize(
    ("present", "remark"),
    [
        (("lars-512", "sgd-512"), "no record yet of sgd-64"),
        (("lars-512", "sgd-64"), "no record yet of sgd-512"),
    ],
)
def test_without_a_record_nothing_is_judged(present, remark):
    plan = plan_of()
    record_arms(plan, *present)
    comparison = judged(plan, "lars-holds")
    assert (comparison.verdict, comparison.difference) == ("not tested", None)
    assert remark in comparison.remarks


def test_without_all_seeds_nothing_is_judged():
    plan = plan_of()
    record_arms(plan)
    record = arm_record("lars-512")
    write_record(plan.sweep_record("lars-512"), record.model_copy(update={"trials": record.trials[:-1]}))
    assert judged(plan, "lars-holds").remarks == ("lars-512 lacks 1 seed",)
    assert judged(plan, "lars-holds").verdict == "not tested"


def test_a_plan_that_asks_for_more_seeds_by_now_is_not_judged_by_those_there_are():
    plan = plan_of()
    record_arms(plan)
    more = plan.tuning.model_copy(update={"final_seeds": plan.tuning.final_seeds + 2})
    comparison = judged(plan.model_copy(update={"tuning": more}), "lars-holds")
    assert comparison.verdict == "not tested"
    assert "lars-512 lacks 2 seeds" in comparison.remarks


@pytest.mark.parametrize(
    "other", [{"dataset_hash": "cd" * 32}, {"tuning": TUNING.model_copy(update={"tune_images": 40})}]
)
def test_arms_of_other_pictures_are_not_compared(other):
    plan = plan_of()
    record_arms(plan)
    record_arms(plan, "lars-512", **other)
    comparison = judged(plan, "lars-holds")
    assert comparison.verdict == "not tested"
    assert comparison.remarks == ("lars-512, sgd-512 and sgd-64 are not on the same pictures",)


def test_what_a_reader_must_know_stands_beside_the_verdict():
    plan = plan_of()
    record_arms(plan)
    record_arms(plan, "lars-512", at_edge=True)
    record_arms(plan, "lars-half-512", chosen_from="sgd-64")
    assert judged(plan, "half-equals").remarks == (
        "lars-half-512's value is scaled from sgd-64, not tuned",
        "the plan of lars-half-512 has changed since",
        "lars-512's value ends its grid",
    )


def test_the_arms_of_a_condition_have_their_remarks_too():
    """A reference that is badly tuned would hide what was lost to it."""
    plan = plan_of()
    record_arms(plan)
    record_arms(plan, "sgd-64", at_edge=True)
    assert judged(plan, "lars-holds").remarks[1:] == ("sgd-64's value ends its grid",)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"hits": "xyz"}, "trials.0.hits"),
        ({"seed": 1001, "value": 0.2}, "is there 2 times"),
    ],
)
def test_a_damaged_record_is_named_in_one_line(damage, named):
    plan = plan_of()
    record_arms(plan)
    path = plan.sweep_record("lars-512")
    written = json.loads(path.read_text())
    written["trials"][0] |= damage
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=named) as refusal:
        read_arms(plan)
    assert "\n" not in str(refusal.value)
    assert path.name in str(refusal.value)


def test_unequal_budgets_stand_beside_the_verdict():
    plan = plan_of()
    record_arms(plan)
    record = arm_record("lars-512")
    write_record(plan.sweep_record("lars-512"), record.model_copy(update={"trials": record.trials[1:]}))
    assert judged(plan, "half-equals").remarks == ("tuned with 4 trials against 3",)


def test_diverged_trials_count_as_nothing_right_and_are_told():
    plan = plan_of()
    record_arms(plan)
    finals = [hits_of(40, 150), diverged_trial("final", 0.2, 1), hits_of(40, 150), diverged_trial("final", 0.2, 3)]
    write_record(plan.sweep_record("sgd-512"), sweep_record("sgd-512", finals, ARMS["sgd-512"][0]))
    arm = next(arm for arm in gather(plan).arms if arm.name == "sgd-512")
    assert arm.accuracy is not None
    assert arm.accuracy.mean == pytest.approx(100 * 150 / REPORTED / 2)
    assert "2 of 4 trials of sgd-512 diverged" in judged(plan, "lars-holds").remarks


@pytest.mark.parametrize("images", [52, 53, 55, 56, 251])
def test_hits_are_read_as_training_writes_them(images):
    hits = np.random.default_rng(images).random(images) < 0.5
    record = arm_record("sgd-64", val_images=images)
    written = record.trials[0].model_copy(update={"hits": packed_hits(hits.tolist())})
    assert arm_of(record).hits(written).tolist() == hits.tolist()


def test_hits_of_another_number_of_images_are_named():
    plan = plan_of()
    record_arms(plan, "sgd-64", val_images=IMAGES + 4)
    with pytest.raises(UserError, match=r"sgd-64\.json: trial 0\.2 of seed 0 has 63 digits of hits"):
        make_report(plan)


@pytest.mark.parametrize(("name", "expected"), [("lars-512", "lars"), ("lars-half-512", "lars-half"), ("sgd", "sgd")])
def test_a_family_is_named_by_what_stands_before_the_batch(name, expected):
    assert family(name) == expected


# --- tables ---------------------------------------------------------------------------------------------------------


def rows(table: Table, key: str) -> dict[Any, dict[str, Any]]:
    return {row.cells[key]: row.cells for row in table.rows}


def test_the_table_of_sweeps_holds_the_numbers_worked_out_by_hand():
    plan = plan_of()
    record_arms(plan)
    cells = rows(sweeps_table(gather(plan)), "sweep")["sgd-512"]
    assert (cells["batch"], cells["steps_per_epoch"], cells["optimizer"]) == (512, 3, "SGD")
    assert (cells["tuning_trials"], cells["chosen"], cells["at_edge"], cells["seeds"]) == (4, 0.2, "no", 4)
    assert (cells["tuning_diverged"], cells["final_diverged"], cells["minutes"]) == (1, 0, 4)
    assert cells["top1_percent"] == pytest.approx(100 * 101 / REPORTED)
    assert cells["low_95_percent"] < cells["top1_percent"] < cells["high_95_percent"]


def test_what_fp16_flushed_is_a_mean_over_the_final_trials():
    plan = plan_of()
    finals = [
        trial("final", 0.2, seed, hits_of(0, 9), flushed_percent=share) for seed, share in enumerate((1, 2, 4, 5))
    ]
    write_record(plan.sweep_record("lars-512"), sweep_record("lars-512", finals, ARMS["lars-512"][0]))
    assert rows(sweeps_table(gather(plan)), "sweep")["lars-512"]["flushed_percent"] == 3


def test_a_missing_sweep_leaves_its_row_empty_in_every_table():
    plan = plan_of()
    record_arms(plan, "sgd-64")
    assert set(rows(sweeps_table(gather(plan)), "sweep")["sgd-512"]) == {"sweep", "description"}
    assert rows(ledger_table(gather(plan)), "sweep")["sgd-512"] == {"sweep": "sgd-512"}
    assert "No record yet: sgd-512, lars-512, lars-half-512." in sweeps_table(gather(plan)).notes
    cells = rows(claims_table(gather(plan)), "claim")["half-equals"]
    assert "difference_points" not in cells
    assert cells["remarks"] == "no record yet of lars-half-512 and lars-512"


def test_a_sweep_of_other_settings_than_the_plans_is_named():
    plan = plan_of()
    record_arms(plan)
    write_record(plan.sweep_record("sgd-64"), sweep_record("sgd-64", [hits_of(0, 9)] * 4, sweep_settings(128)))
    assert any(note.endswith("changed since: sgd-64.") for note in sweeps_table(gather(plan)).notes)


def test_the_ledger_holds_every_trial():
    plan = plan_of()
    record_arms(plan)
    table = ledger_table(gather(plan))
    assert len(table.rows) == len(ARMS) * 8
    first, *_, last = (row.cells for row in table.rows)
    assert (first["purpose"], first["value"], first["seed"], first["tune_percent"]) == ("tune", 0.1, 1000, 40)
    assert (last["purpose"], last["report_percent"], last["diverged"]) == ("final", 100 * 153 / REPORTED, "no")
    assert sum(row.cells["diverged"] == "yes" for row in table.rows) == len(ARMS)


def test_the_table_of_claims_tells_numbers_to_programs_and_statements_to_people():
    plan = plan_of()
    record_arms(plan)
    table = claims_table(gather(plan))
    cells = rows(table, "claim")["lars-holds"]
    assert cells["arm_percent"] - cells["against_percent"] == pytest.approx(cells["difference_points"])
    assert cells["low_95_points"] < cells["low_90_points"] < cells["difference_points"] < cells["high_90_points"]
    assert (cells["verdict"], cells["claim_verdict"]) == ("supported", "supported")
    statement = CLAIMS["lars-holds"]["statement"]
    assert f"lars-holds, supported: {statement} Asked: more than 1 point better, in every row" in table.markdown()
    assert "claim_verdict" in table.csv().splitlines()[0]


# --- figures and page -----------------------------------------------------------------------------------------------


def drawn(name: str, plan: Plan) -> Any:
    with drawing.mpl.rc_context(fname=str(drawing.STYLE)):
        return BUILDERS[name](gather(plan))


def test_accuracy_is_drawn_over_the_batch_with_its_interval():
    plan = plan_of()
    record_arms(plan)
    (axes,) = drawn("batch-size", plan).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64\n25", "512\n3"]
    # The two arms that were tried with LARS at one of its batches are in the table alone.
    (sgd,) = axes.containers
    arms = {arm.name: arm.accuracy for arm in gather(plan).arms}
    assert list(sgd.lines[0].get_ydata()) == [arms["sgd-64"].mean, arms["sgd-512"].mean]
    (bars,) = sgd.lines[2]
    for segment, name in zip(bars.get_segments(), ("sgd-64", "sgd-512"), strict=True):
        assert segment[:, 1] == pytest.approx([arms[name].interval_95.low, arms[name].interval_95.high])


def test_an_arm_at_a_batch_of_its_own_is_drawn_beside_the_lines():
    plan = plan_of()
    record_arms(plan)
    alone = ARMS["lars-512"][0].model_copy(update={"batch": BatchPlan(global_batch=256, per_device=32)})
    write_record(plan.sweep_record("lars-512"), sweep_record("lars-512", [hits_of(0, 9)] * 4, alone))
    figure = drawn("batch-size", plan)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sgd", "lars"]


def test_every_family_has_its_panel_of_tuning_with_the_choice_ringed_and_failures_crossed():
    plan = plan_of()
    record_arms(plan)
    panels = {axes.get_title(loc="left"): axes for axes in drawn("tuning", plan).axes}
    assert set(panels) == {"sgd", "lars", "lars-half"}
    ringed = [line for line in panels["sgd"].get_lines() if line.get_fillstyle() == "none"]
    # 80 and 60 % on the choosing pictures by two seeds.
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ringed] == [(0.2, 70), (0.2, 70)]
    crosses = [line for line in panels["sgd"].get_lines() if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(0.4, 0), (0.4, 0)]


def test_a_tuning_without_failures_is_drawn_and_laid_out():
    plan = plan_of()
    record = arm_record("sgd-64")
    survived = tuple(trial for trial in record.trials if not trial.diverged)
    write_record(plan.sweep_record("sgd-64"), record.model_copy(update={"trials": survived}))
    # A layout that does not come out warns, and warnings are errors here.
    drawing.draw(BUILDERS["tuning"], gather(plan))
    (axes,) = drawn("tuning", plan).axes
    assert not [line for line in axes.get_lines() if line.get_marker() == "x"]


def test_the_page_shows_verdicts_in_words_and_the_summary_counts_them():
    plan = plan_of()
    record_arms(plan)
    page = make_report(plan).read_text()
    assert page.count("<strong>supported</strong>") == 2
    assert CLAIMS["half-equals"]["statement"] in page
    assert 'id="sweep-lars-half-512"' in page
    assert lines(gather(plan))["Claims"] == (
        "4 sweeps are recorded, with 32 trials in 16:00 (1 process, 1 host, Some CPU <2.4 GHz> (2 cores)). "
        "Of 2 claims 2 are supported (lars-holds, half-equals)."
    )


def test_with_nothing_recorded_every_claim_is_untested_and_all_is_drawn():
    plan = plan_of()
    page = make_report(plan).read_text()
    assert page.count("<strong>not tested</strong>") == 2
    assert "No sweep has been recorded yet" in (plan.results / "figures/batch-size.svg").read_text()
    assert "No sweep has been recorded yet" in (plan.results / "figures/tuning.svg").read_text()
    assert lines(gather(plan))["Claims"] == "Of 2 claims 2 are not tested (lars-holds, half-equals)."
