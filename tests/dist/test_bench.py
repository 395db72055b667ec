"""The measurement of the collectives, as a user starts it."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from processes import run_ranks

from fourminutes.comm.bench import groupings, run_bench
from fourminutes.comm.calls import Calls
from fourminutes.comm.collectives import ALGORITHMS, Stage
from fourminutes.comm.launch import Launch
from fourminutes.comm.options import bench_settings
from fourminutes.comm.tables import bench_table
from fourminutes.comm.timing import Arrangement, arrangements, time_calls
from fourminutes.comm.topology import Topology, connect, discover
from fourminutes.errors import UserError
from fourminutes.plan import CommBenchPlan
from fourminutes.record import CommRecord, read_record

BIN = Path(sys.executable).parent
PLAN = "name: plan\ncomm: {processes: 2, sizes_kib: [1, 64], repeats: 3}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measurement by the command."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "plan.yaml").write_text(PLAN)
    launch = [BIN / "fourminutes", "launch", "--processes", "2", "--"]
    command = ["fourminutes", "comm", "bench", "--plan", folder / "plan.yaml", "--out", folder / "comm.json"]
    subprocess.run([*launch, *command], check=True, timeout=300, env={"OMP_NUM_THREADS": "1", "PATH": str(BIN)})
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> CommRecord:
    return read_record(folder / "comm.json", CommRecord)


def test_every_algorithm_is_timed_at_every_size(record: CommRecord) -> None:
    measured = [(timing.message_bytes, timing.algorithm) for timing in record.timings]
    assert measured == [(size, name) for size in (1024, 65536) for name in ("ring", "hierarchical", "torus")]
    assert all(timing.repeats == 3 for timing in record.timings)
    assert all(0 < timing.lower_quartile_s <= timing.median_s <= timing.upper_quartile_s for timing in record.timings)


def test_bus_bandwidth_is_that_of_nccl_tests_for_every_algorithm() -> None:
    for algorithm, group_ranks in (("ring", 4), ("hierarchical", 2), ("torus", 2)):
        calls = Calls(algorithm, group_ranks, "fp16", 1_000_000_000, seconds=(4.0, 1.0, 2.0), stages=())
        timing = calls.timing(processes=4)
        assert (timing.median_s, timing.lower_quartile_s, timing.upper_quartile_s) == (2.0, 1.5, 3.0)
        assert timing.bus_gbyte_s == pytest.approx(2 * 3 / 4 * 1 / 2)
        assert (timing.group_ranks, timing.wire, timing.repeats) == (group_ranks, "fp16", 3)


def test_record_says_where_and_fits_every_algorithm(record: CommRecord) -> None:
    assert (record.plan, record.placement.launcher, record.placement.backend) == ("plan", "torchrun", "gloo")
    assert len(record.placement.hosts) == 2
    assert [fit.algorithm for fit in record.fits] == ["ring", "hierarchical", "torus"]


def test_table_has_a_line_for_every_timing_and_fit(record: CommRecord) -> None:
    table = bench_table(record)
    lines = [line for line in table.splitlines() if any(name in line for name in ("ring", "hierarchical", "torus"))]
    assert len(lines) == len(record.timings) + len(record.fits) + len(record.stages)


def test_every_stage_is_fitted_with_an_interval(record: CommRecord) -> None:
    # Two ranks are one pair, so that nothing goes across.
    stages = [
        "all_reduce, world",
        "reduce, within",
        "broadcast, within",
        "reduce_scatter, within",
        "all_gather, within",
    ]
    assert [fit.stage for fit in record.stages] == stages
    for fit in record.stages:
        for number in (fit.alpha_s, fit.beta_s_byte):
            assert 0 <= number.low <= number.value <= number.high


def test_every_call_is_a_row_and_the_figure_is_drawn(folder: Path) -> None:
    calls = pq.read_table(folder / "comm.parquet")
    assert calls.num_rows == 2 * 3 * 3
    assert json.loads(calls.schema.metadata[b"fourminutes"])["placement"]["backend"] == "gloo"
    record = read_record(folder / "comm.json", CommRecord)
    ring = [row["seconds"] for row in calls.to_pylist() if (row["algorithm"], row["message_bytes"]) == ("ring", 1024)]
    assert statistics.median(ring) == record.timings[0].median_s
    assert "</svg>" in (folder / "comm.svg").read_text()


def test_options_take_the_place_of_the_plan_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    none = dict.fromkeys(("min_size", "max_size", "groups", "wires", "algorithms", "repeats"))
    monkeypatch.setenv("WORLD_SIZE", "8")
    plain = bench_settings(None, **none, step_factor=4)
    assert plain.sizes_bytes == tuple(256 * 4**power for power in range(11))
    planned = CommBenchPlan(processes=8, sizes_kib=(1, 2), repeats=4)
    assert bench_settings(planned, **none, step_factor=2) == planned
    asked = {"min_size": "1K", "max_size": "3M", "groups": "2,4", "wires": "fp16,bf16", "algorithms": "ring"}
    given = bench_settings(planned, **none | asked, step_factor=1024)
    assert given.sizes_bytes == (2**10, 2**20, 3 * 2**20)
    assert (given.group_ranks, given.wires, given.algorithms, given.repeats) == ((2, 4), ("fp16", "bf16"), ("ring",), 4)


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("max_size", "3 apples", "--max-size 3 apples: is no size"),
        ("min_size", "512M", "must be 256 bytes and more, and rise"),
        ("groups", "2;4", "--groups: '2;4' is no whole number above 0"),
        ("wires", "int8", "--wires: Input should be 'fp32', 'fp16' or 'bf16' \\(given: int8\\)"),
        ("groups", "0", "--groups: '0' is no whole number above 0"),
        ("max_size", "8G", "--max-size: .*4,194,304 KiB"),
    ],
)
def test_options_that_cannot_be_read_say_so_in_one_line(option: str, text: str, says: str) -> None:
    none = dict.fromkeys(("min_size", "max_size", "groups", "wires", "algorithms", "repeats"))
    with pytest.raises(UserError, match=says):
        bench_settings(None, **none | {option: text}, step_factor=4)


def sums_in_groups(launch: Launch, in_a_row: int = 1) -> list[tuple[str, int, str, list[str], bool]]:
    """What was timed over four ranks in pairs and threes: each arrangement once, torus only where groups are even."""
    # What is asked for twice comes once.
    topologies = groupings(launch, (2, 3, 2))
    items = arrangements(("ring", "hierarchical", "torus"), topologies, ("fp32", "fp16", "fp32"))
    calls = time_calls(items, 1024, torch.device("cpu"), repeats=3, in_a_row=in_a_row)
    return [
        (one.algorithm, one.group_ranks, one.wire, [stage.stage for stage in one.stages], _adds_up(one))
        for one in calls
    ]


def _adds_up(calls: Calls) -> bool:
    """Stages begin after the call and end before it does; three calls were asked for."""
    assert len(calls.seconds) == 3
    # Of a row that was not divided by its length, stages would be a small part.
    assert sum(map(sum, (stage.seconds for stage in calls.stages))) > 0.5 * sum(calls.seconds)
    sums = [sum(column) for column in zip(*[stage.seconds for stage in calls.stages], strict=True)]
    # Moments since the Unix epoch are exact to a quarter of a microsecond.
    return all(0 < parts <= whole + 2e-6 for parts, whole in zip(sums, calls.seconds, strict=True))


def calls_made(launch: Launch) -> int:
    """Stages gone through for three timed rows of five calls, and one of them to warm up."""
    made = []

    def counted(tensor: torch.Tensor, topology: Topology) -> Iterator[Stage]:
        made.append(tensor.numel())
        return ALGORITHMS["ring"](tensor, topology)

    (ring,) = arrangements(("ring",), groupings(launch, (2,)), ("fp32",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fourminutes.comm.timing.ALGORITHMS", {"ring": counted})
        time_calls([ring], 1024, torch.device("cpu"), repeats=3, warm_up=1, in_a_row=5)
    return len(made)


def test_a_row_has_as_many_calls_as_asked_for() -> None:
    assert run_ranks(calls_made, 2) == [20, 20]


def by_uneven_hosts(launch: Launch) -> list[list[str]]:
    """The hierarchy's stages where rank 0 is alone on its host, and only the other master has all of them."""
    topology = discover(launch)
    uneven = connect(launch.rank, ("a", "b", "b"), ((0,), (1, 2)), topology.timeout_s)
    calls = time_calls([Arrangement("hierarchical", uneven, "fp32")], 1024, torch.device("cpu"), repeats=3)
    return [[stage.stage for stage in one.stages] for one in calls]


