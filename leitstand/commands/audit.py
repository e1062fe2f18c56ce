"""`leitstand audit`: verify, show, export, anchor and prune the audit trail; erase a subject; bundle evidence."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leitstand.commands.arguments import current_user, moment_of
from leitstand.commands.output import print_table
from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.types import utc_now

if TYPE_CHECKING:
    from governance.audit.reading import Reader

__all__ = ["app", "open_reader"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Verify, show, export, anchor and prune the audit trail; erase a subject; bundle evidence.",
)

SINCE = typer.Option("", help="From this moment on, like 2026-11-24T14:03 (UTC)")
UNTIL = typer.Option("", help="Before this moment")
DRY_RUN = typer.Option(False, "--dry-run", help="Say what would happen, and change nothing.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command()
def verify(
    folder: str = typer.Option("", help="The trail; default: this installation's"),
    public_key: list[Path] = typer.Option([], help="PEM of a signer; default: the trail's own"),
    anchors: str = typer.Option("", help="s3://BUCKET/PREFIX or a folder; default: LEITSTAND_AUDIT__ANCHORS"),
    as_json: bool = JSON,
) -> None:
    """Check every record, its place in its chain, and every signed head; name the first bad one. Needs no server."""
    settings = load_settings()
    from governance.audit.opening import trail_folder
    from governance.audit.verify_standalone import read_public_keys, told, verify_trail

    place = Path(folder) if folder else trail_folder(settings)
    if not (place / "chains").is_dir():
        raise NotFoundError(f"No audit trail in {place}", hint="the gateway begins one with its first request")
    keep: Any = ()
    if anchors or settings.audit.anchors:
        from models.blobs.anchors import open_anchors

        keep = open_anchors(settings, anchors).read()
    try:
        keys = read_public_keys(public_key or sorted((place / "public_keys").glob("*.pem")))
    except (ValueError, OSError) as error:
        raise IntegrityError(f"A public key is not readable: {error}", hint="name one with --public-key") from error
    result = verify_trail(place, keys, keep)
    typer.echo(json.dumps(result.as_dict(), indent=1) if as_json else told(result).rstrip())
    if result.all_problems:
        raise IntegrityError(
            f"The audit trail does not hold: {result.all_problems[0]}",
            hint="keep a copy of the trail as it is, and find out who could write to it",
        )


@app.command()
def show(
    request_id: str = typer.Argument("", help="As in the answer's header x-request-id; the newest records without it"),
    limit: int = typer.Option(20, "--limit", "-n", min=1, help="How many of the newest"),
    sealed: bool = typer.Option(False, "--sealed", help="Do not decrypt."),
    as_json: bool = JSON,
) -> None:
    """Show what was recorded about a request, texts in the clear unless they were erased."""
    reader = open_reader(load_settings())
    from governance.audit.export import row_of

    if not request_id:
        newest = reader.newest(limit)
        if as_json:
            typer.echo(json.dumps([row_of(reader, each, clear=False) for each in newest], indent=1))
            return
        head = ["ended (UTC)", "request", "use case", "version", "route", "status", "subject", "verdicts", "problem"]
        print_table(head, [
            [f"{r.ended_at:%Y-%m-%d %H:%M:%S}", r.request_id, r.use_case, str(r.version), r.route, str(r.status),
             r.subject[:10], ", ".join(v.reason or v.action for v in r.verdicts), r.problem[:60]] for r in newest
        ])  # fmt: skip
        return
    rows = [row_of(reader, record, clear=not sealed) for record in reader.find(request_id)]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        for name, value in row.items():
            if value not in ("", None, [], {}, 0):
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                typer.echo(f"{name:<14} {shown}")
        if row.get("erased"):
            typer.echo("texts          erased: the subject's key was destroyed")


@app.command()
def export(
    target: Path = typer.Argument(help="File to write"),
    kind: str = typer.Option("jsonl", "--format", help="jsonl or parquet"),
    since: str = SINCE,
    until: str = UNTIL,
    clear: bool = typer.Option(False, "--clear", help="With texts in the clear, where they were not erased."),
) -> None:
    """Write records into one file."""
    if kind not in ("jsonl", "parquet"):
        raise ConfigurationError(f"--format: '{kind}' is not known", hint="jsonl or parquet")
    reader = open_reader(load_settings())
    from governance.audit.export import export as write

    count = write(reader, reader.records(_moment(since), _moment(until)), target, kind, clear=clear)  # type: ignore[arg-type]
    typer.echo(f"{count:,} records in {target}", err=True)


@app.command("erase-subject")
def erase_subject(
    subject: str = typer.Argument(help="As the gateway knew it: the request's subject, or the caller's"),
    tenant: str = typer.Option("default", help="Whose subject"),
    reason: str = typer.Option(..., help="Why; stands in the trail"),
    dry_run: bool = DRY_RUN,
) -> None:
    """Destroy the key of a subject: its texts and hashes can never be read again, and every chain still verifies."""
    settings = load_settings()
    from governance.audit.keys import Scope
    from governance.audit.opening import note, open_key_store

    reader = open_reader(settings)
    keys, scope = open_key_store(settings), Scope(tenant, subject)
    name = keys.name_of(scope)
    if name is None:
        raise NotFoundError(f"Tenant '{tenant}' has no subject of that name in the trail", hint="look at --tenant")
    count = reader.count(name)
    if not dry_run:
        note(settings, "erasing", subject=name, records=count, actor=current_user(), reason=reason)
        keys.erase(scope)
    typer.echo(f"{count:,} records of {name} {'would be' if dry_run else 'are'} unreadable", err=True)


@app.command()
def anchor(
    to: str = typer.Option("", "--to", help="s3://BUCKET/PREFIX or a folder; default: LEITSTAND_AUDIT__ANCHORS"),
) -> None:
    """Copy the newest signed heads to where this host cannot change them."""
    settings = load_settings()
    from governance.audit.anchors import anchor_heads
    from governance.audit.opening import trail_folder
    from models.blobs.anchors import open_anchors

    new = anchor_heads(trail_folder(settings), open_anchors(settings, to))
    for chain, sequence in new.items():
        typer.echo(f"{chain}: record {sequence} and all before it")
    typer.echo(f"{len(new)} new anchors", err=True)


@app.command()
def prune(dry_run: bool = DRY_RUN) -> None:
    """Remove files whose records are all older than LEITSTAND_AUDIT__RETENTION_DAYS; a signed checkpoint stays."""
    settings = load_settings()
    from governance.audit.opening import prune_trail

    done = prune_trail(settings, now=utc_now(), dry_run=dry_run)
    for name in done.segments:
        typer.echo(name)
    verb = "would be" if dry_run else "are"
    typer.echo(f"{done.records:,} records in {len(done.segments)} files ({done.size:,} bytes) {verb} gone", err=True)


@app.command()
def bundle(
    target: Path = typer.Argument(help="A folder, or a file ending in .zip"),
    since: str = typer.Option(..., "--from", help="From this moment on, like 2026-11-24 (UTC)"),
    until: str = typer.Option(..., "--to", help="Before this moment"),
    clear: bool = typer.Option(False, "--clear", help="Also records.jsonl with texts in the clear."),
) -> None:
    """Collect the evidence of a period: records, heads, key, verifier, ledger, gate reports, a page that maps it."""
    settings = load_settings()
    reader = open_reader(settings)
    apply_environment(settings)
    from governance.audit.bundle import make_bundle
    from governance.audit.opening import open_trail_signer
    from models.decision_record import gate_reports
    from models.ledger import open_ledger
    from models.registry.opening import open_registry

    begin, end = _moment(since), _moment(until)
    if begin is None or end is None or begin >= end:
        raise ConfigurationError("--from must lie before --to", hint="--from 2026-11-01 --to 2026-12-01")
    versions = sorted({(r.use_case, r.version) for r in reader.records(begin, end) if r.version})
    documents = {f"gates/{name}": content for name, content in gate_reports(open_registry(settings), versions).items()}
    entries = [entry.model_dump(mode="json") for entry in open_ledger(settings).entries()]
    documents["ledger.jsonl"] = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    kept: Any = ()
    if settings.audit.anchors:
        from models.blobs.anchors import open_anchors

        kept = open_anchors(settings).read()
    made = make_bundle(
        reader, open_trail_signer(settings), target, begin, end, documents=documents, anchors=kept, clear=clear
    )
    typer.echo(made)


def open_reader(settings: Settings) -> "Reader":
    """The trail of this installation.

    Raises:
        NotFoundError: There is none yet.
    """
    from governance.audit.opening import open_key_store, trail_folder
    from governance.audit.reading import Reader

    folder = trail_folder(settings)
    if not (folder / "chains").is_dir():
        raise NotFoundError(f"No audit trail in {folder}", hint="the gateway begins one with its first request")
    return Reader(folder, open_key_store(settings))


def _moment(text: str) -> datetime | None:
    return moment_of(text) if text else None
