"""The plan's run blocks: one training run each."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from fourminutes.plan.base import PlanModel, content_hash
from fourminutes.plan.place import PlacedPlan

ModelName = Literal["alexnet", "alexnet_bn", "resnet50", "resnet_small"]
ParameterKind = Literal["bias", "norm"]
Precision = Literal["fp32", "bf16", "amp", "half", "half-lars"]


class ModelPlan(PlanModel):
    """The network."""

    name: ModelName = Field("resnet50", description="architecture")
    width: float = Field(
        1.0, gt=0, le=4, description="factor on the number of channels of every layer; 1 is the paper's"
    )
    image_px: int = Field(224, ge=16, le=512, description="side of the square input, in pixels")
    bn_after_pool5: bool = Field(
        True, description="alexnet_bn: whether a batch norm is between pool5 and fc6, the paper's addition"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="alexnet, alexnet_bn: share of fc6's and fc7's units left out")
    stem_stride: int | None = Field(
        None, ge=1, le=4, description="resnet_small: stride of the first convolution, in pixels; null is 1"
    )

    _only_of: ClassVar[dict[str, tuple[ModelName, ...]]] = {
        "bn_after_pool5": ("alexnet_bn",),
        "dropout": ("alexnet", "alexnet_bn"),
        "stem_stride": ("resnet_small",),
    }

    @model_validator(mode="after")
    def _has_its_settings(self) -> Self:
        for key, owners in self._only_of.items():
            # A plan is written out with all its defaults, so that those say nothing.
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and self.name not in owners:
                raise ValueError(f"{key}: {self.name} has no such setting, only {' and '.join(owners)}; leave it out")
        return self


class OptimizerPlan(PlanModel):
    """The update rule; the equations are in `fourminutes.optim`."""

    kind: Literal["lars", "sgd"] = Field("lars", description="layer-wise adaptive rates, or plain momentum SGD")
    variant: Literal["paper", "mlperf"] = Field(
        "paper", description="LARS: rate inside the momentum (paper), or corrected so that it acts outside (mlperf)"
    )
    trust_coefficient: float = Field(0.001, gt=0, description="LARS: factor eta of the trust ratio")
    epsilon: float | None = Field(
        None, ge=0, description="LARS: added to the trust ratio's denominator; null is 1e-9 for paper, 0 for mlperf"
    )
    decay_in_denominator: bool = Field(True, description="LARS: whether decay times weight norm is in the denominator")
    momentum_correction: bool = Field(
        True, description="LARS mlperf: whether the momentum follows the rate; false is Google's form"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum factor")
    nesterov: bool = Field(False, description="SGD: Nesterov's form of the momentum")
    weight_decay: float = Field(5e-5, ge=0, description="L2 decay added to the gradient")
    no_decay: tuple[ParameterKind, ...] = Field(
        ("bias", "norm"), description="kinds of parameters that are not decayed"
    )
    no_adaptation: tuple[ParameterKind, ...] = Field(
        ("bias", "norm"), description="LARS: kinds of parameters whose trust ratio is 1"
    )


class SchedulePlan(PlanModel):
    """The learning rate over the epochs."""

    base_rate: float = Field(0.1, gt=0, description="rate at the end of the warm-up")
    base_batch: int | None = Field(
        None,
        ge=1,
        description="batch that base_rate is meant for: the rate is base_rate x global_batch / base_batch, "
        "the linear scaling rule; null takes base_rate as it is",
    )
    warmup_epochs: float = Field(0, ge=0, description="length of the linear warm-up, in epochs")
    warmup_rate: float = Field(0, ge=0, description="rate at which the warm-up starts")
    decay: Literal["polynomial", "cosine", "multistep", "constant"] = Field(
        "polynomial", description="form after the warm-up"
    )
    power: float = Field(2, gt=0, description="exponent of the polynomial")
    milestones: tuple[float, ...] = Field((), description="multistep: epochs after which the rate falls")
    milestone_factor: float = Field(0.1, gt=0, lt=1, description="multistep: factor of the rate at each milestone")
    end_rate: float = Field(0, ge=0, description="rate at the end of the last epoch")

    @model_validator(mode="after")
    def _steps_down(self) -> Self:
        if bool(self.milestones) != (self.decay == "multistep"):
            raise ValueError("milestones: the multistep decay needs them, and no other has them")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must rise")
        return self


class BatchPlan(PlanModel):
    """The batch; what the devices can't hold at once is accumulated over micro-batches."""

    global_batch: int = Field(256, ge=1, description="images a step, over all processes")
    per_device: int = Field(
        32, ge=2, description="images a forward pass on one device; batch norm's statistics are over these"
    )
    bn_span: int = Field(
        1, ge=1, description="processes that share batch norm's statistics, neighbours by rank; 1 is each its own"
    )