def test_all_stages_are_timed_where_rank_0_is_alone_on_its_host() -> None:
    for stages in run_ranks(by_uneven_hosts, 3):
        assert stages == [["reduce, within", "all_reduce, across", "broadcast, within"]]


def only_torus_in_threes(launch: Launch) -> str:
    settings = CommBenchPlan(processes=4, algorithms=("torus",), group_ranks=(3,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fourminutes.comm.bench.resolve_launch", lambda: launch)
        patch.setattr("fourminutes.comm.bench.process_group", lambda *_, **__: nullcontext())
        with pytest.raises(UserError) as refusal:
            run_bench(settings, plan="")
    return str(refusal.value)


def test_nothing_to_measure_is_refused_in_one_line() -> None:
    for line in run_ranks(only_torus_in_threes, 4):
        assert "torus: groups of 3, 1 ranks are of unequal size" in line


@pytest.mark.parametrize("in_a_row", [1, 5])
def test_each_arrangement_is_timed_by_groups_and_number_format_and_its_stages_add_up(in_a_row: int) -> None:
    by_rank = run_ranks(partial(sums_in_groups, in_a_row=in_a_row), 4)
    assert by_rank[0] == by_rank[1] == by_rank[2] == by_rank[3]
    hierarchy = ["reduce, within", "all_reduce, across", "broadcast, within"]
    once = [
        ("ring", 4, ["all_reduce, world"]),
        ("hierarchical", 2, hierarchy),
        ("torus", 2, ["reduce_scatter, within", "all_reduce, across", "all_gather, within"]),
        ("hierarchical", 3, hierarchy),
    ]
    expected = [(name, ranks, wire, stages) for wire in ("fp32", "fp16") for name, ranks, stages in once]
    assert [found[:4] for found in by_rank[0]] == expected
    assert all(adds_up for *_, adds_up in by_rank[0])


def test_wrong_number_of_processes_says_how_to_start() -> None:
    with pytest.raises(UserError, match="fourminutes launch --processes 4 -- fourminutes comm bench"):
        run_bench(CommBenchPlan(processes=4), plan="small")
