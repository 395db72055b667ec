"""The measurement of the collectives, as a user starts it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fourminutes.comm.bench import bench_table, run_bench, timing_of
from fourminutes.comm.topology import Topology
from fourminutes.errors import UserError
from fourminutes.plan import CommBenchPlan
from fourminutes.record import CommRecord, read_record

BIN = Path(sys.executable).parent
PLAN = "name: plan\ncomm: {processes: 2, sizes_kib: [1, 64], repeats: 3}\n"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> CommRecord:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "plan.yaml").write_text(PLAN)
    launch = [BIN / "fourminutes", "launch", "--processes", "2", "--"]
    command = ["fourminutes", "comm", "bench", "--plan", folder / "plan.yaml", "--out", folder / "comm.json"]
    subprocess.run([*launch, *command], check=True, timeout=300, env={"OMP_NUM_THREADS": "1", "PATH": str(BIN)})
    return read_record(folder / "comm.json", CommRecord)


def test_every_algorithm_is_timed_at_every_size(record: CommRecord) -> None:
    measured = [(timing.message_bytes, timing.algorithm) for timing in record.timings]
    assert measured == [(size, name) for size in (1024, 65536) for name in ("ring", "hierarchical", "torus")]
    assert all(timing.repeats == 3 for timing in record.timings)
    assert all(0 < timing.lower_quartile_s <= timing.median_s <= timing.upper_quartile_s for timing in record.timings)


def test_bus_bandwidth_is_that_of_nccl_tests_for_every_algorithm() -> None:
    topology = Topology(rank=0, hosts=("a", "a", "b", "b"), groups=((0, 1), (2, 3)), within=None, across=None)
    for algorithm, group_ranks in (("ring", 4), ("hierarchical", 2), ("torus", 2)):
        timing = timing_of(algorithm, [4.0, 1.0, 2.0], 1_000_000_000, topology)
        assert (timing.median_s, timing.lower_quartile_s, timing.upper_quartile_s) == (2.0, 1.5, 3.0)
        assert timing.bus_gbyte_s == pytest.approx(2 * 3 / 4 * 1 / 2)
        assert (timing.group_ranks, timing.repeats) == (group_ranks, 3)


def test_record_says_where_and_fits_every_algorithm(record: CommRecord) -> None:
    assert (record.plan, record.placement.launcher, record.placement.backend) == ("plan", "torchrun", "gloo")
    assert len(record.placement.hosts) == 2
    assert [fit.algorithm for fit in record.fits] == ["ring", "hierarchical", "torus"]


def test_table_has_a_line_for_every_timing_and_fit(record: CommRecord) -> None:
    table = bench_table(record)
    lines = [line for line in table.splitlines() if any(name in line for name in ("ring", "hierarchical", "torus"))]
    assert len(lines) == len(record.timings) + len(record.fits)


def test_wrong_number_of_processes_says_how_to_start() -> None:
    with pytest.raises(UserError, match="fourminutes launch --processes 4 -- fourminutes comm bench"):
        run_bench(CommBenchPlan(processes=4), plan="small")
