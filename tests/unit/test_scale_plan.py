"""The planner: rows are the simulator's own, limits have reasons, and money, energy and knees are as by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fourminutes.cli import app
from fourminutes.errors import UserError
from fourminutes.plan import ReducePlan
from fourminutes.plan.recipes import read_recipes
from fourminutes.scale.answers import Answer, Row
from fourminutes.scale.catalogue import CATALOGUE, ENDS, Catalogue, End, figures, read_catalogue
from fourminutes.scale.clusters import (
    Cluster,
    Task,
    compute_on,
    energy_kwh,
    images_per_s,
    minutes_of,
    money_of,
    network_of,
    step_of,
)
from fourminutes.scale.knee import knee_at
from fourminutes.scale.limits import budgets, layers, memory_gib, most_images
from fourminutes.scale.network import Fastest
from fourminutes.scale.plan_tables import nearest_missing, smallest_reaching, sort_key
from fourminutes.scale.planner import Question, plan_clusters
from fourminutes.scale.step import simulate_step

ROOT = Path(__file__).resolve().parents[2]
HARDWARE: Catalogue = read_catalogue(ROOT / CATALOGUE)
RAW: dict[str, Any] = yaml.safe_load((ROOT / CATALOGUE).read_text())


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def question(**changes: Any) -> Question:
    model = changes.get("model", "resnet50")
    asked = Question(
        model=model,
        precision="half",
        target_minutes=10,
        devices=("P40", "H200"),
        networks=("roce-100", "infiniband-400"),
        max_devices=4096,
        budgets=budgets(read_recipes(), model),
        prices={"P40": 0.5},
    )
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def answer() -> Answer:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return plan_clusters(HARDWARE, question(), "hardware.yaml")


def row(answer: Answer, device: str, devices: int, network: str | None) -> Row:
    return next(one for one in answer.rows if (one.device, one.devices, one.network) == (device, devices, network))


# --- agreement with the simulator -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "devices", "network"),
    [("P40", 1, None), ("P40", 1024, "roce-100"), ("H200", 8, None), ("H200", 64, "infiniband-400")],
)
def test_a_row_is_the_simulators_step(answer: Answer, device: str, devices: int, network: str | None) -> None:
    one = row(answer, device, devices, network)
    task = Task("resnet50", "half", one.batch, one.epochs, one.bucket_mib)
    ends: list[tuple[End, float]] = [("fast", one.step_s.low), ("middle", one.step_s.value), ("slow", one.step_s.high)]
    for end, expected in ends:
        step = simulate_step(
            compute_on(HARDWARE, device, task, one.per_device, end),
            ReducePlan(wire="fp16", bucket_mib=one.bucket_mib, lanes=1),
            Fastest(network_of(HARDWARE, Cluster(device, devices, network), end), ("ring", "hierarchical", "torus")),
            devices,
            8,
        )
        assert step.total_s == expected


def test_one_device_alone_has_its_catalogued_rate() -> None:
    task = Task("resnet50", "half", 256, 44)
    alone = compute_on(HARDWARE, "H200", task, 256, "middle")
    assert 256 / alone.total_s == pytest.approx(7196)


def test_the_rate_with_32_images_is_what_was_measured_with_32() -> None:
    # README: 4,456 images/s at 32 a device, from which the curve's constant was worked out.
    assert images_per_s(HARDWARE, "H200", "resnet50", "half", 32, "middle") == pytest.approx(4456, rel=0.002)


def test_the_papers_clusters_lie_within_their_intervals(answer: Answer) -> None:
    """6.6 minutes with 2,048 P40 after 90 epochs; the planner takes a recipe of 89."""
    one = row(answer, "P40", 2048, "roce-100")
    assert one.epochs == 89
    assert one.minutes.low <= 6.6 <= one.minutes.high


# --- intervals and order --------------------------------------------------------------------------------------------


def test_intervals_hold_their_values(answer: Answer) -> None:
    assert answer.rows
    for one in answer.rows:
        for what in (one.step_s, one.images_per_s, one.efficiency_percent, one.minutes, one.energy_kwh, one.money):
            assert what is None or what.low <= what.value <= what.high
        assert one.minutes.low < one.minutes.high


@pytest.mark.parametrize("model", ["resnet50", "alexnet_bn"])
@pytest.mark.parametrize("device", HARDWARE.devices)
def test_every_device_can_be_planned_for(model: str, device: str) -> None:
    asked = question(model=model, devices=(device,), networks=("roce-100",), max_devices=16)
    found = plan_clusters(HARDWARE, asked, "hardware.yaml")
    assert [one.devices for one in found.rows] == [1, 2, 4, 8, 16]
    assert all(0 < one.minutes.low < one.minutes.high < math.inf for one in found.rows)


@pytest.mark.parametrize("device", HARDWARE.devices)
@pytest.mark.parametrize("end", ENDS)
def test_a_doubled_network_never_makes_a_step_slower(device: str, end: End) -> None:
    slow = HARDWARE.networks["ethernet-25"]
    twice = slow.model_copy(update={"gbit_s": 2 * slow.gbit_s})
    both = HARDWARE.model_copy(update={"networks": {"slow": slow, "fast": twice}})
    for devices in (16, 128, 1024):
        for bucket_mib in (8.0, 1024.0):
            task = Task("resnet50", "half", 32 * devices, 44, bucket_mib)
            before, after = (step_of(both, Cluster(device, devices, name), task, end) for name in ("slow", "fast"))
            assert after.total_s <= before.total_s


def test_sure_is_what_reaches_the_goal_at_the_slow_end_too(answer: Answer) -> None:
    words = {"surely": lambda one: one.high, "likely": lambda one: one.value, "perhaps": lambda one: one.low}
    assert {one.reaches for one in answer.rows} >= {"surely", "likely", "no"}
    for one in answer.rows:
        expected = next((word for word, of in words.items() if of(one.minutes) <= 10), "no")
        assert one.reaches == expected


def test_the_smallest_that_reaches_the_goal_is_listed_and_half_of_it_does_not(answer: Answer) -> None:
    found = smallest_reaching(answer)
    assert found
    for one in found:
        assert one.minutes.value <= 10
        smaller = [other for other in answer.rows if (other.device, other.devices) == (one.device, one.devices // 2)]
        assert all(other.minutes.value > 10 for other in smaller if other.network in (one.network, None))
    assert not {(one.device, one.network) for one in found} & {
        (one.device, one.network) for one in nearest_missing(answer)
    }


def test_rows_without_a_price_come_last_by_money(answer: Answer) -> None:
    ordered = sorted(answer.rows, key=sort_key("money"))
    priced = [one.money.value for one in ordered if one.money]
    assert priced == sorted(priced)
    assert [one.device for one in ordered] == ["P40"] * len(priced) + ["H200"] * (len(ordered) - len(priced))


# --- limits ---------------------------------------------------------------------------------------------------------


def test_more_devices_than_the_largest_batch_feeds_are_refused_with_the_reason(answer: Answer) -> None:
    reasons = {(one.device, one.devices): one.reason for one in answer.refused}
    expected = "batch: 4,096 devices x 32 would be a batch of 131,072, the largest with a recipe is 65,536"
    assert reasons == {("P40", 4096): expected, ("H200", 4096): expected}
    assert max(one.devices for one in answer.rows) == 2048


def test_a_device_too_small_is_refused_with_what_it_needs() -> None:
    memory = HARDWARE.devices["P40"].memory_gib.model_copy(update={"value": 2.0})
    tiny = HARDWARE.devices["P40"].model_copy(update={"memory_gib": memory})
    catalogue = HARDWARE.model_copy(update={"devices": {"tiny": tiny}})
    found = plan_clusters(catalogue, question(devices=("tiny",)), "x")
    needed = memory_gib("resnet50", "half", 32, 1.5)
    assert not found.rows
    assert [one.reason for one in found.refused] == [f"memory: 32 images need {needed:.3g} GiB, it has 2"]


def test_memory_by_hand() -> None:
    parameters, moved = 25_557_032, sum(layer.moved for layer in layers("resnet50"))
    assert memory_gib("resnet50", "half", 64, 1.5) == pytest.approx((14 * parameters + 2 * 64 * moved) / 2**30 + 1.5)
    assert memory_gib("resnet50", "fp32", 64, 1.5) == pytest.approx((16 * parameters + 4 * 64 * moved) / 2**30 + 1.5)


@pytest.mark.parametrize("device", HARDWARE.devices)
def test_the_most_images_fit_and_eight_more_do_not(device: str) -> None:
    most, room = most_images(HARDWARE, device, "resnet50", "half"), HARDWARE.devices[device].memory_gib.value
    assert memory_gib("resnet50", "half", most, 1.5) <= room
    assert most == 512 or memory_gib("resnet50", "half", most + 8, 1.5) > room


def test_every_row_keeps_its_limits(answer: Answer) -> None:
    for one in answer.rows:
        assert one.batch == one.devices * one.per_device <= 65_536
        assert one.per_device >= 32
        assert one.memory_gib <= HARDWARE.devices[one.device].memory_gib.value


def test_epochs_grow_with_the_batch() -> None:
    assert [(one.batch, one.epochs) for one in budgets(read_recipes(), "resnet50")] == [
        (8192, 44),
        (32768, 74),
        (65536, 89),
    ]
    assert [(one.batch, one.epochs) for one in budgets(read_recipes(), "alexnet_bn")] == [(65536, 95)]


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_time_money_and_energy_by_hand() -> None:
    # 90 epochs at 1,281,167 images/s are 90 s, and 10 % more.
    assert minutes_of(90, 1_281_167, 0.1) == pytest.approx(1.65)
    assert money_of(2.5, 16, 30) == pytest.approx(20)
    # 16 x 250 W and 2 x 500 W for half an hour.
    assert energy_kwh(250, 16, 500, 2, 30) == pytest.approx(2.5)


def test_a_rows_money_and_energy_are_those_of_its_time(answer: Answer) -> None:
    one = row(answer, "P40", 16, "roce-100")
    assert one.money is not None
    assert one.money.value == pytest.approx(0.5 * 16 * one.minutes.value / 60)
    assert one.money.high == pytest.approx(0.5 * 16 * one.minutes.high / 60)
    # 250 W at 85 %, and 700 W a node of eight.
    assert one.energy_kwh.value == pytest.approx((16 * 250 * 0.85 + 2 * 700) * one.minutes.value / 60_000)
    assert row(answer, "H200", 8, None).money is None


def test_the_knee_by_hand() -> None:
    # Doubling gives 2, 1.67, 1.5 and 1.9 times: the first below 1.6 counts.
    assert knee_at([1, 2, 4, 8, 16], [100, 50, 30, 20, 10.5]) == 2
    assert knee_at([1, 2, 4], [100, 55, 30]) == 2
    assert knee_at([1, 2], [100, 100]) == 0


def test_what_one_more_doubling_buys(answer: Answer) -> None:
    knee = next(one for one in answer.knees if (one.device, one.network) == ("P40", "roce-100"))
    here, after = (row(answer, "P40", devices, "roce-100") for devices in (knee.devices, 2 * knee.devices))
    assert (knee.minutes, knee.doubled_minutes) == (here.minutes.value, after.minutes.value)
    assert knee.speedup == pytest.approx(here.minutes.value / after.minutes.value)
    assert knee.cost_factor == pytest.approx(2 * after.minutes.value / here.minutes.value)
    assert "44 to 74 epochs" in knee.why


# --- the catalogue --------------------------------------------------------------------------------------------------


def test_every_figure_of_the_catalogue_has_a_source_and_what_is_a_judgement_is_unconfirmed() -> None:
    found = figures(HARDWARE)
    assert len(found) > 90
    for place, figure in found:
        assert figure.source in HARDWARE.sources, place
        if figure.source in ("MEMORY", "SHEET"):
            assert figure.certainty == "unconfirmed", place


def test_the_rates_that_rows_stand_on_say_what_they_are() -> None:
    few = ("--network", "roce-100", "--max-devices", "1", "--json")
    told = {one.device: one for one in Answer.model_validate_json(ask(*few).stdout).rates}
    assert (told["H200"].value, told["H200"].basis) == (7196, "measured")
    assert (told["P40"].value, told["P40"].basis) == (218, "published")
    assert told["P100"].basis == "remembered"
    for one in Answer.model_validate_json(ask("--model", "alexnet_bn", *few).stdout).rates:
        assert (one.basis, one.certainty) == ("predicted", "unconfirmed")
        assert one.low < one.value < one.high
        assert one.value == images_per_s(HARDWARE, one.device, "alexnet_bn", "half", one.batch, "middle")


def test_no_price_is_made_up() -> None:
    assert {one.price_hour for one in HARDWARE.devices.values()} == {None}


def broken(tmp_path: Path, change: Any) -> str:
    raw = json.loads(json.dumps(RAW))
    change(raw)
    path = tmp_path / "hardware.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as caught:
        read_catalogue(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_what_is_wrong_with_a_catalogue_is_named(tmp_path: Path) -> None:
    p40 = "devices.P40"
    said = broken(tmp_path, lambda raw: raw["devices"]["P40"].update(board_watt=3))
    assert said == f"{p40}.board_watt: unknown key; did you mean 'board_w'?"
    said = broken(tmp_path, lambda raw: raw["devices"]["P40"].pop("memory_gib"))
    assert said == f"{p40}.memory_gib: is required"
    said = broken(tmp_path, lambda raw: raw["devices"]["P40"].update(node="pci"))
    assert said == f"file: {p40}.node: 'pci' is not in the file; did you mean 'pcie'?"
    said = broken(tmp_path, lambda raw: raw["devices"]["P40"]["half"].update(source="NOTE2"))
    assert said == f"file: {p40}.half.source: 'NOTE2' is not in the file; did you mean 'NOTES2'?"
    said = broken(tmp_path, lambda raw: raw["devices"]["P40"]["half"].update(low=300))
    assert said == f"{p40}.half: value 218 is not within low 300 and high 229"


# --- the command ----------------------------------------------------------------------------------------------------


def ask(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["scale", "plan", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "H2000"), "device 'H2000': is not known; did you mean 'H200'?"),
        (("--network", "roce-10"), "did you mean 'roce-100'?"),
        (("--model", "resnet5"), "model 'resnet5': is not known; did you mean 'resnet50'?"),
        (("--target-minutes", "0"), "--target-minutes 0: must be greater than 0"),
        (("--target-minutes", "nan"), "must be greater than 0"),
        (("--epochs", "-1"), "--epochs -1: must be greater than 0"),
        (("--catalogue", "no.yaml"), "no.yaml: no such file"),
        (("--price", "P40=x"), "--price P40=x: is not DEVICE=PRICE"),
        (("--price", "X1=3"), "--price: device 'X1': is not known"),
        (("--batch", "131072"), "the largest with a recipe is 65,536"),
        (("--out", "x.txt"), "is no JSON file"),
        (("--what-if", "config/plans/paper.yaml"), "has no runs"),
    ],
)
def test_bad_input_is_named(arguments: tuple[str, ...], said: str) -> None:
    result = ask(*arguments)
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


def test_the_answer_on_the_screen_and_as_a_record(tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    few = ("--device", "h200", "--network", "infiniband-400", "--max-devices", "32", "--price", "H200=3")
    shown = ask(*few, "--out", str(out))
    assert shown.exit_code == 0, shown.exception
    assert "8,192 = 16 x 512" in shown.stdout
    assert "measured" in shown.stdout
    written = Answer.model_validate_json(out.read_text())
    assert Answer.model_validate_json(ask(*few, "--json").stdout) == written
    assert [one.devices for one in written.rows] == [1, 2, 4, 8, 16, 32]
    assert all(one.money and math.isfinite(one.money.value) for one in written.rows)


def test_without_a_price_money_is_empty_and_said_so() -> None:
    shown = ask("--device", "H200", "--network", "roce-100", "--max-devices", "16")
    assert "No price is known for H200" in shown.stdout


def test_given_epochs_and_batch_take_the_recipes_place() -> None:
    given = ("--device", "P40", "--network", "roce-100", "--epochs", "10", "--batch", "131072", "--json")
    found = Answer.model_validate_json(ask(*given).stdout)
    assert {one.epochs for one in found.rows} == {10}
    assert max(one.batch for one in found.rows) == 131_072


def test_a_batch_that_was_asked_for_bounds_the_devices() -> None:
    found = ask("--device", "P40", "--network", "roce-100", "--batch", "256", "--json")
    answer = Answer.model_validate_json(found.stdout)
    assert max(one.devices for one in answer.rows) == 8
    expected = "batch: 16 devices x 32 would be a batch of 512, the largest asked for is 256"
    assert [one.reason for one in answer.refused] == [expected]


def test_a_price_of_a_device_may_use_its_short_name_where_only_one_has_it() -> None:
    found = ask("--device", "H100-SXM", "--network", "roce-100", "--max-devices", "1", "--price", "H100=3", "--json")
    (one,) = Answer.model_validate_json(found.stdout).rows
    assert one.money is not None
