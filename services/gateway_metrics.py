"""The one list of metric names and labels that a gateway exposes on ``/metrics``."""

from prometheus_client import Counter, Gauge, Histogram, Summary

__all__ = [
    "FAILURES",
    "FALLBACKS",
    "FEEDBACK",
    "IN_FLIGHT",
    "JUDGED",
    "LATENCY",
    "OVERHEAD",
    "REQUESTS",
    "REVISION",
    "ROWS_DROPPED",
    "SHADOWS",
    "STORE_UP",
]  # fmt: skip

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

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
SHADOWS = Counter(
    "gateway_shadow_answers_total",
    "Shadow answers by outcome: agree, disagree (a label differs), failed, skipped (too many at once)",
    ["use_case", "version", "outcome"],
)
DOUBT = Summary("gateway_doubt", "1 - score of each answered text, shadows included", ["use_case", "version", "route"])
IN_FLIGHT = Gauge("gateway_requests_in_flight", "Requests being answered")
STORE_UP = Gauge("gateway_route_store_up", "1 when the route tables could be read at the last attempt")
REVISION = Gauge("gateway_route_revision", "Revision of the route table in use", ["use_case"])
FEEDBACK = Counter("gateway_feedback_total", "Feedback by outcome", ["use_case", "outcome"])
JUDGED = Counter(
    "gateway_judged_answers_total",
    "Texts by what the first feedback about their answer said: right or wrong; feedback must reach the same gateway",
    ["use_case", "version", "route", "outcome"],
)
ROWS_DROPPED = Counter("gateway_log_records_dropped_total", "Answers that are missing in the inference log")
