"""The model card of a version: what it is for, what it was made of, how good it is, and where it is not.

Written as HTML for people and Markdown for repositories, from the records of one training run. The same
records give the same bytes: no clock, so attaching a card twice is no conflict. Sections follow Mitchell et
al. 2019, "Model Cards for Model Reporting".
"""

from pathlib import Path
from typing import Any

from leitstand.files import write_text
from leitstand.pages import write_page
from leitstand.types import EvaluationReport, GateOutcome, GateReport, Metric, RunRecord, Snapshot
from leitstand.usecase import UseCase
from models.gate_rules import show

__all__ = ["write_card"]

TEMPLATES = Path(__file__).parent / "templates"
CALIBRATION = ("ece", "brier", "nll", "coverage", "accuracy_answered")
NAMES = {
    "accuracy": "Accuracy", "macro_f1": "Macro F1", "weighted_f1": "Weighted F1", "ece": "Calibration error (ECE)",
    "brier": "Brier score", "nll": "Log loss", "coverage": "Share answered",
    "accuracy_answered": "Accuracy where answered", "latency_p50_ms": "Latency p50 (ms)",
    "latency_p99_ms": "Latency p99 (ms)", "throughput": "Throughput (texts/s)", "size_mb": "Size (MB)",
}  # fmt: skip
TILES = ("accuracy", "macro_f1", "ece", "latency_p99_ms", "size_mb")
NOTABLE_GAP = 0.03


def write_card(
    *,
    use_case: UseCase,
    snapshot: Snapshot,
    run: RunRecord,
    evaluation: EvaluationReport,
    gates: GateReport,
    out: Path,
) -> dict[str, Path]:
    """Writes ``model_card.html`` and ``model_card.md`` into `out` and returns them by name."""
    groups = _grouped(evaluation)
    context = {
        "use_case": use_case,
        "snapshot": snapshot,
        "run": run,
        "evaluation": evaluation,
        "gates": gates,
        "hyperparameters": _hyperparameters(use_case, run),
        "tables": groups,
        "tiles": [metric for metric in (evaluation.metric(name) for name in TILES) if metric],
        "limitations": _limitations(use_case, snapshot, evaluation, gates),
        "title_of": lambda name: NAMES.get(name, name.replace("_", " ").capitalize()),
        "show": show,
        "css": {GateOutcome.PASS: "pass", GateOutcome.FAIL: "fail", GateOutcome.INSUFFICIENT: "open"},
    }
    page = write_page(out / "model_card.html", "model_card.html", search=TEMPLATES, **context)
    text = write_text(out / "model_card.md", _markdown(context))
    return {"model_card.html": page, "model_card.md": text}


def _markdown(context: dict[str, Any]) -> str:
    import jinja2  # noqa: PLC0415  -- as in leitstand.pages

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,  # noqa: S701  -- Markdown, not HTML
    )  # fmt: skip
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    return environment.get_template("model_card.md").render(**context)


def _hyperparameters(use_case: UseCase, run: RunRecord) -> dict[str, Any]:
    """The profile's values as the file has them today; only the method when the profile is gone."""
    profile = use_case.training.profiles.get(run.profile)
    return profile.model_dump(mode="json") if profile else {"profile": f"{run.profile} (no longer in usecase.yaml)"}


def _grouped(evaluation: EvaluationReport) -> dict[str, list[Metric]]:
    """Each metric in the one section it belongs to; sections in the order of the card."""
    groups: dict[str, list[Metric]] = {
        title: [] for title in ("Performance", "Calibration", "Slices", "Robustness", "Counterfactual bias")
    }
    for metric in evaluation.metrics:
        if metric.name.startswith("counterfactual"):
            groups["Counterfactual bias"].append(metric)
        elif metric.name.startswith("robustness"):
            groups["Robustness"].append(metric)
        elif metric.slice is not None:
            groups["Slices"].extend([metric] if metric.name == "accuracy" else [])
        else:
            groups["Calibration" if metric.name in CALIBRATION else "Performance"].append(metric)
    order = list(NAMES)
    for metrics in groups.values():
        metrics.sort(key=lambda m: (m.slice is not None, order.index(m.name) if m.name in order else len(order)))
    return groups


def _limitations(use_case: UseCase, snapshot: Snapshot, evaluation: EvaluationReport, gates: GateReport) -> list[str]:
    """What the numbers and the use case say the model cannot do."""
    languages = ", ".join(use_case.data.expectations.languages)
    found = [
        f"Knows {len(snapshot.labels)} labels and nothing else: a text about another subject gets one of them, or none "
        f"when the score is below {use_case.model.abstain_below:g}.",
        f"Trained and measured on texts in: {languages}. Other languages were not measured.",
        f"Reads the first {use_case.model.max_tokens} tokens of a text.",
    ]
    overall = evaluation.metric("accuracy")
    weak = [
        f"{metric.slice} ({show('accuracy', metric.value)})"
        for metric in evaluation.metrics
        if metric.name == "accuracy" and metric.slice and metric.value is not None
        and overall and overall.value is not None and metric.value < overall.value - NOTABLE_GAP
    ]  # fmt: skip
    if weak:
        found.append(f"Clearly less accurate than overall on: {', '.join(weak)}.")
    counterfactuals = use_case.evaluation.counterfactuals
    if counterfactuals:
        found.append(
            f"Bias was measured by exchanging words of {len(counterfactuals.groups)} groups "
            f"({', '.join(counterfactuals.groups)}); other groups were not measured."
        )
    else:
        found.append("Bias was not measured: the use case names no counterfactual groups.")
    undecided = [result.gate for result in gates.results if result.outcome is GateOutcome.INSUFFICIENT]
    if undecided:
        found.append(f"Too little data to decide: {', '.join(undecided)}.")
    if snapshot.quarantined:
        kind = "feedback" if snapshot.parent else "the source"
        found.append(f"{snapshot.quarantined} rows of {kind} were quarantined and are not represented.")
    return found
