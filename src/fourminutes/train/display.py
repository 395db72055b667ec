"""What a run says on stderr: a bar over all its images, and a line after each epoch."""

from __future__ import annotations

from fourminutes.progress import progress
from fourminutes.record import Epoch, StepTimes
from fourminutes.train.listen import Listener, StepNews

_LONG_WAIT_PERCENT = 20
_MORE_INPUT = "more loader.threads, or shards made with short_side_px,"
_WAIT = "input wait"
_PARTS = {
    _WAIT: "input_wait_s",
    "forward": "forward_s",
    "backward": "backward_s",
    "exposed communication": "exposed_reduce_s",
    "optimizer": "optimizer_s",
    "evaluation": "evaluation_s",
    "checkpoint": "checkpoint_s",
    "other": "other_s",
}


class Display(Listener):
    """Progress of the whole run.

    Args:
        run: name of the run.
        epochs: of the whole run.
        total_steps: global batches of the whole run.
        step: global batches that earlier sessions consumed.
        global_batch: images a batch.
        enabled: whether anything is shown; on one rank.
        loss_scale: the scale that is nothing to tell of; None tells of any.
    """

    def __init__(
        self,
        run: str,
        *,
        epochs: int,
        total_steps: int,
        step: int,
        global_batch: int,
        enabled: bool,
        loss_scale: float | None = None,
    ) -> None:
        self._epochs = epochs
        self._global_batch = global_batch
        self._loss_scale = loss_scale
        self._bar = progress(total_steps * global_batch, "image", run, enabled=enabled)
        # What an earlier session did counts as done, but not in the rate.
        self._bar.initial = self._bar.n = step * global_batch

    def step(self, news: StepNews) -> None:
        """Move the bar on."""
        self._bar.set_postfix(loss=f"{news.loss:.3f}", refresh=False)
        self._bar.update(self._global_batch)

    def epoch_ends(self, epoch: Epoch) -> None:
        """Write the epoch's line above the bar."""
        if not self._bar.disable:
            self._bar.write(epoch_line(epoch, self._epochs, self._loss_scale), file=self._bar.fp)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def epoch_line(epoch: Epoch, epochs: int, usual_loss_scale: float | None = None) -> str:
    """The epoch in one line: what came out, and where its time went.

    What is as usual is left out: no skipped steps, a loss scale of `usual_loss_scale`, parts of less than half a
    percent of the time. A run that waits long for its input is told for how long, and what would help.
    """
    results = [
        f"loss {epoch.train_loss:.3f}",
        f"top-1 {epoch.top1_percent:.2f} %",
        f"{epoch.images_per_s:.0f} images/s",
    ]
    if epoch.skipped_steps:
        results.append(f"{epoch.skipped_steps} {'step' if epoch.skipped_steps == 1 else 'steps'} skipped")
    if epoch.loss_scale not in (None, usual_loss_scale):
        results.append(f"loss scale {epoch.loss_scale:g}")
    return f"epoch {epoch.epoch}/{epochs}: {', '.join(results)}; {_time_split(epoch.times)}"


def time_percent(times: StepTimes) -> dict[str, float]:
    """Every part's share of the epoch's time, in percent, by the part's name in words."""
    return {name: 100 * getattr(times, part) / times.total_s for name, part in _PARTS.items()}


def _time_split(times: StepTimes) -> str:
    shares = time_percent(times)
    waits_long = shares[_WAIT] > _LONG_WAIT_PERCENT
    wait = f"{_WAIT} {shares.pop(_WAIT):.0f} %"
    if waits_long:
        wait += f" ({times.input_wait_s:.1f} s of {times.total_s:.1f} s)"
    split = ", ".join([wait, *(f"{name} {share:.0f} %" for name, share in shares.items() if share >= 0.5)])
    return f"{split}; {_MORE_INPUT} would help" if waits_long else split
