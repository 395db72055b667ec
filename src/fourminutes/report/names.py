"""What the report of a plan consists of, by name; light enough for the workflow to ask before anything is drawn."""

from __future__ import annotations

from fourminutes.plan import Plan

TABLE_FORMATS = ("csv", "md", "tex")
FIGURE_FORMATS = ("svg", "pdf", "png")

#: Tables in the order of the page, each with its caption.
TABLES = {
    "claims": "The claims put to the test, two arms a row: their difference, how sure it is, and what follows.",
    "sweeps": "The arms: what each was given to tune with, what it chose, and what fresh seeds reach with that.",
    "ledger": "Every trial of every arm, those that failed among them.",
    "runs": "The recorded training runs: what was trained, how well, how fast, and how long it waited for its input.",
    "compare": "The runs side by side: where their settings differ, and what came of them.",
    "results": "The paper's results beside the recorded runs; only runs on ImageNet itself are comparable.",
    "ablations": "The paper's techniques one after the other, with the recorded runs that match each.",
    "half-precision": "Throughput in single and half precision: the paper's, and measured pairs that differ in it.",
    "systems": "ImageNet trainings compared in the paper and after it, up to MLPerf v4.0.",
    "allreduce": "The measured all-reduce by message size and algorithm: median, quartiles and bus bandwidth.",
    "steps": "Transfers one after another in a ring and in the hierarchical all-reduce: as published, and as counted.",
    "scaling-measured": (
        "Training steps timed at one number of processes or several: the rate, what is left of the ideal one, and "
        "where a step's time goes."
    ),
    "scaling": "Predicted efficiency by number of processes, the batch of each process kept.",
    "what-if": "What would change the recorded runs over several processes, one thing at a time.",
    "profile": "Where one device's time goes in a network, and when gradients come, by number format and batch.",
    "validation": "Simulated steps against measured ones that nothing was fitted to, over limited links.",
    "p40": "The paper's cluster by the same model, from what is known of it, and whether that holds what is published.",
    "sensitivity": "What the model of the paper's cluster assumes, and how far each assumption moves each point.",
    "data": "The data set as sharded: images by split, converted and refused ones, and its hash.",
}

#: Figures in the order of the page, each with its caption.
FIGURES = {
    "batch-size": (
        "Top-1 accuracy by batch size, on the pictures that chose nothing: means over seeds; bars span the 95 % "
        "bootstrap interval over seeds and pictures. What was tried at one batch alone is in the table of arms."
    ),
    "tuning": "Top-1 accuracy by the value tried, on the pictures that choose: every tuning trial, the choice ringed.",
    "ablations": (
        "Top-1 accuracy by technique, each added to those above it (hollow: unconfirmed; the line: the baseline), and "
        "the recorded runs that do the same, with the 95 % t-interval of their mean where there are several."
    ),
    "half-precision": (
        "Throughput in single and half precision: the paper's on a P40 (half-filled: derived), and that of recorded "
        "runs and series that differ in precision alone. Here fp32 is fp32, without TF32."
    ),
    "accuracy": "Top-1 accuracy of every run over its epochs and over training time.",
    "time-split": "Where a run's time goes; hatched parts are waiting.",
    "allreduce": "Time and bus bandwidth of the measured all-reduce by message size; bands span the quartiles.",
    "overlap": (
        "Every bucket's way through one step on rank 0: queued, then each stage of its reduction; to the right of the "
        "line no gradient is left to compute, and communication is exposed."
    ),
    "scaling-measured": (
        "Measured scaling: efficiency against one process, and images/s, by number of processes; solid where each "
        "process keeps its batch (weak), dashed where the global batch is kept (strong). Bars span 95 % intervals; the "
        "grey line is ideal."
    ),
    "steps": (
        "Transfers one after another by number of ranks: a ring's and the hierarchical all-reduce's, as this project's "
        "cost model counts them, and the paper's on them (hollow: unconfirmed)."
    ),
    "throughput": (
        "Images/s by number of devices, by network: measured, predicted (dashed), and published for the paper's "
        "cluster (half-filled: derived; hollow: unconfirmed)."
    ),
    "efficiency": (
        "Efficiency by number of devices, by network: measured against the same work on one process, predicted "
        "(dashed), and published for the paper's cluster (hollow: unconfirmed). The authors write about 99 % at 1,024; "
        "their 97 % at 2,048 conflicts with the 87.9 % quoted elsewhere."
    ),
    "profile": (
        "When gradients come on one device: how much of them is there by share of the backward pass, measured, and as "
        "predictions suppose it where only the pass's length is known (dashed)."
    ),
    "validation": (
        "Simulated against measured steps that nothing was fitted to, computing replayed as timed waits; at the right "
        "also the models without and with full overlap."
    ),
    "p40": (
        "The paper's cluster by the model, nothing fitted to it: bars span 95 % of what the ranges of its constants "
        "give (hollow: unconfirmed)."
    ),
    "scalability": (
        "The paper's scalability figure redrawn, its values read off the pixels to about ±150 images/s; which "
        "network, batch and precision it shows is not stated."
    ),
    "systems": (
        "Training time of ImageNet systems by number of accelerators; half-filled where a number is derived, "
        "hollow where one is unconfirmed."
    ),
}


def table_names(plan: Plan) -> tuple[str, ...]:
    """The tables that `make_report` writes for `plan`, in the order of the page."""
    return tuple(name for name in TABLES if _applies(name, plan))


def figure_names(plan: Plan) -> tuple[str, ...]:
    """The figures that `make_report` writes for `plan`, in the order of the page."""
    return tuple(name for name in FIGURES if _applies(name, plan))


def _applies(name: str, plan: Plan) -> bool:
    """Whether the plan can ever have what the table or figure shows; what is published can always be shown."""
    has = {
        "claims": plan.claims,
        **dict.fromkeys(("sweeps", "ledger", "batch-size", "tuning"), plan.sweeps),
        **dict.fromkeys(("runs", "compare", "accuracy", "time-split"), plan.runs or plan.report.records),
        "allreduce": plan.comm or plan.report.comm_records,
        "overlap": any(run.reduce.trace_step and run.processes > 1 for run in plan.runs.values()),
        "scaling-measured": plan.scaling or plan.report.scaling_records,
        "scaling": plan.scale or plan.report.scale_record,
        "data": plan.data,
        "what-if": plan.scale and plan.comm and any(run.processes > 1 for run in plan.runs.values()),
        "profile": plan.report.profiles,
        "validation": plan.report.replays,
    }
    return bool(has.get(name, True))
