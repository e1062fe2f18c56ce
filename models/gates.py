"""Decides whether a model is good enough: each gate passes, fails, or lacks evidence.

A gate asks two questions. *Is the number on the right side of the bound?* The point estimate decides
(or, with ``decide_by: interval``, the whole interval must lie on one side); on fewer rows than
``min_examples`` it is insufficient evidence, unless even the interval lies on the wrong side: that is a
failure at any size. *Is the model no worse than the champion, up to a margin?* A paired one-sided
non-inferiority test decides: proven non-inferior passes, proven inferior fails, and neither is
insufficient evidence. The worse answer is the gate's, and the worst gate is the report's.

When feedback brought labels that the champion does not have, it is wrong on their rows, as it is for users.
So that this cannot hide forgetting, a candidate that is proven inferior on the other rows alone fails. The new
labels themselves must reach ``feedback.new_label_floor`` on their held-out rows, in a gate of its own.

`decide` reads only the two reports and the answers they name; it has no clock and no settings.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from math import ceil, isclose

import numpy as np

from leitstand.errors import ConfigurationError, InsufficientEvidence, PromotionRejected
from leitstand.types import EvaluationReport, GateOutcome, GateReport, GateResult, Metric
from leitstand.usecase import ChampionRule, GateSpec, UseCase
from models import paired
from models.evidence import Evidence, load_evidence
from models.gate_rules import FACTS, LABELLED, UNIT_MEANS, check_gates, show, sign_of
from models.slices import NEW_LABELS

__all__ = ["check_gates", "comparable", "decide", "judge", "require_pass"]

_SEED = 20_260
_RANK = {GateOutcome.PASS: 0, GateOutcome.INSUFFICIENT: 1, GateOutcome.FAIL: 2}


def comparable(report: EvaluationReport, champion: EvaluationReport) -> bool:
    """Whether both were measured on the same rows in the same way, so that a paired test makes sense."""
    facts = ("use_case", "data_digest", "split", "spec_digest")
    return all(getattr(report, fact) == getattr(champion, fact) for fact in facts)


def decide(
    use_case: UseCase,
    report: EvaluationReport,
    *,
    champion: EvaluationReport | None = None,
    champion_ref: str | None = None,
    now: datetime,
) -> GateReport:
    """Applies every gate of the use case to the candidate's report.

    Args:
        use_case: Holds the gates.
        report: Evaluation of the candidate.
        champion: Evaluation of the serving champion on the same data; None when there is none yet.
        champion_ref: Its name, like ``support:3``, for the report.
        now: When the decision is made.

    Raises:
        ConfigurationError: A gate names what does not exist, or the reports are not comparable.
        NotFoundError: The answers that a report names are missing.
    """
    check_gates(use_case)
    if report.use_case != use_case.name:
        raise ConfigurationError(
            f"The evaluation is of use case '{report.use_case}', the gates are of '{use_case.name}'",
            hint=f"evaluate the model for '{use_case.name}'",
        )
    if champion is not None and not comparable(report, champion):
        raise ConfigurationError(
            f"Champion {champion_ref or champion.weights_digest} was evaluated on other data or in another way than "
            f"the candidate (data {champion.data_digest[:19]} and {report.data_digest[:19]})",
            hint="evaluate the champion again on the candidate's data, with the same `evaluation` section",
        )
    candidate = load_evidence(report)
    rival = None
    if champion is not None and champion.weights_digest != report.weights_digest:
        rival = (champion, load_evidence(champion))
    same = champion is not None and rival is None
    samples = use_case.evaluation.bootstrap_samples
    gates = (*use_case.gates, *_for_new_labels(use_case, report))
    results = tuple(judge(gate, report, candidate, rival, same=same, samples=samples) for gate in gates)
    return GateReport(
        use_case=use_case.name,
        weights_digest=report.weights_digest,
        data_digest=report.data_digest,
        champion=(champion_ref or champion.weights_digest) if champion else None,
        decided_at=now,
        outcome=_worst([result.outcome for result in results]),
        results=results,
    )


def judge(
    gate: GateSpec,
    report: EvaluationReport,
    evidence: Evidence,
    rival: tuple[EvaluationReport, Evidence] | None,
    *,
    same: bool = False,
    samples: int = 1000,
) -> GateResult:
    """Decides one gate.

    Args:
        gate: The gate.
        report: Evaluation of the candidate.
        evidence: The candidate's answers.
        rival: Evaluation and answers of the champion; None when there is none, or it is the candidate.
        same: The champion has the candidate's weights.
        samples: Resamples of the bootstrap.
    """
    metric = report.metric(gate.metric, gate.slice) or Metric(
        name=gate.metric, value=None, examples=0, slice=gate.slice
    )
    outcome, reason, needed = _against_bound(gate, metric)
    bound, sign = _bound(gate), sign_of(gate)
    missed = sign * (bound - metric.value) if metric.value is not None else 0.0
    result = GateResult(
        gate=gate.name,
        metric=gate.metric,
        slice=gate.slice,
        outcome=outcome,
        value=metric.value,
        bound=bound,
        bound_kind="floor" if gate.floor is not None else "ceiling",
        missed_by=missed if missed > 0 else None,
        examples=metric.examples,
        interval=metric.interval,
        rows_needed=needed,
        reason=reason,
    )
    if gate.champion is None or metric.value is None:
        return result
    if same:
        return _joined(result, GateOutcome.PASS, "the champion has the same weights", None)
    if rival is None:
        return _joined(result, GateOutcome.PASS, "there is no champion to compare with", None)
    return _against_champion(gate, gate.champion, result, evidence, rival, samples)


def require_pass(report: GateReport) -> None:
    """Returns when every gate passed.

    Raises:
        PromotionRejected: A gate failed; the message names each of them, and by how much.
        InsufficientEvidence: None failed, but some could not decide; it names what is missing.
    """
    open_gates = [r for r in report.results if r.outcome is GateOutcome.INSUFFICIENT]
    failed = [r for r in report.results if r.outcome is GateOutcome.FAIL]
    if failed:
        raise PromotionRejected(
            _listing(f"{len(failed)} of {len(report.results)} gates failed for '{report.use_case}'", failed),
            hint="improve the model on these numbers, or change the gate in usecase.yaml with a reason",
        )
    if open_gates:
        title = f"{len(open_gates)} of {len(report.results)} gates lack evidence for '{report.use_case}'"
        raise InsufficientEvidence(
            _listing(title, open_gates),
            hint="add labelled test rows, or state a larger margin or a smaller min_examples with a reason",
        )


def _for_new_labels(use_case: UseCase, report: EvaluationReport) -> list[GateSpec]:
    if report.metric("accuracy", NEW_LABELS) is None:
        return []
    policy = use_case.feedback
    examples = policy.new_label_min_examples
    return [GateSpec(metric="accuracy", slice=NEW_LABELS, floor=policy.new_label_floor, min_examples=examples)]


def _listing(title: str, results: Sequence[GateResult]) -> str:
    return "\n".join([title, *(f"  - {r.gate}: {r.reason}" for r in results)])


def _bound(gate: GateSpec) -> float:
    return gate.floor if gate.floor is not None else float(gate.ceiling or 0.0)


def _against_bound(gate: GateSpec, metric: Metric) -> tuple[GateOutcome, str, int | None]:
    """Outcome, reason, and the rows needed when evidence is missing."""
    if metric.value is None:
        return GateOutcome.INSUFFICIENT, f"no row to measure it on; {gate.min_examples} are needed", gate.min_examples
    bound, sign = _bound(gate), sign_of(gate)
    kind, side = ("floor", "below") if sign > 0 else ("ceiling", "above")
    margin = sign * (metric.value - bound)
    value, limit = show(gate.metric, metric.value), show(gate.metric, bound)
    missed = f"{value} is {side} the {kind} {limit} by {show(gate.metric, -margin)}"
    reached = f"{value} is within the {kind} {limit}, {show(gate.metric, margin)} to spare"
    ends = (metric.interval.low, metric.interval.high) if metric.interval else ()
    if ends and all(sign * (end - bound) < 0 for end in ends):
        return GateOutcome.FAIL, missed, None
    if metric.examples < gate.min_examples and gate.metric not in FACTS:
        reason = f"{value} rests on {metric.examples} rows; {gate.min_examples} are needed"
        return GateOutcome.INSUFFICIENT, reason, gate.min_examples
    if gate.decide_by == "estimate" or gate.metric in FACTS:
        return (GateOutcome.PASS, reached, None) if margin >= 0 else (GateOutcome.FAIL, missed, None)
    if ends and all(sign * (end - bound) >= 0 for end in ends):
        return GateOutcome.PASS, f"{reached}, and so is its whole interval", None
    return GateOutcome.INSUFFICIENT, *_open_interval(gate, metric, margin)


def _open_interval(gate: GateSpec, metric: Metric, margin: float) -> tuple[str, int | None]:
    value, limit = show(gate.metric, metric.value), show(gate.metric, _bound(gate))
    if metric.interval is None:
        return f"{value} has no confidence interval on {metric.examples} rows", None
    low, high = show(gate.metric, metric.interval.low), show(gate.metric, metric.interval.high)
    needed = None
    if not isclose(margin, 0.0, abs_tol=1e-6):  # nearer than that, no number of rows would decide
        towards = metric.interval.low if (margin > 0) == (sign_of(gate) > 0) else metric.interval.high
        needed = ceil(metric.examples * (abs((metric.value or 0.0) - towards) / abs(margin)) ** 2)
        needed = max(needed, metric.examples + 1)
    more = f"; about {needed:,} rows would decide if the value stays" if needed else ""
    return f"{value} may lie on either side of {limit}: its interval is {low} to {high}{more}", needed


def _against_champion(
    gate: GateSpec,
    rule: ChampionRule,
    result: GateResult,
    evidence: Evidence,
    rival: tuple[EvaluationReport, Evidence],
    samples: int,
) -> GateResult:
    champion = rival[0].metric(gate.metric, gate.slice)
    if champion is None or champion.value is None:
        return _joined(result, GateOutcome.INSUFFICIENT, "the champion was not measured on it", None)
    found = _compare(gate, rule, evidence, rival[1], samples)
    margin = show(gate.metric, rule.margin)
    size = show(gate.metric, abs(found.difference))
    change = f"{size} {'better' if found.difference >= 0 else 'worse'} than the champion (margin {margin}, {found.test}"
    if found.p_noninferior < rule.alpha:
        outcome, text, needed = GateOutcome.PASS, f"{change}, p={found.p_noninferior:.2g})", None
    elif found.p_inferior < rule.alpha:
        outcome, text, needed = GateOutcome.FAIL, f"{change}, p of inferiority={found.p_inferior:.2g})", None
    else:
        needed = paired.rows_needed(found, rule.margin, rule.alpha)
        more = f"about {needed:,} rows would decide if the difference stays" if needed else "more rows would not decide"
        text = f"not proven: {change}, p={found.p_noninferior:.2g} on {found.units:,} rows; {more})"
        outcome = GateOutcome.INSUFFICIENT
    outcome, text = _on_known_labels(gate, rule, (evidence, rival[1]), samples, outcome, text)
    result = result.model_copy(
        update={"champion_value": champion.value, "champion_test": found.test, "p_value": found.p_noninferior}
    )
    return _joined(result, outcome, text, needed)


def _on_known_labels(
    gate: GateSpec, rule: ChampionRule, pair: tuple[Evidence, Evidence], samples: int, outcome: GateOutcome, text: str
) -> tuple[GateOutcome, str]:
    """Outcome and reason, after the rows alone whose label the champion knows; unchanged when it knows all."""
    mine, theirs = pair
    paired_units = gate.metric in UNIT_MEANS
    ids = mine.units[gate.metric, gate.slice][0] if paired_units else np.arange(len(mine.labels))
    known = ~np.isin(ids, theirs.unknown)
    if gate.metric not in LABELLED or known.all() or not known.any():
        return outcome, text
    text = f"{text}; {np.sum(~known):,} of {len(ids):,} rows have labels that the champion lacks: it is wrong there"
    found = _compare(gate, rule, _only(mine, gate, known), _only(theirs, gate, known), samples)
    size = show(gate.metric, abs(found.difference))
    side = "better" if found.difference >= 0 else "worse"
    if found.p_inferior < rule.alpha:
        lost = f"on the {known.sum():,} rows whose labels it knows, proven {size} {side} (p={found.p_inferior:.2g})"
        return GateOutcome.FAIL, f"{lost}; {text}"
    return outcome, f"{text}; on the other rows {size} {side}"


def _only(evidence: Evidence, gate: GateSpec, chosen: np.ndarray) -> Evidence:
    if gate.metric not in UNIT_MEANS:
        return evidence.rows(np.flatnonzero(chosen))
    ids, values = evidence.units[gate.metric, gate.slice]
    return replace(evidence, units={(gate.metric, gate.slice): (ids[chosen], values[chosen])})


def _compare(gate: GateSpec, rule: ChampionRule, mine: Evidence, theirs: Evidence, samples: int) -> paired.Comparison:
    sign = sign_of(gate)
    if gate.metric not in UNIT_MEANS:
        return paired.bootstrap(
            mine.statistic(gate.metric), theirs.statistic(gate.metric), len(mine.labels),
            margin=rule.margin, sign=sign, samples=samples, seed=_SEED,
        )  # fmt: skip
    (ids, values), (other_ids, others) = mine.units[gate.metric, gate.slice], theirs.units[gate.metric, gate.slice]
    if not (ids.shape == other_ids.shape and (ids == other_ids).all()):
        raise ConfigurationError(
            f"{gate.name}: candidate and champion were measured on different rows",
            hint="evaluate the champion again on the candidate's data",
        )
    if rule.test == "mcnemar":
        return paired.mcnemar(values, others, rule.margin, sign)
    return paired.bootstrap(
        lambda weights: weights @ values / len(values), lambda weights: weights @ others / len(others), len(values),
        margin=rule.margin, sign=sign, samples=samples, seed=_SEED,
    )  # fmt: skip


def _joined(result: GateResult, outcome: GateOutcome, reason: str, needed: int | None) -> GateResult:
    """`result` with a second answer; the worse outcome stays, and its reason stands first."""
    worse = _RANK[outcome] > _RANK[result.outcome]
    reasons = (reason, result.reason) if worse else (result.reason, reason)
    counts = [count for count in (result.rows_needed, needed) if count]
    return result.model_copy(
        update={
            "outcome": _worst([result.outcome, outcome]),
            "reason": "; ".join(reasons),
            "rows_needed": max(counts, default=None),
        }
    )


def _worst(outcomes: Sequence[GateOutcome]) -> GateOutcome:
    return max(outcomes, key=_RANK.__getitem__)
