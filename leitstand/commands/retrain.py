"""`leitstand retrain NAME`: train a challenger on base and labelled feedback, and start its rollout."""

import getpass
from typing import TYPE_CHECKING

import typer

from leitstand.commands.drift import opened_loop
from leitstand.commands.local import prefect_is_up
from leitstand.commands.output import print_table
from leitstand.errors import ConflictError, InsufficientEvidence
from leitstand.settings import load_settings
from leitstand.types import utc_now
from leitstand.usecase import UseCase

if TYPE_CHECKING:
    from flows.loop import Loop

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command("retrain")
def retrain(
    use_case: str = typer.Argument(help="Name of the use case"),
    reason: str = typer.Option("", help="Why; it stands in the record"),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only show what would be trained on."),
) -> None:
    """Train a challenger on base and labelled feedback; if its gates pass, start its rollout.

    It counts for the week's budget. Exit codes: 3 a gate failed, 4 a gate could not decide, or too little feedback.
    """
    settings = load_settings()
    loop = opened_loop(settings)
    case = loop.adapters.use_case(use_case)
    if dry_run:
        _show(loop, case)
        return
    from flows.retraining import PlainSteps
    from flows.retraining import retrain as run
    from flows.rollout import controller

    who = getpass.getuser()
    steps = PlainSteps(loop.adapters)
    if prefect_is_up(settings):
        typer.echo(f"Prefect runs too: `prefect deployment run retrain/{use_case}` shows its progress", err=True)
    done = run(
        loop, controller(loop.adapters), case, trigger=f"{who} at {utc_now().isoformat()}",
        reason=reason or f"asked for by {who}", actor=who, steps=steps,
    )  # fmt: skip
    if done is None:
        raise ConflictError(f"A retraining of '{use_case}' runs already", hint=f"`leitstand drift status {use_case}`")
    if done.outcome == "too little feedback":
        raise InsufficientEvidence(done.detail, hint=f"collect labels with `leitstand label {use_case}`")
    typer.echo(f"{done.outcome}: {done.detail}")
    typer.echo(f"Follow it with `leitstand rollout status {use_case}`", err=True)


def _show(loop: "Loop", case: UseCase) -> None:
    from flows.retraining import plan
    from models.retraining import FeedbackReport

    found = plan(loop, case)
    snapshot = found.snapshot
    start = f"the champion ({found.warm_start.name})" if found.warm_start else f"the base model {case.model.base}"
    typer.echo(f"Profile {found.profile}, from {start}, on {snapshot.splits['train'].path.parent}")
    print_table(
        ["split", "rows"], [[name, f"{info.rows:,}"] for name, info in snapshot.splits.items()]
    )  # fmt: skip
    typer.echo(f"{found.feedback_rows:,} labels with a text, {found.without_text:,} without; {found.train_rows:,} rows "
        f"to train on, {found.new_rows:,} of them new ({case.retraining.min_new_rows} needed)")  # fmt: skip
    if snapshot.new_labels:
        typer.echo(f"New labels: {', '.join(snapshot.new_labels)}")
    if snapshot.feedback_report:
        report = FeedbackReport.model_validate_json(snapshot.feedback_report.read_bytes())
        rows = [
            [s.source, f"{s.rows:,}", f"{s.used:,}", "quarantined" if s.quarantined else ""] for s in report.sources
        ]
        print_table(["source", "labels", "used", ""], rows)
        print_table(["not used because", "rows"], [[why, f"{count:,}"] for why, count in report.set_aside.items()])
