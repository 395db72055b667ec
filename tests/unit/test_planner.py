"""The planner: its answers are the simulator's, its limits have reasons, its arithmetic is by hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fourminutes.errors import UserError
from fourminutes.scale.catalogue import DEFAULT, Catalogue, Span, priced, read_catalogue
from fourminutes.scale.clusters import (
    IMAGES,
    Cluster,
    Estimate,
    Training,
    Workload,
    compute_on,
    layers,
    network_of,
    rate_of,
    reduce_of,
    train_on,
)
from fourminutes.scale.limits import LEAST_IMAGES, Schedule, memory_gib, most_images, schedules_of
from fourminutes.scale.plan_table import plan_text
from fourminutes.scale.planner import Goal, plan_purchase
from fourminutes.scale.step import simulate_step

FOURMINUTES = Path(sys.executable).with_name("fourminutes")
RESNET, ALEXNET = Workload("resnet50", "half"), Workload("alexnet_bn", "half")
FULL = Schedule("mlperf-64k", 65_536, 89)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return read_catalogue(DEFAULT)


def certain(**changes: object) -> Catalogue:
    """The catalogue without a spread, anything beside training, or a loss with small batches."""
    exact = Span(value=0, certainty="unconfirmed", source="JUDGEMENT")
    return read_catalogue(DEFAULT).model_copy(
        update={"spread": exact, "other_share": exact, "half_rate_images": exact, **changes}
    )


# --- one cluster ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [RESNET, ALEXNET], ids=["resnet50", "alexnet_bn"])
@pytest.mark.parametrize(
    ("device", "count", "network"), [("P40", 1024, "100g"), ("V100", 64, "10g"), ("H200", 8, "25g")]
)
def test_answers_are_the_simulators(
    catalogue: Catalogue, work: Workload, device: str, count: int, network: str
) -> None:
    cluster = Cluster(device, count, network)
    training = train_on(cluster, FULL, 64, work, catalogue)
    compute = compute_on(device, 64, training.passes, work, catalogue, "value")
    step = simulate_step(compute, reduce_of(work, training.bucket_mib), network_of(cluster, catalogue, "value"), count)
    batch = 64 * training.passes * count
    assert training.images_s.value == pytest.approx(batch / step.total_s)
    assert training.efficiency_percent.value == step.efficiency_percent
    seconds = 89 * IMAGES / batch * step.total_s * (1 + catalogue.other_share.value)
    assert training.minutes.value == pytest.approx(seconds / 60)


def test_one_device_trains_at_its_rate_by_hand() -> None:
    training = train_on(Cluster("P40", 1, "100g"), FULL, 64, RESNET, certain())
    assert training.passes == 1024
    assert training.minutes.value == pytest.approx(89 * 1_281_167 / 218 / 60)
    assert (training.minutes.low, training.minutes.high) == pytest.approx(
        (89 * 1_281_167 / 229 / 60, 89 * 1_281_167 / 207 / 60)
    )
    assert training.efficiency_percent.value == 100


def test_energy_and_money_by_hand() -> None:
    catalogue = priced(certain(), {"P40": 0.5})
    training = train_on(Cluster("P40", 8, "100g"), FULL, 64, RESNET, catalogue)
    hours = training.minutes.value / 60
    assert training.money is not None
    assert training.money.value == pytest.approx(8 * 0.5 * hours)
    assert training.kwh.value == pytest.approx(8 * 0.250 * 1.4 * hours)


def test_without_a_price_there_is_no_money(catalogue: Catalogue) -> None:
    assert train_on(Cluster("P40", 8, "100g"), FULL, 64, RESNET, catalogue).money is None


def test_small_batches_are_slower_as_the_catalogue_says(catalogue: Catalogue) -> None:
    assert rate_of("P40", 64, RESNET, catalogue, "value") == 218
    assert rate_of("P40", 32, RESNET, catalogue, "value") == pytest.approx(218 * 32 / 52 * 84 / 64)


def test_a_rate_that_nobody_published_follows_from_arithmetic(catalogue: Catalogue) -> None:
    by_hand = 218 * 4.089184256 / 1.135256096
    assert rate_of("P40", 64, ALEXNET, catalogue, "value") == pytest.approx(by_hand)
    assert rate_of("P40", 64, ALEXNET, catalogue, "worst") < 0.7 * by_hand


@pytest.mark.parametrize("network", ["10g", "25g", "100g"])
def test_a_network_of_twice_the_bandwidth_makes_nothing_slower(catalogue: Catalogue, network: str) -> None:
    kind = catalogue.networks[network]
    twice = kind.model_copy(update={"gbyte_s": Span(value=2 * kind.gbyte_s.value, certainty="derived", source="ABS")})
    faster = catalogue.model_copy(update={"networks": {network: twice}})
    cluster = Cluster("V100", 256, network)
    slow, fast = (train_on(cluster, FULL, 256, ALEXNET, one).minutes.value for one in (catalogue, faster))
    assert fast <= slow


def test_every_device_can_be_planned_for_both_networks_and_its_interval_holds_what_is_expected(
    catalogue: Catalogue,
) -> None:
    for name, device in catalogue.devices.items():
        for form in device.rates:
            for work in (Workload("resnet50", form), Workload("alexnet_bn", form)):
                found = train_on(Cluster(name, 16, "100g"), FULL, 32, work, catalogue)
                for one in (found.minutes, found.images_s, found.kwh):
                    assert one.low <= one.value <= one.high


# --- limits ---------------------------------------------------------------------------------------------------------


def test_memory_by_hand() -> None:
    parameters, moved = 25_557_032, sum(layer.moved for layer in layers("resnet50"))
    assert memory_gib(layers("resnet50"), 64, "half") == pytest.approx(
        1.3 * (16 * parameters + 64 * 2 * moved / 2) / 2**30
    )


def test_a_v100_holds_what_is_known_to_fit_it(catalogue: Catalogue) -> None:
    # NVIDIA's ResNet-50 trains with 256 images on its 16 GiB in mixed precision, and with 128 in single.
    memory = catalogue.devices["V100"].memory_gib
    assert most_images(layers("resnet50"), memory, "half") == 256
    assert most_images(layers("resnet50"), memory, "fp32") == 128


def test_a_device_without_the_memory_says_how_much_it_lacks(catalogue: Catalogue) -> None:
    small = catalogue.devices["P40"].model_copy(update={"memory_gib": 0.5})
    found = plan_purchase(
        Goal(RESNET, 10, networks=("100g",)), catalogue.model_copy(update={"devices": {"tiny": small}})
    )
    assert found[0].why_not == "memory: 8 images need 0.9 GiB, it has 0.5"
    assert found[0].trainings == ()


def test_no_more_devices_than_the_largest_recipes_batch_feeds(catalogue: Catalogue) -> None:
    (line,) = plan_purchase(Goal(RESNET, 0.01, ("P40",), ("100g",), most_devices=100_000), catalogue)
    assert line.trainings[-1].cluster.count == 65_536 // LEAST_IMAGES
    assert line.reaches is None
    assert "16,384 devices would have 4 images each of 65,536" in line.why_not


def test_a_batch_that_no_recipe_reaches_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(UserError, match="--batch 131072: the largest with a recipe for resnet50 is 65536"):
        plan_purchase(Goal(RESNET, 10, batch=131_072), catalogue)


def test_a_network_without_a_recipe_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(UserError, match="has no recipe"):
        plan_purchase(Goal(Workload("resnet_small", "half"), 10), catalogue)


def test_recipes_are_those_of_the_file() -> None:
    assert ("mlperf-64k", 65_536, 89) in [(one.recipe, one.batch, one.epochs) for one in schedules_of("resnet50")]


# --- the whole answer -----------------------------------------------------------------------------------------------


def test_what_reaches_the_goal_is_the_first_that_does(catalogue: Catalogue) -> None:
    for line in plan_purchase(Goal(RESNET, 10), catalogue):
        reaching = [one for one in line.trainings if one.minutes.value <= 10]
        assert line.reaches == (reaching[0] if reaching else None)
        assert bool(line.why_not) == (line.reaches is None)


def test_a_doubling_is_the_next_number_of_devices(catalogue: Catalogue) -> None:
    (line,) = plan_purchase(Goal(RESNET, 10, ("P40",), ("100g",)), catalogue)
    assert line.reaches is not None
    assert line.next is not None
    one, other = line.trainings[-2:]
    assert (one, other.cluster.count) == (line.reaches, 2 * one.cluster.count)
    assert line.next.faster == pytest.approx(one.minutes.value / other.minutes.value)
    assert line.next.cost == pytest.approx(2 * other.minutes.value / one.minutes.value)


def test_the_knee_by_hand(monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue) -> None:
    """Of 1, 2, 4, 8, 16 devices: 100, 50, 40, 22, 20 minutes. The last gain of 1.6 is from 4 to 8."""
    minutes = {1: 100.0, 2: 50.0, 4: 40.0, 8: 22.0, 16: 20.0}
    model = train_on(Cluster("P40", 8, "100g"), FULL, 64, RESNET, catalogue)

    def made_up(cluster: Cluster, *_others: object) -> Training:
        length = minutes[cluster.count]
        return replace(model, cluster=cluster, minutes=Estimate(length, length, length))

    monkeypatch.setattr("fourminutes.scale.planner.train_on", made_up)
    (line,) = plan_purchase(Goal(RESNET, 1, ("P40",), ("100g",), most_devices=16), catalogue)
    assert line.knee is not None
    assert line.knee.cluster.count == 8
    assert line.next is not None
    assert line.next.faster == pytest.approx(1.1)


@pytest.mark.parametrize("sort", ["devices", "minutes", "money", "energy"])
def test_lines_are_sorted_by_what_is_asked(catalogue: Catalogue, sort: str) -> None:
    prices = dict.fromkeys(catalogue.devices, 1.0)
    lines = plan_purchase(Goal(RESNET, 10), priced(catalogue, prices), sort)  # type: ignore[arg-type]
    reached = [line.reaches for line in lines if line.reaches]
    keys = [
        {
            "devices": one.cluster.count,
            "minutes": one.minutes.value,
            "money": one.money.value if one.money else 0,
            "energy": one.kwh.value,
        }[sort]
        for one in reached
    ]
    assert keys == sorted(keys)
    assert [line.reaches is None for line in lines] == sorted(line.reaches is None for line in lines)


def test_the_text_says_what_every_number_stands_on(catalogue: Catalogue) -> None:
    goal = Goal(ALEXNET, 10, ("P40", "P100"), ("100g",))
    text = plan_text(goal, plan_purchase(goal, catalogue), catalogue)
    assert "all numbers are predicted" in text
    assert "P40 218 images/s (confirmed, NOTES2)" in text
    assert "No rate of alexnet_bn is published" in text
    assert "no rate in half is known of it" in text


# --- the catalogue and the command ----------------------------------------------------------------------------------


def test_every_quantity_of_the_catalogue_has_a_source(catalogue: Catalogue) -> None:
    assert {span.source for span in catalogue.spans()} <= catalogue.sources.keys()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory_gib: 24", "memory: 24", "memory_gib"),
        ("inner: pcie3\n", "inner: pcie9\n", "no links 'pcie9'"),
        ("value: 218, low: 207", "value: 218, low: 307", "does not lie between its ends"),
    ],
)
def test_a_broken_catalogue_is_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "hardware.yaml"
    path.write_text(DEFAULT.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        read_catalogue(path)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FOURMINUTES, "scale", "plan", *options], check=False, capture_output=True, text=True, timeout=120
    )


def test_the_command_answers_in_words_and_in_json() -> None:
    asked = (
        "--model",
        "resnet50",
        "--target-minutes",
        "10",
        "--device",
        "P40",
        "--network",
        "100g",
        "--price",
        "P40=0.4",
    )
    assert "P40, 100g" in run(*asked).stdout
    (line,) = json.loads(run(*asked, "--json").stdout)
    assert line["reaches"]["cluster"] == {"device": "P40", "count": 1024, "network": "100g"}
    assert line["reaches"]["money"]["low"] < line["reaches"]["money"]["value"] < line["reaches"]["money"]["high"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target-minutes", "0"), "must be more than 0"),
        (("--target-minutes", "10", "--device", "P41"), "did you mean 'P40'?"),
        (("--target-minutes", "10", "--network", "1g"), "is not in the catalogue"),
        (("--target-minutes", "10", "--price", "P40"), "is not DEVICE=NUMBER"),
        (("--target-minutes", "10", "--price", "P41=1"), "no such device; did you mean 'P40'?"),
        (("--target-minutes", "10", "--catalogue", "nowhere.yaml"), "no such file"),
    ],
)
def test_wrong_questions_get_one_line(options: tuple[str, ...], said: str) -> None:
    done = run("--model", "resnet50", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_torch_is_needed() -> None:
    code = "import sys; import fourminutes.scale.planner, fourminutes.scale.whatif; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
