"""What a trace says of a step's communication: spans, overlap, and the Chrome trace of all ranks."""

import pytest
import torch

from fourminutes.comm.trace import QUEUED, Span, Tracer, chrome_trace, overlap

# The last bucket is ready at 3 s, when the second is half reduced.
SPANS = [
    Span(0, QUEUED, 1, 1),
    Span(0, "all_reduce, world", 1, 2),
    Span(1, QUEUED, 2, 2),
    Span(1, "all_reduce, world", 2, 4),
    Span(2, QUEUED, 3, 4),
    Span(2, "reduce, within", 4, 5),
    Span(2, "broadcast, within", 5, 6),
]


def test_what_runs_after_the_last_bucket_is_ready_is_exposed() -> None:
    found = overlap(SPANS)
    assert (found.busy_s, found.exposed_s) == (5, 3)
    assert found.hidden_percent == pytest.approx(40)
    assert overlap([]).hidden_percent == 100


def test_buckets_beside_one_another_count_once() -> None:
    beside = Span(3, "all_reduce, world", 3.5, 7)
    found = overlap([*SPANS, Span(3, QUEUED, 2.5, 3.5), beside, Span(4, "divide", 8, 9)])
    assert (found.busy_s, found.exposed_s) == (7, 5)


def test_a_bucket_goes_from_stretch_to_stretch_without_a_gap() -> None:
    tracer = Tracer(torch.device("cpu"))
    for bucket, name in [(0, QUEUED), (1, QUEUED), (0, "reduce"), (0, ""), (1, "reduce"), (1, "")]:
        tracer.mark(bucket, name)
    spans = tracer.spans()
    assert [(span.bucket, span.name) for span in spans] == [(0, QUEUED), (0, "reduce"), (1, QUEUED), (1, "reduce")]
    assert spans[0].end_s == spans[1].start_s < spans[1].end_s <= spans[3].start_s == spans[2].end_s


def test_the_chrome_trace_has_a_process_a_rank_and_a_thread_a_bucket() -> None:
    later = [Span(span.bucket, span.name, span.start_s + 0.5, span.end_s + 0.5) for span in SPANS]
    trace = chrome_trace([SPANS, later], ["a", "b"], {"run": "mine"})
    names = [(event["pid"], event["args"]["name"]) for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names == [(0, "rank 0, a"), (1, "rank 1, b")]
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == 2 * len(SPANS)
    assert [(one["ts"], one["dur"], one["tid"]) for one in spans[:4]] == [
        (0, 0, 0), (0, 1e6, 0), (1e6, 0, 1), (1e6, 2e6, 1),
    ]  # fmt: skip
    assert min(one["ts"] for one in spans if one["pid"] == 1) == pytest.approx(0.5e6)
    assert trace["otherData"]["run"] == "mine"
    assert [one["hidden_percent"] for one in trace["otherData"]["overlap_by_rank"]] == pytest.approx([40, 40])
