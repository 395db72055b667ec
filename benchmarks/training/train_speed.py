"""How fast one device trains, beside a plain loop of PyTorch, in one run, interleaved.

    python benchmarks/training/train_speed.py --small
    python benchmarks/training/train_speed.py --source DIR --precision half --compile both --profile

The first runs on any machine; `--help` names all options. What is measured, and why, is in the README beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from idle import profiled
from loops import CLASSES, Bench, Case, Loop, Ours, Shards, autocast_dtype
from measure import Protocol, Rates, as_record, interleaved, named, repeated, table
from shards import drawn, from_source

from fourminutes.comm.group import device_of
from fourminutes.comm.launch import ALONE
from fourminutes.errors import UserError
from fourminutes.files import write_text
from fourminutes.plan import LoaderPlan, ModelPlan
from fourminutes.record import provenance

try:
    import nvidia.dali as _  # noqa: F401
except ImportError as error:
    NO_DALI = str(error)
else:
    NO_DALI = ""

PROFILED_STEPS = 5
FORMS = {"off": [False], "on": [True], "both": [False, True]}


def main() -> None:
    """Measure, print, record."""
    asked = arguments()
    device = device_of(ALONE)
    torch.set_num_threads(asked.threads)
    protocol = Protocol(asked.rounds, asked.steps, asked.warm_up, asked.lead_in)
    with tempfile.TemporaryDirectory(prefix="fourminutes-") as scratch:
        shards = shards_of(asked, Path(scratch))
        bench = Bench(model_of(asked), LoaderPlan(threads=asked.loader_threads), device, shards)
        cases = cases_of(asked, ["held"] if shards is None else ["held", "shards"])
        print(f"\n{told(asked, bench, protocol)}\n", flush=True)
        # A run compiles for one batch; here several share a process, and none may become a batch of any size.
        with torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=4 * len(cases)):
            loops = warmed_up(bench, cases, protocol)
            rates = interleaved(loops, protocol, device)
            write_text(asked.out, json.dumps(record(bench, protocol, loops, rates), indent=1) + "\n")
            print(f"{table(rates)}\n\n{where_time_goes(loops)}\n\nrecord: {asked.out}", flush=True)
            if asked.profile:
                show_profiles(loops, device)


def arguments() -> argparse.Namespace:
    """What is asked for, with what `--small` and the device leave open filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["resnet50", "alexnet_bn"], default="resnet50")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="images a device; default 32 64 256")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16", "amp", "half"], help="default half, or fp32")
    parser.add_argument("--compile", choices=FORMS, default="off")
    parser.add_argument("--cuda-graph", choices=FORMS, help="whether our steps are recorded; default both on a GPU")
    parser.add_argument("--source", type=Path, help="a folder in ImageNet's layout; default pictures are drawn")
    parser.add_argument("--images", type=int, help="training images in the shards; default all, or 4096 drawn ones")
    parser.add_argument("--loader-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU that compute; as in a plan, 1")
    parser.add_argument("--rounds", type=int, help="windows of each loop; default 15")
    parser.add_argument("--steps", type=int, help="steps a window; default 100")
    parser.add_argument("--warm-up", type=int, help="steps before all; default 20")
    parser.add_argument("--lead-in", type=int, help="untimed steps before each window; default 5")
    parser.add_argument("--small", action="store_true", help="width 0.25, 64 px, batches 4 and 8, few steps, fp32")
    parser.add_argument("--profile", action="store_true", help="a profile of each of our loops on held input")
    parser.add_argument("--out", type=Path, default=Path("work/train_speed.json"), help="JSON record to write")
    asked = parser.parse_args()
    asked.cuda_graph = asked.cuda_graph or ("both" if torch.cuda.is_available() else "off")
    small = {"batches": [4, 8], "precision": ["fp32"], "rounds": 7, "steps": 5, "warm_up": 2, "lead_in": 1}
    full = {"batches": [32, 64, 256], "precision": ["half"], "rounds": 15, "steps": 100, "warm_up": 20, "lead_in": 5}
    for name, value in (small if asked.small else full).items():
        setattr(asked, name, value if getattr(asked, name) is None else getattr(asked, name))
    return asked


def model_of(asked: argparse.Namespace) -> ModelPlan:
    """The network; in small, the smallest on which every layer still has something to do."""
    return ModelPlan(name=asked.model, width=0.25, image_px=64) if asked.small else ModelPlan(name=asked.model)


