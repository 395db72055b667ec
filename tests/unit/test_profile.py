"""Where a network's time goes by layer: from rates by hand, and measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourminutes.plan import ModelPlan
from fourminutes.record import ProfileRecord, read_record
from fourminutes.scale.layers import layers_of
from fourminutes.scale.profile import by_arithmetic, come_percent, profile_from_rates, profile_table
from fourminutes.train.profile import measured_profile

FOURMINUTES = Path(sys.executable).with_name("fourminutes")
SMALL = ModelPlan(name="resnet_small", image_px=32)


def test_a_layer_takes_its_arithmetic_or_its_memory_by_hand() -> None:
    record = profile_from_rates(ModelPlan(name="alexnet_bn"), 1000, 10, "fp32", 1e12, 1e11)
    by_name = {layer.name: layer for layer in record.layers}
    conv3 = by_name["conv3"]  # 256 x 3 x 3 multiplications for each of 384 x 13 x 13 numbers
    assert conv3.forward_s == pytest.approx(10 * 2 * 256 * 9 * 384 * 169 / 1e12)
    assert conv3.backward_s == pytest.approx(2 * conv3.forward_s)
    fc6 = by_name["fc6"]  # reads 9216 x 4096 weights and as many biases as numbers out
    assert fc6.forward_s == pytest.approx(4 * (9216 * 4096 + 4096 + 10 * (9216 + 4096)) / 1e11)
    norm1 = by_name["norm1"]  # reads and writes 96 x 27 x 27
    assert norm1.forward_s == pytest.approx(4 * (10 * 2 * 96 * 27 * 27 + 2 * 96) / 1e11)
    conv1 = by_name["conv1"]
    assert conv1.backward_s == conv1.forward_s
    assert by_name["fc8"].ready_s == by_name["fc8"].backward_s
    assert conv1.ready_s == pytest.approx(sum(layer.backward_s for layer in record.layers)) == record.backward_s


def test_half_precision_moves_half_the_bytes() -> None:
    single, half = (profile_from_rates(SMALL, 10, 8, form, 1e18, 1e9) for form in ("fp32", "half"))
    assert half.forward_s == pytest.approx(single.forward_s / 2)


def test_by_arithmetic_keeps_both_passes_and_shares_them_out_by_multiplications() -> None:
    record = profile_from_rates(SMALL, 10, 8, "fp32", 1e18, 1e9)
    supposed = by_arithmetic(record)
    assert supposed.forward_s == pytest.approx(record.forward_s)
    assert supposed.backward_s == pytest.approx(record.backward_s)
    assert {layer.forward_s for layer in supposed.layers if layer.kind == "norm"} == {0.0}
    first, _, third = (layer.forward_s for layer in supposed.layers[:3])
    macs = [layer.macs for layer in layers_of(SMALL, 10)]
    assert first / third == pytest.approx(macs[0] / macs[2])


def test_what_is_there_by_hand() -> None:
    record = profile_from_rates(ModelPlan(name="alexnet_bn"), 1000, 10, "fp32", 1e12, 1e15)
    assert come_percent(record, 1) == 100
    assert come_percent(record, 0) == 0
    linear = sum(layer.parameters for layer in record.layers if layer.kind == "linear")
    after_linear = record.layers[-3].ready_s / record.backward_s
    assert come_percent(record, after_linear) == pytest.approx(100 * linear / 62_381_096)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "half"])
def test_a_measured_profile_has_every_layer_in_the_order_in_which_gradients_come(precision: str) -> None:
    record = measured_profile(SMALL, 10, 4, precision, "cpu")  # type: ignore[arg-type]
    layers = layers_of(SMALL, 10)
    assert [layer.name for layer in record.layers] == [layer.name for layer in layers]
    assert [layer.parameters for layer in record.layers] == [sum(layer.tensors) for layer in layers]
    assert all(layer.forward_s > 0 and layer.backward_s >= 0 for layer in record.layers)
    assert sum(layer.backward_s for layer in record.layers) == pytest.approx(record.backward_s)
    assert record.layers[-1].ready_s == min(layer.ready_s for layer in record.layers)
    assert record.origin == "measured"
    for layer in record.layers:
        low_s, high_s = layer.ready_quartiles_s
        assert low_s <= layer.ready_s <= high_s


def test_the_table_begins_with_the_slowest_layer_and_ends_with_the_gradients() -> None:
    text = profile_table(profile_from_rates(ModelPlan(name="alexnet_bn"), 1000, 10, "fp32", 1e12, 1e15))
    assert text.splitlines()[5].startswith("conv2")
    # The three linear layers hold 94 % of the parameters, and are there after 5 % of the multiplications.
    assert text.endswith("95 % at 25 %, 98 % at 50 %, 99 % at 75 % of the backward pass.")


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [FOURMINUTES, "scale", "profile", "--model", "resnet_small", "--image-px", "32", "--classes", "10"]
    out = ["--out", tmp_path / "profile.json"]
    without_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*line, *out, *options], check=False, capture_output=True, text=True, timeout=120, env=without_gpu
    )


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    done = run(tmp_path, "--tflops", "11.8", "--memory-gb-s", "346")
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "profile.json", ProfileRecord)
    assert record.rates == pytest.approx((11.8e12, 346e9))
    assert _words(done.stdout) == _words(profile_table(record))


def _words(text: str) -> list[str]:
    """Without the spaces and rules between columns, whose widths the report's tables set for the whole process."""
    return [word for word in text.split() if set(word) != {"-"}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tflops", "1"), "go together"),
        (("--tflops", "inf", "--memory-gb-s", "1"), "--tflops"),
        (("--tflops", "1", "--memory-gb-s", "1", "--precision", "amp"), "from rates there is no device"),
        (("--device", "cuda"), "torch finds no GPU here"),
        (("--images", "0"), "--images"),
        (("--model", "resnet51"), "resnet51"),
    ],
)
def test_wrong_questions_get_one_clear_answer(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
