"""What a training needs before it begins; what is lacking, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fourminutes.comm.group import device_of, require_device
from fourminutes.comm.launch import Launch
from fourminutes.errors import UserError
from fourminutes.plan import DataPlan, Plan, RunPlan
from fourminutes.record import Manifest, read_record


def data_of(plan: Plan) -> tuple[DataPlan, Manifest]:
    """The data set of a plan, as made.

    Raises:
        UserError: the plan has none, or it is not made yet.
    """
    if plan.data is None:
        raise UserError(f"plan {plan.name!r} has no data block; add one that names the pictures")
    if not plan.manifest.is_file():
        raise UserError(f"{plan.manifest}: the data set is not made yet; run `snakemake {plan.manifest}` first")
    return plan.data, read_record(plan.manifest, Manifest)


def require_fit(name: str, settings: RunPlan, manifest: Manifest, launch: Launch) -> None:
    """Make sure that the data and the processes at hand are enough for what `name` asks for.

    Raises:
        UserError: they are not.
    """
    train_images = manifest.splits["train"].samples
    if train_images < settings.batch.global_batch:
        raise UserError(
            f"{name}: batch.global_batch {settings.batch.global_batch} is more than the {train_images} training "
            "images; choose a smaller one"
        )
    require_place(name, settings, launch)


def require_place(name: str, settings: RunPlan, launch: Launch) -> None:
    """Make sure that the processes at hand are what `name` asks for, pictures aside.

    Raises:
        UserError: they are not.
    """
    if settings.cuda_graph and device_of(launch).type != "cuda":
        raise UserError(f"{name}: cuda_graph: there is no GPU here; set it to false")
    require_device(name, settings.device, launch)
    wanted = settings.processes
    if launch.world_size != wanted:
        raise UserError(
            f"{name}: its plan asks for {wanted} processes, but {launch.world_size} were started; start it by "
            f"`fourminutes launch --processes {wanted} -- fourminutes ...`, by torchrun or by srun"
        )


@contextmanager
def in_words(name: str, settings: RunPlan) -> Iterator[None]:
    """Within this, what the device or the compiler cannot do ends in one line.

    Raises:
        UserError: the GPU's memory is too small, or the network cannot be compiled here.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name}: batch.per_device {settings.batch.per_device}: more than the GPU's memory holds; lower it, and "
            "micro-batches make up the same global batch"
        ) from error
    except _compiler_errors(settings) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name}: compile: torch cannot compile the network here ({reason}); set it to false"
        ) from error


def _compiler_errors(settings: RunPlan) -> tuple[type[Exception], ...]:
    if not settings.compile:
        return ()
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    return (TorchDynamoException,)
