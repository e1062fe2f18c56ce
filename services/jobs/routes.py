"""The job routes of the gateway.

    POST   /v1/{use_case}/jobs               202 and where to look
    GET    /v1/{use_case}/jobs/{id}          where it stands
    GET    /v1/{use_case}/jobs/{id}/result   the answers, once it is done
    GET    /v1/{use_case}/jobs/{id}/events   its progress as server-sent events
    DELETE /v1/{use_case}/jobs/{id}          cancel

A job belongs to the tenant that asked for it. For everybody else it does not exist.
"""

import asyncio
import re
from collections.abc import Callable
from time import perf_counter
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from leitstand.errors import ConflictError, LeitstandError, NotFoundError, TransientBackendError
from services.errors import HttpError
from services.exchange import Exchange, TextPayload
from services.gateway_metrics import JOBS_ACCEPTED
from services.gateway_wiring import Gateway
from services.jobs.events import EventResponse, EventStreams
from services.jobs.opening import HINT
from services.jobs.queue import JobQueue
from services.jobs.records import JobStatus, NewJob, Priority
from services.jobs.schemas import JobRequest, JobResponse, JobResult
from services.request_ids import new_request_id
from services.scheduling import Overloaded
from services.schemas import Problem
from services.shedding import priority_of

__all__ = ["add_jobs"]

JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (401, 403, 404, 503)}
CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": Problem}}
SUBMIT: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (409, 413, 422, 429)}
STREAM: dict[int | str, dict[str, Any]] = {204: {"description": "The job ended, and nothing happened since"}}
CANCELLING: dict[int | str, dict[str, Any]] = {202: {"model": JobResponse, "description": "It stops at its next chunk"}}


def _header(name: str, meaning: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string"}, "description": meaning}


BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": JobRequest.model_json_schema()}}},
    "parameters": [
        _header("idempotency-key", "the same key and body again is the same job"),
        _header("x-subject", "whom the route is sticky to"),
    ],
}
RESUME = {"parameters": [_header("last-event-id", "the last event that was seen")]}


def add_jobs(app: FastAPI, gateway: Gateway, draining: Callable[[], bool]) -> None:
    """Adds the routes; without a queue they answer 503. `draining` ends the event streams."""
    desk = _Desk(gateway)
    streams = EventStreams(gateway.job_settings.max_event_streams, draining)

    @app.post(
        "/v1/{use_case}/jobs", status_code=202, response_model=JobResponse, responses=PROBLEMS | SUBMIT,
        openapi_extra=BODY, summary="Have many texts answered when there is time",
    )  # fmt: skip
    async def submit_job(use_case: str, request: Request) -> Response:
        status = await desk.submit(use_case, request)
        said = JobResponse.of(status)
        return Response(said.model_dump_json(), 202, {"location": said.links["self"]}, "application/json")

    @app.get("/v1/{use_case}/jobs/{job_id}", responses=PROBLEMS, summary="Where a job stands")
    async def get_job(use_case: str, job_id: str, request: Request) -> JobResponse:
        return JobResponse.of(await desk.find(use_case, job_id, request))

    @app.get(
        "/v1/{use_case}/jobs/{job_id}/result", response_model=JobResult, responses=PROBLEMS | CONFLICT,
        summary="The answers of a job that is done",
    )  # fmt: skip
    async def get_job_result(use_case: str, job_id: str, request: Request) -> Response:
        return Response(await desk.result(await desk.find(use_case, job_id, request)), 200, None, "application/json")

    @app.delete(
        "/v1/{use_case}/jobs/{job_id}", response_model=JobResponse, responses=PROBLEMS | CONFLICT | CANCELLING,
        summary="Cancel a job; one that runs stops at its next chunk",
    )  # fmt: skip
    async def cancel_job(use_case: str, job_id: str, request: Request) -> Response:
        status = await desk.cancel(await desk.find(use_case, job_id, request))
        return Response(
            JobResponse.of(status).model_dump_json(), 202 if status.cancelling else 200, None, "application/json"
        )

    @app.get(
        "/v1/{use_case}/jobs/{job_id}/events", response_class=EventResponse, responses=PROBLEMS | STREAM,
        openapi_extra=RESUME, summary="A job's progress as server-sent events; resumes after Last-Event-ID",
    )  # fmt: skip
    async def get_job_events(use_case: str, job_id: str, request: Request) -> Response:
        status = await desk.find(use_case, job_id, request)
        return await streams.respond(desk.queue, status, request.headers.get("last-event-id", ""))


