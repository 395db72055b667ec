"""Whom the others miss, judged from what the ranks have told."""

from __future__ import annotations

from typing import Any

import pytest

from fourminutes.comm.board import ALIKE_S, QUIET_S, SETTLE_S, Board, Verdict
from fourminutes.comm.whereabouts import Place

TIMEOUT_S = 20.0
INPUT = Place(moves=8, doing="input", step=4)
REDUCE = Place(9, "forward and backward pass", 4, 2, 5, "reduce, within")
ACROSS = Place(9, "forward and backward pass", 4, 2, 5, "all_reduce, across")
NEXT_BUCKET = Place(9, "forward and backward pass", 4, 3, 5, "reduce, within")
EVALUATION = Place(10, "evaluation", 4)
GLOO = {"failure": "RuntimeError: [gloo] Connection closed by peer", "is_collectives": True}
TIMED_OUT = {"failure": "RuntimeError: [gloo] Timed out waiting 20000ms", "is_collectives": True}
OWN = {"failure": "ZeroDivisionError: division by zero", "is_collectives": False}


def board(*present: int, world_size: int = 4) -> Board:
    """Two ranks a host; the last one's name is known to the board, as it is where all are on one host."""
    made = Board(world_size, host="n9")
    for rank in present or range(world_size):
        made.come(rank, {"host": f"n{rank // 2}", "timeout_s": TIMEOUT_S, "again": "start again"}, 0.0)
    return made


def tell(made: Board, now_s: float, places: dict[int, Place], **more: Any) -> None:
    for rank, place in places.items():
        made.hear(rank, {"place": vars(place), **more}, now_s)


def everywhere(place: Place, *ranks: int) -> dict[int, Place]:
    return dict.fromkeys(ranks, place)


def line(verdict: Verdict | None) -> str:
    assert verdict is not None
    assert verdict.line is not None
    assert verdict.line.endswith("; start again")
    return verdict.line.removesuffix("; start again")


def test_as_long_as_all_speak_and_move_the_job_goes_on():
    made = board()
    for now_s in range(100):
        tell(made, now_s, everywhere(Place(moves=now_s), 0, 1, 2, 3))
        assert made.verdict(now_s + 0.9) is None


@pytest.mark.parametrize("lost", range(4))
def test_a_broken_line_is_a_lost_rank_as_soon_as_the_others_have_told_where_they_miss_it(lost):
    made, others = board(), [rank for rank in range(4) if rank != lost]
    tell(made, 5.0, everywhere(INPUT, *range(4)))
    made.lose(lost, 5.1)
    tell(made, 5.2, everywhere(ACROSS, *others))
    tell(made, 5.3, {others[0]: REDUCE}, **GLOO)
    assert made.verdict(5.1 + SETTLE_S - 0.01) is None
    verdict = made.verdict(5.1 + SETTLE_S)
    assert verdict is not None
    assert verdict.ranks == (lost,)
    assert line(verdict) == (
        f"rank {lost} on n{lost // 2} was lost (its line is broken), last heard of in step 4, input, "
        "missed in step 4, bucket 3 of 5, stage reduce, within"
    )


def test_how_a_process_ended_is_said_where_it_is_known():
    made = board()
    tell(made, 5.0, everywhere(REDUCE, 0, 1, 2, 3))
    made.lose(2, 5.0)
    made.exited(2, -9, 5.1)
    assert line(made.verdict(6.0)) == (
        "rank 2 on n1 was lost (ended by SIGKILL) in step 4, bucket 3 of 5, stage reduce, within"
    )


def test_a_host_that_goes_is_all_its_ranks_but_not_whoever_is_ended_for_their_sake():
    made = board()
    tell(made, 5.0, everywhere(INPUT, 0, 1, 2, 3))
    made.lose(3, 5.02)
    made.lose(2, 5.0)
    made.lose(0, 5.5)
    assert line(made.verdict(6.1)) == "ranks 2, 3 on n1 were lost (its line is broken) in step 4, input"


def test_many_are_not_all_named():
    made = board(world_size=12)
    for rank in range(12):
        made.lose(rank, 1.0)
    named = "ranks 0, 1 on n0, ranks 2, 3 on n1, ranks 4, 5 on n2, ranks 6, 7 on n3 and 4 more were lost"
    assert line(made.verdict(1.0, is_last=True)).startswith(named)


def test_who_gives_no_sign_of_life_is_lost_although_the_others_only_wait():
    made = board()
    tell(made, 1.0, everywhere(INPUT, 0, 1, 2, 3))
    for now_s in range(2, 21):
        tell(made, now_s, everywhere(REDUCE, 0, 1, 3))
        assert made.verdict(now_s) is None
    assert line(made.verdict(21.0)) == (
        "rank 2 on n1 was lost (no sign of life for 20 s), last heard of in step 4, input, "
        "missed in step 4, bucket 3 of 5, stage reduce, within"
    )


