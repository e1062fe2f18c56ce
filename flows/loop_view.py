"""Drift checks, decisions and nightly checks in words and numbers, for Prefect's artifacts and the command line."""

from collections.abc import Sequence

from flows.monitoring import DriftCheck
from flows.nightly import NightlyRecord
from leitstand.types import Decision, DriftReport, Metric
from monitors.retrainings import Retraining

__all__ = ["check_markdown", "decision_rows", "nightly_markdown", "retraining_rows", "score_rows", "window_rows"]

SHOWN = 12


def score_rows(report: DriftReport, limit: int = SHOWN) -> list[list[str]]:
    """Detector, column, value, threshold, p, verdict; the least likely first."""
    ordered = sorted(report.scores, key=lambda score: (score.p_value is None, score.p_value or 0.0))
    return [
        [
            score.detector, score.column, f"{score.value:.4g}", f"{score.threshold:.4g}",
            "–" if score.p_value is None else f"{score.p_value:.2g}", "drifted" if score.drifted else "",
        ]
        for score in ordered[:limit]
    ]  # fmt: skip


def window_rows(reports: Sequence[DriftReport]) -> list[list[str]]:
    """One row per window: when, version, rows, verdict, estimated, measured and reference accuracy, failures."""
    return [
        [
            f"{each.window_start:%Y-%m-%d %H:%M} to {each.window_end:%H:%M}", str(each.version), f"{each.rows:,}",
            each.insufficient or ("drifted" if each.drifted else "no drift"), metric(each.estimated_accuracy),
            metric(each.measured_accuracy),
            "–" if each.reference_accuracy is None else f"{each.reference_accuracy:.4f}",
            "–" if each.error_rate is None else f"{each.error_rate:.2%}",
        ]
        for each in reports
    ]  # fmt: skip


def decision_rows(decisions: Sequence[Decision]) -> list[list[str]]:
    """One row per decision: when, version, finding, action, why."""
    return [
        [
            f"{each.at:%Y-%m-%d %H:%M:%S}", str(each.version), each.finding.value if each.finding else "–",
            each.action.value, "; ".join(each.reasons),
        ]
        for each in decisions
    ]  # fmt: skip


def retraining_rows(retrainings: Sequence[Retraining]) -> list[list[str]]:
    """One row per retraining: when, outcome, version, rollout, what became of it."""
    return [
        [
            f"{each.started_at:%Y-%m-%d %H:%M:%S}", each.outcome, str(each.version or "–"), each.rollout or "–",
            " ".join((each.detail or each.reason).split()),
        ]
        for each in retrainings
    ]  # fmt: skip


def check_markdown(found: DriftCheck) -> str:
    """A check as a page: decision, reasons, accuracy, scores."""
    report, decision = found.report, found.decision
    state = report.insufficient or ("drifted" if report.drifted else "no drift")
    lines = [
        f"**{decision.action.value}** on version {report.version}, {report.window_start:%Y-%m-%d %H:%M} to "
        f"{report.window_end:%Y-%m-%d %H:%M} UTC: {state}, {report.rows:,} rows"
        + ("" if found.new else " (decided before)"),
        "",
        *(f"- {reason}" for reason in (*decision.reasons, *found.notes)),
        "",
        f"Accuracy: estimated {metric(report.estimated_accuracy)}, measured {metric(report.measured_accuracy)}, "
        f"reference {'–' if report.reference_accuracy is None else f'{report.reference_accuracy:.4f}'}",
        "",
    ]
    head = ["detector", "column", "value", "threshold", "p", ""]
    return "\n".join(lines) + "\n" + _table(head, score_rows(report))


def nightly_markdown(record: NightlyRecord) -> str:
    """Nightly checks as a page."""
    rows = [[check.name, check.outcome, check.text] for check in record.checks]
    return f"{record.use_case}, {record.at:%Y-%m-%d %H:%M} UTC\n\n" + _table(["check", "outcome", ""], rows)


def metric(found: Metric | None) -> str:
    """A metric with its interval and rows, or a dash."""
    if found is None or found.value is None:
        return "–"
    spread = f" [{found.interval.low:.4f}, {found.interval.high:.4f}]" if found.interval else ""
    return f"{found.value:.4f}{spread} on {found.examples:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *cells])
