"""`leitstand label`: say what is right about logged answers, in the terminal or by CSV."""

import csv
import getpass
import io
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from leitstand.errors import ConfigurationError, NotFoundError, ValidationFailed, bounded
from leitstand.files import digest_json, write_text
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.types import Feedback, utc_now
from leitstand.usecase import UseCase, find, load

if TYPE_CHECKING:
    from leitstand.commands.label_session import Item

__all__ = ["app"]

GUESSES = 5
LISTED = 20
COLUMNS: tuple[str, ...] = (
    "use_case", "request_id", "index", "text", "predicted", "score", "other_guesses", "reason",
    "inclusion_probability", "label",
)  # fmt: skip
NEEDED = ("use_case", "request_id", "index", "label")
Answer = tuple[str, int]


class _TerminalFirst(TyperGroup):
    """`leitstand label NAME` is `leitstand label terminal NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Takes a first word that is no command for the use case."""
        known = args and (args[0] in self.commands or args[0].startswith("-"))
        return super().resolve_command(ctx, args if known else ["terminal", *args])


app = typer.Typer(
    cls=_TerminalFirst,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Say what is right about logged answers: `leitstand label NAME` asks in the terminal.",
)


@app.command()
def terminal(
    name: str = typer.Argument(help="Use case."),
    count: int = typer.Option(50, min=1, help="Answers to ask about."),
    days: int = typer.Option(7, min=1, help="Look at the answers of this many days."),
    source: str = typer.Option("", "--as", help="Who labels; default: the name of this account."),
    seed: int = typer.Option(0, help="Of the random share."),
) -> None:
    """Show answers that should be labelled next, one at a time; `leitstand label NAME` is enough."""
    from governance.feedback_log import open_feedback_log
    from leitstand.commands.label_session import HELP, Session

    settings, use_case = _opened(name)
    queue = _queue(settings, use_case, count=count, days=days, seed=seed)
    log, who = open_feedback_log(settings), _source(source)

    def record(item: "Item", label: str | None) -> None:
        _record(log, name, item.request_id, item.index, label, who)

    session = Session([item for item, _ in queue], _labels(settings, use_case), record)
    typer.echo(f"{len(session.items)} answers to label as '{who}'. {HELP}.", err=True)
    while (item := session.current) is not None:
        typer.echo(f"\n[{session.place + 1}/{len(session.items)}] {item.text}")
        for place, (label, probability) in enumerate(item.guesses, start=1):
            typer.echo(f"  {place}  {label}  {probability:.2f}")
        try:
            given = input("label> ")
        except (EOFError, KeyboardInterrupt):
            break
        if given.strip() == "q":
            break
        typer.echo(session.answer(given), err=True)
    typer.echo(f"{session.labelled} labels recorded", err=True)


@app.command()
def export(
    name: str = typer.Argument(help="Use case."),
    out: Path = typer.Option(Path("queue.csv"), help="CSV to write."),
    count: int = typer.Option(200, min=1, help="Answers to write."),
    days: int = typer.Option(7, min=1, help="Look at the answers of this many days."),
    seed: int = typer.Option(0, help="Of the random share."),
) -> None:
    """Write the answers that should be labelled next to a CSV file; fill in its column `label` and import it."""
    settings, use_case = _opened(name)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    queue = _queue(settings, use_case, count=count, days=days, seed=seed)
    for item, row in queue:
        others = ", ".join(f"{label} {probability:.2f}" for label, probability in item.guesses[1:])
        facts = {key: row[key] for key in ("use_case", "request_id", "index", "reason", "inclusion_probability")}
        texts = {"text": _cell(item.text), "predicted": row["label"], "other_guesses": others, "label": ""}
        writer.writerow(facts | texts | {"score": round(row["score"], 4)})
    write_text(out, stream.getvalue())
    typer.echo(out)
    typer.echo(f"{len(queue)} answers; fill in `label`, then `leitstand label import {out}`", err=True)


@app.command("import")
def import_(
    file: Path = typer.Argument(help="CSV with use_case, request_id, index, label; `source` may be a column."),
    source: str = typer.Option("", "--as", help="Who labelled, where the file does not say; default: this account."),
    new_label: list[str] = typer.Option([], help="A label that the use case does not have yet; may be repeated."),
) -> None:
    """Record the labels of a CSV file: all of them, or none when a line is wrong. Again changes nothing."""
    from governance.feedback_log import open_feedback_log

    settings = load_settings()
    rows = _parsed(settings, file, _source(source), tuple(new_label))
    log = open_feedback_log(settings)
    said: dict[str, dict[Answer, list[Feedback]]] = {name: _said(log, name) for name in {row[0] for row in rows}}
    recorded = 0
    for name, request_id, index, label, who in rows:
        known = said[name][request_id, index]
        recorded += _record(log, name, request_id, index, label, who, known=known)
    typer.echo(f"{recorded} labels recorded, {len(rows) - recorded} were known", err=True)


def _opened(name: str) -> tuple[Settings, UseCase]:
    settings = load_settings()
    use_case = load(find(name, settings.usecases))
    if not settings.monitoring.keep_texts_days:
        raise ConfigurationError(
            "No texts are kept, so there is nothing to show and label (monitoring.keep_texts_days is 0)",
            hint="set LEITSTAND_MONITORING__KEEP_TEXTS_DAYS=14 for the gateway; labels of your own system "
            "can be sent to /v1/NAME/feedback, or imported with `leitstand label import`",
        )
    apply_environment(settings)
    return settings, use_case


def _source(given: str) -> str:
    return given.strip() or getpass.getuser()


