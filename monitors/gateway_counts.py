"""Counts of a use case's versions, read from the metrics that gateways expose, and added up between looks.

A gateway's counters start at 0 when it starts; `accumulate` adds what each source counted since the last look
and survives restarts of gateways (a counter that fell starts anew) and of the reader (a `Tally` is a record).
Names are those of `services.gateway_metrics`; a test compares them. Pure, except `GatewayMetrics`.
"""

import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field

from leitstand.errors import TransientBackendError

__all__ = ["Arm", "CountSource", "GatewayMetrics", "Tally", "accumulate", "arm", "latency_quantile_ms", "parse_counts"]

Counts = dict[str, float]
TIMEOUT_S = 2.0
ANSWERED = "gateway_latency_seconds_count"
BUCKET = "gateway_latency_seconds_bucket"
FAILED = "gateway_upstream_failures_total"
DOUBT = "gateway_doubt_sum"
TEXTS = "gateway_doubt_count"
JUDGED = "gateway_judged_answers_total"
GUARDED = "gateway_guarded_answers_total"
SHADOWS = "gateway_shadow_answers_total"
SHADOW = "~shadow"
_PLAIN = {ANSWERED: "answered", FAILED: "failed", DOUBT: "doubt", TEXTS: "texts"}


class CountSource(Protocol):
    """Where counters can be read."""

    def read(self, use_case: str) -> Mapping[str, Counts]:
        """Counters by source (a gateway), each a mapping of ``WHO/NAME`` to its value; see `parse_counts`.

        Raises:
            TransientBackendError: A source cannot be read now.
        """
        ...


