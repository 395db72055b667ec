"""What a run tells: in which order, on the screen, and in TensorBoard's event files."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from support import epochs
from support.epochs import step_times
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fourminutes.errors import UserError
from fourminutes.record import Epoch
from fourminutes.train.display import Display, epoch_line, time_percent
from fourminutes.train.listen import Listener, Listeners, StepNews
from fourminutes.train.tensorboard import tensorboard

STEPS = 4  # of an epoch
TIMES = step_times(
    input_wait_s=1,
    forward_s=12,
    backward_s=20,
    exposed_reduce_s=2,
    optimizer_s=0.1,
    evaluation_s=4,
    checkpoint_s=0.4,
    other_s=0.5,
)
epoch_record = partial(epochs.epoch_record, steps_per_epoch=STEPS, times=TIMES)


def news(batch: int, **changed: object) -> StepNews:
    values = {"step": batch, "batch": batch, "loss": 10.0 - batch, "rate": batch / 10, "loss_scale": None}
    return StepNews(**(values | {"skipped": False} | changed))


class Diary(Listener):
    """Writes down what it hears, and fails where it is told to."""

    def __init__(self, name: str, heard: list[tuple[object, ...]], *, fails_to_close: bool = False) -> None:
        self.name, self.heard, self.fails_to_close = name, heard, fails_to_close

    def run_begins(self) -> None:
        self.heard.append((self.name, "run begins"))

    def epoch_begins(self, epoch: int) -> None:
        self.heard.append((self.name, "epoch begins", epoch))

    def step(self, news: StepNews) -> None:
        self.heard.append((self.name, "step", news.batch))

    def evaluation_begins(self, epoch: int) -> None:
        self.heard.append((self.name, "evaluation begins", epoch))

    def epoch_ends(self, epoch: Epoch) -> None:
        self.heard.append((self.name, "epoch ends", epoch.epoch))

    def run_ends(self, status: str) -> None:
        self.heard.append((self.name, "run ends", status))

    def close(self) -> None:
        self.heard.append((self.name, "closed"))
        if self.fails_to_close:
            raise OSError("the disk is full")


def tell_all(listener: Listener) -> None:
    listener.run_begins()
    listener.epoch_begins(1)
    listener.step(news(1))
    listener.evaluation_begins(1)
    listener.epoch_ends(epoch_record(1))
    listener.run_ends("success")
    listener.close()


def test_every_listener_hears_everything_in_order():
    heard: list[tuple[object, ...]] = []
    tell_all(Listeners([Diary("a", heard), Listener(), Diary("b", heard)]))
    told = [
        ("run begins",),
        ("epoch begins", 1),
        ("step", 1),
        ("evaluation begins", 1),
        ("epoch ends", 1),
        ("run ends", "success"),
        ("closed",),
    ]
    assert [entry[1:] for entry in heard if entry[0] == "a"] == told
    assert [entry[1:] for entry in heard if entry[0] == "b"] == told
    assert heard[:2] == [("a", "run begins"), ("b", "run begins")]


def test_all_are_closed_even_where_one_fails():
    heard: list[tuple[object, ...]] = []
    with pytest.raises(OSError, match="disk is full"):
        Listeners([Diary("a", heard), Diary("b", heard, fails_to_close=True), Diary("c", heard)]).close()
    assert sorted(heard) == [("a", "closed"), ("b", "closed"), ("c", "closed")]


def test_an_epochs_line_says_what_came_out_and_where_the_time_went():
    assert epoch_line(epoch_record(3), 90) == (
        "epoch 3/90: loss 2.500, top-1 30.00 %, 123 images/s; input wait 2 %, forward 30 %, backward 50 %, "
        "exposed communication 5 %, evaluation 10 %, checkpoint 1 %, other 1 %"
    )


def test_the_shares_of_the_time_are_of_all_its_parts():
    assert sum(time_percent(TIMES).values()) == pytest.approx(100)


def test_a_long_wait_for_the_input_is_told_with_its_length_and_what_would_help():
    times = TIMES.model_copy(update={"input_wait_s": 12.4, "forward_s": 0.6})
    line = epoch_line(epoch_record(1, times=times), 90)
    assert "; input wait 31 % (12.4 s of 40.0 s), forward 2 %" in line
    assert line.endswith("; more loader.threads, or shards made with short_side_px, would help")


def test_skipped_steps_and_an_unusual_loss_scale_are_told_and_the_usual_one_is_not():
    def results(**changed: object) -> str:
        return epoch_line(epoch_record(1, **changed), 90, 32_768).split("; ")[0].partition("images/s")[2]

    assert results(loss_scale=32_768.0) == ""
    assert results(loss_scale=4096.0, skipped_steps=3) == ", 3 steps skipped, loss scale 4096"
    assert results(loss_scale=65536.0, skipped_steps=1) == ", 1 step skipped, loss scale 65536"


def test_the_display_counts_images_from_where_the_session_began(capsys: pytest.CaptureFixture[str]):
    display = Display("a-run", epochs=2, total_steps=2 * STEPS, step=STEPS, global_batch=32, enabled=True)
    for batch in range(STEPS + 1, 2 * STEPS + 1):
        display.step(news(batch))
    display.epoch_ends(epoch_record(2))
    display.close()
    shown = capsys.readouterr().err
    assert "epoch 2/2: loss 2.500, top-1 20.00 %" in shown
    assert "a-run: 100%" in shown
    assert f"{2 * STEPS * 32}/{2 * STEPS * 32}" in shown
    assert f"loss={10 - 2 * STEPS:.3f}" in shown


def test_a_display_that_is_not_enabled_shows_nothing(capsys: pytest.CaptureFixture[str]):
    tell_all(Display("a-run", epochs=2, total_steps=8, step=0, global_batch=32, enabled=False))
    assert capsys.readouterr() == ("", "")


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def session(folder: Path, batches: range, *, from_step: int, loss: float = 1.0) -> None:
    """A session over global batches, numbered from 1, with an evaluation after each epoch that it ends."""
    (listener,) = tensorboard(folder, from_step=from_step)
    for batch in batches:
        listener.step(news(batch, loss=loss, loss_scale=1024.0))
        if batch % STEPS == 0:
            listener.epoch_ends(epoch_record(batch // STEPS))
    listener.close()


def test_tensorboard_has_the_curves_of_steps_and_epochs(tmp_path: Path):
    session(tmp_path, range(1, 2 * STEPS + 1), from_step=0)
    scalars = read_back(tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 2 * STEPS + 1))
    assert scalars["train/rate"][2] == (3, pytest.approx(0.3))
    assert {value for _, value in scalars["train/loss_scale"]} == {1024}
    assert scalars["validation/top1_percent"] == [(STEPS, 10), (2 * STEPS, 20)]
    assert scalars["validation/top5_percent"] == [(STEPS, 20), (2 * STEPS, 40)]
    assert scalars["validation/loss"] == [(STEPS, pytest.approx(2.9)), (2 * STEPS, pytest.approx(2.8))]
    assert scalars["train/images_per_s"][0] == (STEPS, pytest.approx(123.4))
    shares = [points[0][1] for tag, points in scalars.items() if tag.startswith("time_percent/")]
    assert len(shares) == 8
    assert sum(shares) == pytest.approx(100)


def test_a_batch_whose_step_was_skipped_has_a_point_of_its_own(tmp_path: Path):
    (listener,) = tensorboard(tmp_path, from_step=0)
    for batch, step in ((1, 1), (2, 1), (3, 2)):
        listener.step(news(batch, step=step, skipped=batch == 2))
    listener.close()
    assert [step for step, _ in read_back(tmp_path)["train/loss"]] == [1, 2, 3]


def test_a_run_that_goes_on_shows_no_batch_twice_and_the_later_session_where_both_have_it(tmp_path: Path):
    session(tmp_path, range(1, 2 * STEPS + 1), from_step=0, loss=1.0)
    session(tmp_path, range(STEPS + 3, 3 * STEPS + 1), from_step=STEPS + 2, loss=2.0)
    scalars = read_back(tmp_path)
    expected = [(batch, 1.0 if batch <= STEPS + 2 else 2.0) for batch in range(1, 3 * STEPS + 1)]
    assert scalars["train/loss"] == expected
    assert [step for step, _ in scalars["validation/top1_percent"]] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_without_tensorboard_there_is_no_listener_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tensorboard(tmp_path, from_step=0) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        tensorboard(tmp_path / "file" / "run", from_step=0)
