"""The all-reduce over hosts with limited links on one machine: hybrid, single algorithms, DDP, one call a tensor."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ratios import geometric_mean, quartiles, ratio

from fourminutes.record import provenance

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from support.hosts import hosts, missing, run_on  # noqa: E402 - the tests have the same hosts

RATE = "1gbit"
NETWORKS = ("resnet50", "alexnet_bn")
#: Name, hosts, ranks a host, group sizes.
LAYOUTS = {"8x1": (8, 1, (2, 4)), "4x2": (4, 2, (2,))}
_NOT_SINGLE = ("hybrid", "hybrid, hook", "ddp", "call a tensor")
_TIMEOUT_S = 3600.0
Times = Mapping[str, Sequence[float]]


def main() -> None:
    """Measure the layouts asked for, print tables, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layouts", nargs="+", choices=[*LAYOUTS, "loopback"], default=[*LAYOUTS, "loopback"])
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each way at each size up to 4 MiB")
    parser.add_argument("--set-rounds", type=int, default=8, help="timed passes of each network's gradient set")
    parser.add_argument("--out", type=Path, help="JSON record to write")
    asked = parser.parse_args()
    if (lack := missing()) and set(asked.layouts) & set(LAYOUTS):
        sys.exit(f"allreduce.py: {lack}; `--layouts loopback` needs nothing of it")
    found: dict[str, Any] = {}
    for name in asked.layouts:
        found[name] = one = _measured(name, asked)
        print(f"\n## {name}\n")
        print(_report(one) if name in LAYOUTS else _sets_table(one["sets"], "hook"), flush=True)
        if asked.out:
            record = {"provenance": provenance().model_dump(mode="json"), "rate": RATE, "layouts": found}
            asked.out.write_text(json.dumps(record) + "\n")


def _measured(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    print(f"measuring {name} ...", file=sys.stderr, flush=True)
    if name == "loopback":
        command = [str(Path(sys.executable).with_name("fourminutes")), "launch", "--processes", "4", "--"]
        line = _worker("loopback", rounds=asked.set_rounds)
        return _answer(subprocess.run([*command, *line], check=True, stdout=subprocess.PIPE, text=True).stdout)
    count, per_host, groups = LAYOUTS[name]
    with hosts(count, rate=RATE) as made, TemporaryDirectory() as folder:
        placed = [host for host in made for _ in range(per_host)]

        def run(line: Sequence[str]) -> dict[str, Any]:
            grouped = [*line, "--groups", *map(str, groups)]
            return _answer(run_on(placed, grouped, {"OMP_NUM_THREADS": "1"}, timeout_s=_TIMEOUT_S)[0])

        found = run(_worker("messages", rounds=asked.rounds))
        tuning = Path(folder) / "tuning.json"
        tuning.write_text(json.dumps(found["tuning"]))
        found["sets"] = {
            network: [
                run([*_worker("set", rounds=asked.set_rounds, network=network, part=part), "--tuning", str(tuning)])
                for part in range(2 + len(groups))
            ]
            for network in NETWORKS
        }
    return found


def _worker(what: str, **options: object) -> list[str]:
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(HERE / "worker.py"), what, *given]


def _answer(output: str) -> dict[str, Any]:
    """What rank 0 printed last."""
    return json.loads(output.strip().splitlines()[-1])  # type: ignore[no-any-return]


def _report(found: Mapping[str, Any]) -> str:
    return "\n\n".join(
        [
            _choices(found),
            _messages_table(found),
            _verdict_on_messages(found),
            _verdict_on_predictions(found),
            _sets_table(found["sets"], "hybrid"),
            *(_verdict_on_set(network, parts) for network, parts in found["sets"].items()),
        ]
    )


def _choices(found: Mapping[str, Any]) -> str:
    told = ", ".join(_choice(**choice) for choice in found["tuning"]["choices"])
    return f"Chosen in {found['tuning']['took_s']:.0f} s: {told}."


def _choice(algorithm: str, group_ranks: int | None, up_to_kib: float | None) -> str:
    groups = "" if group_ranks is None else f" of {group_ranks}"
    return f"{algorithm}{groups}" if up_to_kib is None else f"{algorithm}{groups} up to {up_to_kib:.0f} KiB"


