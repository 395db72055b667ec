"""The report in at most five lines, and its key numbers, worked out from the records."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from fourminutes.facts import Certainty
from fourminutes.record import CollectiveTiming, CommRecord, Prediction
from fourminutes.report import words
from fourminutes.report.claims import Verdict
from fourminutes.report.evidence import Evidence, Run, Sourced
from fourminutes.report.figures_runs import TIME_PARTS
from fourminutes.report.precisions import groups
from fourminutes.report.published import Headline, published
from fourminutes.report.tables_whatif import changes
from fourminutes.scale.validate import held_against, verdict

# Among the changes: what is no change, and what changes more than speed.
_NO_CHANGE = ("measured", "as it is", "network x2")


@dataclass(frozen=True)
class KeyNumber:
    """A number that stands for the whole."""

    value: str
    unit: str
    meaning: str
    origin: str


def lines(evidence: Evidence) -> dict[str, str]:
    """At most five lines, each with what it is about.

    What was trained and how well; how fast, and what is idle; how far it scales, and how sure that is; what one change
    would gain most; and what claims came to.
    """
    runs, recorded = evidence.runs, evidence.runs or evidence.arms
    told = {
        "Trained": [_what(evidence), _accuracy(evidence)] if runs else [] if recorded else [_NO_RUNS, _headline()],
        "Speed": [_throughput(evidence), _time(evidence)] if runs else _half_precision(evidence),
        "Scale": [
            *(_collectives(comm.record) for comm in evidence.comms[:1]),
            *_measured_scaling(evidence),
            *_prediction(evidence),
            *_how_near(evidence),
        ],
        "Would help": _what_helps(evidence),
        "Claims": _sweeps(evidence) + _claims(evidence),
    }
    return {about: " ".join(sentences) for about, sentences in told.items() if sentences}


def key_numbers(evidence: Evidence) -> list[KeyNumber]:
    """Best accuracy, highest rate and share of waiting.

    The predicted efficiency joins them only where the links between hosts, which decide it, were measured.
    """
    best, fastest = evidence.best, _fastest(evidence)
    if best is None or fastest is None:
        return []
    numbers = [
        KeyNumber(f"{best.record.final.top1_percent:.1f}", "%", f"best top-1, {best.label}", "measured"),
        KeyNumber(f"{fastest.images_per_s:,.0f}", "images/s", f"highest rate, {fastest.label}", "measured"),
        KeyNumber(f"{_waiting_percent(evidence.runs):.1f}", "%", "of all run time spent waiting", "measured"),
    ]
    comm, largest = _own_comm(evidence), _largest_predicted(evidence)
    if comm and largest and len(set(comm.record.placement.hosts)) > 1:
        meaning = f"efficiency at {largest[0].processes:,} processes, over runs and algorithms"
        numbers.append(KeyNumber(_range(largest), "%", meaning, "predicted"))
    return numbers


_NO_RUNS = "No training run has been recorded yet."


def _headline() -> str:
    told = [
        f"{line.model} to {line.top1_percent.value:g} % top-1 in {line.minutes.value:g} minutes on "
        f"{line.accelerators.value:,.0f} {line.accelerator}"
        for line in _confirmed_headline()
        if line.minutes and line.top1_percent and line.accelerators
    ]
    return f"The paper trained {' and '.join(told)}, both with batches of 65,536 images."


def _confirmed_headline() -> list[Headline]:
    """The paper's own results, without its baselines and without what is only remembered."""
    return [line for line in published().headline if line.minutes and line.certainty is Certainty.CONFIRMED]


def _what(evidence: Evidence) -> str:
    records = [run.record for run in evidence.runs]
    classes = sorted({record.class_count for record in records})
    models = sorted({words.model_name(record.settings.model) for record in records})
    most = max(record.settings.processes for record in records)
    missing = f"; without a record yet: {', '.join(evidence.missing)}" if evidence.missing else ""
    return (
        f"{words.count(len(records), 'run').capitalize()} of {words.joined(models)} "
        f"{'is' if len(records) == 1 else 'are'} recorded, on {' and '.join(f'{n:,}' for n in classes)} classes "
        f"and up to {words.count(most, 'process')}{missing}."
    )


def _accuracy(evidence: Evidence) -> str:
    best = evidence.best
    assert best is not None
    final = best.record.final
    batch = best.record.settings.batch.global_batch
    told = (
        f"The most accurate, {best.label}, reaches {final.top1_percent:.1f} % top-1 and {final.top5_percent:.1f} % "
        f"top-5 after {words.count(final.epoch, 'epoch')} with batches of {batch:,}"
    )
    return f"{told}{_beside_the_paper(best)}."