class Tally(BaseModel):
    """What was counted since `begun`, and where each source's counters stood at the last look."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    begun: str = Field(default="", description="names the phase or step that the totals belong to")
    total: Counts = Field(default_factory=dict)
    last: dict[str, Counts] = Field(default_factory=dict)


class Arm(BaseModel):
    """The counts of one version, as stable or canary, or as a shadow.

    Attributes:
        requests: Calls of the version, answered or not.
        failed: Calls that it did not answer, or with 5xx; stable may have stepped in for a canary.
        slow: Answers slower than the threshold.
        texts: Texts answered.
        doubt: Sum over texts of 1 - confidence.
        compared: A shadow's answers that were compared with stable's.
        agree: Of these, equal.
        rated: Texts with feedback about their answer.
        negative: Of these, found wrong.
        guarded: Written answers that guards looked at.
        blocked: Of these, not let through.
    """

    model_config = ConfigDict(frozen=True)

    requests: float = 0
    failed: float = 0
    slow: float = 0
    texts: float = 0
    doubt: float = 0
    compared: float = 0
    agree: float = 0
    rated: float = 0
    negative: float = 0
    guarded: float = 0
    blocked: float = 0


class GatewayMetrics:
    """`CountSource` over the ``/metrics`` pages of gateways.

    Args:
        urls: Base URLs of all gateways; a gateway that is left out is traffic that nobody judges.
        fetch: GETs a URL; raises `OSError` when it cannot.
    """

    def __init__(self, urls: Sequence[str], fetch: Callable[[str], bytes] | None = None) -> None:
        self._fetch = fetch or _fetch
        self._urls = tuple(url.rstrip("/") for url in urls)

    def read(self, use_case: str) -> Mapping[str, Counts]:
        """See `CountSource.read`."""
        return {url: parse_counts(self._page(f"{url}/metrics"), use_case) for url in self._urls}

    def _page(self, url: str) -> str:
        try:
            return self._fetch(url).decode()
        except (OSError, ValueError) as error:
            raise TransientBackendError(
                f"The gateway's metrics at {url} cannot be read: {error}",
                hint="start the gateway with `leitstand gateway`, or correct LEITSTAND_GATEWAY__URLS; where it asks "
                "for a key, LEITSTAND_ACCESS__CLIENT_KEY needs the scope metrics:read",
            ) from error


def parse_counts(text: str, use_case: str) -> Counts:
    """The counters of a use case in one metrics page, as ``WHO/NAME``.

    WHO is a version, or ``VERSION~shadow`` for what it did as a shadow; other routes are added together. Latency
    buckets are named ``le:SECONDS`` and cumulative as in Prometheus; outcomes of a shadow's comparisons and of feedback
    by themselves; guarded answers are ``guarded:OUTCOME``.
    """
    counts: Counts = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if labels.get("use_case") != use_case or "version" not in labels:
                continue
            name = _PLAIN.get(sample.name)
            if sample.name == BUCKET:
                name = f"le:{float(labels['le']):g}"
            elif sample.name in (SHADOWS, JUDGED):
                name = labels["outcome"]
            elif sample.name == GUARDED:
                name = f"guarded:{labels['outcome']}"
            if name is not None:
                shadow = SHADOW if sample.name == SHADOWS or labels.get("route") == "shadow" else ""
                key = f"{labels['version']}{shadow}/{name}"
                counts[key] = counts.get(key, 0.0) + sample.value
    return counts


def accumulate(tally: Tally, read: Mapping[str, Counts], *, begun: str) -> Tally:
    """Adds what was counted since the last look.

    Args:
        tally: The totals so far. A source that it has never seen adds nothing at first: what it counted
            before is nobody's evidence.
        read: What the sources say now.
        begun: The phase or step that is going on; another one than the tally's starts at zero here, so that
            requests that were answered at another weight, or while nobody looked, count for nothing.
    """
    if begun != tally.begun:
        return Tally(begun=begun, last={**tally.last, **read})
    total = dict(tally.total)
    for source, counts in read.items():
        last = tally.last.get(source)
        if last is None:
            continue
        for key, value in counts.items():
            before = last.get(key, 0.0)
            total[key] = total.get(key, 0.0) + (value - before if value >= before else value)
    return Tally(begun=begun, total=total, last={**tally.last, **read})


def arm(tally: Tally, version: int, slow_ms: float, *, shadow: bool = False) -> Arm:
    """One version's counts, with `slow` counted from the first bucket bound that is not below `slow_ms`."""
    prefix = f"{version}{SHADOW if shadow else ''}/"
    mine = {key.removeprefix(prefix): value for key, value in tally.total.items() if key.startswith(prefix)}
    answered, failed = mine.get("answered", 0.0), mine.get("failed", 0.0)
    agree, disagree = mine.get("agree", 0.0), mine.get("disagree", 0.0)
    if shadow:
        answered = agree + disagree
    timed = max((value for key, value in mine.items() if key.startswith("le:")), default=0.0)
    bounds = sorted(float(key[3:]) for key in mine if key.startswith("le:"))
    bound = next((each for each in bounds if each * 1000 >= slow_ms * (1 - 1e-9)), None)
    return Arm(
        requests=answered + failed,
        failed=failed,
        slow=max(0.0, timed - mine[f"le:{bound:g}"]) if bound is not None else 0.0,
        texts=mine.get("texts", 0.0),
        doubt=mine.get("doubt", 0.0),
        compared=agree + disagree,
        agree=agree,
        rated=mine.get("right", 0.0) + mine.get("wrong", 0.0),
        negative=mine.get("wrong", 0.0),
        guarded=sum(value for key, value in mine.items() if key.startswith("guarded:")),
        blocked=mine.get("guarded:block", 0.0),
    )


def latency_quantile_ms(counts: Mapping[str, float], version: int, quantile: float) -> float | None:
    """The bound of the first latency bucket that holds `quantile` of the version's answers; None without any."""
    prefix = f"{version}/le:"
    buckets = sorted(
        (float(key.removeprefix(prefix)), value) for key, value in counts.items() if key.startswith(prefix)
    )
    if not buckets or not buckets[-1][1]:
        return None
    wanted = quantile * buckets[-1][1]
    return 1000 * next(bound for bound, value in buckets if value >= wanted)


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 -- gateways of our own settings
        return answer.read()
