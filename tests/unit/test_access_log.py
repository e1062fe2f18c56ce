"""What the access log says, and what it never says."""

import json
from io import StringIO

import pytest

from leitstand.errors import PolicyDenied
from leitstand.events import configure_logging
from leitstand.types import Caller
from services import access_log
from services.access_log import AccessLog
from services.exchange import Exchange, TextPayload
from services.observing import Seen

SECRET = b"Bearer very-secret"


def request(status: int = 200, error: Exception | None = None) -> Seen:
    exchange = Exchange(
        use_case="support", request_id="r-1", subject="anna@example.org", payload=TextPayload(["my private text"]),
        path="/v2/models/support/infer", deadline=0, version=3, route="canary", upstream_s=0.0125, error=error,
        caller=Caller(subject="anna@example.org", tenant="acme"),
    )  # fmt: skip
    scope = {"path": "/v1/support/predict", "method": "POST", "headers": [(b"authorization", SECRET)]}
    headers = [(b"x-request-id", b"r-1")]
    return Seen(scope, "predict", "support", 0.0, status, headers, 0.02, "4bf92f3577b34da6a3ce929d0e0e4736", exchange)


def written(log: AccessLog, *requests: Seen) -> tuple[list[dict], str]:
    stream = StringIO()
    configure_logging(stream=stream)
    for each in requests:
        log.ended(each)
    log.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()], stream.getvalue()


def test_a_line_tells_who_answered_and_how_long_it_took() -> None:
    (line,), text = written(AccessLog("all", tenant_key=b"key"), request())
    assert (line["message"], line["log.level"]) == ("predict 200", "info")
    assert line["http"] == {"request": {"id": "r-1"}, "response": {"status_code": 200}}
    assert line["event"]["outcome"] == "success" and line["event"]["duration"] == 20_000_000
    assert line["trace"]["id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert line["leitstand"] == {"use_case": "support", "version": 3, "route": "canary", "upstream_ms": 12.5}
    assert len(line["organization"]["id"]) == 32
    for private in ("private", "anna", "acme", "very-secret"):
        assert private not in text


def test_tenants_are_told_apart_without_being_named_and_not_at_all_without_a_key() -> None:
    other = request()
    assert other.exchange is not None
    other.exchange.caller = Caller(tenant="globex")
    lines, _ = written(AccessLog("all", tenant_key=b"key"), request(), request(), other)
    first, second, third = (line["organization"]["id"] for line in lines)
    assert first == second != third
    (line,), _ = written(AccessLog("all"), request())
    assert "organization" not in line


def test_only_errors_are_logged_unless_all_are_asked_for() -> None:
    lines, text = written(
        AccessLog("errors"), request(), request(403, PolicyDenied("the text said: Anna")), request(502)
    )
    assert [line["http"]["response"]["status_code"] for line in lines] == [403, 502]
    assert [line["log.level"] for line in lines] == ["info", "warning"]
    assert lines[0]["error"] == {"type": "PolicyDenied"} and lines[0]["event"]["outcome"] == "failure"
    assert "Anna" not in text


def test_a_share_of_the_successful_ones_is_spread_evenly_and_errors_are_never_left_out() -> None:
    lines, _ = written(AccessLog("all", ratio=0.25), *[request() for _ in range(100)], request(500))
    assert len(lines) == 26


def test_lines_that_come_too_fast_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "WAITING", 5)
    monkeypatch.setattr(access_log, "PAUSE_S", 60)
    before = access_log.ACCESS_LINES_DROPPED._value.get()
    lines, _ = written(AccessLog("all"), *[request() for _ in range(8)])
    assert len(lines) == 5
    assert access_log.ACCESS_LINES_DROPPED._value.get() == before + 3


def test_a_request_that_came_not_far_has_a_line_too() -> None:
    (line,), _ = written(AccessLog("errors"), Seen({}, "other", "", 0.0, 404, None, 0.001))
    assert line["http"] == {"response": {"status_code": 404}} and "leitstand" not in line
