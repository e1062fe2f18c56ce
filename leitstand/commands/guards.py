"""`leitstand guards`: a use case's rules, what they say about a text, and what they marked for people."""

import dataclasses
import json
import sys
from datetime import timedelta

import typer

from leitstand.commands.output import print_table
from leitstand.errors import ConfigurationError, ContentBlocked
from leitstand.settings import load_settings
from leitstand.specs.guards import CheckRule, GuardsSpec
from leitstand.types import Verdict, utc_now
from leitstand.usecase import find, load

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    help="Show the guards of a use case, try them on a text, list what they marked for review.",
)  # fmt: skip
review = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Texts and answers that await a person.")
app.add_typer(review, name="review")

NAME = typer.Argument(help="Use case")
JSON = typer.Option(False, "--json", help="Print JSON.")
OWN_COLUMNS = {"rule", "action", "name"}


@app.command("list")
def list_rules(name: str = NAME, as_json: bool = JSON) -> None:
    """List the rules in their order, and the digest that audit records name them by."""
    from governance.guards import Chain

    spec = _spec(name)
    digest = Chain(spec).digest
    if as_json:
        typer.echo(json.dumps({"use_case": name, "digest": digest, **spec.model_dump(mode="json")}))
        return
    rows = [
        [stage, str(place), rule.called, rule.rule, rule.action, _parameters(rule.model_dump(mode="json"))]
        for stage, rules in (("input", spec.input), ("output", spec.output))
        for place, rule in enumerate(rules, start=1)
    ]
    if not rows:
        typer.echo(f"'{name}' has no guards; write them under `guards:` in its usecase.yaml.", err=True)
        return
    print_table(["stage", "#", "name", "rule", "action", "parameters"], rows)
    typer.echo(f"policy {digest}")


@app.command("test")
def try_text(
    name: str = NAME,
    text: str = typer.Argument(help="The text; `-` reads it from standard input"),
    stage: str = typer.Option("input", help="`input`, or `output`: judge it as an answer"),
    question: list[str] = typer.Option([], help="With --stage output: a text of the request; may be repeated"),
    source: list[str] = typer.Option([], help="With --stage output: a text that the answer may rest on"),
    prompt: list[str] = typer.Option([], help="With --stage output: a system prompt of the request"),
    as_json: bool = JSON,
) -> None:
    """Judge a text with a use case's rules and print what they say. Exit code 3: it is blocked."""
    from governance.guards import Chain, Request

    if stage not in ("input", "output"):
        raise ConfigurationError(f"--stage '{stage}' is neither input nor output", hint="write --stage output")
    chain = Chain(_spec(name))
    said = sys.stdin.read() if text == "-" else text
    if stage == "input":
        looked = chain.check_input([said])
        passed, verdicts, blocked = looked.texts[0], looked.verdicts, looked.blocked
        checks = chain.input_checks
    else:
        passed, verdicts, blocked = chain.check_answer(said, Request(question, source, prompt))
        checks = chain.output_checks
    if blocked is None:
        verdicts = [*verdicts, *_checked(checks, passed, stage)]
        reasons = [verdict.reason for verdict in verdicts if verdict.action == "block"]
        blocked = (
            ContentBlocked(f"The text is not let through: {', '.join(reasons)}", reasons=reasons) if reasons else None
        )
    if as_json:
        listed = [dataclasses.asdict(verdict) for verdict in verdicts]
        typer.echo(json.dumps({"text": None if blocked else passed, "blocked": bool(blocked), "verdicts": listed}))
    else:
        rows = [[verdict.rule, verdict.action, verdict.reason, str(verdict.count)] for verdict in verdicts]
        print_table(["rule", "action", "reason", "found"], rows)
        if blocked is None:
            typer.echo(passed)
    if blocked is not None:
        raise blocked


@review.command("list")
def list_reviews(
    use_case: str = typer.Option("", help="Only of this use case"),
    days: float = typer.Option(7, min=0, help="As far back as this"),
    limit: int = typer.Option(100, min=1, help="The newest so many"),
    as_json: bool = JSON,
) -> None:
    """List requests of the audit trail that a rule marked for review, newest first; texts are not shown."""
    from governance.audit.opening import trail_folder
    from governance.audit.reading import Reader

    folder = trail_folder(load_settings())
    since = utc_now() - timedelta(days=days)
    records = Reader(folder).records(since) if (folder / "chains").is_dir() else ()
    found = [
        (record, verdict)
        for record in records
        if not use_case or record.use_case == use_case
        for verdict in record.verdicts
        if verdict.action == "review"
    ]
    found = sorted(found, key=lambda pair: pair[0].ended_at, reverse=True)[:limit]
    if as_json:
        listed = [
            {"request_id": record.request_id, "at": record.ended_at.isoformat(), "use_case": record.use_case,
             "version": record.version, **dataclasses.asdict(verdict)}
            for record, verdict in found
        ]  # fmt: skip
        typer.echo(json.dumps(listed))
        return
    rows = [
        [record.request_id, f"{record.ended_at:%Y-%m-%d %H:%M:%S}", record.use_case, str(record.version),
         verdict.stage, verdict.rule, verdict.reason, str(verdict.count)]
        for record, verdict in found
    ]  # fmt: skip
    if not rows:
        typer.echo("Nothing awaits a person.", err=True)
    print_table(["request", "at (UTC)", "use case", "version", "stage", "rule", "reason", "found"], rows)


def _spec(name: str) -> GuardsSpec:
    return load(find(name, load_settings().usecases)).guards


def _parameters(rule: dict[str, object]) -> str:
    shown = {key: value for key, value in rule.items() if key not in OWN_COLUMNS and value not in ("", [], ())}
    return " ".join(f"{key}={_short(value)}" for key, value in shown.items())


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004


def _checked(rules: list[CheckRule], text: str, stage: str) -> list[Verdict]:
    """What the checks by models say; here they have all the time they need."""
    from governance.guards.checks import open_check

    scores = [(rule, open_check(rule).judge([text])[0]) for rule in rules]
    return [
        Verdict(stage, rule.called, rule.action, f"check.{rule.called}", 1)  # type: ignore[arg-type]
        for rule, score in scores
        if score >= rule.threshold
    ]
