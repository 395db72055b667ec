"""A run's curves for TensorBoard: `tensorboard --logdir logs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fourminutes.files import clear_write_errors
from fourminutes.record import Epoch
from fourminutes.train.display import time_percent
from fourminutes.train.listen import Listener, StepNews

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def tensorboard(folder: Path, *, from_step: int) -> list[Listener]:
    """The listener that writes event files into `folder`; none where TensorBoard isn't installed.

    Args:
        folder: the run's own; a run that goes on writes one more file there.
        from_step: global batches consumed so far. Whatever lies in `folder` of later ones is void, as the weights that
            it tells of are lost: TensorBoard shows no batch twice.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    with clear_write_errors(folder):
        # A path as text: the writer hands it to code that knows no other.
        return [_Curves(SummaryWriter(str(folder), purge_step=from_step + 1), from_step)]


class _Curves(Listener):
    """Scalars over the global batches consumed, which, unlike optimizer steps, an overflow doesn't hold up."""

    def __init__(self, writer: SummaryWriter, batch: int) -> None:
        self._writer = writer
        self._batch = batch

    def step(self, news: StepNews) -> None:
        """Write what changes with every batch."""
        self._batch = news.batch
        self._write({"train/loss": news.loss, "train/rate": news.rate, "train/loss_scale": news.loss_scale})

    def epoch_ends(self, epoch: Epoch) -> None:
        """Write what is known once an epoch, at its last batch."""
        shares = {f"time_percent/{name.replace(' ', '_')}": share for name, share in time_percent(epoch.times).items()}
        scalars: dict[str, float | None] = {
            "train/images_per_s": epoch.images_per_s,
            "train/skipped_steps": epoch.skipped_steps,
            "train/flushed_percent": epoch.flushed_percent,
            "validation/loss": epoch.val_loss,
            "validation/top1_percent": epoch.top1_percent,
            "validation/top5_percent": epoch.top5_percent,
            **shares,
        }
        self._write(scalars)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, and end the writer's thread."""
        self._writer.close()

    def _write(self, scalars: dict[str, float | None]) -> None:
        for tag, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(tag, value, self._batch)
