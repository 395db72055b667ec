"""What goes over the links between hosts: the interfaces' counters, against what every stage hands over."""

import json
import sys
from pathlib import Path

import pytest
from support.hosts import hosts, missing, run_on

MESSAGE_BYTES = 2**22
COUNTER = Path(__file__).with_name("counted.py")


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
def counted() -> dict[str, dict[str, dict[str, float]]]:
    """By arrangement, what all four hosts handed over to each stage, and what their links counted."""
    if lack := missing():
        pytest.skip(lack)
    with hosts(4, rate="1gbit") as made:
        outputs = run_on(
            made, [sys.executable, str(COUNTER), str(MESSAGE_BYTES)], {"OMP_NUM_THREADS": "1"}, timeout_s=200
        )
    return json.loads(outputs[0])


@pytest.mark.parametrize("arrangement", ["ring", "hierarchical", "torus"])
def test_links_carry_what_the_stages_hand_over(counted, arrangement: str) -> None:
    found = counted[arrangement]
    expected = sum(
        sent_by_a_rank(stage.partition(",")[0], payload, 4 if stage.endswith("world") else 2)
        for rank in found["payload_bytes"]
        for stage, payload in rank.items()
    )
    assert sum(found["sent_bytes"]) == pytest.approx(expected, rel=0.1)


def test_a_hierarchys_masters_send_more_and_a_torus_spreads_the_load(counted) -> None:
    masters, others = (counted["hierarchical"]["sent_bytes"][start::2] for start in (0, 1))
    assert min(masters) > 2 * max(others)
    torus = counted["torus"]["sent_bytes"]
    assert max(torus) == pytest.approx(min(torus), rel=0.05)
    # As little as the ring, which is the least there is.
    assert sum(torus) == pytest.approx(sum(counted["ring"]["sent_bytes"]), rel=0.05)
