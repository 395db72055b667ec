"""What the recorded sweeps say of the plan's claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from fourminutes.plan import ClaimPlan, ComparisonPlan, Plan
from fourminutes.report import words
from fourminutes.report.arms import Arm
from fourminutes.report.bootstrap import Estimate, Values, estimate


class Verdict(StrEnum):
    """What the records say of a comparison, or of a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNRESOLVED = "unresolved"
    NOT_TESTED = "not tested"
    DOES_NOT_APPLY = "does not apply"


@dataclass(frozen=True)
class Comparison:
    """Two arms held against one another; `difference` is in points of top-1, None where nothing can be compared."""

    plan: ComparisonPlan
    arm: Arm | None
    against: Arm | None
    seeds: int
    difference: Estimate | None
    verdict: Verdict
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """A claim, its comparisons, and what they amount to."""

    name: str
    plan: ClaimPlan
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> Verdict:
        """That of the claim as a whole."""
        return claim_verdict([comparison.verdict for comparison in self.comparisons])

    @property
    def asked(self) -> str:
        """What every comparison is asked for."""
        if not self.plan.margin_points:
            return "better"
        margin = f"{self.plan.margin_points:g} {'point' if self.plan.margin_points == 1 else 'points'}"
        return f"more than {margin} better" if self.plan.kind == "gains" else f"within ±{margin}"


def judge(plan: Plan, arms: Sequence[Arm]) -> tuple[Judgement, ...]:
    """Every claim of `plan`, judged by `arms`."""
    by_name = {arm.name: arm for arm in arms}
    seeds = plan.tuning.final_seeds if plan.tuning else 0
    return tuple(
        Judgement(name, claim, tuple(_compared(claim, comparison, by_name, seeds) for comparison in claim.comparisons))
        for name, claim in plan.claims.items()
    )


def difference_verdict(claim: ClaimPlan, difference: Estimate) -> Verdict:
    """What a difference, arm less the other one in points, says of a claim with its margin m.

    gains: supported if the 95 % interval lies above m, refuted if none of it does: the arm gains no more than m.
    equals: supported if the 90 % interval lies within -m to m, which are two one-sided tests at 5 % (D. J. Schuirmann,
    1987); refuted if the 95 % interval lies wholly outside.
    """
    margin, wide, narrow = claim.margin_points, difference.interval_95, difference.interval_90
    if claim.kind == "gains":
        supported, refuted = wide.low > margin, wide.high <= margin
    else:
        supported = -margin < narrow.low and narrow.high < margin
        refuted = wide.low > margin or wide.high < -margin
    return Verdict.SUPPORTED if supported else Verdict.REFUTED if refuted else Verdict.UNRESOLVED


def claim_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """What the comparisons of a claim amount to, all of which must hold; those that don't apply have no say.

    One that fails refutes the claim, whatever is still missing.
    """
    counting = [verdict for verdict in verdicts if verdict is not Verdict.DOES_NOT_APPLY]
    if Verdict.REFUTED in counting:
        return Verdict.REFUTED
    if not counting:
        return Verdict.DOES_NOT_APPLY
    if Verdict.NOT_TESTED in counting:
        return Verdict.NOT_TESTED
    return Verdict.UNRESOLVED if Verdict.UNRESOLVED in counting else Verdict.SUPPORTED


def paired_difference(arm: Arm, against: Arm) -> Estimate:
    """Points of top-1 that `arm` has more than `against`, by the seeds that both have and by the same pictures."""
    return estimate(_gains(arm, against))


def common_seeds(arm: Arm, against: Arm) -> tuple[int, ...]:
    """The seeds that both arms were trained with in the end."""
    return tuple(seed for seed in arm.seeds if seed in against.seeds)


def _gains(arm: Arm, against: Arm) -> Values:
    """1 where only `arm` is right, -1 where only `against` is, 0 elsewhere; shape (seeds, pictures)."""
    seeds = common_seeds(arm, against)
    return arm.scores(seeds) - against.scores(seeds)


def _compared(claim: ClaimPlan, plan: ComparisonPlan, arms: Mapping[str, Arm], seeds: int) -> Comparison:
    arm, against = arms.get(plan.arm), arms.get(plan.against)
    obstacles = tuple(_obstacles(plan, arms, seeds))
    if arm is None or against is None or obstacles:
        return Comparison(plan, arm, against, 0, None, Verdict.NOT_TESTED, obstacles)
    difference = paired_difference(arm, against)
    verdict = difference_verdict(claim, difference)
    remarks = (*_remarks([arms[name] for name in plan.sweeps]), *_remarks_on_both(arm, against))
    if (loss := plan.only_if) is not None:
        lost_points = 100 * float(_gains(arms[loss.lost_to], arms[loss.sweep]).mean(dtype=np.float64))
        remarks = (f"{loss.sweep} lost {lost_points:.1f} points to {loss.lost_to}", *remarks)
        verdict = verdict if lost_points >= loss.points else Verdict.DOES_NOT_APPLY
    return Comparison(plan, arm, against, len(common_seeds(arm, against)), difference, verdict, remarks)


def _obstacles(plan: ComparisonPlan, arms: Mapping[str, Arm], seeds: int) -> Iterator[str]:
    """Why nothing can be said yet; `seeds` is how many the plan asks of every arm."""
    names = plan.sweeps
    if unrecorded := [name for name in names if name not in arms]:
        yield f"no record yet of {words.joined(unrecorded)}"
    recorded = [arms[name] for name in names if name in arms]
    for one in recorded:
        if missing := set(range(seeds)).difference(one.seeds):
            yield f"{one.name} lacks {words.count(len(missing), 'seed')}"
    if len({one.pictures for one in recorded}) > 1:
        yield f"{words.joined([one.name for one in recorded])} are not on the same pictures"


def _remarks(arms: Sequence[Arm]) -> Iterator[str]:
    """What a reader must know beside the verdict, of every arm that has a part in it."""
    for one in arms:
        diverged = sum(trial.diverged for trial in one.final_trials)
        if diverged:
            yield f"{diverged} of {len(one.seeds)} trials of {one.name} diverged"
        if one.record.at_edge:
            yield f"{one.name}'s value ends its grid"
        if one.record.chosen_from:
            yield f"{one.name}'s value is scaled from {one.record.chosen_from}, not tuned"
        if one.outdated:
            yield f"the plan of {one.name} has changed since"


def _remarks_on_both(arm: Arm, against: Arm) -> Iterator[str]:
    """And of the two that are compared."""
    budgets = [len(one.tuning_trials) for one in (arm, against)]
    if budgets[0] != budgets[1] and not (arm.record.chosen_from or against.record.chosen_from):
        yield f"tuned with {budgets[0]} trials against {budgets[1]}"
    if len(common_seeds(arm, against)) == 1:
        yield "one seed: the interval is over pictures alone"
