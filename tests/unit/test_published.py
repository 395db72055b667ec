"""The published numbers: typed, sourced, and never surer than they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import fourminutes.report.published
from fourminutes.facts import Certainty
from fourminutes.report.names import FIGURES
from fourminutes.report.published import Headline, Published, System, published

RAW = yaml.safe_load(Path(fourminutes.report.published.__file__).with_name("published.yaml").read_text())
ROW = {"model": "ResNet-50", "batch": 65536, "certainty": "confirmed", "source": "ABS", "minutes": 6.6}
TRAIN_IMAGES = 1_281_167


def test_a_rows_certainty_and_source_hold_for_its_plain_numbers_and_a_number_may_bring_its_own() -> None:
    row = Headline.model_validate(ROW | {"top1_percent": {"value": 75.8, "certainty": "derived", "source": "GTC"}})
    assert row.minutes is not None
    assert (row.minutes.value, row.minutes.certainty, row.minutes.source) == (6.6, Certainty.CONFIRMED, "ABS")
    assert row.top1_percent is not None
    assert (row.top1_percent.certainty, row.top1_percent.source) == (Certainty.DERIVED, "GTC")
    assert row.batch.certainty is Certainty.CONFIRMED
    assert row.cited() == "ABS"


def test_a_row_cites_every_source_that_it_was_read_in() -> None:
    row = Headline.model_validate(ROW | {"top1_percent": {"value": 75.8, "certainty": "confirmed", "source": "GTC"}})
    assert row.cited() == "ABS, GTC"


def test_what_is_said_in_words_is_as_sure_as_its_row() -> None:
    raw = {"who": "Some", "model": "ResNet-50", "group": "after", "batch": "32K", "hardware": "TPU v3"}
    row = System.model_validate(raw | {"certainty": "unconfirmed", "source": "MEMORY"})
    assert row.batch is not None
    assert row.hardware is not None
    assert (row.batch.value, row.batch.certainty) == ("32K", Certainty.UNCONFIRMED)
    assert (row.hardware.value, row.hardware.certainty) == ("TPU v3", Certainty.UNCONFIRMED)


@pytest.mark.parametrize(
    "wrong",
    [{"certainty": "likely"}, {"minutes": "6.6"}, {"minuts": 6.6}, {"certainty": None}],
    ids=["unknown certainty", "text for a number", "unknown key", "no certainty"],
)
def test_what_is_not_typed_right_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Headline.model_validate(ROW | wrong)


def test_a_source_that_is_not_listed_is_refused() -> None:
    with pytest.raises(ValidationError, match="unknown sources: HEARSAY"):
        Published.model_validate(RAW | {"headline": [ROW | {"source": "HEARSAY"}]})


def test_the_confirmed_headline_is_the_papers() -> None:
    confirmed = {
        (line.model, line.accelerators.value): (line.minutes.value, line.top1_percent.value)
        for line in published().headline
        if line.certainty is Certainty.CONFIRMED and line.minutes and line.top1_percent and line.accelerators
    }
    assert confirmed == {("ResNet-50", 2048): (6.6, 75.8), ("AlexNet", 1024): (4, 58.7)}


def test_the_rates_follow_from_epochs_and_time() -> None:
    rates = [line for line in published().headline if line.images_per_s and line.minutes and line.epochs]
    assert len(rates) == 4
    for line in rates:
        assert line.images_per_s and line.minutes and line.epochs  # noqa: PT018
        seconds = 60 * line.minutes.value
        assert line.images_per_s.value == pytest.approx(TRAIN_IMAGES * line.epochs.value / seconds, rel=0.003)
        assert line.images_per_s.certainty is not Certainty.CONFIRMED


def test_the_step_counts_follow_their_formula() -> None:
    for row in published().steps:
        p, k = row.accelerators, row.group
        assert row.ring.value == 2 * (p - 1)
        assert row.hierarchical.value == 4 * (k - 1) + 2 * (p / k - 1)


def test_the_scalability_shares_are_those_of_the_papers_figure() -> None:
    figure = published().scalability
    at_512 = {curve.name: curve.images_per_s[-1] / figure.curves[0].images_per_s[-1] for curve in figure.curves}
    assert [round(100 * share) for share in at_512.values()] == [100, 93, 84, 81, 67]


def test_what_is_only_remembered_is_unconfirmed_and_the_other_way_round() -> None:
    for row in published().rows():
        for claim in row.claims():
            assert (claim.source == "MEMORY") == (claim.certainty is Certainty.UNCONFIRMED), row


def test_the_captions_repeat_the_published_numbers() -> None:
    assert f"±{published().scalability.reading_error_images_per_s:.0f} images/s" in FIGURES["scalability"]
    quoted = {(row.accelerators, row.percent.value, row.certainty.value) for row in published().efficiencies}
    assert {(1024, 99, "confirmed"), (2048, 97, "confirmed"), (2048, 87.9, "unconfirmed")} <= quoted
    assert all(f"{percent} %" in FIGURES["efficiency"] for percent in ("about 99", "97", "87.9"))
