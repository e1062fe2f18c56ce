"""The one list of metric names and labels that a gateway exposes on ``/metrics``."""

from prometheus_client import Counter, Gauge, Histogram, Summary

__all__ = [
    "ACCESS_LINES_DROPPED",
    "AUDIT_RECORDS",
    "AUDIT_UP",
    "AUTHENTICATED",
    "BREAKER_OPENED",
    "BREAKER_STATE",
    "BUDGET_EXPIRED",
    "BUDGET_HOLDS",
    "BUDGET_LEFT",
    "BUDGET_REFUSALS",
    "BUDGET_STORE_UP",
    "BUDGET_UNSETTLED",
    "BUDGET_WARNINGS",
    "COST",
    "FAILURES",
    "FALLBACKS",
    "FALLBACK_ANSWERS",
    "FEEDBACK",
    "FIRST_TOKEN",
    "GUARDED",
    "HEDGES",
    "HTTP_LATENCY",
    "HTTP_REQUESTS",
    "IN_FLIGHT",
    "JOBS_ACCEPTED",
    "JOBS_BYTES",
    "JOBS_DEAD",
    "JOBS_DELAYED",
    "JOBS_OLDEST",
    "JOBS_RUNNING",
    "JOBS_STORE_UP",
    "JOBS_WAITING",
    "JOB_ATTEMPTS",
    "JOB_SECONDS",
    "JUDGED",
    "LATENCY",
    "OVERHEAD",
    "REQUESTS",
    "RETRIES",
    "REVISION",
    "ROWS_DROPPED",
    "SHADOWS",
    "SHED",
    "SLOW_CLIENTS",
    "STORE_UP",
    "STREAMS",
    "TOKENS",
    "TOO_SHORT",
    "UPSTREAM_IN_FLIGHT",
    "VERDICTS",
]  # fmt: skip

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

