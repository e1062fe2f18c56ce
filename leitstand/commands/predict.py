"""`leitstand predict`: ask what is served, through the gateway where there is one."""

import json
import time
from dataclasses import dataclass
from typing import Any

import typer

from leitstand.errors import (
    AuthenticationFailed,
    ConfigurationError,
    NotFoundError,
    PermanentBackendError,
    PolicyDenied,
    TransientBackendError,
)
from leitstand.settings import Settings, load_settings
from leitstand.usecase import find, load

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True)
class _Answer:
    document: dict[str, Any]
    request_id: str
    route: str
    ms: float


@app.command()
def predict(
    name: str = typer.Argument(help="Use case."),
    texts: list[str] = typer.Argument(help="One or more texts."),
    url: str = typer.Option("", help="Address of a gateway or a Bento; default: this machine's gateway."),
    token: str = typer.Option("", help="Bearer token or API key; default: LEITSTAND_ACCESS__CLIENT_KEY."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Classify texts: label, calibrated score, abstention, version, time, and the id to explain the answer by."""
    answer = _ask(load_settings(), name, texts, url, token)
    columns = {output["name"]: output["data"] for output in answer.document["outputs"]}
    rows = [
        {"text": text, "label": label, "score": round(score, 4), "abstain": abstain}
        for text, label, score, abstain in zip(
            texts, columns["label"], columns["score"], columns["abstain"], strict=True
        )
    ]
    version = answer.document["model_version"]
    if as_json:
        result = {
            "model": name, "version": version, "route": answer.route, "request_id": answer.request_id,
            "ms": round(answer.ms, 2), "predictions": rows,
        }  # fmt: skip
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    for row in rows:
        note = "  abstains: leave it to a person" if row["abstain"] else ""
        typer.echo(f"{row['label']:<44} {row['score']:.3f}{note}  {row['text'][:60]!r}")
    typer.echo(f"{name} version {version}, {answer.ms:.1f} ms", err=True)
    if answer.route:
        typer.echo(f"Why this answer: leitstand explain {answer.request_id}", err=True)


def _ask(settings: Settings, name: str, texts: list[str], url: str, token: str) -> _Answer:
    """Asks `url`; without one the gateway, and where none runs the use case's Bento."""
    from leitstand.commands.local import gateway_url

    if not token and settings.access.client_key:
        token = settings.access.client_key.get_secret_value()
    if url:
        return _post(url, name, texts, token)
    try:
        return _post(gateway_url(settings), name, texts, token)
    except _NobodyListens:
        secret = settings.serving.token.get_secret_value() if settings.serving.token else ""
        bento = f"http://{settings.serving.host}:{load(find(name, settings.usecases)).serving.port}"
        answer = _post(bento, name, texts, secret)
        typer.echo("No gateway runs, so the Bento was asked itself: nothing was recorded", err=True)
        return answer


class _NobodyListens(TransientBackendError):
    pass


def _post(url: str, name: str, texts: list[str], token: str) -> _Answer:
    import httpx

    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}
    headers = {"authorization": f"Bearer {token}"} if token else {}
    started = time.perf_counter()
    try:
        response = httpx.post(f"{url.rstrip('/')}/v2/models/{name}/infer", json=body, headers=headers, timeout=30)
    except httpx.ConnectError as error:
        raise _NobodyListens(
            f"Nothing answers at {url}: {error}", hint="start it with `leitstand up`, or name the address with --url"
        ) from error
    except httpx.TransportError as error:
        raise TransientBackendError(f"{url} broke the connection: {error}", hint="see `leitstand status`") from error
    if response.is_success:
        got = response.headers
        elapsed_ms = (time.perf_counter() - started) * 1000
        return _Answer(response.json(), got.get("x-request-id", ""), got.get("x-leitstand-route", ""), elapsed_ms)
    raise _error(response)


def _error(response: Any) -> Exception:
    message, status = _message(response), response.status_code
    if status == 401:  # noqa: PLR2004
        return AuthenticationFailed(
            message, hint="name a token or an API key with --token; see `leitstand token --help`"
        )
    if status == 403:  # noqa: PLR2004
        return PolicyDenied(message)
    if status == 404:  # noqa: PLR2004
        return NotFoundError(message, hint="name a use case that this server has, or another --url")
    if status in (429, 503):
        return TransientBackendError(message, hint=f"try again in {response.headers.get('retry-after', '1')} s")
    if response.is_client_error:
        return ConfigurationError(message, hint="correct the texts")
    return PermanentBackendError(message, hint="look into the server's log")


def _message(response: Any) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code}"
