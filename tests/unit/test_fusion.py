"""Which gradients are fused: by size and in the paper's segments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourminutes.comm.fusion import fuse, fuse_by_segments, fuse_by_size
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan

SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=60)


def test_neighbours_are_fused_up_to_the_threshold_and_larger_ones_go_alone() -> None:
    assert fuse_by_size([4, 3, 9, 1, 2, 5], 8) == ((5, 4, 3), (2,), (1, 0))
    assert fuse_by_size([4, 4], 8) == ((1, 0),)
    assert fuse_by_size([4, 4.5], 8) == ((1,), (0,))


@given(SIZES, st.integers(1, 3000))
def test_every_tensor_once_in_backward_order_and_no_bucket_could_take_the_next(sizes: list[int], limit: int) -> None:
    buckets = fuse_by_size(sizes, limit)
    assert [number for bucket in buckets for number in bucket] == list(reversed(range(len(sizes))))
    filled = [sum(sizes[number] for number in bucket) for bucket in buckets]
    assert all(total <= limit or len(bucket) == 1 for total, bucket in zip(filled, buckets, strict=True))
    for total, following in zip(filled, buckets[1:], strict=False):
        assert total + sizes[following[0]] > limit


def test_segments_split_at_the_papers_places() -> None:
    """AlexNet-BN's convolutions and norms, 3.75 million numbers, against its fully connected layers."""
    sizes = [weight.numel() for weight in build_model(ModelPlan(name="alexnet_bn"), 1000, seed=0).parameters()]
    late, early = fuse(sizes, threshold_bytes=1, segments=(20,))
    assert (len(early), len(late)) == (20, 6)
    assert early == tuple(reversed(range(20)))
    assert sum(sizes[number] for number in late) == 58_631_144
    assert sum(sizes[number] for number in early) == 3_749_952


@pytest.mark.parametrize("starts", [(0,), (5,), (3, 2), (2, 2)])
def test_segments_that_are_none_are_refused(starts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must rise and lie within 1 and 4, for 5 tensors"):
        fuse_by_segments(5, starts)