def _messages_table(found: Mapping[str, Any]) -> str:
    """Median milliseconds with quartiles of every way at every size, and the hybrid's ratio to the best single one."""
    names = list(next(iter(found["messages"].values())))
    rows = []
    for size, times in found["messages"].items():
        cells = [
            f"{m * 1e3:.1f} ({low * 1e3:.1f} to {high * 1e3:.1f})" for low, m, high in map(quartiles, times.values())
        ]
        best = _best_single(times)
        rows.append([size, *cells, f"{best}", str(ratio(times["hybrid"], times[best])), str(len(times["hybrid"]))])
    return _markdown(["KiB", *(f"{name}, ms" for name in names), "best single", "hybrid / best", "n"], rows)


def _verdict_on_messages(found: Mapping[str, Any]) -> str:
    ratios = [ratio(times["hybrid"], times[_best_single(times)]) for times in found["messages"].values()]
    above = [size for size, one in zip(found["messages"], ratios, strict=True) if one.low > 1.05]
    mean = geometric_mean([one.median for one in ratios])
    sizes = ", ".join(f"{size} KiB" for size in above) or "none"
    told = f"Hybrid / best single algorithm, geometric mean over sizes: {mean:.3f}"
    return f"{told}; sizes whose interval lies above 1.05: {sizes}."


def _sets_table(sets: Mapping[str, Sequence[Times]], own: str) -> str:
    """Median milliseconds of every way with a network's gradients, and our way's ratio to it in the same rounds."""
    rows = [
        [network, name, *_cells(times[name]), "" if name == own else str(ratio(times[own], times[name]))]
        for network, parts in sets.items()
        for times in (part["times"] for part in parts)
        for name in times
    ]
    return _markdown(["gradients of", "way", "median ms", "quartiles", "n", f"{own} / it"], rows)


def _verdict_on_set(network: str, parts: Sequence[Mapping[str, Any]]) -> str:
    """The hybrid against the best single algorithm, DDP as it comes, and one call a tensor."""
    beside = {name: part["times"] for part in parts for name in part["times"]}
    single = {name: statistics.median(times[name]) for name, times in beside.items() if name not in _NOT_SINGLE}
    best = min(single, key=single.__getitem__)
    told = [
        f"{words} {ratio(beside[name]['hybrid'], beside[name][name])}"
        for name, words in (
            (best, f"the best single one ({best})"),
            ("ddp", "DDP"),
            ("call a tensor", "a call a tensor"),
        )
    ]
    return f"{network}, buckets of {parts[0]['bucket_mib']:g} MiB: hybrid / {', hybrid / '.join(told)}."


def _cells(seconds: Sequence[float]) -> list[str]:
    low, median, high = (1e3 * value for value in quartiles(seconds))
    return [f"{median:.0f}", f"{low:.0f} to {high:.0f}", str(len(seconds))]


def _verdict_on_predictions(found: Mapping[str, Any]) -> str:
    """How far the tuner's times are from those of sizes that it did not measure, and where it chose wrongly."""
    tuned_kib = {timing["message_bytes"] / 1024 for timing in found["tuning"]["timings"]}
    held_out = [size for size in found["messages"] if float(size) not in tuned_kib]
    grown = [
        abs(found["predicted_s"][size][name] / statistics.median(times) - 1)
        for size in held_out
        for name, times in found["messages"][size].items()
        if name in found["predicted_s"][size] and _is_wire_bound(found, size, name)
    ]
    wrong = [size for size in held_out if _is_wrong(found["messages"][size])]
    off, most = 100 * statistics.median(grown), 100 * max(grown)
    return (
        f"Predictions of sizes that were not measured, where the wire dominates: off by {off:.0f} % (median of "
        f"{len(grown)}), at most {most:.0f} %. Sizes at which the hybrid is slower than the best single algorithm "
        f"beyond the spread: {', '.join(wrong) or 'none'}, of {len(held_out)}."
    )


def _is_wire_bound(found: Mapping[str, Any], size: str, name: str) -> bool:
    """Whether a message takes three times as long as the smallest one."""
    smallest = next(iter(found["messages"].values()))
    return statistics.median(found["messages"][size][name]) > 3 * statistics.median(smallest[name])


def _is_wrong(times: Times) -> bool:
    """Whether the quartiles of the best single algorithm lie below those of the hybrid."""
    return quartiles(times[_best_single(times)])[2] < quartiles(times["hybrid"])[0]


def _best_single(times: Times) -> str:
    single = {name: statistics.median(own) for name, own in times.items() if name not in _NOT_SINGLE}
    return min(single, key=single.__getitem__)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
