"""`leitstand explain REQUEST_ID`: everything that led to one answer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from leitstand.settings import apply_environment, load_settings

if TYPE_CHECKING:
    from models.decision_record import DecisionRecord

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("explain")
def explain(
    request_id: str = typer.Argument(help="As in the answer's header x-request-id"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Walk from a request's audit record to its model version, data, code, W&B run, gates and approver."""
    settings = load_settings()
    from leitstand.commands.audit import open_reader

    records = open_reader(settings).find(request_id)
    apply_environment(settings)
    from flows.serving_once import packaged
    from models.decision_record import explain as walk
    from models.ledger import open_ledger
    from models.registry.opening import open_registry

    registry, ledger = open_registry(settings), open_ledger(settings)
    walks = [walk(record, registry, ledger) for record in records]
    if as_json:
        typer.echo("[" + ",\n".join(each.model_dump_json(indent=1, by_alias=True) for each in walks) + "]")
        return
    for each in walks:
        bentos = packaged(settings, each.record.use_case, each.record.version) if each.record.version else ()
        for name, text in [*_lines(each), *(("bento", f"{bento.tag} {bento.digest}") for bento in bentos)]:
            typer.echo(f"{name:<9} {text}")


def _lines(walk: "DecisionRecord") -> Iterator[tuple[str, str]]:
    record, version, holder, report = walk.record, walk.version, walk.holder, walk.gate_report
    yield "record", f"{record.id} (hash {record.hash[:16]}…)"
    yield "answered", f"{record.ended_at:%Y-%m-%d %H:%M:%S.%f} UTC, status {record.status} {record.problem}".rstrip()
    if record.version:
        yield "by", f"{record.use_case}:{record.version} as {record.route}"
    if version is not None:
        yield "weights", version.weights_digest
        yield "data", version.data_digest
        yield "code", version.commit
        yield "run", f"{version.run_id} {version.tracking_url}".strip()
        yield "parent", version.parent or "none"
    if report is not None:
        passed = sum(result["outcome"] == "pass" for result in report["results"])
        yield "gates", f"{report['outcome']}: {passed} of {len(report['results'])} pass"
    if holder is not None:
        yield "approved", f"{holder.at:%Y-%m-%d %H:%M} by {holder.actor}: {holder.reason}"
        yield "", f"alias {holder.alias}, ledger entry {holder.sequence}, evidence {holder.evidence or 'none'}"
    for what in walk.missing:
        yield "missing", what
