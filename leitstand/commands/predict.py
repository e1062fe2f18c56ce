"""`leitstand predict`: ask a served Bento."""

import json
import time
from typing import Any

import typer

from leitstand.errors import ConfigurationError, NotFoundError, PermanentBackendError, TransientBackendError
from leitstand.settings import load_settings
from leitstand.usecase import find, load

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@app.command()
def predict(
    name: str = typer.Argument(help="Use case."),
    texts: list[str] = typer.Argument(help="One or more texts."),
    url: str = typer.Option("", help="Address of the Bento; default: this machine, the use case's port."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Classify texts with a served Bento: label, calibrated score, abstention, version and time."""
    if not url:
        settings = load_settings()
        url = f"http://{settings.serving.host}:{load(find(name, settings.usecases)).serving.port}"
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}
    started = time.perf_counter()
    answer = _post(f"{url.rstrip('/')}/v2/models/{name}/infer", body)
    elapsed_ms = (time.perf_counter() - started) * 1000
    columns = {output["name"]: output["data"] for output in answer["outputs"]}
    rows = [
        {"text": text, "label": label, "score": round(score, 4), "abstain": abstain}
        for text, label, score, abstain in zip(
            texts, columns["label"], columns["score"], columns["abstain"], strict=True
        )
    ]
    if as_json:
        result = {"model": name, "version": answer["model_version"], "ms": round(elapsed_ms, 2), "predictions": rows}
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    for row in rows:
        note = "  abstains: leave it to a person" if row["abstain"] else ""
        typer.echo(f"{row['label']:<44} {row['score']:.3f}{note}  {row['text'][:60]!r}")
    typer.echo(f"{name} version {answer['model_version']}, {elapsed_ms:.1f} ms", err=True)


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    import httpx

    try:
        response = httpx.post(url, json=body, timeout=30)
    except httpx.TransportError as error:
        raise TransientBackendError(
            f"Nothing answers at {url}: {error}", hint="start it with `leitstand up`, or name the address with --url"
        ) from error
    if response.is_success:
        return response.json()
    message = _message(response)
    if response.status_code == 404:  # noqa: PLR2004
        raise NotFoundError(message, hint="name a use case that this server has, or another --url")
    if response.status_code in (429, 503):
        raise TransientBackendError(message, hint=f"try again in {response.headers.get('retry-after', '1')} s")
    if response.is_client_error:
        raise ConfigurationError(message, hint="correct the texts")
    raise PermanentBackendError(message, hint="look into the server's log")


def _message(response: Any) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code}"
