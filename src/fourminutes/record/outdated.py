"""Which records were made with other settings than the plan has now.

Snakemake remembers with what it made a file, in a folder that stays behind when files travel by git or DVC. A record
tells it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fourminutes.plan import DataPlan, Plan, speed_hash
from fourminutes.record.base import AnyRecord, read_record
from fourminutes.record.dataset import Manifest
from fourminutes.record.measure import CommRecord, ScaleRecord
from fourminutes.record.run import RunRecord
from fourminutes.record.scaling import ScalingRecord
from fourminutes.record.sweep import SweepRecord


def outdated_records(plan: Plan) -> tuple[Path, ...]:
    """The plan's records that another recipe, data set or measurement left; one that is not there is not among them.

    Raises:
        UserError: a record is damaged or of another kind.
    """
    return tuple(_outdated(plan))


def sweep_as_asked(plan: Plan, name: str, record: SweepRecord) -> bool:
    """Whether `record` is of the sweep `name` as the plan has it now."""
    asked = plan.sweeps[name]
    now = (asked.run.recipe_hash, asked.key, asked.scaled_from, plan.tuning)
    return (record.settings.recipe_hash, record.key, record.chosen_from, record.tuning) == now


def scaling_as_asked(plan: Plan, record: ScalingRecord) -> bool:
    """Whether `record` is of its series as the plan has it now, on one of the numbers of processes there."""
    asked = plan.scaling.get(record.series)
    if asked is None or record.processes not in asked.world_sizes:
        return False
    now = asked.at(record.processes, plan.runs[asked.run])
    return (record.measured.key, speed_hash(record.settings)) == (asked.key, speed_hash(now))


def _outdated(plan: Plan) -> Iterator[Path]:
    manifest = _existing(plan.manifest, Manifest)
    of_other_data = manifest is not None and plan.data is not None and not _is_of(plan.data, manifest)
    if of_other_data:
        yield plan.manifest

    def is_of_these_pictures(record: RunRecord | SweepRecord | ScalingRecord) -> bool:
        return manifest is None or (record.dataset_hash == manifest.dataset_hash and not of_other_data)

    for name, settings in plan.runs.items():
        run = _existing(plan.run_record(name), RunRecord)
        if run and not (run.settings.recipe_hash == settings.recipe_hash and is_of_these_pictures(run)):
            yield plan.run_record(name)
    for name in plan.sweeps:
        sweep = _existing(plan.sweep_record(name), SweepRecord)
        if sweep and not (sweep_as_asked(plan, name, sweep) and is_of_these_pictures(sweep)):
            yield plan.sweep_record(name)
    for path in plan.scaling_records:
        series = _existing(path, ScalingRecord)
        if series and not (
            scaling_as_asked(plan, series) and (series.dataset_hash is None or is_of_these_pictures(series))
        ):
            yield path
    yield from _outdated_measurements(plan)


def _outdated_measurements(plan: Plan) -> Iterator[Path]:
    comm, scale = _existing(plan.comm_record, CommRecord), _existing(plan.scale_record, ScaleRecord)
    if comm and plan.comm:
        # How long processes wait for one another changes no measurement, nor does whether a GPU is insisted on.
        same = {"lost_after_s": comm.settings.lost_after_s, "device": comm.settings.device}
        now = plan.comm.model_copy(update=same)
        if comm.settings != now:
            yield plan.comm_record
    if scale and plan.scale and scale.settings != plan.scale:
        yield plan.scale_record


def _is_of(data: DataPlan, manifest: Manifest) -> bool:
    """Whether the manifest is of this recipe; one that was written before folders were noted counts as such."""
    return manifest.folder in ("", data.folder.name) and manifest.expected == data.expect


def _existing(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    return read_record(path, kind) if path.is_file() else None
