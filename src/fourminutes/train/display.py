"""What a run says on stderr: a bar over all its images, and a line after each epoch."""

from __future__ import annotations

from fourminutes.progress import progress
from fourminutes.record import Epoch

_LONG_WAIT_PERCENT = 20


class Display:
    """Progress of the whole run, on one rank; `step` is where it begins."""

    def __init__(self, run: str, *, epochs: int, total_steps: int, step: int, global_batch: int, enabled: bool) -> None:
        self._epochs = epochs
        self._global_batch = global_batch
        self._bar = progress(total_steps * global_batch, "image", run, enabled=enabled)
        # What an earlier session did counts as done, but not in the rate.
        self._bar.initial = self._bar.n = step * global_batch

    def advance(self, loss: float) -> None:
        """One more step is done."""
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update(self._global_batch)

    def epoch(self, epoch: Epoch) -> None:
        """One more epoch is done and evaluated."""
        if not self._bar.disable:
            self._bar.write(epoch_line(epoch, self._epochs), file=self._bar.fp)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """The epoch in one line, with a hint where the run waits for its input."""
    wait_percent = 100 * epoch.times.input_wait_s / epoch.times.total_s
    line = (
        f"epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.3f}, top-1 {epoch.top1_percent:.2f} %, "
        f"{epoch.images_per_s:.0f} images/s, input wait {wait_percent:.0f} %"
    )
    if wait_percent > _LONG_WAIT_PERCENT:
        line += " (the run waits for its input: more loader.threads, or shards made with short_side_px, would help)"
    return line