def _labels(settings: Settings, use_case: UseCase) -> list[str]:
    from models.data_sources import read_labels

    return list(dict.fromkeys([*read_labels(use_case, settings.s3), *use_case.feedback.approved_labels]))


def _queue(
    settings: Settings, use_case: UseCase, *, count: int, days: int, seed: int
) -> list[tuple["Item", dict[str, Any]]]:
    """What should be labelled next, with its text; kept below `home`/labelling for estimates of quality."""
    import pyarrow.parquet as pq

    from governance.feedback_log import open_feedback_log
    from governance.input_store import open_input_store
    from governance.log_location import open_log_location
    from leitstand.commands.label_session import Item
    from models.labelling import choose, top_guesses
    from monitors.windows import read_window

    now, store = utc_now(), open_input_store(settings)
    start = now - timedelta(days=min(days, settings.monitoring.keep_texts_days))
    feedback = open_feedback_log(settings).entries(use_case.name)
    window = read_window(open_log_location(settings), use_case.name, start, now, feedback=feedback)
    queue = choose(window, count, seed=seed)
    found = []
    for row in queue.to_pylist():
        texts = store.get(use_case.name, row["request_id"])
        if row["index"] < len(texts):
            guesses = top_guesses(row["probabilities"], _model_labels(use_case.name, row), GUESSES)
            shown = tuple(guesses) or ((row["label"], row["score"]),)
            found.append((Item(row["request_id"], row["index"], texts[row["index"]], shown), row))
    if not found:
        raise NotFoundError(
            f"No answer of '{use_case.name}' since {start:%Y-%m-%d %H:%M} waits for a label with its text kept "
            f"({window.num_rows} answers in the log)",
            hint="send requests through the gateway, or look further back with --days",
        )
    key = digest_json([use_case.name, queue.select(["request_id", "index"]).to_pylist()])
    target = settings.root / "labelling" / use_case.name / f"{key[7:23]}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(queue.drop_columns(["probabilities"]), target)
    return found


_LABEL_SETS: dict[tuple[str, int], tuple[str, ...]] = {}


def _model_labels(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    """Labels of the version that answered; the registry is opened only for rows that hold probabilities."""
    if not row["probabilities"]:
        return ()
    key = (name, row["version"])
    if key not in _LABEL_SETS:
        from flows.stages import labels_of
        from flows.wiring import wire

        _LABEL_SETS[key] = labels_of(wire(), *key)
    return _LABEL_SETS[key]


def _said(log: Any, name: str) -> dict[Answer, list[Feedback]]:
    said: dict[Answer, list[Feedback]] = defaultdict(list)
    for entry in log.entries(name):
        said[entry.request_id, entry.index].append(entry)
    return said


def _record(
    log: Any, name: str, request_id: str, index: int, label: str | None, source: str, *,
    known: list[Feedback] | None = None,
) -> bool:  # fmt: skip
    from models.labelling import opinion

    said = _said(log, name)[request_id, index] if known is None else known
    feedback = opinion(said, name, request_id, index, label=label, source=source, now=utc_now())
    if feedback is None:
        return False
    said.append(feedback)
    return log.record(feedback)


def _cell(text: str) -> str:
    """The text, so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _parsed(
    settings: Settings, file: Path, source: str, new_labels: tuple[str, ...]
) -> list[tuple[str, str, int, str, str]]:
    """Use case, request id, index, label and source of each labelled line.

    Raises:
        ValidationFailed: A line is wrong; every one is named.
    """
    problems: list[str] = []
    found: dict[tuple[str, str, int, str], tuple[int, str]] = {}
    labels: dict[str, set[str]] = {}
    for line, row in _lines(file):
        try:
            name, request_id, index, label = _checked(settings, row, labels, new_labels)
        except ConfigurationError as error:
            problems.append(f"line {line}: {error.message}")
            continue
        if not label:
            continue
        key = (name, request_id, index, (row.get("source") or "").strip() or source)
        before, other = found.setdefault(key, (line, label))
        if other != label:
            problems.append(f"line {line}: '{label}', but line {before} labels the same answer '{other}'")
    if problems:
        raise ValidationFailed(
            f"{file} has {len(problems)} wrong line(s); nothing was imported:\n  " + "\n  ".join(problems[:LISTED])
            + (f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""),
            failures=problems,
            hint="correct these lines and import the file again; a label that is really new needs --new-label NAME",
        )  # fmt: skip
    return [(name, request, index, label, who) for (name, request, index, who), (_, label) in found.items()]


def _lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}", hint="name a CSV file in UTF-8") from error
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    missing = [column for column in NEEDED if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigurationError(
            f"{file} has no column {bounded(missing)}", hint="write it with `leitstand label export`"
        )
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise ValidationFailed(f"{file}, line {reader.line_num}: {error}; nothing was imported") from error


def _checked(
    settings: Settings, row: dict[str, str], labels: dict[str, set[str]], new_labels: tuple[str, ...]
) -> tuple[str, str, int, str]:
    import difflib

    name, request_id, index, label = ((row[column] or "").strip() for column in NEEDED)
    if None in row or not request_id:
        raise ConfigurationError("too many fields" if None in row else "no request_id")
    if name not in labels:
        try:
            labels[name] = set(_labels(settings, load(find(name, settings.usecases)))) | set(new_labels)
        except NotFoundError as error:
            raise ConfigurationError(error.message) from error
    if not index.isdecimal():
        raise ConfigurationError(f"index '{index}' is not a number from 0")
    if label and label not in labels[name]:
        close = difflib.get_close_matches(label, sorted(labels[name]), n=1)
        raise ConfigurationError(f"unknown label '{label}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    return name, request_id, int(index), label