def shards_of(asked: argparse.Namespace, scratch: Path) -> Shards | None:
    """The real input, made now; None where it cannot be read."""
    if NO_DALI:
        return None
    if asked.source:
        return from_source(asked.source, asked.images, scratch)
    return drawn(asked.images or (160 if asked.small else 4096), 72 if asked.small else 375, scratch)


def cases_of(asked: argparse.Namespace, inputs: Sequence[str]) -> list[Case]:
    """All that is measured: ours in every form, and a plain loop, compiled and not, for each number format."""
    ours = product(inputs, asked.precision, FORMS[asked.compile], FORMS[asked.cuda_graph], asked.batches)
    cases = [Case("ours", *each) for each in ours]
    plain = {autocast_dtype(form): form for form in asked.precision}.values()
    for batch, compiled in product(asked.batches, sorted({False, *FORMS[asked.compile]})):
        cases += [Case("plain", "held", form, compiled, cuda_graph=False, batch=batch) for form in plain]
    return sorted(cases, key=lambda case: case.batch)


def warmed_up(bench: Bench, cases: Sequence[Case], protocol: Protocol) -> dict[Case, Loop]:
    """A loop for each case, past its first steps."""
    held = {batch: bench.hold(batch) for batch in {case.batch for case in cases}}
    loops: dict[Case, Loop] = {}
    for case in cases:
        loops[case] = loop = bench.build(case, held[case.batch])
        loop.settle()
        repeated(loop.step, protocol.warm_up)
        if isinstance(loop, Ours):
            loop.course.clock.take()  # what the first steps took is of no interest
    return loops


def told(asked: argparse.Namespace, bench: Bench, protocol: Protocol) -> str:
    """What is measured on what, for people."""
    read = bench.shards.made_from if bench.shards else f"skipped, since DALI is not installed ({NO_DALI})"
    return (
        f"{asked.model}, width {bench.model.width:g}, {bench.model.image_px} px, {CLASSES:,} classes on "
        f"{device_name(bench.device)}; torch {torch.__version__}\n"
        f"medians of {protocol.rounds} windows of {protocol.steps} steps, interleaved, ratios window by window; "
        f"{protocol.warm_up} steps of warm-up, {protocol.lead_in} untimed before each window\n"
        f"input from shards: {read}"
    )


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{provenance().cpu}, computing threads: {torch.get_num_threads()}"


def where_time_goes(loops: dict[Case, Loop]) -> str:
    """What the trainer's own clock says of its steps: how much of them each part is."""
    lines = ["| of our steps, in percent | input wait | forward | backward | optimizer |", "|---|---|---|---|---|"]
    for case, loop in loops.items():
        if isinstance(loop, Ours):
            spent = loop.course.clock.spent_s()
            parts = [spent[part] for part in ("input_wait", "forward", "backward", "optimizer")]
            shares = " | ".join(f"{100 * part / sum(parts):.1f}" for part in parts)
            lines.append(f"| {case.batch}, {named(case)}, {case.input} | {shares} |")
    return "\n".join(lines)


def record(bench: Bench, protocol: Protocol, loops: dict[Case, Loop], rates: Rates) -> dict[str, object]:
    """All of it, as plain values."""
    ours = {case: loop for case, loop in loops.items() if isinstance(loop, Ours)}
    return {
        "provenance": provenance().model_dump(),
        "device": device_name(bench.device),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "model": bench.model.model_dump(),
        "loader": bench.loader.model_dump(),
        "shards": bench.shards.made_from if bench.shards else None,
        "protocol": asdict(protocol),
        "cases": as_record(rates),
        "skipped_steps": {
            f"{case.batch}, {named(case)}, {case.input}": loop.course.skipped for case, loop in ours.items()
        },
    }


def show_profiles(loops: dict[Case, Loop], device: torch.device) -> None:
    """A profile of each of our loops that waits for no input."""
    for case, loop in loops.items():
        if case.loop == "ours" and case.input == "held":
            loop.settle()
            repeated(loop.step, 2)
            print(f"\n{PROFILED_STEPS} steps of {named(case)}, {case.batch} images a device")
            print(profiled(loop.step, PROFILED_STEPS, device), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"train_speed: {error}", file=sys.stderr)
        sys.exit(2)