def _beside_the_paper(run: Run) -> str:
    """What the paper reaches with the same network, and whether that is a measure for `run`; empty without one."""
    model = words.PAPER_MODELS.get(run.record.settings.model.name)
    line = next((line for line in _confirmed_headline() if line.model == model), None)
    if line is None or line.top1_percent is None:
        return ""
    told = f"; the paper's {line.top1_percent.value:g} % for {line.model}"
    if run.on_imagenet:
        return f"{told} are with batches of {line.batch.value:,.0f}"
    return f"{told} are for the full network on the 1,000 classes of ImageNet and are no measure for it"


def _throughput(evidence: Evidence) -> str:
    fastest = _fastest(evidence)
    assert fastest is not None
    device = words.hardware(fastest.record.placement, fastest.record.provenance)
    return f"The fastest, {fastest.label}, trains at {fastest.images_per_s:,.0f} images/s, on {device}."


def _fastest(evidence: Evidence) -> Run | None:
    return max(evidence.runs, key=lambda run: run.images_per_s, default=None)


def _time(evidence: Evidence) -> str:
    """Where the time goes over all runs, what of it is waiting, and what holds the computing back most."""
    total_s = sum(run.seconds("total_s") for run in evidence.runs)
    share = {part: 100 * sum(run.seconds(part) for run in evidence.runs) / total_s for part, *_ in TIME_PARTS}
    labels = {part: label for part, label, *_ in TIME_PARTS}
    computing = ("forward_s", "backward_s")
    largest = max((part for part in share if part not in computing), key=share.__getitem__)
    return (
        f"Of all run time {sum(share[part] for part in computing):.0f} % is forward and backward computing and "
        f"{_waiting_percent(evidence.runs):.1f} % is waiting ({share['input_wait_s']:.1f} % for input, "
        f"{share['exposed_reduce_s']:.1f} % for gradients); the largest part beside computing is {labels[largest]}, "
        f"with {share[largest]:.0f} %."
    )


def _waiting_percent(runs: tuple[Run, ...]) -> float:
    waiting = [part for part, _, _, is_waiting in TIME_PARTS if is_waiting]
    total_s = sum(run.seconds("total_s") for run in runs)
    return 100 * sum(run.seconds(part) for run in runs for part in waiting) / total_s


def _collectives(comm: CommRecord) -> str:
    """Which algorithm wins at which sizes, where the measured spread lets one win."""
    wire = comm.timings[0].wire  # one number format beside another would win at every size
    by_size = sorted((one for one in comm.timings if one.wire == wire), key=_size)
    winners = [
        (size, _winner(sorted(timings, key=lambda timing: timing.median_s), by_size))
        for size, timings in groupby(by_size, key=_size)
    ]
    told = [
        f"{algorithm} {_span([size for size, _ in group])}"
        for algorithm, group in ((name, list(group)) for name, group in groupby(winners, key=lambda pair: pair[1]))
    ]
    return f"Over {words.count(len(comm.placement.hosts), 'process')} the fastest all-reduce is {words.joined(told)}."


def _size(timing: CollectiveTiming) -> int:
    return timing.message_bytes


def _winner(by_median: list[CollectiveTiming], among: list[CollectiveTiming]) -> str:
    """The fastest arrangement, if its interquartile range ends before that of the next one begins."""
    first, *others = by_median
    if others and first.upper_quartile_s >= others[0].lower_quartile_s:
        return "undecided (no difference beyond the spread)"
    return words.arrangement(first, among)


def _span(sizes: list[int]) -> str:
    if len(sizes) == 1:
        return f"at {words.size(sizes[0])}"
    return f"from {words.size(sizes[0])} to {words.size(sizes[-1])}"


def _measured_scaling(evidence: Evidence) -> list[str]:
    """What the most processes of a measured series keep of as many times the rate of one; the best series' of those."""
    kept = [(one, one.of_process) for one in evidence.scalings if one.of_process and one.record.processes > 1]
    if not kept:
        return []
    most, share = max(kept, key=lambda pair: (pair[0].record.processes, pair[1].value))
    processes = most.record.processes
    return [
        f"Measured on {words.count(processes, 'process')}, {most.label} keeps {share.value:.0f} % (95 %: "
        f"{share.low:.0f} to {share.high:.0f}) of {processes:,} times the rate of one."
    ]