def test_where_collectives_give_up_first_the_silent_one_is_to_blame():
    made = board()
    tell(made, 1.0, everywhere(INPUT, 0, 1, 2, 3))
    tell(made, 10.0, {0: REDUCE}, **TIMED_OUT)
    tell(made, 10.0 + QUIET_S, everywhere(REDUCE, 0, 1, 3))
    verdict = made.verdict(10.0 + QUIET_S)
    assert verdict is not None
    assert verdict.ranks == (2,)


@pytest.mark.parametrize("signs_of_life", [True, False])
def test_who_has_not_come_is_late_once_the_first_has_waited_long_enough(signs_of_life):
    made = board(0, 3)
    for now_s in range(1, 20 if signs_of_life else 1):
        tell(made, now_s, everywhere(Place(1, "the meeting of all ranks"), 0, 3))
        assert made.verdict(now_s) is None
    assert line(made.verdict(TIMEOUT_S)) == "ranks 1, 2 on n9 did not come within 20 s of the first of 4"


def test_a_rank_that_was_killed_before_it_came_is_not_waited_for():
    made = board(0, 1, 3)
    made.exited(2, -9, 3.0)
    assert made.verdict(3.5) is None
    assert line(made.verdict(4.0)) == "rank 2 on n9 was lost (ended by SIGKILL) in the start"


def test_who_refused_before_it_came_has_said_so_itself():
    made = board(0, 1, 3)
    made.exited(2, 2, 3.0)
    assert made.verdict(3.0 + ALIKE_S - 0.1) is None
    assert made.verdict(3.0 + ALIKE_S) == Verdict((2,), None)


def test_processes_that_are_not_under_watch_are_not_judged():
    made = Board(2)
    made.exited(0, -9, 0.0)
    made.exited(1, 3, 0.0)
    assert made.verdict(100.0) is None
    assert made.verdict(100.0, is_last=True) is None


def test_who_fails_by_itself_is_named_and_not_those_whom_it_left_in_the_lurch():
    made = board()
    tell(made, 5.0, everywhere(REDUCE, 0, 1, 3), **GLOO)
    tell(made, 5.1, {2: INPUT}, **OWN)
    tell(made, 5.2, {2: INPUT}, status=1)
    assert line(made.verdict(6.0)) == "rank 2 on n1 failed in step 4, input: ZeroDivisionError: division by zero"


def test_one_line_of_a_rank_that_refuses_is_enough():
    made = board()
    tell(made, 5.0, {2: INPUT}, status=2)
    tell(made, 5.1, everywhere(REDUCE, 0, 1, 3), **GLOO)
    assert made.verdict(5.0 + QUIET_S) == Verdict((2,), None)


@pytest.mark.parametrize("status", [0, 75])
def test_who_ends_in_order_is_not_lost(status):
    made = board()
    for rank in range(4):
        tell(made, 5.0 + rank, {rank: INPUT}, status=status)
        made.lose(rank, 5.1 + rank)
    assert made.verdict(50.0) is None
    assert made.verdict(50.0, is_last=True) is None


@pytest.mark.parametrize(
    ("behind", "ahead"), [(INPUT, REDUCE), (REDUCE, ACROSS), (ACROSS, NEXT_BUCKET), (NEXT_BUCKET, EVALUATION)]
)
def test_who_lives_but_stays_behind_is_stuck(behind, ahead):
    made = board()
    tell(made, 1.0, {2: behind} | everywhere(ahead, 0, 1, 3))
    for now_s in range(2, 21):
        tell(made, now_s, {2: behind} | everywhere(ahead, 0, 1, 3))
        assert made.verdict(now_s) is None
    tell(made, 21.0, {2: behind} | everywhere(ahead, 0, 1, 3))
    assert line(made.verdict(21.0)) == f"rank 2 on n1 was stuck for 20 s in {behind}, missed in {ahead}"


def test_where_all_take_long_over_the_same_nobody_is_stuck():
    """As in compiling the network."""
    made = board()
    for now_s in range(1, 100):
        tell(made, now_s, everywhere(Place(2, "set-up"), 0, 1, 2, 3))
        assert made.verdict(now_s) is None


def test_a_broken_network_between_ranks_that_live_is_told_by_the_first_that_noticed():
    made = board()
    tell(made, 5.0, {1: REDUCE}, **GLOO)
    tell(made, 5.1, {0: REDUCE}, **GLOO)
    tell(made, 5.0 + QUIET_S, everywhere(REDUCE, 0, 1, 2, 3))
    assert line(made.verdict(5.0 + QUIET_S)) == (
        "rank 1 on n0 failed in step 4, bucket 3 of 5, stage reduce, within: "
        "RuntimeError: [gloo] Connection closed by peer"
    )


def test_when_nothing_more_will_be_heard_what_is_known_is_enough():
    made = board()
    made.lose(1, 5.0)
    assert made.verdict(5.0) is None
    assert line(made.verdict(5.0, is_last=True)) == "rank 1 on n0 was lost (its line is broken) in the start"
