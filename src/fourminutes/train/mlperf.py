"""The log that MLPerf asks of a training of ResNet-50, by its own library and rules (4.0, the last with ResNet)."""

from __future__ import annotations

import json
import logging
import math
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

from fourminutes.errors import UserError
from fourminutes.files import clear_write_errors, write_text
from fourminutes.optim.update import EPSILON
from fourminutes.plan import MlperfPlan, RunPlan
from fourminutes.record import Epoch
from fourminutes.train.listen import Listener, RunStatus

TARGET_TOP1 = 0.759
_SOURCES = Path(__file__).parents[2]  # left out of the places in the code that the log names


class MlperfLog(Listener):
    """Writes ``:::MLLOG`` lines to a file of its own.

    The clock of the rules runs from `run_begins` until the accuracy first reaches `TARGET_TOP1`; what comes later is
    not logged. A run that ends without is logged as aborted, however well it went: the rules have no third word. Every
    epoch is evaluated, and so is a block of its own.

    A run that goes on from a checkpoint goes on in its log: what an earlier session said of the epoch under way, and of
    later ones, is taken back. Where that log is gone none is begun, since its clock would start in the middle. None is
    written for AlexNet either, which is no benchmark of MLPerf.

    Args:
        path: the log.
        settings: of the run.
        submitter: who the log is by.
        train_images: number of training images.
        val_images: number of validation images.
        steps_per_epoch: optimizer steps of an epoch.
        resumed: whether the run goes on from a checkpoint.

    Raises:
        UserError: mlperf-logging isn't installed, or the log cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: RunPlan,
        submitter: MlperfPlan,
        *,
        train_images: int,
        val_images: int,
        steps_per_epoch: int,
        resumed: bool,
    ) -> None:
        self._path = path
        self._takes_back = resumed
        self._epoch = 0
        library, self._keys = _library()
        # Made by hand, and so known to nobody else: nothing is printed, and nothing outlives `close`.
        self._logger = logging.Logger("mlperf")
        self._logger.disabled = not settings.model.name.startswith("resnet") or (resumed and not path.is_file())
        self._log = library.MLLogger(self._logger, root_dir=re.escape(str(_SOURCES)))
        if self._logger.disabled:
            return
        # Opened with its first line, since taking back replaces the file.
        handler = logging.FileHandler(path, mode="a" if resumed else "w", encoding="utf-8", delay=True)
        self._logger.addHandler(handler)
        if not resumed:
            sizes = _sizes(self._keys, settings, train_images, val_images)
            with clear_write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._introduce(
                    _submission(self._keys, submitter), sizes | _update(self._keys, settings, steps_per_epoch)
                )

    def run_begins(self) -> None:
        """End the setting up, and start the clock."""
        if not self._takes_back:
            self._log.end(self._keys.INIT_STOP)
            self._log.start(self._keys.RUN_START)

    def epoch_begins(self, epoch: int) -> None:
        """Start a block of one epoch."""
        if self._takes_back and not self._logger.disabled:
            self._logger.disabled = not _take_back(self._path, epoch, run_stop=self._keys.RUN_STOP)
        self._takes_back = False
        self._epoch = epoch
        block = {self._keys.FIRST_EPOCH_NUM: epoch, self._keys.EPOCH_COUNT: 1}
        self._log.start(self._keys.BLOCK_START, metadata=block)
        self._log.start(self._keys.EPOCH_START, metadata=self._at())

    def evaluation_begins(self, epoch: int) -> None:
        """Go over from training to evaluating."""
        self._log.end(self._keys.EPOCH_STOP, metadata=self._at())
        self._log.start(self._keys.EVAL_START, metadata=self._at())

    def epoch_ends(self, epoch: Epoch) -> None:
        """Log the accuracy, and stop the clock where it is the target's."""
        accuracy = epoch.top1_percent / 100
        self._log.event(self._keys.EVAL_ACCURACY, accuracy, metadata=self._at())
        self._log.end(self._keys.EVAL_STOP, metadata=self._at())
        self._log.end(self._keys.BLOCK_STOP, metadata={self._keys.FIRST_EPOCH_NUM: self._epoch})
        if accuracy >= TARGET_TOP1:
            self._stop(self._keys.SUCCESS)

    def run_ends(self, status: RunStatus) -> None:
        """Stop the clock, if it still runs: the target was not reached."""
        self._stop(self._keys.ABORTED)

    def close(self) -> None:
        """Close the file."""
        for handler in self._logger.handlers:
            handler.close()

    def _introduce(self, submission: dict[str, Any], settings: dict[str, Any]) -> None:
        for key, value in submission.items():
            self._log.event(key, value)
        self._log.start(self._keys.INIT_START)
        for key, value in settings.items():
            self._log.event(key, value)

    def _stop(self, status: str) -> None:
        self._log.end(self._keys.RUN_STOP, metadata=self._at() | {self._keys.STATUS: status})
        self._logger.disabled = True

    def _at(self) -> dict[str, int]:
        return {self._keys.EPOCH_NUM: self._epoch}


