"""The gateway's FastAPI application, and the server that runs it behind `services.gateway_front`.

Feedback, health, metrics and documentation are here; predictions never come this far.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from leitstand import __version__
from leitstand.errors import LeitstandError
from services.draining import drain_on_sigterm
from services.errors import HttpError
from services.errors import Response as RawResponse
from services.feedback import take_feedback
from services.gateway_docs import describe
from services.gateway_front import Front
from services.gateway_lifetime import opened
from services.gateway_pages import add_pages
from services.gateway_wiring import Gateway
from services.guarded import CALLER, Guarded
from services.hardening import Hardened
from services.jobs.routes import add_jobs
from services.observing import Observed
from services.payload_encryption import Encrypted, open_jwe_key
from services.problems import problem, problem_for
from services.scheduling import Overloaded
from services.schemas import FeedbackRequest, FeedbackResponse, Problem
from services.slow_clients import SlowClients
from services.tls import server_options

__all__ = ["create_app", "serve"]

# How long the thread that writes the log may keep the event loop waiting; Python's default is ten times as long.
SWITCH_S = 0.0005
PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (401, 403, 404, 409, 422, 503)}


def create_app(gateway: Gateway) -> Observed:
    """The whole application: watchers, hot paths, FastAPI behind. Its lifespan opens and closes the parts."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with opened(gateway):
            drain_on_sigterm(front.drain)
            gc.collect()
            gc.freeze()  # what exists now stays: no reason to look at it again in every collection
            yield

    app = FastAPI(
        title="Leitstand gateway", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Routes each request to the model version that the route table names.",
    )  # fmt: skip
    front = Front(Guarded(app, gateway.access, gateway.access_settings.metrics), gateway)
    _add_feedback(app, gateway)
    _add_health(app, gateway, front)
    add_jobs(app, gateway, lambda: front.draining)
    _answer_with_problems(app)
    add_pages(app)
    app.openapi = lambda: describe(app)
    return Observed(_hardened(front, gateway), lambda name: gateway.routes.table(name) is not None, *gateway.watchers)


def serve(gateway: Gateway) -> None:
    """Runs until SIGTERM or SIGINT; requests in flight are answered first.

    Raises:
        ConfigurationError: A certificate or key cannot be used.
    """
    clients = SlowClients(gateway.settings.client_s)
    config = uvicorn.Config(
        create_app(gateway), host=gateway.settings.host, port=gateway.settings.port, loop="uvloop",
        http=clients.protocol, callback_notify=clients.sweep, timeout_notify=0,
        lifespan="on", log_level="warning", access_log=False, server_header=False, date_header=False,
        timeout_keep_alive=75, timeout_graceful_shutdown=max(1, round(gateway.drain_s)),
        **server_options(gateway.tls),
    )  # fmt: skip
    # While it drains, uvicorn keeps the signal and raises it again at the end; the process has ended well by then.
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.setswitchinterval(SWITCH_S)
    uvicorn.Server(config).run()


def _hardened(front: Front, gateway: Gateway) -> Hardened:
    chosen = gateway.settings
    inner = Encrypted(front, open_jwe_key(chosen.jwe_key), chosen.max_body_bytes) if chosen.jwe_key else front
    return Hardened(
        inner, max_headers=chosen.max_headers, max_header_bytes=chosen.max_header_bytes, origins=chosen.cors_origins,
        tls=gateway.tls.cert is not None,
    )  # fmt: skip


def _add_feedback(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/{use_case}/feedback", responses=PROBLEMS, summary="Say what was right, or how good it was")
    async def feedback(use_case: str, said: FeedbackRequest, request: Request) -> FeedbackResponse:
        caller = getattr(request.state, CALLER, None)
        if caller is not None:  # trust is earned by a source: nobody may speak as another
            said = said.model_copy(update={"source": caller.subject})
        labels = await gateway.inference.labels(use_case)
        takes_new = await asyncio.to_thread(gateway.takes_new_labels, use_case)
        return await asyncio.to_thread(
            take_feedback, gateway.feedback_log, gateway.recent, use_case, said, labels, takes_new=takes_new
        )


def _add_health(app: FastAPI, gateway: Gateway, front: Front) -> None:
    @app.get("/livez", summary="The process answers")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", summary="The routes are known, and the process is not about to end")
    async def readyz(response: Response) -> dict[str, Any]:
        response.status_code = 200 if front.ready else 503
        tables = {name: gateway.routes.table(name) for name in gateway.routes.names()}
        revisions = {name: table.revision for name, table in tables.items() if table}
        return {
            "ready": front.ready,
            "draining": front.draining,
            "route_store": gateway.routes.down or "ok",
            "audit": gateway.auditor.state if gateway.auditor else "off",
            "routes": revisions,
            "breakers": gateway.inference.gates.states(),
        }

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _answer_with_problems(app: FastAPI) -> None:
    def handler(explain: Callable[[Any], RawResponse]) -> Callable[[Request, Exception], Response]:
        def handle(_: Request, error: Exception) -> Response:
            status, headers, body = explain(error)
            return Response(body, status, {name.decode(): value.decode() for name, value in headers})

        return handle

    app.add_exception_handler(LeitstandError, handler(problem_for))
    app.add_exception_handler(HttpError, handler(problem_for))
    app.add_exception_handler(Overloaded, handler(problem_for))
    app.add_exception_handler(RequestValidationError, handler(lambda error: problem(422, _mistakes(error))))
    app.add_exception_handler(HTTPException, handler(_refused))


def _refused(error: HTTPException) -> RawResponse:
    """FastAPI calls bytes that are no text a bad request; here they are not valid, like all that is no JSON."""
    if error.status_code == 400:  # noqa: PLR2004
        return problem(422, "the body is not JSON")
    return problem(error.status_code, str(error.detail))


def _mistakes(error: RequestValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()[:5])