class _Desk:
    """What the routes share: who asks, whose job it is."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._settings = gateway.job_settings

    @property
    def queue(self) -> JobQueue:
        if self._gateway.jobs is None:
            raise TransientBackendError("This gateway has no job queue", hint=HINT)
        return self._gateway.jobs

    async def submit(self, use_case: str, request: Request) -> JobStatus:
        queue, headers = self.queue, dict(request.scope["headers"])
        self._need_routes(use_case)
        key = headers.get(b"idempotency-key", b"").decode("latin-1")
        if key and not IDEMPOTENCY_KEY.fullmatch(key):
            raise HttpError(422, "Idempotency-Key must be 1 to 255 printable ASCII characters without spaces")
        asked = await asyncio.to_thread(_read, await request.body(), self._settings.max_texts)
        subject = asked.subject or headers.get(b"x-subject", b"")[:256].decode("latin-1")
        exchange = await self._authenticated(use_case, request, subject)
        job = NewJob(
            id=new_request_id(), use_case=use_case, caller=exchange.caller, texts=asked.texts,
            priority=self._allowed(exchange, asked.priority),
            chunk_texts=self._settings.chunk_texts, top_k=asked.top_k, idempotency_key=key,
            subject=exchange.subject,
        )  # fmt: skip
        try:
            job_id, new = await queue.submit(job)
        except (LeitstandError, Overloaded):
            JOBS_ACCEPTED.labels(use_case, "refused").inc()
            raise
        JOBS_ACCEPTED.labels(use_case, "new" if new else "known").inc()
        status = await queue.status(job_id)
        if status is None:
            raise _unknown(job_id)
        return status

    async def find(self, use_case: str, job_id: str, request: Request) -> JobStatus:
        """The job, when it is the caller's."""
        queue = self.queue
        caller = (await self._authenticated(use_case, request, "")).caller
        if not JOB_ID.fullmatch(job_id):
            raise _unknown(job_id)
        status = await queue.status(job_id)
        owner = await queue.caller(job_id) if status is not None else None
        if status is None or owner is None or status.use_case != use_case or owner.tenant != caller.tenant:
            raise _unknown(job_id)
        return status

    async def cancel(self, status: JobStatus) -> JobStatus:
        state = await self.queue.cancel(status.id)
        if state in ("done", "failed"):
            raise ConflictError(f"Job {status.id} is {state} already")
        return await self.queue.status(status.id) or status

    async def result(self, status: JobStatus) -> bytes:
        if status.state != "done":
            why = f": {status.error}" if status.error else ""
            hint = None if status.ended else f"it has {status.texts_done} of {status.texts} texts; see its events"
            raise ConflictError(f"Job {status.id} has no result, it is {status.state}{why}", hint=hint)
        answers = await self.queue.results(status.id)
        if len(answers) != status.texts:
            raise _unknown(status.id)
        return orjson.dumps({"id": status.id, "use_case": status.use_case, "predictions": answers})

    async def _authenticated(self, use_case: str, request: Request, subject: str) -> Exchange:
        """The stage *authenticate*, as a prediction would meet it: who asks, for whom, and may they."""
        exchange = Exchange(
            use_case=use_case, request_id=new_request_id(), subject=subject, payload=TextPayload(()),
            path=request.scope["path"], deadline=perf_counter() + self._gateway.settings.deadline_s,
            headers=dict(request.scope["headers"]),
        )  # fmt: skip
        await self._gateway.policies.authenticate(exchange)
        return exchange

    def _allowed(self, exchange: Exchange, asked: Priority) -> Priority:
        """The priority that the caller may have: the rules of predictions, `resilience.priorities`."""
        exchange.headers = {b"x-priority": asked.encode()}
        return priority_of(exchange, self._gateway.inference.gates.spec(exchange.use_case).priorities)

    def _need_routes(self, use_case: str) -> None:
        routes = self._gateway.routes
        if not routes.seen:
            raise TransientBackendError(f"The routes are not known: {routes.down}", hint="try again")
        if routes.table(use_case) is None:
            raise NotFoundError(f"No routes for use case '{use_case}'")


def _read(body: bytes, max_texts: int) -> JobRequest:
    try:
        asked = JobRequest.model_validate_json(body)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)[:5]
        raise HttpError(422, "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in mistakes)) from error
    if len(asked.texts) > max_texts:
        raise HttpError(422, f"texts holds {len(asked.texts)} texts, at most {max_texts} are accepted")
    return asked


def _unknown(job_id: str) -> NotFoundError:
    return NotFoundError(f"No job {job_id[:64]}", hint="results are erased after a time; see expires_at")
