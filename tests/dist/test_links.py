"""What goes over the links between hosts: the interfaces' counters, against what every stage hands over."""

import json
import sys
from pathlib import Path

import pytest
from support.hosts import hosts, missing, run_on

MESSAGE_BYTES = 2**22
COUNTER = Path(__file__).with_name("counted.py")
#: By arrangement and stage, of every rank: bytes handed over, and bytes that its link sent.
Counted = dict[str, dict[str, list[dict[str, float]]]]


def sent_by_a_rank(stage: str, payload_bytes: int, ranks: int) -> float:
    """What gloo's own form of a collective over two or more ranks has each of them send, of a payload, on average.

    A ring's all-reduce sends every byte twice but for the own part; a reduction is the ring's first half and then all
    parts but one go to the root; a broadcast sends all to all but the root; every rank sends its part, or all parts
    but its own, to the others.
    """
    others = ranks - 1
    return {
        "all_reduce": 2 * others / ranks * payload_bytes,
        "reduce": (others / ranks + others / ranks / ranks) * payload_bytes,
        "broadcast": others / ranks * payload_bytes,
        "reduce_scatter": others / ranks * payload_bytes,
        "all_gather": others * payload_bytes,
    }[stage]


@pytest.fixture(scope="module")
def counted() -> Counted:
    """What all four hosts handed over to each stage, and what their links counted meanwhile."""
    if lack := missing():
        pytest.skip(lack)
    line = [sys.executable, str(COUNTER), str(MESSAGE_BYTES)]
    with hosts(4, rate="1gbit") as made:
        return json.loads(run_on(made, line, {"OMP_NUM_THREADS": "1"}, timeout_s=200)[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("arrangement", "stage"),
    [
        ("ring", "all_reduce, world"),
        ("hierarchical", "reduce, within"),
        ("hierarchical", "all_reduce, across"),
        ("hierarchical", "broadcast, within"),
        ("torus", "reduce_scatter, within"),
        ("torus", "all_reduce, across"),
        ("torus", "all_gather, within"),
    ],
)
def test_links_carry_what_a_stage_is_handed(counted: Counted, arrangement: str, stage: str) -> None:
    ranks = counted[arrangement][stage]
    among = 4 if stage.endswith("world") else 2
    expected = sum(sent_by_a_rank(stage.partition(",")[0], rank["payload_bytes"], among) for rank in ranks)
    assert expected > 0
    assert sum(rank["sent_bytes"] for rank in ranks) == pytest.approx(expected, rel=0.1)


def sent_by_ranks(counted: Counted, arrangement: str) -> list[float]:
    """Over all stages."""
    stages = counted[arrangement].values()
    return [sum(rank["sent_bytes"] for rank in own) for own in zip(*stages, strict=True)]


def test_a_hierarchys_masters_send_more_and_a_torus_spreads_the_load(counted: Counted) -> None:
    hierarchy, torus = sent_by_ranks(counted, "hierarchical"), sent_by_ranks(counted, "torus")
    assert min(hierarchy[0::2]) > 2 * max(hierarchy[1::2])
    assert max(torus) == pytest.approx(min(torus), rel=0.05)
    # As little as the ring, which is the least there is.
    assert sum(torus) == pytest.approx(sum(sent_by_ranks(counted, "ring")), rel=0.05)
