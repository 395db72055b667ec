"""The `fourminutes scale profile` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fourminutes.cli_comm import require_json
from fourminutes.errors import UserError
from fourminutes.plan import ModelName, ModelPlan, Precision


def profile(
    model: Annotated[ModelName, typer.Option(help="network")],
    out: Annotated[Path, typer.Option(help="JSON record to write")],
    images: Annotated[int, typer.Option(help="images a batch", min=1, max=4096)] = 32,
    image_px: Annotated[int, typer.Option("--image-px", help="side of the square input, in pixels", min=16)] = 224,
    width: Annotated[float, typer.Option(help="factor on the number of channels", min=0.01)] = 1.0,
    classes: Annotated[int, typer.Option(help="classes of the last layer", min=2)] = 1000,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where to measure")] = "cpu",
    precision: Annotated[
        Precision, typer.Option(help="number format; from rates fp32, or half for two bytes")
    ] = "fp32",
    tflops: Annotated[
        float | None, typer.Option(help="in place of measuring: 10^12 operations/s of a device", min=1e-6, max=1e9)
    ] = None,
    memory_gb_s: Annotated[
        float | None, typer.Option("--memory-gb-s", help="with --tflops: 10^9 bytes/s of its memory", min=1e-6, max=1e9)
    ] = None,
) -> None:
    """Say where a network's time goes by layer, and when its gradients come: measured, or from a device's two rates."""
    from fourminutes.record import write_record
    from fourminutes.scale.profile import profile_from_rates, profile_table

    require_json(out)
    if (tflops is None) != (memory_gb_s is None):
        raise UserError("--tflops, --memory-gb-s: go together; give both, or none to measure")
    if tflops is not None and (device != "cpu" or precision in ("amp", "bf16", "half-lars")):
        raise UserError("--device, --precision: from rates there is no device, and fp32 or half; leave --device out")
    settings = ModelPlan(name=model, width=width, image_px=image_px)
    if tflops is not None and memory_gb_s is not None:
        record = profile_from_rates(settings, classes, images, precision, 1e12 * tflops, 1e9 * memory_gb_s)
    else:
        from fourminutes.train.profile import measured_profile  # takes seconds

        record = measured_profile(settings, classes, images, precision, device)
    write_record(out, record)
    print(profile_table(record))
