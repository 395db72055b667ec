"""What one device does with the paper's two networks: time by layer, and whole steps in each number format.

    python benchmarks/device/device.py --name h100

Every record is written when it is measured; the same line again goes on with what is missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from fourminutes.errors import EXIT_BAD_INPUT
from fourminutes.plan import Precision, load_plan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLAN = HERE / "device.yaml"
NETWORKS = ("resnet50", "alexnet_bn")


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the device, for its folder of records")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="a CPU has profiles alone")
    parser.add_argument("--images", type=int, nargs="+", default=[32, 256], help="a batch of the profiles")
    parser.add_argument(
        "--formats", nargs="+", choices=get_args(Precision), default=["fp32", "half"], help="of the profiles"
    )
    asked = parser.parse_args()
    for record, line in lines(asked, (HERE / "records" / asked.name).relative_to(ROOT)):
        if not (ROOT / record).is_file():
            measure(record, line)


def lines(asked: argparse.Namespace, out: Path) -> Iterator[tuple[Path, Sequence[str]]]:
    """Every record, and the command that makes it in the clone's root."""
    for model in NETWORKS:
        for images in asked.images:
            for form in asked.formats:
                what = ["--model", model, "--device", asked.device, "--precision", form, "--images", str(images)]
                yield out / "profiles" / f"{model}-{images}-{form}.json", ["profile", *what]
    for series in load_plan(PLAN).scaling if asked.device == "cuda" else ():
        what = ["--plan", str(PLAN.relative_to(ROOT)), "--series", series, "--processes", "1"]
        yield out / "series" / f"{series}.json", ["measure", *what]


def measure(record: Path, line: Sequence[str]) -> None:
    """Let `fourminutes scale LINE` write the record, in a process of its own; end where it refuses."""
    (ROOT / record).parent.mkdir(parents=True, exist_ok=True)
    whole = [sys.executable, "-m", "fourminutes", "scale", *line, "--out", str(record)]
    print(" ".join(whole[2:]), file=sys.stderr, flush=True)
    if code := subprocess.run(whole, check=False, cwd=ROOT).returncode:
        sys.exit(code if code == EXIT_BAD_INPUT else f"device.py: {record}: not measured")


if __name__ == "__main__":
    main()