def _half_precision(evidence: Evidence) -> list[str]:
    """What half precision does where it was measured beside fp32: the group in which it is fastest."""
    rates = [rate for group in groups(evidence) for rate in group if rate.settings.precision == "half"]
    measured = [(rate, rate.images_per_s, rate.ratio) for rate in rates if rate.images_per_s and rate.ratio]
    by_model: dict[str, str] = {}
    for rate, mean, ratio in sorted(measured, key=lambda one: -one[1].value):
        model = words.model_name(rate.settings.model)
        batch = rate.settings.batch.per_device
        told = (
            f"{model} with {mean.value:,.0f} images/s a device on {rate.hardware} ({batch} images, {ratio:.1f} times "
            "fp32 without TF32)"
        )
        by_model.setdefault(model, told)
    return [f"Half precision trains {words.joined(list(by_model.values()))}."] if by_model else []


def _how_near(evidence: Evidence) -> list[str]:
    """How far the simulation is from measured steps, beside two models that anybody could guess."""
    cases = [case for replay in evidence.replays for case in held_against(replay.record)]
    kinds = {
        "in which the wire decides": [case for case in cases if case.settings.tensors != "small"],
        "of small messages": [case for case in cases if case.settings.tensors == "small"],
    }
    told = [
        f"{near.median:.1f} % off in the median of {words.count(near.n, 'case')} {kind} (at most {near.worst:.0f} %; "
        f"no overlap {near.apart_median:.0f} %, full overlap {near.beside_median:.0f} %)"
        for kind, near in ((kind, verdict(some)) for kind, some in kinds.items() if some)
    ]
    if not told:
        return []
    return [
        "Over limited links, with computing waited for and nothing fitted to it, a step's simulation is "
        f"{words.joined(told)}."
    ]


def _prediction(evidence: Evidence) -> list[str]:
    largest, comm = _largest_predicted(evidence), _own_comm(evidence)
    if not largest:
        return []
    measured = ""
    if comm:
        hosts = comm.record.placement.hosts
        measured = f" from {words.count(len(hosts), 'process')} on {words.count(len(set(hosts)), 'host')}"
    return [
        f"At {words.count(largest[0].processes, 'process')}, the largest size predicted, the fitted model gives "
        f"{_range(largest)} % efficiency over runs and algorithms (extrapolated{measured}, all links taken as alike)."
    ]


def _what_helps(evidence: Evidence) -> list[str]:
    """What one change would gain most for the largest run over several processes, beside a faster network."""
    told = list(changes(evidence))
    if not told:
        return []
    largest = max((run for run, _ in told), key=lambda run: run.record.settings.processes)
    gains = {change.change: change.change_percent for run, change in told if run is largest}
    best = max((name for name in gains if name not in _NO_CHANGE), key=gains.__getitem__)
    processes = words.count(largest.record.settings.processes, "process")
    return [
        f"For {largest.label}, over {processes}, {best} would gain most of what was simulated, {gains[best]:+.0f} % of "
        f"images/s, and a network twice as fast {gains['network x2']:+.0f} %."
    ]


def _largest_predicted(evidence: Evidence) -> list[Prediction]:
    """All predictions at the largest number of processes."""
    points = evidence.scale.record.predictions if evidence.scale else ()
    most = max((point.processes for point in points), default=0)
    return [point for point in points if point.processes == most]


def _own_comm(evidence: Evidence) -> Sourced[CommRecord] | None:
    """The plan's own measured collectives, which its predictions are fitted to."""
    return next((comm for comm in evidence.comms if comm.path == evidence.plan.comm_record), None)


def _range(points: list[Prediction]) -> str:
    lowest, highest = (f"{pick(point.efficiency_percent for point in points):.0f}" for pick in (min, max))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _sweeps(evidence: Evidence) -> list[str]:
    """How many sweeps there are, of how many trials, and what they took."""
    arms = evidence.arms
    if not arms:
        return []
    trials = [trial for arm in arms for trial in arm.record.trials]
    of = f" of {len(evidence.plan.sweeps)}" if evidence.missing_sweeps else ""
    device = words.hardware(arms[0].record.placement, arms[0].record.provenance)
    return [
        f"{len(arms)}{of} {'sweep is' if len(arms) == 1 else 'sweeps are'} recorded, with "
        f"{words.count(len(trials), 'trial')} in {words.duration(sum(trial.wall_s for trial in trials))} ({device})."
    ]


def _claims(evidence: Evidence) -> list[str]:
    """How many claims the sweeps bear out and how many not, each by its name; nothing where there are none."""
    by_verdict = {
        verdict: [claim.name for claim in evidence.judgements if claim.verdict is verdict] for verdict in Verdict
    }
    told = [
        f"{len(names)} {'is' if len(names) == 1 else 'are'} {verdict} ({', '.join(names)})"
        for verdict, names in by_verdict.items()
        if names
    ]
    return [f"Of {words.count(len(evidence.judgements), 'claim')} {words.joined(told)}."] if told else []
