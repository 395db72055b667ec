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

from fourminutes.plan import load_plan

HERE = Path(__file__).resolve().parent
NETWORKS = ("resnet50", "alexnet_bn")


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the device, for its folder of records")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--images", type=int, nargs="+", default=[32, 256], help="a batch of the profiles")
    parser.add_argument("--formats", nargs="+", default=["fp32", "half"], help="number formats of the profiles")
    parser.add_argument("--no-series", action="store_true", help="only the profiles; whole steps need a GPU")
    asked = parser.parse_args()
    out = Path("benchmarks/device/records") / asked.name
    failed = [record for record, line in lines(asked, out) if not record.is_file() and not done(record, line)]
    sys.exit(f"device.py: not measured: {', '.join(map(str, failed))}" if failed else 0)


def lines(asked: argparse.Namespace, out: Path) -> Iterator[tuple[Path, Sequence[str]]]:
    """Every record, and the command that makes it."""
    for model in NETWORKS:
        for images in asked.images:
            for form in asked.formats:
                what = ["--model", model, "--device", asked.device, "--precision", form, "--images", str(images)]
                yield out / "profiles" / f"{model}-{images}-{form}.json", ["profile", *what]
    if not asked.no_series:
        plan = "benchmarks/device/device.yaml"
        for series in load_plan(HERE / "device.yaml").scaling:
            what = ["--plan", plan, "--series", series, "--processes", "1"]
            yield out / "series" / f"{series}.json", ["measure", *what]


def done(record: Path, line: Sequence[str]) -> bool:
    """Whether `fourminutes scale LINE` wrote the record, in a process of its own."""
    record.parent.mkdir(parents=True, exist_ok=True)
    whole = [sys.executable, "-m", "fourminutes", "scale", *line, "--out", str(record)]
    print(" ".join(whole[2:]), file=sys.stderr, flush=True)
    return subprocess.run(whole, check=False).returncode == 0


if __name__ == "__main__":
    main()
