"""`leitstand replay REQUEST_ID`: the recorded input again, on the version that answered it."""

import contextlib
import json
import ssl
from typing import TYPE_CHECKING, Any

import typer

from leitstand.errors import IntegrityError, NotFoundError, PermanentBackendError, PolicyDenied, TransientBackendError
from leitstand.settings import Settings, load_settings

if TYPE_CHECKING:
    from governance.audit.reading import Opened
    from governance.audit.records import InferenceRecord

__all__ = ["app"]

CHAT_PATH = "/chat/completions"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("replay")
def replay(
    request_id: str = typer.Argument(help="As in the answer's header x-request-id"),
    url: str = typer.Option("", help="Of a Bento of that version; default: where the routes or this machine have it."),
    serve: bool = typer.Option(False, "--serve", help="Serve the version's packaged Bento for this question."),
    tolerance: float = typer.Option(1e-3, min=0, help="By which scores may differ."),
    exact: bool = typer.Option(False, "--exact", help="Answers within the tolerance fail, too."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Run a recorded input again: identical, within tolerance, or diverged. Exit code 1: diverged; 3: erased."""
    settings = load_settings()
    from leitstand.commands.audit import open_reader
    from services.replaying import compare

    reader = open_reader(settings)
    record = reader.find(request_id)[-1]
    opened = reader.open(record)
    if opened.erased:
        raise PolicyDenied(f"The texts of request '{request_id}' were erased", hint="nothing can run them again")
    if opened.input is None or opened.output is None or record.input is None or record.output is None:
        raise NotFoundError(
            f"Request '{request_id}' has no recorded input and output",
            hint=record.problem or "see `audit show`",
        )
    with contextlib.ExitStack() as stack:
        if record.path == CHAT_PATH:
            where, body, head, said = *_ask_chat(settings, record, opened.input), None, record.version
        elif serve:
            from flows.serving_once import served_once

            where = stack.enter_context(served_once(settings, record.use_case, record.version))
            body, head, said = _ask(settings, where, record, opened)
        else:
            where = url or _address(settings, record)
            body, head, said = _ask(settings, where, record, opened)
    if said and said != record.version:
        raise NotFoundError(f"{where} answers as version {said}, the record is of {record.version}", hint="--url")
    found = compare(record.output.form, opened.output, body, head, tolerance)
    if as_json:
        facts = {"request_id": request_id, "record": record.id, "version": record.version, "url": where}
        facts |= {"outcome": found.outcome, "largest": found.largest, "differences": found.differences}
        typer.echo(json.dumps(facts, indent=1))
    else:
        more = f", scores differ by at most {found.largest:.2g}" if found.largest else ""
        typer.echo(f"{found.outcome}: {record.use_case}:{record.version} at {where}{more}")
    for difference in found.differences:
        typer.echo(difference, err=True)
    if found.outcome == "diverged" or (exact and found.outcome != "identical"):
        raise IntegrityError(f"The answer of request '{request_id}' was not reproduced")


def _ask_chat(settings: Settings, record: "InferenceRecord", body: bytes) -> tuple[str, bytes]:
    """Where the version's API is, by the newest route table that names it, and the body of its answer."""
    from governance.routes.opening import open_route_store
    from services.chat_replaying import ask_again

    for table in reversed(open_route_store(settings).history(record.use_case)):
        for target in table.targets():
            if target.kind == "openai" and target.version == record.version:
                return target.url, ask_again(settings, target, body)
    raise NotFoundError(f"No route ever led to {record.use_case}:{record.version} as an API", hint="is it this home?")


def _address(settings: Settings, record: "InferenceRecord") -> str:
    """Where the version is served now: by the routes, or as a process of this machine."""
    from flows.deploying import LocalDeployer
    from governance.routes.opening import open_route_store

    table = open_route_store(settings).read(record.use_case)
    for target in table.targets() if table else ():
        if target.version == record.version:
            return target.url
    for endpoint in LocalDeployer(settings).all(record.use_case):
        if endpoint.version == record.version:
            return endpoint.url
    raise NotFoundError(
        f"{record.use_case}:{record.version} is not served",
        hint=f"add --serve, after `leitstand package {record.use_case} --version {record.version}`; or name a --url",
    )


def _ask(settings: Settings, url: str, record: "InferenceRecord", opened: "Opened") -> tuple[bytes, int | None, int]:
    """Body of the answer, length of its JSON part, and the version that it names (0: none)."""
    import httpx
    import orjson

    from services.upstream_codec import ALWAYS, decode_answer, encode_texts
    from services.upstreams import HEAD_BYTES

    assert record.input is not None  # noqa: S101 -- checked by the caller
    assert opened.input is not None  # noqa: S101 -- likewise
    headers = {"content-type": "application/json"}
    if record.input.form == "texts":
        content = encode_texts(orjson.loads(opened.input), ALWAYS)
    else:
        kind, _, head = record.input.form.partition("; head=")
        headers = {"content-type": kind} | ({HEAD_BYTES: head} if head else {})
        content = opened.input
    if settings.serving.token:
        headers["authorization"] = f"Bearer {settings.serving.token.get_secret_value()}"
    trusted = ssl.create_default_context(cafile=settings.tls.upstream_ca)
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}{record.path}", content=content, headers=headers, timeout=60, verify=trusted
        )
    except httpx.TransportError as error:
        raise TransientBackendError(f"Nothing answers at {url}: {error}", hint="serve the version, or --url") from error
    if not answer.is_success:
        raise PermanentBackendError(f"{url} answered {answer.status_code}: {answer.text[:200]}")
    length: Any = answer.headers.get(HEAD_BYTES)
    head_bytes = int(length) if length else None
    try:
        return answer.content, head_bytes, decode_answer(answer.content, head_bytes).version
    except PermanentBackendError:
        return answer.content, head_bytes, 0