class LossScalePlan(PlanModel):
    """The factor on the loss that keeps small gradients in half precision's range; for amp, half and half-lars."""

    initial: float = Field(32_768, gt=0, le=2**24, description="scale at the start; a power of two rounds nothing")
    dynamic: bool = Field(True, description="halve on an overflow, double after growth_steps without; false keeps it")
    growth_steps: int = Field(2000, ge=1, description="steps without an overflow before the scale doubles")


class EvaluationPlan(PlanModel):
    """How the network is evaluated."""

    recalibration_images: int = Field(
        0,
        ge=0,
        description="training images on which batch norm's running statistics are measured anew before an evaluation; "
        "0 keeps those of training",
    )


#: Ways to sum over all processes.
ArrangementName = Literal["ring", "hierarchical", "torus"]
#: Number formats of gradients on the wire, and the bytes of a number in each.
Wire = Literal["fp32", "fp16", "bf16"]
WIRE_BYTES: dict[Wire, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


class AlgorithmChoice(PlanModel):
    """Which arrangement sums messages of a size."""

    algorithm: ArrangementName = Field(description="arrangement")
    group_ranks: int | None = Field(None, ge=1, description="processes a group for it; null: as all of reduce")
    up_to_kib: float | None = Field(None, gt=0, description="largest message that it is for, in KiB; null: any")

    def holds(self, message_bytes: float) -> bool:
        """Whether a message of so many bytes is not too large for it."""
        return self.up_to_kib is None or message_bytes <= self.up_to_kib * 1024


class ReducePlan(PlanModel):
    """How gradients are averaged over the processes."""

    algorithm: Literal["ring", "hierarchical", "torus", "hybrid", "auto"] = Field(
        "ring",
        description="ring: the library's flat all-reduce; hierarchical: reduce, all-reduce among masters, broadcast; "
        "torus: reduce-scatter, all-reduce across, all-gather; hybrid: by size, one of these; auto: hybrid, with "
        "choices and bucket size measured at the run's start, in about 20 s",
    )
    choices: tuple[AlgorithmChoice, ...] = Field(
        (), description="hybrid: arrangements by rising size of the message; the last one takes any"
    )
    tuning: Path | None = Field(
        None,
        description="hybrid: file of `fourminutes comm tune`, in place of choices; its bucket size too takes the "
        "place of bucket_mib",
    )
    group_ranks: int | None = Field(None, ge=1, description="processes a group; null groups by host")
    wire: Wire = Field("fp32", description="number format of gradients on the wire")
    lanes: int = Field(
        4,
        ge=1,
        le=8,
        description="buckets on their way at once, each lane with communicators of its own; a GPU has one",
    )
    front_end: Literal["ddp", "flat"] = Field(
        "ddp",
        description="ddp: DistributedDataParallel's buckets, about as large as asked for; flat: static buffers, fused "
        "exactly",
    )
    bucket_mib: float = Field(
        25, gt=0, description="size up to which gradients are fused, in MiB of fp32; a larger tensor goes alone"
    )
    segments: tuple[int, ...] = Field(
        (),
        description="flat: the paper's fusion in segments, by the numbers of the gradient tensors (in the model's "
        "order, from 0) with which the second segment begins, the third, ...; empty fuses up to bucket_mib",
    )

    check_every_steps: int = Field(
        100, ge=0, description="steps between two comparisons of all processes' weights, bit for bit; 0: never"
    )

    trace_step: int | None = Field(
        None,
        ge=1,
        description="step of which every bucket's way is written, on all processes, to logs/<plan>/trace/<run>.json, "
        "for Perfetto or chrome://tracing; null: none",
    )

    @property
    def algorithms(self) -> frozenset[str]:
        """Every arrangement that may be used."""
        return frozenset(choice.algorithm for choice in self.choices) or frozenset([self.algorithm])

    @model_validator(mode="after")
    def _fuses(self) -> Self:
        if self.segments and self.front_end != "flat":
            raise ValueError("segments: only front_end flat fuses in segments; set it, or leave them out")
        return self

    @model_validator(mode="after")
    def _chooses(self) -> Self:
        given = bool(self.choices) + (self.tuning is not None)
        if given != (self.algorithm == "hybrid"):
            raise ValueError("choices: hybrid needs them, or a tuning, and no other algorithm has either")
        limits = [choice.up_to_kib or math.inf for choice in self.choices]
        if limits and (limits[-1] != math.inf or any(low >= high for low, high in pairwise(limits))):
            raise ValueError("choices: up_to_kib must rise from one to the next, and be null in the last alone")
        return self


class LoaderPlan(PlanModel):
    """Reading, decoding and augmenting."""

    threads: int = Field(2, ge=1, description="decoding threads a process")
    prefetch_batches: int = Field(2, ge=1, description="batches prepared ahead of use")
    shuffle_window_images: int = Field(4096, ge=1, description="size of the buffer that samples are drawn from")
    chunk_images: int = Field(
        64, ge=1, description="images read in a row from one shard; smaller mixes better and opens more files"
    )
    min_area_percent: float = Field(
        8, gt=0, le=100, description="least share of the image's area that a training crop covers, in percent"
    )
    flip: bool = Field(True, description="mirror half of the training images")


class CheckpointPlan(PlanModel):
    """What is kept to go on from after an interruption."""

    every_steps: int = Field(
        200, ge=1, description="steps between two checkpoints; there is one more at the end of every epoch"
    )
    keep: int = Field(2, ge=1, description="number of newest checkpoints that are kept")
    keep_best: bool = Field(True, description="keep the weights of the best epoch, by top-1, beside the final ones")


class RunPlan(PlacedPlan):
    """One training run, complete."""

    description: str = Field("", description="one sentence for the report")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order and augmentation")
    epochs: int = Field(90, ge=1, description="passes over the training set")
    label_smoothing: float = Field(0, ge=0, lt=1, description="share of the target spread over all classes")
    recipe: str | None = Field(
        None, description="recipe of config/recipes.yaml that lies between the defaults and the run's own values"
    )
    precision: Precision = Field(
        "fp32",
        description="fp32; bf16, amp: autocast to bf16, fp16; half: weights and activations in fp16, masters in fp32, "
        "the paper's; half-lars: likewise without masters, the ablation that the paper argues against",
    )
    loss_scale: LossScalePlan = Field(default_factory=LossScalePlan, description="factor on the loss in fp16")
    max_skipped_steps: int = Field(
        20, ge=1, description="steps in a row that may be skipped for an overflow before the run is given up"
    )
    compile: bool = Field(False, description="compile the network with torch.compile")
    cuda_graph: bool = Field(
        False,
        description="replay each step's kernels from CUDA graphs instead of launching them one by one, which pays with "
        "few images a device; one process on a GPU",
    )
    model: ModelPlan = Field(default_factory=ModelPlan, description="network")
    optimizer: OptimizerPlan = Field(default_factory=OptimizerPlan, description="update rule")
    schedule: SchedulePlan = Field(default_factory=SchedulePlan, description="learning rate")
    batch: BatchPlan = Field(default_factory=BatchPlan, description="batch")
    reduce: ReducePlan = Field(default_factory=ReducePlan, description="averaging of gradients")
    loader: LoaderPlan = Field(default_factory=LoaderPlan, description="input")
    evaluation: EvaluationPlan = Field(default_factory=EvaluationPlan, description="evaluation")
    checkpoint: CheckpointPlan = Field(default_factory=CheckpointPlan, description="checkpoints")

    @property
    def cores(self) -> int:
        """CPU cores a process: those that compute, and those that decode."""
        return self.threads + self.loader.threads

    @property
    def recipe_hash(self) -> str:
        """Identifies what is trained: everything but what leaves the weights as they are.

        Those are the description, the recipe's name, the device, when checkpoints are taken, weights compared and
        buckets traced, how many buckets travel at once, how the loader spreads its work, and how long processes wait
        for one another.
        """
        loader = self.loader.model_copy(update={"threads": 1, "prefetch_batches": 1})
        reduce = self.reduce.model_copy(update={"check_every_steps": 0, "trace_step": None, "lanes": 1})
        same = {"description": "", "recipe": None, "checkpoint": CheckpointPlan(), "loader": loader, "reduce": reduce}
        return content_hash(self.model_copy(update=same), without=frozenset({"device", "lost_after_s"}))

    @property
    def lineage_hash(self) -> str:
        """Identifies what a checkpoint can be gone on from: the recipe, on any number of processes."""
        return self.model_copy(update={"processes": 1, "processes_per_node": None, "threads": 1}).recipe_hash

    @property
    def rates(self) -> SchedulePlan:
        """The schedule with the linear scaling rule applied to its base rate."""
        if self.schedule.base_batch is None:
            return self.schedule
        scaled = self.schedule.base_rate * self.batch.global_batch / self.schedule.base_batch
        return self.schedule.model_copy(update={"base_rate": scaled, "base_batch": None})

    @property
    def micro_batches(self) -> int:
        """Forward passes a process makes before each optimizer step."""
        return self.batch.global_batch // (self.batch.per_device * self.processes)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        at_once = self.batch.per_device * self.processes
        if self.batch.global_batch % at_once:
            raise ValueError(
                f"batch.global_batch {self.batch.global_batch} is no multiple of "
                f"batch.per_device x processes = {self.batch.per_device} x {self.processes} = {at_once}"
            )
        if self.cuda_graph and self.processes > 1:
            raise ValueError(f"cuda_graph: only for processes 1, not {self.processes}; set it to false")
        if self.processes % self.batch.bn_span:
            raise ValueError(f"batch.bn_span {self.batch.bn_span} does not divide processes {self.processes}")
        if self.schedule.milestones and self.schedule.milestones[-1] >= self.epochs:
            raise ValueError(
                f"schedule.milestones: {self.schedule.milestones[-1]:g} is not within {self.epochs} epochs"
            )
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs > 0:
            raise ValueError(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs} leaves none of {self.epochs} epochs"
            )
        return self