def _library() -> tuple[Any, Any]:
    """MLPerf's logger and the names of what it logs."""
    try:
        from mlperf_logging.mllog import constants, mllog  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("mlperf: needs mlperf-logging; install this project with its extra 'train'") from error
    return mllog, constants


def _submission(keys: Any, submitter: MlperfPlan) -> dict[str, Any]:
    return {
        keys.SUBMISSION_BENCHMARK: keys.RESNET,
        keys.SUBMISSION_ORG: submitter.organization,
        keys.SUBMISSION_PLATFORM: submitter.platform,
        keys.SUBMISSION_DIVISION: submitter.division,
        keys.SUBMISSION_STATUS: submitter.status,
        # The rules ask for it; nothing here clears the operating system's caches.
        keys.CACHE_CLEAR: False,
    }


def _sizes(keys: Any, settings: RunPlan, train_images: int, val_images: int) -> dict[str, Any]:
    batch = settings.batch
    return {
        keys.SEED: settings.seed,
        keys.GLOBAL_BATCH_SIZE: batch.global_batch,
        keys.GRADIENT_ACCUMULATION_STEPS: settings.micro_batches,
        keys.MODEL_BN_SPAN: batch.per_device * batch.bn_span,  # in images
        keys.TRAIN_SAMPLES: train_images,
        keys.EVAL_SAMPLES: val_images,
    }


def _update(keys: Any, settings: RunPlan, steps_per_epoch: int) -> dict[str, Any]:
    """Optimizer and schedule by the names of the rules, which for SGD are those of LARS with another beginning."""
    plan, rates = settings.optimizer, settings.rates
    values = {
        keys.LARS_OPT_BASE_LEARNING_RATE: rates.base_rate,
        keys.LARS_OPT_LEARNING_RATE_WARMUP_EPOCHS: rates.warmup_epochs,
        keys.LARS_OPT_LR_DECAY_STEPS: round((settings.epochs - rates.warmup_epochs) * steps_per_epoch),
        keys.LARS_OPT_MOMENTUM: plan.momentum,
        keys.LARS_OPT_WEIGHT_DECAY: plan.weight_decay,
    }
    if rates.decay in ("polynomial", "cosine"):
        values[keys.LARS_OPT_END_LR] = rates.end_rate
    if rates.decay == "polynomial":
        values[keys.LARS_OPT_LR_DECAY_POLY_POWER] = rates.power
    named = {keys.OPT_NAME: plan.kind, keys.OPT_LR_DECAY_SCHEDULE: rates.decay}
    if rates.decay == "multistep":
        named |= {keys.OPT_LR_DECAY_BOUNDARY_EPOCHS: rates.milestones, keys.OPT_LR_DECAY_FACTOR: rates.milestone_factor}
    if plan.kind == "lars":
        return named | values | {keys.LARS_EPSILON: EPSILON[plan.variant] if plan.epsilon is None else plan.epsilon}
    # The one name that has no beginning there.
    values[keys.OPT_LR_WARMUP_EPOCHS] = values.pop(keys.LARS_OPT_LEARNING_RATE_WARMUP_EPOCHS)
    return named | {name.replace(keys.LARS, keys.SGD, 1): value for name, value in values.items()}


def _take_back(path: Path, epoch: int, *, run_stop: str) -> bool:
    """Drop all lines from epoch number `epoch` on; returns whether the clock still runs by those that are left."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = list(takewhile(lambda line: _epoch_of(line) < epoch, lines))
    write_text(path, "".join(kept))
    return not any(_logged(line).get("key") == run_stop for line in kept)


def _epoch_of(line: str) -> float:
    """The epoch that a line belongs to: 0 before the first, infinity for one that was cut off in the middle."""
    if not line.endswith("\n"):
        return math.inf
    metadata = _logged(line)["metadata"]
    number: float = metadata.get("epoch_num", metadata.get("first_epoch_num", 0))
    return number


def _logged(line: str) -> dict[str, Any]:
    """What a line says."""
    logged: dict[str, Any] = json.loads(line.partition(" ")[2])
    return logged