HTTP_REQUESTS = Counter(
    "gateway_http_requests_total",
    "Every HTTP request by what it asked for, known use case (or empty) and status; 499: the client went away",
    ["operation", "use_case", "status"],
)
HTTP_LATENCY = Histogram(
    "gateway_http_latency_seconds",
    "Time from a request's arrival to the last byte of its answer, whatever the status",
    ["operation", "use_case"],
    buckets=SECONDS,
)
REQUESTS = Counter(
    "gateway_requests_total", "Requests by who answered and HTTP status", ["use_case", "version", "route", "status"]
)
REFUSED = Counter("gateway_refused_total", "Requests that reached no version: not valid, unknown, too many", ["status"])
LATENCY = Histogram(
    "gateway_latency_seconds",
    "Time from a request's arrival to its answer, status 200 only; of a shadow, the time of its call",
    ["use_case", "version", "route"],
    buckets=SECONDS,
)
FIRST_TOKEN = Histogram(
    "gateway_first_token_seconds",
    "Time from a request's arrival to the first text of its stream, before a guard holds it back",
    ["use_case", "version", "route"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STREAMS = Counter(
    "gateway_streams_total",
    "Streamed answers by how they ended: complete, blocked, failed, gone (nobody listened any more)",
    ["use_case", "ended"],
)
OVERHEAD = Histogram(
    "gateway_overhead_seconds",
    "The part of the latency that was not spent waiting for upstreams",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25),
)
FAILURES = Counter(
    "gateway_upstream_failures_total",
    "Calls that a version did not answer, or answered with 5xx; a canary's count although stable stepped in",
    ["use_case", "version", "route", "reason"],
)
FALLBACKS = Counter("gateway_fallbacks_total", "Requests of a failing canary that stable answered", ["use_case"])
FALLBACK_ANSWERS = Counter(
    "gateway_fallback_answers_total",
    "Requests that the table's fallback answered, by the failure of the one before it or the policy that asked for it",
    ["use_case", "reason"],
)
TOO_SHORT = Counter(
    "gateway_short_deadlines_total",
    "Calls that were given up because the caller gave too little time; no failure of the version",
    ["use_case", "version", "route"],
)
BREAKER_STATE = Gauge(
    "gateway_breaker_state", "0 closed, 1 half-open, 2 open: not asked", ["use_case", "version", "upstream"]
)
BREAKER_OPENED = Counter("gateway_breaker_opened_total", "Times that a breaker opened", ["use_case", "version"])
UPSTREAM_IN_FLIGHT = Gauge(
    "gateway_upstream_in_flight", "Calls that an upstream has not answered yet", ["use_case", "version", "upstream"]
)
RETRIES = Counter(
    "gateway_retries_total",
    "Calls that were made again, or refused because the retry budget is spent",
    ["use_case", "version", "outcome"],
)
HEDGES = Counter(
    "gateway_hedges_total",
    "Second calls for a slow first one, by who answered first",
    ["use_case", "version", "outcome"],
)
SHED = Counter("gateway_shed_total", "Requests refused because the gateway is nearly full", ["priority"])
SLOW_CLIENTS = Counter(
    "gateway_slow_clients_total",
    "Connections that were closed: silence, request (not sent in time), answer (not taken in time), long head",
    ["what"],
)
SHADOWS = Counter(
    "gateway_shadow_answers_total",
    "Shadow answers by outcome: agree, disagree (a label differs), failed, skipped (too many at once)",
    ["use_case", "version", "outcome"],
)
DOUBT = Summary("gateway_doubt", "1 - score of each answered text, shadows included", ["use_case", "version", "route"])
IN_FLIGHT = Gauge("gateway_requests_in_flight", "Requests being answered")
STORE_UP = Gauge("gateway_route_store_up", "1 when the route tables could be read at the last attempt")
REVISION = Gauge("gateway_route_revision", "Revision of the route table in use", ["use_case"])
AUTHENTICATED = Counter(
    "gateway_authentications_total",
    "Credentials by kind (jwt, api-key, none) and outcome: accepted, refused (none that counts)",
    ["method", "outcome"],
)
VERDICTS = Counter(
    "gateway_guard_verdicts_total",
    "Findings of guard rules; reasons are codes of the rules, never text",
    ["use_case", "stage", "action", "reason"],
)
GUARDED = Counter(
    "gateway_guarded_answers_total",
    "Written answers that guards looked at, by the worst outcome: pass, mask, review, block",
    ["use_case", "version", "route", "outcome"],
)
FEEDBACK = Counter("gateway_feedback_total", "Feedback by outcome", ["use_case", "outcome"])
JUDGED = Counter(
    "gateway_judged_answers_total",
    "Texts by what the first feedback about their answer said: right or wrong; feedback must reach the same gateway",
    ["use_case", "version", "route", "outcome"],
)
ROWS_DROPPED = Counter("gateway_log_records_dropped_total", "Answers that are missing in the inference log")
ACCESS_LINES_DROPPED = Counter("gateway_access_lines_dropped_total", "Lines that are missing in the access log")
TOKENS = Counter("gateway_tokens_total", "Tokens of answered requests by direction: in, out", ["use_case", "direction"])
COST = Counter("gateway_cost_total", "Cost of answered requests, in the unit of the budgets", ["use_case"])
BUDGET_HOLDS = Counter(
    "gateway_budget_reservations_total",
    "Requests that limits apply to, by outcome: held, refused, fallback (a day is used up), unavailable (no store)",
    ["use_case", "outcome"],
)
BUDGET_REFUSALS = Counter(
    "gateway_budget_refusals_total",
    "Requests that a limit refused or sent to the fallback; scope: use_case, tenant, key, user, total",
    ["use_case", "scope", "limit"],
)
BUDGET_WARNINGS = Counter(
    "gateway_budget_warnings_total", "Answers beyond a day's soft limit", ["use_case", "scope", "limit"]
)
BUDGET_LEFT = Gauge(
    "gateway_budget_left",
    "What the last request left of a day's limit, in its own unit (cost: millionths); only tenants with own limits",
    ["use_case", "scope", "limit", "tenant"],
)
BUDGET_EXPIRED = Counter("gateway_budget_expired_total", "Reservations without a gateway, booked in full by this one")
BUDGET_UNSETTLED = Gauge("gateway_budget_unsettled", "Bookings that wait for the store to answer")
BUDGET_STORE_UP = Gauge("gateway_budget_store_up", "1 when the store of budgets answered at the last attempt")
BUDGET_STORE_UP.set(1)

JOBS_ACCEPTED = Counter(
    "jobs_submitted_total", "Requests for a job by outcome: new, known (same idempotency key), refused",
    ["use_case", "outcome"],
)  # fmt: skip
JOB_ATTEMPTS = Counter(
    "job_attempts_total",
    "Attempts at jobs by what became of the job: done, queued (again), failed, cancelled, lost (another has it)",
    ["use_case", "outcome"],
)
JOB_SECONDS = Histogram(
    "job_attempt_seconds", "Time that an attempt at a job took", ["use_case"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800),
)  # fmt: skip
JOBS_WAITING = Gauge("jobs_waiting", "Jobs that wait for a worker", ["use_case"])
JOBS_RUNNING = Gauge("jobs_running", "Jobs that a worker holds", ["use_case"])
JOBS_DELAYED = Gauge("jobs_delayed", "Jobs whose retry is not due yet")
JOBS_DEAD = Gauge("jobs_dead_letters", "Jobs that failed for good and can be replayed")
JOBS_BYTES = Gauge("jobs_input_bytes", "Sealed texts of open jobs and dead letters")
JOBS_OLDEST = Gauge("jobs_oldest_seconds", "Age of the oldest job that did not end")
JOBS_STORE_UP = Gauge("jobs_store_up", "1 when the job queue answered at the last attempt")
AUDIT_RECORDS = Counter(
    "gateway_audit_records_total",
    "Audit records by mode and outcome: durable, unavailable (answered 503), queued, lost (no room)",
    ["mode", "outcome"],
)
AUDIT_UP = Gauge("gateway_audit_up", "1 when the audit trail can be written")
